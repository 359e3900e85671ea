"""Time, memory and share of the floor of the block's kernels, one by one, on a GPU or a CPU.

For every size of VideoMamba, number of frames and batch, as one block calls them:

- scan: `bidirectional_scan` with softplus, D and gate, B and C slices of a projection;
- conv: `bidirectional_conv1d` with SiLU on half of a wider tensor;
- norm: `add_rms_norm` with a float32 residual stream;

each forward, on a GPU also replayed as a CUDA graph, and forward with backward, on every backend that can run there.
"official" is what the official block does with the packages mamba-ssm and causal-conv1d: (batch, channels, length)
tensors, two calls, copies flipped there and back, each direction gated by itself. Activations are in --dtype,
parameters in float32, the reference only up to --reference-frames.

The floor beside a time is what the device needs for the scarcest of

    bytes          every input read and every result written once, B and C included (backward: the same inputs and the
                   result's gradient read, every gradient written)
    exponentials   2 directions x tokens x channels x states (scan only; twice with backward, which has to know the
                   states again)

at the rates at the top of the result (`common.rates` says how they are found). Nothing is extrapolated; what failed, or
did not fit into memory or into --minutes, is recorded with that reason.

--sweep tries other divisions of the triton scan instead; the best belong into `ops/scan/triton.py`.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    RESULTS,
    Rates,
    device_memory,
    device_name,
    device_time,
    graph_time,
    machine,
    machine_slug,
    rates,
    save,
    why_skipped,
)
from torch import Tensor

from lightning_modules.ops import (
    add_rms_norm,
    available_backends,
    bidirectional_conv1d,
    bidirectional_scan,
    use_backend,
    why_not,
)

WIDTHS = {"ti": 192, "s": 384, "m": 576}
STATES, CONV_WIDTH = 16, 4
FLOOR = "max(bytes / bytes_per_second, exponentials / exponentials_per_second)"
# Of `ops/scan/triton.py`.
SWEEP = {
    "_BACKWARD_STATES": (8, 16, 4),
    "_BACKWARD_TOKENS": (4, 2, 8),
    "_LANES": (8, 16, 4),
    "_CHUNK": (64, 32, 128),
    "_FORWARD_STATES": (16, 8),
    "_REGISTERS": (192, 208, 168),
    "_FEW_WARPS": (1, 0, 2),
    "_ENOUGH_WARPS": (3, 2, 4),
}


def main() -> int:
    options = parse(sys.argv[1:])
    torch.manual_seed(0)
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype)
    speed = rates(device, dtype)
    about = machine() | {"device": device_name(device)}
    print(f"{about['device']}: {speed.bytes / 1e12:.2f} TB/s, {speed.exponentials / 1e12:.3f} T exponentials/s, "
          f"{speed.flop / 1e12:.1f} TFLOP/s ({speed.how})", flush=True)  # fmt: skip
    records: list[dict[str, Any]] = []
    path = options.output or default_output(about, options)
    result = {"machine": about, "rates": vars(speed), "floor_formula": FLOOR,
              "settings": {k: str(v) for k, v in vars(options).items()}, "records": records}  # fmt: skip
    deadline = time.monotonic() + 60 * options.minutes
    for record in sweep(options, device, dtype) if options.sweep else measure(options, device, dtype, speed, deadline):
        records.append(record)
        print("  ".join(f"{key} {short(value)}" for key, value in record.items() if value is not None), flush=True)
        save(result, path)  # after every case: a run that is cut off has left what it found
    print(f"Saved to {path}")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", default=None, choices=["float32", "bfloat16", "float16"],
        help="of activations (default: bfloat16 on a GPU, float32 on a CPU)")  # fmt: skip
    add("--sizes", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    add("--frames", nargs="+", type=int, default=[16, 64, 8, 32], help="196 tokens each (default: 16 64 8 32)")
    add("--batches", nargs="+", type=int, default=[1, 8, 64])
    add("--kernels", nargs="+", default=["scan", "conv", "norm"], choices=["scan", "conv", "norm"])
    add("--reference-frames", type=int, default=8, help="the reference runs up to so many frames (default: 8)")
    add("--tokens", type=int, default=196, help="per frame (default: 196)")
    add("--seconds", type=float, default=0.2, help="how long to repeat each call (default: 0.2)")
    add("--minutes", type=float, default=8.0, help="cases that would start later are left out (default: 8)")
    add("--sweep", action="store_true", help="divisions of the triton scan, one changed at a time")
    add("--output", type=Path, metavar="FILE", help="default: benchmarks/results/kernels_<device>.json")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    return options


def default_output(about: dict[str, Any], options: argparse.Namespace) -> Path:
    name = machine_slug(about["device"], about["cores"])
    return RESULTS / f"kernels{'_sweep' if options.sweep else ''}_{name}.json"


def short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype, speed: Rates, deadline: float
) -> Iterator[dict[str, Any]]:
    """One record per kernel, shape and backend; times in milliseconds, memory in MiB."""
    backends = [*available_backends(device, dtype), *(["official"] if device.type == "cuda" else [])]
    no_official = why_not("mamba_ssm", device, dtype)
    cases = itertools.product(options.batches, options.frames, options.sizes, options.kernels, backends)
    for batch, frames, size, kernel, backend in cases:
        if kernel == "norm" and backend in ("official", "mamba_ssm", "numba"):
            continue  # these have none of their own
        length, width = 1 + frames * options.tokens, WIDTHS[size]
        record = {
            "kernel": kernel,
            "size": size,
            "frames": frames,
            "batch": batch,
            "backend": backend,
            "tokens": length,
        }
        if time.monotonic() > deadline:
            yield record | {"skipped": "out of time"}
        elif backend == "official" and no_official:
            yield record | {"skipped": no_official}
        elif backend == "reference" and (frames > options.reference_frames or batch > 8):
            yield record | {"skipped": "left out by --reference-frames"}
        else:
            try:
                yield record | times(kernel, backend, batch, length, width, device, dtype, speed, options.seconds)
            except Exception as error:  # whatever a compiler, a driver or an extension may raise
                yield record | {"skipped": why_skipped(error)}


def times(
    kernel: str, backend: str, batch: int, length: int, width: int, device: torch.device, dtype: torch.dtype,
    speed: Rates, budget: float,
) -> dict[str, float | None]:  # fmt: skip
    call, leaves = CASES[kernel](backend, batch, length, width, device, dtype)
    costs = COSTS[kernel](batch, length, width, torch.empty((), dtype=dtype).element_size())
    with use_backend("auto" if backend == "official" else backend):
        with torch.inference_mode():
            forward = device_time(call, device, budget)
            replayed = graph_time(call, device, budget)
            memory = device_memory(call, device)
        for leaf in leaves:
            leaf.requires_grad_()
        with torch.enable_grad():
            gradients = [torch.randn_like(y) for y in as_tuple(call())]

        def both() -> None:
            torch.autograd.grad(as_tuple(call()), leaves, gradients)

        total = device_time(both, device, budget)
        memory_both = device_memory(both, device)
    floor, floor_both = speed.floor(**costs[0]), speed.floor(**costs[1])
    return {
        "forward_ms": forward * 1e3, "graph_ms": replayed and replayed * 1e3,
        "floor_ms": floor * 1e3, "of_floor": floor / forward, "forward_mib": memory,
        "both_ms": total * 1e3, "both_floor_ms": floor_both * 1e3, "both_of_floor": floor_both / total,
        "both_mib": memory_both,
    }  # fmt: skip


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


# The floor's bytes and exponentials, forward and with backward.
Costs = tuple[dict[str, float], dict[str, float]]
# A case is what to call, and the tensors with gradients.
Case = tuple[Callable[[], Any], list[Tensor]]


def scan_costs(batch: int, length: int, width: int, size: int) -> Costs:
    """`size` is that of an activation in bytes, here and below."""
    token = float(size * batch * length * 2 * width)
    inputs = 5 * token + size * batch * length * 4 * STATES  # u, delta twice, z; B, C twice
    exponentials = 2.0 * batch * length * 2 * width * STATES
    forward = {"bytes": inputs + token, "exponentials": exponentials}
    return forward, {"bytes": 3 * inputs + 2 * token, "exponentials": 2 * exponentials}


def conv_costs(batch: int, length: int, width: int, size: int) -> Costs:
    token = float(size * batch * length * 2 * width)
    return {"bytes": 3 * token}, {"bytes": 7 * token}  # backward: x and two gradients in, one out


def norm_costs(batch: int, length: int, width: int, size: int) -> Costs:
    forward = float(batch * length * width * (2 * size + 8))  # hidden in, normed out, the stream in and out
    backward = float(batch * length * width * (2 * size + 12))  # their gradients out and in, the stream in
    return {"bytes": forward}, {"bytes": forward + backward}


def scan_case(backend: str, batch: int, length: int, width: int, device: torch.device, dtype: torch.dtype) -> Case:
    channels, rank = 2 * width, -(-width // 16)

    def direction() -> list[Tensor]:
        projected = torch.randn(batch, length, rank + 2 * STATES, device=device, dtype=dtype)
        u, delta = torch.randn(2, batch, length, channels, device=device, dtype=dtype)
        A = -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1)
        B, C = projected[..., rank : rank + STATES].detach(), projected[..., rank + STATES :].detach()
        return [u, delta - 3, A, B, C, torch.ones(channels, device=device)]

    one, other = direction(), direction()
    z = torch.randn(batch, length, 2 * channels, device=device, dtype=dtype)[..., channels:].detach()
    bias, bias_b = torch.randn(2, channels, device=device)
    leaves = [*one, *other, z, bias, bias_b]
    call: Callable[[], Any] = lambda: bidirectional_scan(  # noqa: E731
        *one, *other, z=z, delta_bias=bias, delta_bias_b=bias_b, delta_softplus=True
    )
    if backend == "official":
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        leaves = [t.transpose(1, 2).contiguous() if t.dim() == 3 else t for t in leaves]
        u, delta, A, B, C, D, u_b, delta_b, A_b, B_b, C_b, D_b, z, bias, bias_b = leaves

        def call() -> Tensor:
            y = selective_scan_fn(u, delta, A, B, C, D, z, bias, True)
            # The official block flips its input once before both projections: u, delta, B and C come out flipped.
            y_b = selective_scan_fn(u_b, delta_b, A_b, B_b, C_b, D_b, z.flip(2), bias_b, True)
            return y + y_b.flip(2)

    return call, leaves


def conv_case(backend: str, batch: int, length: int, width: int, device: torch.device, dtype: torch.dtype) -> Case:
    channels = 2 * width
    x = torch.randn(batch, length, 2 * channels, device=device, dtype=dtype)[..., :channels].detach()
    weights, biases = torch.randn(2, channels, CONV_WIDTH, device=device), torch.randn(2, channels, device=device)
    weight, weight_b, bias, bias_b = (*weights.detach().clone(), *biases.detach().clone())
    leaves = [x, weight, bias, weight_b, bias_b]
    call: Callable[[], Any] = lambda: bidirectional_conv1d(*leaves)  # noqa: E731
    if backend == "official":
        from causal_conv1d import causal_conv1d_fn

        leaves[0] = flat = x.transpose(1, 2).contiguous()

        def call() -> tuple[Tensor, Tensor]:
            y = causal_conv1d_fn(flat, weight, bias, activation="silu")
            return y, causal_conv1d_fn(flat.flip(2), weight_b, bias_b, activation="silu")

    return call, leaves


def norm_case(backend: str, batch: int, length: int, width: int, device: torch.device, dtype: torch.dtype) -> Case:
    hidden = torch.randn(batch, length, width, device=device, dtype=dtype)
    residual, weight = torch.randn(batch, length, width, device=device), torch.ones(width, device=device, dtype=dtype)
    leaves = [hidden, residual, weight]
    return lambda: add_rms_norm(*leaves, 1e-5), leaves


CASES = {"scan": scan_case, "conv": conv_case, "norm": norm_case}
COSTS = {"scan": scan_costs, "conv": conv_costs, "norm": norm_costs}


def sweep(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """The triton scan with one setting changed at a time, at every shape asked for."""
    from lightning_modules.ops.scan import triton as module

    defaults = {name: getattr(module, name) for name in SWEEP}
    changes = [{}, *({name: value} for name, values in SWEEP.items() for value in values if value != defaults[name])]
    for batch, frames, size in itertools.product(options.batches, options.frames, options.sizes):
        length, width = 1 + frames * options.tokens, WIDTHS[size]
        call, leaves = scan_case("triton", batch, length, width, device, dtype)
        for change in changes:
            for name, value in (defaults | change).items():
                setattr(module, name, value)
            record = {"size": size, "frames": frames, "batch": batch, "change": change}
            try:
                with use_backend("triton"):
                    for leaf in leaves:
                        leaf.requires_grad_(False)
                    record["forward_ms"] = device_time(call, device, options.seconds) * 1e3
                    for leaf in leaves:
                        leaf.requires_grad_()
                    gradient = torch.randn_like(call())
                    step = lambda: torch.autograd.grad(call(), leaves, gradient)  # noqa: B023, E731
                    record["both_ms"] = device_time(step, device, options.seconds) * 1e3
            except Exception as error:  # a division that does not compile
                record["skipped"] = why_skipped(error)
            yield record
    for name, value in defaults.items():
        setattr(module, name, value)


if __name__ == "__main__":
    sys.exit(main())
