"""Training recipes: YAML files that include model, data and trainer parts by path."""

import difflib
from pathlib import Path

import yaml

from zoo.errors import ZooError

__all__ = ["find_recipe", "list_recipes", "read_recipe"]

RECIPES = Path(__file__).parent / "recipes"


def list_recipes() -> dict[str, Path]:
    """Names of the shipped recipes -> their files; parts that recipes include are left out."""
    files = (f for f in RECIPES.rglob("*.yaml") if f.parent.name != "parts")
    return {f.stem: f for f in sorted(files)}


def find_recipe(name: str) -> Path:
    """A recipe's path or name -> its file.

    Raises:
        ZooError: no such file and no such recipe; the message suggests the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    recipes = list_recipes()
    if name in recipes:
        return recipes[name]
    near = difflib.get_close_matches(name, recipes, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"recipes are {', '.join(recipes)}."
    raise ZooError(f"There is no config file and no recipe called {name!r}: {hint}")


def read_recipe(path: Path) -> dict:
    """Reads a YAML config with its includes.

    ``include: {model: ../models/videomamba-ti.yaml, trainer: parts/trainer.yaml}`` puts the file's content under that
    key; the config's own values go on top. Paths are relative to the file.

    Raises:
        ZooError: not valid YAML, not a mapping, or an included file is missing.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ZooError(f"{path} does not exist; check the include that names it.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ZooError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ZooError(f"{path} is not a config: it should map keys such as model, data and trainer to their values.")
    includes = content.pop("include", {})
    merged: dict = {}
    for key, part in includes.items():
        merged = _merge(merged, {key: read_recipe((path.parent / part).resolve())})
    return _merge(merged, content)


def _merge(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
