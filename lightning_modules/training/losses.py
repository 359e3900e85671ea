"""Loss functions that several tasks may share."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ALIGNMENT_LOSSES", "alignment_loss", "contrastive_loss"]

ALIGNMENT_LOSSES = ("l2", "mse", "smooth_l1")


def alignment_loss(student: Tensor, teacher: Tensor, loss: str = "l2", norm: str = "l2") -> Tensor:
    """Distance of features token by token, in float32 (docs/protocol.md, section 9).

    Args:
        student: (..., D).
        teacher: (..., D).
        loss: "l2" is the squared distance of unit vectors, 2 - 2 cos; "mse" and "smooth_l1" are the means over the
            channels of the squared and of the Huber distance.
        norm: "l2" brings both to unit length first; "none" leaves them, which goes with "mse" and "smooth_l1".

    Returns:
        (...), one number per token.
    """
    student, teacher = student.float(), teacher.float()
    if norm == "l2":
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if loss == "l2":
        return 2 - 2 * (student * teacher).sum(dim=-1)
    distance = F.mse_loss if loss == "mse" else F.smooth_l1_loss
    return distance(student, teacher, reduction="none").mean(dim=-1)


def contrastive_loss(text: Tensor, video: Tensor, scale: Tensor | float, group: Tensor | None = None) -> Tensor:
    """Mean of the text-to-video and the video-to-text cross-entropy over a batch of pairs (CLIP, arXiv 2103.00020).

    Row i of `text` belongs to row i of `video`; all other rows are negatives.

    Args:
        text: unit vectors (N, D).
        video: unit vectors (N, D).
        scale: inverse temperature that cosines are multiplied with.
        group: int64 (N,); pairs of the same group, such as two captions of one video, are no negatives of each other.
            None takes every other pair as a negative.
    """
    logits = scale * text.float() @ video.float().T
    if group is not None:
        same = group[:, None] == group[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
