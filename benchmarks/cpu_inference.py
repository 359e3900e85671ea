"""Inference on the CPU: VideoMamba on each scan backend beside attention models, all in one process.

Measured is the forward pass of one clip (batch 1, random weights and pixels, `torch.inference_mode`), in float32 and,
but for the reference backend, with the products of matrices in bfloat16 (`zoo predict --precision bf16`):

- seconds: every case is warmed up, then the cases take turns, one call each per round, so that a machine that slows
  down or speeds up meanwhile does so for all of them. The fastest and the median call are kept; ratios compare the
  fastest. A case that has used up --limit seconds sits out the remaining rounds.
- peak memory: growth of the process during one call, above weights and input (`common.peak_memory` says how).
- the limit beside the time: matrix work / measured SGEMM rate + state updates / measured update rate, where
  matrix work (GFLOP) is counted by `torch.utils.flop_counter` (linear layers, attention, patch embedding),
  the SGEMM rate (in bfloat16 beside such a case) is measured at the shapes of the network's own linear layers, once
  with `torch.mm` (MKL, OpenBLAS) and once with oneDNN where torch has it, and the faster one counts, whichever the
  network itself uses,
  state updates = 2 directions x tokens x inner channels x 16 states x depth,
  and the update rate comes from one `bidirectional_scan` with gate at the network's own shape.
  What is left between the limit and the time is convolutions, norms, additions, overhead, and the slower of two SGEMMs.

The reference backend, a loop over tokens in Python, is measured like the others; what --reference-frames leaves out is
marked as skipped. Nothing is extrapolated.

The attention models are those of transformers, built from their configurations:

- videomae-b: 16 frames, tubelet 2: 1568 tokens, joint attention, SDPA (arXiv 2203.12602).
- timesformer-b: 8 frames, divided space-time attention (arXiv 2102.05095), which transformers writes out without SDPA.
- joint-vit-ti: VideoMAE's architecture at the size of DeiT-Ti (arXiv 2012.12877: 192 wide, 12 layers, 3 heads) with
  tubelet 1: 196 tokens per frame, joint attention over the tokens of all frames, SDPA.
"""

import argparse
import itertools
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import REPOSITORY, RESULTS, fastest, machine, machine_slug, peak_memory, save, seconds
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.nets import VideoMamba
from lightning_modules.ops import bidirectional_scan, use_backend, why_not

BACKENDS = ("numba", "reference")
PRECISIONS = ("fp32", "bf16")
SIZES = {path.stem: path for path in sorted((REPOSITORY / "zoo" / "models").glob("videomamba-*.yaml"))}
OWN_FRAMES = {"videomae-b": 16, "timesformer-b": 8}  # these take the number of frames they were made for
ATTENTION = (*OWN_FRAMES, "joint-vit-ti")
MODELS = ("videomamba-ti", "videomamba-s", "videomamba-m", *ATTENTION)
FRAMES = (8, 16, 32, 64)
QUICK = {"models": ["videomamba-ti", "videomae-b", "joint-vit-ti"], "frames": [8], "repeats": 2}
NUM_CLASSES = 400  # Kinetics-400
# The official code's own CPU path, M at 8 frames: "about 50 s on two cores, measured by the maintainers"; not run here.
OFFICIAL_SECONDS = 50.0
LIMIT = "matrix_gflop / max(mm_gflops, onednn_gflops) + state_updates / updates_per_second"


@dataclass
class Record:
    """One (model, frames, backend, precision); numbers are None where it was not run, and `skipped` says why."""

    model: str
    frames: int
    backend: str | None  # None: no scan in this model
    precision: str  # one of PRECISIONS
    tokens: int
    parameters: int
    weights_mib: float
    attention: str | None  # how transformers computes it
    skipped: str | None = None
    seconds: list[float] = field(default_factory=list)
    seconds_min: float | None = None
    seconds_median: float | None = None
    peak_mib: float | None = None
    memory_method: str | None = None
    matrix_gflop: float | None = None
    mm_gflops: float | None = None
    onednn_gflops: float | None = None
    state_updates: int = 0
    updates_per_second: float | None = None
    limit_seconds: float | None = None


