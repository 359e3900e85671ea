"""The progress of a run: one line that fits the terminal, and a line for each epoch."""

import time
from typing import Any

import lightning.pytorch.callbacks as lightning
from lightning.pytorch import LightningModule, Trainer
from rich import get_console, reconfigure
from rich.progress import ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text
from typing_extensions import override

__all__ = ["RichProgressBar"]

_SHORT = {"train/clips_per_second": "clips/s"}


class RichProgressBar(lightning.RichProgressBar):
    """Lightning's, on one line that is cut at the terminal's edge; every epoch leaves a line with its metrics.

    Where the output is no terminal, as in a log file, only the lines of the epochs are printed. Shown are the metrics
    that are logged with ``prog_bar=True``, under their names without ``train/``.

    Args:
        kwargs: Lightning's arguments.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.console_kwargs = kwargs.get("console_kwargs") or {}
        self.text = ""
        self.prints = False
        self.validated = False
        self.epoch_began = 0.0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.prints = trainer.is_global_zero and self.refresh_rate > 0
        reconfigure(**self.console_kwargs)  # as Lightning's does when it starts
        console = get_console()
        if not (console.is_interactive or console.is_jupyter):
            self.disable()

    @override
    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        description, bar, batches = super().configure_columns(trainer)[:3]
        bar.bar_width = 12
        return [description, bar, batches, TimeRemainingColumn(compact=True), _Metrics(self)]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Nothing: Lightning's column takes as many lines as it needs. Ours shows the metrics as they are now."""
        self.text = _text(trainer.progress_bar_metrics)
        return {}

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.validated, self.epoch_began = False, time.monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.validated = not trainer.sanity_checking

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.progress is not None and self.train_progress_bar_id is not None:
            # Its line follows, and messages that are written past rich would be put behind the bar.
            self.progress.update(self.train_progress_bar_id, visible=False)
            self.progress.refresh()
        if not self.prints:
            return
        metrics = trainer.progress_bar_metrics
        if not self.validated:  # those of an earlier epoch
            metrics = {name: value for name, value in metrics.items() if not name.startswith("val/")}
        seconds = time.monotonic() - self.epoch_began
        line = f"{self._get_train_description(trainer.current_epoch).strip()} ({seconds:.0f} s): {_text(metrics)}"
        get_console().print(line, soft_wrap=True, markup=False, highlight=False)

    def _get_train_description(self, current_epoch: int) -> str:
        last = (self.trainer.max_epochs or 0) - 1  # -2 in a run that counts steps
        text = f"Epoch {current_epoch}/{last}" if last >= 0 else f"Epoch {current_epoch}"
        return f"{text:{len(self.validation_description)}}"  # the bars of training and validation start alike


class _Metrics(ProgressColumn):
    """What `RichProgressBar` has to say beside the bar of a training epoch."""

    def __init__(self, bar: RichProgressBar) -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Text:
        text = self.bar.text if task.id == self.bar.train_progress_bar_id else ""
        return Text(text, no_wrap=True, overflow="ellipsis", style=self.bar.theme.metrics)


def _text(metrics: dict[str, Any]) -> str:
    """{"train/loss": 1.3284, "val/top1": 0.5} -> "loss 1.328, val/top1 0.500"."""
    names = {name: _SHORT.get(name, name.removeprefix("train/")) for name in metrics}
    return ", ".join(f"{names[name]} {_number(float(value))}" for name, value in metrics.items())


def _number(value: float) -> str:
    """1.328 with three decimals, large numbers with fewer, small ones as 1.3e-05."""
    if abs(value) >= 10:
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
