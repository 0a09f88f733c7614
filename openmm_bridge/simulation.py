"""One molecular-dynamics run with OpenMM: recorded, watched, and restartable bit for bit.

The folder of a run, the start velocities and the guards are those of
:class:`mlmd_calc.md.Simulation`. What differs from ASE:

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

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import ase
import numpy as np
import openmm
from numpy.typing import NDArray

from mlmd_calc import MDETCalculator, units
from mlmd_calc.bonds import Bonds
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.md.checkpoint import Checkpoint
from mlmd_calc.md.record import Description
from mlmd_calc.md.recorded_run import RecordedRun
from mlmd_calc.md.replica import Measured
from mlmd_calc.md.settings import Engine, Ensemble, MDSettings
from mlmd_calc.potential import structure_from_ase
from openmm_bridge.backends import choose_backend
from openmm_bridge.computation import FORCE_UNIT, MDETComputation
from openmm_bridge.forces import wrap
from openmm_bridge.region import region_from_structure

_VELOCITY_UNIT: Final = units.NM / units.PS
"""ASE's unit of velocity per nm/ps."""

_CHECKPOINT: Final = "openmm_checkpoint"
_FORCE: Final = ("openmm_positions", "openmm_energy", "openmm_forces")
"""Entries of ``Checkpoint.results``: OpenMM's checkpoint, and what the force answered last."""


