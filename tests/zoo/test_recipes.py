"""The recipes: how layers are merged, that each is its run script's and its model's, and that each one trains."""

import csv
import dataclasses
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import yaml
from braceexpand import braceexpand
from PIL import Image

import hub
import zoo
from datamodules import LVU
from datamodules.synthetic.writing import generate
from lightning_modules.tasks.classification import VideoClassifier
from zoo.cli import ZooCLI
from zoo.configs import normalise
from zoo.errors import ZooError
from zoo.recipe import find_recipe, list_recipes, read_recipe
from zoo.registry import entries

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
TASKS = ("classification", "breakfast", "coin", "lvu")
OFFICIAL = {name: path for name, path in list_recipes().items() if path.parent.name in TASKS}
CONFIGS = {name: read_recipe(path) for name, path in OFFICIAL.items()}
DISTILLED = {"videomamba-m-in1k-r224", "videomamba-b-in1k-r224"}
# Without released weights, and so without an entry for each task.
LVU_SCRIPTS = {
    "video_sm/exp/lvu/run_class.sh": "videomamba-ti-lvu",
    "video_sm/exp/lvu/run_class_trim.sh": "videomamba-ti-lvu-trimmed",
    "video_sm/exp/lvu/run_regression.sh": "videomamba-ti-lvu-regression",
    "video_sm/exp/lvu/run_regression_trim.sh": "videomamba-ti-lvu-regression-trimmed",
}
RELEASED = [name for name in OFFICIAL if name not in LVU_SCRIPTS.values()]


# Layers -------------------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_later_layers_win_and_mappings_are_merged(tmp_path):
    write(
        tmp_path,
        below="model: {init_args: {lr: 1, drop: 2}}\ntrainer: {callbacks: [a, b], devices: 3}",
        above="model: {init_args: {lr: 5}}\ntrainer: {callbacks: [c]}",
        size="class_path: M\ninit_args: {depth: 7}",
        top="include: [below.yaml, above.yaml, model: size.yaml]\nmodel: {init_args: {drop: 9}}",
        single="include: top.yaml\ndata: null",
        keyed="include: {model: size.yaml, data: size.yaml}",
    )
    top = {
        "model": {"class_path": "M", "init_args": {"lr": 5, "drop": 9, "depth": 7}},
        "trainer": {"callbacks": ["c"], "devices": 3},
    }
    assert read_recipe(tmp_path / "top.yaml") == top
    assert read_recipe(tmp_path / "single.yaml") == {**top, "data": None}
    size = {"class_path": "M", "init_args": {"depth": 7}}
    assert read_recipe(tmp_path / "keyed.yaml") == {"model": size, "data": size}


def test_a_recipe_may_be_included_by_any_name_of_its_model(tmp_path):
    write(tmp_path, mine="include: videomamba-m-k400\nmodel: {init_args: {drop_path: 0.5}}")
    expected = read_recipe(find_recipe("videomamba-m-k400-f16-r224"))
    assert expected["model"]["init_args"]["drop_path"] == 0.8
    expected["model"]["init_args"]["drop_path"] = 0.5
    assert read_recipe(tmp_path / "mine.yaml") == expected


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"top": "include: gone.yaml"}, r"includes 'gone.yaml', but there is no file .* no recipe of that name"),
        ({"top": "include: part.yaml", "part": "include: top.yaml"}, "top.yaml includes itself, by way of"),
        ({"top": "include: [[top.yaml]]"}, r"includes \['top.yaml'\]; include takes paths"),
        ({"top": "include: part.yaml", "part": "- 1"}, "part.yaml is not a config"),
        ({"top": "include: part.yaml", "part": "a: ["}, "part.yaml is not valid YAML"),
    ],
)
def test_mistakes_in_includes(tmp_path, files, sentence):
    with pytest.raises(ZooError, match=sentence):
        read_recipe(write(tmp_path, **files) / "top.yaml")


