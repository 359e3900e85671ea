"""How time and peak memory grow with the frames of a clip, up to very long ones, in inference and in a training step.

    videomamba-ti          this project, on the backend that "auto" takes
    joint-ti-sdpa          joint attention over all tokens, DeiT-Ti's size, torch's fused attention (see throughput.py)
    joint-ti               the same, written out: the matrix of all pairs of tokens is in memory
    ...-checkpointed       the training step with every block recomputed in the backward pass (`activations`: memory)

One clip of 224 x 224 pixels and N frames, 196 N tokens, a head of 400 classes, random weights and pixels. A training
step is forward, loss and backward; the optimiser, whose memory does not grow with the frames, is left out.

Each case runs in a process of its own, so that nothing that an earlier one freed hides a peak:

- peak_mib: what the process grows by at most in the call, beyond weights and input (`common.device_memory`); on a CPU
  process_mib is all that the process ever held, interpreter and libraries included.
- milliseconds: on a CPU one thread works and the processor's time for it counts, which other programs disturb little
  (its wall time beside it); on a GPU it is the device's own clock. A call of less than --again seconds is run three
  times and the fastest counts.
- floor_ms and least_mib: the limits, by the formulas saved with the result.

A model stops at the number of frames at which memory or --limit ends, and the record says which. The limit of memory is
set before the process starts, and the limit of time is compared with the last time multiplied by its growth from one
number of frames to the next: such cases are not run, and never given as measured. `draw.py` makes the picture.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import RESULTS, Rates, device_memory, device_name, device_time, machine, machine_slug, rates, save
from kernels import short
from rich.progress import Progress, TimeElapsedColumn
from throughput import CLASSES, build, floor_seconds
from torch import Tensor, nn

from lightning_modules.nets import VideoMamba
from lightning_modules.nets.bimamba import set_activations
from lightning_modules.ops.backend import select

MODELS = ("videomamba-ti", "joint-ti-sdpa", "joint-ti")
CHECKPOINTED = "-checkpointed"
PHASES = ("infer", "train", f"train{CHECKPOINTED}")
FRAMES = (8, 16, 32, 64, 128, 256, 512, 1024)
FLOOR = (
    "passes * products / flop_per_second (+ depth * floors of scan, convolution, norm for VideoMamba: throughput.py); "
    "passes: infer 1, train 3, checkpointed 4; products of joint attention: layers * (24 N D^2 + 4 N^2 D)"
)
LEAST = (
    "4 bytes * N tokens * blocks * what a block keeps for the backward pass: VideoMamba D + 2E + 2(R + 2S) + 2ES/128, "
    "joint attention 16D, written out + heads * N; checkpointed: blocks * 2D (joint: D) + one block, of VideoMamba "
    "2D + 7E + 2(R + 2S) + 2ES/128; "
    "inference: one block without what only the backward pass needs: VideoMamba 2D + 7E + 2(R + 2S), "
    "joint attention 6D, written out + 2 * heads * N"
)
CHUNK = 128  # tokens between two states that the scan keeps for its backward pass


def main() -> int:
    options = parse(sys.argv[1:])
    if options.case:
        print(json.dumps(case(options)))
        return 0
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    backend = select("scan", torch.empty(0, device=device)).__name__.rsplit(".", 1)[-1]
    about = machine() | {"device": device_name(device), "backend": backend}
    path = options.output or RESULTS / f"long_video_{machine_slug(about['device'], about['cores'])}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if options.go_on and path.exists() else {"records": []}
    speed = Rates(**before["rates"]) if "rates" in before else rates(device, dtype)
    asked = set(cases(options))
    records = [r for r in before["records"] if "milliseconds" in r or key_of(r) not in asked]
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("case", "go_on", "output")}
    result = {"machine": about, "rates": vars(speed), "floor_formula": FLOOR, "memory_formula": LEAST,
              "settings": settings, "records": records}  # fmt: skip
    for record in measure(options, speed, records.copy()):
        records.append(record)
        records.sort(key=lambda r: (r["frames"], r["model"], r["phase"]))
        print("  ".join(f"{key} {short(value)}" for key, value in record.items() if value is not None), flush=True)
        about["load_average_after"] = machine()["load_average"]
        save(result, path)  # after every case: a run that is cut off has left what it found
    print(f"Saved to {path}")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="NAME", help=f"of {', '.join(MODELS)}")
    add("--phases", nargs="+", default=list(PHASES), choices=PHASES, metavar="PHASE", help=f"of {', '.join(PHASES)}")
    add("--frames", nargs="+", type=int, default=list(FRAMES), metavar="N")
    add("--image-size", type=int, default=224, metavar="PX")
    add("--threads", type=int, default=1, metavar="N", help="on a CPU (default: 1)")
    add("--again", type=float, default=10.0, metavar="SECONDS", help="repeat calls shorter than this (default: 10)")
    add("--limit", type=float, default=300.0, metavar="SECONDS", help="longest call to start (default: 300)")
    add("--memory-gib", type=float, default=free_gib(), metavar="GIB",
        help="what a process on a CPU may hold at most, never more than is free when it starts less 2 GiB")  # fmt: skip
    add("--go-on", action="store_true", help="keep the measurements that the output has, and add those it lacks")
    add("--output", type=Path, metavar="FILE", help="default: benchmarks/results/long_video_<device>.json")
    add("--case", nargs=3, metavar=("MODEL", "PHASE", "FRAMES"), help="measure this one here and print it as JSON")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    options.frames = sorted(options.frames)
    return options


def free_gib() -> float:
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return 16.0
    return round(int(fields["MemAvailable"].split()[0]) / 2**20 - 2, 1)


def cases(options: argparse.Namespace) -> list[tuple[int, str, str]]:
    """(frames, model, phase)"""
    return [(n, model, phase) for n in options.frames for model in options.models for phase in options.phases]


def key_of(record: dict[str, Any]) -> tuple[int, str, str]:
    """As in `cases`."""
    again = record["model"].endswith(CHECKPOINTED)
    return record["frames"], record["model"].removesuffix(CHECKPOINTED), record["phase"] + CHECKPOINTED * again


def measure(options: argparse.Namespace, speed: Rates, kept: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One record per frames, model and phase that is not among those kept, the short ones of all models first."""
    known = {key_of(record): record["milliseconds"] / 1e3 for record in kept if "milliseconds" in record}
    ended: dict[tuple[str, str], str] = {}
    times: dict[tuple[str, str], list[tuple[int, float]]] = {}
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=len(cases(options)))
        for frames, model, phase in cases(options):
            progress.update(task, advance=1, description=f"{model} {phase} {frames}")
            past = times.setdefault((model, phase), [])
            if (frames, model, phase) in known:
                past.append((frames, known[frames, model, phase]))
                continue
            name = model + CHECKPOINTED * phase.endswith(CHECKPOINTED)
            record = {"model": name, "frames": frames, "batch": 1, "phase": phase.partition("-")[0]}
            reason = ended.get((model, phase)) or too_long(past, frames, options.limit)
            found = {"skipped": reason} if reason else run(options, model, phase, frames)
            if "skipped" in found:
                ended.setdefault((model, phase), f"{found['skipped']} (at {frames} frames)")
            else:
                past.append((frames, found["milliseconds"] / 1e3))
                found |= limits(model, phase, frames, options, speed)
            yield record | found


