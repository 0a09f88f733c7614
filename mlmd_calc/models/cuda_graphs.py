"""A function of tensors on a GPU as one launch of all that it does.

A small network is some hundred short kernels, and to start them one by one takes longer than they
do. A CUDA graph starts them together, with the same results bit by bit.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

_WARM_UP: Final = 3
"""Calls before the capture, in which libraries set up what a capture must not contain."""


@functools.cache
def _pool() -> Any:
    """Memory of all graphs: only one computes at a time, and none keeps what it computed there."""
    return torch.cuda.graph_pool_handle()


_ONE_AT_A_TIME: Final = threading.Lock()


def capture_graph(function: Callable[..., Any], arguments: Sequence[Tensor]) -> Callable[..., Any]:
    """Capture what a function does on a GPU for the shapes and strides of some arguments.

    Parameters
    ----------
    function
        What it does may depend on shapes and strides, not on numbers in tensors, none of which may
        come from or go to the memory of the processor; returns a tensor, or a tuple or dictionary
        of tensors. Of other tensors, such as weights, changes of the values count.
    arguments
        Arguments to capture it with, on one GPU.

    Returns
    -------
    callable
        The same function for arguments of these shapes and strides, without gradients.

    Raises
    ------
    RuntimeError
        If the function does what cannot be captured.
    """
    device = arguments[0].device
    # A tensor made in a caller's inference mode cannot be changed outside of it.
    with _ONE_AT_A_TIME, torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
        inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in arguments]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=_pool()):
            outputs = function(*inputs)

    def replay(*given: Tensor) -> Any:
        with _ONE_AT_A_TIME, torch.cuda.device(device):
            for kept, tensor in zip(inputs, given, strict=True):
                kept.copy_(tensor)
            graph.replay()
            return _copied(outputs)

    return replay


@functools.cache
def graphs_work(device: torch.device) -> bool:
    """Whether graphs can be captured and replayed on a GPU here, which is tried once."""
    try:
        twice = capture_graph(lambda x: 2.0 * x, [torch.zeros(2, device=device)])
        return bool((twice(torch.ones(2, device=device)) == 2.0).all())
    except (RuntimeError, AssertionError):
        # The latter if torch is made without CUDA.
        return False


def _copied(outputs: Any) -> Any:
    """Results in memory of their own, which the next replay does not change."""
    if isinstance(outputs, Tensor):
        return outputs.clone()
    if isinstance(outputs, dict):
        return {name: value.clone() for name, value in outputs.items()}
    return tuple([value.clone() for value in outputs])
