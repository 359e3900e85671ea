"""Masked pretraining by its names: recipes, the real command, official files, and the classifiers that follow."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo
from datamodules.synthetic.writing import generate
from lightning_modules import MaskedPretraining
from lightning_modules.nets.clip_tower import build_clip
from zoo.configs import normalise
from zoo.recipe import list_recipes, read_recipe
from zoo.share import _about_entry

BIN = Path(sys.executable).parent
NAMES = {"videomamba-m-k400-maskpt-f8-r224": "Kinetics", "videomamba-m-ssv2-maskpt-f8-r224": "SomethingSomethingV2"}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 12,
    "text_config": {"vocab_size": 514, "max_position_embeddings": 8, **TOWER},
    "vision_config": {"image_size": 32, "patch_size": 8, **TOWER},
}
SMALL = {"embed_dim": 16, "depth": 3, "num_frames": 4, "image_size": 32, "patch_size": 8}


def recipe(name: str) -> dict:
    return read_recipe(list_recipes()[name])


# What the recipes say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_trains_the_registrys_model(name):
    entry, model = zoo.info(name), recipe(name)["model"]
    assert model["class_path"] == entry.class_path == "lightning_modules.MaskedPretraining"
    what_it_is = {k: v for k, v in model["init_args"].items() if k not in MaskedPretraining.training_only()}
    config = {"class_path": model["class_path"], "init_args": what_it_is}
    assert normalise(config) == normalise({"class_path": entry.class_path, "init_args": entry.init_args})
    with torch.device("meta"):
        module = MaskedPretraining(**model["init_args"])
    assert sum(p.numel() for p in module.parameters()) == entry.meta["params"]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_the_run_scripts(name, shared):
    with (shared / "reference" / "videomamba_recipes.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["zoo_id"]: row for row in csv.DictReader(file)}
    row = {key: value.removesuffix("*") for key, value in rows[name].items()}
    config = recipe(name)
    model, data, trainer = config["model"]["init_args"], config["data"], config["trainer"]
    model = model | model["optim"]
    for ours, theirs in {
        "num_frames": "num_frames", "image_size": "input_size", "mask_ratio": "mask_ratio", "lr": "lr",
        "min_lr": "min_lr", "warmup_epochs": "warmup_epochs", "weight_decay": "weight_decay", "drop_path": "drop_path",
        "embed_dim": "clip_decoder_embed_dim",
    }.items():  # fmt: skip
        assert model[ours] == float(row[theirs]), ours
    defaults = MaskedPretraining(**SMALL).hparams | MaskedPretraining(**SMALL).training_arguments
    model = defaults | model
    for ours, theirs in {
        "target_dim": "clip_output_dim", "align_layers": "clip_return_layer", "align_interval":
        "clip_student_return_interval", "teacher_interval": "clip_return_interval", "tubelet_size": "tubelet_size",
    }.items():  # fmt: skip
        assert model[ours] == float(row[theirs]), ours
    assert (model["mask_type"], model["norm"], model["loss"]) == (row["mask_type"], row["clip_norm_type"], "l2")
    assert row["clip_teacher"] == "clip_b16" and model["teacher"] == "openai/clip-vit-base-patch16"
    assert model["betas"] == [float(beta) for beta in row["opt_betas"].split()]
    assert (model["warmup_lr"], row["warmup_lr_scaled"]) == (0, "0 (unused)")
    clips = data["init_args"]["batch_size"] * int(row["gpus"])
    assert (data["init_args"]["batch_size"], clips) == (int(row["batch_per_gpu"]), int(row["clips_per_step"]))
    assert model["lr"] * clips / model["lr_samples"] == pytest.approx(float(row["lr_scaled"]))
    assert model["min_lr"] * clips / model["lr_samples"] == pytest.approx(float(row["min_lr_scaled"]))
    assert (model["variant"], model["init"], model["decayed"]) == ("official", "official", "state_matrices")
    assert data["class_path"] == f"datamodules.{NAMES[name]}"
    assert (data["init_args"]["crop"], data["init_args"]["horizontal_flip"]) == ("multi_scale", 0.5)
    assert row["flip"] == "True" and row["num_sample"] == "1" and "repeats" not in data["init_args"]
    assert not any(data["init_args"].get(key) for key in ("mixup", "cutmix", "random_erasing", "rand_augment_ops"))
    assert model["sampling"] == "ssv2"
    assert data["init_args"]["num_workers"] == int(row["num_workers"])
    assert trainer["precision"] == "bf16-mixed" and row["bf16"] == "True"
    # The scripts' 801 epochs are 800 in the paper, and 200 in the table of weights for Something-Something V2.
    assert (trainer["max_epochs"], row["epochs"]) == (800 if "k400" in name else 200, "801")


def test_the_ablations_vary_what_the_papers_table_does():
    base = recipe("videomamba-m-ssv2-maskpt-f8-r224")
    found = {}
    for name, path in list_recipes().items():
        if path.parent.name == "ablations" and name.startswith("masked-"):
            config = read_recipe(path)
            model, reference = config["model"]["init_args"], base["model"]["init_args"]
            assert config["data"] == base["data"] and config["trainer"] == base["trainer"]
            found[name.removeprefix("masked-")] = {k: v for k, v in model.items() if reference.get(k) != v}
            assert "videomamba-m-mask-ssv2-f8-r224 it has" in path.read_text()
    # Paper, table 5; 0.8, attention, one layer and drop path 0.4 are the base.
    expected = {f"type-{t}": {"mask_type": t} for t in ("random", "tube", "clip-row", "frame-row")}
    expected |= {f"ratio-{r}": {"mask_ratio": r / 100} for r in (50, 65, 90)}
    expected |= {f"drop-path-0{r}": {"drop_path": r / 10} for r in (1, 2, 3)}
    expected |= {f"layers-{n}": {"align_layers": n} for n in (2, 6)}
    expected["layers-6x2"] = {"align_layers": 6, "align_interval": 2, "teacher_interval": 2}
    assert found == expected
    for change in found.values():
        with torch.device("meta"):
            MaskedPretraining(**(base["model"]["init_args"] | change))


@pytest.mark.parametrize("name", NAMES)
def test_the_fine_tuning_recipes_start_from_it(name):
    children = [n for n in zoo.list_models("videomamba-m-mask-*") if zoo.info(n).meta["init_from"] == name]
    assert len(children) == (4 if "k400" in name else 2)
    for child in children:
        assert recipe(child)["model"]["init_args"]["init_from"] == name


# Through the front door ---------------------------------------------------------------------------------------------


def run(*command, cwd: Path, check: bool = True) -> subprocess.CompletedProcess:
    program, *rest = map(str, command)
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run([BIN / program, *rest], cwd=cwd, capture_output=True, text=True, timeout=600, env=env)
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A tiny CLIP as transformers writes it, videos in the layout of Something-Something, and a pretraining run."""
    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(0)
    build_clip(CLIP).save_pretrained(folder / "clip")
    root = generate(folder / "data", num_train=6, num_val=2, num_test=2, classes=("grow", "move_left"), size=(48, 40),
                    num_frames=8, num_workers=0, progress=False)  # fmt: skip
    for split, file in (("train", "train.json"), ("val", "validation.json")):
        entries = []
        for i, video in enumerate(sorted((root / split).rglob("*.mp4"))):
            entries.append({"id": f"{split == 'train':d}{i}", "template": f"Way {i % 2} of [something]"})
            video.rename(root / f"{entries[-1]['id']}.mp4")
        (root / file).write_text(json.dumps(entries))
    (root / "labels.json").write_text(json.dumps({f"Way {i} of something": str(i) for i in range(2)}))
    flags = [f"--model.{key}={value}" for key, value in SMALL.items()]
    run(
        "lightning", "fit", "--config", "videomamba-m-ssv2-maskpt-f8-r224", "--data.root", root, *flags,
        "--data.num_classes=2", "--data.batch_size=2", "--data.num_workers=0", "--model.target_dim=12",
        f"--model.teacher={folder / 'clip'}", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
        "--trainer.devices=1", "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1",
        "--model.variant=all_blocks", cwd=folder,
    )  # fmt: skip
    return folder


