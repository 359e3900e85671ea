"""Stops a training whose loss is NaN or infinite, before the weights are lost."""

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_modules.errors import ModelError

__all__ = ["FiniteLoss"]


class FiniteLoss(Callback):
    """Raises `ModelError` with the batch's files where the loss is NaN or infinite, before the optimiser uses it.

    The weights are still those of the step before, and so is every checkpoint. All processes stop, and all name the
    files. The check does not make the GPU wait: the loss's finiteness is copied while the backward pass runs.
    """

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.pending: list[_Check] = []

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self.paths = list(batch.get("path", ())) if isinstance(batch, dict) else []

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.pending.append(_Check(loss.detach(), self.paths))

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        checks, self.pending = self.pending, []
        failed = [check for check in checks if not check.passed()]
        if failed:
            self._stop(trainer, [path for check in failed for path in check.culprits()])

    def _stop(self, trainer: Trainer, paths: list[str]) -> None:
        if trainer.world_size > 1:
            gathered: list[list[str]] = [[] for _ in range(trainer.world_size)]
            dist.all_gather_object(gathered, paths)
            paths = [path for part in gathered for path in part]
        named = f", in {', '.join(dict.fromkeys(paths))}" if paths else ""
        raise ModelError(
            f"The loss is not finite in step {trainer.global_step} (epoch {trainer.current_epoch}){named}; look at "
            "these files, lower model.optim.lr, or set trainer.gradient_clip_val."
        )


class _Check:
    """Whether a loss is finite in every process: asked at once, answered when the answer is needed."""

    def __init__(self, loss: Tensor, paths: list[str]) -> None:
        self.paths = paths
        self.here = (~torch.isfinite(loss)).any().int()
        self.anywhere = self.here.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.anywhere, op=dist.ReduceOp.MAX)
        self.copied = None
        if loss.is_cuda:
            self.anywhere = torch.empty((), dtype=torch.int32, pin_memory=True).copy_(self.anywhere, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def passed(self) -> bool:
        if self.copied is not None:
            self.copied.synchronize()
        return not self.anywhere.item()

    def culprits(self) -> list[str]:
        """The files of this process's batch, where it was this process's loss."""
        return self.paths if self.here.item() else []
