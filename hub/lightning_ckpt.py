"""Lightning ``.ckpt`` files of the zoo's modules, read as data: nothing is instantiated."""

import os
from pathlib import Path

from hub.checkpoint import Checkpoint, load_pickle
from hub.errors import HubError

__all__ = ["read_lightning"]


def read_lightning(path: str | os.PathLike) -> Checkpoint:
    """Reads config and weights of a ``.ckpt`` written while training a module of the zoo.

    The run's full configuration is taken along when Lightning left it beside the checkpoint (``config.yaml`` in the run's folder).

    Raises:
        HubError: not a checkpoint of a module of the zoo.
    """
    path = Path(path)
    content = load_pickle(path)
    arguments = dict(content.get("hyper_parameters", {})) if isinstance(content, dict) else {}
    class_path = arguments.pop("_class_path", None)
    if class_path is None or "state_dict" not in content:
        raise HubError(f"{path} is not a checkpoint of a module of the zoo; pass its folder, or convert it by the name of its model.")
    recipe = next((f for f in (p / "config.yaml" for p in path.resolve().parents[:3]) if f.is_file()), None)
    return Checkpoint(
        {"class_path": class_path, "init_args": arguments},
        content["state_dict"],
        recipe.read_text(encoding="utf-8") if recipe else None,
    )
