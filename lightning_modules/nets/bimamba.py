"""The bidirectional Mamba mixer and the residual block around it (VideoMamba, section 3.1; the block of Vision Mamba).

Legend of shapes: B batch, L tokens, D width, E = expand * D inner channels, N states per channel, R rank of delta.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.checks import ACTIVATIONS, check_choice
from lightning_modules.errors import ModelError
from lightning_modules.ops import Linear, MixerWeights, add_rms_norm, mix
from lightning_modules.ops.dense import only_multiplies
from lightning_modules.ops.norm.product import normed_product

__all__ = ["BiMamba", "Block", "Norm", "mixer_weights", "reset_step_sizes", "run_block", "set_activations"]


class Norm(NamedTuple):
    """What a mixer's input was normed from, so that it need not be kept for the backward pass.

    Args:
        total: the residual stream (B, L, D).
        weight: (D,).
        eps: see `lightning_modules.ops.add_rms_norm`.
    """

    total: Tensor
    weight: Tensor
    eps: float


class BiMamba(nn.Module):
    """Selective state-space mixer that scans the sequence from both ends.

    ::

        h --in_proj--+-- x --+-- conv, SiLU -- scan from the first token --+
                     |       +-- conv, SiLU -- scan from the last token  --+ (sum) * SiLU(z) --out_proj--> y
                     +-- z -------------------------------------------------------^

    Both directions share the two projections and the gate; each has its own convolution, step size, B, C, A and D (the
    backward ones end in ``_b``). Parameter names are those of the official checkpoints.

    Args:
        dim: width D of a token.
        state_size: states N per channel.
        conv_width: taps of the depthwise convolution.
        expand: inner channels per channel of width.
        init: "mamba" starts the step sizes log-uniform in [0.001, 0.1] as Mamba (arXiv 2312.00752, section 3.6);
            "official" as the released VideoMamba code, whose later initialisation overwrites them: dt_proj.weight
            is truncated normal and dt_proj.bias 0.
        halve: take half of the sum of the two directions, as Vision Mamba (arXiv 2401.09417) does. The weights have the
            same shapes and do not tell.

    Attributes:
        recompute: see `lightning_modules.ops.mix`; True unless changed.
    """

    conv1d: nn.Conv1d
    conv1d_b: nn.Conv1d
    x_proj: Linear
    x_proj_b: Linear
    dt_proj: Linear
    dt_proj_b: Linear
    A_log: nn.Parameter
    A_b_log: nn.Parameter
    D: nn.Parameter
    D_b: nn.Parameter

    def __init__(
        self,
        dim: int,
        state_size: int = 16,
        conv_width: int = 4,
        expand: int = 2,
        init: str = "mamba",
        halve: bool = False,
    ) -> None:
        super().__init__()
        self.halve = halve
        if init not in ("mamba", "official"):
            raise ModelError(f"init is {init!r}; choose 'mamba' or 'official'.")
        inner = expand * dim
        self.recompute = True
        self.state_size = state_size
        self.dt_rank = math.ceil(dim / 16)
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        self.out_proj = Linear(inner, dim, bias=False)
        for suffix in ("", "_b"):
            conv1d = nn.Conv1d(inner, inner, conv_width, groups=inner)
            x_proj = Linear(inner, self.dt_rank + 2 * state_size, bias=False)
            dt_proj = Linear(self.dt_rank, inner)
            a_log = torch.arange(1, state_size + 1, dtype=torch.float32).log().repeat(inner, 1)
            self.add_module(f"conv1d{suffix}", conv1d)
            self.add_module(f"x_proj{suffix}", x_proj)
            self.add_module(f"dt_proj{suffix}", dt_proj)
            self.register_parameter(f"A{suffix}_log", nn.Parameter(a_log))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(inner)))
        self._reset_parameters(init)

    @torch.no_grad()
    def _reset_parameters(self, init: str) -> None:
        for layer in (self.in_proj, self.x_proj, self.x_proj_b, self.dt_proj, self.dt_proj_b):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        for dt_proj in (self.dt_proj, self.dt_proj_b):
            if init == "official":
                nn.init.zeros_(dt_proj.bias)
            else:
                reset_step_sizes(dt_proj)

    def forward(self, h: Tensor, norm: Norm | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D). With `norm`, whose result `h` is, the gradient goes to what was normed."""
        x, z = self.project(h, norm).chunk(2, dim=-1)
        if self.halve:
            # Half of the weight is half of the sum, bit for bit, and much smaller.
            return self.scan(x, z, self.out_proj.weight / 2)
        if self._includes(self.out_proj):
            return self.scan(x, z, self.out_proj.weight)
        return self.out_proj(self.scan(x, z))

    def project(self, h: Tensor, norm: Norm | None = None) -> Tensor:
        """x and z, side by side: (B, L, D) -> (B, L, 2E). See `forward`."""
        if norm is None or not self._includes(self.in_proj):
            return self.in_proj(h)
        return normed_product(h, *norm, self.in_proj.weight)

    def _includes(self, layer: nn.Module) -> bool:
        """Whether what the backward pass computes again includes this layer's product, so that it is not called."""
        training = self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return training and only_multiplies(layer)

    def scan(self, x: Tensor, z: Tensor | None = None, out_proj: Tensor | None = None) -> Tensor:
        """Convolutions and scans from both ends, times the gate where there is one: (B, L, E) -> (B, L, E).

        With `out_proj`, times this weight (D, E) too: (B, L, D), see `lightning_modules.ops.mix`.
        """
        one, other = mixer_weights(self, self.A_log), mixer_weights(self, self.A_b_log, "_b")
        return mix(x, z, one, other, recompute=self.recompute, out_proj=out_proj)


