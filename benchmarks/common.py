"""What the benchmarks share: a description of the machine, timing, peak memory and result files."""

import ctypes
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from lightning_modules.ops.graphs import capture

__all__ = [
    "RESULTS",
    "Rates",
    "device_memory",
    "device_name",
    "device_time",
    "fastest",
    "graph_time",
    "machine",
    "machine_slug",
    "peak_memory",
    "rates",
    "save",
    "seconds",
    "why_skipped",
]

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
MIB = 2**20


def machine() -> dict[str, Any]:
    """What a number has to be read with: CPU, threads, versions, commit, date, and how busy the machine was."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numba", "transformers")},
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def machine_slug(cpu: str, cores: int) -> str:
    """The part of a result file's name that tells machines apart: "AMD EPYC", 2 -> "amd-epyc-2-cores"."""
    return f"{re.sub(r'[^a-z0-9]+', '-', cpu.lower()).strip('-')}-{cores}-cores"


def save(result: dict[str, Any], path: Path) -> None:
    """Writes a result as JSON, the folder included if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def seconds(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def fastest(function: Callable[[], Any], budget_seconds: float = 1.0, most: int = 20) -> float:
    """The shortest of several calls, at most `most` and until the budget is used up; the first one is not counted."""
    function()
    times: list[float] = []
    while not times or (sum(times) < budget_seconds and len(times) < most):
        times.append(seconds(function))
    return min(times)


def peak_memory(function: Callable[[], Any]) -> tuple[float | None, str]:
    """MiB by which the process grows at most during one call, and how that was found.

    Python's and torch's freed memory stays in the process for reuse and would hide a part of the growth, so it is given
    back to the system first (garbage collection, glibc's malloc_trim). Then, in this order:

    - "VmHWM": the kernel's own high-water mark of resident memory, set back to the present use by writing 5 to
      /proc/self/clear_refs just before the call; misses nothing, however short.
    - "sampled": where that is forbidden, a thread reads the resident size every millisecond; may miss short peaks.
    - "unknown" (None): systems without /proc.

    What was allocated before the call (weights, inputs) is not counted.
    """
    gc.collect()
    _give_back_freed_memory()
    if not Path("/proc/self/statm").exists():
        function()
        return None, "unknown"
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _sampled_peak(function), "sampled"
    before = _status_kib("VmRSS")
    function()
    return max(_status_kib("VmHWM") - before, 0) * 1024 / MIB, "VmHWM"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def device_time(
    function: Callable[[], Any], device: torch.device, budget_seconds: float = 0.5, most: int = 50
) -> float:
    """Seconds of one call: the median of several, on a GPU between events of its own clock, after two to warm up."""
    if device.type != "cuda":
        return fastest(function, budget_seconds, most)
    for _ in range(2):
        function()
    torch.cuda.synchronize(device)
    estimate = max(seconds(lambda: (function(), torch.cuda.synchronize(device))), 1e-5)
    repeats = max(3, min(most, int(budget_seconds / estimate)))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize(device)
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(marks)) / 1e3


def graph_time(function: Callable[[], Any], device: torch.device, budget_seconds: float = 0.5) -> float | None:
    """Seconds of one call without the time that Python takes to start its kernels: replayed as a CUDA graph.

    None on a CPU. To be called without gradients, after a call that has compiled what there is to compile.
    """
    if device.type != "cuda":
        return None
    graph, _ = capture(function, device)
    return device_time(graph.replay, device, budget_seconds)


def why_skipped(error: Exception) -> str:
    """The reason of a record without numbers: a case that fails does not end the others."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


def device_memory(function: Callable[[], Any], device: torch.device) -> float | None:
    """MiB that one call needs at most beyond what is allocated before it; None where that cannot be found out."""
    if device.type != "cuda":
        return peak_memory(function)[0]
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


@dataclass(frozen=True)
class Rates:
    """What a device can do per second: bytes from and to memory, exponentials in float32, operations in products."""

    bytes: float
    exponentials: float
    flop: float
    how: str

    def floor(self, bytes: float = 0.0, exponentials: float = 0.0, flop: float = 0.0) -> float:
        """Seconds that the scarcest of the three takes alone."""
        return max(bytes / self.bytes, exponentials / self.exponentials, flop / self.flop)


def rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Memory and products measured (a copy, a square product in dtype); exponentials measured on a CPU and on a GPU
    reckoned: 16 per clock and multiprocessor at the highest clock."""
    gpu = device.type == "cuda"
    source = torch.empty(2**28 if gpu else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / device_time(lambda: target.copy_(source), device)
    side = 8192 if gpu else 512
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    flop = 2 * side**3 / device_time(lambda: a @ b, device)
    if gpu:
        count, clock = torch.cuda.get_device_properties(device).multi_processor_count, _highest_clock(device)
        exponentials, how = 16 * count * clock, f"16 per clock x {count} multiprocessors x {clock / 1e6:.0f} MHz"
    else:
        x = torch.rand(2**16)
        exponentials, how = x.numel() / fastest(lambda: torch.exp2(x), 0.2), "torch.exp2 on numbers in the cache"
    return Rates(
        copied, exponentials, flop, f"bytes: a copy; exponentials: {how}; products: {side} x {side} in {dtype}"
    )


def _highest_clock(device: torch.device) -> float:
    """In Hz."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    command = ["nvidia-smi", f"--id={uuid}", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) * 1e6
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return 1.98e9  # H100 SXM's highest; said in `how`, to be read with care on anything else


def _sampled_peak(function: Callable[[], Any]) -> float:
    done = threading.Event()
    before = highest = _resident_bytes()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.001):
            highest = max(highest, _resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return (highest - before) / MIB


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}; peak memory cannot be measured on this kernel.")


def _give_back_freed_memory() -> None:
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit that was measured, with "+changes" if the sources differed from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        sources = ("lightning_modules", "zoo/models", "benchmarks/*.py")
        return f"{commit}+changes" if _git("status", "--porcelain", "--", *sources) else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