class OpenMMSimulation(RecordedRun):
    """A run of an isolated molecule with OpenMM; make one with `start` or `resume`.

    A checkpoint can be continued with the version of OpenMM and on the platform it was written on.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator
    >>> from mlmd_calc.md import MDSettings
    >>> from openmm_bridge.simulation import OpenMMSimulation
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = MDETCalculator()
    >>> with OpenMMSimulation.start(atoms, "ethanol", MDSettings()) as simulation:
    ...     simulation.run(2000).verdict
    'completed'
    """

    engine: ClassVar[Engine] = Engine.OPENMM
    _stored_as: ClassVar[str] = _CHECKPOINT
    """Entry of ``Checkpoint.results`` that a run goes on from."""

    def __init__(
        self,
        molecules: list[ase.Atoms],
        folder: Path,
        description: Description,
        checkpoint: Checkpoint,
    ) -> None:
        super().__init__(molecules, folder, description, checkpoint)
        atoms = self.atoms
        resumed = self._stored_as in checkpoint.results
        backend = description.engine_options["backend"]
        if resumed and backend == "torchscript" and atoms.calc.potential.rotation == "random":
            raise ConfigError(
                "the random orientations of backend='torchscript' are inside OpenMM and cannot be "
                "continued; start a new run, with the back end 'python' if it is to be resumed"
            )
        self._integrator = self._make_integrator()
        self._velocities_lag = not self.made_of_jumps and self.settings.thermostatted
        force, self._computation = _force(atoms, backend)
        self._context = openmm.Context(
            _system(description.masses, force),
            self._integrator,
            *_platform(description.engine_options["platform"]),
        )
        if self.settings.ensemble is Ensemble.NOSE_HOOVER:
            chain = self._integrator.getThermostat()
            chain.setNumDegreesOfFreedom(description.degrees_of_freedom)
        if resumed:
            self._load(checkpoint.results)
        else:
            self._begin(checkpoint.results)

    @classmethod
    def start(
        cls,
        atoms: ase.Atoms,
        folder: str | os.PathLike[str],
        settings: MDSettings,
        *,
        bonds: Bonds | None = None,
        keep_velocities: bool = False,
        platform: str = "Reference",
        backend: str = "auto",
        job: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> OpenMMSimulation:
        """Begin a run.

        Parameters
        ----------
        atoms
            An isolated molecule with an :class:`mlmd_calc.MDETCalculator`; it is copied.
        folder, settings, bonds, keep_velocities, job
            As for :meth:`mlmd_calc.md.Simulation.start`.
        platform
            Platform of OpenMM. There is so little to do besides the forces that the overhead
            decides, and "Reference" has the least.
        backend
            As for :func:`openmm_bridge.create_force`. With "torchscript" every recorded frame costs
            one more evaluation, and a run with random orientations cannot be resumed.
        **parts
            ``propagator`` for runs made of jumps.

        Raises
        ------
        ConfigError
            If the folder holds a run already, there are no velocities to keep, or OpenMM has no
            such ensemble, platform or back end.
        InputError
            If the atoms carry constraints or another calculator, or the calculator refuses them.
        MissingDependencyError
            If the back end does not work here.
        """
        if not isinstance(atoms.calc, MDETCalculator):
            raise InputError(
                f"the calculator is {type(atoms.calc).__name__}; OpenMM can be given the forces of "
                "an MDETCalculator only. Use engine 'ase' for others"
            )
        _platform(platform)
        chosen = choose_backend(backend)
        if (platform, chosen) == ("OpenCL", "torchscript"):
            raise ConfigError(
                "openmmtorch's code for OpenCL does not fit this OpenMM and would end the process; "
                "use backend 'python' or another platform"
            )
        options = {"platform": platform, "backend": chosen}
        return cls._start(atoms, folder, settings, bonds, keep_velocities, options, job, **parts)

    def _make_integrator(self) -> Any:
        return _integrator(self.settings, int(self._rng.integers(1, 2**31)))

    def _begin(self, results: dict[str, Any]) -> None:
        """Set positions and velocities, and what the calculator has answered to them."""
        positions = self.atoms.positions / units.NM
        self._context.setPositions(positions)
        if self._computation is not None:
            energy = float(results.get("energy", 0.0)) / units.KJ_PER_MOL
            self._computation.remember(positions, energy, results["forces"] * FORCE_UNIT)
        velocities = self.atoms.get_velocities() / _VELOCITY_UNIT
        if self._velocities_lag:
            velocities -= self._half_kick(self._state(getForces=True))
        self._context.setVelocities(velocities)

    def _load(self, results: dict[str, Any]) -> None:
        """Continue from :meth:`_engine_results`."""
        self._remember(results)
        try:
            self._context.loadCheckpoint(results[_CHECKPOINT].tobytes())
        except openmm.OpenMMException as error:
            raise ModelFileError(
                f"OpenMM {openmm.version.short_version} cannot read the checkpoint in "
                f"{self.folder} ({error}); continue with the version it was written with, or start "
                "a new run"
            ) from error

    def _move(self) -> None:
        with self._force_errors():
            self._integrator.step(1)
        state = self._state(getPositions=True, getVelocities=True)
        self.atoms.positions = state.getPositions(asNumpy=True)._value * units.NM
        self._set_velocities(state.getVelocities(asNumpy=True)._value)

    def _measure(self) -> list[Measured]:
        lag = self._velocities_lag
        state = self._state(getVelocities=True, getForces=lag, getEnergy=self._has_energy)
        velocities = state.getVelocities(asNumpy=True)._value
        self._set_velocities(velocities + self._half_kick(state) if lag else velocities)
        if not self._has_energy:
            return [Measured(np.nan)]
        return [Measured(float(state.getPotentialEnergy()._value * units.KJ_PER_MOL))]

    def _engine_results(self) -> dict[str, Any]:
        content = np.frombuffer(self._context.createCheckpoint(), dtype=np.uint8)
        return {_CHECKPOINT: content, **self._remembered()}

    def _remember(self, results: dict[str, Any]) -> None:
        """Let the force answer again what it has answered last, from :meth:`_remembered`."""
        if self._computation is not None:
            positions, energy, forces = (results[name] for name in _FORCE)
            self._computation.remember(positions, float(energy), forces)

    def _remembered(self) -> dict[str, Any]:
        if self._computation is None:
            return {}
        return dict(zip(_FORCE, self._computation.last(), strict=True))

    def _set_velocities(self, velocities: NDArray[np.float64]) -> None:
        self.atoms.set_velocities(velocities * _VELOCITY_UNIT)

    def _half_kick(self, state: openmm.State) -> NDArray[np.float64]:
        """Change of the velocities by the forces in half a step, nm/ps."""
        masses = self.description.masses[:, None]
        kick: NDArray[np.float64] = state.getForces(asNumpy=True)._value / masses
        return 0.5 * self.settings.timestep_fs / units.FS_PER_PS * kick

    def _state(self, **what: bool) -> openmm.State:
        with self._force_errors():
            return self._context.getState(**what)

    @contextmanager
    def _force_errors(self) -> Iterator[None]:
        """Raise what the model raised instead of OpenMM's repetition of its message."""
        try:
            yield
        except openmm.OpenMMException as error:
            if self._computation is not None and self._computation.raised is not None:
                raise self._computation.raised from None
            # TorchScript shows its source before the message.
            raise PredictionError(str(error).strip().split("\n")[-1]) from error


class _Remembering(MDETComputation):
    """A computation that is not repeated at the same positions, as in an ASE calculator.

    The energy of a recorded frame then costs nothing and belongs to the forces that move the atoms,
    and what is recorded does not change the sequence of random orientations.
    """

    _last: tuple[NDArray[np.float64], float, NDArray[np.float64]]
    raised: BaseException | None = None
    """What ended the last evaluation, Ctrl-C included: OpenMM repeats at most its message."""

    def remember(
        self, positions: NDArray[np.float64], energy: float, forces: NDArray[np.float64]
    ) -> None:
        """Answer with this, in OpenMM's units, as long as the positions are the same."""
        self._last = positions, energy, forces

    def last(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return positions, energy and forces of the last evaluation, in OpenMM's units."""
        positions, energy, forces = self._last
        return positions, np.array(energy), forces

    def compute(
        self, state: Any, positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Evaluate positions unless they are those of the last evaluation."""
        if not np.array_equal(positions, self._last[0]):
            try:
                self.remember(positions.copy(), *self.evaluate(positions, None))
            except BaseException as error:
                self.raised = error
                raise
        return self._last[1:]


def _force(atoms: ase.Atoms, backend: str) -> tuple[Any, _Remembering | None]:
    """Make the force and, unless it is compiled, the function behind it."""
    calculator: MDETCalculator = atoms.calc
    structure = structure_from_ase(atoms, calculator.charge, calculator.multiplicity)
    region = region_from_structure(structure)
    computation = _Remembering(calculator.potential, region)
    return wrap(computation, backend), None if backend == "torchscript" else computation


def _system(masses: NDArray[np.float64], force: Any) -> openmm.System:
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    system.addForce(force)
    return system


def _platform(name: str) -> tuple[openmm.Platform, dict[str, str]]:
    """Find a platform, and its properties for one molecule in full precision."""
    names = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    if name not in names:
        raise ConfigError(
            f"platform={name!r}; OpenMM offers {', '.join(names)} here. `mlmd doctor` says why "
            "others cannot be loaded"
        )
    platform = openmm.Platform.getPlatformByName(name)
    properties = {"Precision": "double", "Threads": "1"}
    known = platform.getPropertyNames()
    return platform, {key: value for key, value in properties.items() if key in known}


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
