import logging
import os
import subprocess
import sys

import pytest
import torch

from lightning_modules.ops import available_backends, selective_scan, use_backend, why_not
from lightning_modules.ops import backend as backend_module
from lightning_modules.ops.backend import BackendError, select


def _chosen(tensor: torch.Tensor) -> str:
    return select("scan", tensor).__name__.rsplit(".", 1)[-1]


def _python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_auto_takes_the_fastest_that_can_run() -> None:
    assert available_backends() == ["numba", "reference"]
    assert _chosen(torch.zeros(1)) == "numba"
    assert available_backends(dtype=torch.float64) == ["reference"]
    assert _chosen(torch.zeros(1, dtype=torch.float64)) == "reference"
    if not torch.cuda.is_available():
        assert available_backends("cuda") == ["reference"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_takes_triton_on_a_gpu() -> None:
    assert available_backends("cuda")[0] == "triton"
    assert _chosen(torch.zeros(1, device="cuda")) == "triton"
    assert available_backends("cuda", torch.float64) == ["reference"]


def test_auto_says_once_what_it_took(caplog) -> None:
    backend_module._automatic.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            _chosen(torch.zeros(1))
            _chosen(torch.zeros(1, dtype=torch.float64))
    messages = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert messages == [
        ("INFO", "The numba backend runs the scans of torch.float32 on cpu."),
        (
            "WARNING",
            f"The reference backend runs the scans of torch.float64 on cpu. {why_not('numba', 'cpu', torch.float64)}",
        ),
    ]


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_the_reference_on_an_accelerator_is_a_warning(device, caplog) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("triton runs here")
    backend_module._automatic.cache_clear()
    assert backend_module._automatic(device, torch.float32) == "reference"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"scans of torch.float32 on {device}, token by token, about 100 times slower" in record.getMessage()


def test_why_not_gives_the_reason() -> None:
    assert why_not("numba") is None
    assert why_not("reference", "cuda") is None
    assert why_not("numba", "cuda") == "The numba backend does not run on cuda devices."
    assert "float32" in why_not("numba", "cpu", torch.float64)
    assert "TRITON_INTERPRET=1" in why_not("triton", "cpu")
    assert "does not run on cpu devices" in why_not("mamba_ssm", "cpu")


def test_a_named_backend_runs_or_raises() -> None:
    with use_backend("reference"):
        assert _chosen(torch.zeros(1)) == "reference"
        with use_backend("auto"):
            assert _chosen(torch.zeros(1)) == "numba"
        assert _chosen(torch.zeros(1)) == "reference"
    with use_backend("numba"), pytest.raises(BackendError, match="float64"):
        select("scan", torch.zeros(1, dtype=torch.float64))
    assert _chosen(torch.zeros(1)) == "numba"


def test_an_unknown_name_is_refused_at_once() -> None:
    with (
        pytest.raises(BackendError, match=r"'numbra'; choose one of auto, numba, triton, mamba_ssm, reference"),
        use_backend("numbra"),
    ):
        pass
    with pytest.raises(BackendError, match="'numbra'"):
        why_not("numbra")


def test_environment_variable(monkeypatch) -> None:
    monkeypatch.setenv("ZOO_SCAN_BACKEND", "reference")
    assert _chosen(torch.zeros(1)) == "reference"
    with use_backend("numba"):
        assert _chosen(torch.zeros(1)) == "numba"
    monkeypatch.setenv("ZOO_SCAN_BACKEND", "fast")
    with pytest.raises(BackendError, match="ZOO_SCAN_BACKEND names the backend 'fast'"):
        select("scan", torch.zeros(1))


def test_both_backends_compute_the_same() -> None:
    u, delta = torch.randn(2, 1, 9, 5)
    B, C = torch.randn(2, 1, 9, 3)
    arguments = (u, delta.abs(), -torch.rand(5, 3), B, C)
    with use_backend("reference"):
        expected = selective_scan(*arguments)
    with use_backend("numba"):
        torch.testing.assert_close(selective_scan(*arguments), expected)


def test_importing_loads_no_compiled_backend() -> None:
    code = (
        "import sys, lightning_modules.ops\n"
        "assert 'torch' not in sys.modules\n"
        "from lightning_modules.ops import selective_scan, bidirectional_conv1d, use_backend\n"
        "assert 'numba' not in sys.modules and 'lightning' not in sys.modules\n"
    )
    result = _python(code)
    assert result.returncode == 0, result.stderr


_SCAN = """
import torch
from lightning_modules.ops import available_backends, selective_scan, use_backend
torch.manual_seed(0)
u, delta, z = (torch.randn(2, 40, 21).requires_grad_() for _ in range(3))
B, C = (torch.randn(2, 40, 16).requires_grad_() for _ in range(2))
A, D = (-8 * torch.rand(21, 16)).requires_grad_(), torch.randn(21).requires_grad_()
inputs = (u, delta, A, B, C, D, z)
def run(name):
    with use_backend(name):
        y = selective_scan(*inputs, delta_softplus=True)
    return [y, *torch.autograd.grad(y.square().sum(), inputs)]
for fast, slow in zip(run("numba"), run("reference")):
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_without_wide_vectors_and_without_a_cache_folder(tmp_path) -> None:
    """The code for a plain x86-64 or the like: the portable exponential, and no place to keep machine code."""
    (tmp_path / "file").touch()
    result = _python(
        _SCAN, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=str(tmp_path / "file" / "folder")
    )
    assert result.returncode == 0, result.stderr


def test_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from lightning_modules.ops import available_backends, use_backend, why_not\n"
        "print(available_backends(), why_not('numba'))\n"
        "import torch\n" + _SCAN
    )
    result = _python(code)
    assert "['reference'] The numba backend cannot be imported" in result.stdout
    assert "BackendError: The numba backend cannot be imported" in result.stderr
