"""Training recipes: YAML files that include model, data and trainer parts by path."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ZooError, hint
from zoo.registry import entries

__all__ = ["find_recipe", "list_recipes", "merge", "read_recipe"]

RECIPES = Path(__file__).parent / "recipes"


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


def read_recipe(path: Path) -> dict:
    """Reads a YAML config with its includes.

    ``include`` is a list of layers: the first lies at the bottom, each later one covers what it has in common with
    those below, and the file's own values lie on top. Mappings are merged key by key; lists and everything else are
    replaced. A layer is a path relative to the file, or the name of a recipe, or a mapping
    ``model: ../models/videomamba-ti.yaml`` that puts the content under that key; a single layer needs no list. ::

        include:
          - parts/k400.yaml
          - model: ../models/videomamba-ti.yaml
        model:
          init_args: {num_frames: 16}

    Raises:
        ZooError: not valid YAML, not a mapping, or an included file is missing or includes itself.
    """
    return _read(path, ())


def merge(below: dict, above: dict) -> dict:
    """The values of both, mappings merged key by key; `above` wins."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _by_any_name() -> dict[str, Path]:
    """The recipes by their names and by the aliases of the models they train."""
    recipes = list_recipes()
    trained = (entry for entry in entries() if entry.name in recipes)
    return recipes | {alias: recipes[entry.name] for entry in trained for alias in entry.aliases}


def _read(path: Path, readers: tuple[Path, ...]) -> dict:
    """`read_recipe`; `readers` are the files whose includes led here."""
    if path.resolve() in readers:
        raise ZooError(f"{path} includes itself, by way of {readers[-1]}; remove one of the includes.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ZooError(f"{path} does not exist; check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ZooError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ZooError(f"{path} is not a config: it should map keys such as model, data and trainer to their values.")
    merged: dict = {}
    for key, part in _layers(content.pop("include", []), path):
        found = _read(_locate(part, path), (*readers, path.resolve()))
        merged = merge(merged, found if key is None else {key: found})
    return merge(merged, content)


def _layers(include: Any, path: Path) -> Iterator[tuple[str | None, str]]:
    """The included files with the key that each goes under, lowest first."""
    for layer in include if isinstance(include, list) else [include]:
        for key, part in layer.items() if isinstance(layer, dict) else [(None, layer)]:
            if not isinstance(part, str):
                raise ZooError(f"{path} includes {part!r}; include takes paths, or keys with a path each.")
            yield key, part


def _locate(part: str, path: Path) -> Path:
    file = (path.parent / part).resolve()
    if file.exists():
        return file
    recipes = _by_any_name()
    if part not in recipes:
        raise ZooError(f"{path} includes {part!r}, but there is no file {file} and no recipe of that name.")
    return recipes[part]