class Case:
    """A network with one clip of its shape, on one backend, in one precision."""

    def __init__(
        self, model: str, frames: int, backend: str | None, precision: str, network: nn.Module, clip: Tensor
    ) -> None:
        self.network, self.clip, self.backend = network, clip, backend
        self.tokens = count_tokens(network)
        weights = list(network.parameters())
        self.record = Record(
            model, frames, backend, precision, self.tokens,
            parameters=sum(w.numel() for w in weights),
            weights_mib=round(sum(w.numel() * w.element_size() for w in weights) / 2**20, 1),
            attention=None if backend else network.config._attn_implementation,
        )  # fmt: skip

    def run(self) -> None:
        with self.on_backend(), torch.autocast("cpu", torch.bfloat16, enabled=self.record.precision == "bf16"):
            self.network(self.clip)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.record.precision == "bf16" else torch.float32

    def on_backend(self) -> AbstractContextManager[None]:
        return use_backend(self.backend) if self.backend else nullcontext()

    @cached_property
    def matrix_gflop(self) -> float:
        # Whether torch counts the CPU's fused attention itself depends on its release.
        fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flop}
        with FlopCounterMode(display=False, custom_mapping=fused) as counter:
            self.run()
        return counter.get_total_flops() / 1e9


def main() -> int:
    options = parse(sys.argv[1:])
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 150)
    about = machine()
    console.print(f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, torch {about['torch']}, "
                  f"load {about['load_average'][0]}")  # fmt: skip
    if about["load_average"][0] > 0.5 * about["cores"]:
        console.print("[yellow]Other programs keep this machine busy: the times below are too long.")
    with torch.inference_mode():
        if options.profile:
            for case in build_cases(options):
                profile(case, console)
            return 0
        records = measure(build_cases(options), options, console)
    checks = check(records)
    console.print(table(records))
    for reason in dict.fromkeys(record.skipped for record in records if record.skipped):
        of = [f"{r.model} {r.backend} {r.frames}" for r in records if r.skipped == reason]
        console.print(f"Skipped: {', '.join(of)}: {reason}", highlight=False)
    for line in checks:
        verdict = {True: "[green]PASS[/]", False: "[red]FAIL[/]", None: "----"}[line["passed"]]
        value = "not measured" if line["value"] is None else f"{line['value']:.2f}"
        console.print(f"{verdict}  {line['name']}: {value} (wanted: {line['wanted']})")
    path = options.output or default_output(about, options)
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "profile")}
    about["load_average_after"] = machine()["load_average"]
    result = {"machine": about, "settings": settings, "limit_formula": LIMIT,
              "records": [asdict(record) for record in records], "checks": checks}  # fmt: skip
    save(result, path)
    console.print(f"Saved to {path}", soft_wrap=True)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Seconds per clip and peak memory of VideoMamba on the CPU, beside attention models.",
        epilog="""examples:
  python benchmarks/cpu_inference.py                         everything; about 30 minutes on two idle cores
  python benchmarks/cpu_inference.py --quick                 a first impression in about a minute
  python benchmarks/cpu_inference.py --models videomamba-m videomae-b --frames 8
  python benchmarks/cpu_inference.py --profile               where videomamba-m spends its time at 8 frames

Close other programs first. Ratios of cases from one run are worth more than seconds from two runs.
How everything is measured stands at the top of this file.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = (*SIZES, *ATTENTION)
    add("--models", nargs="+", choices=names, metavar="NAME",
        help=f"of {', '.join(names)} (default: {' '.join(MODELS)})")  # fmt: skip
    add("--frames", nargs="+", type=int, metavar="N",
        help="frames per clip (default: 8 16 32 64); videomae-b always takes 16, timesformer-b 8")  # fmt: skip
    add("--reference-frames", nargs="*", type=int, metavar="N",
        help="frames at which the slow reference backend runs too (default: the --frames; no N: never)")  # fmt: skip
    add("--precisions", nargs="+", choices=PRECISIONS, metavar="NAME", default=list(PRECISIONS),
        help="of fp32 and bf16 (default: both, the reference backend in fp32 alone)")  # fmt: skip
    add("--image-size", type=int, metavar="PX", default=224, help="side of the frames (default: 224)")
    add("--repeats", type=int, metavar="N", help="rounds of timed calls (default: 5)")
    add("--limit", type=float, metavar="SECONDS", default=30.0,
        help="a case sits out further rounds after so much time (default: 30)")  # fmt: skip
    add("--threads", type=int, metavar="N",
        help="threads of torch and of the scan (default: torch's own choice, usually one per core)")  # fmt: skip
    add("--output", type=Path, metavar="FILE",
        help="where the JSON goes (default: benchmarks/results/cpu_inference_<machine>.json, with _partial before the "
        "dot where not everything was run)")  # fmt: skip
    add("--quick", action="store_true", help=f"other defaults: {QUICK}")
    add("--profile", action="store_true",
        help="instead of all that, print where VideoMamba models spend their time: matrix work, scans, convolutions, "
        "norms, the rest (default: videomamba-m at 8 frames)")  # fmt: skip
    options = parser.parse_args(arguments)
    chosen = (options.models, options.frames, options.reference_frames, options.image_size != 224,
              len(options.precisions) != len(PRECISIONS))  # fmt: skip
    options.complete = not (options.quick or any(choice not in (None, False) for choice in chosen))
    defaults = {"models": list(MODELS), "frames": list(FRAMES), "repeats": 5}
    if options.profile:
        defaults |= {"models": ["videomamba-m"], "frames": [8]}
    elif options.quick:
        defaults |= QUICK
    for name, default in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    if options.reference_frames is None:
        options.reference_frames = options.frames
    counts = (*options.frames, *options.reference_frames, options.image_size, options.repeats, options.threads or 1)
    if min(counts) < 1:
        parser.error("frames, image size, repeats and threads have to be at least 1")
    if options.image_size % 16:
        parser.error(f"--image-size {options.image_size} is not a multiple of the patches' 16 pixels")
    return options


def default_output(about: dict[str, Any], options: argparse.Namespace) -> Path:
    part = "" if options.complete else "_partial"
    return RESULTS / f"cpu_inference_{machine_slug(about['cpu'], about['cores'])}{part}.json"


# Networks


def build_cases(options: argparse.Namespace) -> list[Case]:
    """The cases in the order of the table; backends share their network."""
    cases = []
    for model in options.models:
        if options.profile and model not in SIZES:
            continue
        for frames in [OWN_FRAMES[model]] if model in OWN_FRAMES else options.frames:
            network = build(model, frames, options.image_size).eval()
            shape = (3, frames) if model in SIZES else (frames, 3)
            clip = torch.randn(1, *shape, options.image_size, options.image_size)
            backends = BACKENDS if model in SIZES else [None]
            for backend, precision in itertools.product(backends, options.precisions):
                if backend == "reference" and (options.profile or precision != "fp32"):
                    continue
                case = Case(model, frames, backend, precision, network, clip)
                case.record.skipped = backend and why_skip(backend, frames, options.reference_frames)
                cases.append(case)
    return cases


def why_skip(backend: str, frames: int, reference_frames: list[int]) -> str | None:
    if backend == "reference" and frames not in reference_frames:
        return "left out by --reference-frames"
    return why_not(backend)


def build(model: str, frames: int, image_size: int) -> nn.Module:
    if model in SIZES:
        sizes = yaml.safe_load(SIZES[model].read_text(encoding="utf-8"))["init_args"]
        sizes = {key: sizes[key] for key in ("embed_dim", "depth", "tubelet_size") if key in sizes}
        return VideoMamba(num_classes=NUM_CLASSES, num_frames=frames, image_size=image_size, **sizes)
    from transformers import (  # takes seconds, and is not needed for VideoMamba alone
        TimesformerConfig,
        TimesformerForVideoClassification,
        VideoMAEConfig,
        VideoMAEForVideoClassification,
    )

    common = {"num_labels": NUM_CLASSES, "num_frames": frames, "image_size": image_size}
    if model == "timesformer-b":
        return TimesformerForVideoClassification(TimesformerConfig(**common))
    deit_ti = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 12}
    size = {"tubelet_size": 1, **deit_ti} if model == "joint-vit-ti" else {"tubelet_size": 2}
    network = VideoMAEForVideoClassification(VideoMAEConfig(**common, **size, attn_implementation="sdpa"))
    assert network.config._attn_implementation == "sdpa"
    return network


def count_tokens(network: nn.Module) -> int:
    if isinstance(network, VideoMamba):
        return 1 + network.temporal_pos_embedding.shape[1] * network.grid_size**2
    config = network.config
    patches = (config.image_size // config.patch_size) ** 2
    if config.model_type == "timesformer":
        return 1 + config.num_frames * patches
    return config.num_frames // config.tubelet_size * patches


# Measuring


def measure(cases: list[Case], options: argparse.Namespace, console: Console) -> list[Record]:
    """Runs what is not skipped and fills in the records."""
    running = [case for case in cases if not case.record.skipped]
    progress = Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True))
    with progress:
        step = progress.add_task("", total=len(running) * (options.repeats + 3))

        def advance(what: str, case: Case) -> None:
            progress.update(step, advance=1, description=f"{what} {case.record.model} {case.record.frames}")

        for case in running:
            advance("warm-up", case)
            case.run()
            # Right after the warm-up, or pages of libraries that the system took back meanwhile would be counted too.
            advance("memory", case)
            peak, case.record.memory_method = peak_memory(case.run)
            case.record.peak_mib = None if peak is None else round(peak, 1)
        for _ in range(options.repeats):
            for case in running:
                advance("time", case)
                if not case.record.seconds or sum(case.record.seconds) < options.limit:
                    case.record.seconds.append(seconds(case.run))
        # The reference backend's matrix work is the other backends': counting it would cost another slow pass.
        gflop: dict[tuple[str, int], float] = {}
        for case in running:
            advance("limit", case)
            key = (case.record.model, case.record.frames)
            if key not in gflop:
                gflop[key] = case.matrix_gflop
            add_limit(case, gflop[key])
    for case in running:
        case.record.seconds_min = min(case.record.seconds)
        case.record.seconds_median = statistics.median(case.record.seconds)
    return [case.record for case in cases]


def add_limit(case: Case, matrix_gflop: float) -> None:
    record = case.record
    record.matrix_gflop = matrix_gflop
    record.mm_gflops = sgemm_rate(case, mm) / 1e9
    if torch.backends.mkldnn.is_available():
        record.onednn_gflops = sgemm_rate(case, onednn) / 1e9
    record.limit_seconds = record.matrix_gflop / max(record.mm_gflops, record.onednn_gflops or 0.0)
    if isinstance(case.network, VideoMamba):
        inner, states = case.network.layers[0].mixer.A_log.shape
        updates = 2 * case.tokens * inner * states
        with case.on_backend():
            record.updates_per_second = updates / fastest(scan_call(case.tokens, inner, states))
        record.state_updates = updates * case.network.depth
        record.limit_seconds += record.state_updates / record.updates_per_second


def attention_flop(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of queries times keys and weights times values, given the shapes (batch, heads, tokens, width)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def sgemm_rate(case: Case, product: Callable[[Tensor, Tensor], Tensor]) -> float:
    """FLOP per second over the network's linear layers (but for the classifier), all tokens at a time."""
    tokens = case.tokens
    shapes = Counter(
        (layer.in_features, layer.out_features)
        for name, layer in case.network.named_modules()
        if isinstance(layer, nn.Linear) and name not in ("head", "classifier")
    )
    flop = time = 0.0
    for (inputs, outputs), count in shapes.items():
        x, weight = (torch.randn(rows, inputs).to(case.dtype) for rows in (tokens, outputs))
        flop += count * 2 * tokens * inputs * outputs
        time += count * fastest(partial(product, x, weight), budget_seconds=0.5, most=10)
    return flop / time


