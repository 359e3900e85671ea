"""Metrics that stay exact across processes."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.utilities import dim_zero_cat

__all__ = ["SampleAccuracy"]


class SampleAccuracy(Metric):
    """Top-1 and top-5 accuracy and mean loss over distinct samples.

    Every sample is kept with its index in the data set and counted once on `compute`, so a sampler that repeats
    samples to give all processes the same number does not shift the result, and placeholders for unreadable videos
    (index -1) are left out. Only the five best classes of a sample are stored: about 60 bytes a sample.
    """

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.k = min(5, num_classes)
        for name in ("index", "label", "best", "loss"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, label: Tensor, index: Tensor, loss: Tensor) -> None:
        """Adds a batch.

        Args:
            scores: (B, K), any scores that rank the classes.
            label: int64 (B,).
            index: int64 (B,), position in the data set; -1 is skipped.
            loss: (B,), averaged by `compute`.
        """
        self.index.append(index)
        self.label.append(label)
        self.best.append(scores.topk(self.k, dim=1).indices)
        self.loss.append(loss.float())

    def compute(self) -> dict[str, Tensor]:
        """top1 and top5 in [0, 1], loss and samples (how many were counted)."""
        index, label, best, loss = (dim_zero_cat(getattr(self, name)) for name in ("index", "label", "best", "loss"))
        kept = index >= 0
        index, label, best, loss = index[kept], label[kept], best[kept], loss[kept]
        order = torch.argsort(index, stable=True)
        index = index[order]
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        label, best, loss = label[order][first], best[order][first], loss[order][first]
        if not len(label):
            nan = loss.new_tensor(float("nan"))
            return {"top1": nan, "top5": nan, "loss": nan, "samples": loss.new_tensor(0.0)}
        # Scores that put the stored classes first, best highest, rebuild what multiclass_accuracy ranks.
        scores = torch.zeros(len(label), self.num_classes, device=label.device)
        scores.scatter_(
            1, best, torch.arange(self.k, 0, -1, device=label.device, dtype=scores.dtype).expand(len(label), -1)
        )
        accuracy = {
            f"top{k}": multiclass_accuracy(scores, label, self.num_classes, top_k=min(k, self.k), average="micro")
            for k in (1, 5)
        }
        return {**accuracy, "loss": loss.mean(), "samples": loss.new_tensor(float(len(loss)))}
