"""From a name or a config to a module, with or without weights."""

import difflib
import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

import hub
from hub.checkpoint import CONFIG, WEIGHTS, Checkpoint, check_state_dict, read_config
from hub.convert.videomamba import read_official, to_zoo
from hub.lightning_ckpt import read_lightning
from lightning_modules.base import BaseModule
from lightning_modules.errors import ModelError
from zoo.errors import ZooError
from zoo.registry import Entry, info, registered_class_paths

__all__ = ["convert", "create", "load", "normalise"]

REPOSITORY = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# Arguments that change the length of the position embeddings and nothing else: loading interpolates.
RESIZABLE = ("num_frames", "image_size")


def create(name: str, **overrides: Any) -> BaseModule:
    """Builds a registered model with fresh weights, in training mode.

    Args:
        name: registered name or alias.
        overrides: arguments of the module's constructor, e.g. ``num_classes=12``. Class names are dropped where the number
            of classes changes and no others are given.

    Raises:
        UnknownModelError: no such name; the message suggests the nearest ones.
        ModelError: an argument the module does not have, or of a wrong type or value.
    """
    entry = info(name)
    return _instantiate({"class_path": entry.class_path, "init_args": entry.init_args}, overrides)


def load(source: str | os.PathLike, *, checkpoint: str | os.PathLike | None = None, **overrides: Any) -> BaseModule:
    """Loads a model with its weights, in eval mode.

    Args:
        source: a registered name, a folder in the hub format, a Lightning ``.ckpt`` of a module of the zoo, or a Hub repository
            ``org/repo`` / ``hf://org/repo``, with ``@revision`` if wanted.
        checkpoint: a file on disk to take the weights from (official, safetensors or ``.ckpt``); `source` then is the
            registered name they belong to, and nothing is downloaded.
        overrides: arguments of the module's constructor. Position embeddings are interpolated where ``num_frames`` or
            ``image_size`` differ from the checkpoint; other changes must fit the weights.

    Raises:
        UnknownModelError: no such name, folder or file.
        HubError: the weights cannot be fetched or read, or belong to another architecture.
        ModelError: an override does not fit the module.
    """
    if checkpoint is not None:
        entry = info(str(source))
        found, resize = _read_entry(entry, Path(checkpoint))
    else:
        found, resize = _read_source(source)
    module = _instantiate(found.config, overrides)
    state_dict = found.state_dict
    if resize or any(key in overrides for key in RESIZABLE):
        state_dict = module.adapt_state_dict(state_dict)
    check_state_dict(state_dict, module.state_dict(), str(checkpoint or source))
    module.load_state_dict(state_dict)
    return module.eval()


def convert(path: str | os.PathLike, folder: str | os.PathLike, name: str | None = None) -> Path:
    """Writes a checkpoint as a folder in the hub format: safetensors weights and config.json.

    Args:
        path: an official file (then `name` is needed), or a Lightning ``.ckpt`` of a module of the zoo.
        folder: where to write; see `hub.save`.
        name: registered name of the model the weights belong to.

    Raises:
        HubError: every tensor has to be used up; keys and shapes that do not fit are listed.
    """
    path = Path(path)
    if name is None:
        if path.suffix != ".ckpt":
            raise ZooError(f"{path} does not say which model it is; name it: zoo convert {path} {folder} --name MODEL.")
        checkpoint = read_lightning(path)
        return hub.checkpoint.write(checkpoint._replace(config=normalise(checkpoint.config)), folder)
    return hub.save(load(name, checkpoint=path), folder)


def normalise(config: dict) -> dict:
    """Checks a config and fills in the defaults of arguments it leaves out, so that two configs can be compared.

    Raises:
        ModelError: a class that is not registered, an unknown argument, or a value of a wrong type.
    """
    unknown = set(config) - {"class_path", "init_args"}
    if unknown or "class_path" not in config:
        raise ModelError(
            f"A model is class_path and init_args; this config has {', '.join(sorted(config)) or 'nothing'}."
        )
    cls = _resolve(config["class_path"])
    init_args = _check_arguments(cls, config.get("init_args") or {}, include_training=False)
    return {"class_path": config["class_path"], "init_args": init_args}


def _resolve(class_path: str) -> type[BaseModule]:
    """The class of a path that the zoo or the user registered; anything else is refused before it is imported."""
    if class_path not in registered_class_paths():
        raise ModelError(f"{class_path!r} is not a class of the zoo, so it is not imported; "
                         "register it first (zoo.register) if it is yours.")  # fmt: skip
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _check_arguments(cls: type, arguments: dict, include_training: bool) -> dict:
    """Arguments with their types checked and the defaults filled in."""
    parameters = inspect.signature(cls).parameters
    training_only = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    known = [n for n in parameters if include_training or n not in training_only]
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}."
            raise ModelError(f"{cls.__name__} has no argument {name!r}: {hint}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip=training_only - set(arguments))
    try:
        checked = parser.parse_object({k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()})
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"The arguments of {cls.__name__} do not fit: {reason}") from error
    return {k: list(v) if isinstance(v, tuple) else v for k, v in checked.as_dict().items()}


def _instantiate(config: dict, overrides: dict | None = None) -> BaseModule:
    cls = _resolve(config["class_path"])
    init_args, overrides = dict(config["init_args"]), overrides or {}
    if overrides.get("num_classes", init_args.get("num_classes")) != init_args.get("num_classes"):
        init_args.pop("class_names", None)
    return cls(**_check_arguments(cls, {**init_args, **overrides}, include_training=True))


def _read_source(source: str | os.PathLike) -> tuple[Checkpoint, bool]:
    """What a source holds, and whether its position embeddings have to be resized."""
    path, text = Path(source), str(source)
    if path.is_dir():
        return hub.read(path), False
    if path.is_file():
        if path.suffix == ".ckpt":
            return read_lightning(path), False
        raise ZooError(f"{path} does not say which model it is; name it: zoo.load(NAME, checkpoint={text!r}).")
    if (
        isinstance(source, Path)
        or text.startswith((".", "/", "~"))
        or text.endswith(("/", ".ckpt", ".pth", ".safetensors"))
    ):
        raise ZooError(f"{text} does not exist; pass a model folder, a .ckpt file or a registered name.")
    if repository := REPOSITORY.fullmatch(text):
        repo_id, revision = repository["repo"], repository["revision"]
        normalise(read_config(hub.pull(repo_id, CONFIG, revision)))  # refuses a foreign class before the large download
        return hub.read(hub.pull(repo_id, WEIGHTS, revision).parent), False
    return _read_entry(info(text))


def _read_entry(entry: Entry, file: Path | None = None) -> tuple[Checkpoint, bool]:
    """Config and weights of an entry, from `file` where given, else from where the registry says."""
    config = {"class_path": entry.class_path, "init_args": entry.init_args}
    if file is None:
        if entry.weights is None:
            raise ZooError(f"{entry.name} has no released weights; zoo.create({entry.name!r}) builds it untrained.")
        if entry.weights.folder is not None:
            return hub.read(entry.weights.folder), False
        file = hub.pull(entry.weights.repo_id, entry.weights.filename, entry.weights.revision)
    if file.is_dir():
        state_dict = hub.read(file).state_dict
    elif file.suffix == ".ckpt":
        state_dict = read_lightning(file).state_dict
    else:
        state_dict = to_zoo(read_official(file))
    return Checkpoint(config, state_dict), entry.meta.get("stored_frames") is not None
