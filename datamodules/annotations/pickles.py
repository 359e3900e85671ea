"""Pickles from elsewhere, read without running anything that they bring along."""

import io
import math
import pickle
import pickletools
from collections.abc import Collection
from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.storage.files import read_bytes

__all__ = ["read_frame", "read_pickle"]

_ALLOWED = (dict, list, str, int, float, bool)

_MOST_VALUES = 10**8
"""Values of a pickle, where one that is referred to several times counts as often: MSVD's captions have a million."""

_OPERATIONS = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}
_NUMBERS = ("FRAME", "PUT", "BINPUT", "LONG_BINPUT")

_MOST_NAMES = 100
"""Different names in the pickle of a table; pandas writes about 15."""


def read_pickle(path: str) -> object:
    """The dicts, lists, strings and numbers of a pickle, of any protocol and of Python 2 as well.

    An ordinary `pickle.load` runs what the file names. Here nothing can be named: neither classes nor functions, and
    what remains of the format is plain data, that takes no more memory than the file's length lets expect.

    Raises:
        DataError: the file is missing, damaged, or holds anything else.
    """
    content = _load(path, _PlainUnpickler)
    try:
        _count([content], {})
    except _Foreign as error:
        raise _PlainUnpickler.refusal(path, str(error)) from None
    except RecursionError:
        raise _PlainUnpickler.refusal(path, "data nested too deeply") from None
    return content


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
    frame = _load(path, _NamesUnpickler)
    try:
        return _columns_of(frame, columns)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a table as pandas 1.3 to 3 pickles it; read it with the pandas that wrote it and save it "
            "with to_csv."
        ) from error


def _load(path: str, unpickler: "type[_PlainUnpickler]") -> object:
    data = read_bytes(path)
    try:
        _check_lengths(data)
        return unpickler(io.BytesIO(data), encoding="utf-8").load()
    except _Foreign as error:
        raise unpickler.refusal(path, str(error)) from None  # the chain would show a half-read file's inside
    except Exception as error:  # damaged files fail in many ways, and a hostile one is free to choose
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path} is not a complete pickle ({reason}); download it again.") from error


class _Foreign(Exception):
    """The pickle asks for something by name."""


class _PlainUnpickler(pickle.Unpickler):
    allowed, instead = "lists, strings, dicts and numbers", "JSON"

    @classmethod
    def refusal(cls, path: str, what: str) -> DataError:
        return DataError(
            f"{path} holds {what}, but only {cls.allowed} are read from a pickle, since others can run code; take the "
            f"original file, or save your data as {cls.instead}."
        )

    def find_class(self, module: str, name: str) -> object:
        raise _Foreign(f"{module}.{name}")

    def persistent_load(self, pid: object) -> object:
        raise _Foreign("a reference to an object outside the file")


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


class _NamesUnpickler(_PlainUnpickler):
    allowed, instead = "the tables of pandas", "CSV"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names: dict[str, type[_Named]] = {}

    def find_class(self, module: str, name: str) -> type[_Named]:
        full = f"{module}.{name}"
        ours = ("builtins.slice", "__builtin__.slice", "_codecs.encode")
        if module.partition(".")[0] not in ("pandas", "numpy") and full not in ours:
            raise _Foreign(full)
        if full not in self.names:
            if len(self.names) == _MOST_NAMES:
                raise _Foreign(f"more than {_MOST_NAMES} names")
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


def _check_lengths(data: bytes) -> None:
    """Raise ValueError for a length or a place in the memo beyond the file's end.

    `pickle` makes room for it at once, and nine bytes can ask for gigabytes.
    """
    stream = io.BytesIO(data)
    while (operation := _OPERATIONS.get(stream.read(1))) and operation.name != "STOP":
        start = stream.tell()
        if operation.name == "STRING":
            stream.readline()  # pickletools takes only ASCII, and Python 2 wrote more
        elif operation.arg is not None:
            value = operation.arg.reader(stream)
            if operation.name in _NUMBERS and value > len(data):
                raise ValueError(f"{operation.name} {value} is beyond the end of the file, at byte {start - 1}")


def _count(value: list[Any] | dict[Any, Any], counts: dict[int, int | None]) -> int:
    """Values in a container, its parts' included; raise `_Foreign` for what is not plain data.

    Args:
        value: the container.
        counts: of the containers seen before, by `id`; None while what one holds is counted.
    """
    if id(value) not in counts:
        counts[id(value)] = None
        parts = value if isinstance(value, list) else [*value, *value.values()]
        strange = [part for part in parts if type(part) not in _ALLOWED]
        if strange:
            raise _Foreign(f"a {type(strange[0]).__name__}")
        counts[id(value)] = len(parts) + sum(_count(part, counts) for part in parts if isinstance(part, list | dict))
    found = counts[id(value)]
    if found is None:
        raise _Foreign("data that holds itself")
    if found > _MOST_VALUES:
        raise _Foreign(f"more than {_MOST_VALUES} values")
    return found
