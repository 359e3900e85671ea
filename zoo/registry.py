"""Registry of models: names, aliases, configurations and places of the weights.

An entry is a row of ``weights.csv`` (one checkpoint: file, data set, scores) on top of a file of ``models/`` (one
network size: ``class_path`` and ``init_args``), with the facts of its data set (`zoo.datasets`). A row with a
``folder`` is shipped in the package and described by that folder's ``config.json`` instead; one without folder and
``repo_id`` is a model whose weights nobody released, or that are only linked from a page (``weights_page``).
Everything here is plain data: nothing imports torch, so `zoo list` answers at once.
"""

import copy
import csv
import difflib
import fnmatch
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zoo.datasets import Dataset, datasets, typed
from zoo.errors import UnknownModelError, ZooError

__all__ = ["Entry", "Weights", "class_labels", "entries", "info", "list_models", "register", "registered_class_paths"]

_HERE = Path(__file__).parent
# Columns of weights.csv with numbers, and those that are facts about a checkpoint (`Entry.meta`).
_KINDS = {
    **dict.fromkeys(("frames", "resolution", "stored_frames", "num_clips", "num_crops", "params"), int),
    **dict.fromkeys(("top1", "top5", "gflops"), float),
}
_FACTS = ("model", "dataset", "frames", "resolution", "stored_frames", "top1", "top5", "num_clips", "num_crops",
          "params", "init_from", "weights_page", "license", "paper", "note")  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Place of the weights of an entry: a file of a Hugging Face repository, or a local folder in the hub format.

    Attributes:
        repo_id: Repository on the Hugging Face Hub, ``org/name``; None for a local folder.
        filename: File inside the repository; None: the repository is a folder in the hub format.
        revision: Branch, tag or commit of the repository.
        sha256: Hex digest the file must have; None: not recorded.
        folder: Local folder in the hub format (``config.json``, ``model.safetensors``), instead of a repository.
    """

    repo_id: str | None = None
    filename: str | None = None
    revision: str | None = None
    sha256: str | None = None
    folder: str | None = None


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: Canonical name, every part spelled out (``videomamba-m-k400-f16-r224``).
        aliases: Other names that mean this entry, default parts left out (``videomamba-m-k400``).
        task: ``image-classification``, ``video-classification``, ``action-classification``, ``video-regression``,
            ``masked-pretraining``, ``text-video-retrieval`` or ``video-text-pretraining``; free for a user's own
            models.
        class_path: Public import path of the LightningModule.
        init_args: Plain values for its constructor, class names included.
        weights: Where the weights are; None: the entry can be created but not loaded.
        parts: Arguments of the constructor that say where pretrained parts of a fresh model come from, e.g.
            ``{"clip_weights": "openai/clip-vit-base-patch32"}``.
        meta: Facts about the checkpoint. For those of the zoo: ``model``, ``dataset``, ``dataset_title``,
            ``frames``, ``resolution`` (px), ``stored_frames`` (length of the temporal embedding in the file where it
            differs from ``frames``), ``top1`` and ``top5`` (percent, as published, with ``num_clips`` x ``num_crops``
            views), ``params`` (count), ``flops`` (per view, as published), ``init_from``, ``distilled``, ``masked``,
            ``weights_page`` (where the authors link weights that cannot be fetched by name), ``license``, ``paper``,
            ``labels_source``, ``note``. Unpublished values are None.
    """

    name: str
    aliases: tuple[str, ...]
    task: str
    class_path: str
    init_args: dict[str, Any]
    weights: Weights | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)


_user_entries: dict[str, Entry] = {}


def list_models(
    pattern: str = "*", *, task: str | None = None, dataset: str | None = None, pretrained: bool | None = None
) -> list[str]:
    """Canonical names of the models that match, sorted.

    Args:
        pattern: Shell-style pattern, compared with names and aliases: ``videomamba-m*``.
        task: ``image-classification``, ``video-classification``, or ``classification`` for both.
        dataset: Data set of the checkpoint: ``k400``.
        pretrained: True: only models with weights; False: only those without; None: all.

    Raises:
        ZooError: No model of the zoo has that task or data set.
    """
    known = _entries().values()
    tasks = {entry.task for entry in known}
    if task is not None and not any(_is_task(there, task) for there in tasks):
        raise ZooError(f"No model has the task {task!r}; there are {', '.join(sorted(tasks))}.")
    datasets = {entry.meta["dataset"] for entry in known if entry.meta.get("dataset")}
    if dataset is not None and dataset not in datasets:
        raise ZooError(f"No model was trained on {dataset!r}; the data sets are {', '.join(sorted(datasets))}.")
    return sorted(
        entry.name
        for entry in known
        if any(fnmatch.fnmatchcase(name, pattern.lower()) for name in (entry.name, *entry.aliases))
        and (task is None or _is_task(entry.task, task))
        and (dataset is None or entry.meta.get("dataset") == dataset)
        and (pretrained is None or (entry.weights is not None) == pretrained)
    )


