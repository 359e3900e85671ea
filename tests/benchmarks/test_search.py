"""The search benchmark: its vectors are as described, and its records follow from each other."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("search")


def test_the_vectors_lie_in_topics_in_few_dimensions(benchmark):
    made, rng = benchmark.Vectors(512), np.random.default_rng(1)
    videos = made.videos(20_000, rng)
    np.testing.assert_allclose(np.linalg.norm(videos, axis=1), 1, rtol=1e-5)
    cosines = videos[:1000] @ videos.T
    assert cosines.mean() == pytest.approx(0.21, abs=0.02)
    assert np.sort(cosines, axis=1)[:, -11].mean() == pytest.approx(0.71, abs=0.02)
    values = np.linalg.eigvalsh(np.cov(videos.T))
    assert values.sum() ** 2 / (values**2).sum() == pytest.approx(32, abs=3)
    texts = made.texts(videos, rng)
    assert (texts * videos).sum(1).mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.slow
def test_records_of_a_small_index(tmp_path):
    options = ["--vectors", 3000, "--dims", 32, "--dtypes", "float16", "--queries", 7, "--folder", tmp_path]
    command = [sys.executable, FOLDER / "search.py", *map(str, options), "--output", str(tmp_path / "search.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "search.json").read_text())
    add, build, *searches = result["records"]
    assert (add["step"], build["step"]) == ("add", "build") and add["mib"] > 3000 * 32 * 2 / 2**20
    cases = [(step, kind) for step in ("exact search", "approximate search") for kind in ("texts", "clips")]
    assert [(record["step"], record["queries"]) for record in searches] == cases
    for record in searches:
        assert record["recall_at_10"] == 1  # too few rows for an approximate index
        flop = 2 * 7 * 3000 * 32 / result["rates"]["flop"]
        assert record["together_floor_seconds"] == pytest.approx(max(flop, 3000 * 32 * 2 / result["rates"]["bytes"]))
    assert not list(tmp_path.glob("tmp*"))
