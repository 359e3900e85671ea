"""Training recipes: YAML files that include model, data and trainer parts by path."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, hint
from zoo.plain_yaml import MAX_VALUES, count_values, read_yaml
from zoo.registry import entries

__all__ = ["change_callbacks", "find_recipe", "list_recipes", "merge", "read_recipe"]

RECIPES = Path(__file__).parent / "recipes"
MAX_INCLUDES = 20


def list_recipes() -> dict[str, Path]:
    """Names of the shipped recipes -> their files; parts that recipes include are left out."""
    files = (f for f in RECIPES.rglob("*.yaml") if f.parent.name != "parts")
    return {f.stem: f for f in sorted(files)}


def find_recipe(name: str) -> Path:
    """A recipe's path or name -> its file. The recipe of a registered model is found by the model's aliases too.

    Raises:
        ZooError: no such file and no such recipe; the message suggests the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    recipes = _by_any_name()
    if name in recipes:
        return recipes[name]
    nearest = hint(name, recipes, "`zoo recipe` lists the recipes.")
    raise ZooError(f"There is no config file and no recipe called {name!r}: {nearest}")


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML config with its includes.

    ``include`` is a list of layers: the first lies at the bottom, each later one covers what it has in common with
    those below, and the file's own values lie on top. Mappings are merged key by key; lists and everything else are
    replaced. A layer is a path relative to the file, or the name of a recipe, or a mapping
    ``model: ../models/videomamba-ti.yaml`` that puts the content under that key; a single layer needs no list. The list
    of callbacks is changed by a mapping from names of their classes to arguments, or to null, which leaves one out. ::

        include:
          - parts/k400.yaml
          - model: ../models/videomamba-ti.yaml
        model:
          init_args: {num_frames: 16}
        trainer:
          callbacks:
            ModelCheckpoint: {monitor: val/loss, mode: min}

    Raises:
        ZooError: not valid YAML, not a mapping, an included file is missing or includes itself, or a callback that is
            to be changed is not there.
    """
    merged = _read(path, (), {})
    if count_values(merged) > MAX_VALUES:
        raise ZooError(f"{path} has more than {MAX_VALUES:,} values with its includes; include fewer files.")
    return merged


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The values of both, mappings merged key by key; `above` wins. A mapping above a list changes callbacks."""
    merged = dict(below)
    for key, value in above.items():
        there = merged.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            value = merge(there, value)
        elif isinstance(value, dict) and isinstance(there, list) and key == "callbacks":
            value = change_callbacks(there, value)
        merged[key] = value
    return merged


def change_callbacks(
    callbacks: list[dict[str, Any]], changes: dict[str, dict[str, Any] | None]
) -> list[dict[str, Any]]:
    """Change arguments of callbacks in a list, or remove callbacks.

    Args:
        callbacks: mappings with ``class_path`` and perhaps ``init_args``.
        changes: name of a callback's class, without its package -> arguments; None leaves the callback out.

    Raises:
        ZooError: no such callback, or a change that is neither arguments nor None.
    """
    changed = [{"class_path": c} if isinstance(c, str) else copy.deepcopy(c) for c in callbacks]
    for name, arguments in changes.items():
        named = [c for c in reversed(changed) if isinstance(c, dict) and isinstance(c.get("class_path"), str)]
        found = {callback["class_path"].rpartition(".")[2]: callback for callback in named}
        if name not in found:
            nearest = hint(str(name), found, f"the config has {', '.join(found) or 'none'}.")
            raise ZooError(f"trainer.callbacks has no {name}: {nearest}")
        if arguments is None:
            changed.remove(found[name])
        elif isinstance(arguments, dict):
            found[name]["init_args"] = (found[name].get("init_args") or {}) | arguments
        else:
            raise ZooError(
                f"trainer.callbacks.{name} takes null, which leaves the callback out, or arguments by their names."
            )
    return changed


def _by_any_name() -> dict[str, Path]:
    """The recipes by their names and by the aliases of the models they train."""
    recipes = list_recipes()
    trained = (entry for entry in entries() if entry.name in recipes)
    return recipes | {alias: recipes[entry.name] for entry in trained for alias in entry.aliases}


def _read(path: Path, readers: tuple[Path, ...], known: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """`read_recipe`; `readers` are the files whose includes led here, `known` what has been read."""
    place = path.resolve()
    if place in readers:
        raise ZooError(f"{path} includes itself, by way of {readers[-1]}; remove one of the includes.")
    if place in known:
        return known[place]
    if len(readers) > MAX_INCLUDES:
        raise ZooError(f"{path} is included by way of more than {MAX_INCLUDES} files; write fewer layers.")
    content = read_yaml(path, quote=not readers)
    if not isinstance(content, dict):
        raise ZooError(f"{path} is not a config: it should map keys such as model, data and trainer to their values.")
    merged: dict[str, Any] = {}
    include = content.pop("include", None)
    for key, part in _layers([] if include is None else include, path, quote=not readers):
        found = _read(_locate(part, path), (*readers, place), known)
        merged = merge(merged, found if key is None else {key: found})
    known[place] = merge(merged, content)
    return known[place]


def _layers(include: object, path: Path, quote: bool) -> Iterator[tuple[str | None, str]]:
    """The included files with the key that each goes under, lowest first."""
    for layer in include if isinstance(include, list) else [include]:
        for key, part in layer.items() if isinstance(layer, dict) else [(None, layer)]:
            if not isinstance(part, str) or not isinstance(key, str | None) or "\0" in part:
                what = f"{layer!r:.80}" if quote else "something else"
                raise ZooError(f"{path} includes {what}; include takes paths, or keys with a path each.")
            yield key, part


def _locate(part: str, path: Path) -> Path:
    file = (path.parent / part).resolve()
    if file.exists():
        return file
    recipes = _by_any_name()
    if part not in recipes:
        raise ZooError(f"{path} includes {part!r}, but there is no file {file} and no recipe of that name.")
    return recipes[part]
