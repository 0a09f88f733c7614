"""Training losses of ATMOS, those of AlphaFold 3 (Abramson et al., Nature 630, 493, 2024).

All compare denoised structures ``(b, k, a, 3)`` of noise levels `sigma` ``(b, k)`` with the target
``(b, a, 3)``, in Å. Masks are bool, False for padding.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mlmd_calc.errors import InputError
from mlmd_calc.geometry.superposition import align
from mlmd_calc.models.atmos.config import ATMOSConfig, LossConfig
from mlmd_calc.models.atmos.features import Features
from mlmd_calc.models.atmos.geometry import representative_positions
from mlmd_calc.models.atmos.primitives import distance_bins

_LDDT_RADIUS: Final = 15.0
_LDDT_THRESHOLDS: Final = (0.5, 1.0, 2.0, 4.0)
_EPSILON: Final = 1e-6


class Prediction(NamedTuple):
    """What the training losses compare with the true next frame."""

    denoised: Tensor
    """``(b, k, a, 3)`` Å."""
    distogram: Tensor
    """``(b, n, n, distogram_bins)`` logits."""


def training_loss(
    prediction: Prediction,
    target: Tensor,
    sigma: Tensor,
    features: Features,
    config: ATMOSConfig,
    weights: LossConfig,
    bonds: Tensor | None = None,
    bond_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compare a prediction with the true next frame.

    Parameters
    ----------
    prediction
        Output of the network.
    target, sigma
        See the module.
    features
        Static features.
    config
        Configuration of the network.
    weights
        Weights of the terms.
    bonds, bond_mask
        ``(b, m, 2)`` int64 atom indices and ``(b, m)`` bool, for the bond term.

    Returns
    -------
    dict of Tensor
        Every term with a weight, and their weighted sum as "loss".

    Raises
    ------
    InputError
        If the bond term has a weight and no bonds are given.
    """
    denoised, mask = prediction.denoised, features.atom_mask
    terms = {}
    if weights.diffusion:
        per_atom = atom_weights(features, weights, denoised.dtype)
        terms["diffusion"] = diffusion_loss(
            denoised, target, sigma, per_atom, mask, config.sigma_data
        )
    if weights.distogram:
        terms["distogram"] = distogram_loss(prediction.distogram, target, features, config)
    if weights.smooth_lddt:
        terms["smooth_lddt"] = smooth_lddt_loss(denoised, target, mask)
    if weights.bond:
        if bonds is None or bond_mask is None:
            raise InputError(f"the bond term has weight {weights.bond} but no bonds were given")
        terms["bond"] = bond_loss(denoised, target, bonds, bond_mask)
    parts = [getattr(weights, name) * term for name, term in terms.items()]
    return {**terms, "loss": torch.stack(parts).sum()}


def atom_weights(features: Features, config: LossConfig, dtype: torch.dtype) -> Tensor:
    """Return the weight of each atom ``(b, a)``, zero for padding."""
    ligand = features.is_ligand.to(dtype)
    weight = config.ligand_atom * ligand + config.protein_atom * (1.0 - ligand)
    return weight * features.atom_mask


def diffusion_loss(
    denoised: Tensor,
    target: Tensor,
    sigma: Tensor,
    weights: Tensor,
    mask: Tensor,
    sigma_data: float,
) -> Tensor:
    """Weighted mean squared error of denoised coordinates after alignment.

    For each sample the target is aligned to the prediction; the squared error, divided by 3 and the
    number of atoms, has the weight ``(σ² + σ_d²) / (σ σ_d)²``.

    Parameters
    ----------
    denoised, target, sigma, mask
        See the module.
    weights
        ``(b, a)`` weights of the atoms, see :func:`atom_weights`.
    sigma_data
        Unit of the noise levels in Å.
    """
    weights = weights[:, None]
    aligned = align(target[:, None], denoised, weights)
    squared = (weights * (denoised - aligned).square().sum(-1)).sum(-1)
    factor = (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
    atoms = mask.sum(-1)[:, None] + _EPSILON
    return (factor * squared / (3.0 * atoms)).mean()


def distogram_loss(
    logits: Tensor, target: Tensor, features: Features, config: ATMOSConfig
) -> Tensor:
    """Cross-entropy of the distance bins of token pairs, the diagonal included.

    The logits are ``(b, n, n, distogram_bins)``.
    """
    points = representative_positions(target, features)
    distance = torch.linalg.vector_norm(points[:, :, None] - points[:, None], dim=-1)
    bins = distance_bins(
        distance, config.distogram_min, config.distogram_max, config.distogram_bins
    )
    entropy = functional.cross_entropy(logits.movedim(-1, 1), bins, reduction="none")
    present = torch.take_along_dim(features.atom_mask, features.representative_atom, dim=-1)
    present = present & features.token_mask
    mask = (present[:, :, None] & present[:, None]).to(entropy.dtype)
    return ((entropy * mask).sum((-1, -2)) / (mask.sum((-1, -2)) + _EPSILON)).mean()


def smooth_lddt_loss(denoised: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return one minus the smooth lDDT: agreement of distances below 15 Å."""
    true = _distances(target)[:, None]
    error = (_distances(denoised) - true).abs()
    agreement = torch.stack([torch.sigmoid(t - error) for t in _LDDT_THRESHOLDS]).mean(0)
    off_diagonal = ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    near = (true < _LDDT_RADIUS) & (mask[:, None, :, None] & mask[:, None, None, :] & off_diagonal)
    pairs = near.to(error.dtype)
    score = (pairs * agreement).sum((-1, -2)) / (pairs.sum((-1, -2)) + _EPSILON)
    return (1.0 - score).mean()


def bond_loss(denoised: Tensor, target: Tensor, bonds: Tensor, bond_mask: Tensor) -> Tensor:
    """Mean squared error of the lengths of bonds ``(b, m, 2)``, int64 indices, in Å²."""
    true = _bond_lengths(target[:, None], bonds[:, None])
    error = (_bond_lengths(denoised, bonds[:, None]) - true).square()
    mask = bond_mask[:, None].to(error.dtype)
    return ((error * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()


def _distances(x: Tensor) -> Tensor:
    out: Tensor = torch.linalg.vector_norm(x[..., :, None, :] - x[..., None, :, :], dim=-1)
    return out


def _bond_lengths(x: Tensor, bonds: Tensor) -> Tensor:
    first, second = (torch.take_along_dim(x, bonds[..., k, None], dim=-2) for k in range(2))
    out: Tensor = torch.linalg.vector_norm(first - second, dim=-1)
    return out
