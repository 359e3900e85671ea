"""Frames to pictures: the compiled loops of `datamodules.pixels` beside libswscale and torchvision, on one thread.

    python benchmarks/pixels.py [--output FILE]      # ten seconds; saved to results/pixels_<machine>.json

Every row makes the same pixels in two ways, which is verified before anything is timed: step by step through the
libraries, and in one pass. The shortest of many calls counts, of both ways in turn. Beside them the floor: a plain copy
that reads and writes as many bytes together,

    floor = time to copy (bytes read + bytes written) / 2

where a resized picture reads the two rows of luma and of chroma that each of its rows looks at.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import RESULTS, fastest, machine, machine_slug, save
from torch import Tensor

from datamodules import pixels
from datamodules.transforms import resize_options, to_clip

FRAMES = {
    "340x256 to RGB": (340, 256, None),
    "1920x1080 to RGB": (1920, 1080, None),
    "320x240 to RGB, 256 high": (320, 240, 256),
    "1280x720 to RGB, 256 high": (1280, 720, 256),
    "1920x1080 to RGB, 256 high": (1920, 1080, 256),
}
CROPS = "16 crops of 224x224, colours apart"
ROUNDS = 15


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="default: results/pixels_<machine>.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = {name: measure(*frame_ways(*size)) for name, size in FRAMES.items()}
    rows[CROPS] = measure(*crop_ways())
    result = {"machine": machine(), "rows": rows}
    slug = machine_slug(result["machine"]["cpu"], result["machine"]["cores"])
    path = options.output or RESULTS / f"pixels_{slug}.json"
    save(result, path)
    print(f"{'milliseconds':36}{'libraries':>12}{'one pass':>12}{'times':>8}{'floor':>10}")
    for name, row in rows.items():
        times = (row["libraries_ms"], row["one_pass_ms"], row["ratio"], row["floor_ms"])
        print(f"{name:36}{times[0]:12.3f}{times[1]:12.3f}{times[2]:8.1f}{times[3]:10.3f}")
    print(f"saved to {path}")


def frame_ways(width: int, height: int, short_side: int | None) -> tuple[Callable, Callable, int]:
    """A frame of noise: both ways to uint8 (H, W, 3), and the bytes that have to be read and written."""
    frame = pixels._noise("yuv420p", width, height)
    painter = pixels.Painter(width, height, short_side=short_side)
    picture = torch.empty((*painter.size, 3), dtype=torch.uint8)

    def libraries() -> Tensor:
        rgb = pixels._to_rgb(frame, width, height)
        return rgb if short_side is None else pixels._resized(rgb, painter.size, resize_options("bilinear"))

    rows = height if short_side is None else min(height, 2 * painter.size[0])
    return libraries, lambda: painter.paint(frame, picture), rows * width * 3 // 2 + math.prod(picture.shape)


def crop_ways() -> tuple[Callable, Callable, int]:
    """The middle of 16 pictures of 340 x 256 to uint8 (3, 16, 224, 224)."""
    crops = torch.randint(256, (16, 256, 340, 3), dtype=torch.uint8).permute(0, 3, 1, 2)[..., 16:240, 58:282]
    return lambda: crops.transpose(0, 1).contiguous(), lambda: to_clip(crops), 2 * crops.numel()


def measure(libraries: Callable[[], Tensor], one_pass: Callable[[], Tensor], num_bytes: int) -> dict:
    if not torch.equal(libraries(), one_pass()):
        raise SystemExit("The two ways differ on this machine; datamodules.pixels uses the libraries here.")
    source = torch.zeros(num_bytes // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    ways = (libraries, one_pass, lambda: target.copy_(source))
    turns = [[fastest(way, budget_seconds=0.03) for way in ways] for _ in range(ROUNDS)]
    slow, fast, floor = map(min, zip(*turns, strict=True))
    return {
        "libraries_ms": slow * 1e3,
        "one_pass_ms": fast * 1e3,
        "ratio": slow / fast,
        "floor_ms": floor * 1e3,
    }


if __name__ == "__main__":
    main()
