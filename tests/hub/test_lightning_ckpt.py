"""Checkpoints of real runs: a LightningCLI trains a tiny classifier for one step on made-up clips."""

import hashlib
import json
import os
import shutil

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

import hub
from hub.checkpoint import read, write
from hub.lightning_ckpt import find_checkpoint, read_lightning
from lightning_modules.base import BaseModule
from lightning_modules.ops import use_backend
from lightning_modules.tasks.classification import VideoClassifier

MODEL = {
    "class_path": "lightning_modules.VideoClassifier",
    "init_args": {
        "num_classes": 3, "embed_dim": 16, "depth": 1, "num_frames": 2, "image_size": 16, "mean": [0.5, 0.5, 0.5],
        "optim": {"lr": 0.01},
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
    assert "optim" not in found.config["init_args"]
    assert all(torch.equal(found.state_dict[key], tensor) for key, tensor in module.state_dict().items())
    assert found.recipe == (folder / "config.yaml").read_text()
    assert yaml.safe_load(found.recipe)["model"]["init_args"]["optim"]["lr"] == 0.01


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


METRICS = """\
epoch,step,train/loss,val/loss,val/top1,val/top5,test/top1
0,49,1.9,,,,
0,49,,1.8,0.25,0.5,
1,99,1.2,,,,
1,74,,1.4,0.5,0.75,
1,99,,1.1,0.875,nan,
2,149,,1.3,0.75,1.0,
2,150,,,,,0.8125
"""


@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_the_checkpoint_and_not_of_the_run(run, tmp_path):
    _, path, folder = run
    copy = tmp_path / "run" / "checkpoints"
    copy.mkdir(parents=True)
    shutil.copy(folder / "config.yaml", tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").write_text(METRICS)
    (tmp_path / "run" / "curves.png").write_bytes(b"\x89PNG")
    content = torch.load(path, weights_only=True)

    def scores_of(name, epoch, global_step):
        torch.save(content | {"epoch": epoch, "global_step": global_step}, copy / name)
        return read_lightning(copy / name).scores

    assert scores_of("best.ckpt", 1, 100) == {
        "val/loss": 1.1, "val/top1": 0.875, "val/top5": 0.75, "test/top1": 0.8125,
    }  # fmt: skip
    assert scores_of("epoch=1.ckpt", 1, 75) == {"val/loss": 1.4, "val/top1": 0.5, "val/top5": 0.75}
    assert scores_of("last.ckpt", 2, 150) == {"val/loss": 1.3, "val/top1": 0.75, "val/top5": 1.0}
    assert scores_of("other.ckpt", 7, 400) == {}
    found = read_lightning(copy / "best.ckpt")
    assert found.extras == {"metrics.csv": METRICS.encode(), "curves.png": b"\x89PNG"}
    (tmp_path / "run" / "metrics.csv").write_bytes(b"\xff\xfe,\x00")
    assert read_lightning(copy / "best.ckpt").scores == {}
    # Without the run's own config, what lies there may be of another run.
    (tmp_path / "run" / "config.yaml").unlink()
    assert read_lightning(copy / "best.ckpt").extras == {}

    assert find_checkpoint(tmp_path / "run") == find_checkpoint(copy) == copy / "best.ckpt"
    (copy / "best.ckpt").unlink()
    with pytest.raises(hub.HubError, match=r"has 3 checkpoints and none is called best\.ckpt") as caught:
        find_checkpoint(tmp_path / "run")
    assert str(copy / "epoch=1.ckpt") in str(caught.value)
    (copy / "last.ckpt").unlink()
    (copy / "other.ckpt").unlink()
    assert find_checkpoint(tmp_path / "run") == copy / "epoch=1.ckpt"
    assert find_checkpoint(tmp_path) is None


@pytest.mark.filterwarnings("ignore")
def test_a_report_belongs_to_the_file_that_was_tested(run, tmp_path):
    _, path, folder = run
    copy = tmp_path / "runs" / "version_0" / "checkpoints" / "best.ckpt"
    copy.parent.mkdir(parents=True)
    shutil.copy(folder / "config.yaml", copy.parents[1])
    shutil.copy(path, copy)

    def report(name: str, text: str | None, time: int, sha256: str) -> None:
        test = tmp_path / "runs" / name
        test.mkdir(exist_ok=True)
        scores = {"samples": 8, "top1": 0.75, "top1_interval": [0.5, 1.0], "calibration_error": 0.125}
        logged = {"test/top1": 0.75, "other": 1.0, "test/odd": "x"}
        tested = {"path": "../version_0/checkpoints/best.ckpt", "sha256": sha256}
        record = {"checkpoint": tested, "scores": {"class": scores}, "logged": logged}
        (test / "report.json").write_text(json.dumps(record) if text is None else text)
        (test / "confusion.png").write_bytes(name.encode())
        os.utime(test / "report.json", (time, time))

    right = hashlib.sha256(copy.read_bytes()).hexdigest()
    for number, text in enumerate(("", "{", "[]", "{}", '{"checkpoint": null}', '{"checkpoint": {"sha256": 3}}')):
        report(f"test_{number}", text, 100 + number, right)
    report("test_6", None, 90, "0" * 64)  # of weights that were replaced since
    assert read_lightning(copy).scores == {} and "confusion.png" not in read_lightning(copy).extras
    report("test_7", None, 20, right)
    report("test_8", None, 30, right)
    found = read_lightning(copy)
    assert found.scores == {
        "test/top1": 0.75, "test/top1_low": 0.5, "test/top1_high": 1.0, "test/calibration_error": 0.125
    }  # fmt: skip
    assert found.extras["confusion.png"] == b"test_8"
    write(found, tmp_path / "model")
    assert read(tmp_path / "model").extras["confusion.png"] == b"test_8"


@pytest.mark.filterwarnings("ignore")
def test_averaged_weights_are_the_ones_that_are_read(tmp_path):
    """Lightning's EMA: the averages are the checkpoint's weights, and the raw ones are not taken for them."""
    module = VideoClassifier(
        **{k: v for k, v in MODEL["init_args"].items() if k != "optim"}, optim=dict(lr=0.5, warmup_epochs=0.0)
    )
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[EMAWeightAveraging(decay=0.5)], default_root_dir=tmp_path,
    )  # fmt: skip
    with use_backend("reference"):
        trainer.fit(module, datamodule=Clips())
    path = next(tmp_path.rglob("*.ckpt"))
    content = torch.load(path, weights_only=True)
    raw, averaged = content["current_model_state"], content["state_dict"]
    assert any(not torch.equal(raw[key], averaged[key]) for key in averaged)
    found = read_lightning(path).state_dict
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[key], averaged[key]) for key in found)


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
