"""Self-distillation and scan orders through the front door: the command, the recipes, the folder and the Hub."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load

import hub
import zoo
from datamodules.synthetic.writing import generate
from lightning_modules import SelfDistillation, VideoClassifier
from lightning_modules.nets.scan_orders import SCAN_ORDERS
from zoo.cli import ZooCLI
from zoo.recipe import list_recipes, read_recipe
from zoo.registry import Weights

BIN = Path(sys.executable).parent
RECIPE = {
    "model": {
        "class_path": "lightning_modules.SelfDistillation",
        "init_args": {
            "num_classes": None, "embed_dim": 24, "depth": 2, "num_frames": 4, "image_size": 32,
            "scan_order": "alternating", "optim": {"warmup_epochs": 0},
        },
    },
    "data": {
        "class_path": "datamodules.VideoFolder",
        "init_args": {"root": "data", "batch_size": 4, "num_workers": 0, "num_clips": 2, "mixup": 0.8},
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
    "include": {"trainer": "TRAINER"},
}  # fmt: skip


def run(*command, cwd, check=True, **environment):
    result = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=cwd, env=environment or {**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "Traceback" not in result.stderr, result.stderr
    assert (result.returncode == 0) == check, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Generated clips, a teacher for more frames at a higher resolution, an image model, and a distilled run."""
    folder = tmp_path_factory.mktemp("distill")
    generate(folder / "data", num_train=8, num_val=4, num_test=0, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    torch.manual_seed(0)
    hub.save(VideoClassifier(5, 16, 1, num_frames=8, image_size=48), folder / "teacher")
    hub.save(VideoClassifier(7, 24, 2, num_frames=None, image_size=48), folder / "image")
    trainer = list_recipes()["demo"].parent / "parts" / "trainer.yaml"
    text = yaml.safe_dump(RECIPE).replace("TRAINER", str(trainer))
    (folder / "student.yaml").write_text(text)
    run("lightning", "fit", "--config", "student.yaml", "--model.teacher", "teacher", "--model.init_from", "image",
        cwd=folder)  # fmt: skip
    return folder


@pytest.mark.slow
def test_a_run_starts_from_image_weights_and_has_no_teacher_in_its_checkpoint(workspace):
    folder = workspace / "runs" / "student" / "version_0"
    init_args = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    assert (init_args["teacher"], init_args["init_from"]) == ("teacher", "image")
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in content["state_dict"]} == {"net", "distill_head"}
    assert content["hyper_parameters"]["scan_order"] == "alternating"
    with (folder / "metrics.csv").open() as file:
        assert sum(bool(row["train/distill_loss"]) for row in csv.DictReader(file)) > 0


@pytest.mark.slow
def test_it_goes_on_is_tested_without_the_teacher_and_shared_as_a_classifier(workspace):
    teacher = ["--model.teacher", "teacher"]
    text = run("lightning", "fit", "--config", "student.yaml", *teacher, "--ckpt_path", "last", "--trainer.max_epochs",
               "3", cwd=workspace)  # fmt: skip
    assert "Resuming" in text
    folder = workspace / "runs" / "student" / "version_0"
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"]) == (2, 6)
    (workspace / "teacher").rename(workspace / "gone")
    try:
        tested = run("lightning", "test", "--config", folder / "config.yaml", "--ckpt_path", "best", cwd=workspace)
        assert "test/top1" in tested
        text = run("lightning", "fit", "--config", "student.yaml", cwd=workspace, check=False)
        assert "needs a teacher to train with; set model.teacher" in text
        assert not (workspace / "runs" / "student" / "version_1").exists()
    finally:
        (workspace / "gone").rename(workspace / "teacher")

    run("zoo", "convert", folder, "shared", cwd=workspace)
    assert {"config.json", "metrics.csv", "recipe.yaml", "README.md"} <= {
        p.name for p in (workspace / "shared").iterdir()
    }
    config = json.loads((workspace / "shared" / "config.json").read_text())
    assert config["class_path"] == "lightning_modules.VideoClassifier"
    assert "`teacher` as its teacher" in (workspace / "shared" / "README.md").read_text()
    clip = next((workspace / "data" / "val" / "grow").glob("*.mp4"))
    (record,) = json.loads(run("zoo", "predict", "shared", clip, "--json", cwd=workspace))
    assert sum(p["probability"] for p in record["predictions"]) == pytest.approx(1)
    assert type(zoo.load(workspace / "shared")) is VideoClassifier


