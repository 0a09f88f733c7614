"""Geometric encoder: the current frame as features of tokens and token pairs."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.atmos.atom_attention import AtomAttentionEncoder, token_values_on_atoms
from mlmd_calc.models.atmos.config import ATMOSConfig
from mlmd_calc.models.atmos.features import Features
from mlmd_calc.models.atmos.primitives import distance_bins, linear
from mlmd_calc.models.atmos.windows import AtomWindows

_TINY: Final = 1e-8
_LOCAL_SCALE: Final = 4.0
"""Å; brings coordinates within a residue to order one."""


class Encoding(NamedTuple):
    """A frame as the state transition sees it."""

    s: Tensor
    """``(b, n, c_s)`` tokens."""
    z: Tensor
    """``(b, n, n, c_z)`` token pairs."""


def unit_vector(vector: Tensor) -> Tensor:
    """Return ``vector / |vector|``, zero for a vector without length."""
    length: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return vector / length.clamp(min=_TINY)


def local_axes(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return the axes of frames with origin b, from three atoms each.

    With w1 and w2 the directions from b to a and to c, the axes are the bisector of w1 and w2, the
    direction of w2 - w1, and their cross product (AlphaFold 3, algorithm 29).

    Parameters
    ----------
    a, b, c
        ``(..., 3)``.

    Returns
    -------
    Tensor
        ``(..., 3, 3)``, the axes as columns.
    """
    w1, w2 = unit_vector(a - b), unit_vector(c - b)
    e1, e2 = unit_vector(w1 + w2), unit_vector(w2 - w1)
    return torch.stack([e1, e2, torch.linalg.cross(e1, e2)], dim=-1)


def in_local_axes(axes: Tensor, vectors: Tensor) -> Tensor:
    """Return ``axesᵀ · vectors``, the components of vectors ``(..., 3)`` along the axes."""
    return (axes * vectors[..., :, None]).sum(-2)


class TokenFrames(NamedTuple):
    """Local frames of the tokens."""

    axes: Tensor
    """``(..., n, 3, 3)``, the axes as columns."""
    origin: Tensor
    """``(..., n, 3)``."""
    mask: Tensor
    """``(..., n)`` bool, whether the token has a frame."""


def token_frames(positions: Tensor, features: Features) -> TokenFrames:
    """Build the frames of all tokens from positions ``(..., a, 3)``."""
    a, b, c = (
        torch.take_along_dim(positions, features.frame_atoms[..., k, None], dim=-2)
        for k in range(3)
    )
    return TokenFrames(local_axes(a, b, c), b, features.frame_mask)


def representative_positions(positions: Tensor, features: Features) -> Tensor:
    """Pick the representative atom of each token: ``(..., a, 3)`` to ``(..., n, 3)``."""
    return torch.take_along_dim(positions, features.representative_atom[..., None], dim=-2)


def pair_geometry(positions: Tensor, features: Features, config: ATMOSConfig) -> Tensor:
    """Describe the geometry of token pairs without reference to a laboratory frame.

    Parameters
    ----------
    positions
        ``(..., a, 3)`` Å.
    features
        Static features.
    config
        Bins of the distance histogram.

    Returns
    -------
    Tensor
        ``(..., n, n, distance_bins + 8)``: the bin of the distance of representative atoms, the
        direction from i to j in the frame of i and that from j to i in the frame of j (zero without
        a frame), and whether i and j have one.
    """
    frames = token_frames(positions, features)
    points = representative_positions(positions, features)
    difference = points[..., None, :, :] - points[..., :, None, :]
    distance = torch.linalg.vector_norm(difference, dim=-1)
    bins = distance_bins(distance, config.distance_min, config.distance_max, config.distance_bins)
    has_frame = frames.mask[..., None].to(positions.dtype)
    seen = in_local_axes(frames.axes[..., :, None, :, :], unit_vector(difference))
    seen = seen * has_frame[..., :, None, :]
    return torch.cat(
        [
            functional.one_hot(bins, config.distance_bins).to(positions.dtype),
            seen,
            seen.transpose(-2, -3),
            has_frame[..., :, None, :].expand(*distance.shape, 1),
            has_frame[..., None, :, :].expand(*distance.shape, 1),
        ],
        dim=-1,
    )


