"""Write a model as a file that runs where this package is not installed."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lightning_modules.base import BaseModule
from zoo.build import load
from zoo.deploy.formats import check_format
from zoo.deploy.onnx_file import run_onnx, weights_beside, write_onnx
from zoo.deploy.parts import Part, part_of
from zoo.deploy.program import run_pt2, trace, write_pt2
from zoo.errors import ZooError
from zoo.files import check_target, staged

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["TOLERANCE", "Exported", "export"]

TOLERANCE = 1e-4
"""The largest difference from the model that a file may have, as a share of the largest number that the model gives."""


class Exported(NamedTuple):
    """A file that was written.

    Attributes:
        path: the file.
        format: one of `zoo.deploy.formats.FORMATS`.
        input: name of its input.
        output: name of its output.
        shape: of the input without the batch.
        difference: the largest one between a number of the file and of the model, on random inputs and a clip or text.
        largest: the largest number that the model gave there.
    """

    path: Path
    format: str
    input: str
    output: str
    shape: tuple[int, ...]
    difference: float
    largest: float


def export(
    model: BaseModule | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    output: str = "scores",
    tower: str | None = None,
    input: str = "uint8",
) -> Exported:
    """Write a model, or a tower of one, as a file for other runtimes, after comparing it with the model.

    The file takes a batch of any size and normalises pixels itself. What else its users have to know (class names, how
    frames are picked and resized) is in its metadata, see docs/deploy.md.

    Args:
        model: a model on the CPU, or anything `zoo.load` takes.
        out: the file to write; one that is there is replaced.
        format: "onnx", or "pt2", a program of `torch.export` that plain PyTorch loads. None goes by the ending.
        output: "scores" gives what the model is about: logits, the number of a regressor, the unit vectors of a tower.
            "features" gives what `zoo.extract_features` does of one view. Pretraining has features only.
        tower: "text" or "video", for models of both, each of which becomes a file.
        input: videos in "uint8" from 0 to 255, or in "float32" from 0 to 1.

    Raises:
        ZooError: the file cannot be written, an option does not exist or does not fit the model, a package is missing,
            or the file differs from the model by more than `TOLERANCE`. Nothing is left behind then.
        HubError: the model cannot be loaded.
    """
    format = check_format(out, format)
    target = check_target(out)
    model = load(model) if isinstance(model, str | os.PathLike) else model
    write, run = {"onnx": (write_onnx, run_onnx), "pt2": (write_pt2, run_pt2)}[format]
    with part_of(model, output=output, tower=tower, input=input) as part:
        program = _traced(part, model)
        old = weights_beside(target) if format == "onnx" and target.is_file() else set()
        with staged(target) as file:
            write(program, part, file)
            difference, largest = _compare(part, run(file))
        for weights in old:
            with suppress(OSError):
                weights.unlink(missing_ok=True)
    return Exported(Path(out), format, part.input, part.output, tuple(part.real.shape[1:]), difference, largest)


def _traced(part: Part, model: BaseModule) -> "ExportedProgram":
    try:
        return trace(part)
    except ZooError:
        raise
    except Exception as error:  # whatever torch's tracer meets in other people's code
        if type(model).__module__.startswith("lightning_modules."):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ZooError(f"{type(model).__name__} cannot be exported ({reason}); its output may depend on the values of "
                       "tensors through operators of PyTorch only.") from error  # fmt: skip


@torch.no_grad()
def _compare(part: Part, run: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """The largest difference between the file and the model, if it is not too large, and the model's largest number."""
    difference = largest = 0.0
    for given in (part.random(3), part.real):
        expected, found = part.module(given), run(given)
        difference = max(difference, (found - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    if not difference <= TOLERANCE * largest:  # NaN is refused too
        raise ZooError(f"The exported file gives numbers that differ from the model's by up to {difference:.2g}, of at "
                       f"most {largest:.2g}, so it was not kept; install newer torch and onnxruntime.")  # fmt: skip
    return difference, largest
