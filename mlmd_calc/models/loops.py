"""Loops on the memory of tensors, compiled by numba, which needs no compiler on the machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar, cast

import numba
import torch
from numba import extending
from torch import Tensor

Loops: TypeAlias = Callable[..., None]

F = TypeVar("F", bound=Callable[..., Any])

_DTYPES: Final = (torch.float32, torch.float64)

THREADED_ATOMS: Final = 48
"""Atoms of a molecule from which its pairs are worth all threads of torch."""

FAST_MATH: Final = ("contract", "nsz", "reassoc")
"""What vectorised sums need; NaN and infinity keep their meaning."""

# It changes the arguments of a function, which types cannot say.
intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic


def known(tensor: Tensor) -> bool:
    """Tell whether compiled loops know a tensor: plain, in memory, of a precision of C."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    return plain and tensor.device.type == "cpu" and tensor.dtype in _DTYPES


def arrays(*tensors: Tensor) -> list[Any]:
    """Contiguous arrays, which share the memory of tensors that are contiguous."""
    return [
        (tensor.detach() if tensor.requires_grad else tensor).contiguous().numpy()
        for tensor in tensors
    ]


inlined: Final[Callable[[Callable[..., Any]], Any]] = numba.njit(
    fastmath=set(FAST_MATH), inline="always", error_model="numpy"
)
"""For functions that are called by compiled ones of the same file."""


def compiled(function: F) -> F:
    """Compile at the first call, and keep the result on disk where there is a place for it."""
    # Without Python's error for a division by zero, which is a branch.
    compile_: Any = functools.partial(
        numba.njit, fastmath=set(FAST_MATH), nogil=True, error_model="numpy"
    )
    try:
        return cast(F, compile_(cache=True)(function))
    except RuntimeError:
        return cast(F, compile_()(function))
