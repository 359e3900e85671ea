"""Every triton kernel, compiled for a Hopper GPU as the backends launch it; none is needed for that."""

import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import triton

from lightning_modules.ops.conv import triton as conv
from lightning_modules.ops.launch import compile_only
from lightning_modules.ops.norm import triton as norm
from lightning_modules.ops.scan import triton as scan
from lightning_modules.ops.scan.direction import Direction

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles, does not interpret")


def _resources(kernel, folder: Path) -> dict[str, int]:
    """Registers per thread, bytes of stack (spilled registers live there), bytes of shared memory."""
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [program, "-res-usage", folder / "kernel.cubin"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout + done.stderr)}


def _scan(dtype: torch.dtype, batch: int, states: int, save: bool = True) -> list:
    """Both directions at the inner width of VideoMamba-Ti, 8 frames; B and C as slices of a projection."""
    length, channels = 1569, 384

    def direction() -> Direction:
        projected = torch.empty(batch, length, channels // 32 + 2 * states, dtype=dtype)
        sequences = (torch.empty(batch, length, channels, dtype=dtype) for _ in range(2))
        A, D, bias = torch.empty(channels, states), torch.empty(channels), torch.empty(channels)
        B, C = projected[..., -2 * states : -states], projected[..., -states:]
        return Direction(*sequences, A, B, C, D, bias)

    with torch.device("meta"):
        directions, z = (direction(), direction()), torch.empty(batch, length, 2 * channels, dtype=dtype)
        with compile_only() as kernels:
            y, *saved = scan._forward(directions, z[..., channels:], True, False, save)
            if save:
                scan._backward(y, tuple(saved), directions, z[..., channels:], True, False)
    return kernels


def _conv(dtype: torch.dtype) -> list:
    with torch.device("meta"), compile_only() as kernels:
        x = torch.empty(8, 1569, 768, dtype=dtype)[..., :384]
        taps = [torch.empty(shape) for shape in ((384, 4), (384,)) * 2]
        conv._conv_backward._init_fn(*conv._forward(x, *taps, True), x, *taps, True)
    return kernels


def _norm(dtype: torch.dtype) -> list:
    with torch.device("meta"), compile_only() as kernels:
        hidden, residual, weight = torch.empty(8, 1569, 576, dtype=dtype), torch.empty(8, 1569, 576), torch.empty(576)
        normed, total, scales = norm._add_rms_norm._init_fn(hidden, residual, weight, 1e-5, dtype)
        norm._add_rms_norm_backward._init_fn(normed, total, total, scales, weight, dtype, True)
    return kernels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [_conv, _norm])
def test_small_kernels_fit_into_registers(make, dtype: torch.dtype, tmp_path: Path) -> None:
    kernels = make(dtype)
    assert len(kernels) == 2
    for name, _, kernel in kernels:
        used = _resources(kernel, tmp_path)
        assert used["STACK"] == used["LOCAL"] == 0, (name, used)


_SCANS = [
    pytest.param(*case, marks=() if case == (64, torch.bfloat16, 16) else pytest.mark.slow)
    for case in itertools.product((1, 64), (torch.bfloat16, torch.float32), (16, 8, 12, 32, 64))
]


@pytest.mark.parametrize(("batch", "dtype", "states"), _SCANS)
def test_scans_fit_into_registers(dtype: torch.dtype, states: int, batch: int, tmp_path: Path) -> None:
    kernels = _scan(dtype, batch, states)
    names = [name for name, _, _ in kernels]
    # A single sequence is cut into segments: states and adjoints behind them first, then combined.
    split = ["walk", "combine"] if batch == 1 else []
    assert names == ["pack", *split, "scan_forward", "pack", "gate_backward", "walk", *split, "scan_backward"]
    # 16 is what the networks have; there Triton 3.3 puts two registers of one forward aside, at 8 newer ones a few.
    limit = 8 if states == 16 else 16
    for name, _, kernel in kernels:
        used = _resources(kernel, tmp_path)
        assert used["STACK"] <= limit and used["LOCAL"] == 0, (name, used)


def test_a_forward_step_stays_in_its_thread() -> None:
    """Nothing but the sixteen exponentials per state and direction, and B and C in wide loads."""
    ((_, grid, forward),) = [k for k in _scan(torch.bfloat16, 64, 16, save=False) if k[0] == "scan_forward"]
    ptx = forward.asm["ptx"]
    assert grid == (64 * 384 // 32,)
    assert "shfl" not in ptx and "ld.shared" not in ptx
    steps = 4  # two in the loop over the first half and one for an odd rest, one in the loop over the second half
    per_step = 2 * (16 + 1)  # and one for softplus; the gate's are in the second half
    gate = 2
    assert ptx.count("ex2.approx") == steps * per_step + gate
    wide = 2 * 2 * 4  # B and C of both directions, sixteen floats each, four at a time
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == steps * wide


def test_more_programs_than_cuda_starts_are_refused() -> None:
    with (
        torch.device("meta"),
        compile_only(),
        pytest.raises(ValueError, match=r"needs 70,000 programs .* split the batch"),
    ):
        u = torch.empty(70_000, 1, 32)
        scan._forward((Direction(u, u, torch.empty(32, 16), *torch.empty(2, 70_000, 1, 16), None, None),),
                      None, True, False, False)  # fmt: skip


def test_a_small_batch_fills_the_gpu() -> None:
    grids = {name: grid for name, grid, _ in _scan(torch.bfloat16, 1, 16, save=False)}
    schedulers = 4 * 132
    assert schedulers < grids["scan_forward"][0] <= 4 * schedulers


@pytest.mark.parametrize(("length", "channels", "states", "reverse"), [
    (1, 1, 1, False),
    *(pytest.param(*sizes, reverse, marks=pytest.mark.slow)
      for sizes in ((1, 5, 3), (70, 1, 4), (3, 33, 1)) for reverse in (False, True)),
])  # fmt: skip
def test_numbers_that_are_one_and_absent_tensors_compile(
    length: int, channels: int, states: int, reverse: bool
) -> None:
    """Triton makes a constant of an integer argument that is 1, and kernels are other ones without optional tensors."""
    with torch.device("meta"), compile_only() as kernels:
        u, delta = torch.empty(2, 1, length, channels, dtype=torch.float16)
        A, (B, C) = torch.empty(channels, states), torch.empty(2, 1, length, states)
        D, bias = (torch.empty(channels), None) if reverse else (None, torch.empty(channels))
        one = (Direction(u, delta, A, B, C, D, bias),)
        y, *saved = scan._forward(one, None, not reverse, reverse, True)
        scan._backward(y, tuple(saved), one, None, not reverse, reverse)
        taps = (torch.empty(channels, 3), None)
        x = torch.empty(1, length, channels)
        conv._forward(x, *taps, None, None, reverse)
        conv._conv_backward._init_fn(None, x, x, None, None, *taps, reverse)
        hidden, weight = torch.empty(1, length, channels), torch.empty(channels)
        normed, total, scales = norm._add_rms_norm._init_fn(hidden, None, weight, 1e-5, torch.float16)
        norm._add_rms_norm_backward._init_fn(normed, total, total, scales, weight, torch.float32, False)
    assert [name for name, _, _ in kernels][-4:] == ["conv_forward", "conv_backward", "norm_forward", "norm_backward"]
