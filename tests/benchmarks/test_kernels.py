import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels.py"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "result.json"
    options = ["--device", "cpu", "--sizes", "ti", "--frames", "2", "3", "--batches", "1", "--tokens", "20",
               "--reference-frames", "2", "--seconds", "0.01", "--output", path]  # fmt: skip
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_backend_has_its_records_and_only_the_slow_one_is_skipped(result):
    found = {(r["kernel"], r["backend"], r["frames"]): r.get("skipped") for r in result["records"]}
    expected = {(kernel, backend, frames) for kernel in ("scan", "conv") for backend in ("numba", "reference")
                for frames in (2, 3)} | {("norm", "reference", frames) for frames in (2, 3)}  # fmt: skip
    assert set(found) == expected
    assert {case for case, skipped in found.items() if skipped} == {c for c in expected if c[1:] == ("reference", 3)}
    assert {"device", "commit", "date"} <= set(result["machine"])


@pytest.mark.slow
def test_the_floor_is_that_of_the_formula(result):
    speed = result["rates"]
    tokens, channels, states, size = 1 + 2 * 20, 2 * 192, 16, 4
    exponentials = 2 * tokens * channels * states
    moved = size * tokens * (6 * channels + 4 * states)
    (scan,) = (r for r in result["records"] if (r["kernel"], r["backend"], r["frames"]) == ("scan", "numba", 2))
    floor = max(exponentials / speed["exponentials"], moved / speed["bytes"])
    assert scan["floor_ms"] == pytest.approx(1e3 * floor)
    assert scan["of_floor"] == pytest.approx(scan["floor_ms"] / scan["forward_ms"])
    assert scan["both_ms"] > 0 and scan["forward_ms"] > 0
    assert scan["both_floor_ms"] >= 2 * scan["floor_ms"] * 0.99
