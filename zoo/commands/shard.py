"""`zoo shard`: a data set as tar shards, for storage that prefers few large files."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from zoo.commands.console import long_work, print_json, show
from zoo.errors import ZooError
from zoo.limits import WORKERS, check_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from datamodules.shards.writing import Source, Written

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
what DATA may be:
  a folder           a folder per class, or {train,val,test}/<class> (datamodules.VideoFolder)
  a .csv, .txt       rows path,label of one split (datamodules.VideoCSV)
  a .json, .jsonl    pairs of a picture or video and its caption (datamodules.PairCorpora)
  a recipe, a config its data, with --root
  a DataModule       by name, with --root and --set
  .tar files         shards that others made, of which only an index is written beside them; quote the pattern

examples:
  zoo shard clips/ -o clips-shards/                         all splits, 1 GB a shard, training samples mixed
  zoo shard videomamba-m-k400 --root /data/k400 -o k400-shards/ --short-side 320 --workers 16
  zoo shard Kinetics --root /data/k600 --set num_classes=600 --split val -o k600-shards/
  zoo shard val.csv --split val --set classes=classes.txt -o shards/
  zoo shard webvid.jsonl --root /data/webvid -o webvid-shards/ --max-size 500MB
  zoo shard 'cc3m/{00000..00331}.tar'                       as img2dataset and video2dataset write them
  zoo shard clips-shards/ --check                           compare shards with their digests, after copying

Then train on them, from this disk or any other place:
  lightning fit --config videomamba-m-k400 --data.root k400-shards/
  lightning fit --config videomamba-m-k400 --data.root s3://bucket/k400-shards
The same command again continues after an interruption. See docs/shards.md.
"""

