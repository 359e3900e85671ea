"""How fast a training goes, and whether it waits for its data."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

__all__ = ["Throughput"]


class Throughput(Callback):
    """Logs clips per second and the share of time spent waiting for data, averaged over ``trainer.log_every_n_steps``.

    ``train/clips_per_second`` counts the clips of all processes; ``train/data_wait`` (0..1) is the first process's,
    logged where the loader knows how long it was waited for (`datamodules.loading.ClipLoader`). Validation and the
    writing of checkpoints do not count. A GPU works behind the clock of the CPU; no step is made to wait for it, since
    over a logging interval the two run at the same speed.
    """

    def __init__(self) -> None:
        self._reset()
        self.since: float | None = None  # when the clock was started; None while it stands

    def _reset(self) -> None:
        self.clips = 0
        self.seconds = self.waited = 0.0

    def _start(self, trainer: Trainer) -> None:
        if self.since is None:
            self.since, self.waited_before = time.perf_counter(), _waited(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if self.since is not None:
            self.seconds += time.perf_counter() - self.since
            self.waited += _waited(trainer) - self.waited_before
            self.since = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()
        self.since, self.logged_step = None, trainer.global_step

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer)  # before the first batch is fetched

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self._start(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        self.clips += len(next(iter(batch.values())))
        step = trainer.global_step  # stands still while gradients are added up
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # its connector for loggers sets it
        if step == self.logged_step or not every or step % every:
            return
        self.logged_step = step
        self._stop(trainer)
        pl_module.log("train/clips_per_second", self.clips * trainer.world_size / self.seconds, prog_bar=True)
        if hasattr(trainer.train_dataloader, "waited"):
            pl_module.log("train/data_wait", self.waited / self.seconds)
        self._reset()
        self._start(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(trainer)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._stop(trainer)


def _waited(trainer: Trainer) -> float:
    return getattr(trainer.train_dataloader, "waited", 0.0)
