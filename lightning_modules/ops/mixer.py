"""The inside of a Mamba mixer: convolution, selection and scan, from the input and the gate to what is projected out.

In training it can keep x, z and the scan's own few states for the backward pass, and compute the rest again there.

Legend of shapes: B batch, L tokens, E inner channels, N states per channel, R rank of delta, W taps.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_modules.ops.call import Call
from lightning_modules.ops.context import Context
from lightning_modules.ops.conv.interface import bidirectional_conv1d, causal_conv1d
from lightning_modules.ops.dense import linear
from lightning_modules.ops.scan.direction import Direction, flat
from lightning_modules.ops.scan.interface import bidirectional_scan, check, selective_scan
from lightning_modules.ops.workspace import Workspace, passing

__all__ = ["MixerWeights", "mix"]


_Product = Callable[[Tensor, Tensor], Tensor]


class MixerWeights(NamedTuple):
    """What one direction of a mixer learns between its two projections.

    Args:
        conv: (E, 1, W), as `torch.nn.Conv1d` keeps it.
        conv_bias: (E,).
        x_proj: (R + 2N, E), gives delta's input, B and C.
        dt_proj: (E, R).
        dt_bias: (E,), added to delta before its softplus.
        A_log: (E, N), logarithm of the decay rates.
        D: (E,), weight of the skip connection.
    """

    conv: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor


def mix(
    x: Tensor,
    z: Tensor | None,
    *directions: MixerWeights,
    reverse: bool = False,
    recompute: bool = True,
    out_proj: Tensor | None = None,
) -> Tensor:
    """Convolution with SiLU, selection of delta, B and C, and scan, times the gate silu(z).

    Args:
        x: (B, L, E). Slices of a wider tensor are read in place.
        z: the gate before its SiLU (B, L, E).
        directions: one, or two, of which the second runs from the last token; their results are added.
        reverse: a single direction runs from the last token.
        recompute: keep x, z and the states of the scan for the backward pass, and compute convolution and selection
            again there; False keeps everything. Results and gradients are the same, to the last bit where matrices are
            multiplied by the same library (on the CPU the faster one is taken, see `lightning_modules.ops.linear`). The
            backends `reference` and `mamba_ssm` have no states to keep and scan again too. A compiler decides for
            itself.
        out_proj: the weight (D, E) of a product with the result. Given here, the result itself is not kept either: the
            scan's backward gives it again. Compiled kernels round it differently, which this weight's gradient shows.

    Returns:
        (B, L, E) in x's dtype; with `out_proj` (B, L, D).

    Raises:
        ValueError: a shape does not fit the others.
        BackendError: the backend asked for by name cannot run here.
    """
    if recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        tensors = (x, z, out_proj, *chain(*directions))
        if any(tensor is not None and tensor.requires_grad for tensor in tensors):
            return _Recomputed.apply(Call.of("scan", x), reverse, *tensors)
    # Written out, since torch 2.7 does not compile a slice of a named tuple.
    (u, delta, A, B, C, D, bias), *others = _select(x, directions, reverse, linear, linear)
    if not others:
        y = selective_scan(u, delta, A, B, C, D, z, bias, True, reverse)
    else:
        u_b, delta_b, A_b, B_b, C_b, D_b, bias_b = others[0]
        y = bidirectional_scan(u, delta, A, B, C, D, u_b, delta_b, A_b, B_b, C_b, D_b, z, bias, bias_b)
    return y if out_proj is None else linear(y, out_proj)


def _select(
    x: Tensor, directions: tuple[MixerWeights, ...], reverse: bool, project: _Product, dense: _Product
) -> tuple[Direction, ...]:
    """What is scanned. Both functions multiply (B, L, in) by (out, in): with x_proj, and with dt_proj."""
    inputs: tuple[Tensor, ...]
    if len(directions) == 1:
        inputs = (causal_conv1d(x, directions[0].conv, directions[0].conv_bias, "silu", reverse),)
    else:
        one, other = directions
        inputs = bidirectional_conv1d(x, one.conv, one.conv_bias, other.conv, other.conv_bias)
    found = []
    for u, (_, _, x_proj, dt_proj, dt_bias, A_log, D) in zip(inputs, directions, strict=True):
        states = A_log.shape[1]
        dt, B, C = project(u, x_proj).split([dt_proj.shape[1], states, states], dim=-1)
        found.append(Direction(u, dense(dt, dt_proj), -torch.exp(A_log.float()), B, C, D.float(), dt_bias.float()))
    return tuple(found)


class _Recomputed(torch.autograd.Function):
    """`mix` that keeps its inputs, the scan's states and what x_proj gives, (R + 2N) numbers a token.

    What is computed again gets the digits that it had: the gradients belong to the very numbers of the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Context,
        call: Call,
        reverse: bool,
        x: Tensor,
        z: Tensor | None,
        out_proj: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        projected: list[Tensor] = []

        def project(u: Tensor, weight: Tensor) -> Tensor:
            projected.append(call.product(u, weight))
            return projected[-1]

        workspace = Workspace.of_thread()
        with call.again(), nullcontext() if out_proj is None else workspace.lent():  # alone the result stays
            directions = _select(x, _grouped(weights), reverse, project, _multiply)
            check(directions, z)
            if call.operators:
                y, *states = call.operators[0](*flat(directions), z, True, reverse, True)
            else:
                y, states = call.backend.scan(directions, z, True, reverse), ()
            result = y if out_proj is None else call.product(y, out_proj)
        ctx.call, ctx.reverse, ctx.workspace = call, reverse, workspace
        ctx.splits = (2 + len(weights), len(projected))
        ctx.save_for_backward(out_proj, x, z, *weights, *projected, *states)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (_, _, *needed) = ctx.call, ctx.needs_input_grad
        needs_out_proj = needed.pop(2)
        saved: Iterator[Any] = iter(ctx.saved_tensors)  # read once: recomputation of the block around allows no more
        out_proj = next(saved)
        given: list[Any] = [None if tensor is None else tensor.detach() for tensor in islice(saved, ctx.splits[0])]
        projected = islice(saved, ctx.splits[1])
        wanted = [tensor.requires_grad_() for tensor, need in zip(given, needed, strict=True) if need]
        x, z, *weights = given

        def multiplied(x: Tensor, weight: Tensor, known: Tensor) -> Tensor:
            return _Multiplied.apply(call, x.to(known.dtype), weight.to(known.dtype), known)

        def project(u: Tensor, weight: Tensor) -> Tensor:
            return multiplied(u, weight, next(projected))

        def dense(dt: Tensor, weight: Tensor) -> Tensor:
            return multiplied(dt, weight, _multiply(dt.detach(), weight.detach()))

        result: list[Tensor] = []
        with call.again(), torch.enable_grad(), ctx.workspace.lent():
            of_y = grad if out_proj is None else call.input_gradient(grad, out_proj.detach())
            directions = _select(x, _grouped(weights), ctx.reverse, project, dense)
            if call.operators and wanted:
                y = _Scanned.apply(call, ctx.reverse, tuple(saved), result if needs_out_proj else None,
                                   *flat(directions), z)  # fmt: skip
            else:
                y = call.backend.scan(directions, z, True, ctx.reverse)
                result.append(y.detach())
            results = iter(torch.autograd.grad(y, wanted, of_y.to(y.dtype)) if wanted else ())
            of_out_proj = call.weight_gradient(grad, result[0], out_proj) if needs_out_proj else None
        of_given = [next(results) if need else None for need in needed]
        return None, None, *of_given[:2], of_out_proj, *of_given[2:]


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T, as `torch.nn.functional.linear`, in passing memory on the CPU. Without gradients."""
    if x.device.type != "cpu" or {x.dtype, weight.dtype} != {torch.float32} or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight)
    product = passing(*x.shape[:-1], weight.shape[0])
    torch.mm(x.flatten(0, 1), weight.t(), out=product.flatten(0, 1))
    return product


class _Multiplied(torch.autograd.Function):
    """x weight^T in the graph of the backward pass, with a result that is known."""

    @staticmethod
    def forward(ctx: Context, call: Call, x: Tensor, weight: Tensor, known: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(x, weight)
        return known.view_as(known)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, needs_x, needs_weight, _ = ctx.needs_input_grad
        of_x = ctx.call.input_gradient(grad, weight) if needs_x else None
        return None, of_x, ctx.call.weight_gradient(grad, x, weight) if needs_weight else None, None


class _Scanned(torch.autograd.Function):
    """The scan in the graph of the backward pass.

    Its result is computed with its gradient, and only where a list for it is given, `result`.
    """

    @staticmethod
    def forward(
        ctx: Context,
        call: Call,
        reverse: bool,
        states: tuple[Tensor, ...],
        result: list[Tensor] | None,
        *scanned: Tensor | None,
    ) -> Tensor:
        ctx.call, ctx.reverse, ctx.count, ctx.result = call, reverse, len(states), result
        ctx.save_for_backward(*states, *scanned)
        u = scanned[0]
        assert u is not None
        return u.new_empty(1).expand(u.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        asked = ctx.result is not None
        grads = iter(ctx.call.operators[1](grad, *tensors, True, ctx.reverse, asked))
        of_scanned = [None if tensor is None else next(grads) for tensor in tensors[ctx.count :]]
        if asked:
            ctx.result.append(next(grads))
        return None, None, None, None, *of_scanned


def _grouped(weights: tuple[Tensor, ...] | list[Tensor]) -> tuple[MixerWeights, ...]:
    count = len(MixerWeights._fields)
    return tuple(MixerWeights(*weights[start : start + count]) for start in range(0, len(weights), count))
