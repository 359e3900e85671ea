"""Checks of a config beyond those of jsonargparse, and short forms of its and Lightning's error messages.

Types of sections and the classes they name are checked before anything is called: parsing and building call whatever
a ``class_path`` names.
"""

import dataclasses
import importlib
import inspect
import itertools
import math
import os
import re
import typing
from argparse import ArgumentError
from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

import datamodules
import lightning_modules
from lightning_modules.base import BaseModule
from lightning_modules.checks import constructors
from lightning_modules.training.optim import Optim
from zoo.errors import ZooError, cut, hint, shown

__all__ = [
    "check_built",
    "check_config",
    "check_keys",
    "check_processes",
    "concise",
    "constructor_parameters",
    "explain",
    "import_class",
]

_BASES = {"model": (BaseModule, lightning_modules), "data": (LightningDataModule, datamodules)}
_CLASS_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
# Counts and rates of the trainer that Lightning takes as they are, with the least and the greatest that make sense.
_TRAINER_RANGES = {
    "max_epochs": (-1, 10**9),
    "min_epochs": (0, 10**9),
    "max_steps": (-1, 10**12),
    "min_steps": (0, 10**12),
    "num_nodes": (1, 10**5),
    "accumulate_grad_batches": (1, 10**6),
    "check_val_every_n_epoch": (1, 10**9),
    "log_every_n_steps": (0, 10**9),
    "num_sanity_val_steps": (-1, 10**9),
    "gradient_clip_val": (0, math.inf),
    "val_check_interval": (1e-6, 10**9),
    "fast_dev_run": (0, 10**9),
    "limit_train_batches": (0, 10**12),
    "limit_val_batches": (0, 10**12),
    "limit_test_batches": (0, 10**12),
    "limit_predict_batches": (0, 10**12),
    "reload_dataloaders_every_n_epochs": (0, 10**9),
}
_OPTIM = [field.name for field in dataclasses.fields(Optim)]
# How the arguments are written that stood among the model's own before they became one group.
_MOVED = {name: name for name in _OPTIM if name != "name"} | {
    "clip_lr": "lr_of.clip",
    "warmup": "warmup_share",
    "decay_state_matrix": "decayed state_matrices",
    "decay_embeddings": "decayed embeddings",
    "official_decay": "decayed norms",
}
_NAME_A_CLASS = "name a class with its package, such as lightning_modules.VideoClassifier or datamodules.VideoFolder"
_MOST_PROCESSES = 1024  # of one machine


def check_config(config: dict[str, Any]) -> None:
    """Check the types of sections, arguments and class paths of a config file.

    Raises:
        ZooError: one of them is of another type than it has to be.
    """
    if config.get("config") not in (None, []):
        raise ZooError("config is set in a config file, which cannot name another one; use include.")
    for section in ("model", "data"):
        value = config.get(section)
        if not isinstance(value, str | dict | None):
            raise ZooError(f"{section} is {shown(value)}; it takes class_path and init_args.")
        unknown = [key for key in value or () if key not in ("class_path", "init_args", "dict_kwargs")]
        if isinstance(value, dict) and unknown:
            raise ZooError(f"{section} has no key {unknown[0]!r:.80}; it takes class_path and init_args.")
        if isinstance(value, dict) and not isinstance(value.get("init_args"), dict | None):
            raise ZooError(f"{section}.init_args is {shown(value['init_args'])}; it maps arguments to values.")
    if not isinstance(config.get("trainer", {}), dict):
        raise ZooError(f"trainer is {shown(config['trainer'])}; it maps arguments of the Trainer to values.")
    for where, mapping in _mappings(config, ""):
        if "class_path" not in mapping:
            continue
        path = mapping["class_path"]
        if not isinstance(path, str) or not _CLASS_PATH.fullmatch(path):
            raise ZooError(f"{where}class_path is {shown(path)}; {_NAME_A_CLASS}.")


