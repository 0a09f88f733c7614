"""What the motion of an isolated molecule conserves, given back to jumps that do not conserve it.

Rigid motion is described by an orthonormal basis of mass-weighted velocities √m v: three
translations, and the rotations about the centre of mass from a singular value decomposition, which
leaves out the axis of a linear molecule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mlmd_calc import units
from mlmd_calc.errors import ConfigError
from mlmd_calc.options import shown
from mlmd_calc.propagation.state import FloatArray, State

_ROUNDING: Final = 1e-10
"""Å. A centre of mass that is off by less is where it should be."""

_LINEAR: Final = 0.01
"""A molecule whose radius of gyration about an axis is below this part of the largest is linear."""

_TURNS: Final = np.stack([np.cross(np.eye(3), arm).T.ravel() for arm in np.eye(3)])
"""``(3, 9)``; takes an arm r to the three velocities e × r of unit rotations about the axes e."""


def centre_of_mass(positions: FloatArray, masses: FloatArray) -> FloatArray:
    """Centre of mass ``(3,)`` of vectors ``(n, 3)``; of velocities, its velocity."""
    # Relative to an atom, so that a molecule far from the origin loses no digits.
    centre: FloatArray = positions[0] + masses @ (positions - positions[0]) / masses.sum()
    return centre


def _spin_fields(state: State) -> FloatArray:
    """Mass-weighted velocities ``(3 n, 3)`` of unit rotations about the axes."""
    arms = state.positions - centre_of_mass(state.positions, state.masses)
    weighted = np.sqrt(state.masses)[:, None] * arms
    return np.asarray((weighted @ _TURNS).reshape(-1, 3))


def angular_momentum(state: State) -> FloatArray:
    """Angular momentum ``(3,)`` about the centre of mass, amu Å²/fs."""
    weighted = np.sqrt(state.masses)[:, None] * state.velocities
    return np.asarray(state.once(_spin_fields).T @ weighted.ravel())


def _rotations(state: State) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Orthonormal rotations ``(3 n, k)``, their radii ``(k,)``, and their axes ``(k, 3)``."""
    basis, radii, axes = np.linalg.svd(state.once(_spin_fields), full_matrices=False)
    real = radii > _LINEAR * radii[0]
    return basis[:, real], radii[real], axes[real]


def rigid_basis(state: State, *, translation: bool = True, rotation: bool = True) -> FloatArray:
    """Orthonormal basis ``(3 n, k)`` of the mass-weighted velocities of rigid motion."""
    root = np.sqrt(state.masses / state.masses.sum())
    # np.kron takes longer than the decomposition.
    parts = [(root[:, None, None] * np.eye(3)).reshape(-1, 3)] if translation else []
    parts += [state.once(_rotations)[0]] if rotation else []
    return np.concatenate(parts, axis=1) if parts else np.zeros((3 * len(state), 0))


def rigid_velocities(state: State, basis: FloatArray) -> FloatArray:
    """Part ``(n, 3)`` Å/fs of the velocities that lies in a basis of :func:`rigid_basis`."""
    root = np.sqrt(state.masses)[:, None]
    weighted = basis @ (basis.T @ (root * state.velocities).ravel())
    rigid: FloatArray = weighted.reshape(-1, 3) / root
    return rigid


