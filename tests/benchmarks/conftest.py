import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def load_benchmark() -> Callable[[str], ModuleType]:
    """``load_benchmark("decode")`` is benchmarks/decode.py as a module; scripts import each other by name."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"

    def load(name: str) -> ModuleType:
        sys.path.insert(0, str(folder))
        try:
            spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(folder))
        return module

    return load