def check_keys(config: dict[str, Any], arguments: list[str]) -> None:
    """Names misspelled keys of the model, data and trainer sections, which jsonargparse reports in terms of types.

    Raises:
        ZooError: a class that is not there or of another kind; an argument that it does not have, with the nearest one
            it has.
    """
    for section in ("model", "data", "trainer"):
        prefix = f"--{section}."
        flags = [a[len(prefix) :].partition("=")[0] for a in arguments if a.startswith(prefix)]
        value = config.get(section) or {}
        cls: type
        if section == "trainer":
            cls, given = Trainer, value
        else:
            given = value.get("init_args") or {} if isinstance(value, dict) else {}
            class_path = value.get("class_path") if isinstance(value, dict) else value
            flag = next(
                (b for a, b in itertools.pairwise(arguments) if a in (f"--{section}", f"{prefix}class_path")), None
            )
            joined = next((a.partition("=")[2] for a in arguments if a.startswith(f"--{section}=")), None)
            named = flag or joined or class_path
            if not named:
                continue
            cls = import_class(named, section)
            flags = [f.removeprefix("init_args.") for f in flags]
        known = list(constructor_parameters(cls))
        in_optim = _OPTIM if section == "model" and "optim" in known else []
        for name in [*given, *(f.split(".")[0].rstrip("+") for f in flags)]:
            if name in known or name in ("help", "class_path", "init_args", "dict_kwargs"):
                continue
            if name in (_MOVED if in_optim else ()):
                raise ZooError(f"model.{name} is part of model.optim: write --model.optim.{_MOVED[name]}, or in a "
                               f"config optim with {_MOVED[name].partition('.')[0]} below it.")  # fmt: skip
            if name == "checkpoint_blocks" and "activations" in known:
                raise ZooError("model.checkpoint_blocks is model.activations now: write --model.activations memory to "
                               "recompute all blocks, or leave both out.")  # fmt: skip
            group, entry = getattr(cls, "moved_arguments", {}).get(name, (None, None))
            if group is not None:
                raise ZooError(f"{section}.{name} is part of {section}.{group}: write --{section}.{group}.{entry}, or "
                               f"in a config {group} with {entry} below it.")  # fmt: skip
            whole = {n.rpartition(".")[2]: n for n in [*(f"optim.{n}" for n in in_optim), *known]}
            nearest = hint(str(name), whole, f"it takes {', '.join(known)}.", written=whole)
            raise ZooError(f"{section}.{name}: {cls.__name__} has no argument {name!r}: {nearest}")
        optim = given.get("optim") if in_optim else None
        inner = [f.split(".")[1].rstrip("+") for f in flags if in_optim and f.startswith("optim.")]
        for name in [*(optim if isinstance(optim, dict) else ()), *inner]:
            if name not in in_optim:
                nearest = hint(str(name), _OPTIM, f"it takes {', '.join(_OPTIM)}.")
                raise ZooError(f"model.optim has no entry {name!r:.80}: {nearest}")


def import_class(class_path: str, section: str) -> type:
    """The model's or the DataModule's class of a path, or of a name in our package.

    Raises:
        ZooError: it is not there, or something else than such a class.
    """
    base, package = _BASES[section]
    if "." not in class_path:
        found = getattr(package, class_path, None) if class_path in dir(package) else None
        if found is None:
            known = [name for name in dir(package) if _fits(getattr(package, name), base)]
            nearest = hint(class_path, known, f"{package.__name__} has {', '.join(known)}.")
            raise ZooError(f"There is no {section} class {class_path!r:.80}: {nearest}")
    else:
        if not _CLASS_PATH.fullmatch(class_path):
            raise ZooError(f"{section}.class_path is {shown(class_path)}; {_NAME_A_CLASS}.")
        module, _, name = class_path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ZooError(f"{section}.class_path {class_path!r:.200} cannot be imported: {error}.") from error
    if not _fits(found, base):
        raise ZooError(f"{section}.class_path is {class_path!r:.200}, which is not a subclass of {base.__name__} that "
                       f"can be used; {_NAME_A_CLASS}.")  # fmt: skip
    return found


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's parameters by their names; where it passes ``**kwargs`` on, those of its base classes too."""
    found: dict[str, inspect.Parameter] = {}
    for base in constructors(cls):
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]  # a class
        found = {
            p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name[0] != "_"
        } | found
    saved = {name: p for name, p in found.items() if p.kind is not p.KEYWORD_ONLY}
    return saved | found


