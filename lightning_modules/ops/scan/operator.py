"""The boundary between torch and a compiled backend of the scan: forward and backward as custom operators.

Operators of torch take tensors in a row, 15 of them here; behind the boundary they are `Direction`s again.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.ops.context import Context
from lightning_modules.ops.scan.direction import directions_of

__all__ = ["scan_operators"]

_TENSORS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, "
    "Tensor? u_b, Tensor? delta_b, Tensor? A_b, Tensor? B_b, Tensor? C_b, Tensor? D_b, Tensor? delta_bias_b, Tensor? z"
)
_FLAGS = "bool delta_softplus, bool reverse"


def scan_operators(
    backend: str,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., list[Tensor]],
    saved: Sequence[str],
    shapes_saved: Callable[[Tensor, Tensor, int, bool], Sequence[tuple[tuple[int, ...], torch.dtype]]],
) -> tuple[Any, Any]:
    """Make ``lightning_modules::<backend>_selective_scan`` and its backward.

    `reverse` belongs to the first direction; the second, if there is one, runs from the last token.

    Args:
        backend: its name.
        forward: (directions, z, delta_softplus, reverse, save) -> y and, flat, what the backward needs; where `save` is
            off, empty tensors.
        backward: (grad, saved, directions, z, delta_softplus, reverse, result) -> gradients of the tensors given, in
            their order, each in its tensor's dtype; where `result` is on, which wants a z, y again behind them.
        saved: names of what the backward needs.
        shapes_saved: (u, A, number of directions, whether there is a z) -> shape and dtype of each of these.

    Returns:
        The operators of the forward and of the backward.
    """
    outputs = ", ".join(["Tensor"] * (1 + len(saved)))
    kept = ", ".join(f"Tensor {name}" for name in saved)

    def run(*inputs: Any) -> tuple[Tensor, ...]:
        *tensors, z, delta_softplus, reverse, save = inputs
        return forward(directions_of(*tensors), z, delta_softplus, reverse, save)

    def run_backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
        *tensors, z, delta_softplus, reverse, result = inputs[len(saved) :]
        return backward(grad, inputs[: len(saved)], directions_of(*tensors), z, delta_softplus, reverse, result)

    # Compiled graphs on disk are found by this name: it changes when what is saved gets other shapes.
    name = f"lightning_modules::{backend}_selective_scan"
    schema = f"({_TENSORS}, {_FLAGS}, bool save) -> ({outputs})"
    operator = torch.library.custom_op(name, run, mutates_args=(), schema=schema)
    schema = f"(Tensor grad, {kept}, {_TENSORS}, {_FLAGS}, bool result) -> Tensor[]"
    backward_operator = torch.library.custom_op(f"{name}_backward", run_backward, mutates_args=(), schema=schema)

    @operator.register_fake
    def _(*inputs: Any) -> tuple[Tensor, ...]:
        *tensors, z, _, _, save = inputs
        directions = directions_of(*tensors)
        u, A = directions[0].u, directions[0].A
        # Flat, since tracing with an unknown length would take a number of chunks of one for a promise.
        shapes = shapes_saved(u, A, len(directions), z is not None)
        flat = [u.new_empty(math.prod(shape) if save else 0, dtype=dtype) for shape, dtype in shapes]
        return u.new_empty(u.shape), *flat

    @backward_operator.register_fake
    def _(grad: Tensor, *inputs: Any) -> list[Tensor]:
        *tensors, _, _, result = inputs[len(saved) :]
        like = [*tensors, tensors[0] if result else None]
        return [t.new_empty(t.shape) for t in like if t is not None]

    def remember(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.delta_softplus, ctx.reverse, _ = inputs
        ctx.save_for_backward(*output[1:], *tensors)
        ctx.set_materialize_grads(False)  # or torch would make zeros of the size of what is saved

    def differentiate(ctx: Context, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (len(ctx.needs_input_grad))
        tensors = ctx.saved_tensors  # read once: recomputation allows no more
        results = iter(backward_operator(grad, *tensors, ctx.delta_softplus, ctx.reverse, False))
        return *(None if tensor is None else next(results) for tensor in tensors[len(saved) :]), None, None, None

    operator.register_autograd(differentiate, setup_context=remember)
    return operator, backward_operator
