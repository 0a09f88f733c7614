"""Inference on the CPU without modules.

Half of the time of a small network is that of the Python code between its operations. A recording
repeats the operations on the same numbers without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn

from mlmd_calc.models.operations import record_operations

RECORD_AFTER: Final = 50
"""Calls with one shape before it is recorded, which takes as long as about a hundred of them."""

MAX_RECORDINGS: Final = 16
"""Shapes that are recorded; others are always evaluated by Python."""

_MOST_COUNTED: Final = 1000
"""Shapes whose calls are counted at a time."""

R = TypeVar("R")


class Recorder(Generic[R]):
    """A function that is recorded for every shape and stride of arguments that comes often.

    Its results are the same bit by bit. Calls with gradients, in training, or on other devices, and
    shapes that are rare go to the function itself.

    Parameters
    ----------
    function
        What it does may depend on the shapes of tensors and on other arguments, not on numbers in
        tensors; returns a tensor, or a tuple or dictionary of tensors. It is called with positional
        arguments, which are tensors, hashable objects, or tuples, lists and dataclasses of them.
    module
        Module whose weights the function uses. Changes of their values count.
    """

    def __init__(self, function: Callable[..., R], module: nn.Module) -> None:
        self._function = function
        self._module = module
        self._calls: dict[Any, int] = {}
        self._recordings: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> R:
        """Evaluate the function."""
        if torch.is_grad_enabled() or self._module.training:
            return self._function(*arguments)
        tensors: list[Tensor] = []
        key = _shapes(arguments, tensors)
        if key not in self._recordings:
            if len(self._calls) >= _MOST_COUNTED:
                self._calls.clear()
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            rare = calls <= RECORD_AFTER or len(self._recordings) == MAX_RECORDINGS
            if rare or any(tensor.device.type != "cpu" for tensor in tensors):
                return self._function(*arguments)
            self._recordings[key] = self._record(arguments, tensors)
        out: R = self._recordings[key](*tensors)
        return out

    def __getstate__(self) -> dict[str, Any]:
        # Copies record for themselves: recordings are bound to the weights here.
        return {**self.__dict__, "_calls": {}, "_recordings": {}}

    def _record(self, arguments: Any, tensors: list[Tensor]) -> Callable[..., Any]:
        return record_operations(
            lambda *given: self._function(*_filled(arguments, iter(given))), tensors
        )


def _shapes(nested: Any, tensors: list[Tensor]) -> Any:
    """Arguments with layouts, types and devices in the places of tensors, which are collected."""
    if isinstance(nested, Tensor):
        tensors.append(nested)
        return nested.shape, nested.stride(), nested.dtype, nested.device
    parts = _parts(nested)
    return nested if parts is None else tuple([_shapes(part, tensors) for part in parts])


def _filled(nested: Any, tensors: Iterator[Tensor]) -> Any:
    """Arguments with other tensors, taken in order."""
    if isinstance(nested, Tensor):
        return next(tensors)
    parts = _parts(nested)
    if parts is None:
        return nested
    filled = [_filled(part, tensors) for part in parts]
    if isinstance(nested, list) or type(nested) is tuple:
        return type(nested)(filled)
    return type(nested)(*filled)


def _parts(nested: Any) -> Sequence[Any] | None:
    if isinstance(nested, (tuple, list)):
        return nested
    if is_dataclass(nested):
        return [getattr(nested, entry.name) for entry in fields(nested)]
    return None
