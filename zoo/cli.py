"""The ``lightning`` command: fit, validate, test and predict with modules and DataModules of the zoo, or your own."""

import csv
import errno
import functools
import importlib
import inspect
import itertools
import logging
import os
import re
import signal
import sys
import tempfile
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

import datamodules
import lightning_modules
import lightning_modules.callbacks
from datamodules.loading import worker_death
from hub.lightning_ckpt import read_arguments
from lightning_modules.base import BaseModule
from lightning_modules.callbacks.checkpoints import AtomicCheckpointIO
from lightning_modules.self_distillation import SelfDistillation
from zoo.build import initialise, load, read_config_of
from zoo.commands.main import is_foreseen, report
from zoo.errors import ZooError, hint
from zoo.recipe import RECIPES, change_callbacks, find_recipe, merge, read_recipe
from zoo.runs import Metrics, Runs, loggers, new_folder, steps_done

__all__ = ["ZooCLI", "main"]


class ZooCLI(LightningCLI):
    """LightningCLI whose ``--config`` also takes a recipe's name, understands includes and explains misspelled keys."""

    def __init__(self) -> None:
        strict = {"exit_on_error": False}
        super().__init__(
            BaseModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={**strict, **dict.fromkeys(self.subcommands(), strict)},
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        arguments = sys.argv[1:]
        source = None
        with tempfile.TemporaryDirectory() as scratch:
            layers: dict[Path, dict] = {}
            for i, (flag, value) in enumerate(zip(["", *arguments], [*arguments, ""], strict=True)):
                flag, joined, inline = (value if value.startswith("--config=") else flag).partition("=")
                if flag not in ("--config", "-c"):
                    continue
                source = find_recipe(inline if joined else value)
                merged = Path(scratch) / f"{i}.yaml"
                layers[merged] = read_recipe(source)
                arguments[i] = f"--config={merged}" if joined else str(merged)
            if not layers and arguments[:1] and arguments[0] in self.subcommands():
                merged = Path(scratch) / "default.yaml"
                layers[merged] = {"trainer": read_recipe(RECIPES / "parts" / "trainer.yaml")}
                arguments.insert(1, f"--config={merged}")
            config = functools.reduce(merge, layers.values(), {})
            check_keys(config, arguments)
            changes, arguments = callback_changes(arguments)
            if changes:
                callbacks = (config.get("trainer") or {}).get("callbacks") or []
                callbacks = functools.reduce(change_callbacks, changes, callbacks)
                layers[merged].setdefault("trainer", {})["callbacks"] = callbacks
            donor = donor_arguments(config, arguments)
            if donor is not None:
                below = Path(scratch) / "donor.yaml"
                layers[below] = {"model": donor}
                arguments.insert(1, f"--config={below}")
            for path, layer in layers.items():
                path.write_text(yaml.safe_dump(layer, sort_keys=False), encoding="utf-8")
            try:
                self.config = parser.parse_args(arguments)
            except ArgumentError as error:
                raise concise(error) from error
        if "subcommand" in self.config:
            self._find_checkpoint(source)
            self._compare_classes()

    def _compare_classes(self) -> None:
        """Refuses a checkpoint with another number of classes than the config: LightningCLI would take its number."""
        config = self.config[self.config.subcommand]
        path, arguments = config.get("ckpt_path"), config.get("model.init_args") or {}
        ours = arguments.get("num_classes")
        if ours is None or path is None or not Path(path).is_file():
            return
        theirs = read_arguments(path).get("num_classes")
        if theirs not in (None, ours):
            raise ZooError(f"{path} has {theirs} classes and model.num_classes is {ours}; set it to {theirs}, or start "
                           "from the checkpoint's weights with model.init_from.")  # fmt: skip

    def _find_checkpoint(self, source: Path | None) -> None:
        """Replaces ``--ckpt_path last`` and ``best`` by the file they mean; see `zoo.runs`."""
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        model = (config.get("model.class_path") or "model").rpartition(".")[2]
        trainer = config.trainer
        # Without loggers of its own choice a run gets ours, just before it starts: the saved config names no version.
        self.own_record = trainer.logger in (None, True) and not trainer.fast_dev_run and not trainer.barebones
        self.continued: Path | None = None
        if not self.own_record and subcommand == "fit":
            return
        self.runs = Runs.of(source, model, trainer.default_root_dir)
        which = config.get("ckpt_path")
        if which not in ("last", "best"):
            return
        found = self.runs.find(which)
        runs = self.runs.version or self.runs.folder
        if found is None and (subcommand, which) != ("fit", "last"):
            raise ZooError(f"There is no {which}.ckpt of a run in {runs}; train first, or pass a file to --ckpt_path.")
        if subcommand == "fit" and which == "last":
            self.continued = found
            rank_zero_info(f"Going on with {found.parents[1]}." if found else f"No run to go on with in {runs}.")
        else:
            rank_zero_info(f"Taking {found}.")
        config["ckpt_path"] = None if found is None else str(found)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand].trainer
        if self.own_record:
            kwargs["logger"] = False
        switched_off = [ProgressBar] if config.enable_progress_bar is False else []
        switched_off += [Checkpoint] if config.enable_checkpointing is False else []
        if switched_off and isinstance(config.callbacks, list):
            kwargs["callbacks"] = [c for c in config.callbacks if not isinstance(c, tuple(switched_off))]
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Gives the run its folder only now that all of its parts exist: a wrong config leaves none behind."""
        if subcommand != "fit":
            # No checkpoint will be written.
            warnings.filterwarnings("ignore", message="The dirpath has changed from")
        if self.own_record and subcommand != "fit":
            self.trainer.loggers = [Metrics(new_folder(self.runs.folder, subcommand))]
        elif self.own_record and self.continued is not None:
            step = steps_done(self.continued, self.config[subcommand].get("weights_only"))
            self.trainer.loggers = loggers(self.continued.parents[1], step)
        elif self.own_record:
            self.trainer.loggers = loggers(new_folder(self.runs.folder, "version"))
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise self._disk_is_full(error) from error

    def _disk_is_full(self, error: OSError) -> ZooError:
        """The system names no file where a write fails; it is the run's, whoever writes it."""
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        again = "start again"
        if self.subcommand == "fit" and (folder / "checkpoints" / "last.ckpt").exists():
            again = "continue with --ckpt_path last"
        where = error.filename or f"A file in {folder}"
        return ZooError(f"{where} cannot be written ({error.strerror}); make room on that disk and {again}.")

    def before_instantiate_classes(self) -> None:
        """Counts the data's classes where the model leaves their number open."""
        config = self.config[self.subcommand]
        arguments = config.get("model.init_args")
        if config.get("data") is None or arguments is None or arguments.get("num_classes", 0) is not None:
            return
        cls = _import(config.data.class_path, "data")
        count = getattr(cls(**config.data.init_args.as_dict()), "num_classes", None)
        if count is None:
            raise ZooError(f"{cls.__name__} does not say how many classes there are; set model.num_classes, or train a "
                           "VideoRegressor if its videos have numbers.")  # fmt: skip
        arguments["num_classes"] = count

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps what the constructor of an optional part, such as the data, complains of.
            if error.__cause__ is not None and is_foreseen(error.__cause__):
                raise error.__cause__ from None
            raise

    def after_instantiate_classes(self) -> None:
        """Compares the classes of data and model before the trainer starts and its loggers clear an earlier run."""
        self._share_cores()
        names = getattr(self.datamodule, "class_names", None)
        if names is not None and hasattr(self.model, "adopt_classes"):
            self.model.adopt_classes(names)
        value = getattr(self.datamodule, "value_name", None)
        if value is not None and hasattr(self.model, "adopt_value"):
            self.model.adopt_value(value, self.datamodule.value_mean)
        source = getattr(self.model, "training_arguments", {}).get("init_from")
        stages = getattr(self.model, "init_stages", ("fit",))
        if source is not None and self.subcommand in stages and self.config[self.subcommand].ckpt_path is None:
            head = "its head too" if initialise(self.model, source) else "a new head"
            rank_zero_info(f"Starting from the weights of {source}, {head}.")
        if self.subcommand == "fit" and isinstance(self.model, SelfDistillation):
            self._find_teacher(self.model)

    @staticmethod
    def _find_teacher(model: SelfDistillation) -> None:
        """Loads a teacher given by its name, at the student's frames and resolution."""
        source = model.training_arguments["teacher"]
        if isinstance(source, str):
            sizes = {name: model.hparams[name] for name in ("num_frames", "image_size")}
            model.adopt_teacher(load(source, **{k: v for k, v in sizes.items() if v is not None}))
            rank_zero_info(f"The teacher is {source}.")
        model.check_teacher()

    def _share_cores(self) -> None:
        """Leaves a core to each loader process where the model runs on the CPU too: all threads wait for the last."""
        if isinstance(self.trainer.accelerator, CPUAccelerator) and "OMP_NUM_THREADS" not in os.environ:
            workers = getattr(self.datamodule, "num_workers", 0)
            torch.set_num_threads(max(1, torch.get_num_threads() - workers))

    def after_predict(self) -> None:
        """Writes the best class of each video, or its number, to predictions.csv in the run's folder, one file per
        process."""
        trainer = self.trainer
        suffix = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        out = Path(trainer.log_dir or trainer.default_root_dir) / f"predictions{suffix}.csv"
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_suffix(".part")
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows(_predictions(self.model, trainer.predict_loop.predictions))
        beside.replace(out)
        print(f"Predictions: {out}")


