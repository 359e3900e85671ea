"""Pickles from elsewhere, read without running anything that they bring along."""

import io
import pickle
import pickletools
from typing import Any

from typing_extensions import override

from datamodules.errors import DataError
from datamodules.storage.files import read_bytes

__all__ = ["Foreign", "PlainUnpickler", "load", "read_pickle"]

_ALLOWED = (dict, list, str, int, float, bool)

_MOST_VALUES = 10**8
"""Values of a pickle, where one that is referred to several times counts as often: MSVD's captions have a million."""

_OPERATIONS = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}
_NUMBERS = ("FRAME", "PUT", "BINPUT", "LONG_BINPUT")


def read_pickle(path: str) -> object:
    """The dicts, lists, strings and numbers of a pickle, of any protocol and of Python 2 as well.

    An ordinary `pickle.load` runs what the file names. Here nothing can be named: neither classes nor functions, and
    what remains of the format is plain data, that takes no more memory than the file's length lets expect.

    Raises:
        DataError: the file is missing, damaged, or holds anything else.
    """
    content = load(path, PlainUnpickler)
    try:
        _count([content], {})
    except Foreign as error:
        raise PlainUnpickler.refusal(path, str(error)) from None
    except RecursionError:
        raise PlainUnpickler.refusal(path, "data nested too deeply") from None
    return content


def load(path: str, unpickler: "type[PlainUnpickler]") -> object:
    """What a pickle holds, as far as the unpickler lets it; raise `DataError` for a file that is damaged or refused."""
    data = read_bytes(path)
    try:
        _check_lengths(data)
        return unpickler(io.BytesIO(data), encoding="utf-8").load()
    except Foreign as error:
        raise unpickler.refusal(path, str(error)) from None  # the chain would show a half-read file's inside
    except Exception as error:  # damaged files fail in many ways, and a hostile one is free to choose
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{path} is not a complete pickle ({reason}); download it again.") from error


class Foreign(Exception):
    """The pickle asks for something by name."""


class PlainUnpickler(pickle.Unpickler):
    """Refuses whatever a pickle names."""

    allowed, instead = "lists, strings, dicts and numbers", "JSON"

    @classmethod
    def refusal(cls, path: str, what: str) -> DataError:
        """The error of a file that holds something else than is allowed."""
        return DataError(
            f"{path} holds {what}, but only {cls.allowed} are read from a pickle, since others can run code; take the "
            f"original file, or save your data as {cls.instead}."
        )

    @override
    def find_class(self, module: str, name: str) -> object:
        raise Foreign(f"{module}.{name}")

    @override
    def persistent_load(self, pid: object) -> object:
        raise Foreign("a reference to an object outside the file")


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
    """Values in a container, its parts' included; raise `Foreign` for what is not plain data.

    Args:
        value: the container.
        counts: of the containers seen before, by `id`; None while what one holds is counted.
    """
    if id(value) not in counts:
        counts[id(value)] = None
        parts = value if isinstance(value, list) else [*value, *value.values()]
        strange = [part for part in parts if type(part) not in _ALLOWED]
        if strange:
            raise Foreign(f"a {type(strange[0]).__name__}")
        counts[id(value)] = len(parts) + sum(_count(part, counts) for part in parts if isinstance(part, list | dict))
    found = counts[id(value)]
    if found is None:
        raise Foreign("data that holds itself")
    if found > _MOST_VALUES:
        raise Foreign(f"more than {_MOST_VALUES} values")
    return found
