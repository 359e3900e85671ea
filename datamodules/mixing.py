"""Augmentation of whole batches on the device: random erasing, mixup and cutmix.

The batch mode of the published recipes: one lambda for the batch, and sample i meets sample B - 1 - i. In a batch of
odd size the middle sample meets itself and stays as it is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BatchMixer", "random_erasing"]

# ImageNet statistics: what "unit noise" means where pixels are in 0..1. The recipes erase after normalisation.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BatchMixer:
    """Turns a batch with labels into one with mixed float video and soft targets.

    Args:
        mixup: alpha of the Beta distribution of lambda for mixup; 0 switches mixup off.
        cutmix: the same for cutmix; where both are on, each has half of the batches.
        erasing: probability of random erasing per video, before mixing.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return self.mixup > 0 or self.cutmix > 0 or self.erasing > 0

    def __call__(self, batch: dict[str, Any], num_classes: int | Mapping[str, int]) -> dict[str, Any]:
        """Batch with `video` uint8 or float 0..1 (B, 3, T, H, W) and labels int64 (B,) on any device.

        Args:
            batch: as a DataModule makes it.
            num_classes: of `label`; of a batch with several labels, the classes of each by its key.

        Returns:
            A new batch with `video` float32, and where mixup or cutmix is on, `target` float32 (B, num_classes), or
            for each of several labels `<key>_target`. Targets are not smoothed: each row has the shares of the clips
            in its picture, and a label of -1 (unknown) contributes nothing. Nothing is done if nothing is on.
        """
        if not self.active:
            return batch
        video = batch["video"]
        video = video.float() / 255 if video.dtype == torch.uint8 else video.clone()
        if self.erasing > 0:
            video = random_erasing(video, self.erasing)
        batch = {**batch, "video": video}
        if self.mixup > 0 or self.cutmix > 0:
            use_cutmix = self.cutmix > 0 and (self.mixup == 0 or torch.rand(()).item() < 0.5)
            share = _beta(self.cutmix if use_cutmix else self.mixup)
            batch["video"], share = _cutmix(video, share) if use_cutmix else (_mixup(video, share), share)
            several = isinstance(num_classes, Mapping)
            for key, classes in (num_classes if isinstance(num_classes, Mapping) else {"label": num_classes}).items():
                target = F.one_hot(batch[key].clamp_min(0), classes).float() * (batch[key] >= 0).unsqueeze(1)
                name = f"{key}_target" if several else "target"
                batch[name] = target.mul(share).add_(target.flip(0), alpha=1 - share)
        return batch


def _beta(alpha: float) -> float:
    return torch.distributions.Beta(alpha, alpha).sample().item()


def _mixup(video: Tensor, share: float) -> Tensor:
    return video.flip(0).lerp_(video, share)


def _cutmix(video: Tensor, share: float) -> tuple[Tensor, float]:
    """The partner's pixels in one box, the same for all frames and samples; the share is what the box really leaves."""
    height, width = video.shape[-2:]
    box_height, box_width = (int(side * math.sqrt(1 - share)) for side in (height, width))
    middle_y, middle_x = (int(torch.randint(side, ())) for side in (height, width))
    top, bottom = max(middle_y - box_height // 2, 0), min(middle_y + box_height // 2, height)
    left, right = max(middle_x - box_width // 2, 0), min(middle_x + box_width // 2, width)
    box = (..., slice(top, bottom), slice(left, right))
    video[box] = video[box].flip(0)
    return video, 1 - (bottom - top) * (right - left) / (height * width)


def random_erasing(video: Tensor, probability: float) -> Tensor:
    """Fills one box per video, the same in all frames, with MEAN + STD * N(0, 1), drawn per pixel and frame.

    Its share of the frame is uniform in 0.02 .. 1/3, its height / width log-uniform in 0.3 .. 3.3. Boxes that do not
    fit are drawn again, at most ten times.

    Args:
        video: float 0..1 (B, 3, T, H, W), changed in place; the noise may leave this range.
        probability: of a box, per video.

    Returns:
        `video`.
    """
    height, width = video.shape[-2:]
    offset, scale = (torch.tensor(v, dtype=video.dtype, device=video.device).view(-1, 1, 1, 1) for v in (MEAN, STD))
    for clip in video:
        if torch.rand(()).item() >= probability:
            continue
        for _ in range(10):
            box_area = _uniform(0.02, 1 / 3) * height * width
            box_ratio = math.exp(_uniform(math.log(0.3), math.log(3.3)))
            box_height, box_width = round(math.sqrt(box_area * box_ratio)), round(math.sqrt(box_area / box_ratio))
            if box_height < height and box_width < width:
                top, left = (int(torch.randint(n + 1, ())) for n in (height - box_height, width - box_width))
                box = clip[..., top : top + box_height, left : left + box_width]
                box.copy_(torch.randn_like(box) * scale + offset)
                break
    return video


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()
