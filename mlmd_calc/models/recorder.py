"""Inference without modules.

Half of the time of a small network on the CPU is that of the Python code between its operations,
and most of it on a GPU. A recording repeats the operations on the same numbers without it: there as
a list of operations, here as a CUDA graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from mlmd_calc.models.cuda_graphs import capture_graph
from mlmd_calc.models.operations import record_operations

RECORD_AFTER: Final = 50
"""Calls with one shape before it is recorded, which on the CPU takes as long as a hundred."""

CAPTURE_AFTER: Final = 5
"""The same for a GPU, where it takes as long as about five calls."""

MAX_RECORDINGS: Final = 16
"""Shapes that are recorded, and values of constants; others are always evaluated by Python."""

_MOST_COUNTED: Final = 1000
"""Shapes whose calls are counted at a time, and values of constants."""

R = TypeVar("R")


class Recorder(Generic[R]):
    """A function that is recorded for every shape and stride of arguments that comes often.

    Its results are the same bit by bit. Calls with gradients, in training, or on other devices than
    one CPU or GPU, and shapes that are rare go to the function itself. So do, after a warning,
    shapes that cannot be captured on a GPU.

    On the CPU, constants whose values come often have recordings of their own, in which nothing is
    computed again that follows from them and from weights alone.

    Parameters
    ----------
    function
        What it does may depend on the shapes of tensors and on other arguments, not on numbers in
        tensors; returns a tensor, or a tuple or dictionary of tensors. It is called with positional
        arguments, which are tensors, hashable objects, or tuples, lists and dataclasses of them.
    module
        Module whose weights the function uses. Changes of their values count, unless there are
        constants.
    constants
        Places of arguments whose values are often the same, as those of atomic numbers.
    """

    def __init__(
        self, function: Callable[..., R], module: nn.Module, constants: Sequence[int] = ()
    ) -> None:
        self._function = function
        self._module = module
        self._constants = tuple(constants)
        self._by_shapes, self._by_values = _Recordings(), _Recordings()
        self._endings: dict[Any, int] = {}

    def __call__(self, *arguments: Any) -> R:
        """Evaluate the function."""
        return self._evaluate(arguments, (), None, [])

    def ending_with(self, *last: Any) -> Callable[..., R]:
        """Return the function of its other arguments, for many calls with the same last ones.

        Looking for the tensors among them, once here, takes long if they are many.
        """
        tensors: list[Tensor] = []
        ending = self._endings.setdefault(_shapes(last, tensors), len(self._endings))
        return lambda *first: self._evaluate(first, last, ending, tensors)

    def _evaluate(
        self, first: tuple[Any, ...], last: tuple[Any, ...], ending: Any, of_last: list[Tensor]
    ) -> R:
        """Evaluate it, knowing tensors of the last arguments and a number for their shapes."""
        arguments = (*first, *last)
        if torch.is_grad_enabled() or self._module.training:
            return self._function(*arguments)
        tensors: list[Tensor] = []
        shapes = _shapes(first, tensors), ending
        tensors += of_last
        recording = self._recording(shapes, arguments, tensors)
        out: R = self._function(*arguments) if recording is None else recording(*tensors)
        return out

    def _recording(
        self, shapes: Any, arguments: tuple[Any, ...], tensors: list[Tensor]
    ) -> Callable[..., Any] | None:
        """Find or make a recording for the values of constants, or else for the shapes."""
        constants = [
            own for place in self._constants if isinstance(own := arguments[place], Tensor)
        ]
        # Those on a GPU would have to be waited for.
        if constants and constants[0].is_cpu:
            values = tuple([own.numpy().tobytes() for own in constants])
            recording = self._by_values.find(
                (shapes, values),
                tensors,
                lambda form: self._record(form, arguments, tensors, constants),
            )
            if recording is not None:
                return recording
        return self._by_shapes.find(
            shapes, tensors, lambda form: self._record(form, arguments, tensors, [])
        )

    def __getstate__(self) -> dict[str, Any]:
        # Copies record for themselves: recordings are bound to the weights here.
        return {**self.__dict__, "_by_shapes": _Recordings(), "_by_values": _Recordings()}

    def _record(
        self, record: _Form, arguments: Any, tensors: list[Tensor], constants: list[Tensor]
    ) -> Callable[..., Any]:
        def function(*given: Tensor) -> R:
            return self._function(*_filled(arguments, iter(given)))

        if record is not capture_graph:
            same = [k for k, own in enumerate(tensors) if any(own is other for other in constants)]
            return record_operations(function, tensors, same)
        try:
            return record(function, tensors)
        except RuntimeError as error:
            warnings.warn(
                "this computation cannot be captured as a CUDA graph and stays slow for small "
                f"molecules, where device='cpu' may be faster: {error}",
                stacklevel=2,
            )
            return function


_Form: TypeAlias = Callable[[Callable[..., Any], Sequence[Tensor]], Callable[..., Any]]


@dataclass
class _Recordings:
    """Recordings of what comes often, and counts of what may."""

    calls: dict[Any, int] = field(default_factory=dict)
    recordings: dict[Any, Callable[..., Any]] = field(default_factory=dict)

    def find(
        self, key: Any, tensors: list[Tensor], record: Callable[[_Form], Callable[..., Any]]
    ) -> Callable[..., Any] | None:
        """Return the recording of such calls, which is made if they have become many."""
        if key not in self.recordings:
            if len(self.calls) >= _MOST_COUNTED:
                self.calls.clear()
            calls = self.calls[key] = self.calls.get(key, 0) + 1
            form = _form(tensors)
            frequent = CAPTURE_AFTER if form is capture_graph else RECORD_AFTER
            if form is None or calls <= frequent or len(self.recordings) == MAX_RECORDINGS:
                return None
            self.recordings[key] = record(form)
        return self.recordings[key]


def _form(tensors: list[Tensor]) -> _Form | None:
    """How to record for the device of tensors; None if there is no way, or no one device."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1:
        return None
    return {"cpu": record_operations, "cuda": capture_graph}.get(devices.pop().type)


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
