"""The selective scan in one and in both directions, on the backend that `lightning_modules.ops.backend` chooses.

Legend of shapes: (batch, length, channels) for sequences, state for the states of each channel.
"""

from torch import Tensor

from lightning_modules.ops.backend import select
from lightning_modules.ops.scan.direction import Direction

__all__ = ["bidirectional_scan", "check", "selective_scan"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
) -> Tensor:
    """Selective state-space scan along the sequence (Mamba, arXiv 2312.00752, section 3.2).

    With dt = delta + delta_bias (then softplus), h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, h = 0 before the first step,
    y_t = (sum over states of C_t h_t + D u_t) silu(z_t). The state is float32 whatever the inputs are.

    Args:
        u: input (batch, length, channels). Slices of a wider tensor are read in place.
        delta: step sizes (batch, length, channels).
        A: decay rates (channels, state), negative in a stable system.
        B: input weights (batch, length, state).
        C: output weights (batch, length, state).
        D: weight of the skip connection (channels,).
        z: gate before its SiLU (batch, length, channels).
        delta_bias: added to delta (channels,).
        delta_softplus: whether softplus makes delta positive, after the bias.
        reverse: scan from the last token to the first; every tensor keeps its order.

    Returns:
        y (batch, length, channels) in u's dtype.

    Raises:
        ValueError: a shape does not fit the others.
        BackendError: the backend asked for by name cannot run here.
    """
    one = Direction(u, delta, A, B, C, D, delta_bias)
    check((one,), z)
    return select("scan", u).scan((one,), z, delta_softplus, reverse)


def bidirectional_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    u_b: Tensor,
    delta_b: Tensor,
    A_b: Tensor,
    B_b: Tensor,
    C_b: Tensor,
    D_b: Tensor | None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_bias_b: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """Sum of a scan from the first token and one from the last, times one gate silu(z) (Vision Mamba's block).

    The tensors ending in `_b` belong to the scan from the last token; they are in the sequence's own order, like all
    others. Shapes, result and errors as in `selective_scan`.
    """
    one = Direction(u, delta, A, B, C, D, delta_bias)
    other = Direction(u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b)
    check((one, other), z)
    return select("scan", u).scan((one, other), z, delta_softplus, reverse=False)


def check(directions: tuple[Direction, ...], z: Tensor | None) -> None:
    """Compare shapes, dtypes and devices of what a scan is given: kernels read memory by them.

    Raises:
        ValueError: one does not fit the others.
    """
    one = directions[0]
    _check(one, "z", z)
    for other in directions[1:]:
        # Written out, since torch 2.7 compiles neither `_replace` nor a slice of a named tuple.
        like = Direction(one.u, other.delta, other.A, other.B, other.C, other.D, other.delta_bias)
        _check(like, "u_b", other.u, "_b")
        for name, mine, its in zip(Direction._fields, one, other, strict=True):
            if mine is not None and its is not None and (mine.dtype, mine.device) != (its.dtype, its.device):
                raise ValueError(f"{name}_b is {its.dtype} on {its.device} and {name} {mine.dtype} on {mine.device}; "
                                 "give both directions the same.")  # fmt: skip


def _check(given: Direction, name_like_u: str, like_u: Tensor | None, suffix: str = "") -> None:
    u, A = given.u, given.A
    if u.dim() != 3:
        raise ValueError(f"u has shape {tuple(u.shape)}; pass (batch, length, channels).")
    batch, length, channels = u.shape
    if A.dim() != 2:
        raise ValueError(f"A{suffix} has shape {tuple(A.shape)}; pass (channels, state).")
    state = A.shape[1]
    wanted = {
        "delta": (batch, length, channels),
        "A": (channels, state),
        "B": (batch, length, state),
        "C": (batch, length, state),
        "D": (channels,),
        "delta_bias": (channels,),
    }
    for name, shape in wanted.items():
        tensor = getattr(given, name)
        if tensor is not None and tensor.device != u.device:
            raise ValueError(f"{name}{suffix} is on {tensor.device} and u on {u.device}; move one of them.")
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name}{suffix} has shape {tuple(tensor.shape)}; "
                f"with u of {tuple(u.shape)} and {state} states it has to be {shape}."
            )
    if like_u is not None and like_u.shape != u.shape:
        raise ValueError(f"{name_like_u} has shape {tuple(like_u.shape)}; it has to be u's {tuple(u.shape)}.")