# Names and the command ----------------------------------------------------------------------------------------------


def test_a_recipe_for_every_released_model_of_the_five_data_sets():
    datasets = ("in1k", "k400", "ssv2", "breakfast", "coin")
    # Those of other networks are compared with their recipes elsewhere.
    known = [entry for entry in entries() if entry.name.startswith("videomamba-")]
    trained = {entry.name for entry in known if entry.meta.get("dataset") in datasets}
    pretrained = {name for name in trained if "-maskpt-" in name}
    assert trained - DISTILLED - pretrained == set(RELEASED)
    assert len(pretrained) == 2 and pretrained <= set(list_recipes())


def test_aliases_find_the_recipe():
    for name in RELEASED:
        for alias in zoo.info(name).aliases:
            assert find_recipe(alias) == OFFICIAL[name]
    with pytest.raises(ZooError, match="no recipe called 'videomamba-m-k40': did you mean 'videomamba-m-k400'"):
        find_recipe("videomamba-m-k40")


def run(*args: str) -> str:
    result = subprocess.run([BIN / "zoo", "recipe", *args], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_command_prints_the_complete_recipe():
    text = run("videomamba-m-k400-f64-r384")
    assert text.startswith("# VideoMamba-M on Kinetics-400") and "\n# The script has batch 1" in text
    assert yaml.safe_load(text) == CONFIGS["videomamba-m-k400-f64-r384"]
    assert re.findall(r"^(\w+):$", text, re.MULTILINE) == ["model", "data", "trainer"]
    assert "model:\n  class_path: lightning_modules.VideoClassifier\n  init_args:\n" in text
    assert json.loads(run("videomamba-m-k400", "--json")) == CONFIGS["videomamba-m-k400-f16-r224"]


def test_the_command_lists_the_recipes():
    lines = [line.split() for line in run().splitlines()]
    assert [line[0] for line in lines[1:]] == list(list_recipes())
    row = ["videomamba-s-k400-f64-r384", "Kinetics", "64", "384", "6", "videomamba-s-k400-f64-r224"]
    assert row in lines
    assert {record["name"]: record["epochs"] for record in json.loads(run("--json"))}["videomamba-ti-in1k-r224"] == 300


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda page: page.stem
)
def test_names_in_the_documents_exist(page):
    """Of models, their aliases and recipes, with braces and stars as in a shell."""
    known = {*list_recipes(), *zoo.list_models(), *(path.stem for path in (ROOT / "zoo/models").glob("*.yaml"))}
    known |= {alias for name in zoo.list_models() for alias in zoo.info(name).aliases}
    kinds = "videomamba|vivim|timemamba|muse|clip4clip|mambavl|zeroshot|scan|frames|resolution|distill"
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"(?:`|--config |zoo recipe )((?:{kinds})-[\w{{}},*-]+)", text)
    named = {name for words in found for name in braceexpand(words)}
    # `videomamba-m-mask` stands for all that begin so.
    strays = [n for n in named if not any(fnmatch(one, n) or one.startswith(f"{n}-") for one in known)]
    assert not strays and (named or page.stem not in ("recipes", "README"))


# What the recipes say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RELEASED, "videomamba-ti-lvu-regression"])
def test_the_model_is_the_registrys(name):
    entry, model = zoo.info(name), CONFIGS[name]["model"]
    what_it_is = {k: v for k, v in model["init_args"].items() if k not in VideoClassifier.training_only()}
    known = {key: value for key, value in entry.init_args.items() if key != "class_names"}
    expected = normalise({"class_path": entry.class_path, "init_args": known})
    assert normalise({"class_path": model["class_path"], "init_args": what_it_is}) == expected
    assert model["init_args"].get("init_from") == entry.meta["init_from"]
    views = [CONFIGS[name]["data"]["init_args"][key] for key in ("num_clips", "num_crops")]
    assert views == [entry.meta["num_clips"], entry.meta["num_crops"]]


