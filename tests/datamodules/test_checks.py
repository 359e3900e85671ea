"""Arguments that make no sense are refused in one sentence, by every DataModule, when it is made."""

import math
from typing import Any

import pytest

import datamodules
from datamodules.annotations.epic_kitchens import Segment
from datamodules.base import Sample
from datamodules.checks import Count, Number, OneOf, OrNone, Range, check, fits
from datamodules.epic_kitchens_retrieval import NarratedSegment
from datamodules.errors import DataError
from datamodules.lvu import Film
from datamodules.retrieval import CaptionedVideo

NEEDED = {"LVU": {"task": "scene"}, "PairCorpora": {"corpora": [{"annotations": "a.json"}]}}
COUNT = (-1, 1.5, math.nan, math.inf, 10**12, True, "x", [1], 10**5000)
SHARE = (-0.1, 1.1, math.nan, math.inf, -math.inf, True, "x", None)
EVERY = {
    "num_frames": (0, *COUNT), "image_size": (0, *COUNT), "short_side": (0, *COUNT), "frame_stride": (0, *COUNT),
    "sampling": ("x", "", 1), "interpolation": ("x", 1), "resize": ("x", 1), "decoder": ("x", 1),
    "batch_size": (0, None, *COUNT), "eval_batch_size": (0, *COUNT), "num_workers": (1025, *COUNT),
    "multiprocessing_context": ("x", "", 1), "max_unreadable": SHARE, "shuffle_buffer": (None, *COUNT),
    "shards": ([], "", [1], 1, {"a": 1}),
}  # fmt: skip
LABELLED = {
    "num_clips": (0, *COUNT), "num_crops": (2, None, *COUNT), "repeats": (0, None, *COUNT), "repeat_mode": ("x", None),
    "crop": ("x", None), "crop_area": ((0, 1), (0.5, 0.4), (0.5, 2), (math.nan, 1), (1,), (), None, 1, "ab", (1, 1, 1)),
    "crop_ratio": ((0, 1), (2, 1), (1, math.inf), (-1, 1), (math.nan, 1), None), "horizontal_flip": SHARE,
    "rand_augment_ops": (None, *COUNT), "rand_augment_magnitude": (-1, 11, math.nan, "x", None),
    "rand_augment_std": (-1, math.nan, math.inf, None), "auto_augment": ("x", 1),
    "mixup": (-0.1, math.nan, math.inf, None),
    "cutmix": (-0.1, math.nan, math.inf, None), "random_erasing": SHARE,
}  # fmt: skip
CAPTIONED = {"fps": (0, -1, math.nan, math.inf, "x"), "crop_area": ((0, 1), (0.5, 0.4), (0.5, 2), (math.nan, 1), 1)}
OWN = {
    "Kinetics": {"num_classes": (0, None, *COUNT)}, "COIN": {"num_classes": (0, *COUNT)},
    "SomethingSomethingV2": {"num_classes": (0, *COUNT)}, "ImageNet": {"num_classes": (0, *COUNT)},
    "LVU": {"window_seconds": (0, -1, 1e-9, math.nan, math.inf),
            "window_stride": (0, -1, 1e-9, math.nan, math.inf, None)},
    "EpicKitchens100": {
        "num_features": (0, *COUNT), "observed_seconds": (0, math.nan, math.inf),
        "gap_seconds": (-1, math.nan, math.inf),
        "neutral": SHARE, "num_clips": (0, *COUNT), "num_crops": (2, *COUNT), "horizontal_flip": SHARE,
        "mixup": LABELLED["mixup"], "cutmix": LABELLED["cutmix"], "questions": ("x", "", 1, None),
        "question_files": ("", [], [""], [1], 1, {"a": 1}),
        "crop_area": LABELLED["crop_area"], "rand_augment_ops": COUNT, "rand_augment_magnitude": (-1, 11, math.nan),
    },
    "EpicKitchensRetrieval": {"crop_area": LABELLED["crop_area"]},
    "PairCorpora": {
        "horizontal_flip": SHARE,
        "corpora": ([5], [{"shards": "a", "x": 1}], *([{"annotations": "a", "ratio": r}] for r in (math.nan, 1e9))),
    },
}  # fmt: skip
CLASSES = {
    name: cls for name in datamodules.__all__
    if isinstance(cls := getattr(datamodules, name), type) and issubclass(cls, datamodules.clips.ClipDataModule)
    and not getattr(cls, "__abstractmethods__", None)
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_out_of_range_are_one_sentence(tmp_path, name):
    cls, given = CLASSES[name], {"root": str(tmp_path), **NEEDED.get(name, {})}
    arguments = {**EVERY}
    if issubclass(cls, datamodules.base.VideoDataModule):
        arguments |= LABELLED
    if issubclass(cls, datamodules.retrieval.RetrievalDataModule):
        arguments |= CAPTIONED
    cls(**given)
    for argument, values in {**arguments, **OWN.get(name, {})}.items():
        if name == "PairCorpora" and argument in ("fps", "shards"):
            continue  # it has no such argument
        for value in values:
            with pytest.raises(DataError) as refused:
                cls(**{**given, argument: value})
            text = str(refused.value)
            short = "ratio" if argument == "corpora" and "ratio is" in text else argument
            assert (short in text or "corpus" in text) and text.endswith(".") and "\n" not in text, (argument, value)
            assert len(text) < 300, (argument, value)


def test_rules():
    check(a=(3, Count(1, 3)), b=(0.0, Number(0, 1)), c=("x", OneOf("x", "y")), d=([0.1, 0.1], Range(1)),
          e=(None, OrNone(Count(1, 3))))  # fmt: skip
    for rule, value, words in [
        (Count(1, 3), 4, "a whole number, at least 1 and at most 3"), (Count(1, 3), None, "a whole number"),
        (Number(0, 1, above=True), 0, "above 0 and at most 1"), (OneOf(1, 3), True, "one of 1, 3"),
        (Range(1), [0.2, 0.1], "two numbers above 0 and at most 1, the smaller one first"),
        (OrNone(Count(1, 3)), 0, "a whole number, at least 1 and at most 3, or null"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=rf"^size is .*; it has to be {words}.*\.$"):
            check(size=(value, rule))


@pytest.mark.parametrize(("value", "kind", "expected"), [
    (1, int, True), (True, int, False), (2**63, int, False), (1.0, int, False), (1, float, True), (1.5, float, True),
    (math.nan, float, False), (math.inf, float, False), ("a", str, True), (None, str, False), (True, bool, True),
    (["a"], tuple[str, ...], True), ([], tuple[str, ...], True), (["a", 1], tuple[str, ...], False),
    ([1, 2.5], tuple[float, float] | None, True), ([1], tuple[float, float] | None, False), (None, float | None, True),
    ("ab", tuple[str, ...], False), ({}, int | float, False), (1, Any, True),
])  # fmt: skip
def test_values_and_types(value, kind, expected):
    assert fits(value, kind) == expected


def test_every_entry_has_types_that_can_be_compared():
    entries = {Sample: ["a", 1], Film: ["a", 1.5, None], CaptionedVideo: ["a", ["b"], [0, 1.5]],
               Segment: ["a", "b", [0, 1], 1, [1, 2], 3, True, [True, False], "a", "b"],
               NarratedSegment: ["a", "b", [0, 1], 1, [1, 2], ["c"]]}  # fmt: skip
    for entry, values in entries.items():
        for (field, kind), value in zip(entry.__annotations__.items(), values, strict=True):
            assert fits(value, kind), (entry, field)
            assert not fits({"other": 1}, kind)
