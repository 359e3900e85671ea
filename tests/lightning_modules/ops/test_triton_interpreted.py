"""Without a GPU: the tests of the triton kernels in triton's interpreter, which wants a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _run(part: str, *options: str) -> None:
    file = HERE / part / "test_triton.py" if (HERE / part).is_dir() else HERE / f"test_{part}.py"
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(file), *options]
    done = subprocess.run(
        command, cwd=HERE.parents[2], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout, done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
@pytest.mark.parametrize(
    ("part", "tests"),
    [
        ("scan", "test_lengths and not of_videos"),
        ("conv", "test_lengths"),
        ("norm", "half_precision"),
        ("mixer", "triton and plain"),
    ],
)
def test_a_part_in_the_interpreter(part: str, tests: str) -> None:
    pytest.importorskip("triton")
    _run(part, "-k", tests)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
@pytest.mark.parametrize("part", ["scan", "conv", "norm", "mixer"])
def test_in_the_interpreter(part: str) -> None:
    pytest.importorskip("triton")
    _run(part, *(["-k", "triton"] if part == "mixer" else []))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
def test_in_the_interpreter_at_length() -> None:
    pytest.importorskip("triton")
    _run("scan", "-m", "slow")