SIZES = {"videomamba_tiny": (192, 24), "videomamba_small": (384, 24), "videomamba_middle": (576, 32)}
DATA = {"IMNET": "ImageNet", "Kinetics_sparse": "Kinetics", "SSV2": "SomethingSomethingV2", "breakfast": "Breakfast",
        "coin": "COIN", "lvu": "LVU"}  # fmt: skip
RAND_AUGMENT = {  # timm's strings -> operations (2 where the string does not say), magnitude, its deviation
    "rand-m9-mstd0.5-inc1": (2, 9, 0.5),
    "rand-m7-n4-mstd0.5-inc1": (4, 7, 0.5),
    "rand-m5-n2-mstd0.25-inc1": (2, 5, 0.25),
}
# Where the scripts have an error (column known_issue), and what is right.
CORRECTIONS = {
    "videomamba-ti-k400-f64-r384": {"model": "videomamba_tiny"},
    "videomamba-m-k400-f64-r384": {"batch_per_gpu": "2", "update_freq": "1"},
    "videomamba-m-mask-k400-f64-r384": {"batch_per_gpu": "2", "update_freq": "1"},
    "videomamba-m-mask-ssv2-f16-r288": {"data_set": "SSV2", "flip": "off"},
    "videomamba-ti-ssv2-f16-r288": {
        "model": "videomamba_tiny", "num_frames": "16", "init_zoo_id": "videomamba-ti-ssv2-f16-r224"
    },
    "videomamba-m-mask-coin-f64-r224": {"test_num_segment": "10"},
    "videomamba-ti-lvu-regression": {"data_set": "Kinetics_sparse"},
    "videomamba-ti-lvu-regression-trimmed": {"data_set": "LVU"},
}  # fmt: skip


def scripts(shared: Path) -> dict[str, dict[str, str]]:
    """The run scripts that have a recipe here; a trailing * (a default of the program) is dropped."""
    path = shared / "reference" / "videomamba_recipes.csv"
    if not path.is_file():
        pytest.skip("needs the table of run scripts")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: value.removesuffix("*") for key, value in row.items()} for row in csv.DictReader(file)]
    # Those of distillation and pretraining are compared with their recipes elsewhere.
    programs = ("main.py", "run_with_submitit.py", "run_class_finetuning.py", "run_regression_finetuning.py")
    found = [row for row in rows if row["program"] in programs]
    return {row["zoo_id"] or LVU_SCRIPTS[row["script"]]: row for row in found}


