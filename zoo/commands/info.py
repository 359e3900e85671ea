"""`zoo info`: everything recorded about one model, and how to load it."""

import argparse
import dataclasses
import json
import os
import shlex
from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from zoo.commands.console import print_json, show
from zoo.commands.list import is_cached
from zoo.errors import UnknownModelError
from zoo.fetch import started_from
from zoo.printable import printable
from zoo.recipe import list_recipes
from zoo.registry import Entry, entries, info

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo info videomamba-m-k400           the short name means videomamba-m-k400-f16-r224
  zoo info videomamba-ti-ssv2 --json   for programs; holds all class names
  zoo info runs/finetune/version_0     a run, a .ckpt or a model folder of yours
  zoo info me/my-actions               a repository of the Hub, of which the config is fetched and not the weights
"""

_MANY = 8  # so many class names are shown in full; of more, the first few


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo info`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "name", help="name or alias as `zoo list` shows it, model folder, run, .ckpt, or Hub repository"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print one entry."""
    try:
        entry, registered = info(args.name), True
    except UnknownModelError:
        if not (os.path.exists(args.name) or "/" in args.name):
            raise
        from zoo.look import look  # imports torch

        entry, registered = look(args.name), False
    if args.json:
        print_json(dataclasses.asdict(entry) | {"cached": is_cached(entry.weights)})
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _facts(entry, registered):
        table.add_row(key, value)
    show(Text(printable(entry.name), style="bold"), table, "", *_how_to(entry))


def _facts(entry: Entry, registered: bool) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table that have a value."""
    meta, args = entry.meta, entry.init_args
    if entry.aliases:
        yield "also called", ", ".join(entry.aliases)
    yield "task", entry.task.replace("-", " ")
    if meta.get("dataset"):
        yield "trained on" if entry.weights else "made for", meta["dataset"] + _started_from(entry)
    elif meta.get("init_from"):
        yield "started from", meta["init_from"]
    children = [other.name for other in entries() if other.meta.get("init_from") == entry.name]
    if children:
        yield "start of", ", ".join(children)
    if args.get("class_names"):
        yield "classes", _some(args["class_names"])
    if meta.get("resolution"):
        frames = "one image" if args.get("num_frames") is None else f"{args['num_frames']} frames"
        sampling = f", {args['sampling']} sampling" if args.get("sampling") else ""
        yield "input", f"{frames} of {meta['resolution']} x {meta['resolution']} px{sampling}"
    if meta.get("top1") is not None:
        top5 = "" if meta.get("top5") is None else f", top-5 {meta['top5']:.1f}%"
        yield "accuracy", f"top-1 {meta['top1']:.1f}%{top5} as published{_views(meta)}"
    if meta.get("scores"):
        yield "scores", ", ".join(f"{name} {value:.4g}" for name, value in meta["scores"].items())
    if meta.get("params"):
        flops = "" if meta.get("flops") is None else f", {meta['flops'] / 1e9:g} GFLOPs per view as published"
        yield "size", f"{meta['params']:,} parameters{flops}"
    yield "class", entry.class_path
    yield "settings", ", ".join(f"{key}={value}" for key, value in args.items() if key != "class_names")
    if entry.weights is None and meta.get("weights_page"):
        yield "weights", f"on a drive that {meta['weights_page']} links: zoo.load({entry.name!r}, checkpoint=FILE)"
    elif entry.weights is None:
        yield "weights", f"none released: zoo.create builds it {started_from(entry)}"
    elif entry.weights.repo_id is None:
        yield "weights", f"{'shipped, in ' if registered else ''}{entry.weights.folder}"
    else:
        weights = entry.weights
        yield "weights", f"{weights.repo_id}, {weights.filename}, revision {weights.revision}"
        yield "sha256", weights.sha256 or "not recorded"
        yield "cached", "yes" if is_cached(weights) else "no: the first use downloads the file"
        yield "page", f"https://huggingface.co/{weights.repo_id}"
    for key, label in (("license", "licence"), ("paper", "paper"), ("labels_source", "labels from"), ("note", "note")):
        if meta.get(key):
            yield label, meta[key]


def _started_from(entry: Entry) -> str:
    meta = entry.meta
    steps = [f"from {meta['init_from']}"] if meta.get("init_from") else []
    steps += ["after masked pretraining"] if meta.get("masked") and entry.task != "masked-pretraining" else []
    steps += ["with self-distillation"] if meta.get("distilled") else []
    return f", {', '.join(steps)}" if steps else ""


def _views(meta: dict[str, Any]) -> str:
    clips, crops = meta.get("num_clips"), meta.get("num_crops")
    if clips is None or crops is None:
        return ""
    return ", with one centre crop" if clips == crops == 1 else f", with {clips} clips x {crops} crops"


def _some(names: list[str]) -> str:
    shown = names if len(names) <= _MANY else [*names[:3], "..."]
    return f"{len(names)}: {', '.join(shown)}"


def _how_to(entry: Entry) -> list[str]:
    name = min([entry.name, *entry.aliases], key=len)
    word, text = shlex.quote(name), json.dumps(name, ensure_ascii=False)
    if entry.weights is None:
        train = [f"lightning fit --config {word} --data.root ...", ""] if entry.name in list_recipes() else []
        return [*train, "import zoo", f"model = zoo.create({text})"]
    if entry.task == "masked-pretraining":
        tuning = f"lightning fit --config finetune --data.root my_videos --model.init_from {word}"
        return [tuning, "", "import zoo", f"model = zoo.load({text})", 'zoo.extract_features(model, "clip.mp4")']
    if entry.task in ("video-text-pretraining", "text-video-retrieval"):
        return [f"zoo index {word} my_videos -o my.index", 'zoo search my.index "a dog runs"', "", "import zoo",
                f"model = zoo.load({text})"]  # fmt: skip
    if entry.task in ("action-recognition", "action-anticipation"):
        return [f'zoo ask {word} clip.mp4 "what is the person doing?"', "", "import zoo", f"model = zoo.load({text})"]
    file = "photo.jpg" if entry.task.startswith("image") else "clip.mp4"
    return [
        f"zoo predict {word} {file}",
        "",
        "import zoo",
        f"model = zoo.load({text})",
        f'zoo.{"predict_value" if entry.task.endswith("regression") else "predict"}(model, "{file}")',
    ]
