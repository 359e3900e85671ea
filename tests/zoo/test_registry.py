"""The registry against the reference table of released checkpoints, and the promises of its functions."""

import csv
import dataclasses
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.errors import UnknownModelError, ZooError
from zoo.registry import Weights, entries, registered_class_paths

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY.parent / "shared" / "reference" / "videomamba_checkpoints.csv"
BUNDLED = Path(zoo.__file__).parent / "assets" / "videomamba-nano-motion"
SIZES = {"ti": (192, 24), "s": (384, 24), "m": (576, 32), "b": (768, 24)}  # width, depth: paper, table 1
DEFAULT_FRAMES = {"k400": 16, "ssv2": 16, "breakfast": 32, "coin": 32, "5m": 8, "17m": 8, "25m": 8}

SUITE = "cg1177/video-mamba-suite"
REPOSITORIES = {"OpenGVLab/VideoMamba": "69502a732f8f69709cec9ed6c54d5345259fd825",
                SUITE: "e06be238b8ccce15ee9cb0bb09bcd015b39dbea1"}  # fmt: skip

released = [entry for entry in entries() if entry.weights is not None and entry.weights.repo_id]
published = [entry for entry in released if entry.weights.repo_id == "OpenGVLab/VideoMamba"]
suite = {entry.name: entry for entry in released if entry.weights.repo_id == SUITE}
unreleased = [entry for entry in entries() if entry.weights is None]


def reference_rows() -> list[dict[str, str]]:
    if not REFERENCE.exists():
        pytest.skip("needs the reference table of checkpoints")
    with REFERENCE.open(newline="") as file:
        return list(csv.DictReader(file))


def test_released_files_are_pinned_to_a_commit_and_most_to_a_hash():
    weights = [entry.weights for entry in released]
    assert {(w.repo_id, w.revision) for w in weights} == set(REPOSITORIES.items())
    hashes = [w.sha256 for w in weights if w.sha256 is not None]
    assert (len(weights), len(hashes), len(set(hashes))) == (63 + 8, 55 + 6, 55 + 6)
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes)


def test_all_released_checkpoints_are_registered():
    rows = reference_rows()
    assert len(rows) == 63
    assert {row["zoo_id"] for row in rows} == {entry.name for entry in published}


def test_facts_agree_with_the_reference():
    for row in reference_rows():
        entry = zoo.info(row["zoo_id"])
        args, meta = entry.init_args, entry.meta
        assert entry.task == row["task"].replace("_", "-")
        assert (entry.weights.repo_id, entry.weights.filename) == (row["repo_id"], row["filename"])
        frames = None if row["dataset"] == "in1k" else int(row["frames"])
        assert (args["num_frames"], args["image_size"]) == (frames, int(row["resolution"]))
        if row["num_classes"]:
            assert args["num_classes"] == len(args["class_names"]) == int(row["num_classes"])
        else:
            assert "num_classes" not in args and entry.task in ("masked-pretraining", "video-text-pretraining")
        assert meta["params"] == int(row["params_exact"] or 190058173)  # not in the table: 8 frames' with BERT-base
        assert meta["top1"] == (float(row["top1"]) if row["top1"] else None)
        assert meta["top5"] == (float(row["top5"]) if row["top5"] else None)
        assert meta["flops"] == (pytest.approx(float(row["gflops"]) * 1e9) if row["gflops"] else None)
        assert (meta["masked"], meta["distilled"]) == (row["masked"] == "1", row["distilled"] == "1")
        assert meta["init_from"] == (row["init_from"] or None)
        clips = 2 if row["dataset"] == "ssv2" else int(row["test_segments"] or 0)
        views = (clips, int(row["test_crops"])) if row["test_crops"] else (None, None)
        assert (meta["num_clips"], meta["num_crops"]) == views


def test_names_say_what_the_entry_is():
    for entry in published:
        meta, args = entry.meta, entry.init_args
        size, _, kind = meta["model"].removeprefix("videomamba-").partition("-")
        parts = ["videomamba", size, *(["mask"] if meta["masked"] and not kind else []), meta["dataset"]]
        parts += [kind] if kind == "maskpt" else []
        parts += [f"f{meta['frames']}"] if args["num_frames"] else []
        assert entry.name == "-".join([*parts, f"r{meta['resolution']}"])
        assert (args["embed_dim"], args["depth"]) == SIZES[size]
        file = entry.weights.filename
        pairs = kind == "video-text"
        assert file.startswith(f"videomamba_{size[0]}16_{meta['dataset'].upper() if pairs else meta['dataset']}_")
        assert ("_mask_" in file) == (meta["masked"] and not pairs)
        assert file.endswith(f"{meta['resolution']}.pth")
        assert args["num_frames"] is None or f"_f{meta['frames']}_" in file
    files = [entry.weights.filename for entry in published]
    assert len(set(files)) == len(files)