def test_every_run_script_has_a_recipe(shared):
    rows = scripts(shared)
    assert set(rows) == set(OFFICIAL)
    assert all(rows[name]["known_issue"] for name in CORRECTIONS)
    for name, row in rows.items():
        assert f"# {row['script']}: " in OFFICIAL[name].read_text()


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_number_is_the_run_scripts(name, shared):
    row = scripts(shared)[name] | CORRECTIONS.get(name, {})
    model, data, trainer = (CONFIGS[name][key] for key in ("model", "data", "trainer"))
    data_class, model, data = data["class_path"], model["init_args"], data["init_args"]
    model = model | model["optim"]
    image, regression = row["data_set"] == "IMNET", row["loss"] == "MSE"
    long = row["script"].split("/")[2] if row["script"].startswith("video_sm") else ""

    def number(column: str, default: float | None = None) -> float | None:
        return default if row[column] in ("", "None") else float(row[column])

    assert (model["embed_dim"], model["depth"]) == SIZES[row["model"]]
    if long == "lvu":  # the number of classes is the task's
        classes = LVU("data", task=data["task"]).num_classes
        assert (1 if regression else classes) == number("nb_classes") and model.get("num_classes") is None
        assert regression == (classes is None)
    else:
        assert model["num_classes"] == number("nb_classes")
    assert model["num_frames"] == number("num_frames")
    assert model["image_size"] == number("input_size")
    if image:
        assert model["short_side"] == int(number("input_size") / number("eval_crop_ratio"))
    else:
        assert model.get("short_side", model["image_size"]) == number("short_side_size")
    assert model.get("init_from", "") == row["init_zoo_id"]
    for key, column in {
        "lr": "lr", "min_lr": "min_lr", "warmup_lr": "warmup_lr", "warmup_epochs": "warmup_epochs",
        "weight_decay": "weight_decay", "drop_path": "drop_path",
    }.items():  # fmt: skip
        assert model[key] == number(column), key
    assert model.get("label_smoothing", 0) == number("smoothing") and ("label_smoothing" in model) != regression
    assert model.get("drop", 0) == number("drop")
    assert model.get("layer_decay", 1) == number("layer_decay", 1)
    assert image or model["layer_decay_scope"] == "embedding"
    assert model["betas"] == [0.9, 0.999] and row["opt_betas"] in ("None", "0.9 0.999")
    assert model["schedule"] == ("epoch" if "per epoch" in row["schedule"] else "step")
    assert model["scale_all_lr"] == (not image)
    assert (model["init"], model["decayed"]) == ("official", "state_matrices")

    assert data["repeat_mode"] == ("sampler" if image else "views")
    views = 1 if image else data["repeats"]
    clips = data["batch_size"] * views * int(row["gpus"]) * trainer.get("accumulate_grad_batches", 1)
    assert clips == number("clips_per_step")
    scale = clips / model["lr_samples"]
    assert model["lr"] * scale == pytest.approx(number("lr_scaled"))
    for key in ("min_lr", "warmup_lr"):
        assert model[key] * (scale if model["scale_all_lr"] else 1) == pytest.approx(number(f"{key}_scaled"))

    assert data_class == f"datamodules.{DATA.get(long) or DATA[row['data_set']]}"
    trimmed = (number("trimmed"), number("time_stride")) if row["data_set"] == "LVU" else (None, None)
    assert (data.get("window_seconds"), data.get("window_stride")) == trimmed
    assert data["batch_size"] == number("batch_per_gpu")
    assert str(data["repeats"]) == {"none": "1"}.get(row["repeated_aug"], row["repeated_aug"] or row["num_sample"])
    if row["aa"] == "v0":
        assert (data["auto_augment"], data["rand_augment_ops"]) == ("v0", 0)
    else:
        assert "auto_augment" not in data
        assert tuple(data[f"rand_augment_{key}"] for key in ("ops", "magnitude", "std")) == RAND_AUGMENT[row["aa"]]
    assert data["horizontal_flip"] == (0 if row["flip"].startswith("off") else 0.5)
    assert (data.get("mixup", 0), data.get("cutmix", 0)) == (number("mixup"), number("cutmix"))
    assert ("mixup" in data) != regression
    assert data["random_erasing"] == number("reprob")
    assert (data["num_clips"], data["num_crops"]) == (number("test_num_segment", 1), number("test_num_crop", 1))
    assert data["num_workers"] == number("num_workers")

    assert trainer["max_epochs"] == number("epochs")
    assert trainer.get("accumulate_grad_batches", 1) == number("update_freq", 1)
    assert trainer.get("gradient_clip_val") == number("clip_grad")
    assert (trainer["precision"] == "bf16-mixed") == (row["bf16"] == "True")
    assert (CONFIGS[name]["seed_everything"], trainer["devices"]) == (number("seed"), "auto")


# Through the front door ---------------------------------------------------------------------------------------------


class BuildOnly(ZooCLI):
    """The command up to the point where it reads data and weights; the parser, slow to make, is made once."""

    made: dict = {}

    def setup_parser(self, *args) -> None:
        if not self.made:
            super().setup_parser(*args)
            self.made.update(vars(self))
        for key in ("parser", "_subcommand_method_arguments", "_subcommand_parsers"):
            setattr(self, key, self.made[key])

    def after_instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.mark.parametrize("name", OFFICIAL)
