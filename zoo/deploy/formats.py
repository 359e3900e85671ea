"""What `zoo export` can write: the choices, without torch, so that the command line checks them at once."""

import os
from pathlib import Path

from zoo.deploy.session import check_packages
from zoo.errors import ZooError

__all__ = ["FORMATS", "INPUTS", "OUTPUTS", "TOWERS", "check_format"]

FORMATS = ("onnx", "pt2")
INPUTS = ("uint8", "float32")
"""Of videos: 0 to 255, or 0 to 1. Both are normalised by the file."""
OUTPUTS = ("scores", "features")
"""What the model is about (logits, a number, vectors), or its features."""
TOWERS = ("text", "video")


def check_format(out: str | os.PathLike[str], format: str | None) -> str:
    """Return the format of a file to write, before any work; None goes by the file's ending.

    Raises:
        ZooError: it is none of them, a package that writes it is not installed, or the file's name is not UTF-8.
    """
    name = os.fspath(out)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ZooError(f"The name {name!r} is not UTF-8, so runtimes cannot open the file; choose another.") from error
    if format is None:
        format = "" if name.endswith("/") else Path(name).suffix.lower().removeprefix(".")
        if format not in FORMATS:
            raise ZooError(f"{out} ends neither in .onnx nor in .pt2; name such a file, or give the format.")
    if format not in FORMATS:
        raise ZooError(f"format is {format!r}; choose {' or '.join(FORMATS)}.")
    if format == "onnx":
        check_packages("onnx", "onnxscript", "onnxruntime")
    return format
