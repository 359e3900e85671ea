"""Numbers of a classification report."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_average_precision,
    multiclass_confusion_matrix,
    multiclass_stat_scores,
)

__all__ = ["BINS", "Calibration", "PerClass", "average_precision", "calibration", "confusion", "interval",
           "most_confused", "per_class"]  # fmt: skip

BINS = 15
"""Bins of a calibration curve, as in Guo et al., arXiv 1706.04599."""

_RESAMPLINGS = 10_000


class PerClass(NamedTuple):
    """Scores of each class, float64 (K,), nan where they are undefined.

    Attributes:
        count: samples of the class.
        precision: share of right ones among the samples that got this answer; undefined where none did.
        recall: share of the class's samples that got this answer; undefined without samples.
        f1: harmonic mean of the two; undefined without samples and answers.
    """

    count: Tensor  # type: ignore[assignment]  # it hides tuple.count, which nobody needs of scores
    precision: Tensor
    recall: Tensor
    f1: Tensor


class Calibration(NamedTuple):
    """How often answers of a confidence are right, in equal bins from 0 to 1; nan in empty bins.

    Attributes:
        count: (bins,) answers.
        confidence: (bins,) their mean probability.
        accuracy: (bins,) the share of right ones.
        error: expected calibration error, the mean distance of the two over all answers.
    """

    count: Tensor  # type: ignore[assignment]  # as in `PerClass`
    confidence: Tensor
    accuracy: Tensor
    error: float


def per_class(answer: Tensor, truth: Tensor, num_classes: int) -> PerClass:
    """Count right and wrong answers by class.

    Args:
        answer: int64 (N,), 0 .. K - 1.
        truth: int64 (N,), 0 .. K, where K is none of the classes.
        num_classes: K.
    """
    found = multiclass_stat_scores(answer, truth, num_classes + 1, average="none", validate_args=False)
    right, wrong, _, missed, count = found[:num_classes].double().unbind(dim=1)
    # 0 / 0 is nan.
    return PerClass(count, right / (right + wrong), right / count, 2 * right / (2 * right + wrong + missed))


def confusion(answer: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """How often samples of a class (row) got an answer (column), int64 (K, K); arguments as for `per_class`."""
    return multiclass_confusion_matrix(answer, truth, num_classes + 1, validate_args=False)[:num_classes, :num_classes]


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Area under the precision-recall curve of each class against the rest, float64 (K,), nan without samples.

    Args:
        scores: (N, K).
        truth: int64 (N,), 0 .. K, where K is none of the classes.
    """
    found = torch.full((scores.shape[1],), float("nan"), dtype=torch.float64)
    for k in truth.unique().tolist():
        if k < len(found):
            found[k] = binary_average_precision(scores[:, k], (truth == k).long(), validate_args=False)
    return found


def most_confused(matrix: Tensor, most: int) -> Tensor:
    """The classes that take part in the most mistakes, int64, ascending; all where there are at most so many."""
    if len(matrix) <= most:
        return torch.arange(len(matrix))
    wrong = matrix - torch.diag(matrix.diag())
    return torch.sort((wrong.sum(0) + wrong.sum(1)).argsort(descending=True, stable=True)[:most]).values


def calibration(confidence: Tensor, right: Tensor, bins: int = BINS) -> Calibration:
    """Compare the probabilities of answers (N,) with whether they are right, bool (N,); without answers all is nan."""
    confidence, right = confidence.double(), right.double()
    place = (confidence * bins).long().clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins).double()
    sure, accuracy = (torch.bincount(place, weights=values, minlength=bins) / count for values in (confidence, right))
    gaps = (sure - accuracy).abs().nan_to_num(0.0)
    return Calibration(count, sure, accuracy, float((count * gaps).sum() / count.sum()))


def interval(share: float, samples: int) -> tuple[float, float]:
    """Where a share of so many samples lies with 95 % probability, by the bootstrap.

    Drawing samples again with replacement makes the number of right ones binomial, which is therefore drawn.
    """
    if samples == 0:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).binomial(samples, share, _RESAMPLINGS) / samples
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)