def _predictions(model: BaseModule, batches: list[dict]) -> Iterator[list[str]]:
    """The rows of predictions.csv, a header first."""
    if hasattr(model, "value_name"):
        yield ["path", model.value_name or "value"]
        for batch in batches:
            for path, value in zip(batch["path"], batch["values"].tolist(), strict=True):
                yield [path, f"{value:.6f}"]
        return
    names = model.class_names or [str(i) for i in range(model.num_classes)]
    yield ["path", "label", "probability"]
    for batch in batches:
        best = batch["scores"].max(dim=1)
        for path, probability, index in zip(batch["path"], *map(Tensor.tolist, best), strict=True):
            yield [path, names[index], f"{probability:.6f}"]


def donor_arguments(config: dict, arguments: list[str]) -> dict | None:
    """What the network is, from the model it starts from (``init_from``), where the config does not say."""
    model = config.get("model")
    given = dict(model.get("init_args") or {}) if isinstance(model, dict) else {}
    for flag, value in itertools.pairwise([*arguments, ""]):
        name, joined, inline = flag.removeprefix("--model.").removeprefix("init_args.").partition("=")
        if flag.startswith("--model."):
            given[name] = inline if joined else value
    if given.get("init_from") is None or "embed_dim" in given:
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
        cls = getattr(lightning_modules, class_path, None) or _import(class_path, "model")
        init_args = {name: value for name, value in init_args.items() if name in _argument_names(cls)}
    return {"class_path": class_path, "init_args": init_args}


