"""Folders of runs: where a run's files go, how a run is found again, and how it is continued in its place.

::

    <root>/<name>/version_0/   config.yaml, metrics.csv, TensorBoard's event files, curves.png, checkpoints/
                  version_1/
                  test_0/      metrics.csv of `lightning test`; validate_0, predict_0 likewise
"""

import csv
import io
import os
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from hub.checkpoint import load_pickle
from zoo.errors import ZooError
from zoo.files import written

__all__ = ["Metrics", "Runs", "discard", "is_finished", "loggers", "new_folder", "read_checkpoint", "steps_done"]

_VERSION = re.compile(r"version_(\d+)")


class Runs(NamedTuple):
    """The runs of one recipe.

    Attributes:
        folder: <root>/<name>, which need not exist.
        version: the one run that is meant, where its own config.yaml was given.
    """

    folder: Path
    version: Path | None = None

    @classmethod
    def of(cls, config: Path | None, model: str, root: str | os.PathLike[str] | None) -> "Runs":
        """The runs of a config file, named after it, or without one, of a model's class.

        Raises:
            ZooError: the root is a URL.
        """
        if "://" in str(root):
            raise ZooError(f"trainer.default_root_dir is {root}: runs live in local folders; set trainer.logger too.")
        if config is not None and _VERSION.fullmatch(config.parent.name) and config.name == "config.yaml":
            folder = config.parent
            return cls(Path(root or folder.parent.parent) / folder.parent.name, folder)
        return cls(Path(root or "runs") / (model if config is None else config.stem))

    def find(self, checkpoint: str) -> Path | None:
        """``<newest run>/checkpoints/<checkpoint>.ckpt``, of the newest run that has one."""
        versions = [self.version] if self.version is not None else _numbered(self.folder, "version")
        files = (version / "checkpoints" / f"{checkpoint}.ckpt" for version in reversed(versions))
        return next((file for file in files if file.exists()), None)


def new_folder(parent: Path, prefix: str) -> Path:
    """Make ``<parent>/<prefix>_N`` with the next free N; two programs started at once get different ones.

    Processes other than the first take the newest folder and make none. They write nothing of their own, and Lightning
    tells them the first one's folder wherever it matters.
    """
    existing = _numbered(parent, prefix)
    number = _number(existing[-1]) if existing else -1
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # Lightning sets it
        return parent / f"{prefix}_{max(number, 0)}"
    while True:
        number += 1
        folder = parent / f"{prefix}_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def discard(made: list[Path]) -> None:
    """Remove the folder of a run that did not start, and the folders around it that were made for it.

    A folder that holds a checkpoint, metrics or anything else than the record of a start stays.

    Args:
        made: the run's folder, then the folders around it, innermost first, that were not there before.
    """
    folder, *around = made
    found = list(folder.rglob("*"))
    files = [path for path in found if not path.is_dir()]
    if any(not re.fullmatch(r"config\.yaml|hparams\.yaml|events\.out\.tfevents\..*", path.name) for path in files):
        return
    with suppress(OSError):  # another process has put something there
        for file in files:
            file.unlink()
        for inner in sorted((path for path in found if path.is_dir()), reverse=True):
            inner.rmdir()
        for outer in (folder, *around):
            outer.rmdir()


