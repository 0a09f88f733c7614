"""OpenMM integrators whose steps are long jumps made by a propagator."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.options import refuse_keywords
from mlmd_calc.propagation import (
    Bussi,
    Corrections,
    EventLog,
    ForceModel,
    JumpLoop,
    Propagator,
    State,
    Thermostat,
    make_thermostat,
    read_restart,
)
from mlmd_calc.propagation.load import as_propagator
from mlmd_calc.propagation.loop_options import LoopOptions
from openmm_bridge.jump_context import (
    VELOCITY_UNIT,
    ContextForces,
    Shown,
    acting_forces,
    check_jump_system,
    context_of,
    has_forces_of,
    integrated_groups,
    values_in,
)
from openmm_bridge.python_steps import PythonSteps, number_in
from openmm_bridge.region import check_order, region_from_topology

if TYPE_CHECKING:
    from typing_extensions import Unpack


class JumpIntegrator(PythonSteps):
    """What :class:`JumpNVEIntegrator` and :class:`JumpNVTIntegrator` have in common.

    ``Simulation.step``, reporters, time, step count and temperature work as with OpenMM's own
    integrators; velocities are those at the time of the positions. Energies and forces that
    ``getState`` shows are those of the System's forces, and nothing else.

    The forces of the System, as far as they are in the integration force groups, serve energies,
    force-based steps, and fallbacks from rejected jumps. At the start they are compared with those
    of the propagator's potential, because what they add would not act on jumps. A System without
    forces will do if the propagator knows its potential, as the shipped ones do. Where the only
    force is one of that potential (:func:`~openmm_bridge.create_force` with the same model and
    options, in its precision or a higher one), a jump takes one force call.

    A start at rest, which propagators do not know, is warmed up by thermostat and force-based
    steps. Jumps that the guard rejects are drawn again, shortened, replaced by force-based steps if
    there are forces, or end the run with :class:`mlmd_calc.errors.PredictionError`; `events` lists
    all of them. The Context is then as it was before the jump. A ``Simulation`` knows no other end
    than an error, so a guard that is told to stop raises one as well.

    `step` is overridden in Python and hands positions and velocities over in the precision of the
    platform, on every platform. The alternative, a native program whose forces carry the jumps,
    would round them to the precision of forces on GPUs and show them as forces and energies. The
    price: the class is lost where OpenMM makes a copy in C++, as in XML. Such a copy makes all
    positions NaN in its first step rather than stand still. A ``CompoundIntegrator``, which steps
    in C++, is refused; for force-based steps in between, use `md_steps_per_jump`.

    Reporters see ends of steps. With `frames_per_jump` above 1 the frames inside the last step are
    in ``loop.inner_frames[0]``, as :class:`mlmd_calc.propagation.State` in Å and Å/fs.

    Parameters
    ----------
    propagator
        Makes the jumps: a propagator, or the name or file of one.
    topology
        ``openmm.app.Topology`` of the System, which must be one isolated molecule.
    stepSize
        Length of a jump, a Quantity or ps; None: what is recommended for the propagator, or else
        its shortest.
        `getStepSize` and `setStepSize` mean a whole step, with the force-based steps after the
        jump.
    thermostat
        None for constant energy.
    charge, multiplicity
        Total charge in e and spin multiplicity 2S + 1. A charge of None is 0; ions that the
        positions show are refused then.
    md_timestep
        Time step of force-based steps, a Quantity or ps; None for 0.5 fs.
    **options
        `corrections`, `guard`, `other_forces`, `md_steps_per_jump`, `frames_per_jump` and `rng`,
        see :class:`mlmd_calc.propagation.loop_options.LoopOptions`.

    Raises
    ------
    ConfigError
        If the propagator cannot do this stride. At the first step: if the options do not fit
        together, forces act that the propagator does not know, or there is no Context or more than
        one.
    InputError
        If the topology has atoms without element. At the first step: if the System is periodic, has
        virtual sites, particles without mass or a thermostat, has constraints and the propagator
        predicts velocities, does not fit the topology, or is a molecule that the propagator does
        not know.
    """

    def __init__(
        self,
        propagator: Propagator | str | os.PathLike[str],
        topology: Any,
        stepSize: Any,
        thermostat: Thermostat | None,
        *,
        charge: int | None = None,
        multiplicity: int = 1,
        md_timestep: Any = None,
        **options: Unpack[LoopOptions],
    ) -> None:
        refuse_keywords(options, LoopOptions.__annotations__, type(self).__name__)
        propagator = as_propagator(propagator)
        stride_fs = propagator.usual_stride_fs() if stepSize is None else _femtoseconds(stepSize)
        propagator.strides.check(stride_fs)
        md_timestep_fs = 0.5 if md_timestep is None else _femtoseconds(md_timestep)
        region = region_from_topology(
            topology, charge=charge, multiplicity=multiplicity, periodic=False
        )
        self._md_fs = options.get("md_steps_per_jump", 0) * md_timestep_fs
        # Reporters take the time of a whole step from the step size.
        step_ps = (stride_fs + self._md_fs) / units.FS_PER_PS
        super().__init__(step_ps, update=True, rng=options.pop("rng", None))
        self._region = region
        self._structure = region.structure(np.zeros((len(region), 3)))
        self._propagator = propagator
        self._stride_fs = stride_fs
        self._md_timestep_fs = md_timestep_fs
        self._thermostat = thermostat
        self._options = options
        self._acting: list[str] = []
        self._loop: JumpLoop | None = None
        self._context: Any = None
        self._shown: Shown

    @property
    def _begun(self) -> bool:
        """Whether the run has begun."""
        return self._loop is not None

    @property
    def loop(self) -> JumpLoop:
        """The engine-neutral loop; it is made when it is first needed, from the Context."""
        if self._loop is None:
            context = context_of(self)
            system = context.getSystem()
            self._acting = self._acting_forces(system)
            masses = self._checked_masses(system)
            # The Context holds the integrator, which must not keep it alive in turn.
            self._context = weakref.proxy(context)
            self._shown = shown = Shown.of(self._context)
            if not shown.positions.any():
                raise InputError("the Context has no positions yet; call setPositions first")
            start = State(
                positions=shown.positions * units.NM,
                velocities=shown.velocities * VELOCITY_UNIT,
                numbers=self._structure.numbers,
                masses=masses,
                time=shown.time * units.FS_PER_PS,
                charge=self._structure.charge,
                multiplicity=self._structure.multiplicity,
            )
            options: LoopOptions = {**self._options, "rng": self._rng}
            try:
                self._loop = JumpLoop(
                    [start],
                    self._propagator,
                    self._stride_fs,
                    thermostat=self._thermostat,
                    forces=self._forces(),
                    md_timestep_fs=self._md_timestep_fs,
                    **options,
                )
            finally:
                # Comparing forces has moved the particles.
                context.setPositions(shown.positions)
        return self._loop

    @property
    def events(self) -> EventLog:
        """What the guard found and did."""
        return self.loop.events

    def step(self, steps: int) -> None:
        """Do a number of jumps, each with the force-based steps after it.

        Raises
        ------
        PredictionError
            If a jump fails and the guard says so; positions, velocities, time and step count are
            those before the jump.
        InputError
            If the System is no longer the one the run began with, or positions at the start are
            missing, in another order than the topology, or of an ion whose charge nothing states.
        """
        loop = self.loop
        masses = self._checked_masses(self._context.getSystem())
        if not np.allclose(masses, loop.states[0].masses, rtol=1e-6, atol=0.0):
            raise InputError(
                "masses of the System have changed since the run began; begin anew with another "
                "integrator"
            )
        if loop.step == 0:
            positions = Shown.of(self._context).positions
            check_order(self._region, positions)
            self._region.structure(positions * units.NM).check_charge()
        for _ in range(steps):
            self._look()
            try:
                if not loop.advance():
                    raise PredictionError(f"the run has stopped: {loop.stopped}")
            except BaseException:
                # Force-based steps, energies and constraints have moved the particles.
                self._context.setPositions(self._shown.positions)
                self._context.setVelocities(self._shown.velocities)
                raise
            self._show()
            self._finish_step()

    def setStepSize(self, size: Any) -> None:  # noqa: N802
        """Set the length of a whole step, a Quantity or ps: the jump and the steps after it.

        Raises
        ------
        ConfigError
            If the propagator cannot do this stride, or frames inside jumps would not be equally
            spaced any more.
        """
        stride_fs = round(_femtoseconds(size) - self._md_fs, 9)
        self._propagator.strides.check(stride_fs)
        if self._loop is not None:
            self._loop.stride_fs = stride_fs
        self._stride_fs = stride_fs
        super().setStepSize((stride_fs + self._md_fs) / units.FS_PER_PS)

    def saveRestart(self, path: str | os.PathLike[str]) -> None:  # noqa: N802
        """Write a restart file, replacing an older one in one go.

        It holds everything that decides how the run goes on, which OpenMM's checkpoints do not, in
        the format of :meth:`mlmd_calc.md.JumpNVE.save_restart`.
        """
        # Before the first step this makes the loop, from what is in the Context then.
        loop = self.loop
        self._look()
        loop.save(path)

    def loadRestart(self, path: str | os.PathLike[str]) -> None:  # noqa: N802
        """Go on from a restart file, to the last bit on platforms of double precision.

        Everything must be set up as in the interrupted run, with positions in the Context, for
        which any will do. Time and step count of the Context are set too.

        Raises
        ------
        ModelFileError
            If it is missing or damaged, or belongs to a run with other settings.
        """
        self.loadState(read_restart(path))

    def loadState(self, state: Mapping[str, Any]) -> None:  # noqa: N802
        """Go on from ``loop.state_dict()`` of an interrupted run, as :meth:`loadRestart` does."""
        self.loop.load_state_dict(state)
        self._thermostat = self.loop.thermostat
        self.setStepSize((self.loop.stride_fs + self._md_fs) / units.FS_PER_PS)
        self._show()
        self._context.setStepCount(self.loop.step)

    def _checked_masses(self, system: openmm.System) -> NDArray[np.float64]:
        """Masses ``(n,)`` amu of a System; one that jumps cannot handle is refused."""
        # Velocities that a propagator predicts would not be what it meant.
        constrained = bool(self._acting) and not self._propagator.gives_velocities
        check_jump_system(system, len(self._structure), constrained=constrained)
        count = system.getNumParticles()
        return np.array([system.getParticleMass(i)._value for i in range(count)])

    def _acting_forces(self, system: openmm.System) -> list[str]:
        """Describe the forces that act, such that others and changed ones are seen."""
        return [
            f"{type(force).__name__} {force.getForceGroup()} {int(force.this)} {values_in(force)}"
            for force in acting_forces(system, integrated_groups(self))
        ]

    def _forces(self) -> ForceModel | None:
        """Return the forces that act, as a force model; None if there are none."""
        groups = integrated_groups(self)
        acting = acting_forces(self._context.getSystem(), groups)
        if not acting:
            return None
        potential = self._propagator.potential
        alone = len(acting) == 1 and has_forces_of(acting[0], potential, self._structure)
        return ContextForces(self._context, groups, potential if alone else None)

    def _look(self) -> None:
        """Take over what has been done to System and Context since the last step."""
        acting = self._acting_forces(self._context.getSystem())
        if acting != self._acting:
            self.loop.forces = self._forces()
            self._acting = acting
        state, shown, now = self.loop.states[0], self._shown, Shown.of(self._context)
        if now.parameters != shown.parameters:
            self.loop.compare_again()
        stays = now.same_forces(shown)
        if stays and np.array_equal(now.velocities, shown.velocities) and now.time == shown.time:
            return
        if not stays:
            state = state.moved_to(now.positions * units.NM)
        velocities, time = now.velocities * VELOCITY_UNIT, now.time * units.FS_PER_PS
        self.loop.states = (replace(state, velocities=velocities, time=time),)
        self._shown = now

    def _show(self) -> None:
        """Give the Context the positions, velocities and time of the loop."""
        state = self.loop.states[0]
        self._context.setPositions(state.positions / units.NM)
        self._context.setVelocities(state.velocities / VELOCITY_UNIT)
        self._context.setTime(state.time / units.FS_PER_PS)
        # The platform may have rounded them.
        self._shown = Shown.of(self._context)

    def _finish_step(self) -> None:
        """Let OpenMM count a step and do what it does in each, removing momentum for instance."""
        self.count_step()
        # Force-based steps take time as well.
        self._context.setTime(self._shown.time)
        velocities = self._context.getState(getVelocities=True).getVelocities(asNumpy=True)._value
        if not np.array_equal(velocities, self._shown.velocities):
            self.loop.drift_removed([velocities * VELOCITY_UNIT])
            # Whatever else has changed is for the next step to see.
            self._shown = self._shown._replace(velocities=velocities)


class JumpNVEIntegrator(JumpIntegrator):
    """Constant energy: a propagator makes each step.

    Parameters
    ----------
    propagator, topology, stepSize
        See :class:`JumpIntegrator`.
    rescale_energy
        Keep the total energy by scaling velocities, and reject jumps for which that is impossible;
        costs an energy per jump.
    corrections, **kwargs
        See :class:`JumpIntegrator`.

    Examples
    --------
    >>> import openmm
    >>> from openmm import app, unit
    >>> from mlmd_calc.propagation import VerletPropagator
    >>> from mlmd_calc import Potential
    >>> from openmm_bridge import JumpNVEIntegrator
    >>> pdb = app.PDBFile("ethanol.pdb")  # doctest: +SKIP
    >>> propagator = VerletPropagator(Potential(), 0.5)
    >>> stepSize = 8 * unit.femtosecond
    >>> integrator = JumpNVEIntegrator(propagator, pdb.topology, stepSize)  # doctest: +SKIP
    """

    def __init__(
        self,
        propagator: Propagator | str | os.PathLike[str],
        topology: Any,
        stepSize: Any,
        *,
        rescale_energy: bool = False,
        corrections: Corrections | None = None,
        **kwargs: Any,
    ) -> None:
        corrections = Corrections.of(corrections, rescale_energy=rescale_energy)
        super().__init__(propagator, topology, stepSize, None, corrections=corrections, **kwargs)


class JumpNVTIntegrator(JumpIntegrator):
    """Constant temperature: a propagator makes each step.

    The thermostat acts for half a step before and for half a step after the jump.

    Parameters
    ----------
    propagator, topology
        See :class:`JumpIntegrator`.
    temperature
        A Quantity or K.
    frictionCoeff
        Friction of "langevin", inverse relaxation time of "bussi"; a Quantity or 1/ps. None: what
        is recommended for the propagator.
    stepSize
        See :class:`JumpIntegrator`.
    thermostat
        "langevin": all degrees of freedom, translation and rotation too. "bussi": stochastic
        velocity rescaling of internal motion.
    **kwargs
        See :class:`JumpIntegrator`.

    Raises
    ------
    ConfigError
        If the thermostat is unknown, or temperature or friction are not positive.
    """

    def __init__(
        self,
        propagator: Propagator | str | os.PathLike[str],
        topology: Any,
        temperature: Any,
        frictionCoeff: Any = None,
        stepSize: Any = None,
        *,
        thermostat: str = "langevin",
        **kwargs: Any,
    ) -> None:
        propagator = as_propagator(propagator)
        if frictionCoeff is None:
            frictionCoeff = propagator.conditions.friction_per_ps
        if frictionCoeff is None:
            raise ConfigError(
                f"frictionCoeff=None, but nothing is recommended for {propagator.identity}; give "
                "the friction"
            )
        chosen = make_thermostat(
            thermostat,
            number_in(temperature, unit.kelvin),
            number_in(frictionCoeff, unit.picosecond**-1) / units.FS_PER_PS,
        )
        super().__init__(propagator, topology, stepSize, chosen, **kwargs)

    def getTemperature(self) -> Any:  # noqa: N802
        """Return the temperature, a Quantity."""
        return self._bath.temperature_K * unit.kelvin

    def setTemperature(self, temperature: Any) -> None:  # noqa: N802
        """Set the temperature, a Quantity or K."""
        self._set_bath(number_in(temperature, unit.kelvin), 1.0 / self._bath.relaxation_fs)

    def getFriction(self) -> Any:  # noqa: N802
        """Return the friction, or the inverse relaxation time of "bussi", a Quantity."""
        return units.FS_PER_PS / self._bath.relaxation_fs / unit.picosecond

    def setFriction(self, coeff: Any) -> None:  # noqa: N802
        """Set the friction, or the inverse relaxation time of "bussi", a Quantity or 1/ps."""
        self._set_bath(
            self._bath.temperature_K, number_in(coeff, unit.picosecond**-1) / units.FS_PER_PS
        )

    @property
    def _bath(self) -> Thermostat:
        assert self._thermostat is not None
        return self._thermostat

    def _set_bath(self, temperature_K: float, friction_per_fs: float) -> None:
        name = "bussi" if isinstance(self._bath, Bussi) else "langevin"
        thermostat = make_thermostat(name, temperature_K, friction_per_fs)
        if self._loop is not None:
            self._loop.thermostat = thermostat
        self._thermostat = thermostat


def _femtoseconds(time: Any) -> float:
    """Convert from ps, such that 0.008 becomes 8."""
    return round(number_in(time, unit.picosecond) * units.FS_PER_PS, 9)
