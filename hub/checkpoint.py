"""The zoo's folder format: ``config.json`` (class_path and init_args), ``model.safetensors``, and ``recipe.yaml`` if trained here."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hub.errors import HubError

__all__ = ["CONFIG", "RECIPE", "WEIGHTS", "Checkpoint", "check_state_dict", "read", "save", "write"]

CONFIG, WEIGHTS, RECIPE = "config.json", "model.safetensors", "recipe.yaml"


class Checkpoint(NamedTuple):
    """A model as data: ``config`` is {class_path, init_args}, ``state_dict`` its weights, ``recipe`` its training config."""

    config: dict
    state_dict: dict[str, Tensor]
    recipe: str | None = None


class Saveable(Protocol):
    """What `save` needs of a module."""

    config: dict

    def state_dict(self) -> dict[str, Tensor]: ...


def save(model: Saveable, folder: str | os.PathLike, recipe: str | None = None) -> Path:
    """Writes a module of the zoo to `folder`; see `write`."""
    return write(Checkpoint(model.config, model.state_dict(), recipe), folder)


def write(checkpoint: Checkpoint, folder: str | os.PathLike) -> Path:
    """Writes a folder that `read` and ``zoo.load`` understand.

    The files are written to a folder beside it, which then takes its place: the folder is never half-written. A folder of this
    format is replaced.

    Raises:
        HubError: `folder` exists and holds something else.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise HubError(f"{folder} exists and is not a model folder; choose another folder or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.state_dict.items()}
        save_file(tensors, beside / WEIGHTS, metadata={"format": "pt"})
        (beside / CONFIG).write_text(json.dumps(checkpoint.config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if checkpoint.recipe is not None:
            (beside / RECIPE).write_text(checkpoint.recipe, encoding="utf-8")
        beside.chmod(0o755)
        old = None
        if folder.exists():
            old = folder.with_name(f"{beside.name}-old")
            folder.rename(old)
        beside.rename(folder)
        if old is not None:
            shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return folder


def read(folder: str | os.PathLike) -> Checkpoint:
    """Reads a folder written by `save`.

    Raises:
        HubError: a file is missing, is not what its name says, or the config has other keys.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise HubError(f"{folder} has no {name}; a model folder holds {CONFIG} and {WEIGHTS} (see hub.save).")
    config = read_config(folder / CONFIG)
    try:
        state_dict = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise HubError(f"{folder / WEIGHTS} is damaged ({error}); fetch or save it again.") from error
    recipe = folder / RECIPE
    return Checkpoint(config, state_dict, recipe.read_text(encoding="utf-8") if recipe.is_file() else None)


def read_config(path: Path) -> dict:
    """Reads a config.json; the classes it names are not imported here."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HubError(f"{path} is not valid JSON ({error}); save the model again.") from error
    if not isinstance(config, dict) or set(config) != {"class_path", "init_args"}:
        raise HubError(f"{path} does not hold exactly class_path and init_args; save the model again.")
    return config


def check_state_dict(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Compares keys and shapes with what the model has.

    Raises:
        HubError: one sentence with the keys missing and left over and the shapes that differ.
    """
    missing = [k for k in expected if k not in state_dict]
    unexpected = [k for k in state_dict if k not in expected]
    shapes = [
        f"{k} {tuple(state_dict[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state_dict and state_dict[k].shape != v.shape
    ]
    parts = []
    for title, items in (("missing", missing), ("not in the model", unexpected), ("of another shape", shapes)):
        if items:
            more = f" and {len(items) - 5} more" if len(items) > 5 else ""
            parts.append(f"{len(items)} {title}: {', '.join(items[:5])}{more}")
    if parts:
        raise HubError(f"The weights of {source} belong to another architecture ({'; '.join(parts)}); "
                       "name the model they were trained as.")  # fmt: skip


def is_state_dict(value: object) -> bool:
    """Whether `value` is a non-empty dict of names to tensors."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()
    )  # fmt: skip


def load_pickle(path: str | os.PathLike) -> object:
    """Reads a ``.pth``, ``.pt`` or ``.ckpt`` file as data only: a pickle that wants to run code is refused.

    Raises:
        HubError: missing, empty or damaged file, or one that holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise HubError(f"{path} does not exist; check the path.")
    if path.stat().st_size == 0:
        raise HubError(f"{path} is empty; fetch it again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and ValueError for damaged files
        refused = "Unsupported" in str(error) or "weights_only" in str(error).lower()
        if refused:
            raise HubError(f"{path} is not plain data (or is not a checkpoint): reading it would run code from the file, "
                           "so it is refused; save the weights as a state dict or as safetensors.") from error  # fmt: skip
        raise HubError(f"{path} is not a readable checkpoint ({str(error).splitlines()[0]}); fetch it again.") from error
