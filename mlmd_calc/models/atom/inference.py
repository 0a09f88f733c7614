"""Copies of the network for inference: merged maps, recorded operations."""

from __future__ import annotations

import copy
from typing import Final, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.atom.blocks import FeedForward, SwiGLU
from mlmd_calc.models.atom.integrator import ATOMIntegrator
from mlmd_calc.models.atom.lifting import EquivariantLinear
from mlmd_calc.models.atom.network import ATOM, VectorReadout
from mlmd_calc.models.atom.pairs import PairLifting
from mlmd_calc.models.linear import replace_linear_maps
from mlmd_calc.models.mdet import inference as mdet
from mlmd_calc.models.recorder import Recorder

N = TypeVar("N", ATOM, ATOMIntegrator)

_CONSTANTS: Final = (2, 3, 5)
"""Numbers, mask and times among the arguments of a jump: a run asks for the same ones each time."""


def merge_weights(network: N) -> N:
    """Copy a network for inference: the same results up to rounding, with less work.

    * With SwiGLU, no two linear maps of the feed-forward network are in a row, which saves two of
      seven matrix products.
    * Equivariant maps are dense ones.
    * Linear maps have their weights laid out for the processor.

    Parameters
    ----------
    network
        Network to copy. Later changes of its weights do not reach the copy.

    Returns
    -------
    ATOM or ATOMIntegrator
        Network in evaluation mode that cannot be trained, and whose state dict has other names.

    Examples
    --------
    >>> from mlmd_calc.models import ATOM, ATOMConfig
    >>> from mlmd_calc.models.atom import merge_weights
    >>> fast = merge_weights(ATOM(ATOMConfig(lifting_dim=32, num_heads=4)))
    """
    merged = copy.deepcopy(network).eval()
    for parent in (merged.lifting_layer, merged.projection_layer):
        for name, child in list(parent.named_children()):
            if isinstance(child, EquivariantLinear | VectorReadout):
                setattr(parent, name, _dense(child))
    if network.config.activation == "swiglu":
        for block in merged.transformer_blocks:
            block.ffn = MergedFeedForward(cast(FeedForward, block.ffn))
    lifting = merged.lifting_layer
    if isinstance(lifting, PairLifting) and lifting.encoder is not None:
        lifting.encoder = mdet.merge_weights(lifting.encoder)
    replace_linear_maps(merged)
    return merged.requires_grad_(False)


def record(network: N) -> N:
    """Copy a network for inference, so that frequent calls on the CPU skip Python.

    The copy is :func:`merge_weights` of the network, with the same results bit by bit; see
    :class:`~mlmd_calc.models.recorder.Recorder`.

    Parameters
    ----------
    network
        Network to copy. Later changes of its weights do not reach the copy.

    Returns
    -------
    ATOM or ATOMIntegrator
        Network in evaluation mode that can neither be trained nor moved.

    Examples
    --------
    >>> from mlmd_calc.models import ATOM, ATOMConfig
    >>> from mlmd_calc.models.atom import record
    >>> fast = record(ATOM(ATOMConfig(lifting_dim=32, num_heads=4)))
    """
    recorded = merge_weights(network)
    name, constants = ("_predict", ()) if isinstance(recorded, ATOM) else ("_jump", _CONSTANTS)
    setattr(recorded, name, Recorder(getattr(recorded, name), recorded, constants))
    return recorded


class MergedFeedForward(nn.Module):
    """A :class:`~.blocks.FeedForward` with SwiGLU, without linear maps in a row."""

    def __init__(self, ffn: FeedForward) -> None:
        super().__init__()
        swiglu = cast(SwiGLU, ffn.layers["1"])
        self.first = _merge(cast(nn.Linear, ffn.layers["0"]), swiglu)
        self.second = _merge(cast(nn.Linear, ffn.layers["2"]), swiglu)
        self.last = ffn.layers["5"]

    def forward(self, y: Tensor) -> Tensor:
        """Map ``(..., d)`` to ``(..., d)``."""
        for gate_and_value in (self.first, self.second):
            gate, value = gate_and_value(y).chunk(2, dim=-1)
            y = functional.silu(gate) * value
        out: Tensor = self.last(y)
        return out


def _linear(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Linear:
    """Make a linear map in the precision and on the device of some weights."""
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().to(like))
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(like))
    return linear


def _merge(inner: nn.Linear, swiglu: SwiGLU) -> nn.Linear:
    """Make one map of a linear map and the gate and value after it, d to 2d."""
    outer = (swiglu.linear_gate, swiglu.linear_value)
    weight = torch.cat([linear.weight for linear in outer]).double()
    bias = weight @ inner.bias.double() + torch.cat([linear.bias for linear in outer])
    return _linear(weight @ inner.weight.double(), bias, inner.weight)


def _dense(equivariant: EquivariantLinear | VectorReadout) -> nn.Linear:
    """Write an equivariant map as a dense one."""
    like = equivariant.weight
    identity = torch.eye(equivariant.in_features, dtype=like.dtype, device=like.device)
    return _linear(equivariant(identity).T, None, like)
