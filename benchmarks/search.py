"""How fast an index is searched, exactly and approximately, and what the approximate answer misses.

    python benchmarks/search.py [--vectors 1000000] [--dims 512] [--dtypes float32 float16]

An index of generated vectors is written, gets its approximate index, is opened and searched as `zoo search` does.

The vectors stand for those of videos, which are neither independent nor everywhere: they lie in a cone, in topics of
unequal size, and in few dimensions. Each is the sum, scaled to unit length, of

- a direction that all share, of length 0.5;
- one of 1000 topics, of length 0.8 in the mean; the k-th most frequent is drawn with probability proportional to
  k^-0.7;
- its own part, of length 0.6 in the mean.

Topics and own parts are normal with variance proportional to 1/i along the i-th of `dims` random orthogonal axes. So
two random vectors have a cosine of 0.21 on average, a vector and its 10th nearest of 20,000 one of 0.71, and the
participation ratio of the covariance's eigenvalues is 32 dimensions. Queries are of two kinds:

- clips: further vectors of the same kind;
- texts: 0.3 of a stored vector and 0.95 of a random direction in all dimensions, as far from the videos as texts are
  from videos in models such as CLIP (a cosine of 0.3), and the harder case for an approximate index.

Wall-clock seconds depend on what else runs, so the CPU seconds of all threads and the load stand beside them. `first`
is the first search after opening; the others are medians over different queries. The floor of an exact search is the
larger of reading all vectors once from memory and their products with the queries at measured rates.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, Rates, machine, machine_slug, rates, save
from kernels import short

from zoo.retrieval.table import BITS, DTYPES, PROBES, REFINE, Hit, Index
from zoo.tables.table import Record

ROWS = 2**16
"""Of a commit while the index is written."""
TOPICS, TOPK = 1000, 10
EXACT_REPEATS = 3


def main() -> int:
    """Measure, and save after each step."""
    options = parse(sys.argv[1:])
    speed, about = rates(torch.device("cpu"), torch.float32), machine()
    path = options.output or RESULTS / f"search_{machine_slug(about['cpu'], about['cores'])}.json"
    result: dict[str, Any] = {
        "machine": about, "rates": vars(speed),
        "floor_formula": "max(bytes / bytes_per_second, 2 Q N D / flop_per_second)",
        "settings": {"topk": TOPK, "bits": BITS, "probes": PROBES, "refine": REFINE}, "records": [],
    }  # fmt: skip
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for record in measure(Path(folder) / "index", dtype, options, speed):
                record = {"dtype": dtype, **record, "load": round(os.getloadavg()[0], 1)}
                result["records"].append(record)
                print("  ".join(f"{key} {short(value)}" for key, value in record.items()), flush=True)
                save(result, path)
    print(f"Saved to {path}")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=10**6)
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument("--queries", type=int, default=100, help="of each kind (default: 100)")
    parser.add_argument("--folder", type=Path, help="where the index is written for the time being")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


class Vectors:
    """What stands for vectors of videos and texts; see the top of this file."""

    def __init__(self, dims: int) -> None:
        rng = np.random.default_rng(0)
        lengths = np.arange(1, dims + 1) ** -0.5
        self.lengths = (lengths / np.linalg.norm(lengths)).astype(np.float32)
        self.axes = np.linalg.qr(rng.standard_normal((dims, dims)))[0].astype(np.float32)
        self.shared = self.axes[:, rng.integers(dims)]
        self.topics = self._draw(TOPICS, rng)
        self.shares = np.arange(1, TOPICS + 1) ** -0.7
        self.shares /= self.shares.sum()

    def videos(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """float32 (number, dims), of unit length."""
        topics = self.topics[rng.choice(TOPICS, number, p=self.shares)]
        return _unit(0.5 * self.shared + 0.8 * topics + 0.6 * self._draw(number, rng))

    def texts(self, videos: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """float32 (N, dims), one for each vector of a video, of unit length."""
        return _unit(0.3 * videos + 0.95 * _unit(rng.standard_normal(videos.shape, np.float32)))

    def _draw(self, number: int, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal((number, len(self.lengths)), np.float32) * self.lengths @ self.axes.T


def measure(folder: Path, dtype: str, options: argparse.Namespace, speed: Rates) -> Iterator[dict[str, Any]]:
    """Yield a record of each step."""
    count, dims, queries = options.vectors, options.dims, options.queries
    made, rng = Vectors(dims), np.random.default_rng(1)
    index = Index.create(folder, dims, dtype)
    described, adding, spent = [], 0.0, 0.0
    for first in range(0, count, ROWS):
        vectors = made.videos(min(ROWS, count - first), rng)
        records = [Record(f"{row:07d}.mp4", 0.0, 10.0) for row in range(first, first + len(vectors))]
        described.append(vectors[: max(1, queries * len(vectors) // count + 1)])
        wall, cpu, _ = timed(partial(index.add, records, torch.from_numpy(vectors)))
        adding, spent = adding + wall, spent + cpu
    about = {"vectors": count, "dims": dims}
    yield about | {"step": "add", "seconds": adding, "cpu_seconds": spent, "mib": mebibytes(folder)}
    wall, cpu, _ = timed(index.optimise)
    yield about | {"step": "build", "seconds": wall, "cpu_seconds": cpu, "mib": mebibytes(folder)}
    asked = {"texts": made.texts(np.concatenate(described)[:queries], rng), "clips": made.videos(queries, rng)}
    best: dict[str, list[list[Hit]]] = {}
    for exact in (True, False):
        wall, cpu, index = timed(lambda: Index.open(folder))
        if len(index) != count:
            raise RuntimeError(f"The index has {len(index)} vectors in place of {count}.")
        about["step"] = "exact search" if exact else "approximate search"
        first_wall = None
        search = partial(index.search, topk=TOPK, exact=exact)
        for kind, vectors in asked.items():
            all_of_them = torch.from_numpy(vectors)
            few = all_of_them[: EXACT_REPEATS if exact else queries]
            single = [timed(partial(search, one[None])) for one in few]
            together = timed(partial(search, all_of_them))
            if exact:
                best[kind] = together[2]
            further = single[1:] if first_wall is None and len(single) > 1 else single
            first_wall = single[0][0] if first_wall is None else first_wall
            same = sum(len({*a} & {*b}) for a, b in zip(best[kind], together[2], strict=True))
            if [hits for *_, (hits,) in single] != together[2][: len(single)]:
                raise RuntimeError(f"The answers to {kind} depend on how many are asked at once.")
            yield about | {
                "queries": kind,
                "first_seconds": first_wall,
                "seconds": statistics.median(wall for wall, _, _ in further),
                "cpu_seconds": statistics.median(cpu for _, cpu, _ in further),
                "floor_seconds": floor(count, dims, dtype, 1, speed),
                "together": queries,
                "together_seconds": together[0],
                "together_cpu_seconds": together[1],
                "together_floor_seconds": floor(count, dims, dtype, queries, speed),
                "recall_at_10": same / max(sum(map(len, best[kind])), 1),
            }


def floor(count: int, dims: int, dtype: str, queries: int, speed: Rates) -> float:
    """Seconds that an exact search takes at least."""
    return speed.floor(bytes=count * dims * torch.finfo(DTYPES[dtype]).bits / 8, flop=2.0 * queries * count * dims)


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock and of the CPUs, and what it returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def mebibytes(folder: Path) -> float:
    """Of all files, those of the approximate index included."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


if __name__ == "__main__":
    sys.exit(main())
