"""Samples for `zoo shard`: from a folder, a list, a recipe's data or any DataModule."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import datamodules
from datamodules.clips import ClipDataModule
from datamodules.errors import DataError
from datamodules.pairs import read_pairs
from datamodules.shards.writing import Source
from datamodules.storage.files import join, resolve
from datamodules.video.suffixes import IMAGE_SUFFIXES
from zoo.errors import ZooError, hint
from zoo.recipe import find_recipe, list_recipes, read_recipe

__all__ = ["data_module", "is_list", "listings", "sources_of_pairs", "sources_of_split"]

_LISTS = (".csv", ".tsv", ".txt")


def is_list(data: str) -> bool:
    """Whether it is a list of paths and labels, which has one split."""
    return data.lower().endswith(_LISTS) and os.path.isfile(data)


def data_module(data: str, root: str | None, settings: Sequence[str]) -> ClipDataModule:
    """Build the DataModule that `data` names.

    Args:
        data: a folder, a list of paths and labels, a recipe or config, or a DataModule's name.
        root: its `root`; None is the folder, or the list's own, or what the config says.
        settings: "key=value" for other arguments, in YAML.

    Raises:
        ZooError: no such data, a wrong setting, or a DataModule that cannot be sharded.
    """
    given = dict(_setting(text) for text in settings)
    arguments: dict[str, Any]
    if os.path.isdir(data):
        name, arguments = "VideoFolder", {"root": data}
    elif is_list(data):
        # A list that stands alone defines the classes too, unless they are given.
        path = os.path.abspath(data)
        name, arguments = "VideoCSV", {"root": os.path.dirname(path), "train": path, "val": path}
    elif _is_class(data):
        name, arguments = data, {}
    else:
        try:
            config = read_recipe(find_recipe(data)).get("data")
        except ZooError as error:
            nearest = hint(
                data, [*dir(datamodules), *list_recipes()], "name a folder, a list, a recipe or a DataModule."
            )
            raise ZooError(f"There is no data {data!r}: {nearest}") from error
        if not config:
            raise ZooError(f"{data} has no data section; name another config.")
        name, arguments = config["class_path"], config.get("init_args") or {}
    arguments = {**arguments, **({} if root is None else {"root": root}), **given}
    cls = _class(name)
    if not (isinstance(cls, type) and issubclass(cls, ClipDataModule) and hasattr(cls, "entry")):
        known = [known for known in dir(datamodules) if hasattr(getattr(datamodules, known), "entry")]
        raise ZooError(f"{name} cannot be written as shards; {', '.join(known)} can.")
    if "root" not in arguments:
        raise ZooError(f"{data} does not name the folder of its videos. Say it with --root.")
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ZooError(f"{cls.__name__}: {str(error).rpartition('() ')[2]}; fix --set or --root.") from error


def _setting(text: str) -> tuple[str, Any]:
    key, joined, value = text.partition("=")
    if not joined:
        raise ZooError(f"--set {text} is not KEY=VALUE; write for example --set num_classes=600.")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ZooError(f"--set {text[:80]} is not valid YAML; quote the value, or write another one.") from error


def _is_class(name: str) -> bool:
    if name in dir(datamodules):
        return True
    dotted = "." in name and all(part.isidentifier() for part in name.split("."))
    return dotted and not os.path.exists(name) and name not in list_recipes()


def _class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    try:
        found: type = getattr(importlib.import_module(module or "datamodules"), attribute)
    except (ImportError, AttributeError) as error:
        raise ZooError(f"There is no DataModule {name}: "
                       f"{hint(attribute, dir(datamodules), f'{error}.')}") from error  # fmt: skip
    return found


def listings(data: ClipDataModule, splits: Sequence[str] | None) -> dict[str, Sequence[Any]]:
    """Return the entries of the splits asked for; None is all, without a test split that is that of validation."""
    if splits is not None:
        return {split: data.listing(split) for split in ("train", "val", "test") if split in splits}
    found = {split: data.listing(split) for split in ("train", "val")}
    try:
        test = data.listing("test")
    except DataError:  # many data sets keep their test split to themselves
        return found
    return found if test == found["val"] else {**found, "test": test}


def sources_of_split(data: ClipDataModule, entries: Sequence[Any]) -> tuple[list[Source], dict[str, Any]]:
    """Build one Source per entry, and the index header."""
    root = f"{getattr(data, 'root', '')}/"
    fields = [field for field in entries[0]._fields if field != "path"] if entries else []
    sources = [
        Source(entry.path, _name(entry.path, root), {field: getattr(entry, field) for field in fields})
        for entry in entries
    ]
    return sources, {"class_names": getattr(data, "class_names", None), "media": _kind(sources)}


def sources_of_pairs(path: str, media: str | None) -> tuple[list[Source], dict[str, Any]]:
    """The files of a list of pairs, each with all of its captions; files start in `media`, or beside the list.

    Raises:
        ZooError: there are both pictures and videos.
    """
    folder = os.path.dirname(os.path.abspath(path)) if media is None else resolve(media)
    captions: dict[str, list[str]] = {}
    kinds = set()
    for kind, pair in read_pairs(path):
        kinds.add(kind)
        captions.setdefault(pair.path, []).append(pair.caption)
    if len(kinds) != 1:
        raise ZooError(f"{path} holds {'both pictures and videos; make two lists of it' if kinds else 'no pairs'}.")
    sources = [Source(join(folder, name), name, {"captions": texts}) for name, texts in captions.items()]
    return sources, {"media": kinds.pop()}


def _name(path: str, root: str) -> str:
    """Return the name of a file: its path below root, or its name in another shard."""
    name = path.rpartition("!")[2] if ".tar!" in path else path
    return name.removeprefix(root)


def _kind(sources: Sequence[Source]) -> str:
    return "image" if sources and Path(sources[0].path).suffix.lower() in IMAGE_SUFFIXES else "video"
