"""Pickles from elsewhere, read without running anything that they bring along."""

import io
import pickle
import pickletools
from typing import Any

from datamodules.errors import DataError
from datamodules.storage.files import read_bytes

__all__ = ["read_pickle"]

_ALLOWED = (dict, list, str, int, float, bool)

_MOST_VALUES = 10**8
"""Values of a pickle, where one that is referred to several times counts as often: MSVD's captions have a million."""

_OPERATIONS = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}
_NUMBERS = ("FRAME", "PUT", "BINPUT", "LONG_BINPUT")


def read_pickle(path: str) -> Any:
    """The dicts, lists, strings and numbers of a pickle, of any protocol and of Python 2 as well.

    An ordinary `pickle.load` runs what the file names. Here nothing can be named: neither classes nor functions, and
    what remains of the format is plain data, that takes no more memory than the file's length lets expect.

    Raises:
        DataError: the file is missing, damaged, or holds anything else.
    """
    data = read_bytes(path)
    try:
        _check_lengths(data)
        content = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except _Foreign as error:
        raise _refusal(path, str(error)) from None  # the chain would show a half-read file's inside
    except Exception as error:  # damaged files fail in many ways, and a hostile one is free to choose
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path} is not a complete pickle ({reason}); download it again.") from error
    strange = _first_strange(content)
    if strange is not None:
        raise _refusal(path, strange)
    return content


class _Foreign(Exception):
    """The pickle asks for something by name."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise _Foreign(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Foreign("a reference to an object outside the file")


def _refusal(path: str, what: str) -> DataError:
    return DataError(
        f"{path} holds {what}, but only lists, strings, dicts and numbers are read from a pickle, since others can run "
        "code; take the original file, or save your data as JSON."
    )


def _check_lengths(data: bytes) -> None:
    """Raises ValueError for a length or a place in the memo beyond the file's end: `pickle` makes room for it at once,
    and nine bytes can ask for gigabytes."""
    stream = io.BytesIO(data)
    while (operation := _OPERATIONS.get(stream.read(1))) and operation.name != "STOP":
        start = stream.tell()
        if operation.name == "STRING":
            stream.readline()  # pickletools takes only ASCII, and Python 2 wrote more
        elif operation.arg is not None:
            value = operation.arg.reader(stream)
            if operation.name in _NUMBERS and value > len(data):
                raise ValueError(f"{operation.name} {value} is beyond the end of the file, at byte {start - 1}")


def _first_strange(content: Any) -> str | None:
    """What is not plain data: the name of a type that is not allowed, or data that holds itself, or the same so many
    times over that walking through it does not end."""
    counts: dict[int, int | None] = {}  # values in each container; None while what it holds is looked at
    waiting = [[content]]
    while waiting:
        value = waiting[-1]
        parts = value if isinstance(value, list) else [*value, *value.values()]
        inner = [part for part in parts if isinstance(part, list | dict)]
        if id(value) not in counts:
            counts[id(value)] = None
            strange = [part for part in parts if type(part) not in _ALLOWED]
            if strange:
                return f"a {type(strange[0]).__name__}"
            if any(counts.get(id(part), 0) is None for part in inner):
                return "data that holds itself"
            waiting += [part for part in inner if id(part) not in counts]
            continue
        waiting.pop()
        if counts[id(value)] is None:
            counts[id(value)] = len(parts) + sum(counts[id(part)] for part in inner)
            if counts[id(value)] > _MOST_VALUES:
                return f"more than {_MOST_VALUES} values"
    return None