def mm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """The product that torch's own compiler uses for frozen weights; eager torch keeps to MKL in float32."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def scan_call(tokens: int, inner: int, states: int) -> Callable[[], Tensor]:
    """One block's scans: both directions, softplus, skip and gate, B and C slices of a projection as in `BiMamba`."""
    decay = -torch.arange(1.0, states + 1).repeat(inner, 1)

    def direction() -> tuple[Tensor, ...]:
        weights = torch.randn(1, tokens, 2 * states)
        delta = torch.randn(1, tokens, inner) - 4  # after softplus about 0.02, in the range of Mamba's initial values
        return torch.randn(1, tokens, inner), delta, decay, *weights.chunk(2, -1), torch.ones(inner)

    one, other, bias = direction(), direction(), torch.zeros(inner)
    gate = torch.randn(1, tokens, 2 * inner)[..., inner:]
    return lambda: bidirectional_scan(*one, *other, z=gate, delta_bias=bias, delta_bias_b=bias, delta_softplus=True)


# Reporting


def table(records: list[Record]) -> Table:
    times = {(r.model, r.frames, r.backend, r.precision): r.seconds_min for r in records}
    result = Table(title="One clip, batch 1", caption_justify="left", caption="limit s: "
                   f"{LIMIT}. x fp32, x ref, x MAE-B, x joint: how many times faster than in float32 and, in the same "
                   "precision, than the reference backend, VideoMAE-B at 16 frames and joint-vit-ti at as many frames. "
                   "peak MiB: above the weights.")  # fmt: skip
    for name in ("model", "backend", "in"):
        result.add_column(name, no_wrap=True)
    for name in ("frames", "tokens", "s/clip", "median", "x fp32", "x ref", "x MAE-B", "x joint", "limit s", "of limit",
                 "GF/s mm", "GF/s oneDNN", "G upd/s", "peak MiB"):  # fmt: skip
        result.add_column(name, justify="right")
    for r in records:
        if r.skipped:
            continue
        row = [r.model, r.backend or f"({r.attention})", r.precision, str(r.frames), str(r.tokens)]
        ratios = (
            times.get((r.model, r.frames, r.backend, "fp32")) if r.precision != "fp32" else None,
            times.get((r.model, r.frames, "reference", r.precision)) if r.backend == "numba" else None,
            times.get(("videomae-b", 16, None, r.precision)),
            times.get(("joint-vit-ti", r.frames, None, r.precision)),
        )
        row += [f"{r.seconds_min:.3f}", f"{r.seconds_median:.3f}"]
        row += ["" if other is None else f"{other / r.seconds_min:.2f}" for other in ratios]
        row += [f"{r.limit_seconds:.3f}", f"{r.limit_seconds / r.seconds_min:.0%}", f"{r.mm_gflops:.0f}"]
        row += [f"{r.onednn_gflops:.0f}" if r.onednn_gflops else ""]
        row += [f"{r.updates_per_second / 1e9:.2f}" if r.updates_per_second else ""]
        row += ["" if r.peak_mib is None else f"{r.peak_mib:.0f}"]
        result.add_row(*row)
    return result


