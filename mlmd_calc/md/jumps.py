"""Dynamics made of long jumps, as ASE's own dynamics are made of short steps."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, Any

import ase
import numpy as np
from ase.calculators.calculator import CalculatorError, PropertyNotImplementedError
from ase.constraints import FixCom
from ase.io.trajectory import Trajectory
from ase.md.logger import MDLogger
from ase.md.md import MolecularDynamics

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.files import replacing
from mlmd_calc.md.checkpoint import (
    calculator_results,
    load_rotation_state,
    restore_results,
    rotation_state,
)
from mlmd_calc.potential import Evaluation, Structure, structure_from_ase
from mlmd_calc.propagation import (
    Corrections,
    EventLog,
    Guard,
    JumpLoop,
    OtherForces,
    Propagator,
    State,
    Thermostat,
    make_thermostat,
    state_from_ase,
)
from mlmd_calc.propagation.load import as_propagator


def state_of(atoms: ase.Atoms, calculator: Any) -> State:
    """State of atoms, with the charge and multiplicity that their calculator takes them to have.

    Parameters
    ----------
    atoms
        An isolated molecule.
    calculator
        Its calculator, a sum of calculators, or None.

    Raises
    ------
    InputError
        If atoms and calculators disagree, or as :func:`state_from_ase`.
    """
    found = [
        structure_from_ase(atoms, *(_parameter(part, name) for name in ("charge", "multiplicity")))
        for part in _parts(calculator)
        if any(_parameter(part, name) is not None for name in ("charge", "multiplicity"))
    ]
    states = {(structure.charge, structure.multiplicity) for structure in found}
    if len(states) > 1:
        raise InputError(
            f"the calculators take the molecule to have charge and multiplicity {sorted(states)}; "
            "give all of them the same"
        )
    state = state_from_ase(atoms)
    for charge, multiplicity in states:
        state = replace(state, charge=charge, multiplicity=multiplicity)
    return state


def _parts(calculator: Any) -> list[Any]:
    """List the calculators of a sum of calculators."""
    sum_of = getattr(getattr(calculator, "mixer", calculator), "calcs", None)
    return [calculator] if sum_of is None else [part for calc in sum_of for part in _parts(calc)]


def _parameter(calculator: Any, name: str) -> Any:
    return (getattr(calculator, "parameters", None) or {}).get(name)


class AttachedCalculator:
    """The calculator of atoms as force model of the jump loop.

    Parameters
    ----------
    atoms
        Atoms with a calculator; cell and ``atoms.info`` are theirs.
    """

    def __init__(self, atoms: ase.Atoms) -> None:
        self.atoms = atoms

    @property
    def model(self) -> Any:
        """Network of the calculator, if it has one."""
        return getattr(getattr(self.atoms.calc, "potential", None), "model", None)

    @property
    def has_energy(self) -> bool:
        """Whether the calculator knows energies."""
        return "energy" in getattr(self.atoms.calc, "implemented_properties", ())

    def evaluate(
        self, structures: Sequence[Structure], properties: Sequence[str] = ("energy", "forces")
    ) -> list[Evaluation]:
        """Ask the calculator, which answers from memory where it can.

        Raises
        ------
        PredictionError
            If the calculation fails.
        """
        return [self._evaluate(structure, properties) for structure in structures]

    def _evaluate(self, structure: Structure, properties: Sequence[str]) -> Evaluation:
        moved = self.atoms.copy()
        moved.set_positions(structure.positions, apply_constraint=False)
        found: dict[str, Any] = {"energy": None, "forces": None}
        try:
            for name in properties:
                found[name] = self.atoms.calc.get_property(name, moved)
        except PropertyNotImplementedError as error:
            raise ConfigError(
                f"{type(self.atoms.calc).__name__} does not know {error}, which this run needs; "
                "attach a calculator that does"
            ) from error
        except CalculatorError as error:
            raise PredictionError(f"{type(self.atoms.calc).__name__}: {error}") from error
        return Evaluation(found["energy"], found["forces"])

    def state_dict(self) -> dict[str, Any]:
        """Random orientations of the calculator, and what it has in memory.

        With random orientations asking again would give another answer.
        """
        calc = self.atoms.calc
        last = getattr(calc, "atoms", None)
        return {
            "rotations": rotation_state(calc),
            "positions": None if last is None else last.get_positions(),
            "results": None if last is None else calculator_results(calc),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        calc = self.atoms.calc
        load_rotation_state(calc, state["rotations"])
        if state["results"] is not None:
            last = self.atoms.copy()
            last.set_positions(state["positions"], apply_constraint=False)
            last.calc = calc
            restore_results(last, state["results"])


class JumpLogger(MDLogger):
    """Log of a jump run: never evaluates anything, and counts interventions.

    Energies are those that the run has evaluated anyway, else "-". For energies at every line
    attach :class:`ase.md.MDLogger`, which evaluates them.

    Parameters
    ----------
    dyn
        The dynamics.
    atoms
        Its atoms.
    logfile
        File name or open file, "-" for standard output.
    """

    def __init__(self, dyn: JumpDynamics, atoms: ase.Atoms, logfile: IO[str] | str) -> None:
        super().__init__(dyn, atoms, logfile, header=False)
        self.logfile.write(
            f"{'Time[ps]':<10}{'Etot[eV]':>14}{'Epot[eV]':>14}{'Ekin[eV]':>12}{'T[K]':>9}"
            f"{'redrawn':>9}{'fallback':>9}\n"
        )

    def __call__(self) -> None:
        """Write a line."""
        atoms: ase.Atoms = self.atoms
        dyn: Any = self.dyn
        kinetic = atoms.get_kinetic_energy()
        potential = dyn.loop.states[0].energy
        energies = [f"{'-':>14}"] * 2
        if potential is not None:
            energies = [f"{potential + kinetic:>14.4f}", f"{potential:>14.4f}"]
        counts = dyn.events.counts()
        self.logfile.write(
            f"{dyn.get_time() / units.PS:<10.4f}{''.join(energies)}{kinetic:>12.4f}"
            f"{atoms.get_temperature():>9.1f}"
            f"{counts['redraw'] + counts['shorter']:>9d}{counts['fallback']:>9d}\n"
        )
        self.logfile.flush()


class JumpDynamics(MolecularDynamics):
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
        As in ASE, but the log is a :class:`JumpLogger`.
    corrections
        Corrections of a jump; None for the usual ones.
    guard
        Checks of a jump; None for the usual ones, ``Guard.off()`` for none.
    other_forces
        What is done with forces of the calculator that are not those of the propagator's potential,
        a bias for instance: "refuse" the run, let them "kick" the molecule before and
        after each of two jumps over half the stride, or "ignore" them in jumps.
    md_steps_per_jump
        Force-based steps after each jump, part of the same step.
    md_timestep
        Time step of force-based steps in ASE time units; None for 0.5 fs.
    rng
        ``numpy.random.Generator``, the source of all randomness; None draws a seed.
    restart
        Restart file to go on from, to the last bit; see :meth:`save_restart`. All other arguments
        must be those of the interrupted run. A trajectory given by its name is appended to, after
        frames that are newer than the restart file have been removed.
    fixcm
        Keep the centre of mass where it is, as the constraint ``FixCom`` does.
    communicator
        As in ASE; a run made of jumps is one process.
    **kwargs
        As in ASE, ``append_trajectory`` for instance.

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
        corrections: Corrections | None = None,
        guard: Guard | None = None,
        other_forces: OtherForces = "refuse",
        md_steps_per_jump: int = 0,
        md_timestep: float | None = None,
        rng: np.random.Generator | None = None,
        restart: str | os.PathLike[str] | None = None,
        fixcm: bool = False,
        communicator: Any = None,
        **kwargs: Any,
    ) -> None:
        if getattr(communicator, "size", 1) > 1:
            raise ConfigError(
                f"communicator has {communicator.size} processes, but jumps are made by one; leave "
                "it out, or run replicas in one loop (mlmd_calc.propagation.JumpLoop)"
            )
        corrections = Corrections() if corrections is None else corrections
        if _fixes_centre(atoms) or fixcm:
            corrections = replace(corrections, fix_centre=True)
        self._calc = atoms.calc
        self.loop = JumpLoop(
            [state_of(atoms, atoms.calc)],
            as_propagator(propagator, atoms),
            _femtoseconds(timestep),
            thermostat=thermostat,
            corrections=corrections,
            guard=guard,
            forces=None if atoms.calc is None else AttachedCalculator(atoms),
            other_forces=other_forces,
            md_steps_per_jump=md_steps_per_jump,
            md_timestep_fs=0.5 if md_timestep is None else _femtoseconds(md_timestep),
            rng=rng,
        )
        if isinstance(trajectory, os.PathLike):
            # Old versions of ASE know names as text only.
            trajectory = os.fspath(trajectory)
        if restart is not None:
            self.loop.load(restart)
            if isinstance(trajectory, str):
                truncate_trajectory(trajectory, 1 + self.loop.step // loginterval)
                kwargs["append_trajectory"] = True
        super().__init__(atoms, timestep, trajectory=trajectory, loginterval=loginterval, **kwargs)
        if logfile:
            logger = JumpLogger(self, atoms, logfile)
            self.closelater(logger)  # type: ignore[no-untyped-call]
            self.attach(logger, loginterval)  # type: ignore[no-untyped-call]
        if restart is not None:
            self.nsteps = self.loop.step
            self._show()
        self._shown = atoms.get_positions(), atoms.get_momenta()

    @property
    def events(self) -> EventLog:
        """What the guard found and did."""
        return self.loop.events

    @property
    def stopped(self) -> str | None:
        """Why the run stopped; None if it did not."""
        return self.loop.stopped

    def step(self) -> None:
        """Do one jump, and the force-based steps after it."""
        self._look()
        if self.loop.advance():
            self._show()

    def _look(self) -> None:
        """Take over what the user has done to the atoms since the last step."""
        atoms, old = self.atoms, self.loop.states[0]
        new = replace(state_of(atoms, atoms.calc), time=old.time, memory=old.memory)
        positions, momenta = self._shown
        if not (
            np.array_equal(atoms.positions, positions)
            and np.array_equal(atoms.get_momenta(), momenta)
            and np.array_equal(new.masses, old.masses)
            and np.array_equal(new.numbers, old.numbers)
            and (new.charge, new.multiplicity) == (old.charge, old.multiplicity)
        ):
            self.loop.states = [new]
            self._shown = atoms.get_positions(), atoms.get_momenta()
        if atoms.calc is not self._calc:
            self._calc = atoms.calc
            self.loop.forces = None if atoms.calc is None else AttachedCalculator(atoms)

    def _show(self) -> None:
        """Give the atoms the positions and momenta of the loop."""
        state = self.loop.states[0]
        momenta = state.masses[:, None] * (state.velocities / units.FS)
        self.atoms.set_positions(state.positions, apply_constraint=False)
        self.atoms.set_momenta(momenta, apply_constraint=False)
        self._shown = self.atoms.get_positions(), self.atoms.get_momenta()

    def irun(self, steps: int = 50) -> Generator[bool, None, None]:
        """Run as a generator, which yields after every step whether the run is complete.

        ASE's own would evaluate forces after every step.
        """
        if _fixes_centre(self.atoms) and not self.loop.setup.corrections.fix_centre:
            raise ConfigError("FixCom was set after the dynamics was made; make it after that")
        self.max_steps = self.nsteps + steps
        if self.nsteps == 0:
            self.call_observers()  # type: ignore[no-untyped-call]
        yield self.nsteps >= self.max_steps
        while self.nsteps < self.max_steps:
            self.step()
            if self.stopped is not None:
                return
            self.nsteps += 1
            self.call_observers()  # type: ignore[no-untyped-call]
            yield self.nsteps >= self.max_steps

    def run(self, steps: int = 50) -> bool:
        """Run for a number of steps.

        Returns
        -------
        bool
            Whether all of them were done.
        """
        for _ in self.irun(steps):
            pass
        return self.nsteps >= self.max_steps

    def _refresh_properties(self) -> None:
        """Leave the forces alone, which newer versions of ASE evaluate here."""

    def set_timestep(self, timestep: float) -> None:
        """Change the length of a jump, in ASE time units; see :class:`JumpDynamics`."""
        self.loop.stride_fs = _femtoseconds(timestep)
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
        self._look()
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
            temperature_K = temperature / units.KB
        self._change(temperature_K=temperature_K)

    def set_friction(self, friction: float) -> None:
        """Change the friction of "langevin", in inverse ASE time units."""
        self._change(friction_per_fs=friction * units.FS)

    def set_taut(self, taut: float) -> None:
        """Change the time constant of "bussi", in ASE time units."""
        self._change(relaxation_fs=taut / units.FS)

    def _change(self, **values: Any) -> None:
        thermostat: Any = self.loop.thermostat
        known = {item.name for item in fields(thermostat)}
        if wrong := set(values) - known:
            raise ConfigError(
                f"{type(thermostat).__name__} has no {wrong.pop()}, but {', '.join(sorted(known))}"
            )
        self.loop.thermostat = replace(thermostat, **values)


def truncate_trajectory(path: str | os.PathLike[str], frames: int) -> None:
    """Keep the first frames of an ASE trajectory file.

    Raises
    ------
    ModelFileError
        If there are fewer.
    """
    path = Path(path)
    with Trajectory(path) as old:
        if len(old) < frames:
            raise ModelFileError(
                f"{path} holds {len(old)} frames, but {frames} were written before the restart "
                "file; bring back the original file or choose another name"
            )
        if len(old) == frames:
            return
        with replacing(path) as temporary, Trajectory(temporary, "w") as new:
            new.set_description(old.description or {})
            for index in range(frames):
                new.write(old[index])


def _friction_per_fs(thermostat: str, friction: float | None, taut: float | None) -> float:
    """Friction, or inverse time constant, of which the thermostat takes one and not the other."""
    given = {"friction": friction, "taut": taut}
    needed, other = ("taut", "friction") if thermostat == "bussi" else ("friction", "taut")
    if given[needed] is None or given[other] is not None or taut == 0.0:
        raise ConfigError(
            f"thermostat={thermostat!r} takes {needed}=..., positive, and not {other}; got "
            f"friction={friction} and taut={taut}"
        )
    if friction is not None:
        return friction * units.FS
    assert taut is not None
    return units.FS / taut


def _femtoseconds(time: float) -> float:
    """Convert from ASE time units, such that 8 * ase.units.fs becomes 8."""
    return round(time / units.FS, 9)


def _fixes_centre(atoms: ase.Atoms) -> bool:
    """Whether the centre of mass is fixed; other constraints are refused."""
    others = [c for c in atoms.constraints if not isinstance(c, FixCom)]
    if others:
        raise InputError(
            f"the atoms carry the constraints {others}, which a jump would break; only FixCom is "
            "possible. Remove them with atoms.set_constraint()"
        )
    return len(atoms.constraints) > 0