def check_built(config: Namespace) -> None:
    """Check a parsed config before anything in it is built: ranges that others take as they are, and what is called.

    Raises:
        ZooError: a number out of its range; a ``class_path`` that is neither a class nor a function annotated to
            return a module (``zoo.load``).
    """
    seed = config.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise ZooError(f"seed_everything is {shown(seed)}; it has to be from 0 to {2**32 - 1}.")
    for name, (least, greatest) in _TRAINER_RANGES.items():
        value = config.trainer.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value <= greatest:
            allowed = f"from {least} to {greatest}" if greatest < math.inf else f"at least {least}"
            raise ZooError(f"trainer.{name} is {shown(value)}; it has to be {allowed}.")
    devices = config.trainer.get("devices")
    if str(devices).lstrip("+").isdecimal() and int(str(devices)[:20]) > _MOST_PROCESSES:
        raise ZooError(f"trainer.devices is {shown(devices)}; it has to be at most {_MOST_PROCESSES}.")
    if config.get("model.init_args") is not None and config["model.init_args"].get("optim", ...) is None:
        raise ZooError("model.optim is null; leave it out to train with the model's own settings.")
    data = config.get("data.class_path") or ""
    if data.endswith(".LightningDataModule"):
        raise ZooError("data names no class; pass --data VideoFolder, or another class of datamodules.")
    if config.trainer.get("overfit_batches") and data.startswith("datamodules."):
        raise ZooError("trainer.overfit_batches needs a fixed order and the data has a new one in each epoch; "
                       "train on a small folder, or set trainer.limit_train_batches.")  # fmt: skip
    for where, mapping in _mappings(config.as_dict(), ""):
        path = mapping.get("class_path")
        if isinstance(path, str) and "." in path and not _may_be_called(path):
            raise ZooError(f"{where}class_path is {path!r:.200}, which is not a class; only classes are made from a "
                           "config.")  # fmt: skip


def check_processes(devices: int, nodes: int) -> None:
    """Compare what the trainer counts on with the processes that torchrun or SLURM started.

    A trainer of one device takes no notice of the others: each process would train a model of its own.

    Raises:
        ZooError: the numbers differ.
    """
    if "LOCAL_RANK" in os.environ:
        starter, names = "torchrun", ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    elif SLURMEnvironment.detect():
        starter, names = "SLURM", ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE")
    else:
        return
    total, local = (os.environ.get(name, "") for name in names)
    if not total.isdecimal() or int(total) == devices * nodes:
        return
    here = int(local) if local.isdecimal() and int(local) and int(total) % int(local) == 0 else int(total)
    over = "" if here == int(total) else f" --trainer.num_nodes {int(total) // here}"
    raise ZooError(f"{starter} started {total} processes and the trainer counts on {devices} x {nodes}, so they would "
                   f"train apart; pass --trainer.devices {here}{over}.")  # fmt: skip


def concise(error: Exception) -> ArgumentError:
    """Shorten jsonargparse's report on a value of a wrong type, which lists every type it tried, to one sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    keys = re.findall(r'Parser key "([^"]+)": ', text)
    if not keys:
        return error if isinstance(error, ArgumentError) else ArgumentError(None, f"{cut(text).rstrip('.')}.")
    reason = text.rpartition(f'Parser key "{keys[-1]}": ')[2]
    reason = re.sub(r"^- Expected a path but .*? either not accessible or invalid - ", "", reason)
    reason = re.sub(r"^Does not validate .* - Problem with given class_path '[^']+': ", "", reason)
    union = re.match(r"Does not validate .*?Subtypes: \[(.*?)\] Errors: .*?Given value: (.*?)(?= - |$)", reason)
    if union is not None:
        types = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", union[1]).replace(", ", " or ")
        reason = f"expected {types}, got {cut(union[2])}"
    reason = re.split(r" - Expected a | Given value type: ", reason)[0]
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason).replace("NoneType", "null")
    return ArgumentError(None, f"{'.'.join(keys)}: {cut(reason).rstrip('.')}.")


def explain(error: Exception) -> ZooError:
    """Turn an error of other code during the setup of a run into one sentence that names the place."""
    while isinstance(error.__cause__, Exception) and not isinstance(error, MisconfigurationException):
        error = error.__cause__
    reason = cut(" ".join(str(error).split())) or "no reason given"
    if isinstance(error, MisconfigurationException):
        return ZooError(f"The config cannot be used: {reason}")
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = ""
    if trace is not None:
        place = f", in {trace.tb_frame.f_globals.get('__name__', '?')}, line {trace.tb_lineno}"
    return ZooError(f"The config cannot be used ({type(error).__name__}{place}): {reason}")


def _mappings(value: object, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All mappings in a config, with the place of each: "trainer.callbacks.0."."""
    parts: Any = ()
    if isinstance(value, dict):
        yield where, value
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for key, part in parts:
        yield from _mappings(part, f"{where}{key!s:.40}.")


def _may_be_called(class_path: str) -> bool:
    """Whether a path names a class, or a function annotated to return a module."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):  # a class within a class: jsonargparse has found it
        return True
    if inspect.isclass(found):
        return True
    try:
        returned = typing.get_type_hints(found).get("return")
    except (TypeError, NameError, AttributeError):
        return False
    return inspect.isclass(returned) and issubclass(returned, nn.Module)


def _fits(found: object, base: type) -> typing.TypeGuard[type]:
    return inspect.isclass(found) and issubclass(found, base) and not inspect.isabstract(found) and found is not base
