"""What makes a network a jump of an integrator: physical units, horizon, ballistic motion.

Inside the network the unit of a velocity is the thermal speed of its element,
``s = sqrt(k_B T/m)``, and the unit of time is τ, the option ``time_scale``. With the dimensionless
read-outs f and g of the network, the jump to time t is

    x(t) = x + v t + s t φ(t) f,    v(t) = v + s φ(t) g,    φ(t) = t / (t + τ)

The changes vanish at t = 0 like those a force makes, with t² and t, and for long times they are in
proportion to thermal motion. With the option ``exact_limits`` they begin with the acceleration a,

    x(t) = x + v t + ½ a t² ψ(t) + s t φ(t)² f,    v(t) = v + a t ψ(t) + s φ(t)² g

with ψ(t) = 1 / (1 + t²/τ²), so that what is learnt vanishes with t³ and t², and a stiff bond, which
answers to a force for a time of about τ only, is not thrown far. With the option ``spring_steps``
the motion of learnt springs (:mod:`.springs`) takes the place of the terms without f and g.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple, cast

import ase.data
import torch
from torch import Tensor, nn

from mlmd_calc import units
from mlmd_calc.errors import InputError
from mlmd_calc.models.atom.config import IntegratorConfig
from mlmd_calc.models.atom.springs import Springs, follow

NUM_ELEMENTS: Final = len(ase.data.atomic_masses)
"""Rows of tables of elements; row 0 is for padding."""

_NUM_PERIODS: Final = 8

_REFERENCE_MASS: Final = 12.0
"""Mass in amu whose thermal speed is the unit of velocities that are compared with each other."""


class MolecularState(NamedTuple):
    """State of a batch of molecules at t = 0.

    Attributes
    ----------
    positions, velocities
        ``(b, n, 3)`` Å and Å/fs.
    numbers
        ``(b, n)`` int64 atomic numbers.
    mask
        ``(b, n)`` bool, True for real atoms.
    accelerations
        ``(b, n, 3)`` Å/fs², or None.
    """

    positions: Tensor
    velocities: Tensor
    numbers: Tensor
    mask: Tensor
    accelerations: Tensor | None

    def check(self, options: IntegratorConfig, times: Tensor) -> None:
        """Refuse what the network cannot use.

        Raises
        ------
        InputError
            If shapes do not fit together, a real atom is of no element, the accelerations are
            missing or superfluous, or a time is negative or beyond the longest horizon.
        """
        b, n = self.numbers.shape
        for name in ("positions", "velocities", "accelerations"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != (b, n, 3):
                raise InputError(f"{name} has shape {tuple(tensor.shape)}; it must be {(b, n, 3)}")
        if times.ndim != 2 or len(times) != b:
            raise InputError(
                f"times has shape {tuple(times.shape)}; it must be ({b}, number of times)"
            )
        if (self.accelerations is None) == options.accelerations:
            raise InputError(
                f"accelerations are {'missing' if options.accelerations else 'given'}, but this "
                f"network has accelerations={options.accelerations}"
            )
        if not self.mask.any(dim=1).all():
            raise InputError("mask leaves a molecule without atoms")
        real = self.numbers[self.mask]
        if ((real < 1) | (real >= NUM_ELEMENTS)).any():
            raise InputError(f"atomic numbers of real atoms must be 1 to {NUM_ELEMENTS - 1}")
        if not ((times >= 0.0) & (times <= options.max_horizon)).all():
            raise InputError(
                f"times from {float(times.min()):g} to {float(times.max()):g} fs; this network was "
                f"made for 0 to max_horizon={options.max_horizon:g} fs"
            )


def check_kind(name: str, tensor: Tensor, kind: torch.dtype) -> None:
    """Refuse a tensor of another type.

    Raises
    ------
    InputError
        If the tensor has another type.
    """
    if tensor.dtype != kind:
        raise InputError(f"{name} has type {tensor.dtype}; it must be {kind}")


class HorizonEmbedding(nn.Module):
    """Features ``(b, t, d)`` of times: logarithm and Fourier features through two layers.

    The periods go in equal ratios from ``time_scale`` to ``max_horizon``.
    """

    def __init__(self, options: IntegratorConfig) -> None:
        super().__init__()
        width = options.lifting_dim
        self.time_scale = options.time_scale
        self.ratio = options.max_horizon / options.time_scale
        self.layers = nn.Sequential(
            nn.Linear(1 + 2 * _NUM_PERIODS, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, times: Tensor) -> Tensor:
        """Embed times ``(b, t)`` in fs."""
        steps = torch.linspace(0.0, 1.0, _NUM_PERIODS, dtype=times.dtype, device=times.device)
        scaled = times[..., None] / self.time_scale
        phase = 2.0 * math.pi * scaled / self.ratio**steps
        features = torch.cat([scaled.log1p(), phase.sin(), phase.cos()], dim=-1)
        weight = cast(nn.Linear, self.layers[0]).weight
        embedded: Tensor = self.layers(features.to(weight.dtype))
        return embedded


class PhysicalUnits(nn.Module):
    """From a state in Å and fs to the network's inputs, and from its read-outs to a later state."""

    masses: Tensor

    def __init__(self, options: IntegratorConfig) -> None:
        super().__init__()
        self.energy = units.KB * options.temperature
        self.time_scale = options.time_scale
        self.exact_limits = options.exact_limits
        self.spring_steps = options.spring_steps
        self.register_buffer("masses", torch.tensor(ase.data.atomic_masses.tolist()))

    def _masses(self, state: MolecularState) -> Tensor:
        return self.masses.to(state.positions.dtype)[state.numbers][..., None]

    def _thermal_speed(self, state: MolecularState) -> Tensor:
        return torch.sqrt(self.energy / self._masses(state)) * units.FS

    def _centred(self, state: MolecularState, vectors: Tensor) -> Tensor:
        """Vectors ``(b, n, 3)`` relative to the centre of mass, zero for padding."""
        padding = ~state.mask[..., None]
        weight = self._masses(state).masked_fill(padding, 0.0)
        vectors = vectors.masked_fill(padding, 0.0)
        centre = (weight * vectors).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
        return (vectors - centre).masked_fill(padding, 0.0)

    def inputs(self, state: MolecularState) -> tuple[Tensor, Tensor]:
        """Positions ``(b, n, 3)`` and motions ``(b, n, m, 3)``, in one unit for all elements."""
        speed = math.sqrt(self.energy / _REFERENCE_MASS) * units.FS
        motions = [self._centred(state, state.velocities) / speed]
        if state.accelerations is not None:
            scaled = state.accelerations * self.time_scale / speed
            motions.append(scaled.masked_fill(~state.mask[..., None], 0.0))
        return self._centred(state, state.positions), torch.stack(motions, dim=2)

    def _springs(
        self, state: MolecularState, times: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Positions and velocities ``(b, t, n, 3)`` at the end of the motion of springs."""
        dtype = coefficients.dtype
        real = state.mask[:, :, None] & state.mask[:, None, :]
        real = real & ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        x = state.positions.masked_fill(~state.mask[..., None], 0.0)
        vectors = ((x[:, None] - x[:, :, None]) * real[..., None]).to(dtype)
        r = torch.where(real, vectors.square().sum(dim=-1), 1.0).sqrt()
        springs = Springs.from_coefficients(coefficients, state.numbers, r, real / r)
        assert state.accelerations is not None
        v, a = (
            w.masked_fill(~state.mask[..., None], 0.0).to(dtype)
            for w in (state.velocities, state.accelerations)
        )
        masses = self._masses(state)[..., 0].masked_fill(~state.mask, 1.0).to(dtype)
        way, v = follow(springs, vectors, v, a, masses, times.to(dtype), self.spring_steps)
        return state.positions[:, None] + way, v.to(state.positions)

    def advance(
        self,
        state: MolecularState,
        times: Tensor,
        f: Tensor,
        g: Tensor,
        springs: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Positions and velocities ``(b, t, n, 3)`` at the times, in the precision of the state.

        Parameters
        ----------
        state
            State at t = 0.
        times
            ``(b, t)`` fs.
        f, g
            ``(b, t, n, 3)`` read-outs for the positions and for the velocities.
        springs
            ``(b, t, n, n, 4)`` read-outs for springs, with the option ``spring_steps``.
        """
        speed = self._thermal_speed(state)[:, None]
        time = times.to(speed.dtype)[:, :, None, None]
        growth = time / (time + self.time_scale)
        v = state.velocities[:, None]
        x = state.positions[:, None] + v * time
        if springs is not None:
            x, v = self._springs(state, times, springs)
            f, g = growth * f, growth * g
        elif self.exact_limits:
            assert state.accelerations is not None
            gain = state.accelerations[:, None] * time / (1.0 + (time / self.time_scale) ** 2)
            x, v = x + 0.5 * time * gain, v + gain
            f, g = growth * f, growth * g
        padding = ~state.mask[:, None, :, None]
        return {
            "pos": (x + time * growth * (speed * f)).masked_fill(padding, 0.0),
            "vel": (v + growth * (speed * g)).masked_fill(padding, 0.0),
        }
