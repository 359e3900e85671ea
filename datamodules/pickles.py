"""Pickles from elsewhere, read without running anything that they bring along."""

import io
import pickle
from typing import Any

from datamodules.errors import DataError
from datamodules.files import read_bytes

__all__ = ["read_pickle"]

_ALLOWED = (dict, list, str, int, float)


def read_pickle(path: str) -> Any:
    """The dicts, lists, strings and numbers of a pickle, of any protocol and of Python 2 as well.

    An ordinary `pickle.load` runs what the file names. Here nothing can be named: neither classes nor functions, and
    what remains of the format is plain data.

    Raises:
        DataError: the file is missing, damaged, or holds anything else.
    """
    file = io.BytesIO(read_bytes(path))
    try:
        content = _PlainUnpickler(file, encoding="utf-8").load()
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


def _first_strange(content: Any) -> str | None:
    """The name of a type that is not allowed, of what is inside; containers may hold each other, so each is entered
    once."""
    waiting, entered = [content], set()
    while waiting:
        value = waiting.pop()
        if type(value) not in (*_ALLOWED, bool):
            return f"a {type(value).__name__}"
        if isinstance(value, dict | list) and id(value) not in entered:
            entered.add(id(value))
            waiting.extend(value)
            if isinstance(value, dict):
                waiting.extend(value.values())
    return None
