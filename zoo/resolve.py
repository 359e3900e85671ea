"""From class paths to classes: those that the zoo or the user registered, and no others, are imported."""

import collections.abc
import enum
import importlib
import os
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from lightning_modules.errors import ModelError
from zoo.registry import registered_class_paths

__all__ = ["refuse_foreign_classes", "resolve"]

_PLAIN = (str, bytes, int, float, complex, type(None), os.PathLike, enum.Enum)
_COLLECTIONS = (list, tuple, dict, set, frozenset)


def resolve(class_path: object) -> type:
    """The class of a path that the zoo or the user registered; anything else is refused before it is imported.

    Raises:
        ModelError: not registered, or registered and not there.
    """
    if not isinstance(class_path, str) or class_path not in registered_class_paths():
        raise ModelError(f"{_shown(class_path)} is not a class of the zoo, so it is not imported; "
                         "register it first (zoo.register) if it is yours.")  # fmt: skip
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(f"{class_path!r} is registered but cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ModelError(f"{class_path!r} is registered and no class of a module; register a LightningModule.")
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def refuse_foreign_classes(cls: type, init_args: dict) -> None:
    """Looks up the classes that arguments name in turn, at any depth: jsonargparse imports them to check arguments.

    Raises:
        ModelError: one of them is not registered.
    """
    try:
        hints = typing.get_type_hints(cls.__init__)
    except (NameError, TypeError):  # types that exist for type checkers only: any argument may be an object then
        hints = dict.fromkeys(init_args, object)
    for name, value in init_args.items():
        for class_path, arguments in _named_classes(value, takes_objects=not _is_plain(hints.get(name, Any))):
            refuse_foreign_classes(resolve(class_path), arguments)


def _named_classes(value: object, takes_objects: bool) -> Iterator[tuple[object, dict]]:
    """Class paths with their arguments in a value: mappings with that key, and strings where an object is wanted."""
    if isinstance(value, str) and takes_objects and "." in value:
        yield value, {}
    elif isinstance(value, dict) and "class_path" in value:
        arguments = value.get("init_args")
        yield value["class_path"], arguments if isinstance(arguments, dict) else {}
        value = [part for key, part in value.items() if key not in ("class_path", "init_args")]
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _named_classes(part, takes_objects)


def _is_plain(hint: object) -> bool:
    """Whether a type is made of numbers, strings, paths and collections of these, for which nothing is imported."""
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal or hint in (Any, None, ...):
        return True
    if origin in (typing.Union, types.UnionType, *_COLLECTIONS) or _is_abstract_collection(origin):
        return all(map(_is_plain, typing.get_args(hint)))
    return isinstance(origin, type) and issubclass(origin, _PLAIN)


def _is_abstract_collection(origin: object) -> bool:
    return origin is not Callable and getattr(collections.abc, getattr(origin, "__name__", ""), None) is origin
