"""Linear maps for inference, whose weights are laid out for the processor beforehand."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.linear_loops import can_pack, linear_loop, pack, panel_columns
from mlmd_calc.models.loops import THREADED_ATOMS, known
from mlmd_calc.models.operations import refuse_second_derivative, single_operation

_MANY_ROWS: Final = THREADED_ATOMS**2
"""Pairs of atoms from which it is better that torch multiplies, if it has more than one thread."""


def replace_linear_maps(network: nn.Module) -> None:
    """Put :class:`Linear` in the place of every linear map of torch.

    Parameters
    ----------
    network
        Network that is changed, and cannot be trained any more.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Linear(child.weight, child.bias))


class Linear(nn.Module):
    """Linear map that, on most CPUs, has its weights in the order in which they are read.

    Torch multiplies what does not fill vectors, and many rows on more than one thread.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.packed = known(weight) and can_pack(weight)
        if self.packed:
            columns = panel_columns(weight.dtype)
            self.register_buffer("panels", pack(self.weight, self.bias, columns))
            self.register_buffer("transposed", pack(self.weight.T, None, columns))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., inputs)`` to ``(..., outputs)``."""
        many = x.numel() >= _MANY_ROWS * x.shape[-1] and torch.get_num_threads() > 1
        if self.packed and known(x) and x.dtype == self.weight.dtype and not many:
            out: Tensor = CompiledLinear.apply(  # type: ignore[no-untyped-call]
                x, self.panels, self.transposed
            )
            return out
        return functional.linear(x, self.weight, self.bias)


class CompiledLinear(torch.autograd.Function):
    """Linear map of :func:`~.linear_loops.pack`, given that of its transpose, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, panels: Tensor, transposed: Tensor) -> Tensor:
        """Map ``(..., inputs)`` to ``(..., outputs)``."""
        ctx.save_for_backward(transposed)
        out: Tensor = _LINEAR(x, panels)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the input."""
        refuse_second_derivative()
        return _LINEAR(grad, *ctx.saved_tensors), None, None


def _linear(x: Tensor, panels: Tensor) -> Tensor:
    x, (count, _, columns) = x.contiguous(), panels.shape
    *shape, inputs = x.shape
    out = x.new_empty((*shape, count * columns))
    linear = linear_loop(columns, x.itemsize)
    linear(x.data_ptr(), panels.data_ptr(), out.data_ptr(), math.prod(shape), inputs, count)
    return out


_LINEAR: Final = single_operation("linear", "Tensor x, Tensor panels", "Tensor", _linear)
