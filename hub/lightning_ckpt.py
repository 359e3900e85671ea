"""Lightning ``.ckpt`` files of the zoo's modules, read as data: nothing is instantiated."""

import os
from pathlib import Path

import yaml

from hub.checkpoint import Checkpoint, is_state_dict, load_pickle, read_text
from hub.errors import HubError

__all__ = ["read_lightning"]


def read_lightning(path: str | os.PathLike) -> Checkpoint:
    """Reads config and weights of a ``.ckpt`` written while training a module of the zoo.

    The run's full configuration is taken along as the recipe where the ``lightning`` command left it in its folder.

    Raises:
        HubError: not a checkpoint of a module of the zoo.
    """
    path = Path(path)
    content = load_pickle(path)
    arguments = content.get("hyper_parameters") if isinstance(content, dict) else None
    if (
        not isinstance(arguments, dict)
        or not isinstance(arguments.get("_class_path"), str)
        or not is_state_dict(content.get("state_dict"))
    ):
        raise HubError(f"{path} is not a checkpoint of a module of the zoo; "
                       "pass its folder, or convert it by the name of its model.")  # fmt: skip
    config = {
        "class_path": arguments["_class_path"],
        "init_args": {name: value for name, value in arguments.items() if name != "_class_path"},
    }
    return Checkpoint(config, content["state_dict"], _find_recipe(path, config))


def _find_recipe(path: Path, config: dict) -> str | None:
    """The text of the run's ``config.yaml``, or None.

    LightningCLI writes it to the run's folder, and checkpoints go to ``checkpoints/`` in there unless told otherwise::

        <save_dir>/<name>/<version>/config.yaml
        <save_dir>/<name>/<version>/checkpoints/epoch=9-step=100.ckpt

    A file at these places that describes another model is somebody else's.
    """
    folder = path.resolve().parent
    for run in (folder, folder.parent) if folder.name == "checkpoints" else (folder,):
        if (run / "config.yaml").is_file():
            text = read_text(run / "config.yaml")
            if _describes(text, config):
                return text
    return None


def _describes(text: str, config: dict) -> bool:
    """Whether a run's YAML has the class and the arguments of `config`; those it leaves at None are filled in later."""
    try:
        model = yaml.safe_load(text)["model"]
        class_path, given = model["class_path"], model.get("init_args") or {}
        described = {name: value for name, value in given.items() if name in config["init_args"] and value is not None}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return False
    same_class = str(class_path).rpartition(".")[2] == config["class_path"].rpartition(".")[2]
    return same_class and all(_plain(value) == _plain(config["init_args"][name]) for name, value in described.items())


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
