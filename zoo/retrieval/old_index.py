"""Read an index of the former format, a folder of safetensors files, so that `zoo index --convert` can copy it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.errors import ZooError
from zoo.retrieval.table import DTYPES, OLD_FORMAT, OLD_HEAD
from zoo.tables.table import File, Record

__all__ = ["read_head", "read_parts"]


def read_head(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return its dims, dtype, window and model; raise `ZooError` for what is no such index."""
    place = Path(folder, OLD_HEAD)
    try:
        head = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ZooError(
            f"{folder} is no index of the former format (no readable {OLD_HEAD}); name such a folder."
        ) from error
    if not isinstance(head, dict) or (head.get("format"), head.get("version")) != (OLD_FORMAT, 1):
        raise ZooError(f"{place} is not of the format {OLD_FORMAT!r}, version 1; name an index of the former format.")
    return {key: head.get(key) for key in ("dims", "dtype", "window", "model")}


def read_parts(
    folder: str | os.PathLike[str], dims: int, dtype: str
) -> Iterator[tuple[list[Record], Tensor, list[File]]]:
    """Yield records, their vectors (N, dims) and the files they are of, one part at a time.

    Parts that another one stands for, which a killed process left, are skipped.

    Raises:
        ZooError: a part is damaged.
    """
    paths = sorted(path for path in Path(folder).glob("*.safetensors") if not path.name.startswith("."))
    replaced = {name for path in paths for name in _read(path, dims, dtype)[3]}
    for path in paths:
        if path.name not in replaced:
            yield _read(path, dims, dtype)[:3]


def _read(path: Path, dims: int, dtype: str) -> tuple[list[Record], Tensor, list[File], list[str]]:
    try:
        with safe_open(path, "pt") as part:
            metadata = part.metadata() or {}
            vectors, file, seconds = (part.get_tensor(key) for key in ("vectors", "file", "seconds"))
        files = [File(**file) for file in json.loads(metadata["files"])]
        number = file.numel()
        there = [(tensor.shape, tensor.dtype) for tensor in (vectors, file, seconds)]
        if there != [((number, dims), DTYPES[dtype]), ((number,), torch.int64), ((number, 2), torch.float64)]:
            raise ValueError("its tensors belong to another index")
        if not all(isinstance(file.path, str) for file in files):
            raise ValueError("a path is not text")
        if number and int(file.min()) < 0:
            raise ValueError("rows of files that it does not list")
        records = [Record(files[row].path, *span) for row, span in zip(file.tolist(), seconds.tolist(), strict=True)]
        return records, vectors, files, json.loads(metadata["replaces"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ZooError(f"{path} is damaged ({reason}); delete it, convert, and run zoo index again.") from error
