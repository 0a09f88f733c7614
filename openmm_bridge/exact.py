"""The exact canonical ensemble of one System, with trajectories of another as proposals."""

from __future__ import annotations

import os
import weakref
from typing import Any, Final

import ase
import numpy as np
import openmm
from openmm import unit

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.md.exact import ExactNVT
from mlmd_calc.potential import Structure
from openmm_bridge.jump_context import (
    VELOCITY_UNIT,
    ContextForces,
    Shown,
    context_of,
    integrated_groups,
    values_in,
)
from openmm_bridge.python_steps import PythonSteps, number_in

_REPEATED: Final = 1e-4
"""Relative change of forces at equal positions that rounding explains, in single precision too."""

_SAME_PRECISION: Final = ("Precision", "DeviceIndex")


class ExactNVTIntegrator(PythonSteps):
    """Canonical ensemble of the System of the Context, with trajectories of another System.

    Takes the place of OpenMM's Langevin integrators: ``Simulation.step``, reporters and step count
    work as usual. Each step follows a trajectory of the proposal, for instance a learned force
    field, and accepts or rejects it by the energy of the System that the Context was made with, for
    instance a classical one, or the other way round. Averages over steps, rejected ones included,
    are those of the System whatever the proposal; see :class:`mlmd_calc.md.ExactNVT`, which does
    the steps. There is no physical time: that of the Context counts the time of all trajectories.

    What OpenMM does to a Context besides integrating is left out; momenta are refreshed in any
    case, so that a ``CMMotionRemover`` has nothing to do.

    `step` is overridden in Python: the class is lost where OpenMM makes a copy in C++, as in XML.
    Such a copy makes all positions NaN in its first step. A ``CompoundIntegrator`` is refused.

    Parameters
    ----------
    proposal
        System that makes the trajectories, with the particles of the other in the same order. Of
        its properties only the forces count. It is evaluated on the platform of the Context.
    temperature
        A Quantity or K.
    frictionCoeff
        How fast momenta are forgotten between trajectories, a Quantity or 1/ps; ``math.inf`` draws
        all anew.
    stepSize
        Time step of the trajectories with which the warm-up begins, a Quantity or ps.
    trajectorySteps
        Time steps of a trajectory.
    warmup
        Steps at the beginning in which the time step is adapted such that four of five trajectories
        are accepted. They are no samples. 0 keeps the time step.
    rng
        Source of randomness; None draws a seed from the system.

    Raises
    ------
    ConfigError
        At the first step: if an option has a value that is not allowed, forces depend on chance, or
        there is no Context or more than one.
    InputError
        At the first step: if one of the Systems has constraints, virtual sites, particles without
        mass, a barostat or a thermostat, or they have different numbers of particles.

    Examples
    --------
    >>> from openmm import app, unit
    >>> from openmm_bridge import ExactNVTIntegrator, create_force
    >>> pdb = app.PDBFile("ethanol.pdb")  # doctest: +SKIP
    >>> options = 300 * unit.kelvin, 20 / unit.picosecond, 0.5 * unit.femtosecond
    >>> integrator = ExactNVTIntegrator(learned, *options)  # doctest: +SKIP
    >>> simulation = app.Simulation(pdb.topology, classical, integrator)  # doctest: +SKIP
    """

    def __init__(
        self,
        proposal: openmm.System,
        temperature: Any,
        frictionCoeff: Any,
        stepSize: Any,
        *,
        trajectorySteps: int = 80,
        warmup: int = 200,
        rng: np.random.Generator | None = None,
    ) -> None:
        step_ps = number_in(stepSize, unit.picosecond)
        super().__init__(step_ps, update=False, rng=rng)
        self._system = proposal
        self._timestep = step_ps * units.PS
        self._options: dict[str, Any] = {
            "temperature_K": number_in(temperature, unit.kelvin),
            "friction": number_in(frictionCoeff, unit.picosecond**-1) / units.PS,
            "trajectory_steps": trajectorySteps,
            "warmup": warmup,
        }
        self._sampler: ExactNVT | None = None
        self._context: Any = None
        self._target: ContextForces
        self._proposing: openmm.Context
        self._shown: Shown
        self._last_values: tuple[int, list[str]]

    @property
    def _begun(self) -> bool:
        """Whether the run has begun."""
        return self._sampler is not None

    @property
    def sampler(self) -> ExactNVT:
        """What does the steps, with `samples` and `acceptance`; made when it is first needed."""
        if self._sampler is None:
            self._sampler = self._make()
        return self._sampler

    def step(self, steps: int) -> None:
        """Propose a number of trajectories.

        Raises
        ------
        PredictionError
            If the System cannot be evaluated where it is.
        """
        sampler = self.sampler
        for _ in range(steps):
            self._look()
            try:
                sampler.run(1)
            finally:
                # Evaluating has moved the particles; after an error they are where they were.
                self._show()
            self.count_step()
            self._show_time()

    def setStepSize(self, size: Any) -> None:  # noqa: N802
        """Refuse to change the time step, which the warm-up has found."""
        raise ConfigError(f"stepSize={size}: it cannot be changed; make a new ExactNVTIntegrator")

    def saveRestart(self, path: str | os.PathLike[str]) -> None:  # noqa: N802
        """Write a restart file, replacing an older one in one go.

        It holds everything that decides how the run goes on, which OpenMM's checkpoints do not.
        """
        sampler = self.sampler
        self._look()
        sampler.save_restart(path)

    def loadRestart(self, path: str | os.PathLike[str]) -> None:  # noqa: N802
        """Go on from a restart file, to the last bit on platforms of double precision.

        Everything must be set up as in the interrupted run, with positions in the Context, for
        which any will do. Time and step count of the Context are set too.

        Raises
        ------
        ModelFileError
            If it is missing or damaged, or belongs to a run with other settings or another System.
        """
        self._sampler = self._make(restart=path)
        self._show()
        self._show_time()
        self._context.setStepCount(self._sampler.nsteps)

    def _make(self, **options: Any) -> ExactNVT:
        """Begin with the Context as it is."""
        context = context_of(self)
        system = context.getSystem()
        for which, checked in (("System", system), ("proposal", self._system)):
            _check(which, checked)
        count = system.getNumParticles()
        if self._system.getNumParticles() != count:
            raise InputError(
                f"the proposal has {self._system.getNumParticles()} particles and the System "
                f"{count}; make both from the same topology"
            )
        # The Context holds the integrator, which must not keep it alive in turn.
        self._context = weakref.proxy(context)
        self._proposing = _context_like(context, self._system)
        self._shown, self._last_values = Shown.of(self._context), self._values()
        # Elements are the business of the Systems.
        atoms = ase.Atoms(np.zeros(count, dtype=int), self._shown.positions * units.NM)
        atoms.set_masses([system.getParticleMass(i)._value for i in range(count)])
        atoms.set_velocities(self._shown.velocities * VELOCITY_UNIT / units.FS)
        target = self._target = ContextForces(self._context, integrated_groups(self))
        proposal = ContextForces(self._proposing)
        try:
            for name, forces in (("System", target), ("proposal", proposal)):
                _refuse_chance(name, forces, atoms)
            return ExactNVT(
                atoms, self._timestep, target, proposal, rng=self._rng, **self._options, **options
            )
        finally:
            context.setPositions(self._shown.positions)

    def _values(self) -> tuple[int, list[str]]:
        """Return which forces act, and values of theirs that others may change between steps."""
        forces = self._context.getSystem().getForces()
        return integrated_groups(self), [values_in(force) for force in forces]

    def _look(self) -> None:
        """Take over what has been done to the Context since the last step."""
        atoms, shown, now = self.sampler.atoms, self._shown, Shown.of(self._context)
        if not np.array_equal(now.positions, shown.positions):
            atoms.set_positions(now.positions * units.NM)
        if not np.array_equal(now.velocities, shown.velocities):
            atoms.set_velocities(now.velocities * VELOCITY_UNIT / units.FS)
        same_box = np.array_equal(now.box, shown.box)
        if not same_box:
            self._proposing.setPeriodicBoxVectors(*now.box)
        values = self._values()
        self._target.groups = values[0]
        if not same_box or now.parameters != shown.parameters or values != self._last_values:
            self.sampler.forget()
        self._shown, self._last_values = now, values

    def _show(self) -> None:
        """Give the Context the positions and velocities of the sampler."""
        atoms = self.sampler.atoms
        self._context.setPositions(atoms.positions / units.NM)
        self._context.setVelocities(atoms.get_velocities() * units.FS / VELOCITY_UNIT)
        # The platform may have rounded them.
        self._shown = Shown.of(self._context)

    def _show_time(self) -> None:
        self._context.setTime(self.sampler.get_time() / units.PS)