@pytest.mark.slow
def test_it_is_pushed_as_any_other_model(workspace, hub_server, tmp_path):
    token = "hf_" + "a" * 30
    hub_server.tokens[token] = {"me"}
    run("zoo", "push", "runs/student/version_0", "me/student", cwd=workspace,
        **hub_server.environment(tmp_path, HF_TOKEN=token))  # fmt: skip
    files = hub_server.files("me/student")
    assert json.loads(files["config.json"])["class_path"] == "lightning_modules.VideoClassifier"
    assert not any("distill" in name for name in load(files["model.safetensors"]))
    assert yaml.safe_load(files["recipe.yaml"])["model"]["class_path"] == "lightning_modules.SelfDistillation"


@pytest.mark.slow
def test_a_registered_image_model_is_inflated(workspace, tmp_path, monkeypatch):
    """The command in this process, so that the registration holds; every scan order takes the weights."""
    name = "tiny-in1k-for-inflation"
    init_args = {"num_classes": 7, "embed_dim": 24, "depth": 2, "num_frames": None, "image_size": 48}
    monkeypatch.setattr(zoo.registry, "_user_entries", {})  # undone after the test
    zoo.register(name, VideoClassifier, init_args=init_args, weights=Weights(folder=str(workspace / "image")))
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", [
        "lightning", "fit", "--config", "finetune", "--data.root=data", f"--model.init_from={name}",
        "--model.num_frames=4", "--model.image_size=32", "--model.scan_order=spatiotemporal_v2",
        "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--data.num_workers=0",
    ])  # fmt: skip
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: closure() and None)  # start, not move
    net, image = ZooCLI().model.net, zoo.load(name).net
    assert net.block_orders == ["full", "full"] and image.block_orders == ["spatial", "spatial"]
    assert torch.equal(net.patch_embed.proj.weight.squeeze(2), image.patch_embed.proj.weight)
    assert torch.equal(net.pos_embed[:, 0], image.pos_embed[:, 0]) and net.pos_embed.shape == (1, 5, 24)
    assert not net.temporal_pos_embedding.any()
    for (key, ours), theirs in zip(net.layers.state_dict().items(), image.layers.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


# Recipes -------------------------------------------------------------------------------------------------------------


def recipe(name):
    return read_recipe(list_recipes()[name])


@pytest.mark.parametrize("size", ["m", "b"])
def test_the_recipes_are_the_run_scripts(size, shared):
    path = shared / "reference" / "videomamba_recipes.csv"
    if not path.is_file():
        pytest.skip("needs the table of run scripts")
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["zoo_id"]: {k: v.removesuffix("*") for k, v in row.items()} for row in csv.DictReader(file)}
    entry = zoo.info(f"videomamba-{size}-in1k")
    row, config = rows[entry.name], recipe(f"videomamba-{size}-in1k-distill")
    assert entry.meta["distilled"]
    assert f"# {row['script']}: " in list_recipes()[f"videomamba-{size}-in1k-distill"].read_text()
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    model = model | model["optim"]

    # The student is the registry's model, the teacher the script's.
    assert config["model"]["class_path"] == "lightning_modules.SelfDistillation"
    for key in ("embed_dim", "depth", "num_classes", "num_frames", "image_size", "short_side", "interpolation"):
        assert model[key] == entry.init_args[key], key
    teacher = zoo.info(model["teacher"])
    assert teacher.weights.filename.replace("s16_in1k", "small") == row["teacher_file"]
    assert teacher.init_args["embed_dim"] == int(row["teacher_embed_dim"])
    assert (model["distill_weight"], model["distill_loss"]) == (1.0, "cosine")
    assert row["loss"].endswith("feature distillation x1")

    # Every number of the script.
    clips = data["batch_size"] * int(row["gpus"])
    assert (data["batch_size"], clips) == (int(row["batch_per_gpu"]), int(row["clips_per_step"]))
    assert model["lr"] * clips / model["lr_samples"] == pytest.approx(float(row["lr_scaled"]))
    assert model["scale_all_lr"] is False and "per epoch" in row["schedule"] and model["schedule"] == "epoch"
    for key, column in {
        "lr": "lr", "warmup_lr": "warmup_lr", "min_lr": "min_lr", "warmup_epochs": "warmup_epochs",
        "drop_path": "drop_path", "weight_decay": "weight_decay", "label_smoothing": "smoothing",
        "image_size": "input_size",
    }.items():  # fmt: skip
        assert model[key] == float(row[column]), key
    for key, column in {"mixup": "mixup", "cutmix": "cutmix", "random_erasing": "reprob", "repeats": "repeated_aug",
                        "num_workers": "num_workers"}.items():  # fmt: skip
        assert data[key] == float(row[column]), key
    assert row["aa"] == "rand-m9-mstd0.5-inc1" and data["rand_augment_magnitude"] == 9
    assert (trainer["max_epochs"], trainer["gradient_clip_val"]) == (int(row["epochs"]), float(row["clip_grad"]))
    assert (trainer["precision"], config["seed_everything"]) == ("bf16-mixed", int(row["seed"]))


