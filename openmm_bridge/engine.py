"""Molecular-dynamics runs with OpenMM.

The folder of a run, the start velocities and what is watched are those of every
:class:`mlmd_calc.md.Run`. What differs from ASE:

``nve``
    Velocity Verlet, as in ASE.
``langevin``
    ``LangevinMiddleIntegrator`` (Zhang, Liu, Yan, Tuckerman and Liu, J. Phys. Chem. A 123, 6056
    (2019)). Positions follow the Boltzmann distribution more closely than with ASE's ``Langevin``
    (Vanden-Eijnden and Ciccotti, Chem. Phys. Lett. 429, 310 (2006)) at the same time step. The
    random numbers are OpenMM's, so trajectories of the two differ from the first step on.
``nose-hoover``
    ``NoseHooverIntegrator``, a chain of three in the same middle scheme, told the degrees of
    freedom of an isolated molecule; OpenMM by itself would count 3 n.

The middle scheme keeps velocities half a step behind the positions. What is recorded is half a kick
further, at the time of the positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import ase
import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app

from mlmd_calc import MDETCalculator, units
from mlmd_calc.errors import ConfigError, InputError, MLMDError, ModelFileError
from mlmd_calc.md.engine import Dynamics, DynamicsState, Measured
from mlmd_calc.md.jump_engine import LOOP, run_options, run_thermostat
from mlmd_calc.md.record import Description
from mlmd_calc.md.settings import Engine, Ensemble, MDSettings
from mlmd_calc.potential import structure_from_ase
from mlmd_calc.propagation import JumpLoop, Propagator
from openmm_bridge.backends import choose_backend
from openmm_bridge.computation import FORCE_UNIT
from openmm_bridge.integrators import JumpIntegrator
from openmm_bridge.molecule_context import VELOCITY_UNIT, MoleculeContext, find_platform

_CHECKPOINT: Final = "openmm_checkpoint"
"""Entry of a run's results: OpenMM's checkpoint."""


@dataclass(frozen=True)
class OpenMMEngine:
    """OpenMM as the engine of a :class:`mlmd_calc.md.Run`.

    Its calculator must be an :class:`mlmd_calc.MDETCalculator`. A checkpoint can be continued with
    the version of OpenMM and on the platform it was written on.

    Parameters
    ----------
    platform
        Platform of OpenMM; None is "Reference", or that of the run that is continued. There is so
        little to do besides the forces that the overhead decides, and "Reference" has the least.
    backend
        As for :func:`openmm_bridge.create_force`; None is "auto", or that of the run that is
        continued. With "torchscript" every recorded frame costs one more evaluation, and a run with
        random orientations cannot be resumed.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator
    >>> from mlmd_calc.md import MDSettings, Run
    >>> from openmm_bridge import OpenMMEngine
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = MDETCalculator()
    >>> with Run.start(atoms, "ethanol", MDSettings(), engine=OpenMMEngine()) as run:
    ...     run.run(2000)
    Outcome(verdict='completed', step=2000, reason='')
    """

    platform: str | None = None
    backend: str | None = None

    name: ClassVar[Engine] = Engine.OPENMM

    def options(self, atoms: ase.Atoms) -> dict[str, str]:
        """Return platform and back end of a run that starts.

        Raises
        ------
        ConfigError
            If OpenMM has no such platform or back end.
        InputError
            If the atoms have another calculator than an MDETCalculator.
        MissingDependencyError
            If the back end does not work here.
        """
        if not isinstance(atoms.calc, MDETCalculator):
            raise InputError(
                f"the calculator is {type(atoms.calc).__name__}; OpenMM can be given the forces of "
                "an MDETCalculator only. Use engine 'ase' for others"
            )
        platform = self.platform or "Reference"
        find_platform(platform)
        backend = choose_backend(self.backend or "auto")
        if (platform, backend) == ("OpenCL", "torchscript"):
            raise ConfigError(
                "openmmtorch's code for OpenCL does not fit this OpenMM and would end the process; "
                "use backend 'python' or another platform"
            )
        return {"platform": platform, "backend": backend}

    def make(
        self,
        molecules: list[ase.Atoms],
        description: Description,
        folder: Path,
        rng: np.random.Generator,
        propagator: Propagator | None,
    ) -> Dynamics:
        """Make the dynamics of a run; see :class:`mlmd_calc.md.engine.RunEngine`."""
        for option, stored in description.engine_options.items():
            given = getattr(self, option)
            if given not in (None, "auto", stored):
                raise ConfigError(
                    f"{option}={given!r}, but the run was started with {stored!r}; leave it out"
                )
        if len(molecules) > 1:
            raise ConfigError(
                f"{len(molecules)} replicas in OpenMM, which moves one molecule; use engine 'ase'"
            )
        if propagator is None:
            return OpenMMSteps(molecules[0], description, rng)
        return OpenMMJumps(molecules[0], description, folder, rng, propagator)


class OpenMMSteps:
    """Force-based steps of one molecule by an integrator of OpenMM.

    Parameters
    ----------
    atoms
        The molecule, which follows the Context.
    description
        What the run is.
    rng
        Draws the seed of the integrator.
    """

    loop: ClassVar[None] = None

    def __init__(
        self, atoms: ase.Atoms, description: Description, rng: np.random.Generator
    ) -> None:
        settings = description.settings
        self._integrator = _integrator(settings, int(rng.integers(1, 2**31)))
        self._molecule = MoleculeContext(atoms, self._integrator, description.engine_options)
        if settings.ensemble is Ensemble.NOSE_HOOVER:
            chain = self._integrator.getThermostat()
            chain.setNumDegreesOfFreedom(description.degrees_of_freedom)
        # Change of the velocities per force, nm/ps per kJ/mol/nm, by which they lag behind.
        half_step = 0.5 * settings.timestep_fs / units.FS_PER_PS
        self._lag = half_step if settings.thermostatted else 0.0

    def begin(self) -> None:
        """Set out from the atoms as they are."""
        self._molecule.place()
        velocities = self._molecule.atoms.get_velocities() / VELOCITY_UNIT
        if self._lag:
            velocities -= self._half_kick(self._molecule.read(getForces=True))
        self._molecule.context.setVelocities(velocities)

    def step(self) -> None:
        """Do one step."""
        with self._molecule.errors():
            self._integrator.step(1)
        self._molecule.follow()

    def measure(self) -> list[Measured]:
        """Return energy and forces, and bring the velocities to the time of the positions."""
        molecule = self._molecule
        energy = molecule.has_energy
        # A compiled force would be evaluated once more for them alone.
        forces = energy or bool(self._lag) or molecule.computation is not None
        state = molecule.read(getVelocities=True, getForces=forces, getEnergy=energy)
        velocities = state.getVelocities(asNumpy=True)._value
        if self._lag:
            velocities = velocities + self._half_kick(state)
        molecule.atoms.set_velocities(velocities * VELOCITY_UNIT)
        return [_measured(state, energy=energy, forces=forces)]

    def _half_kick(self, state: openmm.State) -> NDArray[np.float64]:
        """Change of the velocities by the forces in half a step, nm/ps."""
        masses = self._molecule.atoms.get_masses()[:, None]
        kick: NDArray[np.float64] = state.getForces(asNumpy=True)._value / masses
        return self._lag * kick

    def state_dict(self) -> DynamicsState:
        """Return OpenMM's checkpoint, and what the force has answered last."""
        content = np.frombuffer(self._molecule.context.createCheckpoint(), dtype=np.uint8)
        return DynamicsState({_CHECKPOINT: content, **self._molecule.state_dict()}, {})

    def load_state_dict(self, state: DynamicsState) -> None:
        """Go on from :meth:`state_dict`.

        Raises
        ------
        ConfigError
            If the run draws random orientations inside OpenMM.
        ModelFileError
            If this version of OpenMM cannot read the checkpoint.
        """
        self._molecule.check_resumable()
        self._molecule.load_state_dict(state.results)
        try:
            self._molecule.context.loadCheckpoint(state.results[_CHECKPOINT].tobytes())
        except openmm.OpenMMException as error:
            raise ModelFileError(
                f"OpenMM {openmm.version.short_version} cannot read the checkpoint of the run "
                f"({error}); continue with the version it was written with, or start a new run"
            ) from error


