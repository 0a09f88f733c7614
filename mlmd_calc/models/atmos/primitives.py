"""Building blocks shared by Pairformer and diffusion transformer.

Parameter names are those of Protenix. All blocks take any number of leading axes.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mlmd_calc.models.atmos.windows import AtomWindows

# exp(-1e9) is zero in every precision, and a row that is masked throughout stays finite.
MASKED: Final = -1e9


def linear(
    c_in: int, c_out: int, *, bias: bool = False, init: str = "lecun", bias_value: float = 0.0
) -> nn.Linear:
    """Make a linear map with the initial weights used around AlphaFold.

    Parameters
    ----------
    c_in, c_out
        Widths.
    bias
        Add a bias.
    init
        ``"lecun"`` keeps the variance, ``"relu"`` that after a rectifier, ``"zeros"`` is for gates
        and for the last map of a residual branch.
    bias_value
        Initial bias.
    """
    layer = nn.Linear(c_in, c_out, bias=bias)
    # A uniform distribution of the wanted variance.
    bound = {"lecun": (3.0 / c_in) ** 0.5, "relu": (6.0 / c_in) ** 0.5, "zeros": 0.0}[init]
    nn.init.uniform_(layer.weight, -bound, bound)
    if bias:
        nn.init.constant_(layer.bias, bias_value)
    return layer


class BlockStack(nn.Module):
    """A module that applies blocks one after the other; a base class.

    Attributes
    ----------
    recompute
        Keep only what goes into each block for the gradient, and apply the block once more when its
        gradient is taken. Results are the same bits.
    """

    recompute: bool = False

    def apply_block(self, block: nn.Module, *arguments: Any) -> Any:
        """Return what a block makes of its arguments."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a bool mask of keys into a term to add to attention logits: 0 or -1e9."""
    return MASKED * (~mask).to(dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attend with logits ``q·k / sqrt(d) + bias``.

    Parameters
    ----------
    query, key, value
        ``(..., h, n, d)``, ``(..., h, m, d)`` and ``(..., h, m, d)``.
    bias
        Broadcastable to ``(..., h, n, m)``.
    """
    logits = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)) + bias
    return torch.matmul(torch.softmax(logits, dim=-1), value)


class Attention(nn.Module):
    """Gated multi-head attention.

    Parameters
    ----------
    c
        Width of inputs and output.
    heads, head_width
        Number of heads and width of each.
    query_bias
        Give the queries a bias.
    output_init
        Initial weights of the last map, see :func:`linear`.
    """

    def __init__(
        self, c: int, heads: int, head_width: int, *, query_bias: bool, output_init: str
    ) -> None:
        super().__init__()
        self.heads = heads
        hidden = heads * head_width
        self.linear_q = linear(c, hidden, bias=query_bias)
        self.linear_k = linear(c, hidden)
        self.linear_v = linear(c, hidden)
        self.linear_g = linear(c, hidden, init="zeros")
        self.linear_o = linear(hidden, c, init=output_init)

    def forward(
        self, x: Tensor, others: Tensor, bias: Tensor, windows: AtomWindows | None = None
    ) -> Tensor:
        """Let ``x`` ``(..., n, c)`` attend to ``others`` ``(..., m, c)``.

        Parameters
        ----------
        x, others
            Inputs of queries and gate, and of keys and values.
        bias
            Broadcastable to ``(..., h, n, m)``, or ``(..., windows, h, queries, keys)``.
        windows
            Restrict attention to these windows.
        """
        query, key, value = self.linear_q(x), self.linear_k(others), self.linear_v(others)
        if windows is not None:
            query, key, value = windows.queries(query), windows.keys(key), windows.keys(value)
        out = attend(self._split(query), self._split(key), self._split(value), bias)
        out = out.transpose(-3, -2).flatten(-2)
        if windows is not None:
            out = windows.join(out)
        result: Tensor = self.linear_o(torch.sigmoid(self.linear_g(x)) * out)
        return result

    def _split(self, x: Tensor) -> Tensor:
        """Map ``(..., n, h d)`` to ``(..., h, n, d)``."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(-3, -2)


class Transition(nn.Module):
    """Gated feed-forward block of width ``factor * c``."""

    def __init__(self, c: int, factor: int) -> None:
        super().__init__()
        self.layernorm1 = nn.LayerNorm(c)
        self.linear_no_bias_a = linear(c, factor * c, init="relu")
        self.linear_no_bias_b = linear(c, factor * c)
        self.linear_no_bias = linear(factor * c, c, init="zeros")

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of ``(..., c)``."""
        y = self.layernorm1(x)
        hidden = functional.silu(self.linear_no_bias_a(y)) * self.linear_no_bias_b(y)
        out: Tensor = self.linear_no_bias(hidden)
        return out


class FourierEmbedding(nn.Module):
    """Random Fourier features ``cos(2π(w x + b))`` with frozen, always equal w and b."""

    w: Tensor
    b: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(42)
        self.register_buffer("w", torch.randn(256, generator=generator, device="cpu"))
        self.register_buffer("b", torch.randn(256, generator=generator, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(...)`` to ``(..., 256)``."""
        return torch.cos(2.0 * torch.pi * (x[..., None] * self.w + self.b))


def distance_bins(distance: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Return the bin of each distance: the number of edges strictly below it.

    The ``bins - 1`` edges are evenly spaced from ``low`` to ``high``; the outer bins are open.
    """
    edges = torch.linspace(low, high, bins - 1, dtype=distance.dtype, device=distance.device)
    return torch.bucketize(distance, edges)
