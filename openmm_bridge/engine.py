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

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import ase
import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app

from mlmd_calc import MDETCalculator, units
from mlmd_calc.errors import ConfigError, InputError, MLMDError, ModelFileError, PredictionError
from mlmd_calc.md.engine import Dynamics, DynamicsState, Measured
from mlmd_calc.md.jump_engine import LOOP, run_options, run_thermostat
from mlmd_calc.md.record import Description
from mlmd_calc.md.settings import Engine, Ensemble, MDSettings
from mlmd_calc.potential import Structure, structure_from_ase
from mlmd_calc.propagation import JumpLoop, Propagator
from openmm_bridge.backends import choose_backend
from openmm_bridge.computation import FORCE_UNIT, MDETComputation
from openmm_bridge.forces import wrap
from openmm_bridge.integrators import JumpIntegrator
from openmm_bridge.orientations import CALLS, restore_orientations, store_orientations
from openmm_bridge.region import region_from_structure

_VELOCITY_UNIT: Final = units.NM / units.PS
"""ASE's unit of velocity per nm/ps."""

_CHECKPOINT: Final = "openmm_checkpoint"
_ANSWER: Final = ("openmm_positions", "openmm_energy", "openmm_forces")
_CALLS: Final = "openmm_calls"
"""Entries of a run's results: OpenMM's checkpoint, what a Python force answered last, and how many
random orientations a compiled one has drawn."""


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
        continued. With "torchscript" every recorded frame of force-based steps costs one more
        evaluation.

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
        _platform(platform)
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
        integrator = (
            _integrator(description.settings, int(rng.integers(1, 2**31)))
            if propagator is None
            else _jumps(molecules[0], description.settings, folder, rng, propagator)
        )
        return OpenMMDynamics(molecules[0], description, integrator)


class OpenMMDynamics:
    """One molecule under its MD-ET forces, moved by an integrator of OpenMM or by jumps."""

    acceptance: ClassVar[None] = None
    sampler: ClassVar[None] = None

    def __init__(self, atoms: ase.Atoms, description: Description, integrator: Any) -> None:
        settings, options = description.settings, description.engine_options
        region = region_from_structure(_structure(atoms))
        computation = _Remembering(atoms.calc.potential, region)
        self._atoms = atoms
        self._integrator = integrator
        self._jumps = integrator if isinstance(integrator, JumpIntegrator) else None
        # A compiled force computes inside OpenMM.
        self._computation = None if options["backend"] == "torchscript" else computation
        self._verlet = self._jumps is None and not settings.thermostatted
        # Whether the next step begins with the forces that the last one ended with.
        self._keeps_forces = False
        self._random = self._computation is None and computation.potential.rotation == "random"
        self._has_energy = "energy" in atoms.calc.implemented_properties
        # Time in ps by which the velocities are behind the positions.
        lags = settings.thermostatted and self._jumps is None
        self._lag = 0.5 * settings.timestep_fs / units.FS_PER_PS if lags else 0.0
        system = openmm.System()
        for mass in atoms.get_masses():
            system.addParticle(mass)
        system.addForce(wrap(computation, options["backend"]))
        self._context = openmm.Context(system, integrator, *_platform(options["platform"]))
        if settings.ensemble is Ensemble.NOSE_HOOVER:
            integrator.getThermostat().setNumDegreesOfFreedom(description.degrees_of_freedom)

    @property
    def loop(self) -> JumpLoop | None:
        """The loop that makes the jumps; None if steps are force-based."""
        return None if self._jumps is None else self._jumps.loop

    def begin(self) -> None:
        """Set out from the atoms as they are, with what the calculator has answered to them."""
        positions = self._atoms.positions / units.NM
        self._context.setPositions(positions)
        if self._computation is not None:
            results = self._atoms.calc.results
            energy = float(results.get("energy", 0.0)) / units.KJ_PER_MOL
            self._computation.last = positions, energy, results["forces"] * FORCE_UNIT
        velocities = self._atoms.get_velocities() / _VELOCITY_UNIT
        if self._lag:
            velocities -= self._half_kick(self._read(getForces=True))
        self._context.setVelocities(velocities)
        # Options that do not fit together are refused before there is a folder.
        _ = self.loop

    def step(self) -> None:
        """Do one step."""
        with self._force_errors():
            self._integrator.step(1)
        self._keeps_forces = self._verlet
        state = self._read(getPositions=True, getVelocities=True)
        self._atoms.positions = state.getPositions(asNumpy=True)._value * units.NM
        self._set_velocities(state.getVelocities(asNumpy=True)._value)

    def measure(self) -> list[Measured]:
        """Return energy and forces, and bring the velocities to the time of the positions."""
        if self._jumps is not None:
            (state,) = self._jumps.loop.states
            # The jump was judged by them; a compiled force would compute them once more.
            if state.energy is not None and state.forces is not None:
                return [Measured(state.energy, state.forces)]
        energy, lags = self._has_energy, self._lag > 0.0
        # Forces that come with energies, or have moved the atoms and are remembered, cost nothing.
        forces = energy or lags or (self._computation is not None and self._jumps is None)
        state = self._read(getVelocities=True, getForces=forces, getEnergy=energy)
        self._keeps_forces = self._keeps_forces and not forces
        velocities = state.getVelocities(asNumpy=True)._value
        self._set_velocities(velocities + self._half_kick(state) if lags else velocities)
        return [
            Measured(
                float(state.getPotentialEnergy()._value * units.KJ_PER_MOL) if energy else np.nan,
                state.getForces(asNumpy=True)._value / FORCE_UNIT if forces else None,
            )
        ]

    def state_dict(self) -> DynamicsState:
        """Return the loop's state or OpenMM's checkpoint, and the last answer of the force."""
        results: dict[str, Any] = {}
        if self._random:
            [(name, calls)] = store_orientations(self._context).items()
            # OpenMM forgets those forces now, and has to get the same ones again.
            calls -= self._keeps_forces
            restore_orientations(self._context, {name: calls})
            results[_CALLS] = np.array(calls)
        if self._jumps is not None:
            results[LOOP] = self._jumps.loop.state_dict()
        else:
            results[_CHECKPOINT] = np.frombuffer(self._context.createCheckpoint(), dtype=np.uint8)
        if self._computation is not None:
            positions, energy, forces = self._computation.last
            results |= zip(_ANSWER, (positions, np.array(energy), forces), strict=True)
        return DynamicsState(results, {})

    def load_state_dict(self, state: DynamicsState) -> None:
        """Go on from :meth:`state_dict`.

        Raises
        ------
        ModelFileError
            If this version of OpenMM cannot read the checkpoint, or it is of an earlier version of
            this package, which did not count random orientations inside OpenMM.
        """
        results = state.results
        if self._jumps is not None:
            self._context.setPositions(self._atoms.positions / units.NM)
            self._jumps.loadState(results[LOOP])
        else:
            self._load_checkpoint(results[_CHECKPOINT].tobytes())
        if self._random:
            if _CALLS not in results:
                raise ModelFileError(
                    "the checkpoint does not say how many random orientations were drawn inside "
                    "OpenMM; earlier versions could not. Start a new run from the last frame"
                )
            restore_orientations(self._context, {f"{CALLS}_0": int(results[_CALLS])})
        if self._computation is not None:
            # Last, because making the loop compares forces.
            positions, energy, forces = (results[name] for name in _ANSWER)
            self._computation.last = positions, float(energy), forces

    def _load_checkpoint(self, content: bytes) -> None:
        try:
            self._context.loadCheckpoint(content)
        except openmm.OpenMMException as error:
            raise ModelFileError(
                f"OpenMM {openmm.version.short_version} cannot read the checkpoint of the run "
                f"({error}); continue with the version it was written with, or start a new run"
            ) from error

    def _set_velocities(self, velocities: NDArray[np.float64]) -> None:
        self._atoms.set_velocities(velocities * _VELOCITY_UNIT)

    def _half_kick(self, state: openmm.State) -> NDArray[np.float64]:
        """Change of the velocities by the forces in half a step, nm/ps."""
        kick = state.getForces(asNumpy=True)._value / self._atoms.get_masses()[:, None]
        return np.asarray(self._lag * kick)

    def _read(self, **what: bool) -> openmm.State:
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
        finally:
            # A jump loop sees only that forces have failed, and would try something else.
            raised = None if self._computation is None else self._computation.raised
            if raised is not None and not isinstance(raised, MLMDError):
                raise raised


