"""The table of data sets against the models and the label files that refer to it."""

import csv
import tomllib
from pathlib import Path

import pytest

import datamodules
import zoo
from zoo.datasets import Dataset, datasets, title_of
from zoo.registry import class_labels, entries

HOME = Path(zoo.__file__).parent


def test_values_have_their_types_and_empty_ones_are_none():
    source = datasets()["k400"].labels_source
    assert datasets()["k400"] == Dataset("Kinetics-400", 16, "sparse", 10.0, None, source, "Kinetics")
    assert datasets()["msvd"] == Dataset("MSVD", None, None, None, 32, None, "MSVD")
    with pytest.raises(TypeError):
        datasets()["mine"] = datasets()["k400"]


def test_every_model_has_a_data_set_of_the_table_and_every_row_a_model():
    assert {entry.meta["dataset"] for entry in entries()} <= set(datasets())
    with (HOME / "weights.csv").open(encoding="utf-8", newline="") as file:
        assert {row["dataset"] for row in csv.DictReader(file)} == set(datasets())
    titles = [dataset.title for dataset in datasets().values()]
    assert all(titles) and len(set(titles)) == len(titles)
    for entry in entries():
        dataset = datasets()[entry.meta["dataset"]]
        assert entry.meta["dataset_title"] == dataset.title
        assert entry.init_args.get("max_words") == dataset.max_words or entry.weights is not None


@pytest.mark.parametrize(
    ("datamodule", "arguments", "title"),
    [
        ("datamodules.SomethingSomethingV2", {"root": "/data/smth"}, "Something-Something V2"),
        ("datamodules.imagenet.ImageNet", {}, "ImageNet-1K"),
        ("datamodules.Kinetics", {"num_classes": 600}, "Kinetics-600"),
        ("datamodules.LVU", {"task": "scene"}, "LVU, scene"),
        ("datamodules.VideoFolder", {"root": "/data/mine"}, None),
        ("datamodules.EpicKitchens100", {"root": "demo/kitchen"}, None),  # which reads generated kitchens too
        ("mine.Kinetics", {}, None),
    ],
)
def test_the_title_of_a_published_set_is_the_tables(datamodule, arguments, title):
    assert title_of(datamodule, arguments) == title


def test_the_table_names_classes_that_exist():
    named = [dataset.datamodule for dataset in datasets().values() if dataset.datamodule]
    assert len(set(named)) == len(named) and set(named) <= set(datamodules.__all__)


def test_label_files_say_where_they_come_from():
    files = {path.stem for path in (HOME / "labels").glob("*.txt")}
    assert files == {name for name, dataset in datasets().items() if dataset.labels_source} - {"motion"}
    # The window that fits a model is found by its class names.
    timed = [class_labels(name) for name, dataset in datasets().items() if dataset.clip_seconds]
    assert timed and len(set(timed)) == len(timed)


def test_the_tables_of_the_package_are_installed_with_it():
    pyproject = tomllib.loads((HOME.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = pyproject["tool"]["setuptools"]["package-data"]["zoo"]
    installed = {path for pattern in patterns for path in HOME.glob(pattern)}
    assert set(HOME.glob("*.csv")) <= installed and set(HOME.glob("labels/*.txt")) <= installed
