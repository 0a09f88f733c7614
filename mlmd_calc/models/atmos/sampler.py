"""Noise of the diffusion decoder: levels, training noise, and the sampler.

Karras et al. (NeurIPS 2022) with the settings of AlphaFold 3 (Abramson et al., Nature 630, 493,
2024, algorithms 18 and 19). All random numbers come from a generator that the caller owns; they are
drawn in double precision on its device, so that precision and device of the network do not change
them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mlmd_calc.models.atmos.config import ATMOSConfig, SamplerConfig
from mlmd_calc.models.atmos.geometry import centred

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Noisy coordinates ``(b, k, a, 3)`` and noise levels ``(b, k)`` to denoised coordinates."""

Steer: TypeAlias = Callable[[Tensor, float], Tensor]
"""Denoised coordinates ``(b, k, a, 3)`` and the noise level in Å to those that are wanted."""


def noise_levels(sampler: SamplerConfig, sigma_data: float) -> list[float]:
    """Return the ``steps + 1`` noise levels of a sampler in Å, from the largest to zero."""
    high, low = sampler.s_max ** (1.0 / sampler.rho), sampler.s_min ** (1.0 / sampler.rho)
    fractions = (step / sampler.steps for step in range(sampler.steps))
    levels = [sigma_data * (high + f * (low - high)) ** sampler.rho for f in fractions]
    return [*levels, 0.0]


class Pose(NamedTuple):
    """Rotation and translation of a structure."""

    rotation: Tensor
    """``(..., 3, 3)`` matrices that act on column vectors."""
    translation: Tensor
    """``(..., 3)`` Å."""

    def apply(self, positions: Tensor, mask: Tensor) -> Tensor:
        """Centre ``(..., a, 3)`` on the atoms of the mask ``(..., a)``, turn and move it."""
        turned = torch.matmul(centred(positions, mask), self.rotation.transpose(-1, -2))
        return turned + self.translation[..., None, :]


class StepNoise(NamedTuple):
    """Random numbers of one step of the sampler."""

    pose: Pose
    noise: Tensor
    """``(b, k, a, 3)`` standard normal."""


def standard_normal(
    shape: tuple[int, ...], generators: Sequence[torch.Generator], like: Tensor
) -> Tensor:
    """Draw numbers of this shape from every generator and join them along the first axis."""
    drawn = [
        torch.randn(shape, generator=own, device=own.device, dtype=torch.float64)
        for own in generators
    ]
    return torch.cat(drawn).to(like)


def random_pose(
    shape: tuple[int, ...], translation: float, generators: Sequence[torch.Generator], like: Tensor
) -> Pose:
    """Draw uniform rotations and normal translations.

    Parameters
    ----------
    shape
        Leading axes of what is drawn from each generator.
    translation
        Standard deviation of each component in Å.
    generators
        Sources of randomness; their poses are joined along the first axis.
    like
        Tensor whose device and dtype the result has.
    """
    # A normalised Gaussian 4-vector is a uniform quaternion (w, v); its rotation is
    # (2 w² - 1) I + 2 v vᵀ + 2 w [v]×.
    quaternion = standard_normal((*shape, 4), generators, like)
    quaternion = quaternion / torch.linalg.vector_norm(quaternion, dim=-1, keepdim=True)
    w, v = quaternion[..., :1, None], quaternion[..., 1:]
    identity = torch.eye(3, dtype=like.dtype, device=like.device)
    full = (*v.shape, 3)
    cross = torch.linalg.cross(identity.expand(full), v[..., None, :].expand(full))
    rotation = (
        (2.0 * w.square() - 1.0) * identity
        + 2.0 * v[..., :, None] * v[..., None, :]
        + 2.0 * w * cross
    )
    return Pose(rotation, translation * standard_normal((*shape, 3), generators, like))


def random_steps(
    shape: tuple[int, ...], translation: float, generators: Sequence[torch.Generator], like: Tensor
) -> Iterator[StepNoise]:
    """Draw the random numbers of one step after the other; see :func:`random_pose`.

    The shape is that of the coordinates ``(b, k, a, 3)`` that belong to each generator.
    """
    while True:
        pose = random_pose(shape[:-2], translation, generators, like)
        yield StepNoise(pose, standard_normal(shape, generators, like))


def run_sampler(
    denoise: Denoiser,
    start: Tensor,
    draws: Iterable[StepNoise],
    mask: Tensor,
    sampler: SamplerConfig,
    sigma_data: float,
    steer: Steer | None = None,
) -> Tensor:
    """Turn noise into structures.

    Each step puts the structure into a random pose, adds noise if the configuration asks for it,
    and moves along the direction to the denoised structure.

    Parameters
    ----------
    denoise
        Denoiser.
    start
        ``(b, k, a, 3)`` standard normal numbers.
    draws
        Random numbers of each step.
    mask
        ``(b, a)`` bool, False for padding.
    sampler
        Noise levels and step rule; without added noise (``gamma_0=0``) this is the probability-flow
        ODE, else the SDE.
    sigma_data
        Unit of the noise levels in Å.
    steer
        What is done to every denoised structure before the step towards it; None for nothing.

    Returns
    -------
    Tensor
        ``(b, k, a, 3)`` Å in an arbitrary pose; padded atoms at the origin.
    """
    levels = noise_levels(sampler, sigma_data)
    atoms = mask[:, None]
    x = levels[0] * start
    source = iter(draws)
    for before, after in itertools.pairwise(levels):
        draw = next(source)
        raised = before * (1.0 + (sampler.gamma_0 if after > sampler.gamma_min else 0.0))
        x = draw.pose.apply(x, atoms)
        x = x + sampler.noise_scale * math.sqrt(raised**2 - before**2) * draw.noise
        denoised = denoise(x, x.new_full(x.shape[:2], raised))
        if steer is not None:
            denoised = steer(denoised, raised)
        x = x + sampler.step_scale * (after - raised) * (x - denoised) / raised
    return x * atoms[..., None]


def training_noise(
    target: Tensor, mask: Tensor, samples: int, config: ATMOSConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Make noisy copies of a frame to train the denoiser on.

    Parameters
    ----------
    target
        ``(b, a, 3)`` Å.
    mask
        ``(b, a)`` bool, False for padding.
    samples
        Copies k per frame, each in its own random pose and with its own noise level
        ``sigma_data * exp(noise_mean + noise_std * n)``.
    config
        Distribution of poses and levels.
    generator
        Source of randomness.

    Returns
    -------
    Tensor
        ``(b, k, a, 3)`` noisy coordinates in Å.
    Tensor
        ``(b, k)`` noise levels in Å.
    """
    shape = (len(target), samples)
    pose = random_pose(shape, config.pose_translation, [generator], target)
    normal = standard_normal(shape, [generator], target)
    sigma = config.sigma_data * torch.exp(config.noise_mean + config.noise_std * normal)
    clean = pose.apply(target[:, None], mask[:, None])
    noise = standard_normal((*shape, *target.shape[1:]), [generator], target)
    return clean + sigma[..., None, None] * noise, sigma
