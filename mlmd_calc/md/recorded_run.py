"""What runs of all engines have in common: frames, guards, checkpoints."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, TypeVar

import ase
import numpy as np
from ase.calculators.calculator import CalculatorError

from mlmd_calc import units
from mlmd_calc.bonds import Bonds, find_bonds
from mlmd_calc.electrons import ElectronicState, electronic_state
from mlmd_calc.errors import ConfigError, InputError, MLMDError, ModelFileError
from mlmd_calc.files import FolderLock, write_json
from mlmd_calc.md.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    Progress,
    calculator_results,
    load_rotation_state,
    rotation_state,
    run_identity,
)
from mlmd_calc.md.dynamics import degrees_of_freedom, draw_momenta, remove_rigid_motion
from mlmd_calc.md.record import FRAMES_FILE, Description, read_frames, replica_folders
from mlmd_calc.md.replica import Measured, Replica
from mlmd_calc.md.settings import Engine, MDSettings
from mlmd_calc.propagation.restart import check_identity

JOB_FILE: Final = "job.json"

_Run = TypeVar("_Run", bound="RecordedRun")


@dataclass(frozen=True)
class Outcome:
    """How a call of :meth:`RecordedRun.run` ended.

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


class RecordedRun(ABC):
    """A molecular-dynamics run in a folder of its own, whatever engine moves the atoms.

    The folder receives ``simulation.json`` and ``frames.npy`` (see
    :func:`mlmd_calc.md.read_record`), ``checkpoint.npz`` and, if the run fails, ``stopped.extxyz``.
    Every step is watched: a bond far from its reference length, a coordinate that is not finite, or
    forces that cannot be computed end the run. Replicas have their frames in folders of their own,
    ``replica-0`` and so on.

    Parameters
    ----------
    molecules
        Replicas as they are at the checkpoint, the first with a calculator.
    folder
        Folder of the run.
    description
        What the run is a run of.
    checkpoint
        Where it stands.

    Attributes
    ----------
    atoms
        The present state, of the first replica if there are several.
    replicas
        All molecules of the run.
    settings
        Settings of the run.
    step
        Steps done since the beginning of the run.
    """

    engine: ClassVar[Engine]
    made_of_jumps: ClassVar[bool] = False
    _lock: FolderLock | None = None

    def __init__(
        self,
        molecules: list[ase.Atoms],
        folder: Path,
        description: Description,
        checkpoint: Checkpoint,
    ) -> None:
        self.atoms = molecules[0]
        self.replicas = [
            Replica(atoms, own_folder, description, deviation)
            for atoms, own_folder, deviation in zip(
                molecules,
                replica_folders(folder, description.settings),
                checkpoint.progress.bond_deviations,
                strict=True,
            )
        ]
        self.folder = folder
        self.description = description
        self.settings = description.settings
        self.step = checkpoint.progress.step
        self._rng = np.random.default_rng()
        self._rng.bit_generator.state = checkpoint.progress.random_state
        # A model without an energy head simulates as well.
        self._has_energy = "energy" in self.atoms.calc.implemented_properties

    @abstractmethod
    def _move(self) -> None:
        """Do one step and bring the atoms up to date."""

    @abstractmethod
    def _measure(self) -> list[Measured]:
        """Return what is measured of each replica.

        See to it that the velocities are at the time of the positions.
        """

    @abstractmethod
    def _engine_results(self) -> dict[str, Any]:
        """Return what goes into ``Checkpoint.results``."""

    def _thermostat_state(self) -> dict[str, Any]:
        """Return what goes into ``Progress.thermostat``."""
        return {}

    @classmethod
    def _start(
        cls: type[_Run],
        atoms: ase.Atoms,
        folder: str | os.PathLike[str],
        settings: MDSettings,
        bonds: Bonds | None,
        keep_velocities: bool,
        engine_options: dict[str, str],
        job: Mapping[str, Any] | None,
        **parts: Any,
    ) -> _Run:
        """Begin a run; see the `start` of the engines."""
        folder = Path(folder)
        cls._check_kind(settings)
        _check_start(atoms, folder, settings, keep_velocities)
        # A jump keeps the angular momentum whatever the forces.
        torque_free = cls.made_of_jumps or _torque_free(atoms.calc)
        rng = np.random.default_rng(settings.seed)
        molecules = [atoms.copy() for _ in range(settings.replicas)]
        for molecule in molecules:
            if not keep_velocities:
                draw_momenta(molecule, settings.temperature_K, rng)
            remove_rigid_motion(molecule, settings.ensemble, torque_free)
        moving = molecules[0]
        moving.calc = atoms.calc
        description = Description(
            numbers=moving.numbers.astype(np.int64),
            masses=moving.get_masses(),
            bonds=find_bonds(moving) if bonds is None else bonds,
            settings=settings,
            degrees_of_freedom=degrees_of_freedom(len(moving), settings.ensemble, torque_free),
            info=_state(moving)._asdict(),
            engine=cls.engine,
            engine_options=engine_options,
        )
        moving.get_forces()
        checkpoint = Checkpoint(
            positions=np.stack([molecule.get_positions() for molecule in molecules]),
            momenta=np.stack([molecule.get_momenta() for molecule in molecules]),
            results=calculator_results(moving.calc),
            progress=Progress(
                step=0,
                frames=0,
                bond_deviations=[0.0] * len(molecules),
                random_state=dict(rng.bit_generator.state),
                thermostat={},
                rotations=rotation_state(moving.calc),
            ),
            identity=run_identity(description.to_dict(), moving.calc),
        )
        # What calculator or engine refuse must not leave a folder behind.
        run = cls(molecules, folder, description, checkpoint, **parts)
        folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(folder) as run._lock, contextlib.ExitStack() as on_failure:
            # Again, now that no other process can begin one.
            _refuse_run(folder)
            description.write(folder)
            if job is not None:
                write_json(folder / JOB_FILE, job)
            for replica in run.replicas:
                replica.create()
                on_failure.callback(replica.close)
            run._watch_bonds()
            run._record()
            # From here on there is a run that can be continued.
            run.checkpoint()
            on_failure.pop_all()
        return run

    @classmethod
    def resume(
        cls: type[_Run], folder: str | os.PathLike[str], calculator: Any, **parts: Any
    ) -> _Run:
        """Continue a run from its last checkpoint; frames recorded after it are dropped.

        Parameters
        ----------
        folder
            Folder of the run.
        calculator
            A calculator like the one the run was started with.
        **parts
            What else the engine was given at the start, such as the propagator of jumps.

        Raises
        ------
        ConfigError
            If the run was made with another engine, or one is made of jumps and the other not.
        ModelFileError
            If the folder holds no run, or its files are damaged.
        """
        folder = Path(folder)
        description = Description.read(folder)
        if description.engine is not cls.engine:
            raise ConfigError(
                f"the run in {folder} was made with engine {description.engine.value!r} and cannot "
                f"go on with {cls.engine.value!r}; continue it with the engine it was started with"
            )
        cls._check_kind(description.settings)
        with FolderLock(folder) as lock:
            checkpoint = Checkpoint.read(folder)
            check_identity(
                folder / CHECKPOINT_FILE,
                checkpoint.identity,
                run_identity(description.to_dict(), calculator),
                remedy="bring back the files of this run and its model, or start a new run",
            )
            run = cls._continued(folder, description, checkpoint, calculator, parts)
            run._lock = lock
        return run

    @classmethod
    def _continued(
        cls: type[_Run],
        folder: Path,
        description: Description,
        checkpoint: Checkpoint,
        calculator: Any,
        parts: Mapping[str, Any],
    ) -> _Run:
        """Put a run together again as it was at a checkpoint."""
        load_rotation_state(calculator, checkpoint.progress.rotations)
        molecules = [
            ase.Atoms(
                description.numbers,
                positions,
                masses=description.masses,
                momenta=momenta,
                info=description.info,
            )
            for positions, momenta in zip(checkpoint.positions, checkpoint.momenta, strict=True)
        ]
        molecules[0].calc = calculator
        run = cls(molecules, folder, description, checkpoint, **parts)
        for replica in run.replicas:
            replica.reopen(checkpoint.progress.frames)
        return run

    @classmethod
    def _check_kind(cls, settings: MDSettings) -> None:
        if (settings.jumps is not None) != cls.made_of_jumps:
            kinds = ("force-based steps", "jumps")
            raise ConfigError(
                f"{cls.__name__} is for runs made of {kinds[cls.made_of_jumps]}, but these "
                f"settings are of a run made of {kinds[settings.jumps is not None]}; use the class "
                "of the engine for those"
            )

    @property
    def temperature(self) -> float:
        """Present kinetic temperature in K, of all replicas together."""
        kinetic = np.mean([replica.atoms.get_kinetic_energy() for replica in self.replicas])
        return float(2.0 * kinetic / (self.description.degrees_of_freedom * units.KB))

    @property
    def counts(self) -> dict[str, int]:
        """What else is worth showing of the run so far."""
        return {}

    def run(
        self: _Run,
        last_step: int,
        *,
        on_frame: Callable[[_Run], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Outcome:
        """Run until a step is reached.

        Parameters
        ----------
        last_step
            Step to stop after, counted from the beginning of the run.
        on_frame
            Called with the simulation after every recorded frame.
        should_stop
            Asked after every step; the run ends when it says yes.

        Returns
        -------
        Outcome
            With a checkpoint at its step, unless it failed: then the last checkpoint from before
            the failure stays. The state at the end is recorded even between two regular frames;
            such a frame is dropped when the run goes on.
        """
        for replica in self.replicas:
            replica.forget_end()
        while self.step < last_step:
            reason = self._advance()
            if reason is not None:
                for replica in self.replicas:
                    replica.write_stopped()
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
            for replica, measured in zip(self.replicas, self._measure(), strict=True):
                replica.record_end(self.step, measured)
        return Outcome(verdict, self.step)

    def _advance(self) -> str | None:
        """Do one step, and record it if that is due; return what went wrong, if anything."""
        self.step += 1
        reason = None
        try:
            self._move()
            if not all(replica.finite for replica in self.replicas):
                return "positions or velocities are not finite any more"
            reason = self._watch_bonds()
            if reason is not None or self.step % self.settings.interval == 0:
                self._record()
        except (MLMDError, CalculatorError) as error:
            # A molecule that has come apart is the reason, not what the model makes of it.
            reason = reason or str(error)
        return reason

    def _watch_bonds(self) -> str | None:
        """Note the largest deviations of bonds; say so if one is too large."""
        found = {index: replica.watch_bonds() for index, replica in enumerate(self.replicas)}
        problems = {index: text for index, text in found.items() if text is not None}
        if not problems:
            return None
        index, text = next(iter(problems.items()))
        return text if len(self.replicas) == 1 else f"replica {index}: {text}"

    def _record(self) -> None:
        """Append the present state to the recorded frames."""
        for replica, measured in zip(self.replicas, self._measure(), strict=True):
            replica.record(self.step, measured)

    def checkpoint(self) -> None:
        """Write a checkpoint; the frames recorded so far become readable as well."""
        for replica in self.replicas:
            replica.flush()
        Checkpoint(
            positions=np.stack([replica.atoms.get_positions() for replica in self.replicas]),
            momenta=np.stack([replica.atoms.get_momenta() for replica in self.replicas]),
            results=self._engine_results(),
            progress=Progress(
                step=self.step,
                frames=self.replicas[0].frames,
                bond_deviations=[replica.bond_deviation for replica in self.replicas],
                random_state=dict(self._rng.bit_generator.state),
                thermostat=self._thermostat_state(),
                rotations=rotation_state(self.atoms.calc),
            ),
            identity=run_identity(self.description.to_dict(), self.atoms.calc),
        ).write(self.folder)

    def close(self) -> None:
        """Close the files of frames, and leave the folder to others."""
        try:
            for replica in self.replicas:
                replica.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self: _Run) -> _Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_start(
    atoms: ase.Atoms, folder: Path, settings: MDSettings, keep_velocities: bool
) -> None:
    _refuse_run(folder)
    if atoms.constraints:
        raise InputError(
            f"the atoms carry the constraints {atoms.constraints}, which would change the number "
            "of degrees of freedom; remove them with atoms.set_constraint()"
        )
    if keep_velocities and not atoms.has("momenta"):
        raise ConfigError("the atoms have no velocities to keep; let them be drawn")
    if keep_velocities and settings.replicas > 1 and not settings.thermostatted:
        raise ConfigError(
            f"{settings.replicas} replicas with the same velocities would all do the same at "
            "constant energy; let velocities be drawn, or use a thermostat"
        )


def _refuse_run(folder: Path) -> None:
    """Refuse a folder with a run that can be continued, or of which there is more than the start.

    One that was killed before its first checkpoint is no run yet.
    """
    begun = (folder / CHECKPOINT_FILE).exists()
    for path in [folder / FRAMES_FILE, *folder.glob(f"replica-*/{FRAMES_FILE}")]:
        with contextlib.suppress(ModelFileError):
            begun = begun or len(read_frames(path)) > 1
    if begun:
        raise ConfigError(f"{folder} holds a run already; continue it, or choose another folder")


def _state(atoms: ase.Atoms) -> ElectronicState:
    """Charge and multiplicity that the calculator takes the atoms to have."""
    calculator: Any = atoms.calc
    return electronic_state(
        atoms, getattr(calculator, "charge", None), getattr(calculator, "multiplicity", None)
    )


def _torque_free(calculator: Any) -> bool:
    """Whether forces have no net torque: always, save for an MD-ET model left unprojected."""
    potential = getattr(calculator, "potential", None)
    return True if potential is None else bool(potential.remove_net_torque)
