"""The ``lightning`` command: fit, validate, test and predict with modules and DataModules of the zoo, or your own."""

import csv
import errno
import functools
import logging
import os
import re
import signal
import sys
import tempfile
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import torch
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, Checkpoint, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from datamodules.loading import worker_death
from datamodules.storage.files import is_url, status
from hub.card import DATASET
from lightning_modules.base import BaseModule
from lightning_modules.callbacks.checkpoints import AtomicCheckpointIO
from lightning_modules.callbacks.last import LastCheckpoint
from lightning_modules.tasks.self_distillation import SelfDistillation
from zoo.arguments import rewrite
from zoo.build import initialise, load
from zoo.checks import (
    check_built,
    check_processes,
    concise,
    explain,
    import_class,
)
from zoo.commands.main import is_foreseen, report
from zoo.configs import current_arguments, refuse_foreign_classes, resolve
from zoo.datasets import title_of
from zoo.errors import ZooError
from zoo.files import written
from zoo.plain_yaml import check_limits, read_yaml
from zoo.printable import printable
from zoo.runs import Metrics, Runs, discard, is_finished, loggers, new_folder, read_checkpoint, steps_done

__all__ = ["ZooCLI", "main"]

_DESCRIPTION = """\
{name} a model by a recipe, a config file or options. Arguments of the data and the model, such as --data.root and
--model.optim.lr, depend on their classes: `lightning {name} --data.help VideoFolder` and
`lightning {name} --model.help VideoClassifier` list them. `zoo recipe` lists the recipes that --config takes."""