class GeometricEncoder(nn.Module):
    """Encode one frame.

    With ``coord_mode="local"`` the encoding does not change when the frame is moved or turned as a
    whole; a mirror image has another one. With ``"augment"`` only the pairs are free of the pose.
    """

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        self.config = config
        self.local = config.coord_mode == "local"
        self.pair_proj = linear(config.distance_bins + 8, config.c_z)
        self.atom_attention_encoder = AtomAttentionEncoder(
            config,
            config.c_s,
            config.encoder_atom_blocks,
            coordinates=True,
            embeddings=config.encoder_state != "none",
        )
        if self.local:
            self.local_displacement = linear(3, config.c_atompair)
            self.local_distance = linear(1, config.c_atompair)

    def forward(
        self,
        positions: Tensor,
        features: Features,
        s: Tensor | None = None,
        z: Tensor | None = None,
    ) -> Encoding:
        """Encode positions.

        Parameters
        ----------
        positions
            ``(b, a, 3)`` Å, in single or double precision whatever the weights are.
        features
            Static features.
        s, z
            Embeddings the atoms are conditioned on, unless ``encoder_state="none"``.
        """
        dtype = self.pair_proj.weight.dtype
        pairs = self.pair_proj(pair_geometry(positions, features, self.config).to(dtype))
        encoder = self.atom_attention_encoder
        if self.local:
            frames = token_frames(positions, features)
            windows = encoder.windows(features)
            r = self._local_coordinates(positions, frames, features).to(dtype)
            extra = self._current_pairs(positions, frames, features, windows)
        else:
            r = (centred(positions, features.atom_mask) / self.config.sigma_data).to(dtype)
            extra = None
        conditioning = encoder.conditioning(features, s, z, extra)
        tokens, _ = encoder(r, conditioning, encoder.atom_transformer.blocks(conditioning))
        return Encoding(tokens, pairs)

    def _local_coordinates(
        self, positions: Tensor, frames: TokenFrames, features: Features
    ) -> Tensor:
        """Coordinates of each atom in the frame of its token, zero without one."""
        axes, mask = _frames_on_atoms(frames, features)
        origin = token_values_on_atoms(frames.origin, features.atom_to_token)
        return in_local_axes(axes, positions - origin) * mask / _LOCAL_SCALE

    def _current_pairs(
        self, positions: Tensor, frames: TokenFrames, features: Features, windows: AtomWindows
    ) -> Tensor:
        """Embed displacements between atoms as seen from the token of the query atom."""
        dtype = self.pair_proj.weight.dtype
        axes, mask = _frames_on_atoms(frames, features)
        axes = windows.queries(axes.flatten(-2)).unflatten(-1, (3, 3))
        d = windows.keys(positions).unsqueeze(-3) - windows.queries(positions).unsqueeze(-2)
        inverse = 1.0 / (1.0 + d.square().sum(-1, keepdim=True))
        seen = in_local_axes(axes[..., None, :, :], d) / _LOCAL_SCALE
        seen = seen * windows.queries(mask).unsqueeze(-2)
        out: Tensor = self.local_displacement(seen.to(dtype)) + self.local_distance(
            inverse.to(dtype)
        )
        return out


def _frames_on_atoms(frames: TokenFrames, features: Features) -> tuple[Tensor, Tensor]:
    """Axes ``(..., a, 3, 3)`` and validity ``(..., a, 1)`` of the frame of each atom's token."""
    axes = token_values_on_atoms(frames.axes.flatten(-2), features.atom_to_token)
    mask = token_values_on_atoms(frames.mask[..., None], features.atom_to_token)
    return axes.unflatten(-1, (3, 3)), mask.to(axes.dtype)


def centred(positions: Tensor, mask: Tensor) -> Tensor:
    """Move the mean of the atoms ``(..., a, 3)`` of a mask ``(..., a)`` to the origin."""
    weight = mask[..., None].to(positions.dtype)
    mean = (positions * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=1.0)
    return positions - mean
