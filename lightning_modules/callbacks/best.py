"""The checkpoint with the best score."""

import math
from typing import Any

import lightning.pytorch.callbacks as lightning
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

__all__ = ["ModelCheckpoint"]


class ModelCheckpoint(lightning.ModelCheckpoint):
    """Lightning's, except that a second metric decides between equal scores, where Lightning keeps the earlier one.

    A small validation split often gives the same accuracy twice; the epoch with the lower loss is then the better one.
    At the end of a fit the best score and its checkpoint are printed.

    It has the name of Lightning's so that recipes, options of the command line and the states in checkpoints mean
    either.

    Args:
        tie_breaker: logged metric whose lower value wins where the monitored one is equal, such as ``val/loss``.
            Where it is not logged, the earlier checkpoint wins.
        kwargs: Lightning's arguments.
    """

    def __init__(self, tie_breaker: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tie_breaker = tie_breaker
        self.ties: dict[str, float] = {}  # the tie breaker's value for each of best_k_models

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the current weights belong to the best k."""
        if super().check_monitor_top_k(trainer, current):
            return True
        if current is None:
            return False
        worst = self.kth_best_model_path
        wins = current == self.best_k_models[worst] and self._tie(trainer) < self.ties.get(worst, math.inf)
        return trainer.strategy.reduce_boolean_decision(bool(wins))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is not None and self.best_model_path and self.best_model_score is not None:
            rank_zero_info(f"Best {self.monitor}: {float(self.best_model_score):.4g}, in {self.best_model_path}")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "ties": self.ties}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Lightning's callback saves none, and it forgets the best of another folder.
        ties = state_dict.get("ties", {})
        self.ties = {path: ties[path] for path in self.best_k_models if path in ties}

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        # By now Lightning has chosen the best and the worst by the score alone, and the file will hold its choice.
        if filepath in self.best_k_models:
            self.ties[filepath] = self._tie(trainer)
            self.ties = {path: self.ties.get(path, math.inf) for path in self.best_k_models}
            sign = 1 if self.mode == "min" else -1
            ranked = sorted(self.ties, key=lambda path: (sign * float(self.best_k_models[path]), self.ties[path]))
            self.best_model_path, self.kth_best_model_path = ranked[0], ranked[-1]
        super()._save_checkpoint(trainer, filepath)

    def _tie(self, trainer: Trainer) -> float:
        if self.tie_breaker is None:
            return math.inf
        value = float(trainer.callback_metrics.get(self.tie_breaker, math.inf))
        return math.inf if math.isnan(value) else value
