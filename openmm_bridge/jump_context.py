"""The Context that jumps move: found, checked, and as force model of the jump loop."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.potential import Evaluation, Potential, Structure
from mlmd_calc.potential.options import serve
from mlmd_calc.propagation import ForceModel
from openmm_bridge.computation import FORCE_UNIT
from openmm_bridge.orientations import CALLS
from openmm_bridge.region import Region
from openmm_bridge.stored import description_of

VELOCITY_UNIT: Final = units.NM / units.FS_PER_PS
"""Å/fs per nm/ps."""

_ALL_GROUPS: Final = 0xFFFFFFFF
"""Bit mask of all force groups."""

_TOLERANCE: Final = 1e-8
"""Relative error of constrained distances."""


class Shown(NamedTuple):
    """What a Context has: positions and box nm, velocities nm/ps, time ps, and parameters."""

    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    box: NDArray[np.float64]
    time: float
    parameters: dict[str, float]

    @classmethod
    def of(cls, context: Any) -> Shown:
        """Read a Context."""
        state = context.getState(getPositions=True, getVelocities=True, getParameters=True)
        return cls(
            positions=state.getPositions(asNumpy=True)._value,
            velocities=state.getVelocities(asNumpy=True)._value,
            box=state.getPeriodicBoxVectors(asNumpy=True)._value,
            time=state.getTime()._value,
            # How many orientations were drawn says nothing of the forces.
            parameters={
                name: value for name, value in state.getParameters().items() if CALLS not in name
            },
        )

    def same_forces(self, other: Shown) -> bool:
        """Tell whether nothing has changed that forces depend on."""
        return (
            np.array_equal(self.positions, other.positions) and self.parameters == other.parameters
        )


class ContextForces:
    """The forces of a Context as force model of the jump loop.

    Evaluating moves the particles of the Context; velocities stay.

    Parameters
    ----------
    context
        Context or a weak proxy of it.
    groups
        Force groups as a bit mask; all of them if none is given.
    potential
        Potential whose energies and forces these are, if they are those of one.
    """

    has_energy = True

    def __init__(
        self, context: Any, groups: int = _ALL_GROUPS, potential: ForceModel | None = None
    ) -> None:
        self._context = context
        self.groups = groups
        self.potential = potential

    @property
    def constraints(self) -> ContextConstraints | None:
        """Constraints of the System; None if it has none."""
        count = self._context.getSystem().getNumConstraints()
        return ContextConstraints(self._context, count) if count else None

    def evaluate(
        self, structures: Sequence[Structure], properties: Sequence[str] = ("energy", "forces")
    ) -> list[Evaluation]:
        """Evaluate the System at other positions.

        Raises
        ------
        PredictionError
            If OpenMM cannot.
        """
        return [self._evaluate(structure, properties) for structure in structures]

    def _evaluate(self, structure: Structure, properties: Sequence[str]) -> Evaluation:
        energy, forces = (name in properties for name in ("energy", "forces"))
        try:
            self._context.setPositions(structure.positions / units.NM)
            state = self._context.getState(getEnergy=energy, getForces=forces, groups=self.groups)
        except openmm.OpenMMException as error:
            raise PredictionError(
                f"the forces of the System cannot be evaluated: {error}"
            ) from error
        return Evaluation(
            state.getPotentialEnergy()._value * units.KJ_PER_MOL if energy else None,
            state.getForces(asNumpy=True)._value / FORCE_UNIT if forces else None,
        )


class ContextConstraints:
    """The constraints of a Context, see :class:`mlmd_calc.propagation.constraints.Constraints`.

    Applying them moves the particles of the Context.

    Parameters
    ----------
    context
        Context or a weak proxy of it.
    count
        Number of constraints.
    """

    def __init__(self, context: Any, count: int) -> None:
        self._context = context
        self.count = count

    def positions(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move atoms ``(n, 3)`` Å such that the distances are right.

        Raises
        ------
        PredictionError
            If OpenMM cannot.
        """
        self._context.setPositions(positions / units.NM)
        self._apply(self._context.applyConstraints)
        found = self._context.getState(getPositions=True).getPositions(asNumpy=True)
        return np.asarray(found._value * units.NM)

    def velocities(
        self, positions: NDArray[np.float64], velocities: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Take away what of velocities ``(n, 3)`` Å/fs would change the distances.

        Raises
        ------
        PredictionError
            If OpenMM cannot.
        """
        self._context.setPositions(positions / units.NM)
        self._context.setVelocities(velocities / VELOCITY_UNIT)
        self._apply(self._context.applyVelocityConstraints)
        found = self._context.getState(getVelocities=True).getVelocities(asNumpy=True)
        return np.asarray(found._value * VELOCITY_UNIT)

    def _apply(self, constrain: Callable[[float], None]) -> None:
        try:
            constrain(_TOLERANCE)
        except openmm.OpenMMException as error:
            raise PredictionError(f"the constraints cannot be satisfied: {error}") from error


def integrated_groups(integrator: openmm.Integrator) -> int:
    """Return the force groups that an integrator looks at, as a bit mask."""
    return int(integrator.getIntegrationForceGroups()) & _ALL_GROUPS


def acting_forces(system: openmm.System, groups: int) -> list[openmm.Force]:
    """Find the forces of some groups, a bit mask, that move particles."""
    return [
        force
        for force in system.getForces()
        if groups >> force.getForceGroup() & 1 and not isinstance(force, openmm.CMMotionRemover)
    ]


def values_in(force: openmm.Force) -> str:
    """Return what ``updateParametersInContext`` of a force changes, which no Context tells."""
    # What is inside of these two cannot be changed, and may be a network of many megabytes.
    if isinstance(force, openmm.CustomCVForce):
        tables = map(force.getTabulatedFunction, range(force.getNumTabulatedFunctions()))
        return "".join(map(openmm.XmlSerializer.serialize, tables))
    known = hasattr(force, "updateParametersInContext") and not isinstance(force, openmm.ATMForce)
    return openmm.XmlSerializer.serialize(force) if known else ""


def has_forces_of(force: openmm.Force, potential: ForceModel | None, molecule: Structure) -> bool:
    """Tell whether a force gives what a potential would give for a whole molecule.

    A force whose model exists in memory only does not say which it is.
    """
    found = description_of(force)
    if found is None or not found["sha256"] or not isinstance(potential, Potential):
        return False
    region = Region.from_dict(found["region"])
    return (
        found["sha256"] == potential.model.sha256
        and serve(found["options"], potential.options)
        and not region.is_subset
        and np.array_equal(region.numbers, molecule.numbers)
        and (region.charge, region.multiplicity) == (molecule.charge, molecule.multiplicity)
    )


def context_of(integrator: openmm.Integrator) -> Any:
    """Find the Context of an integrator, which OpenMM does not tell it."""
    # `type`, because `isinstance` would run code of objects that have nothing to do with this.
    contexts = [
        found
        for found in gc.get_objects()
        if issubclass(type(found), openmm.Context) and found.getIntegrator() is integrator
    ]
    if len(contexts) != 1:
        raise ConfigError(
            f"the integrator belongs to {len(contexts)} Contexts; make one openmm.app.Simulation "
            "or openmm.Context with it, and keep that"
        )
    return contexts[0]


def check_jump_system(system: openmm.System, n_atoms: int, *, constrained: bool) -> None:
    """Refuse a System that jumps of one whole isolated molecule cannot handle.

    Parameters
    ----------
    system, n_atoms
        System, and the number of atoms in the topology.
    constrained
        Whether jumps can keep to constraints.
    """
    n_particles = system.getNumParticles()
    if n_particles != n_atoms:
        raise InputError(
            f"the System has {n_particles} particles, but the topology has {n_atoms} atoms; jumps "
            "move all of a System, so make both from the same topology. A solute cannot jump while "
            "the solvent stands still"
        )
    if system.usesPeriodicBoundaryConditions():
        raise InputError(
            "the System is periodic, but propagators know isolated molecules only; use an implicit "
            "solvent (implicit/obc2.xml) in place of explicit water, and take away the box, "
            "periodic forces and barostats"
        )
    if system.getNumConstraints() and not constrained:
        raise InputError(
            f"the System has {system.getNumConstraints()} constraints, which a jump would break; "
            "create it with constraints=None and rigidWater=False"
        )
    for i in range(n_particles):
        if system.isVirtualSite(i):
            raise InputError(f"particle {i} is a virtual site; propagators know atoms only")
        if system.getParticleMass(i)._value <= 0.0:
            raise InputError(
                f"particle {i} has no mass and could not move, but a jump moves all atoms; give it "
                "its mass"
            )
    if any(isinstance(force, openmm.AndersenThermostat) for force in system.getForces()):
        raise InputError(
            "the System has an AndersenThermostat, which would act besides the integrator; remove "
            "it and use JumpNVTIntegrator"
        )
