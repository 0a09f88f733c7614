"""Lifting: from positions, velocities and context to features of width d.

Features hold d // 3 vectors, three channels each, followed by d % 3 scalars. Weights are flat and
in the order of the public code (e3nn), so that its checkpoints can be used.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor, nn

from mlmd_calc.models.atom.config import ATOMConfig

Lifted: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Features of positions, velocities and context."""


def _channels(layout: str, kind: str) -> list[slice]:
    """Channels of all vectors (``v``) or all scalars (``s``) of a layout."""
    found, start = [], 0
    for block in layout:
        size = 3 if block == "v" else 1
        if block == kind:
            found.append(slice(start, start + size))
        start += size
    return found


def turn_vectors(features: Tensor, layout: str, frame: Tensor) -> Tensor:
    """Express the vectors among the features in other frames.

    Parameters
    ----------
    features
        ``(b, t, n, channels)``.
    layout
        ``v`` for a vector, ``s`` for a scalar, in the order of the channels.
    frame
        ``(b, 3, 3)``, axes as columns.
    """
    turned = features.clone()
    for channels in _channels(layout, "v"):
        turned[..., channels] = features[..., channels] @ frame[:, None]
    return turned


def canonical_frame(positions: Tensor, velocities: Tensor, mask: Tensor | None) -> Tensor:
    """Principal axes of molecules, with signs from their angular momenta.

    The frame turns with the molecule. It jumps where two principal moments are equal, and where
    the angular momentum is normal to an axis.

    Parameters
    ----------
    positions, velocities
        ``(b, n, 3)``.
    mask
        ``(b, n)`` bool, True for real atoms, or None.

    Returns
    -------
    Tensor
        ``(b, 3, 3)``, axes of the largest, middle and smallest extent as columns, right-handed.
    """
    arms = positions - mean_position(positions, mask)[:, None]
    if mask is not None:
        arms = arms.masked_fill(~mask[..., None], 0.0)
    # Scaling does not change the axes, so the sum need not be divided by the number of atoms.
    _, axes = torch.linalg.eigh(arms.transpose(1, 2) @ arms)
    momentum = torch.linalg.cross(arms, velocities).sum(dim=1)
    first, second = axes[..., 2], axes[..., 1]
    first = torch.where(_along(first, momentum) < 0, -first, first)
    third = torch.linalg.cross(first, second)
    flip = _along(third, momentum) < 0
    second, third = torch.where(flip, -second, second), torch.where(flip, -third, third)
    return torch.stack([first, second, third], dim=-1)


def _along(axis: Tensor, momentum: Tensor) -> Tensor:
    return (axis * momentum).sum(dim=-1, keepdim=True)


def mean_position(positions: Tensor, mask: Tensor | None) -> Tensor:
    """Mean ``(b, 3)`` of the real atoms' positions ``(b, n, 3)``."""
    if mask is None:
        return positions.mean(dim=1)
    real = mask[..., None]
    return positions.masked_fill(~real, 0.0).sum(dim=1) / real.sum(dim=1)


