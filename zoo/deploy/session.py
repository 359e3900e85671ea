"""ONNX Runtime: whether it is installed, and a session of a file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import ZooError
from zoo.extras import need

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["check_packages", "open_session"]


def check_packages(*names: str) -> None:
    """Raise `ZooError` where one of the packages for ONNX is not installed."""
    for name in names:
        need(name, "onnx", f"ONNX files need {name}")


def open_session(file: str | os.PathLike[str]) -> "InferenceSession":
    """An `onnxruntime.InferenceSession` on the CPU, with as many threads as torch has.

    Raises:
        ZooError: the file cannot be read, or ONNX Runtime is not installed.
    """
    check_packages("onnxruntime")
    import onnxruntime
    import torch

    if not Path(file).is_file():
        raise ZooError(f"{file} does not exist; check the path.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; the others are about the file's structure
    try:
        return onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a type of its own for each kind of failure
        reason = " ".join(str(error).split())[:200]
        raise ZooError(f"{file} cannot be opened by ONNX Runtime ({reason}); export the model again.") from error
