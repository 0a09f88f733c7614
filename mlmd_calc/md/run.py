"""One molecular-dynamics run: recorded, watched, and restartable bit for bit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from ase.calculators.calculator import CalculatorError

from mlmd_calc import units
from mlmd_calc.errors import MLMDError
from mlmd_calc.geometry.bonds import Bonds
from mlmd_calc.io.files import FolderLock, write_json
from mlmd_calc.io.restart import check_identity
from mlmd_calc.md.ase_engine import ASE
from mlmd_calc.md.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    load_rotation_state,
    rotation_state,
    run_identity,
)
from mlmd_calc.md.engine import Dynamics, DynamicsState, RunEngine
from mlmd_calc.md.jump_engine import EVENTS_FILE, JumpCounts, count_jumps
from mlmd_calc.md.record import Description
from mlmd_calc.md.recorder import Recorder
from mlmd_calc.md.settings import MDSettings
from mlmd_calc.md.start import (
    check_engine,
    check_propagator,
    check_start,
    describe,
    has_no_net_torque,
    refuse_run,
    start_molecules,
)
from mlmd_calc.propagation import JumpLoop, Propagator

JOB_FILE: Final = "job.json"


@dataclass(frozen=True)
class Outcome:
    """How a call of :meth:`Run.run` ended.

    Attributes
    ----------
    verdict
        "completed", "interrupted" (asked to stop) or "failed" (the molecule came apart, or the
        forces could not be computed).
    step
        Steps done since the beginning of the run.
    reason
        What went wrong; empty unless it failed.
    """

    verdict: str
    step: int
    reason: str = ""


class Run:
    """A run in a folder of its own; make one with `start` or `resume`.

    The folder receives ``simulation.json`` and ``frames.npy`` (see
    :func:`mlmd_calc.md.read_record`), a trajectory for other programs if one is asked for,
    ``checkpoint.npz``, ``events.jsonl`` if the run is made of jumps and, if it fails,
    ``stopped.extxyz``. Every step is watched: a bond far from its reference length, a coordinate
    that is not finite, or forces that cannot be computed end the run. Replicas have their frames in
    folders of their own, ``replica-0`` and so on.

    Parameters
    ----------
    dynamics
        Moves the molecules.
    recorder
        Writes down what they do.
    rng
        Source of randomness of the run.
    step
        Steps done since the beginning of the run.

    Attributes
    ----------
    molecules, atoms
        The present state of all replicas, and that of the first.
    folder, description, settings
        Folder of the run, what it is, and its settings.
    dynamics, sampler
        What does the steps; what samples an exact ensemble, None in every other run.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator, Potential
    >>> from mlmd_calc.md import JumpSettings, MDSettings, Run
    >>> from mlmd_calc.propagation import VerletPropagator
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = MDETCalculator()
    >>> with Run.start(atoms, "steps", MDSettings(), trajectory="extxyz") as run:
    ...     run.run(2000)
    Outcome(verdict='completed', step=2000, reason='')
    >>> propagator = VerletPropagator(Potential(), timestep_fs=0.5)
    >>> settings = MDSettings(jumps=JumpSettings("verlet", stride_fs=8.0, replicas=4))
    >>> with Run.start(atoms, "jumps", settings, propagator=propagator) as run:
    ...     run.run(100)
    Outcome(verdict='completed', step=100, reason='')
    """

    def __init__(
        self, dynamics: Dynamics, recorder: Recorder, rng: np.random.Generator, step: int = 0
    ) -> None:
        self.step = step
        self.molecules, self.atoms = recorder.molecules, recorder.molecules[0]
        self.folder = recorder.folder
        self.description, self.settings = recorder.description, recorder.description.settings
        self.sampler = dynamics.sampler
        self.dynamics, self._recorder, self._rng = dynamics, recorder, rng
        self._lock: FolderLock | None = None

    @classmethod
    def start(
        cls,
        atoms: ase.Atoms,
        folder: str | os.PathLike[str],
        settings: MDSettings,
        *,
        engine: RunEngine = ASE,
        propagator: Propagator | None = None,
        bonds: Bonds | None = None,
        keep_velocities: bool = False,
        job: Mapping[str, Any] | None = None,
        trajectory: str | None = None,
    ) -> Run:
        """Begin a run.

        Parameters
        ----------
        atoms
            An isolated molecule with a calculator; it is copied.
        folder
            Folder of the run, made if need be.
        settings
            Settings of the run.
        engine
            What moves the atoms, for instance :class:`openmm_bridge.OpenMMEngine`.
        propagator
            Makes the jumps if the settings have `jumps`.
        bonds
            Bonds to watch and their reference lengths; None takes those of the given structure.
        keep_velocities
            Use the velocities of the atoms instead of drawing them. What the ensemble conserves
            (see :mod:`mlmd_calc.md.dynamics`) is removed from them too.
        job
            What a program wants to find again beside the run; JSON-able, written as ``job.json``.
        trajectory
            Format of a file ``trajectory.FORMAT`` that other programs can read while it grows:
            "extxyz", "traj", "dcd" or "xtc". None: no such file, but ``frames.npy`` alone.

        Raises
        ------
        ConfigError
            If the folder holds a run already, there are no velocities to keep, or settings,
            propagator, engine and trajectory do not fit together.
        InputError
            If the atoms carry constraints, or calculator, engine or propagator refuse them.
        MissingDependencyError
            If the engine, or the format of the trajectory, does not work here.
        """
        folder = Path(folder)
        check_propagator(settings, propagator)
        if propagator is not None:
            settings = settings.with_friction(propagator.conditions.friction_per_ps)
        check_start(atoms, folder, settings, keep_velocities)
        # A jump keeps the angular momentum whatever the forces.
        torque_free = propagator is not None or has_no_net_torque(atoms.calc)
        description = describe(atoms, settings, bonds, torque_free, engine)
        rng = np.random.default_rng(settings.seed)
        molecules = start_molecules(atoms, settings, keep_velocities, torque_free, rng)
        molecules[0].get_forces()
        # If calculator or engine refuse, no folder must be left behind.
        dynamics = engine.make(molecules, description, folder, rng, propagator)
        dynamics.begin()
        run = cls(dynamics, Recorder(molecules, folder, description, trajectory), rng)
        folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(folder).kept() as run._lock, contextlib.ExitStack() as on_failure:
            # Again, now that no other process can begin one.
            refuse_run(folder)
            description.write(folder)
            if job is not None:
                write_json(folder / JOB_FILE, job)
            on_failure.callback(run._recorder.close)
            run._recorder.create()
            run._recorder.watch_bonds()
            run._recorder.record(0, dynamics.measure())
            # From here on there is a run that can be continued.
            run.checkpoint()
            on_failure.pop_all()
        return run

    @classmethod
    def resume(
        cls,
        folder: str | os.PathLike[str],
        calculator: Any,
        *,
        engine: RunEngine = ASE,
        propagator: Propagator | None = None,
        trajectory: str | None = None,
    ) -> Run:
        """Continue a run from its last checkpoint; frames recorded after it are dropped.

        Parameters
        ----------
        folder
            Folder of the run.
        calculator, engine, propagator
            Like those the run was started with.
        trajectory
            Format of the trajectory file from here on, which has all frames also if it is a new
            one. None: as before.

        Raises
        ------
        ConfigError
            If the run was made with another engine, or one is made of jumps and the other not.
        ModelFileError
            If the folder holds no run, or its files are damaged or of another run.
        """
        folder = Path(folder)
        description = Description.read(folder)
        check_engine(description, engine)
        check_propagator(description.settings, propagator)
        with FolderLock(folder).kept() as lock:
            checkpoint = Checkpoint.read(folder)
            check_identity(
                folder / CHECKPOINT_FILE,
                checkpoint.identity,
                run_identity(description.to_dict(), calculator),
                remedy="bring back the files of this run and its model, or start a new run",
            )
            molecules = checkpoint.molecules(description)
            molecules[0].calc = calculator
            rng = np.random.default_rng()
            rng.bit_generator.state = checkpoint.random_state
            # The compiled force contains the seed.
            load_rotation_state(calculator, checkpoint.rotations)
            dynamics = engine.make(molecules, description, folder, rng, propagator)
            dynamics.load_state_dict(DynamicsState(checkpoint.results, checkpoint.thermostat))
            # Again, because making dynamics may evaluate forces, which draws orientations.
            load_rotation_state(calculator, checkpoint.rotations)
            if trajectory is None and checkpoint.trajectory is not None:
                trajectory = checkpoint.trajectory["format"]
            recorder = Recorder(molecules, folder, description, trajectory)
            run = cls(dynamics, recorder, rng, checkpoint.step)
            recorder.reopen(checkpoint.frames, checkpoint.bond_deviations, checkpoint.trajectory)
            run._lock = lock
        return run

    def __repr__(self) -> str:
        return f"<Run of {self.atoms.get_chemical_formula()} in {self.folder}: step {self.step}>"

    @property
    def temperature(self) -> float:
        """Present kinetic temperature in K, of all replicas together."""
        kinetic = np.mean([atoms.get_kinetic_energy() for atoms in self.molecules])
        return float(2.0 * kinetic / (self.description.degrees_of_freedom * units.KB))

    @property
    def loop(self) -> JumpLoop | None:
        """The loop that makes the jumps, with its events; None if steps are force-based."""
        return self.dynamics.loop

    @property
    def counts(self) -> JumpCounts | None:
        """Count the jumps of all replicas; None if steps are force-based."""
        return None if self.loop is None else count_jumps(self.loop)

    def run(
        self,
        last_step: int,
        *,
        on_frame: Callable[[Run], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Outcome:
        """Run until a step is reached.

        Parameters
        ----------
        last_step
            Step to stop after, counted from the beginning of the run.
        on_frame
            Called with the run after every recorded frame.
        should_stop
            Asked after every step; the run ends when it says yes.

        Returns
        -------
        Outcome
            With a checkpoint at its step, unless it failed: then the last checkpoint from before
            the failure stays. The state at the end is recorded even between two regular frames;
            such a frame is dropped when the run goes on.
        """
        self._recorder.forget_end()
        while self.step < last_step:
            reason = self._advance()
            if reason is not None:
                self._recorder.write_stopped()
                return Outcome("failed", self.step, reason)
            if self.step % self.settings.interval == 0 and on_frame is not None:
                on_frame(self)
            if self.step % self.settings.checkpoint_interval == 0:
                self.checkpoint()
            if should_stop is not None and should_stop():
                return self._end("interrupted")
        return self._end("completed")

    def _end(self, verdict: str) -> Outcome:
        self.checkpoint()
        if self.step % self.settings.interval:
            # After the checkpoint, which knows nothing of it: a run that goes on is the same.
            self._recorder.record_end(self.step, self.dynamics.measure())
        return Outcome(verdict, self.step)

    def _advance(self) -> str | None:
        """Do one step, and record it if that is due; return what went wrong, if anything."""
        self.step += 1
        reason = None
        try:
            self.dynamics.step()
            if not self._recorder.finite:
                return "positions or velocities are not finite any more"
            reason = self._recorder.watch_bonds()
            if reason is not None or self.step % self.settings.interval == 0:
                inside = () if self.loop is None else self.loop.inner_frames
                self._recorder.record(self.step, self.dynamics.measure(), inside)
        except (MLMDError, CalculatorError) as error:
            # A molecule that has come apart is the reason, not what the model makes of it.
            reason = reason or str(error)
        return reason

    def checkpoint(self) -> None:
        """Write a checkpoint; frames and events so far become readable as well."""
        self._recorder.sync()
        results, thermostat = self.dynamics.state_dict()
        Checkpoint(
            identity=run_identity(self.description.to_dict(), self.atoms.calc),
            step=self.step,
            positions=np.stack([atoms.get_positions() for atoms in self.molecules]),
            momenta=np.stack([atoms.get_momenta() for atoms in self.molecules]),
            results=results,
            thermostat=thermostat,
            random_state=dict(self._rng.bit_generator.state),
            rotations=rotation_state(self.atoms.calc),
            frames=self._recorder.frames,
            bond_deviations=self._recorder.bond_deviations,
            trajectory=self._recorder.trajectory,
        ).write(self.folder)
        self._save_events()

    def _save_events(self) -> None:
        if self.loop is not None:
            self.loop.events.save(self.folder / EVENTS_FILE)

    def close(self) -> None:
        """Write the events, close the files of frames, and leave the folder to others."""
        with contextlib.ExitStack() as last:
            if self._lock is not None:
                last.callback(self._lock.release)
            last.callback(self._recorder.close)
            self._save_events()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
