"""Columns of tables that pandas pickled, read without pandas and without running anything."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from typing_extensions import override

from datamodules.annotations.pickles import Foreign, PlainUnpickler, load
from datamodules.errors import DataError

__all__ = ["read_frame"]

_MOST_NAMES = 100
"""Different names in the pickle of a table; pandas writes about 15."""


def read_frame(path: str, columns: Collection[str]) -> dict[str, list[Any]]:
    """Columns of texts out of a table that pandas pickled (releases 1.3 to 3), without pandas.

    Names in the file are kept as names: no class is looked up, nothing is called. The pieces that pandas would put
    together are put together here.

    Args:
        path: the file.
        columns: which to read; the index counts as a column where it has a name.

    Returns:
        Those of `columns` that there are, each with as many entries as the table has rows; an entry may be anything.

    Raises:
        DataError: the file is missing or damaged, names what is not a part of pandas' tables, or holds something else.
    """
    frame = load(path, _NamesUnpickler)
    try:
        return _columns_of(frame, columns)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a table as pandas 1.3 to 3 pickles it; read it with the pandas that wrote it and save it "
            "with to_csv."
        ) from error


class _Named:
    """Stands for what a pickle names: keeps the arguments and the state that it was to have, and does nothing."""

    name = ""
    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any) -> "_Named":
        made = object.__new__(cls)
        made.args = args
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state


class _NamesUnpickler(PlainUnpickler):
    allowed, instead = "the tables of pandas", "CSV"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names: dict[str, type[_Named]] = {}

    @override
    def find_class(self, module: str, name: str) -> type[_Named]:
        full = f"{module}.{name}"
        ours = ("builtins.slice", "__builtin__.slice", "_codecs.encode")
        if module.partition(".")[0] not in ("pandas", "numpy") and full not in ours:
            raise Foreign(full)
        if full not in self.names:
            if len(self.names) == _MOST_NAMES:
                raise Foreign(f"more than {_MOST_NAMES} names")
            self.names[full] = type("_Named", (_Named,), {"name": name})
        return self.names[full]


def _columns_of(frame: object, wanted: Collection[str]) -> dict[str, list[Any]]:
    if not isinstance(frame, _Named) or frame.name != "DataFrame":
        raise TypeError("not a DataFrame")
    blocks, (columns, index) = frame.state["_mgr"].args
    names, rows = _entries_of(columns), _array_of(index)
    found: dict[str, list[Any]] = {}
    if rows is not None and index.args[1]["name"] in wanted:
        found[index.args[1]["name"]] = rows[1]
    for block in blocks:
        values, place = _array_of(block.args[0]), block.args[1]
        if values is None:
            continue  # numbers, times, categories
        shape, entries = values
        count = shape[-1]
        numbers = range(*slice(*place.args).indices(len(names))) if place.name == "slice" else _entries_of(place)
        if len(numbers) * count != len(entries):
            raise ValueError("a block of another size")
        for row, number in enumerate(numbers):
            if names[number] in wanted:
                found[names[number]] = entries[row * count : (row + 1) * count]
    if len({len(entries) for entries in found.values()}) > 1:
        raise ValueError("columns of different lengths")
    return found


def _entries_of(part: _Named) -> list[Any]:
    array = _array_of(part)
    if array is None:
        raise TypeError("an array of another kind")
    return array[1]


def _array_of(part: _Named) -> tuple[tuple[int, ...], list[Any]] | None:
    """Shape and entries, in order of C, of an index, or an array of objects or int64; None for others."""
    if part.name == "_new_Index":
        data = part.args[1].get("data")
        return None if data is None else _array_of(data)
    if part.name == "__pyx_unpickle_NDArrayBacked":  # a string column of pandas 3
        return _array_of(next(piece for piece in part.state if getattr(piece, "name", "") == "_reconstruct"))
    if part.name == "_reconstruct":  # an array's state: version, shape, type, order, content
        _, shape, kind, fortran, content = part.state
    elif part.name == "_frombuffer":
        content, kind, shape, order = part.args
        fortran = order == "F"
    else:
        return None
    if kind.args[0] in ("O8", "O4", "O"):
        entries = content
    elif kind.args[0] == "i8" and kind.state[1] == "<" and (len(shape) == 1 or not fortran):
        if isinstance(content, _Named):  # protocol 2 has no bytes
            content = content.args[0].encode("latin-1")
        entries = np.frombuffer(content, "<i8").tolist()
    else:
        return None
    sized = all(type(side) is int and side >= 0 for side in shape) and type(entries) is list
    if not sized or math.prod(shape) != len(entries):
        raise ValueError("an array of another size")
    return shape, entries
