"""Heterogeneous attention: separate softmaxes over positions, velocities and context."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from mlmd_calc.models.atom.config import BlockConfig
from mlmd_calc.models.atom.slots import JointSlots, KeysAndValues, PairSlots

Slots: TypeAlias = JointSlots | PairSlots


class Attention(nn.Module):
    """Attention of queries to one or more streams with the same projections Q, K, V, O.

    With streams f_i and shares ``g = softmax(feature_weights)`` the output is
    ``O · sum over i of g_i · softmax(q·k_i / sqrt(c)) v_i``, where times turn q and k_i, see
    :mod:`.slots`.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.lifting_dim
        self.heads = (config.num_heads, config.head_dim)
        self.dropout = config.attention_dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        if config.attention_type == "ghca":
            self.feature_weights = nn.Parameter(0.1 * torch.randn(3))

    def forward(
        self, query: Tensor, stream: Tensor, inputs: tuple[Tensor, ...], slots: Slots
    ) -> Tensor:
        """Attend from ``(b, t or 1, n, d)`` to the stream and to the inputs.

        Parameters
        ----------
        query, stream, inputs
            ``(b, t or 1, n, d)``; the stream is what blocks update, the inputs are what they do
            not, velocities and context. No inputs for self-attention.
        slots
            How tokens attend to each other.
        """
        q = self.query(query).unflatten(-1, self.heads)
        own, others = self._project(stream[None]), None
        if inputs:
            shares = torch.softmax(self.feature_weights, dim=0).view(-1, 1, 1, 1, 1, 1)
            own = own.scaled(shares[:1])
            others = self._project(torch.stack(torch.broadcast_tensors(*inputs)))
            others = others.scaled(shares[1:])
        attended = slots.attend(q, own, others, self.dropout if self.training else 0.0)
        out: Tensor = self.out_proj(attended.flatten(-2))
        return out

    def _project(self, streams: Tensor) -> KeysAndValues:
        projections = (self.key, self.value)
        return KeysAndValues(*(p(streams).unflatten(-1, self.heads) for p in projections))
