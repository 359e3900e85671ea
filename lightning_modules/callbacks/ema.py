"""Exponential moving average of the weights."""

import warnings

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

__all__ = ["EMA"]


class EMA(WeightAveraging):
    """Validates and saves the moving average: each optimiser step, average = decay * average + (1 - decay) * weights.

    The average starts as the weights after the first step. In a ``.ckpt``, ``state_dict`` is the average, which is
    therefore what testing, `zoo.load` and `hub` take; training resumes from ``current_model_state``. At the end of the
    training the module holds the average.

    It is Lightning's callback, except that a checkpoint tested in the process that trained it is the average too:
    Lightning's puts the weights before averaging into the module.

    Args:
        decay: of the average; its memory is about 1 / (1 - decay) steps.
        device: where the average is kept; None is the model's device, "cpu" saves the accelerator's memory.
    """

    def __init__(self, decay: float = 0.9999, device: str | None = None) -> None:
        # Buffers are copied: those of our modules are constants, and a BatchNorm's are averages already.
        super().__init__(device=device, use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with warnings.catch_warnings():
            # Said of any module with this hook; ours shards only under `fsdp2`, where it refuses averaging.
            warnings.filterwarnings("ignore", message=".*model that overrides the configure_model")
            super().setup(trainer, pl_module, stage)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._average_model = None
