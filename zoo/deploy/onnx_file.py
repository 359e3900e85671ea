"""A part of a model as an ONNX file."""

import logging
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from zoo.deploy.parts import Part
from zoo.deploy.session import open_session

__all__ = ["OPSET", "run_onnx", "weights_beside", "write_onnx"]

OPSET = 20
"""Version of ONNX's operators, of 2023: ONNX Runtime 1.17, TensorRT 10 and OpenVINO 2024 know it."""
MOST_INLINE = 1_500_000_000
"""Bytes of weights in the file itself; more lie in a file beside it, since ONNX ends at 2 GiB."""


def write_onnx(program: ExportedProgram, part: Part, file: Path) -> None:
    """Write a program, with weights of more than `MOST_INLINE` bytes as a second file in the same folder."""
    import onnx
    import onnx_ir

    with torch.no_grad(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    assert exported is not None  # without a file to write to
    model = exported.model
    model.producer_name, model.producer_version = "video-mamba-zoo", _version()
    model.metadata_props.update(part.metadata)
    inside = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in (*inside, *list(model.graph.initializers.values())):
        if value.name in (part.input, part.output):  # as torch calls some of its own
            value.name += "_inside"
    model.graph.inputs[0].name, model.graph.outputs[0].name = part.input, part.output
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None  # torch's exporter knows it
        value.shape = onnx_ir.Shape(["batch", *value.shape[1:]])
    size = sum(tensor.const_value.nbytes for tensor in model.graph.initializers.values() if tensor.const_value)
    beside = f"{file.stem}.{uuid.uuid4().hex[:8]}.data" if size > MOST_INLINE else None
    onnx_ir.save(model, file, external_data=beside)
    onnx.checker.check_model(str(file))  # by its path, since a message of protobuf ends at 2 GiB


def run_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    """What a written file computes in ONNX Runtime."""
    session = open_session(file)
    name = session.get_inputs()[0].name
    return lambda tensor: torch.from_numpy(session.run(None, {name: tensor.numpy()})[0])


def weights_beside(file: Path) -> set[Path]:
    """The files beside an ONNX file that hold its weights, as `write_onnx` names them; none of a file that is none."""
    with suppress(Exception):  # whatever lay there is replaced all the same
        import onnx
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data

        graph = onnx.load(file, load_external_data=False).graph
        names = {ExternalDataInfo(tensor).location for tensor in graph.initializer if uses_external_data(tensor)}
        return {file.parent / name for name in names if name.startswith(f"{file.stem}.") and Path(name).name == name}
    return set()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress of the exporters, which they log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("video-mamba-zoo")
    except PackageNotFoundError:  # a checkout that is not installed
        return ""