def test_aliases_leave_out_default_parts_in_every_combination():
    for entry in published:
        frames = [f"-f{entry.meta['frames']}"] if entry.init_args["num_frames"] else []
        resolution = f"-r{entry.meta['resolution']}"
        stem = entry.name.removesuffix("".join([*frames, resolution]))
        can_drop = {f"-f{DEFAULT_FRAMES.get(entry.meta['dataset'])}", "-r224"}
        choices = [(part, "") if part in can_drop else (part,) for part in [*frames, resolution]]
        spellings = {stem + "".join(chosen) for chosen in itertools.product(*choices)}
        assert {entry.name, *entry.aliases} == spellings
        for spelling in spellings:
            assert zoo.info(spelling) == entry
    assert zoo.info("videomamba-m-k400").name == "videomamba-m-k400-f16-r224"
    assert zoo.info("videomamba-m-mask-k400").name == "videomamba-m-mask-k400-f16-r224"
    assert zoo.info("videomamba-ti-coin").name == "videomamba-ti-coin-f32-r224"
    assert zoo.info("videomamba-b-in1k").name == "videomamba-b-in1k-r224"


def test_models_of_video_mamba_suite_are_registered_as_published():
    """Their names, files, parameters and scores, from the authors' tables."""
    facts = {
        "vivim-ti-k400-f16-r224": ("deit_vivim_tiny_k400_f16.pt", 7_035_280, 77.51, 93.27),
        "vivim-s-k400-f16-r224": ("deit_vivim_small_k400_f16.pt", 25_571_728, 80.47, 94.75),
        "vivim-ti-ego4d-f16-r224": ("deit_vivim_tiny_ego4d4m_bs512_f16.pt", 70_304_257, None, None),
        "vivim-s-ego4d-f16-r224": ("deit_vivim_small_ego4d4m_bs512_f16.pt", 88_813_057, None, None),
        "timemamba-b-vanilla-ego4d-f4-r224": ("clip_timemamba_vanilla_base_ego4d4m_bs512_f4.pt", 173_328_397, None,
                                              None),
        "timemamba-b-frozen-ego4d-f4-r224": ("clip_timemamba_frozen_base_ego4d4m_bs512_f4.pt", 173_328_397, None,
                                             None),
        "timemamba-b-ek100-mir-f16-r224": ("clip_timemamba_vanilla_base_ego4d4m_bs512_f4_ft_ek100_mir_f16.pt",
                                           173_328_397, None, None),
        "timemamba-b-ek100-cls-f16-r224": ("clip_timemamba_vanilla_base_ego4d4m_bs512_f4_ft_ek100_cls_f16.pt",
                                           112_761_578, 46.1, 63.8),
    }  # fmt: skip
    assert set(suite) == set(facts)
    for name, (file, params, top1, top5) in facts.items():
        entry = suite[name]
        assert (entry.weights.filename, entry.meta["license"]) == (file, "mit")
        assert (entry.meta["params"], entry.meta["top1"], entry.meta["top5"]) == (params, top1, top5)
        style = entry.init_args.get("vision", {}).get("style")
        assert style == ("frozen" if "frozen" in name else "vanilla" if "timemamba" in name else None)
        sampling = "sparse" if "k400" in name else "middles"
        prepared = entry.init_args.get("preprocessing", entry.init_args)
        assert (prepared["sampling"], entry.init_args["num_frames"]) == (sampling, entry.meta["frames"])
    assert zoo.info("vivim-s-ego4d").name == "vivim-s-ego4d-f16-r224"
    assert zoo.info("timemamba-b-ek100-mir-f16").name == "timemamba-b-ek100-mir-f16-r224"
    assert len(zoo.info("vivim-ti-k400").init_args["class_names"]) == 400
    assert "class_names" not in zoo.info("timemamba-b-ek100-cls-f16").init_args


def test_no_name_means_two_models():
    names = [name for entry in entries() for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))


def test_preprocessing_follows_the_protocol_of_the_data_set():
    image = zoo.info("videomamba-s-in1k-r576").init_args
    assert (image["short_side"], image["interpolation"], image["num_frames"]) == (658, "bicubic", None)
    assert zoo.info("videomamba-s-ssv2").init_args["sampling"] == "ssv2"
    assert {zoo.info(f"videomamba-s-{name}").init_args["sampling"] for name in ("k400", "breakfast", "coin")} == {
        "sparse"
    }


def test_only_one_file_stores_another_number_of_frames():
    stored = {entry.name: entry.meta["stored_frames"] for entry in published if entry.meta["stored_frames"]}
    assert stored == {"videomamba-m-mask-breakfast-f64-r224": 32}


def test_models_without_weights_name_what_trains_and_what_builds_them():
    assert {entry.name for entry in unreleased} == set(zoo.list_models(pretrained=False))
    assert {"muse-vit-b32-msrvtt", "muse-vit-b16-activitynet", "clip4clip-vit-b32-msrvtt"} <= {
        e.name for e in unreleased
    }
    for entry in unreleased:
        if entry.meta["weights_page"]:  # tests/zoo/test_official_mambavl.py
            continue
        sentence = (
            rf"{entry.name} has no released weights; `lightning fit --config {entry.name}` trains it and zoo.create"
        )
        with pytest.raises(ZooError, match=sentence):
            zoo.load(entry.name)
    with pytest.raises(ZooError, match=r"builds it from openai/clip-vit-base-patch16\.$"):
        zoo.load("muse-vit-b16-didemo")


