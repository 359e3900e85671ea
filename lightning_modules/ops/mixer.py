"""The inside of a Mamba mixer: convolution, selection and scan, from the input and the gate to what is projected out.

In training it can keep x, z and the scan's own few states for the backward pass, and compute the rest again there.

Legend of shapes: B batch, L tokens, E inner channels, N states per channel, R rank of delta, W taps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_modules.ops.backend import select, use_backend
from lightning_modules.ops.context import Context
from lightning_modules.ops.conv.interface import bidirectional_conv1d, causal_conv1d
from lightning_modules.ops.dense import linear
from lightning_modules.ops.scan.direction import Direction, flat
from lightning_modules.ops.scan.interface import bidirectional_scan, check, selective_scan

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
    x: Tensor, z: Tensor | None, *directions: MixerWeights, reverse: bool = False, recompute: bool = True
) -> Tensor:
    """Convolution with SiLU, selection of delta, B and C, and scan, times the gate silu(z).

    Args:
        x: (B, L, E). Slices of a wider tensor are read in place.
        z: the gate before its SiLU (B, L, E).
        directions: one, or two, of which the second runs from the last token; their results are added.
        reverse: a single direction runs from the last token.
        recompute: keep x, z and the states of the scan for the backward pass, and compute convolution and selection
            again there; False keeps everything. Results and gradients are the same, to the last bit. The backends
            `reference` and `mamba_ssm` have no states to keep and scan again too. A compiler decides for itself.

    Returns:
        (B, L, E) in x's dtype.

    Raises:
        ValueError: a shape does not fit the others.
        BackendError: the backend asked for by name cannot run here.
    """
    if recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        tensors = (x, z, *chain(*directions))
        if any(tensor is not None and tensor.requires_grad for tensor in tensors):
            return _Recomputed.apply(_Call.of(x, reverse), *tensors)
    # Written out, since torch 2.7 does not compile a slice of a named tuple.
    (u, delta, A, B, C, D, bias), *others = _select(x, directions, reverse, linear, linear)
    if not others:
        return selective_scan(u, delta, A, B, C, D, z, bias, True, reverse)
    u_b, delta_b, A_b, B_b, C_b, D_b, bias_b = others[0]
    return bidirectional_scan(u, delta, A, B, C, D, u_b, delta_b, A_b, B_b, C_b, D_b, z, bias, bias_b)


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


@dataclass(frozen=True)
class _Call:
    """How the forward pass ran, so that the backward pass, which may be in another thread, computes the same."""

    backend: ModuleType
    reverse: bool
    device: str
    autocast: torch.dtype | None

    @classmethod
    def of(cls, x: Tensor, reverse: bool) -> "_Call":
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if _autocasts(device) else None
        return cls(select("scan", x), reverse, device, autocast)

    @property
    def operators(self) -> tuple[Callable, Callable] | None:
        """Those of the scan and of its backward; None where the backend has no states to keep."""
        return getattr(self.backend, "operators", None)

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same backend and precision. Weights cast here are not cached: a cached one would have no gradient."""
        with use_backend(self.backend.__name__.rpartition(".")[2]):
            if self.autocast is None and not _autocasts(self.device):
                yield
                return
            enabled = self.autocast is not None
            with torch.autocast(self.device, self.autocast, enabled=enabled, cache_enabled=False):
                yield


class _Recomputed(torch.autograd.Function):
    """`mix` that keeps its inputs, the scan's states and what x_proj gives, (R + 2N) numbers a token.

    The matrix products are torch's in both passes: the gradients belong to the very numbers of the forward pass.
    """

    @staticmethod
    def forward(ctx: Context, call: _Call, x: Tensor, z: Tensor | None, *weights: Tensor) -> Tensor:
        projected: list[Tensor] = []

        def project(u: Tensor, weight: Tensor) -> Tensor:
            projected.append(F.linear(u, weight))
            return projected[-1]

        with call.again():
            directions = _select(x, _grouped(weights), call.reverse, project, F.linear)
            check(directions, z)
            if call.operators:
                y, *states = call.operators[0](*flat(directions), z, True, call.reverse, True)
            else:
                y, states = call.backend.scan(directions, z, True, call.reverse), ()
        ctx.call, ctx.splits = call, (2 + len(weights), len(projected))
        ctx.save_for_backward(x, z, *weights, *projected, *states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        call, (_, *needed) = ctx.call, ctx.needs_input_grad
        saved: Iterator[Any] = iter(ctx.saved_tensors)  # read once: recomputation of the block around allows no more
        given: list[Any] = [None if tensor is None else tensor.detach() for tensor in islice(saved, ctx.splits[0])]
        projected = islice(saved, ctx.splits[1])
        wanted = [tensor.requires_grad_() for tensor, need in zip(given, needed, strict=True) if need]
        x, z, *weights = given

        def project(u: Tensor, weight: Tensor) -> Tensor:
            known = next(projected)
            return _Multiplied.apply(u.to(known.dtype), weight.to(known.dtype), known)

        with call.again(), torch.enable_grad():
            directions = _select(x, _grouped(weights), call.reverse, project, F.linear)
            if call.operators:
                y = _Scanned.apply(call, tuple(saved), *flat(directions), z)
            else:
                y = call.backend.scan(directions, z, True, call.reverse)
            results = iter(torch.autograd.grad(y, wanted, grad))
        return None, *(next(results) if need else None for need in needed)


class _Multiplied(torch.autograd.Function):
    """x weight^T in the graph of the backward pass, with a result that is known."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, known: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return known.view_as(known)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.flatten(0, 1)
        of_x = (grad @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        return of_x, grad.t() @ x.flatten(0, 1) if ctx.needs_input_grad[1] else None, None


class _Scanned(torch.autograd.Function):
    """The scan in the graph of the backward pass. Only its gradient is asked for: its result is never computed."""

    @staticmethod
    def forward(ctx: Context, call: _Call, states: tuple[Tensor, ...], *scanned: Tensor | None) -> Tensor:
        ctx.call, ctx.count = call, len(states)
        ctx.save_for_backward(*states, *scanned)
        u = scanned[0]
        assert u is not None
        return u.new_empty(1).expand(u.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        grads = iter(ctx.call.operators[1](grad, *tensors, True, ctx.call.reverse))
        return None, None, *(None if tensor is None else next(grads) for tensor in tensors[ctx.count :])


def _grouped(weights: tuple[Tensor, ...] | list[Tensor]) -> tuple[MixerWeights, ...]:
    count = len(MixerWeights._fields)
    return tuple(MixerWeights(*weights[start : start + count]) for start in range(0, len(weights), count))


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