_SPLITS = ("train", "val", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo shard`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("data", metavar="DATA", help="data to write, or shards to index; see below")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="folder of the shards; an interrupted run resumes there")
    parser.add_argument("--root", metavar="FOLDER", help="folder of the videos (default: from DATA)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="argument of the DataModule; may be repeated"
    )
    parser.add_argument(
        "--split", action="append", choices=_SPLITS, help="split to write (default: all); may be repeated"
    )
    parser.add_argument("--max-size", default="1GB", metavar="SIZE", help="size of a shard: 500MB, 2GiB (default 1GB)")
    parser.add_argument(
        "--shuffle-seed", type=int, default=0, metavar="N",
        help="order of the training samples, so that each shard has samples of all classes (default 0)",
    )  # fmt: skip
    parser.add_argument("--in-order", action="store_true", help="do not shuffle the training samples")
    parser.add_argument(
        "--short-side", type=int, metavar="PX",
        help="re-encode larger videos to this shorter side (H.264, no sound); usual: 320 (default: copy the files)",
    )  # fmt: skip
    parser.add_argument(
        "--crf", type=int, default=23, metavar="N", help="quality of re-encoded videos, lower is better (default 23)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core with --short-side, else 0)"
    )
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, for the index of .tar files")
    parser.add_argument("--check", action="store_true", help="DATA is a folder of shards: look for damaged ones")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Write shards, index shards or check shards, and print a summary."""
    from datamodules.shards.writing import parse_size

    check_range("--workers", args.workers or 0, WORKERS)
    check_range("--crf", args.crf, (0, 51))
    if args.short_side is not None:
        check_range("--short-side", args.short_side, (2, 65536))
    max_bytes = parse_size(args.max_size)
    if args.check:
        _check(args)
        return
    indexing = args.data.endswith(".tar")
    if indexing == (args.out is not None):
        raise ZooError(f"{args.data} are shards, whose index goes beside them; leave --out out." if indexing else
                       f"--out is missing. Name a folder: zoo shard {args.data} -o FOLDER.")  # fmt: skip
    if args.out is not None and "://" in args.out:
        raise ZooError(f"{args.out} is a URL; write to a local folder and copy that.")
    with long_work("shards" if indexing else "samples", args.json) as report:
        written = _index(args, report) if indexing else _write(args, max_bytes, report)
    where = os.path.dirname(args.data) or "." if indexing else args.out
    if args.json:
        print_json({"shards": where, **{split: found._asdict() for split, found in written.items()}})
        return
    for split, found in written.items():
        left_out = f", {found.left_out} left out" if found.left_out else ""
        kept = f", {found.kept} of them there before" if found.kept else ""
        shards = f"{found.shards} shard{'s' if found.shards > 1 else ''}"
        show(f"{split}: {found.samples} samples{left_out} in {shards}{kept}, {found.bytes / 1e6:.1f} MB.")
    show(f"Train on them: lightning fit --config RECIPE --data.root {where}")


def _check(args: argparse.Namespace) -> None:
    from datamodules.shards.indexing import check_shards

    good, bad = check_shards(args.data)
    if args.json:
        print_json({"shards": args.data, "good": good, "bad": bad})
    if bad:
        raise ZooError(f"{len(bad)} of {len(good) + len(bad)} shards in {args.data} are missing or damaged "
                       f"({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}); copy them again.")  # fmt: skip
    if not args.json:
        show(f"{args.data}: all {len(good)} shards are as they were written.")


def _index(args: argparse.Namespace, report: "Callable[[str, int, int], None]") -> "dict[str, Written]":
    import glob

    from datamodules.annotations.lists import read_names
    from datamodules.shards.indexing import index_shards
    from datamodules.storage.files import expand_braces

    if len(args.split or ()) > 1:
        raise ZooError("An index has one split; pass --split once.")
    split = (args.split or ["train"])[0]
    paths = [path for pattern in expand_braces(args.data) for path in sorted(glob.glob(pattern)) or [pattern]]
    lost = [path for path in paths if not os.path.isfile(path)]
    if lost:
        raise ZooError(f"{lost[0]} does not exist; an index is made where the shards are.")
    names = None if args.classes is None else read_names(args.classes)
    return {split: index_shards(paths, split, class_names=names, on_files=lambda *n: report(split, *n))}


def _write(args: argparse.Namespace, max_bytes: int, report: "Callable[[str, int, int], None]") -> "dict[str, Written]":
    from datamodules.shards.writing import write_shards
    from datamodules.storage.processes import usable_cores

    workers = args.workers
    if workers is None:
        workers = usable_cores() if args.short_side else 0
    written = {}
    for split, sources, about in _samples(args):
        seed = args.shuffle_seed if split == "train" and not args.in_order else None
        written[split] = write_shards(
            sources, args.out, split, about=about, max_bytes=max_bytes, shuffle_seed=seed, short_side=args.short_side,
            crf=args.crf, num_workers=workers, on_files=lambda *numbers, split=split: report(split, *numbers),
        )  # fmt: skip
    return written


def _samples(args: argparse.Namespace) -> "list[tuple[str, list[Source], dict[str, Any]]]":
    """Return (split, sources, index header) for each split to write, in the order of `_SPLITS`."""
    from datamodules.clips import warn_of_leaks
    from datamodules.pairs import PairCorpora
    from zoo.commands.shard_sources import data_module, is_list, listings, sources_of_pairs, sources_of_split

    if args.data.lower().endswith((".json", ".jsonl", ".ndjson")) and os.path.isfile(args.data):
        return [("train", *sources_of_pairs(args.data, args.root))]
    splits = args.split
    if is_list(args.data):
        splits = splits or ["train"]
        if len(splits) > 1:
            raise ZooError(f"{args.data} is the list of one split; give one --split.")
    data = data_module(args.data, args.root, args.set)
    if isinstance(data, PairCorpora):
        raise ZooError("Corpora are mixed when they are read; write them one by one: zoo shard pairs.jsonl -o OUT.")
    found = listings(data, splits)
    data.check_listings(found)
    warn_of_leaks(dict(found))
    return [(split, *sources_of_split(data, entries)) for split, entries in found.items()]