def check(records: list[Record]) -> list[dict[str, Any]]:
    """The aims of the project, each with the value measured, or None where a part of it was not run."""
    times = {(r.model, r.frames, r.backend, r.precision): r.seconds_min for r in records}
    m8 = ("videomamba-m", 8, "numba", "fp32")
    aims = [
        ("M at 8 frames, numba: times faster than the reference backend",
         ("videomamba-m", 8, "reference", "fp32"), m8, 8.0),
        (f"M at 8 frames: times faster than the official code's CPU path ({OFFICIAL_SECONDS:.0f} s on two cores, "
         "quoted)", OFFICIAL_SECONDS, m8, 20.0),
        ("M at 8 frames: times faster than VideoMAE-B at 16 frames", ("videomae-b", 16, None, "fp32"), m8, 1.0),
        ("Ti at 64 frames: times faster than joint attention", ("joint-vit-ti", 64, None, "fp32"),
         ("videomamba-ti", 64, "numba", "fp32"), 3.0),
        ("M at 8 frames, bf16: times faster than fp32", m8, ("videomamba-m", 8, "numba", "bf16"), 1.4),
    ]  # fmt: skip
    lines = []
    for name, slow, fast, wanted in aims:
        slow = slow if isinstance(slow, float) else times.get(slow)
        fast = times.get(fast)
        value = slow / fast if slow and fast else None
        lines.append(_line(name, value, f"at least {wanted:g}", value and value >= wanted))
    for model in dict.fromkeys(r.model for r in records if r.backend == "numba"):
        mine = (r for r in records if (r.model, r.backend, r.precision) == (model, "numba", "fp32"))
        memory = sorted((r.frames, r.peak_mib) for r in mine if r.peak_mib)
        if len({peak for _, peak in memory}) < 3:
            continue  # any two points lie on a line
        frames, peaks = np.array(memory).T
        fit = np.polyval(np.polyfit(frames, peaks, 1), frames)
        r_squared = 1 - ((peaks - fit) ** 2).sum() / ((peaks - peaks.mean()) ** 2).sum()
        growth, most = peaks[-1] / peaks[0], 1.05 * frames[-1] / frames[0]
        name = f"{model}: growth of peak memory from {frames[0]:.0f} to {frames[-1]:.0f} frames (R^2 {r_squared:.4f})"
        linear = growth <= most and r_squared >= 0.99
        lines.append(_line(name, float(growth), f"at most {most:.1f}, R^2 at least 0.99", linear))
    return lines


