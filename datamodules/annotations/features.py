"""Vectors over time of videos, extracted before: all of them in one table, or a file for each."""

import importlib.util
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datamodules.errors import DataError
from datamodules.storage.files import is_url, join, read_bytes, split
from datamodules.video.opening import DecodeError
from datamodules.video.sampling import range_in

if TYPE_CHECKING:
    import pyarrow

__all__ = ["FeatureTable", "features_between", "is_table", "width_of"]

_COLUMNS = ["path", "start", "end", "features"]


def is_table(path: str) -> bool:
    """Whether it is the name of a table, and not of a folder of files."""
    return path.endswith((".parquet", ".lance"))


class FeatureTable:
    """A table that `zoo extract` wrote, in memory that loader processes share.

    It takes 0.8 GB for 360,000 vectors of 576 numbers.

    Args:
        path: of the table, .parquet or .lance, local or a URL.

    Attributes:
        features: float32 (N, width).
        seconds: float64 (N, 2), first and last moment that each was made of.
        places: rows of each video, in order of time, by the name of its file without ending.
        twice: names that several files have.

    Raises:
        DataError: it cannot be read, or has other columns.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        rows = _read(path)
        try:
            paths, vectors = rows.column("path").to_pylist(), rows.column("features").combine_chunks()
            features = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), _width_of(vectors, path))
            seconds = np.stack([rows.column(name).to_numpy() for name in ("start", "end")], axis=1)
        except (AttributeError, KeyError, ValueError) as error:
            raise _other(path) from error
        files = sorted(set(paths))
        number = {file: place for place, file in enumerate(files)}
        # Of windows that overlap, vectors of single frames come in the order of their middles.
        order = np.lexsort((seconds.mean(axis=1), [number[file] for file in paths]))
        self.features = torch.from_numpy(features[order].astype(np.float32, copy=False)).share_memory_()
        self.seconds = torch.from_numpy(seconds[order]).share_memory_()
        ends = np.cumsum(np.bincount([number[file] for file in paths], minlength=len(files)))
        names = [Path(file.rpartition("!")[2]).stem for file in files]
        self.twice = {name for name, count in Counter(names).items() if count > 1}
        self.places = {name: (int(end) - int(count), int(end)) for name, end, count in
                       zip(names, ends, np.diff(ends, prepend=0), strict=True)}  # fmt: skip

    def address(self, name: str) -> str:
        """What stands for a video's rows in batches and messages."""
        return join(self.path, name)

    def has(self, address: str) -> bool:
        """Whether it has rows of a video."""
        return split(address)[1] in self.places


def features_between(
    path: str, span: tuple[float, float], *, ends: bool = False, table: FeatureTable | None = None
) -> Tensor | None:
    """The vectors (n, width) of a stretch of a video, float32; None without any.

    Args:
        path: file .safetensors with ``features`` (n, width) and ``seconds`` (n, 2), or an address of the table.
        span: first and last second.
        ends: a vector counts where its window ends within the span, and not where its middle lies.
        table: the table of the address.

    Raises:
        DecodeError: they cannot be read.
    """

    def within(seconds: NDArray[np.float64]) -> tuple[int, int] | None:
        return range_in(seconds[:, 1] if ends else seconds.mean(axis=1), span, displayed=False)

    if table is not None:
        place = table.places.get(split(path)[1])
        if place is None:
            raise DecodeError(f"{path} has no rows in the table; extract them.")
        seen = within(table.seconds[slice(*place)].numpy())
        return None if seen is None else table.features[place[0] + seen[0] : place[0] + seen[1] + 1]
    try:
        with safe_open(path, "pt") as file:
            seen = within(file.get_tensor("seconds").double().numpy())
            return None if seen is None else file.get_slice("features")[seen[0] : seen[1] + 1].float()
    except (SafetensorError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DecodeError(f"{path} cannot be read as features ({reason}); extract them again.") from error


def width_of(path: str) -> int | None:
    """Numbers of a vector in a file; None where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            shape: list[int] = file.get_slice("features").get_shape()
            return shape[1]
    except (SafetensorError, OSError, KeyError):
        return None


def _read(path: str) -> "pyarrow.Table":
    """Rows with vectors."""
    module = "pyarrow" if path.endswith(".parquet") else "lancedb"
    if importlib.util.find_spec(module) is None:
        raise DataError(f"{path} needs {module}; install it: pip install 'video-mamba-zoo[search]'.")
    if not is_url(path) and not os.path.exists(path):
        raise DataError(f"There is no table of features {path}; write it with zoo extract.")
    try:
        if module == "pyarrow":
            import pyarrow as pa
            from pyarrow import parquet

            file = pa.BufferReader(read_bytes(path)) if is_url(path) else path
            rows = parquet.read_table(file, columns=_COLUMNS)
        else:
            import lancedb

            # Loader processes are forked later and do not use it.
            warnings.filterwarnings("ignore", "lancedb fork support")
            folder, name = split(path)
            table = lancedb.connect(folder or ".").open_table(name.removesuffix(".lance"))
            rows = table.search().select(_COLUMNS).limit(max(table.count_rows(), 1)).to_arrow()
    except DataError:
        raise
    except Exception as error:  # of two libraries with many types of their own
        raise _other(path) from error
    import pyarrow.compute as pc

    return rows.filter(pc.is_valid(rows.column("features")))


def _width_of(vectors: "pyarrow.Array", path: str) -> int:
    """Length of the vectors of a table, which Parquet has as lists; 0 where they differ."""
    import pyarrow as pa

    if pa.types.is_large_list(vectors.type):
        widths: list[int] = vectors.value_lengths().unique().to_pylist()
        return widths[0] if len(widths) == 1 else 0
    if not pa.types.is_fixed_size_list(vectors.type):
        raise _other(path)
    width: int = vectors.type.list_size
    return width


def _other(path: str) -> DataError:
    return DataError(f"{path} cannot be read as a table of features; write it with zoo extract.")
