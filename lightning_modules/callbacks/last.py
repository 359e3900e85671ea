"""The checkpoint from which an interrupted training goes on."""

import os
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

__all__ = ["LastCheckpoint"]


class LastCheckpoint(ModelCheckpoint):
    """Writes checkpoints/last.ckpt after every epoch, every so many minutes within one, and on SIGTERM.

    ``ModelCheckpoint(save_last=True)`` would write it only where it also saves the best. Within an epoch it is written
    between two optimiser steps, never between two batches whose gradients are added up, since a checkpoint does not
    hold gradients. List it behind the callback that keeps the best, whose state it holds.

    Args:
        every_minutes: least time between two within an epoch, looked at every ``trainer.log_every_n_steps`` steps.
    """

    def __init__(self, every_minutes: float = 30.0) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.every_minutes = every_minutes

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # One step behind a logged one: the row of a step is written after this, and would be missing after a kill.
        every = trainer.log_every_n_steps or 50
        if trainer.global_step % every != 1 % every or trainer.fit_loop._should_accumulate():
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # written after the epoch's validation
        due = time.monotonic() - self._last_time_checked >= 60 * self.every_minutes
        if trainer.strategy.broadcast(due):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning raises it between two batches, so the state is whole; after other exceptions it may not be.
        if isinstance(exception, SIGTERMException) and not trainer.fit_loop._should_accumulate():
            self._save(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tells the callbacks that keep checkpoints where these are now, if the run's folder was moved or is named
        by another path: they would forget the best score, and the best checkpoint would be overwritten."""
        if os.path.realpath(os.path.dirname(trainer.ckpt_path)) != os.path.realpath(self.dirpath):
            return  # the training goes on in a new folder
        for state in checkpoint["callbacks"].values():
            if isinstance(state, dict) and state.get("dirpath"):
                old = state["dirpath"]
                for key in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = _moved(state[key], old, self.dirpath)
                for key in {"best_k_models", "ties"} & state.keys():
                    state[key] = {_moved(k, old, self.dirpath): v for k, v in state[key].items()}

    def _save(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_time_checked = time.monotonic()


def _moved(path: str, old: str, new: str) -> str:
    return new + path.removeprefix(old) if path.startswith(old) else path
