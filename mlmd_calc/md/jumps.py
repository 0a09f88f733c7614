"""Dynamics made of long jumps, as ASE's own dynamics are made of short steps."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import IO, Any, Final

import ase
from ase.constraints import FixCom, FixSubsetCom
from ase.io.trajectory import Trajectory

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.geometry.constraints import acting_constraints
from mlmd_calc.md.attached import AttachedCalculator
from mlmd_calc.md.jump_engine import Jumps, show
from mlmd_calc.md.jump_logger import JumpLogger
from mlmd_calc.md.restartable import LARGEST_INTERVAL, StepLoop, trajectory_options
from mlmd_calc.options import positive_number, whole_number
from mlmd_calc.propagation import (
    Corrections,
    EventLog,
    JumpLoop,
    Propagator,
    Thermostat,
    make_thermostat,
)
from mlmd_calc.propagation.load import as_propagator
from mlmd_calc.propagation.loop_options import LoopOptions

_FASTEST_PER_FS: Final = 0.2
"""Rate of a thermostat beyond which a unit was probably forgotten."""


class JumpDynamics(StepLoop):
    """What :class:`JumpNVE` and :class:`JumpNVT` have in common.

    ``run``, ``irun``, ``attach``, loggers and trajectories work as with ASE's own dynamics. No
    calculator is needed if the propagator knows its potential, as the shipped ones do. One that is
    attached, at any time, serves energies, force-based steps, and fallbacks from rejected jumps;
    its forces are compared with those of the propagator's potential at the start, because what
    they add would not act on jumps.

    A start at rest, which propagators do not know, is warmed up by thermostat and force-based
    steps. Jumps that the guard rejects are drawn again, shortened, replaced by force-based steps if
    there are forces, or end the run with :class:`mlmd_calc.errors.PredictionError`; ``events``
    lists all of them. If the guard is told to stop instead, ``run`` returns False and ``stopped``
    says why.

    With ``frames_per_jump`` above 1 the call that predicts the end of a jump predicts frames inside
    it as well. `trajectory` has them all, equally spaced, and :attr:`inner_frames` has those of the
    last step; ``attach`` and the log know ends of steps only.

    Parameters
    ----------
    atoms
        An isolated molecule. The only constraint allowed is ``FixCom``.
    timestep
        Length of a jump in ASE time units.
    propagator
        Makes the jumps: a propagator, or the name or file of one.
    thermostat
        None for constant energy.
    trajectory, logfile, loginterval
        As in ASE, but the log is a :class:`JumpLogger`. A trajectory with frames inside jumps has
        those of every jump, which takes a `loginterval` of 1.
    md_timestep
        Time step of force-based steps in ASE time units; None for 0.5 fs.
    restart
        Restart file to go on from, to the last bit; see :meth:`save_restart`. All other arguments
        must be those of the interrupted run. A trajectory given by its name is appended to, after
        frames that are newer than the restart file have been removed.
    **options
        `corrections`, `guard`, `other_forces`, `md_steps_per_jump`, `frames_per_jump` and `rng`,
        see :class:`mlmd_calc.propagation.loop_options.LoopOptions`; those of ASE's dynamics, such
        as `append_trajectory`; `fixcm`, which keeps the centre of mass where it is as the
        constraint ``FixCom`` does; and a `communicator` of one process.

    Raises
    ------
    ConfigError
        If the options do not fit together, the propagator cannot do this stride or not with this
        thermostat, or forces act that it does not know.
    InputError
        If the atoms are periodic or carry other constraints, the propagator does not know such
        molecules, or atoms and calculator disagree about charge or multiplicity.
    ModelFileError
        If the restart file is missing or damaged or belongs to a run with other settings, or the
        trajectory lacks frames.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        propagator: Propagator | str | os.PathLike[str],
        thermostat: Thermostat | None,
        *,
        trajectory: Any = None,
        logfile: IO[str] | str | None = None,
        loginterval: int = 1,
        md_timestep: float | None = None,
        restart: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        loginterval = whole_number("loginterval", loginterval, 1, LARGEST_INTERVAL)
        of_loop = {key: options.pop(key) for key in LoopOptions.__annotations__ if key in options}
        communicator = options.pop("communicator", None)
        if getattr(communicator, "size", 1) > 1:
            raise ConfigError(
                f"communicator has {communicator.size} processes, but jumps are made by one; leave "
                "it out, or run replicas in one loop (mlmd_calc.propagation.JumpLoop)"
            )
        if options.pop("fixcm", False) or _fixes_centre(atoms):
            corrections = of_loop.get("corrections") or Corrections()
            of_loop["corrections"] = replace(corrections, fix_centre=True)
        propagator = as_propagator(propagator, atoms)
        inner_fs = 0.5 if md_timestep is None else _femtoseconds("md_timestep", md_timestep)
        self._jumps = Jumps(
            [atoms],
            propagator,
            _stride_fs(timestep, propagator),
            thermostat,
            forces=None if atoms.calc is None else AttachedCalculator(atoms),
            md_timestep_fs=inner_fs,
            **of_loop,
        )
        within = self.loop.setup.frames_per_step
        if within > 1 and trajectory is not None and loginterval != 1:
            raise ConfigError(
                f"loginterval={loginterval} with a trajectory of frames inside jumps "
                f"(frames_per_jump={self.loop.setup.frames_per_jump}), which are those of every "
                "jump; set it to 1, and attach a JumpLogger for fewer lines in the log"
            )
        frames = None
        if restart is not None:
            self.loop.load(restart)
            frames = 1 + within * (self.loop.step // loginterval)
        options |= trajectory_options(trajectory, frames, loginterval)
        # Not the argument: a restart file may tell of a length that was changed since the start.
        super().__init__(atoms, self.dt, loginterval=loginterval, **options)
        if within > 1 and trajectory is not None:
            self.insert_observer(self._write_inner_frames)  # type: ignore[no-untyped-call]
        if logfile:
            logger = JumpLogger(self, atoms, logfile)
            self.closelater(logger)  # type: ignore[no-untyped-call]
            self.attach(logger, loginterval)  # type: ignore[no-untyped-call]
        if restart is not None:
            self.nsteps = self.loop.step
            self._jumps.show()

    @property
    def loop(self) -> JumpLoop:
        """The loop that makes the jumps."""
        return self._jumps.loop

    @property
    def events(self) -> EventLog:
        """What the guard found and did."""
        return self.loop.events

    @property
    def stopped(self) -> str | None:
        """Why the run stopped; None if it did not."""
        return self.loop.stopped

    @property
    def inner_frames(self) -> list[ase.Atoms]:
        """Frames inside the last step, in the order of time, without calculator.

        ``info["time_fs"]`` is the time of each. There are none before the first step, after a
        restart, and with ``frames_per_jump=1``.
        """
        frames = []
        for state in self.loop.inner_frames[0]:
            frame = self.atoms.copy()
            frame.info["time_fs"] = state.time
            show(state, frame)
            frames.append(frame)
        return frames

    def _write_inner_frames(self) -> None:
        # Newer versions of ASE open a file that is given by its name for every frame.
        given: Any = self.trajectory
        opened = nullcontext(given) if hasattr(given, "write") else Trajectory(given, "a")
        with opened as trajectory:
            for frame in self.inner_frames:
                trajectory.write(frame)

    def step(self) -> None:
        """Do one jump, and the force-based steps after it."""
        if _fixes_centre(self.atoms) and not self.loop.setup.corrections.fix_centre:
            raise ConfigError("FixCom was set after the dynamics was made; make it after that")
        self._jumps.look()
        self._jumps.step()

    @property
    def dt(self) -> float:
        """Length of a jump in ASE time units; not to be changed with frames inside jumps."""
        return self.loop.stride_fs * units.FS

    @dt.setter
    def dt(self, timestep: float) -> None:
        self.loop.stride_fs = _stride_fs(timestep, self.loop.propagator)

    def set_timestep(self, timestep: float) -> None:
        """Change the length of a jump, as assigning `dt` does."""
        self.dt = timestep

    def get_time(self) -> float:
        """Return the simulated time in ASE time units, force-based steps included."""
        return self.loop.states[0].time * units.FS

    def todict(self) -> dict[str, Any]:
        """Return what trajectories store of the run."""
        return {
            **super().todict(),  # type: ignore[no-untyped-call]
            "propagator": self.loop.propagator.identity,
            "thermostat": repr(self.loop.thermostat),
        }

    def save_restart(self, path: str | os.PathLike[str]) -> None:
        """Write a restart file, replacing an older one in one go.

        Attach it after everything else, for instance ``dyn.attach(dyn.save_restart, 100, path)``,
        so that what it stands for has been written before.
        """
        self._jumps.look()
        self.loop.save(path)


class JumpNVE(JumpDynamics):
    """Dynamics at constant energy in which a propagator makes each step.

    Takes the place of :class:`ase.md.verlet.VelocityVerlet`.

    Parameters
    ----------
    atoms, timestep, propagator
        See :class:`JumpDynamics`.
    rescale_energy
        Keep the total energy by scaling velocities, and reject jumps for which that is impossible;
        costs an energy per jump.
    **kwargs
        See :class:`JumpDynamics`.

    Examples
    --------
    >>> import numpy as np
    >>> from ase import Atoms, units
    >>> from mlmd_calc.md import JumpNVE
    >>> from mlmd_calc.models.analytic import Harmonic
    >>> from mlmd_calc.propagation import Guard
    >>> from mlmd_calc.propagation.harmonic import HarmonicPropagator
    >>> atoms = Atoms("CO", [[0, 0, 0], [0.1, 0, 0]])
    >>> springs = HarmonicPropagator(Harmonic.springs(80.0 * np.ones((2, 2))))
    >>> dyn = JumpNVE(atoms, 8 * units.fs, springs, guard=Guard.off())
    >>> dyn.run(100)
    True
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        propagator: Propagator | str | os.PathLike[str],
        *,
        rescale_energy: bool = False,
        corrections: Corrections | None = None,
        **kwargs: Any,
    ) -> None:
        corrections = Corrections.of(corrections, rescale_energy=rescale_energy)
        super().__init__(atoms, timestep, propagator, None, corrections=corrections, **kwargs)


class JumpNVT(JumpDynamics):
    """Dynamics at constant temperature in which a propagator makes each step.

    Takes the place of :class:`ase.md.langevin.Langevin` or :class:`ase.md.bussi.Bussi`. The
    thermostat acts for half a time step before and half a time step after the jump.

    Parameters
    ----------
    atoms, timestep, propagator
        See :class:`JumpDynamics`.
    temperature_K
        Temperature in K.
    thermostat
        "langevin": all degrees of freedom, translation and rotation too. "bussi": stochastic
        velocity rescaling of internal motion.
    friction
        Langevin friction in inverse ASE time units. None: what is recommended for the propagator.
    taut
        Time constant of "bussi" in ASE time units.
    **kwargs
        See :class:`JumpDynamics`.

    Raises
    ------
    ConfigError
        If friction or time constant are missing or do not belong to the thermostat.

    Examples
    --------
    >>> import numpy as np
    >>> from ase import Atoms, units
    >>> from mlmd_calc.md import JumpNVT
    >>> from mlmd_calc.models.analytic import Harmonic
    >>> from mlmd_calc.propagation import Guard
    >>> from mlmd_calc.propagation.harmonic import HarmonicPropagator
    >>> atoms = Atoms("CO", [[0, 0, 0], [0.1, 0, 0]])
    >>> springs = HarmonicPropagator(Harmonic.springs(80.0 * np.ones((2, 2))))
    >>> friction = 0.01 / units.fs
    >>> dyn = JumpNVT(atoms, 8 * units.fs, springs, 300, friction=friction, guard=Guard.off())
    >>> dyn.run(100)
    True
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        propagator: Propagator | str | os.PathLike[str],
        temperature_K: float,
        *,
        thermostat: str = "langevin",
        friction: float | None = None,
        taut: float | None = None,
        **kwargs: Any,
    ) -> None:
        propagator = as_propagator(propagator, atoms)
        recommended = propagator.conditions.friction_per_ps
        if thermostat == "langevin" and friction is None and recommended is not None:
            friction = recommended / units.PS
        rate = _friction_per_fs(thermostat, friction, taut)
        chosen = make_thermostat(thermostat, temperature_K, rate)
        super().__init__(atoms, timestep, propagator, chosen, **kwargs)
        if rate > _FASTEST_PER_FS:
            warnings.warn(
                f"the thermostat acts at {rate * units.FS_PER_PS:.3g}/ps, where 1 to 100/ps are "
                "usual. friction is in inverse ASE units of time: for 10/ps write 0.01 / "
                "ase.units.fs; taut in these units: for 100 fs write 100 * ase.units.fs",
                stacklevel=2,
            )

    def set_temperature(
        self, temperature: float | None = None, temperature_K: float | None = None
    ) -> None:
        """Change the temperature.

        Parameters
        ----------
        temperature
            In eV, as in old versions of ASE.
        temperature_K
            In K.

        Raises
        ------
        ConfigError
            If not just one of them is given, or it is not positive.
        """
        if (temperature is None) == (temperature_K is None):
            raise ConfigError(
                f"temperature={temperature} and temperature_K={temperature_K}; give one of them"
            )
        if temperature is not None:
            temperature_K = positive_number("temperature", temperature) / units.KB
        self._change(temperature_K=temperature_K)

    def set_friction(self, friction: float) -> None:
        """Change the friction of "langevin", in inverse ASE time units."""
        self._change(friction_per_fs=positive_number("friction", friction) * units.FS)

    def set_taut(self, taut: float) -> None:
        """Change the time constant of "bussi", in ASE time units."""
        self._change(relaxation_fs=positive_number("taut", taut) / units.FS)

    def _change(self, **values: Any) -> None:
        thermostat: Any = self.loop.thermostat
        known = {item.name for item in fields(thermostat)}
        if wrong := set(values) - known:
            raise ConfigError(
                f"{type(thermostat).__name__} has no {wrong.pop()}, but {', '.join(sorted(known))}"
            )
        self.loop.thermostat = replace(thermostat, **values)


