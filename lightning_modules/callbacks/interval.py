"""How often a training is logged."""

import warnings

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

__all__ = ["LogInterval"]


class LogInterval(Callback):
    """Lowers ``trainer.log_every_n_steps`` to the steps of an epoch, so that every epoch has a point of its curves.

    Lightning's default is 50, and an epoch of a small data set has fewer. List it before callbacks that log.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning advises to lower the interval before the first hook that knows how many batches there are.
        warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_training_batches
        if batches != float("inf"):
            steps = -(-int(batches) // trainer.accumulate_grad_batches)
            # Its connector for loggers sets the attribute, which the class does not declare.
            every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
            trainer.log_every_n_steps = min(every, max(steps, 1))  # type: ignore[attr-defined]