def changes(name, base):
    """Where two recipes differ: {"model.lr": (here, there)}."""
    found = {}

    def walk(here, there, path):
        if isinstance(here, dict) and isinstance(there, dict):
            for key in {**there, **here}:
                walk(here.get(key), there.get(key), [*path, key] if key != "init_args" else path)
        elif here != there:
            found[".".join(path)] = (here, there)

    walk(recipe(name), recipe(base), [])
    return found


def test_each_ablation_changes_what_it_says_and_nothing_else():
    for order in SCAN_ORDERS[1:]:
        base = "videomamba-ti-ssv2-f8-r224"
        assert changes(f"scan-{order.replace('_', '-')}", base) == {"model.scan_order": (order, None)}
    for data, sizes in {"k400": (320, 384, 448), "ssv2": (288, 320, 384)}.items():
        for size in sizes:
            base = f"videomamba-ti-{data}-f8-r224"
            assert changes(f"resolution-{data}-r{size}", base) == {"model.image_size": (size, 224)}
    assert changes("frames-ssv2-f32", "videomamba-ti-ssv2-f16-r224") == {"model.num_frames": (32, 16)}
    for size in ("m", "b"):
        base = f"videomamba-{size}-in1k-distill"
        assert changes(f"distill-{size}-stopped", base) == {"model.teacher_epochs": (150, None)}
        assert changes(f"distill-{size}-scratch", base) == {
            "model.class_path": ("lightning_modules.VideoClassifier", "lightning_modules.SelfDistillation"),
            "model.teacher": (None, "videomamba-s-in1k-r224"),
            "model.distill_weight": (None, 1.0),
            "model.distill_loss": (None, "cosine"),
        }
    assert changes("distill-m-l2", "videomamba-m-in1k-distill") == {"model.distill_loss": ("l2", "cosine")}


OURS = [n for n in list_recipes() if n.startswith(("scan-", "resolution-", "frames-")) or "distill" in n]


@pytest.mark.parametrize("name", OURS)
def test_each_of_them_builds(name):
    model = recipe(name)["model"]
    cls = {"SelfDistillation": SelfDistillation, "VideoClassifier": VideoClassifier}[model["class_path"].split(".")[1]]
    with torch.device("meta"):
        module = cls(**model["init_args"])
    assert module.preprocessing["image_size"] == model["init_args"]["image_size"]
    if isinstance(module, SelfDistillation):
        teacher = zoo.info(model["init_args"]["teacher"])
        with torch.device("meta"):
            module.adopt_teacher(VideoClassifier(**teacher.init_args))
        assert module.distill_head[1].weight.shape == (384, module.hparams.embed_dim)
        student = sum(p.numel() for n, p in module.named_parameters() if n.startswith("net."))
        assert student == zoo.info(name[8] and f"videomamba-{'m' if '-m' in name else 'b'}-in1k").meta["params"]