class ZooCLI(LightningCLI):
    """LightningCLI whose ``--config`` also takes a recipe's name, understands includes and explains misspelled keys."""

    def __init__(self) -> None:
        self.phase = "parsing"  # then "building", "starting" until the first batch, "running"
        limit_jsonargparse()
        strict = {"exit_on_error": False}
        try:
            super().__init__(
                BaseModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=_SaveConfig,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=0,
                parser_kwargs={
                    **strict,
                    **{name: {**strict, "description": _DESCRIPTION.format(name=name)} for name in self.subcommands()},
                },
            )
        except Exception as error:  # parsing, building and training call code of others
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        """An error as what `report` shows: others' complaints about the config in one sentence, bugs as they are."""
        if isinstance(error, ArgumentError):
            return error
        # jsonargparse wraps what the constructor of an optional part, such as the data, raises.
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, Exception) and is_foreseen(cause):
                return cause
            cause = cause.__cause__
        if isinstance(error, MisconfigurationException):
            return explain(error)
        if isinstance(error, RuntimeError):
            # torch raises this wherever the main process happens to be when a loader process ends.
            death = worker_death(error)
            if death is not None:
                return death
        # Before the first batch values of the config are at work; these types are bugs there too.
        bugs = (AttributeError, NameError, AssertionError) if self.phase == "starting" else ()
        return error if self.phase == "running" or isinstance(error, bugs) else explain(error)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            rewritten = rewrite(sys.argv[1:], self.subcommands(), Path(scratch))
            for path, layer in rewritten.layers.items():
                path.write_text(yaml.safe_dump(layer, sort_keys=False), encoding="utf-8")
            try:
                self.config = parser.parse_args(rewritten.arguments)
            except ZooError:
                raise
            except Exception as error:  # jsonargparse passes on what types of others raise
                raise concise(error) from error
        if "subcommand" in self.config:
            check_built(self.config[self.config.subcommand])
            self.phase = "building"
            self._find_checkpoint(rewritten.source)

    def _find_checkpoint(self, source: Path | None) -> None:
        """Replaces ``--ckpt_path last`` and ``best`` by the file they mean; see `zoo.runs`."""
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        model = (config.get("model.class_path") or "model").rpartition(".")[2]
        trainer = config.trainer
        # Without loggers of its own choice a run gets ours, just before it starts: the saved config names no version.
        self.own_record = trainer.logger in (None, True) and not trainer.fast_dev_run and not trainer.barebones
        self.continued: Path | None = None
        self.finished = False
        which = config.get("ckpt_path")
        if self.own_record or subcommand != "fit":
            self.runs = Runs.of(source, model, trainer.default_root_dir)
        elif which in ("last", "best"):
            return
        if which not in ("last", "best"):
            return
        found = self.runs.find(which)
        runs = self.runs.version or self.runs.folder
        if found is None and (subcommand, which) != ("fit", "last"):
            raise ZooError(f"There is no {which}.ckpt of a run in {runs}; train first, or pass a file to --ckpt_path.")
        if subcommand == "fit" and which == "last":
            self.continued = found
            rank_zero_info(f"Resuming {found.parents[1]}." if found else f"No run to resume in {runs}.")
        else:
            rank_zero_info(f"Taking {found}.")
        config["ckpt_path"] = None if found is None else str(found)

    def _parse_ckpt_path(self) -> None:
        """Looks at the checkpoint before Lightning takes the model's arguments from it, or waits for a device."""
        config = self.config.get(str(self.config.get("subcommand")))
        path = None if config is None else config.get("ckpt_path")
        if path is None or str(path) in ("last", "best", "hpc", "registry"):
            return
        if is_url(str(path)):  # Lightning reads it, and what a store says names no file
            try:
                status(str(path))
            except OSError as error:
                raise ZooError(f"{path} cannot be read ({error.strerror or error}); check the address and your "
                               "access.") from error  # fmt: skip
            return
        content = read_checkpoint(Path(path), config.get("weights_only"))
        given = content.get("hyper_parameters")
        earlier = None
        if isinstance(given, dict) and "_class_path" in given:
            # A checkpoint may come from anywhere: it names no classes but the zoo's, and the one that the user names.
            named = given["_class_path"]
            cls = import_class(named, "model") if named == config.get("model.class_path") else resolve(named)
            arguments = {k: v for k, v in given.items() if k != "_class_path"}
            refuse_foreign_classes(cls, arguments)
            current = current_arguments(cls, arguments)
            earlier = None if current == arguments else current
            # LightningCLI would take the checkpoint's number of classes in place of the one that was asked for.
            ours, theirs = config.get("model.init_args.num_classes"), given.get("num_classes")
            if None not in (ours, theirs) and ours != theirs:
                raise ZooError(f"{path} has {theirs} classes and model.num_classes is {ours}; set it to {theirs}, or "
                               "start from the checkpoint's weights with model.init_from.")  # fmt: skip
        if self.continued is not None:
            self.finished = is_finished(content, config.trainer.max_epochs, config.trainer.max_steps)
        try:
            if earlier is None:
                super()._parse_ckpt_path()
            else:  # as Lightning does, with the arguments under the names that they have now
                model = {"class_path": named, "dict_kwargs": earlier}
                self.config = self.parser.parse_object({self.config.subcommand: {"model": model}}, self.config)
        except ArgumentError as error:
            raise concise(error) from error

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand].trainer
        if self.own_record:
            kwargs["logger"] = False
        switched_off: list[type] = [ProgressBar] if config.enable_progress_bar is False else []
        switched_off += [Checkpoint] if config.enable_checkpointing is False else []
        switched_off += [LearningRateMonitor] if config.logger in (False, []) else []
        if switched_off and isinstance(config.callbacks, list):
            kwargs["callbacks"] = [c for c in config.callbacks if not isinstance(c, tuple(switched_off))]
        trainer = super().instantiate_trainer(**kwargs)
        check_processes(trainer.num_devices, trainer.num_nodes)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        trainer.callbacks.append(_Running(self))  # type: ignore[attr-defined]  # its connector sets it
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Gives the run its folder only now that all of its parts exist, and takes it back if it does not start."""
        if self.finished and self.continued is not None:
            epochs = self.config[subcommand].trainer.max_epochs
            rank_zero_info(f"The run in {self.continued.parents[1]} is finished; to train longer, raise "
                           f"trainer.max_epochs, which is {epochs}, or trainer.max_steps.")  # fmt: skip
            return
        if subcommand != "fit":
            # No checkpoint will be written.
            warnings.filterwarnings("ignore", message="The dirpath has changed from")
        made: list[Path] = []
        if self.own_record and self.continued is not None:
            step = steps_done(self.continued, self.config[subcommand].get("weights_only"))
            self.trainer.loggers = loggers(self.continued.parents[1], step)
        elif self.own_record:
            made = [p for p in (self.runs.folder, *self.runs.folder.parents) if not p.exists()]
            folder = new_folder(self.runs.folder, "version" if subcommand == "fit" else subcommand)
            made.insert(0, folder)
            self.trainer.loggers = loggers(folder) if subcommand == "fit" else [Metrics(folder)]
        self.phase = "starting"
        try:
            super()._run_subcommand(subcommand)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise self._disk_is_full(error) from error
        except SystemExit as stop:
            if isinstance(stop, SIGTERMException):  # which says that all is well, or by its code that it was Ctrl-C
                self._stop(stop.code if stop.code == 128 + signal.SIGINT else 128 + signal.SIGTERM)
            if isinstance(stop.__context__, KeyboardInterrupt):
                self._stop(128 + signal.SIGINT)
            raise
        finally:
            if self.phase == "starting" and made and self.trainer.is_global_zero:
                for logger in self.trainer.loggers:
                    logger.finalize("success")  # closes its files
                discard(made)

    def _stop(self, status: int) -> NoReturn:
        """Ends the process that was asked to end, and says how its training is resumed."""
        how = "interrupted" if status == 128 + signal.SIGINT else "stopped by SIGTERM"
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # its connector sets it
        last = next((c for c in callbacks if isinstance(c, LastCheckpoint)), None)
        file = Path(last.dirpath) / "last.ckpt" if last is not None and last.dirpath is not None else None
        if self.subcommand == "fit" and file is not None and file.exists():
            how += f"; --ckpt_path {'last' if self.own_record else file} continues from there"
        elif self.subcommand == "fit":
            how += " before the first checkpoint, so there is none to continue from"
        if self.trainer.is_global_zero:
            print(f"lightning: {printable(how)}", file=sys.stderr)
        sys.exit(status)

    def _disk_is_full(self, error: OSError) -> ZooError:
        """The system names no file where a write fails; it is one of the run's."""
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
        cls = import_class(config.data.class_path, "data")
        count = getattr(cls(**config.data.init_args.as_dict()), "num_classes", None)
        if count is None:
            raise ZooError(f"{cls.__name__} does not say how many classes there are; set model.num_classes, or train a "
                           "VideoRegressor if its videos have numbers.")  # fmt: skip
        arguments["num_classes"] = count

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
        """Write predictions.csv in the run's folder, one file per process.

        It has the best class of each video, or its number, and the truth where it is known.
        """
        trainer = self.trainer
        suffix = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        out = Path(trainer.log_dir or trainer.default_root_dir) / f"predictions{suffix}.csv"
        with written(out) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(_predictions(self.model, trainer.predict_loop.predictions))
        print(f"Predictions: {out}")


