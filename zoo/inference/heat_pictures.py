"""Pictures of an explanation: frames in grey, orange where they support the class, blue where they speak against it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from zoo.files import written
from zoo.inference.explain import Explanation
from zoo.inference.plot import MUTED, TEXT, save_figure
from zoo.printable import printable

__all__ = ["ANIMATIONS", "ARRAYS", "animate_heat", "plot_heat", "save_heat", "shade"]

ANIMATIONS = (".webp", ".gif")
ARRAYS = (".npy", ".npz")

_SUPPORTS, _AGAINST = (242, 112, 32), (32, 104, 214)
_FRAMES_SHOWN = 8
_LEAST_HEIGHT_PX = 192  # smaller frames are shown enlarged
_FRAME_MS = (80, 1000)
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def shade(explanation: Explanation) -> Tensor:
    """The frames in grey, under the colour of their heat: uint8 (T, 3, H, W).

    The colour is full at 99% of the heat's absolute values, and above.
    """
    heat = explanation.heat
    full = max(float(np.quantile(heat.abs().flatten().numpy(), 0.99)), 1e-12)
    strength = (heat.abs() / full).clamp(max=1)[:, None] * 0.8
    grey = (explanation.frames.float() * torch.tensor(_GREY).view(3, 1, 1)).sum(1, keepdim=True)
    grey = 0.85 * grey + 38  # colours show on black, too
    warm, cold = (torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1) for colour in (_SUPPORTS, _AGAINST))
    colour = torch.where(heat[:, None] > 0, warm, cold)
    shaded: Tensor = (1 - strength) * grey + strength * colour
    return shaded.round().to(torch.uint8)


def plot_heat(explanation: Explanation, out: str | os.PathLike[str], title: str = "") -> Path:
    """Draw up to 8 frames and, below each, its heat; the title stands before the label."""
    shown = np.unique(np.linspace(0, len(explanation.heat) - 1, _FRAMES_SHOWN).round().astype(int))
    figure = Figure(figsize=(1.75 * len(shown) + 0.5, 4.3), layout="constrained", facecolor="white")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for row, pictures in zip(axes, (explanation.frames, shade(explanation)), strict=True):
        for axis, t in zip(row, shown, strict=True):
            axis.imshow(pictures[t].permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, t in zip(axes[0], shown, strict=True):
        axis.set_title(f"{explanation.seconds[t]:.1f} s", fontsize=9, color=MUTED)
    for axis, name in zip(axes[:, 0], ("frame", "heat"), strict=True):
        axis.set_ylabel(name, fontsize=10, color=TEXT)
    label = f"{explanation.label} {explanation.probability:.1%}"
    heading = printable(f"{title}: {label}" if title else label).replace("$", r"\$")
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, color=TEXT, fontweight="bold")
    figure.supxlabel("orange supports the class, blue speaks against it", fontsize=9, color=MUTED)
    return save_figure(figure, out)


def animate_heat(explanation: Explanation, out: str | os.PathLike[str]) -> Path:
    """Write the clip as a moving picture (.webp or .gif), at its speed: each frame with its heat to its right.

    Frames stay for 80 ms at least and one second at most.
    """
    out = Path(out)
    pairs = torch.cat([explanation.frames, shade(explanation)], dim=3).permute(0, 2, 3, 1).numpy()
    factor = -(-_LEAST_HEIGHT_PX // pairs.shape[1])
    pictures = [Image.fromarray(pair.repeat(factor, 0).repeat(factor, 1)) for pair in pairs]
    distances = np.diff(explanation.seconds) * 1000
    distances = np.append(distances, distances[-1:] if len(distances) else _FRAME_MS[1])
    durations = distances.clip(*_FRAME_MS).round().astype(int).tolist()
    with written(out, ANIMATIONS) as beside:
        pictures[0].save(
            beside, out.suffix[1:].upper(), save_all=True, append_images=pictures[1:], duration=durations, loop=0,
            quality=80, method=4,
        )  # fmt: skip
    return out


def save_heat(explanation: Explanation, out: str | os.PathLike[str]) -> Path:
    """Write the heat for NumPy: alone, float32 (T, H, W), as .npy; with all that belongs to it by name as .npz."""
    out = Path(out)
    heat = explanation.heat.numpy()
    with written(out, ARRAYS) as beside, beside.open("wb") as file:
        if out.suffix.lower() == ".npy":
            np.save(file, heat)
        else:
            rest: dict[str, Any] = {"label": explanation.label, "probability": explanation.probability}
            np.savez_compressed(file, heat=heat, frames=explanation.frames.numpy(), seconds=explanation.seconds, **rest)
    return out
