"""What runs of all engines have in common: frames, guards, checkpoints."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, TypeVar

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import CalculatorError
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, MLMDError
from mlmd_calc.md.bonds import Bonds, find_bonds
from mlmd_calc.md.checkpoint import (
    Checkpoint,
    Progress,
    calculator_results,
    load_rotation_state,
    rotation_state,
)
from mlmd_calc.md.dynamics import degrees_of_freedom, draw_momenta, remove_rigid_motion
from mlmd_calc.md.record import (
    DESCRIPTION_FILE,
    FRAMES_FILE,
    STOPPED_FILE,
    Description,
    FrameWriter,
)
from mlmd_calc.md.settings import Engine, MDSettings

_INFO: Final = ("charge", "multiplicity", "spin")
"""Entries of ``atoms.info`` that decide the forces."""

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
    forces that cannot be computed end the run.

    Parameters
    ----------
    atoms
        Atoms as they are at the checkpoint, with a calculator.
    folder
        Folder of the run.
    description
        What the run is a run of.
    checkpoint
        Where it stands.

    Attributes
    ----------
    atoms
        The present state.
    settings
        Settings of the run.
    step
        Steps done since the beginning of the run.
    """

    engine: ClassVar[Engine]
    _writer: FrameWriter

    def __init__(
        self, atoms: ase.Atoms, folder: Path, description: Description, checkpoint: Checkpoint
    ) -> None:
        self.atoms = atoms
        self.folder = folder
        self.description = description
        self.settings = description.settings
        self.step = checkpoint.progress.step
        self._rng = np.random.default_rng()
        self._rng.bit_generator.state = checkpoint.progress.random_state
        self._bond_deviation = checkpoint.progress.bond_deviation
        # A model without an energy head simulates as well.
        self._has_energy = "energy" in atoms.calc.implemented_properties

    @abstractmethod
    def _move(self) -> None:
        """Do one step and bring the atoms up to date."""

    @abstractmethod
    def _measure(self) -> float:
        """Return the potential energy in eV; see to it that the velocities are at its time."""

    @abstractmethod
    def _engine_results(self) -> dict[str, NDArray[Any]]:
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
    ) -> _Run:
        """Begin a run; see the `start` of the engines."""
        folder = Path(folder)
        _check_start(atoms, folder, keep_velocities)
        moving = atoms.copy()
        moving.calc = atoms.calc
        rng = np.random.default_rng(settings.seed)
        if not keep_velocities:
            draw_momenta(moving, settings.temperature_K, rng)
        torque_free = _torque_free(atoms.calc)
        remove_rigid_motion(moving, settings.ensemble, torque_free)
        description = Description(
            numbers=moving.numbers.astype(np.int64),
            masses=moving.get_masses(),
            bonds=find_bonds(moving) if bonds is None else bonds,
            settings=settings,
            degrees_of_freedom=degrees_of_freedom(len(moving), settings.ensemble, torque_free),
            info={name: moving.info[name] for name in _INFO if name in moving.info},
            engine=cls.engine,
            engine_options=engine_options,
        )
        moving.get_forces()
        checkpoint = Checkpoint(
            positions=moving.get_positions(),
            momenta=moving.get_momenta(),
            results=calculator_results(moving.calc),
            progress=Progress(
                step=0,
                frames=0,
                bond_deviation=0.0,
                random_state=dict(rng.bit_generator.state),
                thermostat={},
                rotations=rotation_state(moving.calc),
            ),
        )
        # What calculator or engine refuse must not leave a folder behind.
        run = cls(moving, folder, description, checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        run._writer = FrameWriter(folder / FRAMES_FILE, len(moving))
        description.write(folder)
        run._watch_bonds()
        run._record()
        run.checkpoint()
        return run

    @classmethod
    def resume(cls: type[_Run], folder: str | os.PathLike[str], calculator: Any) -> _Run:
        """Continue a run from its last checkpoint; frames recorded after it are dropped.

        Parameters
        ----------
        folder
            Folder of the run.
        calculator
            A calculator like the one the run was started with.

        Raises
        ------
        ConfigError
            If the run was made with another engine.
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
        checkpoint = Checkpoint.read(folder)
        load_rotation_state(calculator, checkpoint.progress.rotations)
        atoms = ase.Atoms(
            description.numbers,
            checkpoint.positions,
            masses=description.masses,
            momenta=checkpoint.momenta,
            info=description.info,
            calculator=calculator,
        )
        run = cls(atoms, folder, description, checkpoint)
        run._writer = FrameWriter(folder / FRAMES_FILE, len(atoms), keep=checkpoint.progress.frames)
        (folder / STOPPED_FILE).unlink(missing_ok=True)
        return run

    @property
    def temperature(self) -> float:
        """Present kinetic temperature in K."""
        degrees = self.description.degrees_of_freedom
        return float(2.0 * self.atoms.get_kinetic_energy() / (degrees * units.KB))

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
            the failure stays.
        """
        while self.step < last_step:
            reason = self._advance()
            if reason is not None:
                # Without the calculator, whose results may belong to another geometry.
                ase.io.write(self.folder / STOPPED_FILE, self.atoms.copy())
                self._writer.flush()
                return Outcome("failed", self.step, reason)
            if self.step % self.settings.interval == 0 and on_frame is not None:
                on_frame(self)
            if self.step % self.settings.checkpoint_interval == 0:
                self.checkpoint()
            if should_stop is not None and should_stop():
                self.checkpoint()
                return Outcome("interrupted", self.step)
        self.checkpoint()
        return Outcome("completed", self.step)

    def _advance(self) -> str | None:
        """Do one step, and record it if that is due; return what went wrong, if anything."""
        self.step += 1
        reason = None
        try:
            self._move()
            finite = np.isfinite(self.atoms.positions).all()
            if not (finite and np.isfinite(self.atoms.get_momenta()).all()):
                return "positions or velocities are not finite any more"
            reason = self._watch_bonds()
            if reason is not None or self.step % self.settings.interval == 0:
                self._record()
        except (MLMDError, CalculatorError) as error:
            # A molecule that has come apart is the reason, not what the model makes of it.
            reason = reason or str(error)
        return reason

    def _watch_bonds(self) -> str | None:
        """Note the largest deviation of a bond; say so if it is too large."""
        bonds = self.description.bonds
        if len(bonds) == 0:
            return None
        deviations = bonds.deviations(self.atoms.positions)
        worst = int(np.abs(deviations).argmax())
        largest = float(abs(deviations[worst]))
        self._bond_deviation = max(self._bond_deviation, largest)
        if largest <= self.settings.bond_stop:
            return None
        length = bonds.lengths[worst]
        return (
            f"bond {bonds.label(worst, self.atoms.numbers)} is {length + deviations[worst]:.2f} Å "
            f"long instead of {length:.2f} Å: the molecule has come apart"
        )

    def _record(self) -> None:
        """Append the present state to the recorded frames."""
        potential = self._measure()
        self._writer.append(
            (
                self.step,
                potential if self._has_energy else np.nan,
                self.atoms.get_kinetic_energy(),
                self._bond_deviation,
                self.atoms.positions,
                self.atoms.get_velocities() * units.FS,
            )
        )
        self._bond_deviation = 0.0

    def checkpoint(self) -> None:
        """Write a checkpoint; the frames recorded so far become readable as well."""
        self._writer.flush()
        Checkpoint(
            positions=self.atoms.get_positions(),
            momenta=self.atoms.get_momenta(),
            results=self._engine_results(),
            progress=Progress(
                step=self.step,
                frames=self._writer.count,
                bond_deviation=self._bond_deviation,
                random_state=dict(self._rng.bit_generator.state),
                thermostat=self._thermostat_state(),
                rotations=rotation_state(self.atoms.calc),
            ),
        ).write(self.folder)

    def close(self) -> None:
        """Close the file of frames."""
        self._writer.close()

    def __enter__(self: _Run) -> _Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_start(atoms: ase.Atoms, folder: Path, keep_velocities: bool) -> None:
    if (folder / DESCRIPTION_FILE).exists():
        raise ConfigError(f"{folder} holds a run already; continue it, or choose another folder")
    if atoms.constraints:
        raise InputError(
            f"the atoms carry the constraints {atoms.constraints}, which would change the number "
            "of degrees of freedom; remove them with atoms.set_constraint()"
        )
    if keep_velocities and not atoms.has("momenta"):
        raise ConfigError("the atoms have no velocities to keep; let them be drawn")


def _torque_free(calculator: Any) -> bool:
    """Whether forces have no net torque: always, save for an MD-ET model left unprojected."""
    potential = getattr(calculator, "potential", None)
    return True if potential is None else bool(potential.remove_net_torque)
