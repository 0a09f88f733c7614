"""Loss terms of MD-ET training, in eV and Å."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

_DISPLACEMENT: Final = 5e-3
"""Length in Bohr of the displacement that differentiates along the force error."""


def force_loss(predicted: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over atoms of the Euclidean length of the force error.

    Parameters
    ----------
    predicted, target
        ``(b, n, 3)`` eV/Å.
    mask
        ``(b, n)`` bool, or None if there is no padding.
    """
    # The tiny constant keeps the derivative finite at zero error.
    lengths = ((predicted - target).square().sum(-1) + 1e-12).sqrt()
    if mask is None:
        return lengths.mean()
    return (lengths * mask).sum() / mask.sum()


def energy_loss(predicted: Tensor, target: Tensor, atoms: Tensor) -> Tensor:
    """Mean absolute energy error per atom; energies ``(b,)`` eV, atom counts ``(b,)``."""
    return ((predicted - target).abs() / atoms).mean()


def gradient_surrogate(
    positions: Tensor,
    forces: Tensor,
    loss: Callable[[Tensor], Tensor],
    energy: Callable[[Tensor], Tensor],
) -> Tensor:
    """Make a loss of the energy gradient differentiable with first derivatives only.

    With forces f = −∂E/∂x and u = ∂L/∂f, the parameter gradient of L is

        dL/dθ = −u · ∂(∂E/∂x)/∂θ = −∂/∂θ [ E(x + δ u) − E(x − δ u) ] / 2δ + O(δ²)

    so two more energy evaluations replace the second derivative of the network, which compiled and
    fused code does not provide.

    Parameters
    ----------
    positions
        ``(b, n, 3)`` positions in the length unit of the network, Bohr.
    forces
        ``(b, n, 3)`` minus the energy gradient at ``positions``, in energy unit per Bohr.
    loss
        Maps forces to a scalar.
    energy
        Maps positions ``(2 b, n, 3)`` to energies ``(2 b,)``, differentiable in the parameters.

    Returns
    -------
    Tensor
        The loss, with the right parameter gradient attached.
    """
    leaf = forces.detach().requires_grad_()
    value = loss(leaf)
    (direction,) = torch.autograd.grad(value, leaf)
    length = direction.flatten(1).norm(dim=1).clamp(min=1e-30)
    step = (_DISPLACEMENT / length)[:, None, None] * direction
    forward, backward = energy(torch.cat([positions + step, positions - step])).chunk(2)
    slope = -(length * (forward - backward)).sum() / (2.0 * _DISPLACEMENT)
    with_gradient: Tensor = value.detach() + (slope - slope.detach())
    return with_gradient
