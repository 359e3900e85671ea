"""Recipes of EPIC-KITCHENS-100 retrieval: the published numbers, the registry's models, and a run of each by the real
command on a generated kitchen in the official layout."""

import csv
import sys

import pytest
import torch

import hub
import zoo
from datamodules import EpicKitchensRetrieval
from datamodules.synthetic.kitchen import generate_kitchen
from lightning_modules import DualEncoder
from lightning_modules.training.graded_retrieval import RetrievalScores
from zoo.cli import ZooCLI
from zoo.configs import normalise
from zoo.recipe import list_recipes, read_recipe
from zoo.registry import entries

RECIPES = {name: read_recipe(path) for name, path in list_recipes().items() if name.endswith("-ek100-mir-f16-r224")}
ENTRIES = {entry.name: entry for entry in entries()}
START = {"timemamba-b": "timemamba-b-vanilla-ego4d-f4-r224", "vivim-ti": "vivim-ti-ego4d-f16-r224",
         "vivim-s": "vivim-s-ego4d-f16-r224"}  # fmt: skip
TEXT = {"vocab_size": 600, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip
SIZES = {
    "timemamba-b": {"tower": "timemamba", "embed_dim": 16, "depth": 2, "heads": 2, "style": "vanilla"},
    "vivim-ti": {"tower": "vivim", "embed_dim": 16, "depth": 2},
    "vivim-s": {"tower": "vivim", "embed_dim": 24, "depth": 2},
}
SCORES = {f"{way}{name}" for way in ("", "v2t_", "t2v_") for name in ("map", "ndcg")}


def test_there_is_a_recipe_for_each_model():
    assert set(RECIPES) == {f"{size}-ek100-mir-f16-r224" for size in SIZES}


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_are_the_published_ones(name):
    """Video Mamba Suite's engine/main_lavila_finetune_mir.py (docs/protocol.md, section 24)."""
    config, size = RECIPES[name], name.removesuffix("-ek100-mir-f16-r224")
    model, data, trainer = config["model"]["init_args"], config["data"], config["trainer"]
    assert (model["loss"], model["margin"], model["same_video_negatives"]) == ("max_margin", 0.2, True)
    optim = {"lr": 3e-5, "min_lr": 1e-5, "warmup_lr": 1e-6, "warmup_epochs": 1, "weight_decay": 0.01,
             "decayed": "state_matrices", "betas": [0.9, 0.999]}  # fmt: skip
    assert model["optim"] == optim
    assert data["class_path"] == "datamodules.EpicKitchensRetrieval" and data["init_args"]["batch_size"] * 8 == 512
    assert data["init_args"]["crop_area"] == [0.5, 1.0]
    assert (trainer["max_epochs"], trainer["precision"]) == (100, "bf16-mixed")
    assert "gradient_clip_val" not in trainer
    monitored = next(c for c in trainer["callbacks"] if c["class_path"].endswith(".ModelCheckpoint"))["init_args"]
    assert (monitored["monitor"], monitored["mode"], monitored["tie_breaker"]) == ("val/map", "max", None)
    # It is the registry's model, begins with that of Ego4D, and sees the clip that the released one was made for.
    assert model["init_from"] == START[size]
    entry = ENTRIES.get(name, ENTRIES[START[size]])
    what_it_is = {k: v for k, v in model.items() if k not in DualEncoder.training_only()}
    expected = {**entry.init_args, "num_frames": 16}
    assert normalise({"class_path": entry.class_path, "init_args": what_it_is}) == normalise(
        {"class_path": config["model"]["class_path"], "init_args": expected})  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A small kitchen, and of each network one to start from."""
    folder = tmp_path_factory.mktemp("kitchens")
    generate_kitchen(folder / "kitchen", num_train=3, num_val=3, num_test=0, actions=3, size=(40, 32), num_frames=8,
                     num_workers=0, progress=False)  # fmt: skip
    captions = EpicKitchensRetrieval(folder / "kitchen").captions
    for size, vision in SIZES.items():
        torch.manual_seed(0)
        model = DualEncoder(vision, TEXT, dim=8, num_frames=4, image_size=32, max_words=24)
        model.net.tokenizer.learn(captions)
        hub.save(model, folder / size)
    return folder


def command(monkeypatch, folder, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lightning", *map(str, arguments)])
    return ZooCLI()


def logged(folder, prefix):
    """The last row of a run's metrics with scores, by their names."""
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k.startswith(prefix) and v} for row in csv.DictReader(file)]
    return {k.removeprefix(prefix): float(v) for k, v in [row for row in rows if row][-1].items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "vivim-s" in name else name for name in RECIPES]
)
def test_a_run_of_each(workspace, name, monkeypatch):
    """Two optimiser steps, and a test of the checkpoint and of the weights it began with."""
    size = name.removesuffix("-ek100-mir-f16-r224")
    vision = "{" + ", ".join(f"{key}: {value}" for key, value in SIZES[size].items()) + "}"
    text = "{" + ", ".join(f"{key}: {value}" for key, value in TEXT.items()) + "}"
    small = ["--config", name, "--data.root=kitchen", "--data.num_workers=0", "--data.batch_size=4",
             f"--model.vision={vision}", f"--model.text={text}", "--model.dim=8", "--model.image_size=32",
             "--model.num_frames=4", "--model.max_words=24", f"--model.init_from={size}",
             "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]  # fmt: skip
    cli = command(monkeypatch, workspace, "fit", *small, "--trainer.max_epochs=1")
    assert cli.trainer.global_step == 2
    version = workspace / "runs" / name / "version_0"
    validated = logged(version, "val/")
    assert set(validated) == SCORES and all(0 < value < 1 for value in validated.values())
    started, trained = zoo.load(workspace / size), zoo.load(version / "checkpoints" / "best.ckpt")
    moved = [n for n, weight in trained.state_dict().items() if not torch.equal(weight, started.state_dict()[n])]
    assert {key.split(".")[1] for key in moved} >= {"vision", "text", "vision_proj"}
    command(monkeypatch, workspace, "test", *small, "--ckpt_path=best")
    assert logged(version.parent / "test_0", "test/") == pytest.approx(validated)
    command(monkeypatch, workspace, "test", *small)
    data = EpicKitchensRetrieval(workspace / "kitchen", batch_size=9, num_workers=0, **started.preprocessing)
    data.setup("test")
    scores = RetrievalScores()
    with torch.inference_mode():
        for batch in data.test_dataloader():
            texts = [text for own in batch["text"] for text in own]
            scores.update(started(batch["video"]), started.encode_text(texts), batch)
    expected = {key: value.item() for key, value in scores.compute().items()}
    assert logged(version.parent / "test_1", "test/") == pytest.approx(expected, abs=1e-6)
