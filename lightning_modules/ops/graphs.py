"""CUDA graphs: what a model starts on a GPU, recorded once for each shape of its input and replayed without Python.

At small batches a GPU waits for Python, which starts some twenty kernels a block one by one. A graph starts all of a
forward pass at once. It has fixed addresses: inputs are copied to where it reads, results are copied from where it
writes, and weights have to stay where they were.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.errors import ModelError

__all__ = ["MOST_GRAPHS", "Replayed", "capture"]

MOST_GRAPHS = 8
"""Graphs that a model keeps: each has the memory of a forward pass of its own. The one not used longest goes."""
_DEVICE = "cuda"
_WARM_UP = 3  # calls before a recording, as PyTorch's manual does: they compile, check and allocate


def capture(function: Callable[[], Any], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Record what a function starts on a GPU.

    Args:
        function: starts the same kernels at every call and asks the GPU for nothing in between; without gradients.
        device: the GPU.

    Returns:
        The graph, and the function's result, whose memory every ``replay()`` writes anew.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        result = function()
    return graph, result


class _Recorded(NamedTuple):
    """A graph with the memory it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    result: Any
    weights: list[tuple[Tensor, int]]  # with their addresses

    def is_valid(self) -> bool:
        return all(tensor.data_ptr() == address for tensor, address in self.weights)


class Replayed:
    """The forward pass of a module in eval mode on a GPU, replayed as a CUDA graph. Give it to ``module.forward``.

    The first call with inputs of new shapes or dtypes records a graph, which takes some seconds; so does the first
    after the weights were moved. Weights may change in place. Replace a part of the module only before the first call.

    Args:
        module: takes tensors and returns tensors, or tuples, lists or dicts of them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._recorded: OrderedDict[tuple, _Recorded] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type["Replayed"], tuple[nn.Module]]:
        """A copy, or another process, records for itself."""
        return Replayed, (self.module,)

    def __call__(self, *inputs: Tensor) -> Any:  # noqa: ANN401  # as the module's
        """The module's result, on its GPU; arguments as of its forward pass, on any device.

        Raises:
            ModelError: the module is not on a GPU or in training mode, or gradients are wanted.
        """
        device = self._device()
        # Calls from several threads would write to the same memory.
        with self._lock:
            with torch.inference_mode():
                recorded = self._found(inputs, device)
                for buffer, tensor in zip(recorded.inputs, inputs, strict=True):
                    buffer.copy_(tensor)
                recorded.graph.replay()
            return _copied(recorded.result)

    def _device(self) -> torch.device:
        name, device = type(self.module).__name__, next(self.module.parameters()).device
        if device.type != _DEVICE:
            raise ModelError(f"{name} replays a CUDA graph and is on {device}; move it to a GPU, or load it without "
                             "graph=True.")  # fmt: skip
        if self.module.training or torch.is_grad_enabled():
            raise ModelError(f"{name} replays a CUDA graph, which has no gradients; call it in eval mode under "
                             "torch.inference_mode(), or load it without graph=True.")  # fmt: skip
        return device

    def _found(self, inputs: tuple[Tensor, ...], device: torch.device) -> _Recorded:
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        key = (device, autocast, *((tensor.shape, tensor.dtype) for tensor in inputs))
        recorded = self._recorded.pop(key, None)
        if recorded is None or not recorded.is_valid():
            while len(self._recorded) >= MOST_GRAPHS:
                self._recorded.popitem(last=False)
            recorded = self._record(inputs, device, autocast)
        self._recorded[key] = recorded
        return recorded

    def _record(self, inputs: tuple[Tensor, ...], device: torch.device, autocast: torch.dtype | None) -> _Recorded:
        buffers = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for tensor in inputs)
        for buffer, tensor in zip(buffers, inputs, strict=True):
            buffer.copy_(tensor)
        # Weights that autocast has cast and keeps would be gone after its block, and the graph reads them.
        uncached = nullcontext() if autocast is None else torch.autocast(device.type, autocast, cache_enabled=False)
        with uncached:
            graph, result = capture(lambda: type(self.module).forward(self.module, *buffers), device)
        tensors = chain(self.module.parameters(), self.module.buffers())
        return _Recorded(graph, buffers, result, [(tensor, tensor.data_ptr()) for tensor in tensors])


def _copied(result: Any) -> Any:  # noqa: ANN401  # tensors, and mappings and sequences of them
    if isinstance(result, Tensor):
        return result.clone()
    if isinstance(result, dict):
        return {name: _copied(value) for name, value in result.items()}
    if isinstance(result, tuple | list):
        return type(result)(_copied(value) for value in result)
    return result
