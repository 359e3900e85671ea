"""The words of the ``lightning`` command line as jsonargparse takes them: recipes, callbacks, donors.

`rewrite` reads recipes and the configs of models that a training starts from. It writes nothing and changes no argument
in place: the caller writes the layers it returns to the files that the new arguments name.
"""

import functools
import itertools
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import datamodules
import lightning_modules
import lightning_modules.callbacks
from zoo.build import read_config_of
from zoo.checks import check_config, check_keys, constructor_parameters, import_class
from zoo.errors import ZooError
from zoo.plain_yaml import load_yaml
from zoo.recipe import RECIPES, change_callbacks, find_recipe, merge, read_recipe

__all__ = ["Rewritten", "rewrite"]


class Rewritten(NamedTuple):
    """A command line for jsonargparse.

    Attributes:
        arguments: words of the command line; the configs they name are keys of `layers`.
        layers: file to write -> its config, with includes and changes of callbacks merged in.
        source: file of the last ``--config``; None where the command line names none.
    """

    arguments: list[str]
    layers: dict[Path, dict[str, Any]]
    source: Path | None


def rewrite(arguments: Sequence[str], subcommands: Container[str], folder: Path) -> Rewritten:
    """Replace what jsonargparse does not know by what it knows.

    - ``--config`` and ``-c`` take a recipe's name, and files with includes; without them the common trainer is used.
    - ``--data.help`` and ``--model.help`` take the name of a class of ours.
    - ``--trainer.callbacks.CLASS...`` changes a callback of the config.
    - ``--model.init_from`` brings along what the network is, where the config does not say.

    Args:
        arguments: words of the command line, after the program's name.
        subcommands: names of the subcommands: fit, validate, ...
        folder: where the files of the layers will be.

    Raises:
        ZooError: a recipe, a config, an argument's name or a callback's name is not valid.
    """
    words = [f"--config={a[2:].removeprefix('=')}" if re.match("-c.", a) else a for a in arguments]
    words = list(_whole_class_names(words))
    source = None
    layers: dict[Path, dict[str, Any]] = {}
    for i, (before, word) in enumerate(itertools.pairwise(["", *words])):
        joined = word.startswith("--config=")
        if not joined and before not in ("--config", "-c"):
            continue
        source = find_recipe(word.removeprefix("--config="))
        top = folder / f"{i}.yaml"
        layers[top] = read_recipe(source)
        check_config(layers[top])
        _rename(layers[top])
        words[i] = f"--config={top}" if joined else str(top)
    if not layers and words[:1] and words[0] in subcommands:
        top = folder / "default.yaml"
        layers[top] = {"trainer": read_recipe(RECIPES / "parts" / "trainer.yaml")}
        words.insert(1, f"--config={top}")
    nothing: dict[str, Any] = {}
    config = functools.reduce(merge, layers.values(), nothing)
    check_config(config)
    check_keys(config, words)
    changes, words = _callback_changes(words)
    if changes and layers:
        callbacks = (config.get("trainer") or {}).get("callbacks") or []
        callbacks = functools.reduce(change_callbacks, changes, callbacks)
        layers[top].setdefault("trainer", {})["callbacks"] = callbacks
    donor = _donor_arguments(config, words)
    if donor is not None:
        below = folder / "donor.yaml"
        layers[below] = {"model": donor}
        words.insert(1, f"--config={below}")
    return Rewritten(words, layers, source)


def _rename(config: dict[str, Any]) -> None:
    """Take ``checkpoint_blocks``, which stands in the recipe of every earlier run, for what ``activations`` is now."""
    model = config.get("model")
    arguments = (model.get("init_args") or {}) if isinstance(model, dict) else {}
    blocks = arguments.pop("checkpoint_blocks", 0)
    if blocks:
        arguments.setdefault("activations", "memory")


def _donor_arguments(config: dict[str, Any], arguments: list[str]) -> dict[str, Any] | None:
    """What the network is, from the model it starts from (``init_from``), where the config does not say."""
    model = config.get("model")
    given = dict(model.get("init_args") or {}) if isinstance(model, dict) else {}
    for flag, value in itertools.pairwise([*arguments, ""]):
        name, joined, inline = flag.removeprefix("--model.").removeprefix("init_args.").partition("=")
        if flag.startswith("--model."):
            given[name] = inline if joined else value
    told = any(name.partition(".")[0] in ("embed_dim", "vision") for name in given)
    if given.get("init_from") in (None, "null") or told:
        return None
    donor = read_config_of(given["init_from"])
    of_the_data = ("num_classes", "class_names", "value_name", "value_mean")
    init_args = {k: v for k, v in donor["init_args"].items() if k not in of_the_data}
    if init_args["num_frames"] is None and given.get("num_frames") is not None:
        # An image model's way of cropping is not a video model's.
        for name in ("short_side", "interpolation"):
            init_args.pop(name, None)
    class_path = (model.get("class_path") if isinstance(model, dict) else None) or donor["class_path"]
    if class_path.rpartition(".")[2] != donor["class_path"].rpartition(".")[2]:
        # Another training has other arguments, as masked pretraining has for its decoder.
        cls = import_class(class_path, "model")
        init_args = {name: value for name, value in init_args.items() if name in constructor_parameters(cls)}
    return {"class_path": class_path, "init_args": init_args}


def _callback_changes(arguments: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Takes ``--trainer.callbacks.CLASS null`` and ``--trainer.callbacks.CLASS.ARGUMENT VALUE`` out of the arguments.

    In ``--trainer.callbacks+=CLASS`` a callback of ours gets its whole path.

    Returns:
        The changes in their order, as `zoo.recipe.change_callbacks` takes them; the arguments without those.
    """
    changes, rest = [], []
    words = iter(arguments)
    for word in words:
        flag, joined, value = word.partition("=")
        if flag == "--trainer.callbacks+":
            value = value if joined else next(words, "")
            # Some of ours have the names of Lightning's, which jsonargparse would call ambiguous.
            ours = value in dir(lightning_modules.callbacks)
            rest.append(f"{flag}={'lightning_modules.callbacks.' if ours else ''}{value}")
            continue
        name, _, argument = flag.removeprefix("--trainer.callbacks.").partition(".")
        if not flag.startswith("--trainer.callbacks.") or not name[:1].isupper():
            rest.append(word)
            continue
        try:
            value = load_yaml(value if joined else next(words, ""))
        except yaml.YAMLError as error:
            raise ZooError(f"The value of {flag:.80} is not valid YAML; write null, or a value.") from error
        changes.append({name: {argument.removeprefix("init_args."): value} if argument else value})
    return changes, rest


def _whole_class_names(arguments: list[str]) -> Iterator[str]:
    """Arguments in which ``--data.help CLASS`` and ``--model.help CLASS`` name a class of ours by its whole path."""
    packages = {"--data.help": datamodules, "--model.help": lightning_modules}
    for before, word in itertools.pairwise(["", *arguments]):
        flag, joined, name = word.partition("=")
        flag, name = (flag, name) if joined else (before, word)
        if flag in packages and name in dir(packages[flag]):
            word = f"{flag}=" * bool(joined) + f"{packages[flag].__name__}.{name}"
        yield word
