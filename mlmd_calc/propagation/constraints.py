"""Distances that an engine keeps fixed, as the steps of the jump loop see them."""

from __future__ import annotations

from typing import Protocol

from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.state import FloatArray, State


class Constraints(Protocol):
    """Fixed distances between atoms of a molecule."""

    @property
    def count(self) -> int:
        """How many."""

    def positions(self, positions: FloatArray) -> FloatArray:
        """Move atoms ``(n, 3)`` Å such that the distances are right."""

    def velocities(self, positions: FloatArray, velocities: FloatArray) -> FloatArray:
        """Take away the parts of velocities ``(n, 3)`` Å/fs that would change the distances."""


def constraints_of(forces: ForceModel | None) -> Constraints | None:
    """Constraints that go with a force model, its attribute ``constraints``; None if none do."""
    found: Constraints | None = getattr(forces, "constraints", None)
    return found


def with_constrained_velocities(state: State, forces: ForceModel | None) -> State:
    """Return a state whose velocities keep to the constraints of a force model, if it has any."""
    constraints = constraints_of(forces)
    if constraints is None:
        return state
    return state.changed(velocities=constraints.velocities(state.positions, state.velocities))


def drifted(
    positions: FloatArray,
    velocities: FloatArray,
    time_fs: float,
    constraints: Constraints | None,
) -> tuple[FloatArray, FloatArray]:
    """Move atoms with their velocities for a time, and keep to the constraints.

    Parameters
    ----------
    positions, velocities
        ``(n, 3)`` Å and Å/fs.
    time_fs
        fs.
    constraints
        None for none.

    Returns
    -------
    tuple of ndarray
        Positions, and velocities with what the constraints have done to them (RATTLE: Andersen,
        J. Comput. Phys. 52, 24 (1983)).
    """
    if constraints is None:
        return positions + time_fs * velocities, velocities
    velocities = constraints.velocities(positions, velocities)
    free = positions + time_fs * velocities
    moved = constraints.positions(free)
    return moved, constraints.velocities(moved, velocities + (moved - free) / time_fs)
