"""A copy of the network for inference on the CPU that records what it does.

Half of the time of a small network is Python's. A recording is TorchScript, which replays the same
operations on the same numbers without Python.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from mlmd_calc.models.atom.merged import merge_weights
from mlmd_calc.models.atom.network import ATOM

RECORD_AFTER: Final = 50
"""Calls with one shape before it is recorded, which takes as long as about a hundred of them."""

MAX_RECORDINGS: Final = 8
"""Shapes that are kept; the one recorded first makes room."""

_Key: TypeAlias = tuple[Any, ...]


def record(network: ATOM) -> ATOM:
    """Copy a network for inference, so that frequent calls on the CPU skip Python.

    The copy is :func:`~.merge_weights` of the network, and its results are the same bit by bit. A
    shape of inputs that came often is recorded; other calls, calls outside of
    :class:`torch.inference_mode`, and other devices do what the merged network does.

    Parameters
    ----------
    network
        Network to copy. Later changes of its weights do not reach the copy.

    Returns
    -------
    ATOM
        Network in evaluation mode that cannot be trained, moved or copied.

    Examples
    --------
    >>> from mlmd_calc.models import ATOM, ATOMConfig
    >>> from mlmd_calc.models.atom import record
    >>> fast = record(ATOM(ATOMConfig(lifting_dim=32, num_heads=4)))
    """
    recorded = merge_weights(network)
    for name in ("_predict", "_jump"):
        setattr(recorded, name, _Recorder(getattr(recorded, name)))
    return recorded


class _Recorder:
    """A function whose operations depend on the shapes of its tensors and on other arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._calls: dict[_Key, int] = {}
        self._recordings: dict[_Key, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        if not torch.is_inference_mode_enabled() or any(x.device.type != "cpu" for x in tensors):
            return self._function(*arguments)
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in arguments)
        if key not in self._recordings:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= RECORD_AFTER:
                return self._function(*arguments)
            del self._calls[key]
            if len(self._recordings) == MAX_RECORDINGS:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[key] = self._record(arguments, tensors)
        return self._recordings[key](*tensors)

    def _record(self, arguments: tuple[Any, ...], tensors: list[Tensor]) -> Callable[..., Any]:
        def call(*given: Tensor) -> Any:
            rest = iter(given)
            return self._function(*(next(rest) if isinstance(x, Tensor) else x for x in arguments))

        with warnings.catch_warnings():
            # Sizes become constants, as they should.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            recording: Callable[..., Any] = torch.jit.trace(
                call, tuple(tensors), check_trace=False, strict=False
            )
        return recording
