"""Which patches a masked model sees (VideoMamba, section 3.3 and Table 5; docs/protocol.md, section 9).

A clip has T frames of side x side patches, numbered frame by frame in raster order. ``#`` is masked; two frames:

    random           tube             clip-row         frame-row        attention
    # . # #  # # . #   # # . #  # # . #   # # # #  # # # #   # # # #  . . . .   as random, but the more CLIP's class
    # # # #  # . # #   . # # #  . # # #   . . . .  # # # #   # # # #  # # # #   token looks at a patch, the likelier
    . # # #  # # # .   # # # .  # # # .   # # # #  # # # #   . . . .  # # # #   it stays visible, and each frame keeps
    # # # .  # # # #   # # # #  # # # #   . . . .  # # # #   # # # #  # # # #   the same number

All of a batch is drawn at once on one device, from one generator: the same seed gives the same masks. Or each clip is
drawn from a generator of its own, and its mask then depends on nothing else in the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_modules.checks import MASK_TYPES, check_choice
from lightning_modules.errors import ModelError

__all__ = ["MASK_TYPES", "Generators", "draw_visible", "num_visible", "pick_first", "weighted_order"]

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One of the device, one of the CPU for each clip of the batch, or torch's own."""


def num_visible(mask_type: str, mask_ratio: float, frames: int, side: int) -> int:
    """How many of a clip's frames x side x side patches stay visible.

    The number of masked ones is cut to a whole number where it is drawn: in the clip ("random"), in a frame ("tube",
    "attention"), in rows of a frame ("clip-row", "frame-row").

    Args:
        mask_type: one of `MASK_TYPES`.
        mask_ratio: share of masked patches, 0 or more and less than 1.
        frames: frames of tokens T.
        side: patches along a side of a frame.

    Raises:
        ModelError: another mask type or ratio.
    """
    check_choice("mask_type", mask_type, MASK_TYPES)
    if not 0 <= mask_ratio < 1:
        raise ModelError(f"mask_ratio is {mask_ratio}; it has to be at least 0 and less than 1.")
    patches = side**2
    if mask_type == "random":
        visible = frames * patches - int(frames * patches * mask_ratio)
    elif mask_type in ("tube", "attention"):
        visible = frames * (patches - int(patches * mask_ratio))
    else:
        visible = frames * (side - int(side * mask_ratio)) * side
    return visible


def draw_visible(
    mask_type: str,
    mask_ratio: float,
    batch: int,
    frames: int,
    side: int,
    *,
    attention: Tensor | None = None,
    device: torch.device | str = "cpu",
    generator: Generators = None,
) -> Tensor:
    """Positions of the tokens that stay visible in each clip of a batch, in rising order.

    Position 0 is the class token, always visible; patch p of the clip is 1 + p.

    Args:
        mask_type: see `num_visible`, also for the other arguments up to `side`.
        mask_ratio: see there.
        batch: number of clips B.
        frames: T.
        side: patches along a side.
        attention: for mask type "attention", weights of the patches, not negative, (B, T, side * side).
        device: where to draw; that of `attention` where it is given.
        generator: of that device, or one of the CPU for each clip; None is torch's own.

    Returns:
        int64 (B, 1 + num_visible(...)).

    Raises:
        ModelError: see `num_visible`; attention is missing or has another shape.
    """
    count, patches = num_visible(mask_type, mask_ratio, frames, side), side**2
    if mask_type == "attention":
        if attention is None or attention.shape != (batch, frames, patches):
            given = None if attention is None else tuple(attention.shape)
            raise ModelError(f"mask_type 'attention' needs weights of shape {(batch, frames, patches)}, got {given}.")
        device = attention.device

    def noise(*shape: int) -> Tensor:
        if isinstance(generator, Sequence):
            return torch.stack([torch.rand(shape, generator=own) for own in generator]).to(device)
        return torch.rand(batch, *shape, device=device, generator=generator)

    if mask_type == "attention":
        assert attention is not None  # checked above
        visible = pick_first(weighted_order(attention, noise(frames, patches)), count // frames, patches)
    elif mask_type == "random":
        visible = pick_first(noise(1, frames * patches).argsort(), count, frames * patches)
    elif mask_type == "tube":
        visible = pick_first(noise(1, patches).argsort().expand(-1, frames, -1), count // frames, patches)
    else:
        groups, size = (1, frames * side) if mask_type == "clip-row" else (frames, side)
        rows = pick_first(noise(groups, size).argsort(), count // (side * groups), size)
        visible = (rows[..., None] * side + torch.arange(side, device=device)).flatten(1)
    return torch.cat([visible.new_zeros(batch, 1), 1 + visible], dim=1)


def weighted_order(weights: Tensor, noise: Tensor) -> Tensor:
    """All positions of the last axis drawn one after the other without replacement, with these weights.

    The order of -log(u) / w, u uniform: the next arrival among independent Poisson processes of rates w. Weights of 0
    come last.

    Args:
        weights: not negative, (..., N).
        noise: uniform in [0, 1), (..., N).

    Returns:
        int64 (..., N), the first drawn first.
    """
    return (-noise.log() / weights.float()).argsort(dim=-1)


def pick_first(order: Tensor, count: int, size: int) -> Tensor:
    """The first `count` of each of G groups of `size` positions that follow each other.

    Args:
        order: positions within a group, int64 (B, G, size).

    Returns:
        positions among all G * size, int64 (B, G * count), in rising order.
    """
    first = order[..., :count].sort(dim=-1).values
    offset = size * torch.arange(order.shape[1], device=order.device)
    return (first + offset[:, None]).flatten(1)