def test_each_recipe_parses_and_builds(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", "--config", name, "--data.root", "data"])
    with torch.device("meta"):
        cli = BuildOnly()
    given = CONFIGS[name]
    if name in zoo.list_models():
        assert sum(p.numel() for p in cli.model.parameters()) == zoo.info(name).meta["params"]
    else:
        # Ten directors, which the data counts, or one number.
        assert cli.model.net.head.out_features == (1 if "regression" in name else 10)
    said = {key: value for key, value in given["model"]["init_args"].items() if key != "num_classes" or value}
    optim = dataclasses.asdict(cli.model.optim)
    assert said.pop("optim").items() <= optim.items()
    assert said.items() <= {**cli.model.hparams, **cli.model.training_arguments}.items()
    assert type(cli.datamodule).__name__ == given["data"]["class_path"].split(".")[-1]
    assert cli.datamodule.batch_size == given["data"]["init_args"]["batch_size"]
    assert cli.trainer.max_epochs == given["trainer"]["max_epochs"]
    assert cli.trainer.precision == "bf16-mixed"


# Two steps of training on files in the layout of the data set, with the labels at both ends of the range.


def kinetics(root: Path) -> None:
    for split in ("train", "val", "test"):
        videos = sorted((root / split).rglob("*.mp4"))
        rows = [f"{video.relative_to(root)},{399 * (i % 2)}\n" for i, video in enumerate(videos)]
        (root / f"{split}.csv").write_text("".join(rows))


def something_something(root: Path) -> None:
    names = [f"Doing something in way {i}" for i in range(174)]
    (root / "labels.json").write_text(json.dumps({name: str(i) for i, name in enumerate(names)}))
    for split, file in (("train", "train.json"), ("val", "validation.json")):
        content = []
        for i, video in enumerate(sorted((root / split).rglob("*.mp4"))):
            name = f"{split == 'train':d}{i}"
            video.rename(root / f"{name}.mp4")
            content.append({"id": name, "template": names[173 * (i % 2)].replace("something", "[something]")})
        (root / file).write_text(json.dumps(content))


def breakfast(root: Path) -> None:
    for split, person in (("train", "P03"), ("test", "P47")):
        for i, video in enumerate(sorted((root / split).rglob("*.mp4"))):
            file = root / person / f"cam{i:02d}" / f"{person}_{('cereals', 'salat')[i % 2]}.avi"
            file.parent.mkdir(parents=True)
            video.rename(file)


def coin(root: Path) -> None:
    tasks = {f"-task{i:07d}": {"class": f"DoThing{i}", "recipe_type": i, "subset": "none"} for i in range(180)}
    for split, subset in (("train", "training"), ("test", "testing")):
        for i, video in enumerate(sorted((root / split).rglob("*.mp4"))):
            name, number = f"{split}-{i}", 179 * (i % 2)
            tasks[name] = {"class": f"DoThing{number}", "recipe_type": number, "subset": subset}
            (root / "videos" / str(number)).mkdir(parents=True, exist_ok=True)
            video.rename(root / "videos" / str(number) / f"{name}.mp4")
    (root / "COIN.json").write_text(json.dumps({"database": tasks}))


def lvu(root: Path) -> None:
    headers = {"director": "class_id class_name", "like_ratio": "like_count dislike_count"}
    durations = ["videoid,duration"]
    for split in ("train", "val", "test"):
        rows = {task: [f"{header} youtube_id imdb_id"] for task, header in headers.items()}
        for i, video in enumerate(sorted((root / split).rglob("*.mp4"))):
            name = f"-{split}{i}"
            video.rename(root / f"{name}.mp4")
            rows["director"].append(f"{9 * (i % 2)} nm{i % 2:07d} {name} tt0000000")
            rows["like_ratio"].append(f"{10**i} {i} {name} tt0000000")
            durations.append(f"{name},1")
        for task, lines in rows.items():
            (root / task).mkdir(exist_ok=True)
            (root / task / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (root / "lvu_durations.csv").write_text("\n".join(durations) + "\n")


def imagenet(root: Path) -> None:
    for split, number in (("train", 4), ("val", 2)):
        folders = [root / split / f"n{wnid:08d}" for wnid in range(1000)]
        for folder in folders:
            folder.mkdir(parents=True)
        for i in range(number):
            pixels = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folders[-(i % 2)] / f"{i}.JPEG")


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """A small data set in each format: 4 training videos, so 2 steps with 2 of them each."""
    folder = tmp_path_factory.mktemp("data")
    makers = {"Kinetics": kinetics, "SomethingSomethingV2": something_something, "ImageNet": imagenet,
              "Breakfast": breakfast, "COIN": coin, "LVU": lvu}  # fmt: skip
    for make in makers.values():
        root = folder / make.__name__
        if make is not imagenet:
            generate(root, num_train=4, num_val=2, num_test=2, classes=("grow", "move_left"), size=(48, 40),
                     num_frames=8, num_workers=0, progress=False)  # fmt: skip
            for file in root.glob("*.*"):
                file.unlink()
        make(root)
    return {name: folder / make.__name__ for name, make in makers.items()}


def donor(name: str, folder: Path) -> Path:
    """What a recipe starts from, at the reduced size; where the registry lacks it, as for masked pretraining, a model
    like the recipe's own."""
    sizes = {"embed_dim": 16, "depth": 2, "image_size": 32, "short_side": 36}
    source = CONFIGS[name]["model"]["init_args"]["init_from"]
    entry = zoo.info(source if source in zoo.list_models() else name)
    if entry.init_args["num_frames"] is not None:
        sizes["num_frames"] = 2
    return hub.save(zoo.create(entry.name, **sizes), folder)


def train_two_steps(name: str, root: Path, folder: Path, monkeypatch) -> None:
    config = CONFIGS[name]["model"]["init_args"]
    sizes = {
        "model": {"embed_dim": 16, "depth": 2, "image_size": 32, "short_side": 36},
        "data": {"batch_size": 2, "num_workers": 0},
        "trainer": {"max_steps": 2},
    }
    if config["num_frames"] is not None:
        sizes["model"]["num_frames"] = 4
    if "init_from" in config:
        sizes["model"]["init_from"] = str(donor(name, folder / "donor"))
    flags = [f"--{part}.{key}={value}" for part, values in sizes.items() for key, value in values.items()]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lightning", "fit", "--config", name, f"--data.root={root}", *flags,
                                      "--trainer.accelerator=cpu", "--trainer.devices=1"])  # fmt: skip
    cli = ZooCLI()
    assert cli.trainer.global_step == 2
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    peak = max(group["initial_lr"] for group in cli.trainer.optimizers[0].param_groups)
    clips = 2 * (1 if config["num_frames"] is None else 2) * cli.trainer.accumulate_grad_batches
    optim = config["optim"]
    assert peak == pytest.approx(optim["lr"] * clips / optim["lr_samples"])
    state_dict = torch.load(next(folder.rglob("last.ckpt")), weights_only=True)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in state_dict.values())


QUICK = [
    "videomamba-ti-in1k-r224",
    "videomamba-m-in1k-r448",
    "videomamba-s-k400-f64-r384",
    "videomamba-m-mask-ssv2-f16-r224",
    "videomamba-ti-breakfast-f64-r224",
    "videomamba-ti-lvu-regression-trimmed",
]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OFFICIAL]
)
def test_each_recipe_trains(name, roots, tmp_path, monkeypatch):
    root = roots[CONFIGS[name]["data"]["class_path"].removeprefix("datamodules.")]
    train_two_steps(name, root, tmp_path, monkeypatch)
