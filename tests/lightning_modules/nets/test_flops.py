"""Counted operations against a formula by hand, the operations of the reference scan, and the published numbers."""

import csv
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.nets.flops import count_flops, scan_flops
from lightning_modules.nets.videomamba import VideoMamba
from lightning_modules.ops import selective_scan, use_backend

WEIGHTS = Path(__file__).resolve().parents[3] / "zoo" / "weights.csv"
SIZES = {"videomamba-ti": (192, 24), "videomamba-s": (384, 24), "videomamba-m": (576, 32), "videomamba-b": (768, 24)}


def by_hand(d: int, depth: int, length: int, patches: int, classes: int) -> int:
    """VideoMamba, section 3.1: E = 2D channels, N = 16 states, rank R = D / 16, 4 taps, both directions."""
    e, n, r = 2 * d, 16, d // 16
    matrices = d * 2 * e + 2 * (e * (r + 2 * n) + r * e) + e * d
    convolutions = 2 * 4 * e
    scan = 2 * e * (7 * n + 5) + 3 * e  # both, their sum, and the gate with its SiLU
    block = length * (2 * matrices + 2 * convolutions + scan)
    return 2 * patches * 3 * 16 * 16 * d + depth * block + 2 * d * classes


@pytest.mark.parametrize(("d", "depth", "frames", "size"), [(32, 3, 2, 48), (192, 24, 16, 224), (64, 2, None, 32)])
def test_the_network_against_the_formula(d, depth, frames, size):
    with torch.device("meta"):
        net = VideoMamba(7, d, depth, frames, size)
    shape = (1, 3, size, size) if frames is None else (1, 3, frames, size, size)
    counts = count_flops(net, torch.empty(shape, device="meta"))
    patches = (frames or 1) * (size // 16) ** 2
    assert counts[""] == by_hand(d, depth, patches + 1, patches, 7)
    assert counts["layers.0"] * depth + counts["patch_embed"] + counts["head"] == counts[""]


class Operations(TorchDispatchMode):
    """Counts the numbers that element-wise arithmetic makes or, in a sum, takes."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("mul", "add", "exp", "softplus"):
            self.total += out.numel()
        elif name == "sum":
            self.total += args[0].numel()
        return out


def test_the_scan_against_the_reference():
    """It multiplies dt B, then u, for every state; we count dt u once per channel: one product per state less."""
    batch, length, channels, states = 2, 9, 6, 4
    u, delta = torch.rand(2, batch, length, channels)
    B, C = torch.rand(2, batch, length, states)
    A, D, bias = -torch.rand(channels, states), torch.rand(channels), torch.rand(channels)
    with Operations() as counted, use_backend("reference"):
        selective_scan(u, delta, A, B, C, D, None, bias, True, False)
    tokens = batch * length * channels
    assert counted.total == scan_flops(batch, length, channels, states) + tokens * (states - 1)


def published() -> list[dict]:
    with WEIGHTS.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["gflops"] and row["model"] in SIZES]
    # 395 is half of what the others lead to: Ti and M grow by a factor of 11.8 from 16 frames at 224 px, S by 5.8.
    return [row for row in rows if row["name"] != "videomamba-s-k400-f64-r384"]


@pytest.mark.slow
def test_published_numbers_are_multiply_adds_of_projections_and_patches():
    """Which is the claim of docs/recipes.md."""
    assert len(published()) > 40
    for row in published():
        d, depth = SIZES[row["model"]]
        frames = int(row["frames"])
        side, image = int(row["resolution"]), row["task"] == "image-classification"
        with torch.device("meta"):
            net = VideoMamba(1000, d, depth, None if image else frames, side)
        shape = (1, 3, side, side) if image else (1, 3, frames, side, side)
        counts = count_flops(net, torch.empty(shape, device="meta"))
        projections = sum(n for name, n in counts.items() if name.endswith((".in_proj", ".out_proj")))
        assert (projections + counts["patch_embed"]) / 2e9 == pytest.approx(float(row["gflops"]), rel=0.05), row["name"]


def test_counting_takes_any_backend_and_keeps_the_mode():
    net = VideoMamba(3, 16, 1, 2, 32, drop_path=0.5).train()
    from lightning_modules.ops.backend import use_backend

    video = torch.zeros(1, 3, 2, 32, 32)
    with use_backend("reference"):
        assert count_flops(net, video) == count_flops(net, video.double())
    assert net.training and all(p.device.type == "cpu" for p in net.parameters())
