"""A part of a model as a program of `torch.export`, and the file of it (.pt2)."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from lightning_modules.ops import use_backend
from zoo.deploy.parts import Part
from zoo.errors import ZooError

__all__ = ["MOST_INPUTS", "run_pt2", "trace", "write_pt2"]

MOST_INPUTS = 4096
"""The largest batch that a file takes."""
_METADATA = "metadata.json"
_OLDEST = (2, 9)  # the first whose exporter to ONNX knows loops; the release tested is 2.14
_STANDARD = ("aten", "higher_order", "prim", "prims")


def trace(part: Part) -> ExportedProgram:
    """The program of a part, of any batch up to `MOST_INPUTS`, made of operators of PyTorch alone.

    Raises:
        ZooError: PyTorch is too old, or an operator is none of PyTorch's.
    """
    version = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if version < _OLDEST:
        raise ZooError(f"torch is {torch.__version__} and an export needs {'.'.join(map(str, _OLDEST))} or newer; "
                       "install it: pip install -U torch.")  # fmt: skip
    batch = {part.input: {0: Dim("batch", min=1, max=MOST_INPUTS)}}
    with torch.no_grad(), use_backend("portable"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A batch of one would be taken for a constant.
        program = torch.export.export(part.module, (part.random(2),), dynamic_shapes=batch, strict=False)
    _remove_unused(program)
    for node in program.graph.nodes:
        namespace = getattr(node.target, "namespace", "aten") if node.op == "call_function" else "aten"
        if namespace not in _STANDARD:
            raise ZooError(f"The model uses {node.target}, which is not part of PyTorch, so the file would not run "
                           "elsewhere; write the model without it.")  # fmt: skip
    return program


def _remove_unused(program: ExportedProgram) -> None:
    """Remove the weights that the program does not read, such as the other tower's."""
    unused = {node.name: node for node in program.graph.find_nodes(op="placeholder") if not node.users}
    kept = []
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.arg.name in unused:
            program.graph.erase_node(unused[spec.arg.name])
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
        else:
            kept.append(spec)
    program.graph_signature.input_specs[:] = kept
    program.graph_module.recompile()


def write_pt2(program: ExportedProgram, part: Part, file: Path) -> None:
    """Write the program, with the metadata as an extra file of the archive."""
    archive = io.BytesIO()  # torch ends the process where the disk is full
    torch.export.save(program, archive, extra_files={_METADATA: json.dumps(part.metadata)})
    file.write_bytes(archive.getbuffer())


def run_pt2(file: Path) -> Callable[[Tensor], Tensor]:
    """What a written program computes."""
    return torch.export.load(file).module()