def _check(which: str, system: openmm.System) -> None:
    """Refuse Systems with properties that the steps do not handle."""
    remedies = {
        "constraints": (
            system.getNumConstraints() > 0,
            "trajectories would break them; create it with constraints=None and rigidWater=False",
        ),
        "virtual sites": (
            any(system.isVirtualSite(i) for i in range(system.getNumParticles())),
            "trajectories move all particles; use a model without them",
        ),
        "particles without mass": (
            any(
                system.getParticleMass(i)._value <= 0.0 and not system.isVirtualSite(i)
                for i in range(system.getNumParticles())
            ),
            "trajectories move all particles; give them their mass",
        ),
        "a barostat": (
            any("Barostat" in type(force).__name__ for force in system.getForces()),
            "the ensemble is that of constant volume; remove it",
        ),
        "a thermostat": (
            any(isinstance(force, openmm.AndersenThermostat) for force in system.getForces()),
            "the integrator has its own; remove it",
        ),
    }
    for what, (there, remedy) in remedies.items():
        if there:
            raise InputError(f"the {which} has {what}, but {remedy}")


def _refuse_chance(which: str, forces: ContextForces, atoms: ase.Atoms) -> None:
    """Refuse forces that differ at equal positions, as those in random orientations do."""
    structure = Structure(atoms.numbers.astype(np.int64), atoms.get_positions())
    found = [forces.evaluate([structure], ("forces",))[0].forces for _ in range(2)]
    one, other = np.array(found, dtype=np.float64)
    if not np.allclose(one, other, rtol=0.0, atol=_REPEATED * float(np.abs(one).max())):
        raise ConfigError(
            f"the {which} has forces that differ at equal positions, so that trajectories cannot "
            "be reversed; use create_force(..., rotation='none') or 'average'"
        )


def _context_like(context: openmm.Context, system: openmm.System) -> openmm.Context:
    """Make a Context of another System on the platform of a Context, with its box."""
    platform = context.getPlatform()
    known = [name for name in _SAME_PRECISION if name in platform.getPropertyNames()]
    properties = {name: platform.getPropertyValue(context, name) for name in known}
    made = openmm.Context(system, openmm.VerletIntegrator(0.001), platform, properties)
    made.setPeriodicBoxVectors(*context.getState().getPeriodicBoxVectors())
    return made