class EquivariantLinear(nn.Module):
    """Linear map of vectors to vectors and scalars to scalars.

    With n_v input vectors and n_s input scalars,

    * output vector w is ``1/sqrt(n_v) · sum over u of W_uw · vector u``,
    * output scalar w is ``1/sqrt(n_s) · sum over u of W_uw · scalar u``.

    Parameters
    ----------
    layout
        Input channels, ``v`` for a vector and ``s`` for a scalar.
    config
        Width of the output.
    """

    def __init__(self, layout: str, config: ATOMConfig) -> None:
        super().__init__()
        self._vectors, self._scalars = _channels(layout, "v"), _channels(layout, "s")
        widths = {"v": config.num_vectors, "s": config.num_scalars}
        self._sizes = [widths[kind] for kind in layout]
        self._layout = layout
        self.in_features = len(layout) + 2 * layout.count("v")
        self.weight = nn.Parameter(torch.randn(sum(self._sizes)))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(..., channels)`` to ``(..., d)``."""
        rows = list(zip(self._layout, self.weight.split(self._sizes), strict=True))
        mix_vectors = torch.stack([row for kind, row in rows if kind == "v"])
        mix_scalars = torch.stack([row for kind, row in rows if kind == "s"])
        vectors = torch.stack([features[..., channels] for channels in self._vectors], dim=-1)
        scalars = torch.cat([features[..., channels] for channels in self._scalars], dim=-1)
        mixed = (vectors @ (mix_vectors / math.sqrt(len(mix_vectors)))).transpose(-1, -2)
        return torch.cat(
            [mixed.flatten(-2), scalars @ (mix_scalars / math.sqrt(len(mix_scalars)))], dim=-1
        )


class TensorProduct(nn.Module):
    """Product of two sets of features, with vectors X_u, Y_v and scalars a_u, b_v.

    * scalar w: ``(sum W1_uvw X_u·Y_v / sqrt(3) + sum W4_uvw a_u b_v) / sqrt(n_v² + n_s²)``
    * vector w: ``(sum W2_uvw X_u b_v + sum W3_uvw a_u Y_v) / sqrt(2 n_v n_s)``
    """

    def __init__(self, config: ATOMConfig) -> None:
        super().__init__()
        nv, ns = config.num_vectors, config.num_scalars
        self.num_vectors = nv
        self._shapes = [(nv, nv, ns), (nv, ns, nv), (ns, nv, nv), (ns, ns, ns)]
        self.weight = nn.Parameter(torch.randn(sum(math.prod(shape) for shape in self._shapes)))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply two tensors ``(..., d)``."""
        nv = self.num_vectors
        parts = self.weight.split([math.prod(shape) for shape in self._shapes])
        w1, w2, w3, w4 = (part.view(shape) for part, shape in zip(parts, self._shapes, strict=True))
        # Vectors as (..., 3, nv), so that contracting them with weights is a matrix product, which
        # comes before the products of features: no pairs of vectors are formed.
        x, a = _vectors_and_scalars(left, nv)
        y, b = _vectors_and_scalars(right, nv)
        ns = a.shape[-1]
        xw2 = (x @ w2.flatten(1)).unflatten(-1, (ns, nv))
        yw3 = (y @ w3.transpose(0, 1).flatten(1)).unflatten(-1, (ns, nv))
        yw1 = (y @ w1.transpose(0, 1).flatten(1)).unflatten(-1, (nv, ns))
        bw4 = (b @ w4.transpose(0, 1).flatten(1)).unflatten(-1, (ns, ns))
        vectors = (b[..., None, :, None] * xw2 + a[..., None, :, None] * yw3).sum(dim=-2)
        dots = (x[..., None] * yw1).sum(dim=(-3, -2)) / math.sqrt(3.0)
        scalars = dots + (a[..., None] * bw4).sum(dim=-2)
        vectors = vectors.transpose(-1, -2).flatten(-2) / math.sqrt(2 * nv * ns)
        return torch.cat([vectors, scalars / math.sqrt(nv * nv + ns * ns)], dim=-1)


def _vectors_and_scalars(features: Tensor, num_vectors: int) -> tuple[Tensor, Tensor]:
    """Split ``(..., d)`` into vectors ``(..., 3, n_v)`` and scalars ``(..., n_s)``."""
    vectors = features[..., : 3 * num_vectors].unflatten(-1, (num_vectors, 3))
    return vectors.transpose(-1, -2), features[..., 3 * num_vectors :]


class LinearLifting(nn.Module):
    """Position, velocity and context by one linear map each, equivariant or dense."""

    def __init__(self, config: ATOMConfig) -> None:
        super().__init__()

        def linear(layout: str) -> nn.Module:
            if config.lifting_type == "non_equivariant":
                return nn.Linear(len(layout) + 2 * layout.count("v"), config.lifting_dim)
            return EquivariantLinear(layout, config)

        self.x_0_linear = linear("vs")
        self.v_0_linear = linear("vs")
        self.concat_feats_linear = linear(config.context_layout)

    def forward(self, x_0: Tensor, v_0: Tensor, context: Tensor) -> Lifted:
        """Map ``(..., 4)``, ``(..., 4)`` and context features to ``(..., d)`` each."""
        return self.x_0_linear(x_0), self.v_0_linear(v_0), self.concat_feats_linear(context)


class TensorProductLifting(nn.Module):
    """As :class:`LinearLifting`, but the context is a product with the position features."""

    def __init__(self, config: ATOMConfig) -> None:
        super().__init__()
        # Velocity and what follows it; without random walks the atomic number is the last of that.
        layout = config.context_layout[2:]
        self._without_walks = not config.tensor_product_rrwp
        self._number = -1 if config.lifting_type == "canonicalization" else 8
        if self._without_walks:
            layout = "vss"
        self.x_0_linear = EquivariantLinear("vs", config)
        self.v_0_linear = EquivariantLinear("vs", config)
        self.vz_0_linear = EquivariantLinear(layout, config)
        self.concat_feats_linear = TensorProduct(config)

    def forward(self, x_0: Tensor, v_0: Tensor, context: Tensor) -> Lifted:
        """Map ``(..., 4)``, ``(..., 4)`` and context features to ``(..., d)`` each."""
        h_x = self.x_0_linear(x_0)
        factor = context[..., 4:]
        if self._without_walks:
            number = context[..., self._number].unsqueeze(-1)
            factor = torch.cat([context[..., 4:8], number], dim=-1)
        product = self.concat_feats_linear(h_x, self.vz_0_linear(factor))
        return h_x, self.v_0_linear(v_0), product


def build_lifting(config: ATOMConfig) -> LinearLifting | TensorProductLifting:
    """Build the lifting that the configuration asks for."""
    if config.lifting_type in ("quasi_equivariant_tp", "canonicalization"):
        return TensorProductLifting(config)
    return LinearLifting(config)
