"""Checkpoints of real runs: a LightningCLI trains a tiny classifier for one step on made-up clips."""

import shutil

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

import hub
from hub.lightning_ckpt import read_lightning
from lightning_modules.base import BaseModule
from lightning_modules.ops import use_backend

MODEL = {
    "class_path": "lightning_modules.VideoClassifier",
    "init_args": {
        "num_classes": 3, "embed_dim": 16, "depth": 1, "num_frames": 2, "image_size": 16, "mean": [0.5, 0.5, 0.5],
        "lr": 0.01,
    },
}  # fmt: skip


class Clips(LightningDataModule):
    """Two clips of noise; three classes with names, which the model takes over."""

    class_names = ["a", "b", "null"]

    def train_dataloader(self) -> DataLoader:
        clips = [{"video": torch.rand(3, 2, 16, 16), "label": torch.tensor(i)} for i in range(2)]
        return DataLoader(clips, batch_size=2)


def fit(folder, logger: bool | dict) -> BaseModule:
    config = folder / "given.yaml"
    trainer = {
        "max_epochs": 1, "accelerator": "cpu", "logger": logger, "default_root_dir": str(folder),
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    config.write_text(yaml.safe_dump({"model": MODEL, "trainer": trainer}))
    args = ["fit", "--config", str(config)]
    with use_backend("reference"):
        return LightningCLI(BaseModule, Clips, subclass_mode_model=True, args=args).model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: the module, its checkpoint and the run's folder."""
    folder = tmp_path_factory.mktemp("run")
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(folder), "name": "name", "version": "v1"},
    }
    module = fit(folder, logger)
    return module, next((folder / "name" / "v1" / "checkpoints").glob("*.ckpt")), folder / "name" / "v1"


@pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and logging intervals
def test_config_weights_and_recipe_of_a_run(run):
    module, path, folder = run
    found = read_lightning(path)
    assert found.config["class_path"] == MODEL["class_path"]
    assert found.config["init_args"] == dict(module.hparams)
    assert found.config["init_args"]["class_names"] == ["a", "b", "null"]
    assert "lr" not in found.config["init_args"]
    assert all(torch.equal(found.state_dict[key], tensor) for key, tensor in module.state_dict().items())
    assert found.recipe == (folder / "config.yaml").read_text()
    assert yaml.safe_load(found.recipe)["model"]["init_args"]["lr"] == 0.01


@pytest.mark.filterwarnings("ignore")
def test_a_run_without_a_logger_has_its_recipe_too(tmp_path):
    fit(tmp_path, False)
    path = next(tmp_path.rglob("*.ckpt"))
    assert read_lightning(path).recipe == (tmp_path / "config.yaml").read_text()


@pytest.mark.filterwarnings("ignore")
def test_only_the_config_of_the_run_is_taken(run, tmp_path):
    _, path, folder = run
    recipe = (folder / "config.yaml").read_text()

    def recipe_of(place, text=recipe, checkpoint="checkpoints/last.ckpt"):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        copy = tmp_path / "x" / "run" / checkpoint
        copy.parent.mkdir(parents=True)
        shutil.copy(path, copy)
        (tmp_path / "x" / place).write_text(text)
        return read_lightning(copy).recipe

    assert recipe_of("run/config.yaml") == recipe
    assert recipe_of("run/config.yaml", checkpoint="last.ckpt") == recipe
    assert recipe_of("config.yaml") is None  # a project's own config, above the run
    assert recipe_of("config.yaml", checkpoint="last.ckpt") is None
    assert recipe_of("run/config.yaml", checkpoint="other/last.ckpt") is None
    for other in ("embed_dim: 16", "num_frames: 2"):
        assert other in recipe
        assert recipe_of("run/config.yaml", recipe.replace(other, other + "0")) is None
    assert recipe_of("run/config.yaml", recipe.replace("VideoClassifier", "VideoRegressor")) is None
    for text in ("", "- 1", "model: 3", "model: {class_path: 3, init_args: [1]}", "a: [", "unrelated: true"):
        assert recipe_of("run/config.yaml", text) is None


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {"state_dict": {"a": torch.ones(1)}},
        {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": {"lr": 1}},
        {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": [1]},
        {"state_dict": {"a": torch.ones(1)}, "hyper_parameters": {"_class_path": ["os.system"]}},
        {"hyper_parameters": {"_class_path": "a.B"}},
        {"hyper_parameters": {"_class_path": "a.B"}, "state_dict": 3},
    ],
)
def test_checkpoints_of_others(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(hub.HubError, match=r"a\.ckpt is not a checkpoint of a module of the zoo"):
        read_lightning(tmp_path / "a.ckpt")
