"""Without a GPU: the tests of the triton kernels in triton's interpreter, which wants a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _run(kernel: str, *options: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(HERE / kernel / "test_triton.py"), *options]
    done = subprocess.run(
        command, cwd=HERE.parents[2], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout, done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
@pytest.mark.parametrize("kernel", ["scan", "conv", "norm"])
def test_a_part_in_the_interpreter(kernel: str) -> None:
    pytest.importorskip("triton")
    _run(
        kernel,
        "-k",
        {"scan": "test_lengths and not of_videos", "conv": "test_lengths", "norm": "half_precision"}[kernel],
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
@pytest.mark.parametrize("kernel", ["scan", "conv", "norm"])
def test_in_the_interpreter(kernel: str) -> None:
    pytest.importorskip("triton")
    _run(kernel)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
def test_in_the_interpreter_at_length() -> None:
    pytest.importorskip("triton")
    _run("scan", "-m", "slow")
