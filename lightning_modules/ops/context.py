"""What torch hands from an operator's forward pass to its gradient, as type checkers see it."""

from typing import Any, Protocol

from torch import Tensor

__all__ = ["Context"]


class Context(Protocol):
    """The first argument of both functions: keeps tensors, and whatever else the first one writes to it.

    Attributes:
        saved_tensors: those that the forward pass saved; None where it saved None.
        needs_input_grad: of each input.
    """

    saved_tensors: tuple[Any, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for the backward pass."""

    def set_materialize_grads(self, value: bool) -> None:
        """Whether missing gradients come as zeros, or as None."""

    def __getattr__(self, name: str) -> Any: ...  # noqa: ANN401

    def __setattr__(self, name: str, value: Any) -> None: ...  # noqa: ANN401
