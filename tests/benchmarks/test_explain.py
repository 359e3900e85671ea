"""Heat of both methods lies on the object, and what is hot carries the class: on a few of the benchmark's clips."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "explain.py"


@pytest.mark.slow
def test_both_methods_pass_both_tests(tmp_path):
    command = [sys.executable, SCRIPT, "--videos", "8", "--settings", "3", "11", "--output", tmp_path / "result.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["videos"] == 8 and result["accuracy"] > 0.7
    assert [row["method"] for row in result["settings"]] == ["occlusion", "integrated-gradients"]
    for row in result["settings"]:
        assert row["share"]["mean"] > 1.3 * result["area"]["mean"]
        assert row["deletion_mean"]["mean"] < 0.7 * result["deletion_mean"]["random"]["mean"]
        low, high = row["share"]["interval"]
        assert low < row["share"]["mean"] < high
    assert set(result["gradients_minus_occlusion"]) == {"share", "deletion_mean", "deletion_blur"}
