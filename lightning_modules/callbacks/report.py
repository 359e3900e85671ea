"""What a test has shown, as a page, tables and pictures."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_modules.errors import ModelError
from lightning_modules.files import written

if TYPE_CHECKING:
    from lightning_modules.report.answers import AnswerRows, Answers
    from lightning_modules.report.matches import Matches, MatchRows

__all__ = ["Report"]

PAGE, FACTS = "report.html", "report.json"


class Report(Callback):
    """Writes report.html and what belongs to it into the run's folder when a test ends.

    - A classifier's test leaves per_class.csv, mistakes.csv and confusion.png, a retrieval's mistakes.csv and
      ranks.png, and report.json has the scores and which checkpoint was tested. The page shows the worst clips; it
      reads these, and no others, again.
    - Any module can have a report: its `test_step` returns what `lightning_modules.report` takes (docs/extend.md).
    - Samples are counted once by their index, also across processes; the first process writes.
    - A report that cannot be made is a warning. The test counts more.

    Args:
        worst: clips to show; 0 for none.

    Raises:
        ModelError: `worst` is not from 0 to 100.
    """

    def __init__(self, worst: int = 12) -> None:
        if not 0 <= worst <= 100:
            raise ModelError(f"worst is {worst}; the report shows from 0 to 100 clips.")
        self.worst = worst
        self.folder: Path | None = None
        self._rows: AnswerRows | MatchRows | None = None
        self._failure: str | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # All processes ask for the folder; asked for in one alone, it would wait for the others for ever.
        tries = getattr(trainer, "fast_dev_run", False)  # its connector for debugging sets it
        folder = trainer.log_dir if stage == "test" and trainer.loggers and not tries else None
        self.folder = None if folder is None else Path(folder)
        self._rows = self._failure = None

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.folder is None or self._failure is not None or dataloader_idx > 0:
            return
        try:
            if self._rows is None:
                self._rows = _rows_for(outputs, trainer.world_size)
            if self._rows is not None:
                self._rows.add(outputs, batch)
        except Exception as error:  # whatever a module of somebody else returns
            self._failure = _reason(error)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.folder is None:
            return
        rows, self._rows = self._rows, None
        part = self._failure or (None if rows is None else rows.part())
        parts: list[Any] = [part]
        if trainer.world_size > 1:  # every process takes part, whatever happened in it
            parts *= trainer.world_size
            torch.distributed.gather_object(part, parts if trainer.is_global_zero else None)
        if not trainer.is_global_zero or rows is None:
            return
        try:
            failures = [part for part in parts if isinstance(part, str)]
            if failures:
                raise ModelError(failures[0])
            found = rows.join([part for part in parts if part is not None])
            if found is not None:
                self._write(trainer, pl_module, found, self.folder)
        except Exception as error:  # a report is not worth a failed test
            rank_zero_warn(f"{self.folder / PAGE} could not be written: {_reason(error)}")

    def _write(self, trainer: Trainer, pl_module: LightningModule, found: "Answers | Matches", folder: Path) -> None:
        # Heavy, and of no use to a training.
        from lightning_modules.report.clips import clip_of
        from lightning_modules.report.page import render

        loader: Any = trainer.test_dataloaders
        clip = partial(clip_of, loader[0] if isinstance(loader, list | tuple) else loader)
        tested = _checkpoint(trainer.ckpt_path, folder)
        data = getattr(trainer, "datamodule", None)
        facts = [type(pl_module).__name__, *([tested["path"].removeprefix("../")] if tested else []),
                 *([type(data).__name__] if data is not None else []), f"{found.samples:,} samples"]  # fmt: skip
        if found.unreadable:
            facts.append(f"left out, since they could not be read: {found.unreadable:,}")
        page = render(f"Test of {folder.absolute().parent.name}", facts, list(found.sections(clip, self.worst)))
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        record = {"checkpoint": tested, "samples": found.samples, "unreadable": found.unreadable,
                  "scores": found.scores, "logged": logged}  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        files = {**dict(found.files()), FACTS: (json.dumps(record, indent=1) + "\n").encode(),
                 PAGE: page.encode("utf-8", "replace")}  # fmt: skip
        for name, content in files.items():
            with written(folder / name) as beside:
                beside.write_bytes(content)
        rank_zero_info(f"Report: {folder / PAGE}")


def _rows_for(outputs: object, processes: int) -> "AnswerRows | MatchRows | None":
    """What collects outputs of this form; None where they are none that a report takes."""
    from lightning_modules.report.answers import AnswerRows
    from lightning_modules.report.matches import MatchRows

    if not isinstance(outputs, Mapping):
        return None
    if {"scores", "truth", "names"} <= outputs.keys():
        return AnswerRows(processes)
    return MatchRows() if {"video_vectors", "text_vectors"} <= outputs.keys() else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _checkpoint(path: str | os.PathLike[str] | None, folder: Path) -> dict[str, str] | None:
    """Path, relative to the report's folder, and hash of the tested file, by which it is found again."""
    if path is None or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": Path(os.path.relpath(path, folder)).as_posix(), "sha256": sha256}
