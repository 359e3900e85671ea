"""The zoo's folder format, and reading other people's files as data only.

A folder holds ``config.json`` (class_path, init_args and the hash of the weights) and ``model.safetensors``. It may
also hold ``recipe.yaml``, ``metrics.csv`` and ``curves.png`` of the run that trained it, ``confusion.png`` or
``ranks.png`` of its test, and a ``README.md``, the card.
"""

import argparse
import hashlib
import json
import os
import re
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from hub.errors import HubError
from hub.files import written
from hub.hashes import check_sha256, sha256_of

__all__ = [
    "CARD",
    "CONFIG",
    "CURVES",
    "EXTRAS",
    "FILES",
    "METRICS",
    "RECIPE",
    "TESTED",
    "WEIGHTS",
    "Checkpoint",
    "check_config",
    "check_file",
    "check_finite",
    "check_state_dict",
    "check_tensors",
    "checkpoint_of",
    "fingerprint",
    "is_state_dict",
    "load_pickle",
    "load_safetensors",
    "read",
    "read_config",
    "read_text",
    "save",
    "with_hash",
    "write",
]

CONFIG, WEIGHTS, RECIPE = "config.json", "model.safetensors", "recipe.yaml"
METRICS, CURVES, CARD = "metrics.csv", "curves.png", "README.md"
TESTED = ("confusion.png", "ranks.png")
"""Pictures of a test: of a classifier, of a retrieval."""
EXTRAS = (METRICS, CURVES, *TESTED, CARD)
FILES = (CONFIG, WEIGHTS, RECIPE, *EXTRAS)
# What a file of torch.save begins with: a zip archive, or before torch 1.6 the pickle of a magic number.
TORCH_HEADS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
# Bounds of what a config may hold: the 21,841 class names of ImageNet-21k take a third of the values and a fifth of the
# bytes. Without them a few megabytes of somebody else's file take minutes and gigabytes.
MOST_VALUES, DEEPEST, MOST_TEXT = 65_536, 16, 4 << 20
# Limit of a safetensors header: 200 bytes for each of 20,000 tensors.
LONGEST_HEADER = 4 << 20

_reading_pickle = threading.Lock()


class Checkpoint(NamedTuple):
    """A model as data.

    Attributes:
        config: {class_path, init_args}.
        state_dict: the weights.
        recipe: text of the YAML config it was trained with, where known.
        extras: further files of the folder (`EXTRAS`) by name.
        scores: metrics that the run logged for these weights: {"val/top1": 0.93}.
    """

    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    recipe: str | None = None
    extras: Mapping[str, bytes] = MappingProxyType({})
    scores: Mapping[str, float] = MappingProxyType({})


class Saveable(Protocol):
    """The attributes of a module that `save` uses."""

    config: dict[str, Any]
    training_weights: tuple[str, ...]

    def state_dict(self) -> dict[str, Tensor]: ...


def save(model: Saveable, folder: str | os.PathLike[str], recipe: str | None = None) -> Path:
    """Write a module of the zoo to `folder`; see `write`."""
    return write(checkpoint_of(model)._replace(recipe=recipe), folder)


def checkpoint_of(model: Saveable) -> Checkpoint:
    """A module of the zoo as data, without the weights that only its training needs."""
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith(model.training_weights)}
    return Checkpoint(model.config, weights)


