"""Recipes of Video Mamba Suite, the published numbers and a run of each by the real command; and its models from a file
of weights to a search."""

import json
import sys

import pytest
import torch

import hub
import zoo
from datamodules import EpicKitchens100
from datamodules.synthetic.kitchen import generate_kitchen
from datamodules.synthetic.writing import generate
from lightning_modules import ActionClassifier, DualEncoder, VideoClassifier
from zoo.cli import ZooCLI
from zoo.commands.main import main
from zoo.configs import normalise
from zoo.recipe import list_recipes, read_recipe

FOLDER = "video_mamba_suite"
RECIPES = {name: read_recipe(path) for name, path in list_recipes().items() if path.parent.name == FOLDER}
TEXT = {"vocab_size": 700, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip
TOWERS = {
    "vivim": {"tower": "vivim", "embed_dim": 16, "depth": 2},
    "timemamba": {"tower": "timemamba", "embed_dim": 16, "depth": 2, "heads": 2, "style": "vanilla"},
}
CPU = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true",
       "--trainer.max_steps=2"]  # fmt: skip


def settings(name):
    config = RECIPES[name]
    return config["model"]["init_args"], config["data"], config["trainer"]


def monitored(trainer):
    return next(c for c in trainer["callbacks"] if c["class_path"].endswith(".ModelCheckpoint"))["init_args"]["monitor"]


def same_model(name, entry):
    """Whether a recipe's model is that of the registry, but for what only trains it and the names of classes."""
    model, entry = RECIPES[name]["model"], zoo.info(entry)
    cls = {"VideoClassifier": VideoClassifier, "DualEncoder": DualEncoder, "ActionClassifier": ActionClassifier}
    trained_with = cls[model["class_path"].split(".")[-1]].training_only()
    said = {k: v for k, v in model["init_args"].items() if k not in trained_with}
    known = {k: v for k, v in entry.init_args.items() if k != "class_names"}
    return normalise({"class_path": model["class_path"], "init_args": said}) == normalise(
        {"class_path": entry.class_path, "init_args": known}
    )


# What the recipes say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["ti", "s"])
def test_kinetics_is_videomambas_recipe_but_for_the_network_and_the_start(size):
    name = f"vivim-{size}-k400-f16-r224"
    assert same_model(name, name)
    ours, theirs = (read_recipe(list_recipes()[one]) for one in (name, name.replace("vivim", "videomamba")))
    assert theirs["model"]["init_args"].pop("init_from") and ours["model"]["init_args"].pop("init_from") is None
    assert ours["model"]["init_args"].pop("network") == "vivim"
    assert ours == theirs


def test_captions_are_learned_with_the_published_numbers():
    """Video Mamba Suite's engine/main_lavila_pretrain.py."""
    entries = {"vivim-ti-captions-f16-r224": "vivim-ti-ego4d", "vivim-s-captions-f16-r224": "vivim-s-ego4d",
               "timemamba-b-captions-f4-r224": "timemamba-b-vanilla-ego4d-f4"}  # fmt: skip
    for name, entry in entries.items():
        model, data, trainer = settings(name)
        assert same_model(name, entry)
        optim = {"lr": 3e-5, "min_lr": 3e-5, "warmup_epochs": 0, "weight_decay": 0.01, "decayed": "state_matrices",
                 "betas": [0.9, 0.999]}  # fmt: skip
        assert (model["loss"], model["same_video_negatives"], model["optim"]) == ("contrastive", True, optim)
        assert data["init_args"]["batch_size"] * 8 == 512 and data["init_args"]["crop_area"] == [0.5, 1.0]
        precision = "16-mixed" if "timemamba" in name else "bf16-mixed"
        assert (trainer["max_epochs"], trainer["precision"]) == (5, precision)
        parts = {key: value for key, value in model.items() if key in ("text_weights", "vision_weights")}
        assert zoo.info(entry).parts == parts


def test_actions_are_learned_with_the_published_numbers():
    """Video Mamba Suite's engine/main_lavila_finetune_cls.py."""
    name = "timemamba-b-ek100-cls-f16-r224"
    model, data, trainer = settings(name)
    assert same_model(name, name) and model["init_from"] == zoo.info(name).meta["init_from"]
    optim, scale = model["optim"], data["init_args"]["batch_size"] * 8 / model["optim"]["lr_samples"]
    assert (optim["name"], optim["momentum"], optim["weight_decay"]) == ("sgd", 0.9, 5e-4)
    rates = [optim[key] * scale for key in ("lr", "min_lr", "warmup_lr")]
    assert rates == pytest.approx([0.012, 4e-5, 4e-6]) and optim["warmup_epochs"] == 2
    assert (model["drop"], model["label_smoothing"]) == (0.5, 0.1)
    mixing = {"mixup": 0.8, "cutmix": 1.0, "crop_area": [0.5, 1.0], "horizontal_flip": 0.0, "actions": "as_text"}
    assert mixing.items() <= data["init_args"].items() and data["class_path"] == "datamodules.EpicKitchens100"
    assert (trainer["max_epochs"], trainer["precision"], monitored(trainer)) == (100, "bf16-mixed", "val/score")