def callback_changes(arguments: list[str]) -> tuple[list[dict], list[str]]:
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
            ours = value in lightning_modules.callbacks.__all__
            rest.append(f"{flag}={'lightning_modules.callbacks.' if ours else ''}{value}")
            continue
        name, _, argument = flag.removeprefix("--trainer.callbacks.").partition(".")
        if not flag.startswith("--trainer.callbacks.") or not name[:1].isupper():
            rest.append(word)
            continue
        value = yaml.safe_load(value if joined else next(words, ""))
        changes.append({name: {argument.removeprefix("init_args."): value} if argument else value})
    return changes, rest


def check_keys(config: dict, arguments: list[str]) -> None:
    """Names misspelled keys of the model, data and trainer sections, which jsonargparse reports in terms of types.

    Raises:
        ZooError: an argument that the class does not have, with the nearest one it has.
    """
    for section, package in (("model", lightning_modules), ("data", datamodules), ("trainer", None)):
        prefix = f"--{section}."
        flags = [a[len(prefix) :].partition("=")[0] for a in arguments if a.startswith(prefix)]
        value = config.get(section) or {}
        if section == "trainer":
            cls, given = Trainer, value
        else:
            given = value.get("init_args") or {} if isinstance(value, dict) else {}
            class_path = value.get("class_path") if isinstance(value, dict) else value
            flag = next((b for a, b in itertools.pairwise(arguments) if a == f"--{section}"), class_path)
            if not flag:
                continue
            cls = getattr(package, flag, None) if "." not in flag else _import(flag, section)
            if cls is None:
                raise ZooError(
                    f"There is no {section} class {flag!r}; {package.__name__} has {', '.join(dir(package))}."
                )
            flags = [f.removeprefix("init_args.") for f in flags]
        known = _argument_names(cls)
        for name in [*given, *(f.split(".")[0].rstrip("+") for f in flags)]:
            if name in known or name in ("help", "class_path", "init_args"):
                continue
            nearest = hint(name, known, f"it takes {', '.join(known)}.")
            raise ZooError(f"{section}.{name}: {cls.__name__} has no argument {name!r}: {nearest}")