def _line(name: str, value: float | None, wanted: str, passed: object) -> dict[str, Any]:
    return {"name": name, "value": value, "wanted": wanted, "passed": None if value is None else bool(passed)}


def profile(case: Case, console: Console) -> None:
    """Prints where the time of one call goes, by the operators the network itself calls, not by what they call."""
    plain = fastest(case.run, budget_seconds=10, most=5)
    runs = []
    for _ in range(3):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            spent = seconds(case.run)
        runs.append((spent, profiler))
    profiled, profiler = min(runs, key=lambda run: run[0])
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events():
        if event.cpu_parent is None:
            times[event.name] += event.cpu_time_total / 1e6
            calls[event.name] += 1
    groups: Counter[str] = Counter()
    for name, spent in times.items():
        groups[group_of(name)] += spent
    groups["between operators"] = max(profiled - sum(times.values()), 0.0)
    title = f"{case.record.model}, {case.record.frames} frames, {case.backend}, {case.record.precision}: {plain:.3f} s"
    result = Table("", "seconds", "share", "calls", title=f"{title} ({profiled:.3f} s while profiled)")
    for group, spent in groups.most_common():
        result.add_row(f"[bold]{group}", f"[bold]{spent:.3f}", f"[bold]{spent / profiled:.1%}")
        for name, part in times.most_common():
            if group_of(name) == group and part > 0.002 * profiled:
                result.add_row(f"  {name}", f"{part:.3f}", f"{part / profiled:.1%}", str(calls[name]))
    console.print(result)


def group_of(operator: str) -> str:
    for part, group in (("scan", "scans"), ("conv", "convolutions"), ("norm", "norms")):
        if part in operator:
            return group
    # oneDNN's, which inference calls without autograd, and MKL's have namespaces and names of their own.
    matrix = ("linear", "matmul", "mm", "bmm", "addmm", "_linear_pointwise", "_mkl_linear")
    return "matrix work" if operator.rpartition("::")[2] in matrix else "rest"


if __name__ == "__main__":
    sys.exit(main())
