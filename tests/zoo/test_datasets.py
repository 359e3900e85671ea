"""The table of data sets against the models and the label files that refer to it."""

import csv
import tomllib
from pathlib import Path

import pytest

import zoo
from zoo.datasets import Dataset, datasets
from zoo.registry import class_labels, entries

HOME = Path(zoo.__file__).parent


def test_values_have_their_types_and_empty_ones_are_none():
    assert datasets()["k400"] == Dataset("Kinetics-400", 16, "sparse", 10.0, None, datasets()["k400"].labels_source)
    assert datasets()["msvd"] == Dataset("MSVD", None, None, None, 32, None)
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
