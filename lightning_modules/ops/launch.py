"""How the triton backends start a kernel, or compile it for a GPU that is not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_modules.errors import ModelError

if TYPE_CHECKING:
    from triton.compiler import CompiledKernel
    from triton.runtime import JITFunction

__all__ = ["INTERPRETED", "compile_only", "launch", "multiprocessors", "strided"]

# Triton decides this when it is imported: with TRITON_INTERPRET=1 kernels run on the CPU, step by step in numpy.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_MOST_PROGRAMS = 65_535  # along the second and the third axis of a grid
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}

Launches = list[tuple[str, tuple[int, ...], Any]]
"""Name, grid and compiled kernel of each."""

_compiled: ContextVar[tuple[int, Launches] | None] = ContextVar("compile_only", default=None)


def launch(
    kernel: "JITFunction[Any]",
    grid: tuple[int, ...],
    on: Tensor,
    *arguments: Any,
    num_warps: int = 1,
    maxnreg: int | None = None,
    **constants: Any,
) -> None:
    """Start a kernel on the current stream of a tensor's device; nothing happens if the grid is empty.

    Args:
        kernel: a function decorated with `triton.jit`.
        grid: number of programs along up to three axes.
        on: a tensor of the device.
        arguments: the kernel's, in order; None for a tensor that is absent.
        num_warps: groups of 32 threads per program.
        maxnreg: registers that a thread may use; None leaves that to the compiler.
        constants: the kernel's `tl.constexpr` arguments.

    Raises:
        ModelError: more programs along the second or third axis than CUDA starts.
    """
    if any(size > _MOST_PROGRAMS for size in grid[1:]):
        raise ModelError(f"{kernel.__name__} on {tuple(on.shape)} needs {max(grid[1:]):,} programs along one axis and "
                         f"CUDA starts at most {_MOST_PROGRAMS:,}; split the batch, or the sequence.")  # fmt: skip
    # A product and a sum in one instruction: triton is about to change its default.
    options = {"num_warps": num_warps, "enable_fp_fusion": True, "maxnreg": maxnreg}
    compiling = _compiled.get()
    if compiling is not None:
        capability, results = compiling
        results.append((kernel.__name__, grid, _compile(kernel, arguments, constants, options, capability)))
    elif 0 not in grid:
        with torch.cuda.device(on.device) if on.device.type == "cuda" else nullcontext():
            kernel[grid](*arguments, **constants, **options)


@contextmanager
def compile_only(capability: int = 90) -> Iterator[Launches]:
    """Inside the block kernels are compiled for GPUs of a compute capability as they would be, but not run.

    No GPU is needed: the tensors may be on the CPU or on meta, and results are left as they were allocated. Triton must
    not be interpreting.

    Yields:
        a list that receives (name, grid, triton's compiled kernel with its assembly in `.asm`) at every launch.
    """
    results: Launches = []
    token = _compiled.set((capability, results))
    try:
        yield results
    finally:
        _compiled.reset(token)


def _compile(
    kernel: "JITFunction[Any]",
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    options: dict[str, Any],
    capability: int,
) -> "CompiledKernel":
    """What calling the kernel compiles: integers and addresses divisible by 16 are known to be, ones are constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, values, hints = {}, {}, {}
    for position, (parameter, value) in enumerate(zip(kernel.params, (*arguments, *constants.values()), strict=True)):
        name = parameter.name
        free = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and free):
            signature[name], values[(position,)] = "constexpr", constants.get(name, value)
            continue
        signature[name] = _TYPES[value.dtype] if isinstance(value, Tensor) else "i32" if abs(value) < 2**31 else "i64"
        # Meta tensors have no address; allocations start at multiples of 256.
        place = value.storage_offset() * value.element_size() if isinstance(value, Tensor) else value
        if free and place % 16 == 0 and not parameter.do_not_specialize_on_alignment:
            hints[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a GPU has; 132, those of an H100, for anything else."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def strided(tensor: Tensor | None) -> tuple[Tensor | None, int, int]:
    """A (batch, length, channels) tensor as kernels read it, its steps between sequences and between tokens.

    The tensor itself, also where it is a slice of a wider one; a copy only if neighbouring channels are apart.
    """
    if tensor is None:
        return None, 0, 0
    tensor = tensor if tensor.stride(-1) == 1 else tensor.contiguous()
    return tensor, tensor.stride(0), tensor.stride(1)