def too_long(past: list[tuple[int, float]], frames: int, limit: float) -> str | None:
    """Why a case is not started, from (frames, seconds) of the shorter ones."""
    if len(past) < 2:
        return None
    (_, before), (_, last) = past[-2:]
    expected = last * last / before
    return f"time: about {expected:.0f} s expected, the limit is {limit:.0f}" if expected > limit else None


def run(options: argparse.Namespace, model: str, phase: str, frames: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", model, phase, str(frames)]
    for name in ("device", "dtype", "image_size", "threads", "again", "memory_gib"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -9:
        return {"skipped": "memory: the system ended the process"}
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def limits(model: str, phase: str, frames: int, options: argparse.Namespace, speed: Rates) -> dict[str, float]:
    """floor_ms and least_mib by the formulas at the head of this file."""
    train, again = phase != "infer", phase.endswith(CHECKPOINTED)
    patches, dtype = (options.image_size // 16) ** 2, getattr(torch, options.dtype)
    if model.startswith("videomamba"):
        with torch.device("meta"):
            net = build(model, frames, options.image_size)
        forward = floor_seconds(net, 1, False, dtype, speed)
        seconds = floor_seconds(net, 1, True, dtype, speed) + forward * again if train else forward
        width, tokens, blocks = net.embed_dim, 1 + frames * patches, net.depth
        inner, states = net.layers[0].mixer.A_log.shape
        selected, between = 2 * (net.layers[0].mixer.dt_rank + 2 * states), 2 * inner * states / CHUNK
        floats = 2 * width + 7 * inner + selected
        kept = floats + between if again else width + 2 * inner + selected + between
        passed = 2 * width
    else:
        width, tokens, blocks, heads = 192, frames * patches, 12, 3
        products = blocks * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)
        seconds = speed.floor(flop=products * (1 + 2 * train + again))
        pairs = 0 if model.endswith("sdpa") else heads * tokens
        floats, kept, passed = 6 * width + 2 * pairs, 16 * width + pairs, width
    total = blocks * passed + kept if again else blocks * kept if train else floats
    return {"floor_ms": 1e3 * seconds, "least_mib": 4 * tokens * total / 2**20}


# In the process of one case ------------------------------------------------------------------------------------------


def case(options: argparse.Namespace) -> dict[str, Any]:
    model, phase, frames = options.case[0], options.case[1], int(options.case[2])
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
        options.memory_gib = min(options.memory_gib, free_gib())
        resource.setrlimit(resource.RLIMIT_DATA, (int(options.memory_gib * 2**30),) * 2)
    torch.manual_seed(0)
    try:
        prepare(model, phase, 1, options, device, dtype)()  # compiles kernels, loads libraries
        call = prepare(model, phase, frames, options, device, dtype)
        return measured(call, options, device)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "memory" not in str(error):
            raise
        held = f"{options.memory_gib:g} GiB" if device.type == "cpu" else "the device's"
        return {"skipped": f"memory: it needs more than {held}"}


def prepare(model: str, phase: str, frames: int, options: argparse.Namespace, device: torch.device, dtype: torch.dtype):
    """The call to measure."""
    train = phase != "infer"
    with device:
        net = build(model, frames, options.image_size)
        shape = (3, frames) if isinstance(net, VideoMamba) else (frames, 3)
        clip = torch.randn(1, *shape, options.image_size, options.image_size)
        label = torch.randint(CLASSES, (1,))
    net = net.train() if train else net.eval().to(dtype)
    clip = clip if train else clip.to(dtype)
    if phase.endswith(CHECKPOINTED):
        recompute(net)
    half = train and dtype != torch.float32

    def call() -> None:
        with torch.autocast(device.type, dtype) if half else nullcontext():
            output = net(clip)
            logits = output if isinstance(output, Tensor) else output.logits
            loss = F.cross_entropy(logits.float(), label) if train else None
        if loss is not None:
            loss.backward()
            net.zero_grad(set_to_none=True)

    return call if train else torch.inference_mode()(call)


def recompute(net: nn.Module) -> None:
    if isinstance(net, VideoMamba):
        set_activations(net, "memory")
    else:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def measured(call, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    if device.type != "cpu":
        call()
        memory = device_memory(call, device)
        seconds = device_time(call, device)
        return {"milliseconds": 1e3 * seconds, "videos_per_second": 1 / seconds, "peak_mib": memory}
    times: list[tuple[float, float]] = []

    def timed() -> None:
        wall, own = time.perf_counter(), time.process_time()
        call()
        times.append((time.process_time() - own, time.perf_counter() - wall))

    memory = device_memory(timed, device)
    while len(times) < 3 and times[0][0] < options.again:
        timed()
    own, wall = min(times)
    return {
        "milliseconds": 1e3 * own,
        "videos_per_second": 1 / own,
        "wall_milliseconds": 1e3 * wall,
        "peak_mib": memory,
        "process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "calls": len(times),
    }


if __name__ == "__main__":
    sys.exit(main())