def read_checkpoint(checkpoint: Path, weights_only: bool | None = None) -> dict[str, Any]:
    """Read a checkpoint of a run; tensors stay on the disk until they are used.

    Raises:
        ZooError: the file is missing, or is not a checkpoint.
    """
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint  # a folder: FSDP's sharded format
    other = "pass the .ckpt of a run to --ckpt_path, and weights alone to --model.init_from"
    if not file.exists():
        what = "does not exist" if file is checkpoint else "is a folder and no checkpoint"
        raise ZooError(f"{checkpoint} {what}; {other}.")
    if not file.is_file():
        raise ZooError(f"{checkpoint} is a device or a pipe; {other}.")
    try:
        if not zipfile.is_zipfile(file):
            raise ZooError("it is truncated or not a checkpoint")
        if weights_only is False:
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
        else:
            content = load_pickle(file, mmap=True)
    except Exception as error:  # torch has a type of its own for each way in which a file is damaged
        reason = " ".join(str(error).split())[:200]
        raise ZooError(f"{checkpoint} cannot be read ({reason}); remove it, or pass another to --ckpt_path.") from error
    if not isinstance(content, dict) or not isinstance(content.get("global_step"), int):
        raise ZooError(f"{checkpoint} is not a checkpoint of a run; {other}.")
    return content


def steps_done(checkpoint: Path, weights_only: bool | None = None) -> int:
    """Optimiser steps behind a checkpoint, which is the number of the next row in the logs; no tensor is read.

    Raises:
        ZooError: the file cannot be read.
    """
    steps: int = read_checkpoint(checkpoint, weights_only)["global_step"]
    return steps


def is_finished(content: dict[str, Any], max_epochs: int | None, max_steps: int) -> bool:
    """Whether the run behind a checkpoint has reached its last epoch or step."""
    try:
        epochs: int = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    except (KeyError, TypeError):
        return False
    steps: int = content["global_step"]
    return (max_epochs is not None and 0 <= max_epochs <= epochs) or 0 <= max_steps <= steps


def loggers(folder: Path, first_step: int | None = None) -> list[Logger]:
    """CSV and TensorBoard loggers of a training in `folder`; rows from `first_step` on are replaced."""
    events = TensorBoardLogger(*_place(folder), default_hp_metric=False, purge_step=first_step)
    return [Metrics(folder, first_step or 0), events]


class Metrics(CSVLogger):
    """metrics.csv in a folder; existing rows stay, up to the step at which the training resumes.

    Lightning's own CSVLogger deletes the file of an earlier run.

    Args:
        folder: where metrics.csv lies or will lie.
        first_step: the next step to be trained; rows of it and of later steps are dropped.
    """

    _experiment: "_Writer | None"

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        super().__init__(*_place(folder))
        self.first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the rows, made on first use."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir, self.first_step)
        return self._experiment


class _Writer(ExperimentWriter):
    """Goes on with an existing file, and never leaves less in it than there was, whenever the process is killed."""

    def __init__(self, log_dir: str, first_step: int) -> None:
        self.first_step = first_step
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Called by the constructor, in Lightning to delete the file."""
        if not Path(self.metrics_file_path).exists():
            return
        self.metrics_keys, rows = self._read()
        if self.metrics_keys:
            self._write(self.metrics_keys, [row for row in rows if int(row["step"]) < self.first_step])
        else:  # killed while it wrote the first line
            Path(self.metrics_file_path).unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(fieldnames, self._read()[1])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Names of the columns, sorted as Lightning does, and the rows; a half-written last line is left out."""
        text = Path(self.metrics_file_path).read_bytes().decode(errors="replace")
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        return sorted(reader.fieldnames or []), list(reader)

    def _write(self, fieldnames: list[str], rows: list[dict[str, str]]) -> None:
        with written(self.metrics_file_path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames)
            writer.writeheader()
            writer.writerows(rows)


def _numbered(parent: Path, prefix: str) -> list[Path]:
    """The folders ``<prefix>_N`` in the order of N."""
    found = parent.glob(f"{prefix}_*") if parent.is_dir() else ()
    return sorted((f for f in found if f.name.removeprefix(f"{prefix}_").isdecimal() and f.is_dir()), key=_number)


def _place(folder: Path) -> tuple[Path, str, str | int]:
    """Split a folder into the parts that Lightning takes; of a version only the number, for the progress bar."""
    version = _VERSION.fullmatch(folder.name)
    return folder.parent.parent, folder.parent.name, int(version[1]) if version else folder.name


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("_")[2])