@dataclass(frozen=True)
class Corrections:
    """Which corrections are made to a jump.

    Attributes
    ----------
    centre_of_mass
        The centre of mass goes on with its velocity.
    momentum
        The total momentum is that before the jump.
    angular_momentum
        So is the angular momentum about the centre of mass, except about the axis of a linear
        molecule.
    random_rotation
        The propagator sees the molecule centred and in a random orientation, new for every jump, so
        that errors of orientation average out.
    rescale_energy
        Internal velocities are scaled such that a jump conserves the total energy: at constant
        energy that of the start of the run, with a thermostat that before the jump, so that errors
        of jumps do not heat. A jump whose potential energy is too high for that is rejected, with a
        thermostat taken as it is. Costs an energy per jump. None: with a thermostat, where the
        guard asks for energies anyway.
    fix_centre
        The centre of mass is kept at rest, also by the thermostat.
    balance_elements
        Each element keeps its share of the kinetic energy by a friction of its own, which adapts to
        what jumps take from it or give it, see :class:`~.balance.Balance`; with "langevin" only.
        None: where jumps do not conserve energy by themselves.
    """

    centre_of_mass: bool = True
    momentum: bool = True
    angular_momentum: bool = True
    random_rotation: bool = True
    rescale_energy: bool | None = None
    fix_centre: bool = False
    balance_elements: bool | None = None

    @classmethod
    def none(cls) -> Corrections:
        """No corrections, as for atoms in an external field."""
        return cls(False, False, False, False, False, balance_elements=False)

    @classmethod
    def of(cls, corrections: Corrections | None, *, rescale_energy: bool) -> Corrections:
        """Return the corrections that the options of an engine ask for; None: the usual ones."""
        chosen = cls() if corrections is None else corrections
        if not isinstance(chosen, cls):
            raise ConfigError(f"corrections={shown(chosen)}; it must be a Corrections or None")
        return replace(chosen, rescale_energy=rescale_energy or chosen.rescale_energy)

    def conserved_basis(self, state: State) -> FloatArray:
        """Basis of the rigid motion that neither jump nor energy rescaling may change."""
        translation = self.momentum or self.fix_centre
        return rigid_basis(state, translation=translation, rotation=self.angular_momentum)

    def apply(self, before: State, after: State) -> State:
        """Correct positions and velocities after a jump; the energy comes later."""
        masses, x, v = before.masses, after.positions, np.array(after.velocities)
        drift = centre_of_mass(before.velocities, masses)
        if self.centre_of_mass or self.fix_centre:
            way = (after.time - before.time) * (0.0 if self.fix_centre else 1.0) * drift
            shift = centre_of_mass(before.positions, masses) + way - centre_of_mass(x, masses)
            # Positions that are right stay as they are, so that what is known at them does too.
            if np.abs(shift).max() > _ROUNDING:
                after = after.moved_to(x + shift)
        if self.momentum:
            v += drift - centre_of_mass(v, masses)
        after = after.changed(velocities=v)
        if self.angular_momentum:
            after = self._keep_angular_momentum(before, after)
        return self.stop_centre(after)

    def _keep_angular_momentum(self, before: State, after: State) -> State:
        basis, radii, axes = after.once(_rotations)
        missing = angular_momentum(before) - angular_momentum(after)
        kick = (basis @ ((axes @ missing) / radii)).reshape(-1, 3)
        return after.changed(velocities=after.velocities + kick / np.sqrt(after.masses)[:, None])

    def stop_centre(self, state: State) -> State:
        """Take away the velocity of the centre of mass if it is to be kept at rest."""
        if not self.fix_centre:
            return state
        drift = centre_of_mass(state.velocities, state.masses)
        return state.changed(velocities=state.velocities - drift)

    def rescale(self, state: State, total_energy: float) -> State | None:
        """Scale internal velocities to a total energy in eV; None if that is impossible.

        The energy of the state must be known.
        """
        assert state.energy is not None
        rigid = rigid_velocities(state, self.conserved_basis(state))
        internal = state.changed(velocities=state.velocities - rigid).kinetic_energy
        overall = state.changed(velocities=rigid).kinetic_energy
        available = total_energy - state.energy - overall
        if not (available >= 0.0 and internal > 0.0):
            return None
        factor = np.sqrt(available / internal)
        return state.changed(velocities=rigid + factor * (state.velocities - rigid))


def thermal_speed(masses: FloatArray, temperature_K: float) -> FloatArray:
    """Width ``(n,)`` in Å/fs of each component of Maxwell-Boltzmann velocities."""
    return np.asarray(np.sqrt(units.KB * temperature_K / masses) * units.FS)
