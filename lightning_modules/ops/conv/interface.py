"""The short depthwise convolution in one and in both directions, on the backend that `backend.py` chooses."""

from torch import Tensor

from lightning_modules.ops.backend import select

__all__ = ["bidirectional_conv1d", "causal_conv1d"]


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """Depthwise convolution along the sequence in which a token sees itself and the width - 1 tokens before it.

    y_t = sum over k of weight_k x_{t - (width - 1) + k}, plus bias, with zeros before the first token.

    Args:
        x: (batch, length, channels). Slices of a wider tensor are read in place.
        weight: (channels, width), or (channels, 1, width) as `torch.nn.Conv1d` keeps it.
        bias: (channels,).
        activation: None or "silu".
        reverse: a token sees the tokens after it instead: the same as flipping x and the result.

    Returns:
        (batch, length, channels) in x's dtype.

    Raises:
        ValueError: a shape does not fit the others, or the activation has no such name.
        BackendError: the backend asked for by name cannot run here.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}; choose None or 'silu'.")
    weight = _check(x, weight, bias)
    return select("conv", x).causal_conv1d(x, weight, bias, activation == "silu", reverse)


def bidirectional_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_b: Tensor, bias_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The causal convolution and, with the weights ending in `_b`, the one that looks to the future, both with SiLU.

    Shapes and errors as in `causal_conv1d`; x is read once.

    Returns:
        two tensors (batch, length, channels) in x's dtype: the causal one, the one that looks to the future.
    """
    weight, weight_b = _check(x, weight, bias), _check(x, weight_b, bias_b, "_b")
    if weight.shape != weight_b.shape:
        raise ValueError(f"weight_b has shape {tuple(weight_b.shape)}; it has to be weight's {tuple(weight.shape)}.")
    return select("conv", x).bidirectional_conv1d(x, weight, bias, weight_b, bias_b)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, suffix: str = "") -> Tensor:
    """The weight as (channels, width)."""
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; pass (batch, length, channels).")
    channels = x.shape[2]
    if weight.dim() == 3 and weight.shape[1] == 1:
        weight = weight[:, 0]
    if weight.dim() != 2 or weight.shape[0] != channels:
        raise ValueError(
            f"weight{suffix} has shape {tuple(weight.shape)}; "
            f"with {channels} channels it has to be ({channels}, width)."
        )
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(f"bias{suffix} has shape {tuple(bias.shape)}; it has to be ({channels},).")
    return weight