def _predictions(model: BaseModule, batches: list[dict[str, Any]]) -> Iterator[list[str]]:
    """The rows of predictions.csv, a header first."""
    known = ["truth"] if batches and "truth" in batches[0] else []
    if hasattr(model, "value_name"):
        yield ["path", model.value_name or "value", *known]
        for batch in batches:
            numbers = (batch[name].tolist() for name in ("values", *known))
            for path, *row in zip(batch["path"], *numbers, strict=True):
                yield [path, *(f"{number:.6f}" for number in row)]
        return
    names = model.class_names or [str(i) for i in range(model.num_classes)]
    yield ["path", "label", "probability", *known]
    for batch in batches:
        best = batch["scores"].max(dim=1)
        truths: list[list[str]] = [[] for _ in batch["path"]]
        if known:
            truths = [[names[k] if k >= 0 else ""] for k in batch["truth"].tolist()]
        values, indices = best.values.tolist(), best.indices.tolist()
        for path, probability, index, truth in zip(batch["path"], values, indices, truths, strict=True):
            yield [path, names[index], f"{probability:.6f}", *truth]


@functools.cache  # once: a loader that is wrapped again would check each text again
def limit_jsonargparse() -> None:
    """Keeps what jsonargparse reads by itself from a value of the command line small and on this machine."""
    load = jsonargparse.get_loader("yaml")

    def limited(text: str) -> Any:  # noqa: ANN401  # what YAML holds
        check_limits(text)
        return load(text)

    jsonargparse.set_loader("yaml", limited, (yaml.YAMLError,))  # a text that is no YAML is a text
    jsonargparse.set_parsing_settings(config_read_mode_fsspec_enabled=False)
    with suppress(TypeError):  # 4.51 lacks it; an empty list switches jsonargparse's own on: os, subprocess, ...
        jsonargparse.set_parsing_settings(import_path_denylist=[])


class _Running(Callback):
    """Tells the command that all has been set up."""

    def __init__(self, cli: ZooCLI) -> None:
        self.cli = cli

    def _note(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.cli.phase = "running"

    on_sanity_check_start = on_train_start = _note
    on_validation_start = on_test_start = on_predict_start = _note


class _SaveConfig(SaveConfigCallback):
    """Saves the run's configuration when fitting only: testing must not replace the record of the training."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            # What made the run, not where it was continued: the file can be run again.
            self.config = self.config.clone()
            if self.config["ckpt_path"] is not None:
                self._keep_start(Path(trainer.log_dir or "") / self.config_filename)
            self.config["ckpt_path"] = None
            data = self.config.get("data")
            title = data and title_of(data["class_path"], data.get("init_args") or {})
            if title:  # for the card, wherever the file goes
                self.parser.dump_header = [*(self.parser.dump_header or []), f"{DATASET}{title}"]
            self.save_to_log_dir = trainer.log_dir is not None  # None: a logger of a server, as MLflow's
            super().setup(trainer, pl_module, stage)

    def _keep_start(self, record: Path) -> None:
        """A run that is resumed started from the weights that its record names, whatever the recipe would take."""
        with suppress(ZooError, KeyError, TypeError):  # no record, or one that was edited
            started_from = read_yaml(record)["model"]["init_args"]["init_from"]
            self.config["model"]["init_args"]["init_from"] = started_from

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.save_to_log_dir:
            path = Path(trainer.default_root_dir) / self.config_filename
            self.parser.save(self.config, path, skip_none=False, overwrite=True)


def quiet() -> None:
    """Keeps Lightning's advertisements and notes to its own developers out of the user's terminal."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    # Loading the data to count the steps of the schedule is what a fit does, and TPUs are none of ours.
    noise = re.compile(r"Tip|Loading `train_dataloader` to estimate|TPU available: False|Restoring states from")
    logger.addFilter(lambda record: noise.search(record.getMessage()) is None)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    # A run that is resumed has checkpoints in its folder; others get a new one.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")


def main() -> None:
    """Console entry: a foreseen error is one sentence on stderr and status 1, or 2 where the command line is wrong."""
    quiet()
    report(ZooCLI, program="lightning", usage_errors=(ArgumentError,))


if __name__ == "__main__":
    main()
