"""Transformer blocks of ATOM."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from mlmd_calc.models.atom.attention import Attention, Slots
from mlmd_calc.models.atom.config import BlockConfig

RMS_EPSILON: Final = torch.finfo(torch.float32).eps
"""Single precision's, whatever the precision: it is not small against squares of velocities."""


class SwiGLU(nn.Module):
    """Gated activation ``silu(G u + g) ⊙ (V u + b)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_gate = nn.Linear(width, width)
        self.linear_value = nn.Linear(width, width)

    def forward(self, u: Tensor) -> Tensor:
        """Map ``(..., d)`` to ``(..., d)``."""
        gated: Tensor = nn.functional.silu(self.linear_gate(u)) * self.linear_value(u)
        return gated


class SquaredReLU(nn.Module):
    """Activation ``max(u, 0)²``."""

    def forward(self, u: Tensor) -> Tensor:
        """Map element by element."""
        return nn.functional.relu(u).square()


_ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "relu2": SquaredReLU,
    "leaky_relu": nn.LeakyReLU,
}


def _norm(config: BlockConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.lifting_dim, eps=RMS_EPSILON)
    return nn.LayerNorm(config.lifting_dim)


class FeedForward(nn.Module):
    """Three linear maps with the same activation, weights included, after the first two."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.lifting_dim
        swiglu = config.activation == "swiglu"
        # Numbered as in the public code, where 3 is the activation again and 4 the dropout.
        self.layers = nn.ModuleDict(
            {
                "0": nn.Linear(width, width),
                "1": SwiGLU(width) if swiglu else _ACTIVATIONS[config.activation](),
                "2": nn.Linear(width, width),
                "5": nn.Linear(width, width),
            }
        )
        self.dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, y: Tensor) -> Tensor:
        """Map ``(..., d)`` to ``(..., d)``."""
        activation = self.layers["1"]
        inner = activation(self.layers["2"](activation(self.layers["0"](y))))
        out: Tensor = self.layers["5"](self.dropout(inner))
        return out


class Block(nn.Module):
    """Attention to the stream and to the inputs, then the feed-forward map.

    The stream is normalised before both, and the residual starts from the normalised stream.
    """

    def __init__(self, config: BlockConfig, *, first: bool) -> None:
        super().__init__()
        # The first block has nothing to blend with.
        self.residual = "none" if first else config.value_residual_type
        streams = 3 if config.attention_type == "ghca" else 1
        self.norms = nn.ModuleList(_norm(config) for _ in range(streams))
        self.attention = Attention(config)
        self.ffn: nn.Module = FeedForward(config)
        if self.residual == "learnable":
            self.lambda_v_residual = nn.Parameter(torch.tensor(0.5))

    def forward(
        self,
        stream: Tensor,
        first: Tensor | None,
        inputs: tuple[Tensor, Tensor] | None,
        slots: Slots,
    ) -> Tensor:
        """Update the stream ``(b, t or 1, n, d)``.

        Parameters
        ----------
        stream
            Output of the block before.
        first
            Output of the first block; None in the first block.
        inputs
            Velocity and context features ``(b, t or 1, n, d)``, the same for all blocks; None for
            self-attention.
        slots
            How tokens attend to each other.
        """
        x = self.norms[0](stream)
        if inputs is None:
            y = x + self.attention(x, x, (), slots)
        else:
            velocity, context = inputs
            others = (self.norms[1](velocity), self.norms[2](context))
            y = x + self.attention(context, x, others, slots)
        return self._blend(y + self.ffn(y), first)

    def _blend(self, z: Tensor, first: Tensor | None) -> Tensor:
        if self.residual == "none" or first is None:
            return z
        if self.residual == "fixed":
            return torch.lerp(first, z, 0.5)
        return torch.lerp(first, z, torch.sigmoid(self.lambda_v_residual))


class Blocks(nn.ModuleList):
    """All blocks, one after the other."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(Block(config, first=index == 0) for index in range(config.num_layers))
        self._heterogeneous = config.attention_type == "ghca"

    def forward(
        self, stream: Tensor, velocity: Tensor, context: Tensor, slots: Sequence[Slots]
    ) -> Tensor:
        """Send features ``(b, t or 1, n, d)`` through all blocks, each with its own slots."""
        inputs = (velocity, context) if self._heterogeneous else None
        first = None
        for block, own_slots in zip(self, slots, strict=True):
            stream = block(stream, first, inputs, own_slots)
            first = stream if first is None else first
        return stream


def draw_dense_weights(network: nn.Module) -> None:
    """Draw the weights of linear maps from N(0, 2/inputs), as the public code does."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
