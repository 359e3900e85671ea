"""Where the triton kernels run in the tests: on a GPU if there is one, else step by step in triton's interpreter.

Triton decides when it is imported, so without a GPU the files named test_triton.py skip themselves, and
`test_triton_interpreted.py` runs them in a process of their own.
"""

import os

import pytest
import torch

from lightning_modules.ops import dense


@pytest.fixture(scope="session")
def triton_device() -> str:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("no GPU; test_triton_interpreted.py runs this in triton's interpreter")


@pytest.fixture
def own_products(monkeypatch) -> None:
    """Matrices are multiplied by torch in all ways, so that digits can be compared."""
    monkeypatch.setattr(dense, "_onednn_is_faster", lambda: False)
