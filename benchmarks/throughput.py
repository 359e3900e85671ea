"""Videos per second and peak memory of whole networks, on a GPU or a CPU: the measurement of the paper's Figure 1.

    videomamba-{ti,s,m}    this project, on the backend that "auto" takes
    official-{ti,s,m}      the same networks, the mixer computed as the official block does with the packages mamba-ssm
                           and causal-conv1d: (batch, channels, length) tensors, made by the products in its order;
                           convolution, projections, scan and gate once on the sequence, once on a flipped copy
    joint-ti               joint attention over all tokens, written out (VideoMAE's architecture, DeiT-Ti's size)
    joint-ti-sdpa          the same with torch's fused attention, FlashAttention in bfloat16 on a GPU
    timesformer-b          divided attention (arXiv 2102.05095), as transformers has it

Measured per network, frames and batch: one forward pass without gradients, weights in --dtype, on a GPU also replayed
as a CUDA graph; one training step, forward, loss and backward, weights in float32 under autocast. The time is the
median on the device's own clock; the memory what a call needs beyond weights and input. The clips are random, 224 x
224, the head has 400 classes.

The floor beside a time is, for VideoMamba,

    depth x (operations of a block's products / measured rate of a square product
             + the floors of its scans, convolutions and norm, see `kernels.py`)

forward, and for a training step with three times the products. Nothing is extrapolated; what failed, or did not fit
into memory or into --minutes, is recorded with that reason. `draw.py` makes the picture.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from common import (
    REPOSITORY,
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
from kernels import COSTS, STATES, short
from torch import Tensor, nn

from lightning_modules.nets import VideoMamba
from lightning_modules.nets.bimamba import BiMamba
from lightning_modules.ops.backend import select, why_not

MODELS = (
    *(f"{kind}-{size}" for kind in ("videomamba", "official") for size in ("ti", "m", "s")),
    "joint-ti", "joint-ti-sdpa", "timesformer-b",
)  # fmt: skip
CLASSES = 400
FLOOR = "depth * (block_flop / flop_per_second + floor(scan) + floor(conv) + floor(norm)), training: 3 * block_flop"


def main() -> int:
    options = parse(sys.argv[1:])
    torch.manual_seed(0)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    speed = rates(device, dtype)
    backend = select("scan", torch.empty(0, device=device)).__name__.rsplit(".", 1)[-1]
    about = machine() | {"device": device_name(device), "backend": backend}
    print(f"{about['device']}, {backend} backend, {speed.flop / 1e12:.1f} TFLOP/s in {options.dtype}", flush=True)
    records: list[dict[str, Any]] = []
    path = options.output or RESULTS / f"throughput_{machine_slug(about['device'], about['cores'])}.json"
    result = {"machine": about, "rates": vars(speed), "floor_formula": FLOOR,
              "settings": {k: str(v) for k, v in vars(options).items()}, "records": records}  # fmt: skip
    for record in measure(options, device, dtype, speed):
        records.append(record)
        print("  ".join(f"{key} {short(value)}" for key, value in record.items() if value is not None), flush=True)
        save(result, path)  # after every case: a run that is cut off has left what it found
    for line in compare(records):
        print(line)
    print(f"Saved to {path}")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="NAME", help=f"of {', '.join(MODELS)}")
    add("--frames", nargs="+", type=int, default=[16, 64, 8, 32])
    add("--batches", nargs="+", type=int, default=[8, 1, 32])
    add("--phases", nargs="+", default=["infer", "train"], choices=["infer", "train"])
    add("--image-size", type=int, default=224, metavar="PX")
    add("--seconds", type=float, default=0.5, help="how long to repeat each call (default: 0.5)")
    add("--minutes", type=float, default=8.5, help="cases that would start later are left out (default: 8.5)")
    add("--compile", choices=["default", "reduce-overhead", "max-autotune"], help="through torch.compile, in that mode")
    add("--output", type=Path, metavar="FILE", help="default: benchmarks/results/throughput_<device>.json")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    return options


def measure(options: argparse.Namespace, device: torch.device, dtype: torch.dtype, speed: Rates) -> Iterator[dict]:
    """One record per batch, frames, network and phase."""
    deadline = time.monotonic() + 60 * options.minutes
    no_official = why_not("mamba_ssm", device, dtype)
    for batch, frames, model in itertools.product(options.batches, options.frames, options.models):
        if model.startswith("official") and device.type != "cuda":
            continue
        for phase in options.phases:
            record = {"model": model, "frames": frames, "batch": batch, "phase": phase}
            if time.monotonic() > deadline:
                yield record | {"skipped": "out of time"}
                continue
            if model.startswith("official") and no_official:
                yield record | {"skipped": no_official}
                continue
            try:
                yield record | case(model, frames, batch, phase, options, device, dtype, speed)
            except Exception as error:  # whatever a compiler, a driver or an extension may raise
                yield record | {"skipped": why_skipped(error)}


def case(
    model: str, frames: int, batch: int, phase: str, options: argparse.Namespace, device: torch.device,
    dtype: torch.dtype, speed: Rates,
) -> dict[str, Any]:  # fmt: skip
    train = phase == "train"
    with device:
        net = build(model, frames, options.image_size)
        shape = (3, frames) if isinstance(net, VideoMamba) else (frames, 3)
        clip = torch.randn(batch, *shape, options.image_size, options.image_size)
        labels = torch.randint(CLASSES, (batch,))
    net = net.train() if train else net.eval().to(dtype)
    clip = clip if train else clip.to(dtype)
    run = torch.compile(net, mode=options.compile) if options.compile else net
    half = train and dtype != torch.float32

    def call() -> None:
        with torch.autocast(device.type, dtype) if half else nullcontext():
            output = run(clip)
            logits = output if isinstance(output, Tensor) else output.logits
            loss = F.cross_entropy(logits.float(), labels) if train else None
        if loss is not None:
            loss.backward()
            net.zero_grad(set_to_none=True)

    with nullcontext() if train else torch.inference_mode():
        call()
        memory = device_memory(call, device)
        seconds = device_time(call, device, options.seconds)
        replayed = None if train else graph_time(call, device, options.seconds)
    record = {"milliseconds": seconds * 1e3, "videos_per_second": batch / seconds, "peak_mib": memory}
    if replayed is not None:
        record["graph_ms"] = replayed * 1e3
    if isinstance(net, VideoMamba):
        floor = floor_seconds(net, batch, train, dtype, speed)
        record |= {"floor_ms": floor * 1e3, "of_floor": floor / seconds}
    return record


def floor_seconds(net: VideoMamba, batch: int, train: bool, dtype: torch.dtype, speed: Rates) -> float:
    length, width = 1 + net.temporal_pos_embedding.shape[1] * net.grid_size**2, net.embed_dim
    inner, rank = 2 * width, -(-width // 16)
    flop = 2.0 * batch * length * (width * 2 * inner + 2 * (inner * (rank + 2 * STATES) + rank * inner) + inner * width)
    costs = [COSTS[kernel](batch, length, width, dtype.itemsize)[train] for kernel in COSTS]
    return net.depth * (speed.floor(flop=flop * (3 if train else 1)) + sum(speed.floor(**cost) for cost in costs))


def build(model: str, frames: int, image_size: int) -> nn.Module:
    kind, _, size = model.partition("-")
    if kind in ("videomamba", "official"):
        path = REPOSITORY / "zoo" / "models" / f"videomamba-{size}.yaml"
        sizes = yaml.safe_load(path.read_text(encoding="utf-8"))["init_args"]
        sizes = {key: sizes[key] for key in ("embed_dim", "depth") if key in sizes}
        net = VideoMamba(num_classes=CLASSES, num_frames=frames, image_size=image_size, **sizes)
        if kind == "official":
            for block in net.layers:
                block.mixer.__class__ = OfficialMixer
        return net
    from transformers import (  # takes seconds, and is not needed for VideoMamba alone
        TimesformerConfig,
        TimesformerForVideoClassification,
        VideoMAEConfig,
        VideoMAEForVideoClassification,
    )

    common = {"num_labels": CLASSES, "num_frames": frames, "image_size": image_size}
    if kind == "timesformer":
        return TimesformerForVideoClassification(TimesformerConfig(**common))
    deit_ti = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 12}
    attention = "sdpa" if model.endswith("sdpa") else "eager"
    config = VideoMAEConfig(**common, **deit_ti, tubelet_size=1, attn_implementation=attention)
    return VideoMAEForVideoClassification(config)


class OfficialMixer(BiMamba):
    """The official block's order of operations on the published packages' kernels (VideoMamba's "v2" bimamba).

    Sequences are the columns of products, weight @ (channels, batch x length), whose result is read as (batch,
    channels, length) where it lies.
    """

    def forward(self, h: Tensor) -> Tensor:
        xz = columns(self.in_proj.weight.to(autocast_dtype(h)), h.flatten(0, 1).t(), len(h))
        y = self._direction(xz, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        y_b = self._direction(xz.flip(2), self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        return self.out_proj((y + y_b.flip(2)).transpose(1, 2))

    def _direction(
        self, xz: Tensor, conv1d: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, a_log: Tensor, D: Tensor
    ) -> Tensor:
        from causal_conv1d import causal_conv1d_fn
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        x, z = xz.chunk(2, dim=1)
        x = causal_conv1d_fn(x, conv1d.weight[:, 0], conv1d.bias, activation="silu")
        selected = x_proj(x.transpose(1, 2).flatten(0, 1))
        dt, b, c = selected.split([self.dt_rank, self.state_size, self.state_size], dim=-1)
        dt = columns(dt_proj.weight.to(dt.dtype), dt.t(), len(x))
        b, c = (weights.unflatten(0, (len(x), -1)).transpose(1, 2).contiguous() for weights in (b, c))
        return selective_scan_fn(x, dt, -torch.exp(a_log.float()), b, c, D.float(), z, dt_proj.bias.float(), True)


def columns(weight: Tensor, tokens: Tensor, batch: int) -> Tensor:
    """(out, in) times (in, batch x length) -> (batch, out, length), a view of the product."""
    return (weight @ tokens).unflatten(1, (batch, -1)).transpose(0, 1)


def autocast_dtype(like: Tensor) -> torch.dtype:
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def compare(records: list[dict[str, Any]]) -> Iterator[str]:
    """How many times as fast, and as frugal, VideoMamba is beside the other networks."""
    found = {(r["model"], r["frames"], r["batch"], r["phase"]): r for r in records if "milliseconds" in r}
    for (model, frames, batch, phase), ours in found.items():
        kind, _, size = model.partition("-")
        others = [f"official-{size}", *(["joint-ti", "joint-ti-sdpa"] if size == "ti" else [])]
        for name in others if kind == "videomamba" else []:
            other = found.get((name, frames, batch, phase))
            if other:
                line = f"{model} beside {name}, {frames} frames, batch {batch}, {phase}: "
                line += f"{other['milliseconds'] / ours['milliseconds']:.2f} x the speed"
                if ours["peak_mib"] and other["peak_mib"]:
                    line += f", 1/{other['peak_mib'] / ours['peak_mib']:.1f} of the memory"
                yield line


if __name__ == "__main__":
    sys.exit(main())