class _Remembering(MDETComputation):
    """A computation that is not repeated at the same positions, as in an ASE calculator.

    The energy of a recorded frame then costs nothing and belongs to the forces that move the atoms,
    and what is recorded does not change the sequence of random orientations.
    """

    last: tuple[NDArray[np.float64], float, NDArray[np.float64]] = np.empty(0), 0.0, np.empty(0)
    """Positions, energy and forces of the last evaluation, in OpenMM's units."""

    raised: BaseException | None = None
    """What ended the last evaluation, Ctrl-C included: OpenMM repeats at most its message."""

    def compute(
        self, state: Any, positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Evaluate positions unless they are those of the last evaluation."""
        if not np.array_equal(positions, self.last[0]):
            try:
                self.last = positions.copy(), *self.evaluate(positions, None)
            except BaseException as error:
                self.raised = error
                raise
        return self.last[1:]


def _structure(atoms: ase.Atoms) -> Structure:
    return structure_from_ase(atoms, atoms.calc.charge, atoms.calc.multiplicity)


def _jumps(
    atoms: ase.Atoms,
    settings: MDSettings,
    folder: Path,
    rng: np.random.Generator,
    propagator: Propagator,
) -> JumpIntegrator:
    """Make the integrator that scripts use."""
    assert settings.jumps is not None
    structure = _structure(atoms)
    # One residue without bonds, which nothing asks for.
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number in atoms.numbers.tolist():
        element = app.Element.getByAtomicNumber(number)
        topology.addAtom(element.symbol, element, residue)
    return JumpIntegrator(
        propagator,
        topology,
        settings.jumps.stride_fs / units.FS_PER_PS,
        run_thermostat(settings),
        charge=structure.charge if structure.charge_is_stated else None,
        multiplicity=structure.multiplicity,
        md_timestep=settings.timestep_fs / units.FS_PER_PS,
        **run_options(settings, atoms.calc, propagator, folder, rng),
    )


def _integrator(settings: MDSettings, seed: int) -> Any:
    timestep = settings.timestep_fs / units.FS_PER_PS
    temperature, rate = settings.temperature_K, settings.rate_per_ps
    if settings.exact is not None:
        raise ConfigError(
            f"the exact ensemble of {settings.exact.target!r} with engine 'openmm'; use engine "
            "'ase', or ExactNVTIntegrator in a script"
        )
    if settings.inner_steps > 1:
        raise ConfigError(
            f"inner_steps={settings.inner_steps} with engine 'openmm'; use engine 'ase', or "
            "OpenMM's MTSIntegrator in a script as in examples/openmm_mts.py"
        )
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