def mixer_weights(mixer: nn.Module, a_log: Tensor, suffix: str = "") -> MixerWeights:
    """What one direction of a mixer learns, under Mamba's names with a suffix, for a matrix `a_log` (E, N)."""
    conv, x_proj, dt_proj, d = (getattr(mixer, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj", "D"))
    return MixerWeights(conv.weight, conv.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, a_log, d)


@torch.no_grad()
def reset_step_sizes(dt_proj: nn.Linear) -> None:
    """Start the step sizes log-uniform in [0.001, 0.1], as Mamba (arXiv 2312.00752, section 3.6)."""
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    dt = torch.exp(torch.empty_like(dt_proj.bias).uniform_(math.log(1e-3), math.log(0.1)))
    dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus


class Block(nn.Module):
    """Add, norm, mix: hands on the mixer's output and the residual stream that does not hold it yet.

    The next block, or the final norm, adds the two. The residual stream stays in float32 under mixed precision.
    """

    def __init__(self, dim: int, mixer: BiMamba, eps: float = 1e-5) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.eps = eps

    def forward(self, hidden: Tensor, residual: Tensor | None = None, *maps: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) and (B, L, D) -> the mixer's output (B, L, D), the residual stream before it (B, L, D).

        `maps` are handed to the mixer, see `lightning_modules.nets.scan_orders.HalfCrossScan`.
        """
        normed, residual = add_rms_norm(hidden, residual, self.norm.weight, self.eps)
        return self.mixer(normed, *maps, norm=Norm(residual, self.norm.weight, self.eps)), residual


def set_activations(net: nn.Module, activations: str) -> None:
    """Set what the blocks of a network keep in training for the backward pass, and ``net.activations``.

    Args:
        net: a network whose blocks have `BiMamba` mixers.
        activations: "speed": everything. "balanced": of a mixer less than half (see `lightning_modules.ops.mix`).
            "memory": the inputs of a block, and the whole block is computed again (`run_block`).

    Raises:
        ModelError: it is none of these.
    """
    check_choice("activations", activations, ACTIVATIONS)
    net.activations = activations  # type: ignore[assignment]  # a word, which nn.Module keeps as it is
    for module in net.modules():
        if isinstance(module, BiMamba):
            module.recompute = activations == "balanced"


def run_block(net: nn.Module, block: Callable, *inputs: Any) -> Any:  # noqa: ANN401  # as the block's
    """Run a block of a network; where ``net.activations`` is "memory", the backward pass runs it again."""
    if net.activations == "memory" and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
