"""`zoo pull`: download models into the cache."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from zoo.commands.console import is_terminal, print_json, show
from zoo.errors import UnknownModelError, ZooError
from zoo.registry import info, list_models

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo pull videomamba-m-k400 videomamba-ti-in1k    registered models
  zoo pull 'videomamba-s-k400*'                    all that match a pattern (quote it)
  zoo pull me/my-actions hf://org/repo@v1          repositories of the Hub

Afterwards everything works without a connection: HF_HUB_OFFLINE=1 zoo predict videomamba-m-k400 clip.mp4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo pull`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("names", nargs="+", metavar="NAME", help="registered name, shell pattern, or Hub repository")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Download the models; if one fails, the others are still fetched."""
    names = _wanted(args.names)
    from hub.errors import HubError
    from lightning_modules.errors import ModelError
    from zoo.fetch import fetch

    records: list[dict[str, Any]] = []
    for number, name in enumerate(names, start=1):
        if not args.json and is_terminal():
            show(f"{number}/{len(names)} {name}")  # the bars of the downloads appear below
        try:
            files = fetch(name)
            records.append({"name": name, "files": [str(file) for file in files], "bytes": _size(files), "error": None})
        except (HubError, ModelError, ZooError, OSError) as error:
            records.append({"name": name, "files": [], "bytes": 0, "error": " ".join(str(error).split())})
    if args.json:
        print_json(records)
    else:
        _print_table(records)
    failed = [record for record in records if record["error"] is not None]
    if failed:
        reasons = "; ".join(f"{record['name']} ({record['error'].rstrip('.')})" for record in failed)
        verb = "was" if len(failed) == 1 else "were"
        raise ZooError(f"{len(failed)} of {_count(records)} {verb} not fetched: {reasons}.")


def _count(records: list[dict[str, Any]]) -> str:
    return "1 model" if len(records) == 1 else f"{len(records)} models"


def _wanted(names: list[str]) -> list[str]:
    """Return the models to fetch, each once; raise for unknown names before anything is downloaded."""
    found: dict[str, None] = {}
    for name in names:
        if any(sign in name for sign in "*?["):
            matching = list_models(name, pretrained=True)
            if not matching:
                raise ZooError(f"No model matches {name!r}; `zoo list` shows the names.")
            found |= dict.fromkeys(matching)
            continue
        try:
            found[info(name).name] = None
        except UnknownModelError:
            if "/" not in name:
                raise
            found[name] = None
    return list(found)


def _size(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _print_table(records: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("MB", justify="right")
    table.add_column("where", overflow="fold")
    for record in records:
        if record["error"] is not None:
            table.add_row(record["name"], "-", "not fetched")
        elif record["files"]:
            table.add_row(record["name"], f"{record['bytes'] / 1e6:.1f}", str(Path(record["files"][0]).parent))
        else:
            table.add_row(record["name"], "-", "shipped with the package")
    show(table)
    here = [record for record in records if record["error"] is None]
    megabytes = sum(record["bytes"] for record in here) / 1e6
    if here:
        verb = "is" if len(here) == 1 else "are"
        counted = f"{len(here)} of {_count(records)} {verb} here, {megabytes:.1f} MB"
        show("", f"{counted}; {'it works' if verb == 'is' else 'they work'} with HF_HUB_OFFLINE=1 too.")
    else:
        show("", "The model is not here." if len(records) == 1 else f"None of the {len(records)} models is here.")
