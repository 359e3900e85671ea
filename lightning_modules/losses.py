"""Loss functions that several tasks may share."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["contrastive_loss"]


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
