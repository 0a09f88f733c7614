"""Transformer blocks of ATOM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from mlmd_calc.models.atom.attention import Attention, Slots
from mlmd_calc.models.atom.config import ATOMConfig

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


def _norm(config: ATOMConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.lifting_dim, eps=RMS_EPSILON)
    return nn.LayerNorm(config.lifting_dim)


class FeedForward(nn.Module):
    """Three linear maps with the same activation, weights included, after the first two."""

    def __init__(self, config: ATOMConfig) -> None:
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

    The stream is normalised before both, and the residual starts from the normalised stream. With a
    horizon, its embedding is added to the queries, and scales and shifts what the feed-forward map
    sees.
    """

    def __init__(self, config: ATOMConfig, *, first: bool) -> None:
        super().__init__()
        # The first block has nothing to blend with.
        self.residual = "none" if first else config.value_residual_type
        streams = 3 if config.attention_type == "ghca" else 1
        self.norms = nn.ModuleList(_norm(config) for _ in range(streams))
        self.attention = Attention(config)
        self.ffn: nn.Module = FeedForward(config)
        if self.residual == "learnable":
            self.lambda_v_residual = nn.Parameter(torch.tensor(0.5))
        if config.integrator is not None and not config.integrator.pairs:
            self.film = nn.Linear(config.lifting_dim, 2 * config.lifting_dim)

    def forward(
        self,
        stream: Tensor,
        first: Tensor | None,
        inputs: tuple[Tensor, Tensor] | None,
        slots: Slots,
        horizon: Tensor | None,
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
        horizon
            ``(b, t, 1, d)`` embedding of the times, or None.
        """
        x = self.norms[0](stream)
        if inputs is None:
            y = x + self.attention(x, x, (), slots)
        else:
            velocity, context = inputs
            query = context if horizon is None else context + horizon
            others = (self.norms[1](velocity), self.norms[2](context))
            y = x + self.attention(query, x, others, slots)
        inner = y
        if horizon is not None:
            scale, shift = self.film(horizon).chunk(2, dim=-1)
            inner = y * (1.0 + scale) + shift
        return self._blend(y + self.ffn(inner), first)

    def _blend(self, z: Tensor, first: Tensor | None) -> Tensor:
        if self.residual == "none" or first is None:
            return z
        if self.residual == "fixed":
            return torch.lerp(first, z, 0.5)
        return torch.lerp(first, z, torch.sigmoid(self.lambda_v_residual))
