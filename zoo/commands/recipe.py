"""`zoo recipe`: one training recipe with all its parts, or the list of them."""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from zoo.commands.console import is_terminal, print_json, show
from zoo.printable import acts_on_terminal, printable
from zoo.recipe import find_recipe, list_recipes, read_recipe

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
examples:
  zoo recipe                                  every recipe
  zoo recipe videomamba-m-k400                one, complete, with the parts it includes
  zoo recipe videomamba-m-k400 > mine.yaml    a copy to change; then: lightning fit --config mine.yaml --data.root ...
  zoo recipe mine.yaml --json                 any config with its includes, for programs
"""

_ORDER = ("seed_everything", "model", "data", "trainer", "class_path", "init_args")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `zoo recipe`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("name", nargs="?", help="recipe, registered model, or config file; left out: list the recipes")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print a recipe, or the list of recipes."""
    if args.name is not None:
        path = find_recipe(args.name)
        config = _in_order(read_recipe(path))
        if args.json:
            print_json(config)
        else:
            sys.stdout.writelines(f"{printable(line)}\n" for line in _head(path))
            sys.stdout.write(_as_yaml(config))
        return
    found = [_record(name, path) for name, path in list_recipes().items()]
    if args.json:
        print_json(found)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("name", "data", "frames", "px", "epochs", "starts from"):
        table.add_column(title, justify="right" if title in ("frames", "px", "epochs") else "left", no_wrap=True)
    for record in found:
        keys = ("name", "data", "frames", "resolution", "epochs", "init_from")
        table.add_row(*("-" if record[key] is None else str(record[key]) for key in keys))
    show(table)
    if is_terminal():
        show("", f"{len(found)} recipes. `zoo recipe NAME` prints one, `lightning fit --config NAME` trains with it.")


def _head(path: Path) -> list[str]:
    """Return the comment at the top of a recipe: what it trains, and how it differs from its source."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def _as_yaml(config: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    # YAML's own escapes keep the values, but come with those of all other alphabets.
    hostile = any(acts_on_terminal(char) for char in text if char != "\n")
    if hostile:
        text = yaml.safe_dump(config, sort_keys=False)
    return text


def _in_order(value: Any) -> Any:  # noqa: ANN401  # values of YAML
    """Layers leave keys in the order in which they were merged; this puts the usual ones first."""
    if not isinstance(value, dict):
        return value
    keys = sorted(value, key=lambda key: _ORDER.index(key) if key in _ORDER else len(_ORDER))
    return {key: _in_order(value[key]) for key in keys}


def _record(name: str, path: Path) -> dict[str, Any]:
    config = read_recipe(path)
    model, data = config["model"]["init_args"], config["data"]
    return {
        "name": name,
        "about": " ".join(line.removeprefix("#").strip() for line in _head(path)),
        "data": data["class_path"].removeprefix("datamodules."),
        "frames": model.get("num_frames"),
        "resolution": model.get("image_size"),
        "epochs": config["trainer"].get("max_epochs"),
        "init_from": next(filter(None, map(model.get, ("init_from", "clip_weights", "vision_weights"))), None),
    }
