"""Check configs from outside: the classes they may name, and the arguments of these.

Only classes that the zoo or the user registered are imported.
"""

import collections.abc
import enum
import importlib
import os
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from lightning_modules.checks import constructors
from lightning_modules.errors import ModelError
from zoo.checks import constructor_parameters
from zoo.errors import cut, hint, shown
from zoo.registry import registered_class_paths

__all__ = ["check_arguments", "current_arguments", "normalise", "normalise_of", "resolve"]

_PLAIN = (str, bytes, int, float, complex, type(None), os.PathLike, enum.Enum)
_COLLECTIONS = (list, tuple, dict, set, frozenset)


def resolve(class_path: object) -> type:
    """The class of a path that the zoo or the user registered; anything else is refused before it is imported.

    Raises:
        ModelError: not registered, or registered and not there.
    """
    if not isinstance(class_path, str) or class_path not in registered_class_paths():
        raise ModelError(f"{shown(class_path)} is not a class of the zoo, so it is not imported; "
                         "register it first (zoo.register) if it is yours.")  # fmt: skip
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(f"{class_path!r} is registered but cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ModelError(f"{class_path!r} is registered and no class of a module; register a LightningModule.")
    return found


def normalise(config: dict[str, Any]) -> dict[str, Any]:
    """Check a config and fill in the defaults of arguments it leaves out, so that two configs can be compared.

    Raises:
        ModelError: a class that is not registered, an unknown argument, or a value of a wrong type.
    """
    if not isinstance(config, dict) or "class_path" not in config or set(config) - {"class_path", "init_args"}:
        keys = ", ".join(sorted(map(str, config))[:9]) if isinstance(config, dict) else type(config).__name__
        raise ModelError(f"A model is class_path and init_args; this config has {keys or 'nothing'}.")
    init_args = config.get("init_args")
    init_args = {} if init_args is None else init_args
    if not isinstance(init_args, dict):
        raise ModelError(f"init_args maps arguments to values; this config has {str(init_args)[:80]!r}.")
    cls = resolve(config["class_path"])
    refuse_foreign_classes(cls, init_args)
    init_args = current_arguments(cls, init_args)
    return {"class_path": config["class_path"], "init_args": check_arguments(cls, init_args, include_training=False)}


def current_arguments(cls: type, init_args: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a config of an earlier release under the names that they have now; others as they are."""
    return cls.current_arguments(init_args) if hasattr(cls, "current_arguments") else init_args


def normalise_of(where: object, config: dict[str, Any]) -> dict[str, Any]:
    """`normalise`, with the file at fault in the message."""
    try:
        return normalise(config)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error


def check_arguments(cls: type, arguments: dict[str, Any], include_training: bool) -> dict[str, Any]:
    """Arguments with their types checked and the defaults filled in."""
    parameters = constructor_parameters(cls)
    training_only = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    known = [n for n in parameters if include_training or n not in training_only]
    for name in arguments:
        if name not in known:
            nearest = hint(name, known, f"it takes {', '.join(known)}.")
            raise ModelError(f"{cls.__name__} has no argument {name!r}: {nearest}")
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    hints = _hints_of(cls) or {}
    # jsonargparse takes a millisecond for each entry of a list.
    exact = {name: value for name, value in arguments.items() if name in hints and _is_exactly(value, hints[name])}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip=(training_only - set(arguments)) | set(exact))
    try:
        checked = parser.parse_object({k: v for k, v in arguments.items() if k not in exact}).as_dict()
    except Exception as error:  # jsonargparse passes on what a user's own types raise
        reason = cut(" ".join(str(error).split()), 500)
        raise ModelError(f"The arguments of {cls.__name__} do not fit: {reason}") from error
    checked = {k: list(v) if isinstance(v, tuple) else v for k, v in checked.items()} | exact
    return {name: checked[name] for name in parameters if name in checked}


def _hints_of(cls: type) -> dict[str, Any] | None:
    """Types of the constructor's arguments; None where some exist for type checkers only."""
    hints: dict[str, Any] = {}
    for base in constructors(cls):
        try:
            hints = typing.get_type_hints(base.__init__) | hints  # type: ignore[misc]  # a class
        except (NameError, TypeError):
            return None
    return hints


def _is_exactly(value: object, hint: object) -> bool:
    """Whether a value of numbers, strings, None and lists has the annotated type, with nothing to convert."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_exactly(value, part) for part in parts)
    if origin in (list, Sequence):
        return type(value) is list and all(_is_exactly(part, parts[0]) for part in value)
    return hint in (str, int, float, bool, type(None)) and type(value) is hint


def refuse_foreign_classes(cls: type, init_args: dict[str, Any]) -> None:
    """Resolve the classes that arguments name, at any depth: jsonargparse imports them to check arguments.

    Raises:
        ModelError: one of them is not registered.
    """
    hints = _hints_of(cls)
    if hints is None:  # any argument may be an object then
        hints = dict.fromkeys(init_args, object)
    for name, value in init_args.items():
        for class_path, arguments in _named_classes(value, takes_objects=not _is_plain(hints.get(name, Any))):
            refuse_foreign_classes(resolve(class_path), arguments)


def _named_classes(value: object, takes_objects: bool) -> Iterator[tuple[object, dict[str, Any]]]:
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