def fingerprint(state_dict: Mapping[str, Tensor]) -> str:
    """The SHA-256 of weights: of the line ``name dtype shape`` and the bytes of each tensor, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(
    checkpoint: Checkpoint, folder: str | os.PathLike[str], check: Callable[[Path], object] | None = None
) -> Path:
    """Write a folder that `read` and ``zoo.load`` understand.

    The folder is never half-written, and a failure leaves what was there before. A folder of this format is replaced.

    Args:
        checkpoint: what to write.
        folder: where.
        check: called with the folder beside; what it raises is passed on, and nothing is changed then.

    Raises:
        HubError: `folder` holds something else, the config is not plain values or not Unicode, or the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = Path(folder).resolve()
    _check_replaceable(target, folder)
    check_config(checkpoint.config, f"The config of {folder} cannot be saved")
    with_hash(checkpoint.config, "")  # refuses what cannot be written before the weights are
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.state_dict.items()}
    try:
        with written(target) as beside:
            save_file(tensors, beside / WEIGHTS, metadata={"format": "pt"})
            config = with_hash(checkpoint.config, sha256_of(beside / WEIGHTS))
            (beside / CONFIG).write_text(config, encoding="utf-8")
            # safetensors writes for the owner alone; who may read the config may read the weights.
            (beside / WEIGHTS).chmod((beside / CONFIG).stat().st_mode)
            if checkpoint.recipe is not None:
                (beside / RECIPE).write_text(checkpoint.recipe, encoding="utf-8")
            for name, content in checkpoint.extras.items():
                (beside / name).write_bytes(content)
            if check is not None:
                check(beside)
    except (OSError, SafetensorError) as error:
        raise HubError(f"{folder} cannot be written ({error}); nothing was changed: "
                       "free some space, or choose a folder you may write to.") from error  # fmt: skip
    return Path(folder)