class OpenMMJumps:
    """Jumps of one molecule in OpenMM, by the integrator that scripts use.

    Parameters
    ----------
    atoms
        The molecule, which follows the Context.
    description
        What the run is.
    folder
        Folder of the run.
    rng
        Source of randomness.
    propagator
        Makes the jumps.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        description: Description,
        folder: Path,
        rng: np.random.Generator,
        propagator: Propagator,
    ) -> None:
        settings, calculator = description.settings, atoms.calc
        assert settings.jumps is not None
        structure = structure_from_ase(atoms, calculator.charge, calculator.multiplicity)
        self._integrator = JumpIntegrator(
            propagator,
            _topology(atoms),
            settings.jumps.stride_fs / units.FS_PER_PS,
            run_thermostat(settings),
            charge=structure.charge,
            multiplicity=structure.multiplicity,
            md_timestep=settings.timestep_fs / units.FS_PER_PS,
            **run_options(settings, calculator, propagator, folder, rng),
        )
        self._molecule = MoleculeContext(atoms, self._integrator, description.engine_options)

    @property
    def loop(self) -> JumpLoop:
        """The loop that makes the jumps."""
        return self._integrator.loop

    def begin(self) -> None:
        """Set out from the atoms as they are."""
        self._molecule.place()
        velocities = self._molecule.atoms.get_velocities() / VELOCITY_UNIT
        self._molecule.context.setVelocities(velocities)
        # Options that do not fit together are refused before there is a folder.
        _ = self.loop

    def step(self) -> None:
        """Do one jump, and the force-based steps after it."""
        try:
            with self._molecule.errors():
                self._integrator.step(1)
            self._molecule.follow()
        finally:
            # The loop sees only that forces have failed and would try something else.
            computation = self._molecule.computation
            raised = None if computation is None else computation.raised
            if raised is not None and not isinstance(raised, MLMDError):
                raise raised

    def measure(self) -> list[Measured]:
        """Return energy and forces, if the model has an energy."""
        molecule = self._molecule
        known = molecule.has_energy
        state = molecule.read(getVelocities=True, getForces=known, getEnergy=known)
        molecule.atoms.set_velocities(state.getVelocities(asNumpy=True)._value * VELOCITY_UNIT)
        return [_measured(state, energy=known, forces=known)]

    def state_dict(self) -> DynamicsState:
        """Return the state of the loop, and what the force has answered last."""
        return DynamicsState({LOOP: self.loop.state_dict(), **self._molecule.state_dict()}, {})

    def load_state_dict(self, state: DynamicsState) -> None:
        """Go on from :meth:`state_dict`.

        Raises
        ------
        ConfigError
            If the run draws random orientations inside OpenMM.
        """
        self._molecule.check_resumable()
        self._molecule.context.setPositions(self._molecule.atoms.positions / units.NM)
        self._integrator.loadState(state.results[LOOP])
        # Last, because making the loop compares forces.
        self._molecule.load_state_dict(state.results)


def _measured(state: openmm.State, *, energy: bool, forces: bool) -> Measured:
    """Convert what a State holds."""
    potential = state.getPotentialEnergy()._value * units.KJ_PER_MOL if energy else np.nan
    return Measured(
        float(potential), state.getForces(asNumpy=True)._value / FORCE_UNIT if forces else None
    )


def _integrator(settings: MDSettings, seed: int) -> Any:
    timestep = settings.timestep_fs / units.FS_PER_PS
    temperature, rate = settings.temperature_K, settings.rate_per_ps
    if settings.ensemble is Ensemble.NVE:
        return _velocity_verlet(timestep)
    if settings.ensemble is Ensemble.LANGEVIN:
        integrator = openmm.LangevinMiddleIntegrator(temperature, rate, timestep)
        integrator.setRandomNumberSeed(seed)
        return integrator
    if settings.ensemble is Ensemble.NOSE_HOOVER:
        return openmm.NoseHooverIntegrator(temperature, rate, timestep)
    raise ConfigError(
        f"OpenMM has no ensemble {settings.ensemble.value!r}; use 'langevin' or 'nose-hoover', or "
        "engine 'ase'"
    )


def _velocity_verlet(timestep: float) -> openmm.CustomIntegrator:
    """Velocity Verlet with velocities at the time of the positions; OpenMM's Verlet lags behind."""
    integrator = openmm.CustomIntegrator(timestep)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    return integrator


def _topology(atoms: ase.Atoms) -> app.Topology:
    """One residue without bonds, which nothing asks for."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number in atoms.numbers:
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
    return topology
