"""Facts about the data sets that models of the zoo were trained on: ``datasets.csv``, one row each."""

import csv
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["Dataset", "datasets", "title_of", "typed"]


class Dataset(NamedTuple):
    """Facts shared by all checkpoints of one data set; None where a fact does not apply.

    Attributes:
        title: Name for people.
        default_frames: Frames of a model whose name does not say them. None for still
            images, and for models without released weights, whose names say them.
        sampling: Frame sampling of the authors' protocol (docs/protocol.md, section 2). None for still
            images, and for models without released weights, whose file in ``models/`` says it.
        clip_seconds: Mean length of the videos that models learned from. Kinetics cuts 10 s (arXiv 1705.06950),
            Something-Something V2 has 4 s (1706.04261), Breakfast 77 hours in 1,712 videos, COIN 2.36 minutes
            (2403.06977).
        max_words: Words of a caption that are read (docs/protocol.md, section 18).
        labels_source: Where the order of ``labels/<name>.txt`` comes from; None for pairs with text.
        datamodule: The class of `datamodules` that reads it; None if it has none of its own, or if the class
            also reads generated files, as those of kitchens do.
    """

    title: str
    default_frames: int | None
    sampling: str | None
    clip_seconds: float | None
    max_words: int | None
    labels_source: str | None
    datamodule: str | None


@functools.cache
def datasets() -> Mapping[str, Dataset]:
    """The data sets by the names that ``weights.csv`` and the models' names use: ``k400``."""
    with Path(__file__).with_name("datasets.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            typed(row, {"default_frames": int, "clip_seconds": float, "max_words": int}) for row in csv.DictReader(file)
        ]
    return MappingProxyType({row.pop("name"): Dataset(**row) for row in rows})


def title_of(datamodule: str, arguments: Mapping[str, Any]) -> str | None:
    """Name the data that a DataModule reads.

    Args:
        datamodule: Class path of the DataModule.
        arguments: Its arguments: ``num_classes`` tells the Kinetics apart, ``task`` the tasks of LVU.

    Returns:
        ``Kinetics-600``; None for a DataModule that reads a user's own files.
    """
    package, _, name = datamodule.rpartition(".")
    titles = {dataset.datamodule: dataset.title for dataset in datasets().values() if dataset.datamodule}
    if package.partition(".")[0] != "datamodules" or name not in titles:
        return None
    if name == "Kinetics":
        return f"Kinetics-{arguments['num_classes']}"
    return f"{titles[name]}, {arguments['task']}" if name == "LVU" else titles[name]


def typed(row: Mapping[str, str], kinds: Mapping[str, type]) -> dict[str, Any]:
    """The cells of a row as values: numbers where `kinds` says so, None where a cell is empty."""
    return {key: kinds.get(key, str)(cell) if cell else None for key, cell in row.items()}