def _argument_names(cls: type) -> list[str]:
    """Names of the constructor's arguments; where it passes ``**kwargs`` on, those of its base classes too."""
    names: list[str] = []
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return names


def _import(class_path: str, section: str) -> type:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ZooError(f"{section}.class_path {class_path!r} cannot be imported: {error}.") from error


def concise(error: ArgumentError) -> ArgumentError:
    """jsonargparse's report on a value of a wrong type, which lists every type it tried, as one short sentence."""
    text = " ".join(str(error).split())
    keys = re.findall(r'Parser key "([^"]+)": ', text)
    if not keys:
        return error
    reason = text.rpartition(f'Parser key "{keys[-1]}": ')[2]
    reason = re.sub(r"^Does not validate .* - Problem with given class_path '[^']+': ", "", reason)
    union = re.match(r"Does not validate .*?Subtypes: \[(.*?)\] Errors: .*?Given value: (.*?)(?= - |$)", reason)
    if union is not None:
        reason = f"expected {union[1].replace(', ', ' or ')}, got {union[2]}"
    reason = re.split(r" - Expected a | Given value type: ", reason)[0]
    reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", reason).replace("NoneType", "null")
    return ArgumentError(None, f"{'.'.join(keys)}: {reason.rstrip('.')}.")


class _SaveConfig(SaveConfigCallback):
    """Saves the run's configuration when fitting only: testing must not replace the record of the training."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            # What made the run, not where it was continued: the file can be run again.
            self.config = self.config.clone()
            self.config["ckpt_path"] = None
            super().setup(trainer, pl_module, stage)


def quiet() -> None:
    """Keeps Lightning's advertisements and notes to its own developers out of the user's terminal."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    # Loading the data to count the steps of the schedule is what a fit does, and TPUs are none of ours.
    noise = re.compile(r"Tip|Loading `train_dataloader` to estimate|TPU available: False|Restoring states from")
    logger.addFilter(lambda record: noise.search(record.getMessage()) is None)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    # A run that goes on has checkpoints in its folder; others get a new one.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")


def _run() -> None:
    try:
        ZooCLI()
    except RuntimeError as error:
        # torch raises this wherever the main process happens to be when a loader process ends.
        death = worker_death(error)
        if death is None:
            raise
        raise death from error


def main() -> None:
    """Console entry: a foreseen error is one sentence on stderr and status 1, or 2 where the command line is wrong."""
    quiet()
    try:
        report(_run, program="lightning", usage_errors=(ArgumentError,))
    except SIGTERMException as stop:  # a SystemExit that says all is well; `LastCheckpoint` notes that it was Ctrl-C
        interrupted = stop.code == 128 + signal.SIGINT
        how = "interrupted" if interrupted else "stopped by SIGTERM"
        print(f"lightning: {how}; --ckpt_path last continues from there", file=sys.stderr)
        sys.exit(stop.code if interrupted else 128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
