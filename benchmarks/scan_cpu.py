"""Times the scan and the convolution alone on the CPU, at the shapes of VideoMamba's layers.

    python benchmarks/scan_cpu.py [--threads 2] [--seconds 2] [--json FILE]

For each shape: the shortest of many calls (other programs only ever make a call longer) of one direction, of both
directions with their gate, of both convolutions, and of the backwards. "Updates" are batch x length x channels x states
of both directions per second.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable

import torch

from lightning_modules.ops import bidirectional_conv1d, bidirectional_scan, selective_scan
from lightning_modules.ops.backend import select

# (batch, length, channels): 8 frames of 224 x 224 and a class token, inner width of Ti, S and M (2 x 192, 384, 576).
_SHAPES = [(1, 1569, 384), (1, 1569, 768), (1, 1569, 1152), (8, 1569, 384)]
_STATES = 16
_CONV_WIDTH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to repeat each call")
    parser.add_argument("--json", help="file to write the numbers to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    backend = select("scan", torch.empty(0)).__name__.rsplit(".", 1)[-1]
    results = [{"shape": shape, **_measure(*shape, arguments.seconds)} for shape in _SHAPES]
    print(f"{backend} backend, {arguments.threads} threads, milliseconds")
    print(f"{'batch x length x channels':>26} " + " ".join(f"{name:>12}" for name in list(results[0])[1:]))
    for result in results:
        shape, *numbers = result.values()
        print(f"{' x '.join(map(str, shape)):>26} " + " ".join(f"{number:12.2f}" for number in numbers))
    if arguments.json:
        with open(arguments.json, "w") as file:
            machine = {"machine": platform.processor() or platform.machine(), "threads": arguments.threads}
            json.dump({**machine, "backend": backend, "torch": torch.__version__, "results": results}, file, indent=1)


def _measure(batch: int, length: int, channels: int, seconds: float) -> dict[str, float]:
    torch.manual_seed(0)
    one, two = _direction(batch, length, channels), _direction(batch, length, channels)
    x, z = torch.randn(batch, length, 2 * channels).chunk(2, dim=-1)
    weights = torch.randn(2, channels, _CONV_WIDTH)
    bias = torch.randn(channels)

    def scan_both() -> torch.Tensor:
        return bidirectional_scan(*one.values(), *two.values(), z=z, delta_bias=bias, delta_bias_b=bias)

    def conv_both() -> tuple[torch.Tensor, torch.Tensor]:
        return bidirectional_conv1d(x, weights[0], bias, weights[1], bias)

    with torch.inference_mode():
        times = {
            "one scan": _shortest(lambda: selective_scan(*one.values(), z, bias, delta_softplus=True), seconds),
            "both scans": _shortest(scan_both, seconds),
            "both convs": _shortest(conv_both, seconds),
        }
    leaves = [tensor.requires_grad_() for tensor in (*one.values(), *two.values(), x.detach(), weights)]
    x = leaves[-2]
    y, pair = scan_both(), conv_both()
    grad = torch.randn_like(y)
    scan_leaves, conv_leaves = leaves[:-2], leaves[-2:]
    times["scans back"] = _shortest(lambda: torch.autograd.grad(y, scan_leaves, grad, retain_graph=True), seconds)
    times["convs back"] = _shortest(
        lambda: torch.autograd.grad(pair, conv_leaves, [grad, grad], retain_graph=True), seconds
    )
    return times | {"G updates/s": 2 * batch * length * channels * _STATES / times["both scans"] / 1e6}


def _direction(batch: int, length: int, channels: int) -> dict[str, torch.Tensor]:
    """u, delta, A, B, C, D; B and C are slices of one projection, as in the model."""
    projected = torch.randn(batch, length, channels // 32 + 2 * _STATES)
    return {
        "u": torch.randn(batch, length, channels),
        "delta": torch.randn(batch, length, channels) - 3,
        "A": -torch.arange(1.0, _STATES + 1).repeat(channels, 1),
        "B": projected[..., -2 * _STATES : -_STATES],
        "C": projected[..., -_STATES:],
        "D": torch.ones(channels),
    }


def _shortest(call: Callable[[], object], seconds: float) -> float:
    """Milliseconds."""
    call()
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest * 1e3


if __name__ == "__main__":
    main()
