"""What torch hands from an operator's forward pass to its gradient, the first argument of both functions."""

from typing import Any

__all__ = ["Context"]

# Torch's own class declares neither `saved_tensors` nor what a forward pass writes to it.
Context = Any