RUN = Path("runs/videomamba-m-ssv2-maskpt-f8-r224/version_0")


def test_the_recipe_trains(workspace):
    columns = {key for row in csv.DictReader((workspace / RUN / "metrics.csv").open()) for key, v in row.items() if v}
    assert {"train/loss", "val/loss"} <= columns
    best, last = (workspace / RUN / "checkpoints" / f"{which}.ckpt" for which in ("best", "last"))
    assert best.exists()
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == 3
    # lr, 256 clips -> 2 per step
    assert content["optimizer_states"][0]["param_groups"][0]["initial_lr"] == pytest.approx(1.5e-4 * 2 / 256)
    model = zoo.load(workspace / RUN)
    assert model.config["init_args"]["variant"] == "all_blocks"
    assert model(torch.zeros(1, 3, 4, 32, 32)).shape == (1, 1, 1 + 4 * 16, 12)
    features = zoo.extract_features(model, next((workspace / "data").glob("*.mp4")))
    assert features.shape == (16,)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_run(workspace, tmp_path):
    """The official recipe after it, and `finetune`, which takes the network from what it starts from."""
    pretrained = zoo.load(workspace / RUN).net.state_dict()
    for i, video in enumerate(sorted((workspace / "data").glob("*.mp4"))):
        there = tmp_path / "mine" / f"class {i % 2}" / video.name
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(video)
    common = (
        "--data.batch_size=2", "--data.num_workers=0", "--trainer.max_steps=1",
        "--trainer.accelerator=cpu", "--trainer.devices=1", f"--model.init_from={workspace / RUN}",
        "--model.optim.lr=1e-30", "--model.optim.min_lr=0", "--model.optim.warmup_lr=0", "--model.optim.layer_decay=1",
    )  # fmt: skip
    flags = [f"--model.{key}={value}" for key, value in (SMALL | {"num_frames": 8}).items()]
    run("lightning", "fit", "--config", "videomamba-m-mask-ssv2-f8-r224", *common, *flags, "--model.num_classes=2",
        "--data.root", workspace / "data", "--data.num_classes=2", cwd=tmp_path)  # fmt: skip
    run("lightning", "fit", "--config", "finetune", *common, "--data.root", tmp_path / "mine", cwd=tmp_path)
    for name, frames in (("videomamba-m-mask-ssv2-f8-r224", 8), ("finetune", 4)):
        tuned = zoo.load(tmp_path / "runs" / name / "version_0" / "checkpoints" / "last.ckpt")
        assert type(tuned).__name__ == "VideoClassifier" and tuned.preprocessing["num_frames"] == frames
        weights = tuned.net.state_dict()
        different = {key for key in weights if key not in pretrained or not torch.equal(weights[key], pretrained[key])}
        resized = {"temporal_pos_embedding"} if frames == 8 else set()
        assert different == {"head.weight", "head.bias"} | resized