def info(name: str) -> Entry:
    """The entry of a name or alias; a copy, so that changing it does not change the registry.

    Raises:
        UnknownModelError: No model has that name; the nearest names are suggested.
    """
    names = _names()
    if name not in names:
        raise UnknownModelError(_unknown(name, names))
    return copy.deepcopy(_entries()[names[name]])


def entries() -> list[Entry]:
    """All entries in reading order: by data set, network, frames and resolution, then the user's own; copies."""
    return copy.deepcopy(list(_entries().values()))


def register(
    name: str,
    target: type | str | None = None,
    *,
    init_args: Mapping[str, Any] | None = None,
    task: str = "video-classification",
    aliases: Sequence[str] = (),
    weights: Weights | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Any:  # noqa: ANN401  # the target, or a decorator of it
    """Add a model of your own for this process: by call, or as a decorator of its class.

    ``zoo.register("mine", MyModule, init_args={"num_classes": 3})`` or ``@zoo.register("mine")`` above the class. After
    that ``zoo.create("mine")`` builds it, ``zoo.list_models()`` shows it, and configurations may name its class.

    Args:
        name: Name by which it is found; not one the zoo has.
        target: The class, or its import path ``package.module.Class``; left out: register is used as a decorator.
        init_args: Plain values for the constructor.
        task: What the model does.
        aliases: Further names.
        weights: Where trained weights are.
        meta: Facts to show, with the keys of `Entry.meta`.

    Returns:
        The target, or the decorator.

    Raises:
        ZooError: The name or an alias exists, or the class is not at the top level of a module.
    """
    if target is None:
        return lambda cls: register(
            name, cls, init_args=init_args, task=task, aliases=aliases, weights=weights, meta=meta
        )
    taken = [known for known in (name, *aliases) if known in _names()]
    if taken:
        raise ZooError(f"The zoo has a model named {taken[0]!r} already; register yours under another name.")
    if isinstance(target, str):
        class_path, importable = target, "." in target
    else:
        ours = target.__module__.startswith("lightning_modules.")
        class_path = f"{'lightning_modules' if ours else target.__module__}.{target.__qualname__}"
        importable = target.__qualname__ == target.__name__
    if not importable:
        raise ZooError(f"{class_path!r} is not an import path; define the class at the top level of a module.")
    _user_entries[name] = Entry(
        name, tuple(aliases), task, class_path, copy.deepcopy(dict(init_args or {})), weights, dict(meta or {})
    )
    return target


def registered_class_paths() -> set[str]:
    """Class paths that some entry uses: what a configuration from outside may name."""
    return {entry.class_path for entry in _entries().values()}


@functools.cache
def class_labels(dataset: str) -> tuple[str, ...]:
    """Class names of a data set in the order of the official label indices (`k400`, `in1k`, `ssv2`, ...)."""
    return tuple((_HERE / "labels" / f"{dataset}.txt").read_text(encoding="utf-8").splitlines())


@functools.cache
def _official_entries() -> dict[str, Entry]:
    with (_HERE / "weights.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = (
        _folder_entry(row) if row["folder"] else _checkpoint_entry(row) if row["repo_id"] else _unreleased_entry(row)
        for row in rows
    )
    return {entry.name: entry for entry in found if entry is not None}


def _entries() -> dict[str, Entry]:
    return _official_entries() | _user_entries


def _names() -> dict[str, str]:
    """Every name and alias -> the canonical name it means."""
    return {name: entry.name for entry in _entries().values() for name in (entry.name, *entry.aliases)}


def _checkpoint_entry(row: dict[str, str]) -> Entry:
    """A published checkpoint: the size's file of ``models/`` plus what the checkpoint adds to it."""
    dataset = datasets()[row["dataset"]]
    size = _model_file(row["model"])
    resolution = int(row["resolution"])
    args = dict(size["init_args"], num_frames=None if dataset.sampling is None else int(row["frames"]))
    args["image_size"] = resolution
    if dataset.sampling is None:
        # The authors resize images to crop / 0.875, bicubic, before the centre crop; videos to the crop size, bilinear,
        # which is the default (docs/protocol.md, section 3).
        args |= {"short_side": int(resolution / 0.875), "interpolation": "bicubic"}
    elif "preprocessing" not in args:
        args.setdefault("sampling", dataset.sampling)
    weights = Weights(row["repo_id"], row["filename"], row["revision"], row["sha256"] or None)
    meta = _meta(row) | {"dataset_title": dataset.title}
    # The names of EPIC-KITCHENS-100 are not for commercial use: its models take them from the user's annotations.
    if row["task"] in ("image-classification", "video-classification"):
        labels = class_labels(row["dataset"])
        args |= {"num_classes": len(labels), "class_names": list(labels)}
        meta["labels_source"] = dataset.labels_source
    aliases = _aliases(row["name"], dataset)
    return Entry(row["name"], aliases, row["task"], size["class_path"], args, weights, meta, _parts(row))


def _folder_entry(row: dict[str, str]) -> Entry | None:
    """A checkpoint shipped in the package, described by its ``config.json``; None where the folder is not there."""
    folder = _HERE / row["folder"]
    if not (folder / "config.json").is_file():
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    args = config["init_args"]
    dataset = datasets()[row["dataset"]]
    meta = _meta(row) | {"labels_source": dataset.labels_source}
    meta |= {"dataset_title": dataset.title, "frames": args["num_frames"], "resolution": args["image_size"]}
    return Entry(row["name"], (), row["task"], config["class_path"], args, Weights(folder=str(folder)), meta)


def _unreleased_entry(row: dict[str, str]) -> Entry:
    """A published model without published weights: the size's file plus what the data set adds to it."""
    size = _model_file(row["model"])
    dataset = datasets()[row["dataset"]]
    args = {**size["init_args"], "num_frames": int(row["frames"])}
    if dataset.max_words is not None:
        args["max_words"] = dataset.max_words
    if row["task"] == "action-anticipation":
        args["task"] = "anticipation"
    meta = _meta(row) | {"dataset_title": dataset.title}
    return Entry(row["name"], (), row["task"], size["class_path"], args, None, meta, _parts(row))


def _parts(row: dict[str, str]) -> dict[str, str]:
    return dict(part.split("=") for part in row["parts"].split())


@functools.cache
def _model_file(model: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((_HERE / "models" / f"{model}.yaml").read_text(encoding="utf-8"))
    return content


def _meta(row: dict[str, str]) -> dict[str, Any]:
    facts = typed(row, _KINDS)
    flops = None if facts["gflops"] is None else round(facts["gflops"] * 1e9)
    return {key: facts[key] for key in _FACTS} | {
        "flops": flops,
        "distilled": row["distilled"] == "1",
        "masked": row["masked"] == "1",
    }


def _aliases(name: str, dataset: Dataset) -> tuple[str, ...]:
    """Return the name without its default parts, in all combinations, shortest first."""
    defaults = {f"f{dataset.default_frames}", "r224"}
    choices = [(part, "") if part in defaults else (part,) for part in name.split("-")]
    names = {"-".join(filter(None, chosen)) for chosen in itertools.product(*choices)} - {name}
    return tuple(sorted(names, key=lambda alias: (len(alias), alias)))


def _is_task(known: str, wanted: str) -> bool:
    return known == wanted or known.endswith(f"-{wanted}")


def _unknown(name: str, names: Mapping[str, str]) -> str:
    """Return one sentence that suggests up to three near names; the same parts in another order come first."""
    parts = name.lower().replace("_", "-").split("-")
    reordered = [known for known in names if sorted(known.split("-")) == sorted(parts)]
    near: dict[str, str] = {}
    for known in reordered + difflib.get_close_matches("-".join(parts), names, n=6, cutoff=0.6):
        near.setdefault(names[known], known)
    if not near:
        return f"No model is named {name!r}; `zoo list` shows the names."
    return f"No model is named {name!r}; did you mean {' or '.join(list(near.values())[:3])}?"
