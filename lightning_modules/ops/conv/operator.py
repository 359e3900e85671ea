"""The boundary between torch and a compiled backend of the convolution: forward and backward as custom operators."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_modules.ops.context import Context

__all__ = ["conv_operators", "width_of"]

_ONE = "Tensor x, Tensor weight, Tensor? bias"
_MAYBE_BOTH = "Tensor x, Tensor? weight, Tensor? bias, Tensor? weight_b, Tensor? bias_b"


def conv_operators(
    backend: str,
    forward: Callable[..., tuple[Tensor | None, Tensor | None]],
    backward: Callable[..., tuple[Tensor, list[Tensor | None]]],
) -> tuple[Any, Any, Any]:
    """Make ``lightning_modules::<backend>_conv``, ``_conv_pair`` for both directions, and the backward of both.

    Args:
        backend: its name.
        forward: (x, weight, bias, weight_b, bias_b, silu) -> y and y_b; None for a direction without weight.
        backward: (grad, grad_b, x, weight, bias, weight_b, bias_b, silu) -> gradient of x, and those of weight, bias,
            weight_b and bias_b, which may share memory and be of another dtype; None for what was not given.

    Returns:
        The three operators.
    """
    name = f"lightning_modules::{backend}_conv"

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
        y, y_b = forward(x, *_placed(weight, bias, reverse), silu)
        found = y_b if reverse else y
        assert found is not None  # of the direction that has weights
        return found

    def run_backward(grad: Tensor | None, grad_b: Tensor | None, x: Tensor, *inputs: Any) -> list[Tensor]:
        *tensors, silu = inputs
        of_x, others = backward(grad, grad_b, x, *tensors, silu)
        pairs = zip(tensors, others, strict=True)
        # A copy: the results of an operator may not share memory.
        own = [
            g.to(t.dtype).clone(memory_format=torch.contiguous_format)
            for t, g in pairs
            if t is not None and g is not None
        ]
        return [of_x, *own]

    schema = f"({_ONE}, bool silu, bool reverse) -> Tensor"
    one = torch.library.custom_op(name, run, mutates_args=(), schema=schema)
    schema = f"({_ONE}, Tensor weight_b, Tensor? bias_b) -> (Tensor, Tensor)"
    pair = torch.library.custom_op(
        f"{name}_pair", lambda *inputs: forward(*inputs, True), mutates_args=(), schema=schema
    )
    schema = f"(Tensor? grad, Tensor? grad_b, {_MAYBE_BOTH}, bool silu) -> Tensor[]"
    back = torch.library.custom_op(f"{name}_backward", run_backward, mutates_args=(), schema=schema)

    one.register_fake(lambda x, *_: x.new_empty(x.shape))
    pair.register_fake(lambda x, *_: (x.new_empty(x.shape), x.new_empty(x.shape)))
    back.register_fake(lambda grad, grad_b, *inputs: [t.new_empty(t.shape) for t in inputs[:-1] if t is not None])

    def remember(ctx: Context, inputs: tuple[Any, ...], output: object) -> None:
        *tensors, ctx.silu, ctx.reverse = inputs
        ctx.save_for_backward(*tensors)

    def differentiate(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        grads = (None, grad) if ctx.reverse else (grad, None)
        results = back(*grads, x, *_placed(weight, bias, ctx.reverse), ctx.silu)
        return results[0], results[1], None if bias is None else results[2], None, None

    def remember_pair(ctx: Context, inputs: tuple[Any, ...], output: object) -> None:
        ctx.save_for_backward(*inputs)

    def differentiate_pair(ctx: Context, grad: Tensor, grad_b: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # read once: recomputation allows no more
        results = iter(back(grad, grad_b, *tensors, True))
        return tuple(None if tensor is None else next(results) for tensor in tensors)

    one.register_autograd(differentiate, setup_context=remember)
    pair.register_autograd(differentiate_pair, setup_context=remember_pair)
    return one, pair, back


def _placed(weight: Tensor, bias: Tensor | None, reverse: bool) -> tuple[Tensor | None, ...]:
    """weight, bias, weight_b and bias_b of a single direction."""
    return (None, None, weight, bias) if reverse else (weight, bias, None, None)


def width_of(weight: Tensor | None, weight_b: Tensor | None) -> int:
    """Return the number of taps, of the direction or the directions that there are."""
    given = weight_b if weight is None else weight
    assert given is not None
    return given.shape[1]