@pytest.mark.slow
def test_a_teacher_is_configured_as_an_object(workspace, tmp_path):
    config = {"model": {"init_args": {"teacher": {
        "class_path": "lightning_modules.nets.ClipTeacher", "init_args": {"sizes": {k: CLIP[k] for k in (
            "projection_dim", "vision_config")}}}}}}  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps({"include": "videomamba-m-ssv2-maskpt-f8-r224", **config}))
    run("lightning", "fit", "--config", "own.json", "--data.root", workspace / "data", "--data.num_classes=2",
        "--data.num_workers=0", "--data.batch_size=2", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--trainer.max_steps=1", *(f"--model.{key}={value}" for key, value in SMALL.items()), "--model.target_dim=12",
        cwd=tmp_path)  # fmt: skip
    content = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert not any("teacher" in name for name in [*content["state_dict"], *content["hyper_parameters"]])


# Official files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path) -> tuple[Path, MaskedPretraining]:
    """A file as the authors' are, at a reduced size: flat, the norm called `norm`; and the model it is of."""
    name = "videomamba-m-k400-maskpt-f8-r224"
    module = zoo.create(name, embed_dim=32, depth=3).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    weights = {key.removeprefix("net."): tensor for key, tensor in module.state_dict().items()}
    weights["norm.weight"] = weights.pop("norm_f.weight")
    assert {"clip_decoder.0.head.weight", "clip_decoder.0.norm.bias"} < weights.keys()
    torch.save(weights, tmp_path / "official.pth")
    return tmp_path / "official.pth", module


def test_a_converted_file_gets_a_task_that_the_hub_knows():
    assert _about_entry(zoo.info("videomamba-m-k400-maskpt-f8-r224")).task == "feature-extraction"


def test_an_official_file_loads(official):
    file, module = official
    loaded = zoo.load("videomamba-m-k400-maskpt-f8-r224", checkpoint=file, embed_dim=32, depth=3)
    video = torch.randint(256, (1, 3, 8, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded.forward_features(video), module.forward_features(video))
        assert torch.equal(loaded(video), module(video))
    assert loaded.config["init_args"]["variant"] == "official"
    content = torch.load(file, weights_only=True)
    torch.save({**content, "extra.weight": torch.ones(1)}, file)
    with pytest.raises(zoo.build.hub.HubError, match=r"extra\.weight"):
        zoo.load("videomamba-m-k400-maskpt-f8-r224", checkpoint=file, embed_dim=32, depth=3)
