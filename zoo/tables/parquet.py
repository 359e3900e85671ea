"""Tables as Parquet files. Vectors are lists there, since Arrow before 26 loses a missing one of fixed length."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

__all__ = ["read_parquet", "write_parquet"]


def write_parquet(rows: "pyarrow.Table", path: Path) -> None:
    """Write a table with its metadata; raise an `ArrowException` or `OSError` where that fails."""
    import pyarrow as pa
    from pyarrow import parquet

    for place, field in enumerate(rows.schema):
        if pa.types.is_fixed_size_list(field.type):
            column = rows.column(place).combine_chunks()
            there = column.is_valid()
            missing = ~there.to_numpy(zero_copy_only=False)
            ends = np.cumsum(np.where(missing, 0, field.type.list_size))
            offsets, values = pa.array(np.append(0, ends).astype(np.int64)), column.filter(there).flatten()
            lists = pa.LargeListArray.from_arrays(offsets, values, mask=pa.array(missing))
            rows = rows.set_column(place, field.with_type(lists.type), lists)
    parquet.write_table(rows, path, compression="zstd")


def read_parquet(path: str, types: Mapping[str, Any]) -> "pyarrow.Table":
    """Read such a file.

    Args:
        path: the file.
        types: columns with types of PyArrow; vectors among them get their fixed length back, whichever it is. Columns
            of other names stay as they are.

    Raises:
        ArrowException, OSError, ValueError: it cannot be read, or the vectors of a column have different lengths.
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows = parquet.read_table(path)
    for place, field in enumerate(rows.schema):
        if pa.types.is_large_list(field.type) and pa.types.is_fixed_size_list(types.get(field.name, field.type)):
            column = rows.column(place).combine_chunks()
            there = column.is_valid().to_numpy(zero_copy_only=False)
            values = column.flatten().to_numpy(zero_copy_only=False)
            count = there.sum()
            width = len(values) // count if count else types[field.name].list_size
            filled = np.zeros((len(there), width), values.dtype)
            filled[there] = values.reshape(count, width)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(filled.ravel()), width, mask=pa.array(~there))
            rows = rows.set_column(place, field.with_type(vectors.type), vectors)
    return rows