def with_hash(config: dict[str, Any], sha256: str) -> str:
    """Text of a config.json that records the hash of the weights beside it.

    Raises:
        HubError: a string of the config is not valid Unicode, as the name of a class folder in another encoding is.
    """
    text = json.dumps({**config, "sha256": sha256}, indent=2, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        word = text[: error.start].rpartition('"')[2] + text[error.start :].partition('"')[0]
        raise HubError(f"The config of the model holds {word!r:.200}, which cannot be written as UTF-8; "
                       "rename that class or argument.") from error  # fmt: skip
    return text


def _check_replaceable(target: Path, folder: str | os.PathLike[str]) -> None:
    """Accept a missing or empty folder, and one that holds nothing but a model of the zoo."""
    if not target.exists():
        return
    remedy = "choose another folder, or remove it"
    if not target.is_dir():
        raise HubError(f"{folder} is a file; {remedy}.")
    if target == Path.cwd():
        raise HubError(f"{folder} is the current folder, which cannot be replaced; name a folder inside it.")
    found = sorted(path.name for path in target.iterdir())
    foreign = [name for name in found if name not in FILES]
    if foreign:
        raise HubError(
            f"{folder} holds {foreign[0]!r}, which is not part of a saved model and would be lost; {remedy}."
        )
    if found:
        try:
            read_config(target / CONFIG)
        except HubError as error:
            raise HubError(f"{folder} exists and is not a model folder ({error}); {remedy}.") from error


def read(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a folder written by `save`.

    Raises:
        HubError: a file is missing, is not what its name says, the config has other keys, or the weights are not those
            whose hash it records.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise HubError(f"{folder} has no {name}; a model folder holds {CONFIG} and {WEIGHTS} (see hub.save).")
    config, sha256 = read_config(folder / CONFIG)
    _check_header(folder / WEIGHTS)
    if sha256 is not None:
        check_sha256(folder / WEIGHTS, sha256, f"save or fetch {folder} again")
    recipe = folder / RECIPE
    text = read_text(recipe) if recipe.is_file() else None
    extras = {name: (folder / name).read_bytes() for name in EXTRAS if (folder / name).is_file()}
    return Checkpoint(config, load_safetensors(folder / WEIGHTS), text, extras)


def read_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """Read class_path and init_args of a config.json, and the SHA-256 of the weights where it records one.

    Raises:
        HubError: the file is missing, is not JSON, or has other keys. The class is not imported here.
    """
    if not path.is_file():
        raise HubError(f"{path} does not exist; check the path.")
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # Python refuses numbers of more than 4,300 digits too
        raise HubError(f"{path} is not valid JSON ({error}); save the model again.") from error
    config = {key: value for key, value in content.items() if key != "sha256"} if isinstance(content, dict) else {}
    if set(config) != {"class_path", "init_args"}:
        raise HubError(f"{path} does not hold exactly class_path and init_args; save the model again.")
    if not isinstance(config["class_path"], str) or not isinstance(config["init_args"], dict):
        raise HubError(f"{path} should map class_path to a name and init_args to arguments; save the model again.")
    check_config(config, f"{path} is not the config of a model")
    sha256 = content.get("sha256")
    if "sha256" in content and not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-fA-F]{64}", sha256)):
        raise HubError(f"{path} records {sha256!r} as SHA-256 of the weights, which is none; save the model again.")
    return config, sha256


def check_config(config: object, complaint: str) -> None:
    """Accept plain values within limits: numbers, strings, None, and lists and mappings.

    Args:
        config: of a model; lists may contain each other, as only a pickle's can.
        complaint: how the sentence begins.

    Raises:
        HubError: it has something else, or more than `MOST_VALUES`, or deeper than `DEEPEST`.
    """
    open_parts: list[tuple[object, int]] = [(config, 1)]
    count = 0
    while open_parts:
        value, depth = open_parts.pop()
        if not isinstance(value, dict | list | tuple):
            if value is not None and not isinstance(value, str | int | float):
                raise HubError(f"{complaint}: it holds a {type(value).__name__}; arguments of the network have to "
                               "be numbers, strings and lists.")  # fmt: skip
            continue
        count += len(value)
        if count > MOST_VALUES or depth > DEEPEST:
            raise HubError(f"{complaint}: it has more than {MOST_VALUES:,} values or {DEEPEST} levels; "
                           "make it shorter.")  # fmt: skip
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise HubError(f"{complaint}: it has a key that is not a string; name its arguments.")
        parts = value.values() if isinstance(value, dict) else value
        open_parts += [(part, depth + 1) for part in parts]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file of at most `MOST_TEXT` bytes, or a `HubError`."""
    if path.stat().st_size > MOST_TEXT:
        raise HubError(f"{path} has {path.stat().st_size:,} bytes; at most {MOST_TEXT:,} are read: shorten it.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise HubError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it again.") from error


def check_state_dict(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Raise `HubError` where names, shapes or kinds are not the model's; `expected` may be on the meta device."""
    wrong: dict[str, list[str]] = {
        "missing": [name for name in expected if name not in state_dict],
        "not in the model": [name for name in state_dict if name not in expected],
        "of another shape": [],
        "of another type": [],
    }
    for name, ours in expected.items():
        theirs = state_dict.get(name, ours)
        if theirs.shape != ours.shape:
            wrong["of another shape"].append(f"{name} {tuple(theirs.shape)} instead of {tuple(ours.shape)}")
        if theirs.is_floating_point() != ours.is_floating_point():
            wrong["of another type"].append(f"{name} {theirs.dtype} instead of {ours.dtype}")
    parts = []
    for title, items in wrong.items():
        if items:
            more = f" and {len(items) - 5} more" if len(items) > 5 else ""
            parts.append(f"{len(items)} {title}: {', '.join(items[:5])}{more}")
    if parts:
        raise HubError(f"The weights of {source} belong to another architecture ({'; '.join(parts)}); "
                       "name the model they were trained as.")  # fmt: skip


def check_finite(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Raise `HubError` for weights with NaN or infinity: every answer of such a model would be NaN."""
    for name, tensor in state_dict.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # One pass without a copy, which the types of eight bits do not have: NaN passes on to both ends.
        ends = torch.stack((tensor if tensor.element_size() > 1 else tensor.float()).aminmax())
        if not ends.isfinite().all():
            raise HubError(f"{name} of {source} holds NaN or infinity, so every output would be NaN; "
                           "take an earlier checkpoint, or fetch it again.")  # fmt: skip


def check_tensors(state_dict: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raise `HubError` where tensors are not stored number by number, or claim much more than their file has.

    A tensor that `torch.Tensor.expand` made takes four bytes in a file and may ask for any memory where it is copied.
    """
    total = 0
    for name, tensor in state_dict.items():
        size = tensor.numel() * tensor.element_size()
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or size > tensor.untyped_storage().nbytes():
            raise HubError(f"{name} of {path} is not stored number by number, so it is not read; "
                           "save contiguous tensors on the CPU.")  # fmt: skip
        total += size
    # Tensors may share their numbers, as BERT's word embedding and its output do.
    if total > 4 * os.stat(path).st_size:
        raise HubError(f"The tensors of {path} claim {total:,} bytes, more than four times the file, so it is not "
                       "read; save every tensor by itself.")  # fmt: skip


def is_state_dict(value: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether `value` is a non-empty dict of names to tensors."""
    return isinstance(value, dict) and bool(value) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()
    )  # fmt: skip


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file.

    Raises:
        HubError: missing, empty or damaged file, or one of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _check_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, MemoryError) as error:
        raise HubError(f"{path} is not a readable safetensors file ({error}); delete it and fetch it again.") from error


def _check_header(path: str | os.PathLike[str]) -> Path:
    """Accept a file whose first 8 bytes announce a header that fits into it; the library checks the rest."""
    path = check_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(LONGEST_HEADER, path.stat().st_size - 8):
        raise HubError(f"{path} is not a readable safetensors file (its header would have {length:,} bytes); "
                       "delete it and fetch it again.")  # fmt: skip
    return path


class _Inert:
    """What stands in the place of an object that is not read: it takes whatever it is given and keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_pickle(path: str | os.PathLike[str], mmap: bool = False, inert: bool = False) -> object:
    """Read a ``.pth``, ``.pt`` or ``.ckpt`` file as data only: a pickle that wants to run code is refused.

    Tensors may claim more memory than the file has; see `check_tensors`.

    Args:
        path: the file.
        mmap: read tensors from the file when they are used, where its format allows that.
        inert: read around whatever is more than tensors and plain values, such as numbers of NumPy beside the weights.
            In the place of each such object stands one without content; nothing that the pickle names is imported or
            called.

    Raises:
        HubError: missing, empty or damaged file, or one that holds more than tensors and plain values.
    """
    path = check_file(path)
    with path.open("rb") as file:
        head = file.read(24)
    if not head.startswith(TORCH_HEADS):
        raise HubError(f"{path} is not a checkpoint written by torch.save (it begins with {head!r}); "
                       "delete it and fetch the weights themselves.")  # fmt: skip
    try:
        mmap = mmap and head.startswith(b"PK")
        if head.startswith(b"PK"):
            _check_archive(path)
        # Training scripts store their parsed command line beside the weights: attributes without behaviour. What torch
        # lets through is one list for all threads.
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if inert else []
        named: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace]
        named += [(_Inert, name) for name in foreign]
        with _reading_pickle, torch.serialization.safe_globals(named):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except HubError:
        raise
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ValueError and more
        reason = str(error)
        if called := re.search(r"GLOBAL ([\w.]+)", reason):
            raise HubError(f"{path} holds more than data: reading it would call {called[1]}, so it is refused; "
                           "save the weights alone, as a state dict or as safetensors.") from error  # fmt: skip
        first = " ".join((reason.strip() or type(error).__name__).partition(". ")[0].split())
        raise HubError(f"{path} is not a readable checkpoint ({first}); delete it and fetch it again.") from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than its own size; torch.save compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        raise HubError(f"{path} unpacks to {size:,} bytes, more than it has, so it is not read; "
                       "save the weights with torch.save.")  # fmt: skip


def check_file(path: str | os.PathLike[str]) -> Path:
    """Raise `HubError` unless it is a regular file that is not empty; a device or a pipe may never end."""
    path = Path(path)
    if path.is_dir():
        raise HubError(f"{path} is a folder; name the file of weights in it.")
    if path.exists() and not path.is_file():
        raise HubError(f"{path} is a device or a pipe; name an ordinary file.")
    if not path.is_file():
        raise HubError(f"{path} does not exist; check the path.")
    if path.stat().st_size == 0:
        raise HubError(f"{path} is empty; delete it and fetch it again.")
    return path