# A run of each ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Clips with captions, the same as Kinetics, a small kitchen, and a dual encoder to start from."""
    folder = tmp_path_factory.mktemp("suite")
    clips = generate(folder / "clips", num_train=4, num_val=2, num_test=2, classes=("grow", "move_left"),
                     size=(48, 40), num_frames=8, num_workers=0, progress=False)  # fmt: skip
    (clips / "classes.txt").unlink()  # Kinetics has 400
    for split in ("train", "val", "test"):
        videos = sorted((clips / split).rglob("*.mp4"))
        rows = [f"{video.relative_to(clips)},{399 * (i % 2)}\n" for i, video in enumerate(videos)]
        (clips / f"{split}.csv").write_text("".join(rows))
    generate_kitchen(folder / "kitchen", num_train=2, num_val=2, num_test=0, actions=2, size=(40, 32), num_frames=8,
                     num_workers=0, progress=False)  # fmt: skip
    torch.manual_seed(0)
    hub.save(encoder("timemamba"), folder / "donor")
    return folder


def encoder(tower):
    model = DualEncoder(TOWERS[tower], TEXT, dim=8, num_frames=2, image_size=32, max_words=24)
    model.net.tokenizer.learn(["a red disc grows", "a blue square moves to the left"])
    return model


def fit(monkeypatch, folder, name, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", "--config", name, *CPU, *arguments])
    cli = ZooCLI()
    assert cli.trainer.global_step == 2 and cli.trainer.callback_metrics["train/loss"].isfinite()
    return zoo.load(folder / "runs" / name / "version_0" / "checkpoints" / "last.ckpt")


def flag(values):
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


@pytest.mark.parametrize("size", ["ti", pytest.param("s", marks=pytest.mark.slow)])
def test_kinetics_trains(workspace, monkeypatch, size):
    name = f"vivim-{size}-k400-f16-r224"
    model = fit(monkeypatch, workspace, name, "--data.root=clips", "--data.batch_size=2", "--model.embed_dim=16",
                "--model.depth=2", "--model.image_size=32", "--model.num_frames=2")  # fmt: skip
    assert type(model.net).__name__ == "ViViM" and model.net.layers[0].mixer.halve


@pytest.mark.parametrize("name", ["timemamba-b-captions-f4-r224", "vivim-ti-captions-f16-r224",
                                  pytest.param("vivim-s-captions-f16-r224", marks=pytest.mark.slow)])  # fmt: skip
def test_captions_train(workspace, monkeypatch, name):
    tower = TOWERS[name.split("-")[0]]
    parts = ["--model.text_weights=null", *(["--model.vision_weights=null"] if "timemamba" in name else [])]
    model = fit(monkeypatch, workspace, name, "--data.root=clips", "--data.batch_size=2", *parts,
                f"--model.vision={flag(tower)}", f"--model.text={flag(TEXT)}", "--model.dim=8",
                "--model.image_size=32", "--model.num_frames=2", "--model.max_words=24")  # fmt: skip
    with torch.inference_mode():
        assert model.similarity(["a disc grows"], torch.zeros(1, 3, 2, 32, 32)).abs() <= 1


def test_actions_train_from_a_dual_encoder(workspace, monkeypatch):
    data = EpicKitchens100(workspace / "kitchen", actions="as_text")
    sizes = {"num_verbs": len(data.verb_names), "num_nouns": len(data.noun_names), "order": "as_text"}
    model = fit(monkeypatch, workspace, "timemamba-b-ek100-cls-f16-r224", "--data.root=kitchen", "--data.batch_size=2",
                f"--model.vision={flag(TOWERS['timemamba'])}", f"--model.num_classes={data.num_classes}",
                f"--model.vocabulary={flag(sizes)}", "--model.image_size=32", "--model.num_frames=2",
                "--model.init_from=donor")  # fmt: skip
    assert model.class_names == data.class_names
    video = str(next((workspace / "clips").rglob("*.mp4")))
    best, *_ = zoo.predict(model, video, topk=1, num_clips=1, num_crops=1)
    assert best.label in data.class_names


# From weights to a search -------------------------------------------------------------------------------------------


def search(folder, model, capsys, query="a red disc grows"):
    """`zoo index` and `zoo search`: paths and scores, best first."""
    main(["index", str(model), str(folder / "clips" / "test"), "-o", str(folder / "my.index"), "--workers", "0"])
    capsys.readouterr()
    main(["search", str(folder / "my.index"), query, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("tower", TOWERS)
def test_index_and_search(workspace, tmp_path, tower, capsys):
    torch.manual_seed(0)
    hub.save(encoder(tower), tmp_path / "model")
    (tmp_path / "clips").symlink_to(workspace / "clips")
    found = search(tmp_path, tmp_path / "model", capsys)
    assert "grow" in json.dumps(found) and "move_left" in json.dumps(found)


def test_info_says_how_to_use_them(capsys):
    for name, said in (("vivim-s-ego4d", "zoo search my.index"), ("timemamba-b-ek100-cls-f16", "zoo predict"),
                       ("timemamba-b-ek100-mir-f16", "mAP 52.4 / 45.4 / 48.9")):  # fmt: skip
        main(["info", name])
        text = " ".join(capsys.readouterr().out.split())
        assert said in text and "licence mit" in text and "cg1177/video-mamba-suite" in text
