"""Augmentation of clips in training: uint8 (T, 3, H, W), the same for every frame of a clip.

Randomness comes from torch's generator only, which DataLoader workers seed per worker, so that a run can be repeated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop

from datamodules.video.resize import resize_options

__all__ = [
    "AUTO_AUGMENT_POLICIES",
    "CROPS",
    "TrainTransform",
    "auto_augment",
    "multi_scale_crop",
    "rand_augment",
    "random_resized_crop",
]

CROPS = ("random_resized", "multi_scale")
"""How training clips are cropped: `random_resized_crop` or `multi_scale_crop`."""

FILL = 128.0
"""Grey that fills what rotation, shear and translation uncover."""


def random_resized_crop(
    video: Tensor,
    size: int,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> Tensor:
    """One random box, the same for all frames, resized to a square.

    Args:
        video: uint8 (T, 3, H, W).
        size: side of the result in pixels.
        area: range of the box's share of the frame, uniform.
        ratio: range of the box's width / height, log-uniform.

    Returns:
        uint8 (T, 3, size, size).
    """
    crop = RandomResizedCrop(size, scale=area, ratio=ratio, **resize_options(interpolation))
    return cast(Tensor, crop(video))


_SIDES = (1.0, 0.875, 0.75, 0.66)
_PLACES = [(x, y) for x in range(5) for y in range(5) if x % 2 == y % 2]


def multi_scale_crop(video: Tensor, size: int) -> Tensor:
    """One of a few boxes at one of a few places, the same for all frames, resized to a square.

    The crop of masked pretraining (docs/protocol.md, section 3), from Temporal Segment Networks (arXiv 1608.00859):
    a side of the box is 1, 0.875, 0.75 or 0.66 of the frame's shorter side, cut to whole pixels, or `size` where that
    is less than 3 pixels away; width and height are equal or neighbours in this list. The 13 places:

        x . x . x
        . x . x .    in fourths of what is left beside the box, the fourths cut to whole pixels
        x . x . x
        . x . x .
        x . x . x

    Resized bilinearly with antialiasing, as PIL does.

    Args:
        video: uint8 (T, 3, H, W).
        size: side of the result in pixels.

    Returns:
        uint8 (T, 3, size, size).
    """
    height, width = video.shape[-2:]
    sides = [int(min(height, width) * share) for share in _SIDES]
    sides = [size if abs(side - size) < 3 and size <= min(height, width) else side for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    box_height, box_width = pairs[_integer(len(pairs))]
    x, y = _PLACES[_integer(len(_PLACES))]
    top, left = y * ((height - box_height) // 4), x * ((width - box_width) // 4)
    box = video[..., top : top + box_height, left : left + box_width]
    return F.resize(box, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)


@dataclass(frozen=True)
class TrainTransform:
    """Random operations, resized crop and horizontal flip of one clip, uint8 (T, 3, H, W) -> (T, 3, size, size).

    Args:
        size: side of the result in pixels.
        area: see `random_resized_crop`.
        ratio: see `random_resized_crop`.
        interpolation: see `resize_short_side`.
        flip: probability of a horizontal flip; 0 where direction matters.
        num_ops: operations of `rand_augment`; 0 leaves it out.
        magnitude: see `rand_augment`.
        magnitude_std: see `rand_augment`.
        policy: of `auto_augment`, before RandAugment; None leaves it out.
        crop_first: crop and flip before these operations instead of after them.
        crop: one of `CROPS`; "multi_scale" leaves area, ratio and interpolation without effect.
    """

    size: int
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    flip: float = 0.5
    num_ops: int = 0
    magnitude: float = 7.0
    magnitude_std: float = 0.5
    policy: str | None = None
    crop_first: bool = False
    crop: str = "random_resized"

    def __call__(self, video: Tensor) -> Tensor:
        """Return an augmented clip, uint8 (T, 3, size, size), of one in uint8 (T, 3, H, W)."""
        if self.crop_first:
            return self._augment(self._crop_and_flip(video))
        return self._crop_and_flip(self._augment(video))

    def _augment(self, video: Tensor) -> Tensor:
        video = auto_augment(video, self.policy) if self.policy else video
        return rand_augment(video, self.num_ops, self.magnitude, self.magnitude_std) if self.num_ops else video

    def _crop_and_flip(self, video: Tensor) -> Tensor:
        if self.crop == "multi_scale":
            video = multi_scale_crop(video, self.size)
        else:
            video = random_resized_crop(
                video, self.size, area=self.area, ratio=self.ratio, interpolation=self.interpolation
            )
        return F.horizontal_flip(video) if _uniform() < self.flip else video


def rand_augment(
    video: Tensor, num_ops: int = 4, magnitude: float = 7.0, magnitude_std: float = 0.5, op_probability: float = 0.5
) -> Tensor:
    """RandAugment with the 15 operations whose strength grows with the magnitude, as timm's `inc1` policies have them.

    `rand-m7-n4-mstd0.5-inc1` of the published recipes is num_ops=4, magnitude=7, magnitude_std=0.5. Operations are
    drawn with replacement, each is applied with `op_probability`, and all frames of the clip get the same ones.

    Args:
        video: uint8 (T, 3, H, W).
        magnitude: 0 .. 10; each operation draws its own around it, normally distributed, clipped to this range.

    Returns:
        uint8 (T, 3, H, W).
    """
    for _ in range(num_ops):
        operation = list(_OPERATIONS.values())[_integer(len(_OPERATIONS))]
        if _uniform() < op_probability:
            level = float(torch.normal(magnitude, magnitude_std, ()).clamp(0, 10)) if magnitude_std else magnitude
            video = operation(video, level / 10)
    return video


def auto_augment(video: Tensor, policy: str = "v0") -> Tensor:
    """AutoAugment (arXiv 1805.09501): one of 25 pairs of operations, each with its own probability and magnitude.

    `v0` is the ImageNet policy of TPU EfficientNet and of timm's `aa=v0`. It is not the table in the paper's appendix,
    which torchvision's AutoAugment has: the pairs are others, SolarizeAdd is among them, colour is scaled by
    0.1 .. 1.9, and posterisation keeps 0 .. 4 bits. All frames of the clip get the same operations.

    Args:
        video: uint8 (T, 3, H, W).
        policy: a name of `AUTO_AUGMENT_POLICIES`.

    Returns:
        uint8 (T, 3, H, W).
    """
    pairs = AUTO_AUGMENT_POLICIES[policy]
    for name, probability, level in pairs[_integer(len(pairs))]:
        if _uniform() < probability:
            video = (_OPERATIONS | _LEVEL_OPERATIONS)[name](video, level / 10)
    return video


def _signed(value: float) -> float:
    return value if _uniform() < 0.5 else -value


def _affine(
    video: Tensor,
    *,
    angle: float = 0.0,
    shear: tuple[float, float] = (0.0, 0.0),
    shift: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    return F.affine(
        video,
        angle=angle,
        translate=list(shift),
        scale=1.0,
        shear=[math.degrees(math.atan(tangent)) for tangent in shear],
        interpolation=InterpolationMode.BILINEAR,  # the published code has bicubic, which torchvision lacks on tensors
        fill=FILL,  # type: ignore[arg-type]  # a number counts for every channel
        center=[0.0, 0.0] if any(shear) else None,  # PIL, which the recipes were tuned with, shears about the corner
    )


def _solarize(video: Tensor, threshold: int) -> Tensor:
    return F.solarize(video, threshold) if threshold < 256 else video


def _solarize_add(video: Tensor, add: int) -> Tensor:
    return torch.where(video < 128, (video.to(torch.int16) + add).clamp(max=255).to(torch.uint8), video)


# name -> (clip, strength 0..1) -> clip; names and ranges are those of timm's "increasing" set.
_OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "AutoContrast": lambda video, strength: F.autocontrast(video),
    "Equalize": lambda video, strength: F.equalize(video),
    "Invert": lambda video, strength: F.invert(video),
    "Rotate": lambda video, strength: _affine(video, angle=_signed(30 * strength)),
    "PosterizeIncreasing": lambda video, strength: F.posterize(video, 4 - int(4 * strength)),
    "SolarizeIncreasing": lambda video, strength: _solarize(video, 256 - int(256 * strength)),
    "SolarizeAdd": lambda video, strength: _solarize_add(video, int(110 * strength)),
    "ColorIncreasing": lambda video, strength: F.adjust_saturation(video, 1 + _signed(0.9 * strength)),
    "ContrastIncreasing": lambda video, strength: F.adjust_contrast(video, 1 + _signed(0.9 * strength)),
    "BrightnessIncreasing": lambda video, strength: F.adjust_brightness(video, 1 + _signed(0.9 * strength)),
    "SharpnessIncreasing": lambda video, strength: F.adjust_sharpness(video, 1 + _signed(0.9 * strength)),
    "ShearX": lambda video, strength: _affine(video, shear=(_signed(0.3 * strength), 0.0)),
    "ShearY": lambda video, strength: _affine(video, shear=(0.0, _signed(0.3 * strength))),
    "TranslateXRel": lambda video, strength: _affine(video, shift=(_signed(0.45 * strength) * video.shape[-1], 0.0)),
    "TranslateYRel": lambda video, strength: _affine(video, shift=(0.0, _signed(0.45 * strength) * video.shape[-2])),
}

# The same for operations whose magnitude says what is left, not how much is done.
_LEVEL_OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Posterize": lambda video, strength: F.posterize(video, int(4 * strength)),
    "Solarize": lambda video, strength: _solarize(video, int(256 * strength)),
    "Color": lambda video, strength: F.adjust_saturation(video, 0.1 + 1.8 * strength),
}

AUTO_AUGMENT_POLICIES: dict[str, tuple[tuple[tuple[str, float, int], ...], ...]] = {
    "v0": (
        (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
        (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
        (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
        (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
        (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
        (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
        (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
        (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
        (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
        (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
        (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
        (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
        (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
        (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
        (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
        (("Rotate", 1.0, 7), ("TranslateYRel", 0.8, 9)),
        (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
        (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
        (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
        (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
        (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
        (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
        (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),  # no bit is left: black, as in the published training
        (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
        (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
    ),
}
"""Policy -> pairs of (operation, probability, magnitude 0 .. 10)."""


def _uniform() -> float:
    return torch.rand(()).item()


def _integer(bound: int) -> int:
    return int(torch.randint(bound, ()))