def _friction_per_fs(thermostat: str, friction: float | None, taut: float | None) -> float:
    """Friction, or inverse time constant, of which the thermostat takes one and not the other."""
    given = {"friction": friction, "taut": taut}
    needed, other = ("taut", "friction") if thermostat == "bussi" else ("friction", "taut")
    if given[needed] is None or given[other] is not None:
        raise ConfigError(
            f"thermostat={thermostat!r} takes {needed}=..., positive, and not {other}; got "
            f"friction={friction} and taut={taut}"
        )
    if friction is not None:
        return positive_number("friction", friction) * units.FS
    return units.FS / positive_number("taut", taut)


def _stride_fs(timestep: float, propagator: Propagator) -> float:
    """Convert from ASE time units, and tell who has taken these for femtoseconds."""
    stride = _femtoseconds("timestep", timestep)
    if stride not in propagator.strides and timestep in propagator.strides:
        raise ConfigError(
            f"timestep={timestep:g} is {stride:.4g} fs in ASE's units of time; for {timestep:g} fs "
            f"write {timestep:g} * ase.units.fs"
        )
    if stride not in propagator.strides and units.FS_PER_PS * timestep in propagator.strides:
        fs = units.FS_PER_PS * timestep
        raise ConfigError(
            f"timestep={timestep:g} is {stride:.4g} fs in ASE's units of time; for {timestep:g} ps "
            f"write {fs:g} * ase.units.fs"
        )
    return stride


def _femtoseconds(name: str, time: float) -> float:
    """Convert from ASE time units, such that 8 * ase.units.fs becomes 8."""
    return round(positive_number(name, time) / units.FS, 9)


def _fixes_centre(atoms: ase.Atoms) -> bool:
    """Whether the centre of mass is fixed; other constraints are refused."""
    acting = acting_constraints(atoms)
    # To ASE the centre of some atoms is a kind of the centre of all.
    others = [c for c in acting if not isinstance(c, FixCom) or isinstance(c, FixSubsetCom)]
    if others:
        raise InputError(
            f"the atoms carry the constraints {others}, which a jump would break; only FixCom is "
            "possible. Remove them with atoms.set_constraint()"
        )
    return len(acting) > 0