def test_bundled_model_is_described_by_its_config():
    if not BUNDLED.exists():
        pytest.skip("the bundled weights are not in this tree")
    entry = zoo.info("videomamba-nano-motion")
    config = json.loads((BUNDLED / "config.json").read_text())
    assert {"class_path": entry.class_path, "init_args": entry.init_args} == config
    assert entry.weights == Weights(folder=str(BUNDLED))
    assert entry.meta["frames"] == config["init_args"]["num_frames"]


def test_list_models_filters():
    assert zoo.list_models() == sorted(zoo.list_models())
    assert len(zoo.list_models(task="image-classification")) == 10
    assert len(zoo.list_models("videomamba-[tsmb]*", task="video-classification")) == 48
    assert len(zoo.list_models("videomamba-[tsmb]*", task="classification", pretrained=True)) == 58
    assert zoo.list_models("videomamba-m-coin*", dataset="coin") == [
        "videomamba-m-coin-f32-r224",
        "videomamba-m-coin-f64-r224",
    ]
    assert zoo.list_models("videomamba-m-k400") == ["videomamba-m-k400-f16-r224"]  # an alias, canonical name returned
    assert zoo.list_models("VideoMamba-M-K400") == ["videomamba-m-k400-f16-r224"]
    assert zoo.list_models("resnet*") == []
    assert zoo.list_models(pretrained=False, dataset="msvd") == ["muse-vit-b16-msvd", "muse-vit-b32-msvd"]
    assert zoo.list_models("muse*", task="retrieval") == zoo.list_models("muse*", task="text-video-retrieval")
    with pytest.raises(ZooError, match=r"'classify'.*video-classification"):
        zoo.list_models(task="classify")
    with pytest.raises(ZooError, match=r"'k600'.*k400"):
        zoo.list_models(dataset="k600")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("videomamba-m-k40", "videomamba-m-k400"),
        ("VideoMamba_M_K400", "videomamba-m-k400"),
        ("videomamba-tiny-ssv2", "videomamba-ti-ssv2"),
        ("videomamba-m-k400-mask", "videomamba-m-mask-k400"),
        ("videomamba-m-breakfast-f16", "videomamba-m-breakfast"),
    ],
)
def test_unknown_name_suggests_the_nearest(wrong, nearest):
    with pytest.raises(UnknownModelError) as caught:
        zoo.info(wrong)
    sentence = str(caught.value)
    assert isinstance(caught.value, KeyError)
    assert repr(wrong) in sentence and nearest in sentence
    suggested = sentence.partition("did you mean ")[2].rstrip("?").split(" or ")
    assert 1 <= len(suggested) <= 3
    assert len({zoo.info(name).name for name in suggested}) == len(suggested)


def test_name_near_to_nothing_points_to_the_list():
    with pytest.raises(UnknownModelError, match="zoo list"):
        zoo.info("qqq")


def test_entries_are_copies():
    zoo.info("videomamba-m-k400").init_args["class_names"].clear()
    entries()[0].meta.clear()
    assert len(zoo.info("videomamba-m-k400").init_args["class_names"]) == 400
    assert entries()[0].meta
    with pytest.raises(dataclasses.FrozenInstanceError):
        zoo.info("videomamba-m-k400").name = "mine"


REGISTER = """
import zoo
from zoo.registry import registered_class_paths

@zoo.register("mine", init_args={"num_classes": 3}, aliases=["my-model"])
class Mine:
    pass

zoo.register("other", "somewhere.Other", weights=zoo.Weights(folder="here"), meta={"dataset": "pets"})
assert Mine.__name__ == "Mine"
assert zoo.info("my-model").init_args == {"num_classes": 3}
assert zoo.info("mine").class_path == "__main__.Mine"
assert zoo.list_models("my*") == ["mine"]
assert zoo.list_models(dataset="pets", pretrained=True) == ["other"]
assert "mine" in zoo.list_models(pretrained=False)
assert {"__main__.Mine", "somewhere.Other"} < registered_class_paths()
local = type("X", (), {"__qualname__": "f.<locals>.X"})
for name, target in [("mine", "a.B"), ("videomamba-m-k400", "a.B"), ("new", "B"), ("new", local)]:
    try:
        zoo.register(name, target)
    except zoo.ZooError as error:
        print(error)
    else:
        raise AssertionError(name)
"""


def test_register_in_a_process_of_its_own():
    result = subprocess.run(
        [sys.executable, "-c", REGISTER], capture_output=True, text=True, timeout=600, cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    taken, official, short, local = result.stdout.splitlines()
    assert "'mine'" in taken and "another name" in taken
    assert "'videomamba-m-k400'" in official
    assert "import path" in short and "import path" in local
    assert "lightning_modules.VideoClassifier" in registered_class_paths()
    assert "__main__.Mine" not in registered_class_paths()
