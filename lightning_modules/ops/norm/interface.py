"""The sum with the residual stream and its RMS norm, on the backend that `backend.py` chooses."""

from torch import Tensor

from lightning_modules.ops.backend import select

__all__ = ["add_rms_norm"]


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """residual + hidden in float32, and that normalised: x / sqrt(mean of x squared over channels + eps) weight.

    Args:
        hidden: (..., channels).
        residual: the same shape, float32; None stands for zeros.
        weight: (channels,).
        eps: keeps the root away from 0.

    Returns:
        the normalised sum in weight's dtype (on a GPU under autocast in autocast's), and the sum; both (..., channels).

    Raises:
        ValueError: a shape does not fit the others.
        BackendError: the backend asked for by name cannot run here.
    """
    if residual is not None and residual.shape != hidden.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}; it has to be hidden's {tuple(hidden.shape)}.")
    if tuple(weight.shape) != tuple(hidden.shape[-1:]):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it has to be ({hidden.shape[-1]},).")
    # By the weight's dtype: that is what the norm is computed for, the sum being float32 in any case.
    return select("norm", weight).add_rms_norm(hidden, residual, weight, eps)
