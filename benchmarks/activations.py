"""What a training step costs in time for what its blocks keep (`activations`), side by side in one process on a CPU.

    python benchmarks/activations.py [--size ti] [--frames 8] [--batch 1] [--rounds 10]

Each round runs one step (forward, loss, backward) of every variant in turn, so that a machine that gets busy is busy
for all. The ratios are medians over the rounds of a variant's time divided by that of `earlier` in the same round:
of the processor's time, which other programs disturb less, and of the wall's.

    earlier      everything kept, states every 16 tokens, torch's own RMS norm: how it was before there was a choice
    speed, balanced, memory

The memory of each is what autograd holds between forward and backward, counted by `saved_tensors_hooks` without the
weights, per token and block in units of the width: numbers of float32.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from common import machine
from throughput import CLASSES, build

from lightning_modules.checks import ACTIVATIONS
from lightning_modules.nets import VideoMamba
from lightning_modules.nets.bimamba import set_activations
from lightning_modules.ops import use_backend
from lightning_modules.ops.norm import numba as norm
from lightning_modules.ops.norm import reference
from lightning_modules.ops.scan import numba as scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", default="ti", choices=["ti", "s", "m"])
    add("--depth", type=int, help="blocks; default: those of the size")
    add("--frames", type=int, default=8)
    add("--image-size", type=int, default=224, metavar="PX")
    add("--batch", type=int, default=1)
    add("--rounds", type=int, default=10)
    add("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    net = build(f"videomamba-{options.size}", options.frames, options.image_size).train()
    if options.depth:
        net.layers, net.block_orders = net.layers[: options.depth], net.block_orders[: options.depth]
    clip = torch.randn(options.batch, 3, options.frames, options.image_size, options.image_size)
    label = torch.randint(CLASSES, (options.batch,))
    print(f"load {machine()['load_average']}, {options.threads} threads, {clip.shape[2]} frames, batch {options.batch}")
    with use_backend("numba"):
        compare(net, clip, label, options.rounds)
    print(f"load {machine()['load_average']}")


def compare(net: VideoMamba, clip: torch.Tensor, label: torch.Tensor, rounds: int) -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("earlier", *ACTIVATIONS)}
    floats = {}
    for number in range(rounds + 1):
        for name, found in times.items():
            with as_earlier() if name == "earlier" else nullcontext():
                set_activations(net, "speed" if name == "earlier" else name)
                if not number:  # compiles, and is not timed
                    floats[name] = kept(net, clip)
                    continue
                wall, own = time.perf_counter(), time.process_time()
                torch.nn.functional.cross_entropy(net(clip), label).backward()
                found.append((time.process_time() - own, time.perf_counter() - wall))
                net.zero_grad(set_to_none=True)
    print(f"{'':10} {'processor, ms':>14} {'ratio':>7} {'wall, ms':>10} {'ratio':>7} {'kept, D':>8}")
    for name, found in times.items():
        row = f"{name:10}"
        for own, base, width in zip(
            zip(*found, strict=True), zip(*times["earlier"], strict=True), (14, 10), strict=True
        ):
            ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
            row += f" {1e3 * statistics.median(own):{width}.1f} {ratio:7.3f}"
        print(f"{row} {floats[name]:8.2f}")


def kept(net: VideoMamba, clip: torch.Tensor) -> float:
    """Per token and block, in units of the width."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    hidden = net.embed(clip).detach()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = net.forward_blocks(hidden)
    assert output.grad_fn is not None  # so that no storage was given away twice
    total = sum(size for place, size in storages.items() if place not in weights)
    return total / (len(net.layers) * hidden.numel())


@contextmanager
def as_earlier() -> Iterator[None]:
    chunk, add_rms_norm = scan._CHUNK, norm.add_rms_norm
    scan._CHUNK, norm.add_rms_norm = 16, reference.add_rms_norm
    try:
        yield
    finally:
        scan._CHUNK, norm.add_rms_norm = chunk, add_rms_norm


if __name__ == "__main__":
    main()
