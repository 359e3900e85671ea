"""The checkpoint from which an interrupted training resumes."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

__all__ = ["LastCheckpoint"]


class LastCheckpoint(ModelCheckpoint):
    """Writes checkpoints/last.ckpt after every epoch, every so many minutes within one, on SIGTERM and on Ctrl-C.

    ``ModelCheckpoint(save_last=True)`` would write it only where it also saves the best. Within an epoch it is written
    between two optimiser steps, never between two batches whose gradients are added up, since a checkpoint does not
    hold gradients. List it behind the callback that keeps the best, whose state it holds.

    In the training of a single process Ctrl-C stops as SIGTERM does, after the batch, and raises the same exception
    with exit status 130; pressed again it stops at once, and nothing is written. A stop within a validation leaves the
    checkpoint from before it.

    Args:
        every_minutes: least time between two within an epoch, looked at every ``trainer.log_every_n_steps`` steps.
    """

    def __init__(self, every_minutes: float = 30.0) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.every_minutes = every_minutes
        self.interrupted = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Processes that train together would stop after different batches and wait for each other.
        alone = trainer.world_size == 1 and threading.current_thread() is threading.main_thread()
        if alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)  # until the end of the fit, when Lightning resets all signals

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.interrupted = True
        rank_zero_info("\nStopping after this batch; Ctrl-C again stops at once, without a checkpoint.")
        os.kill(os.getpid(), signal.SIGTERM)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        # One step behind a logged one: the row of a step is written after this, and would be missing after a kill.
        every: int = trainer.log_every_n_steps or 50  # type: ignore[attr-defined]  # its connector for loggers sets it
        if trainer.global_step % every != 1 % every or trainer.fit_loop._should_accumulate():
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # written after the epoch's validation
        due = time.monotonic() - (self._last_time_checked or 0.0) >= 60 * self.every_minutes
        if trainer.strategy.broadcast(due):
            self._save(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Lightning raises it between two batches, so the state is whole; after other exceptions it may not be.
        if not isinstance(exception, SIGTERMException):
            return
        if self.interrupted:
            exception.code = 128 + signal.SIGINT
        # A validation that is broken off has half of its numbers, and an average of the weights in the module.
        if not trainer.validating and not trainer.fit_loop._should_accumulate():
            self._save(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell the callbacks that keep checkpoints where these are now, if the run's folder has another path.

        They would forget the best score otherwise, and the best checkpoint would be overwritten.
        """
        folder = self.dirpath
        assert folder is not None  # since `setup`
        if os.path.realpath(os.path.dirname(trainer.ckpt_path or "")) != os.path.realpath(folder):
            return  # the training continues in a new folder
        for state in checkpoint["callbacks"].values():
            if isinstance(state, dict) and state.get("dirpath"):
                old = state["dirpath"]
                for key in ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = _moved(state[key], old, str(folder))
                for key in {"best_k_models", "ties"} & state.keys():
                    state[key] = {_moved(k, old, str(folder)): v for k, v in state[key].items()}

    def _save(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_time_checked = time.monotonic()


def _moved(path: str, old: str, new: str) -> str:
    return new + path.removeprefix(old) if path.startswith(old) else path
