"""Loss functions that several tasks may share."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ALIGNMENT_LOSSES", "alignment_loss", "contrastive_loss", "max_margin_loss"]

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


def max_margin_loss(text: Tensor, video: Tensor, margin: float = 0.2, group: Tensor | None = None) -> Tensor:
    """Mean over all wrong pairs of a batch of how far each comes closer to the right pair than `margin`.

    For texts i and videos j with cosines s: ``max(0, margin - s_ii + s_ij)`` of each text and each wrong video, and
    ``max(0, margin - s_jj + s_ij)`` of each video and each wrong text. It is the loss that Video Mamba Suite (arXiv
    2403.09626) fine-tunes with on EPIC-KITCHENS-100 retrieval.

    Args:
        text: unit vectors (N, D); row i belongs to row i of `video`.
        video: unit vectors (N, D).
        margin: by which right pairs are to be nearer than wrong ones.
        group: int64 (N,); pairs of the same group are no wrong pairs of each other. None takes every other pair.
    """
    cosines = text.float() @ video.float().T
    right = cosines.diagonal()
    excess = F.relu(margin - right[:, None] + cosines) + F.relu(margin - right[None, :] + cosines)
    same = torch.eye(len(right), dtype=torch.bool, device=right.device)
    if group is not None:
        same = same | (group[:, None] == group[None, :])
    # The sum keeps a gradient where there is no wrong pair.
    return excess.masked_fill(same, 0.0).sum() / (2 * (~same).sum()).clamp_min(1)
