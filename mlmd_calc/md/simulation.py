"""One molecular-dynamics run: recorded, watched, and restartable bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import CalculatorError

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, MLMDError
from mlmd_calc.md.bonds import Bonds, find_bonds
from mlmd_calc.md.checkpoint import (
    Checkpoint,
    Progress,
    calculator_results,
    load_rotation_state,
    restore_results,
    rotation_state,
)
from mlmd_calc.md.dynamics import (
    degrees_of_freedom,
    draw_momenta,
    load_thermostat_state,
    make_dynamics,
    remove_rigid_motion,
    thermostat_state,
)
from mlmd_calc.md.record import (
    DESCRIPTION_FILE,
    FRAMES_FILE,
    STOPPED_FILE,
    Description,
    FrameWriter,
)
from mlmd_calc.md.settings import MDSettings

_INFO: Final = ("charge", "multiplicity", "spin")
"""Entries of ``atoms.info`` that decide the forces."""


@dataclass(frozen=True)
class Outcome:
    """How a call of :meth:`Simulation.run` ended.

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


class Simulation:
    """A molecular-dynamics run in a folder of its own; make one with `start` or `resume`.

    The folder receives ``simulation.json`` and ``frames.npy`` (see
    :func:`mlmd_calc.md.read_record`), ``checkpoint.npz`` and, if the run fails, ``stopped.extxyz``.
    Every step is watched: a bond far from its reference length, a coordinate that is not finite, or
    forces that cannot be computed end the run.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator
    >>> from mlmd_calc.md import MDSettings, Simulation
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = MDETCalculator()
    >>> with Simulation.start(atoms, "ethanol", MDSettings()) as simulation:
    ...     simulation.run(2000).verdict
    'completed'
    """

    def __init__(
        self, atoms: ase.Atoms, folder: Path, description: Description, progress: Progress
    ) -> None:
        self.atoms = atoms
        self.folder = folder
        self.description = description
        self.settings = description.settings
        self._rng = np.random.default_rng()
        self._rng.bit_generator.state = progress.random_state
        self._dynamics: Any = make_dynamics(
            atoms, self.settings, description.degrees_of_freedom, self._rng
        )
        self._dynamics.nsteps = progress.step
        load_thermostat_state(self._dynamics, progress.thermostat)
        self._bond_deviation = progress.bond_deviation
        self._writer = FrameWriter(folder / FRAMES_FILE, len(atoms), keep=progress.frames)
        # A model without an energy head simulates as well.
        self._has_energy = "energy" in atoms.calc.implemented_properties

    @classmethod
    def start(
        cls,
        atoms: ase.Atoms,
        folder: str | os.PathLike[str],
        settings: MDSettings,
        *,
        bonds: Bonds | None = None,
        keep_velocities: bool = False,
    ) -> Simulation:
        """Begin a run.

        Parameters
        ----------
        atoms
            An isolated molecule with a calculator; it is copied.
        folder
            Folder of the run, made if need be.
        settings
            Settings of the run.
        bonds
            Bonds to watch and their reference lengths; None takes those of the given structure.
        keep_velocities
            Use the velocities of the atoms instead of drawing them. What the ensemble conserves
            (see :mod:`mlmd_calc.md.dynamics`) is removed from them too.

        Raises
        ------
        ConfigError
            If the folder holds a run already, or there are no velocities to keep.
        InputError
            If the atoms carry constraints, or the calculator refuses them.
        """
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
        )
        # A structure that the calculator refuses must not leave a folder behind.
        moving.get_forces()
        folder.mkdir(parents=True, exist_ok=True)
        progress = Progress(0, 0, 0.0, dict(rng.bit_generator.state), {}, None)
        simulation = cls(moving, folder, description, progress)
        description.write(folder)
        simulation._watch_bonds()
        simulation._record()
        simulation.checkpoint()
        return simulation

    @classmethod
    def resume(cls, folder: str | os.PathLike[str], calculator: Any) -> Simulation:
        """Continue a run from its last checkpoint; frames recorded after it are dropped.

        Parameters
        ----------
        folder
            Folder of the run.
        calculator
            A calculator like the one the run was started with.

        Raises
        ------
        ModelFileError
            If the folder holds no run, or its files are damaged.
        """
        folder = Path(folder)
        description = Description.read(folder)
        checkpoint = Checkpoint.read(folder)
        atoms = ase.Atoms(
            description.numbers,
            checkpoint.positions,
            masses=description.masses,
            momenta=checkpoint.momenta,
            info=description.info,
            calculator=calculator,
        )
        (folder / STOPPED_FILE).unlink(missing_ok=True)
        restore_results(atoms, checkpoint.results)
        load_rotation_state(calculator, checkpoint.progress.rotations)
        return cls(atoms, folder, description, checkpoint.progress)

    @property
    def step(self) -> int:
        """Steps done since the beginning of the run."""
        return int(self._dynamics.nsteps)

    @property
    def temperature(self) -> float:
        """Present kinetic temperature in K."""
        degrees = self.description.degrees_of_freedom
        return float(2.0 * self.atoms.get_kinetic_energy() / (degrees * units.KB))

    def run(
        self,
        last_step: int,
        *,
        on_frame: Callable[[Simulation], None] | None = None,
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
                self._writer.flush()
                return Outcome("failed", self.step, reason)
            if self.step % self.settings.interval == 0:
                self._record()
                if on_frame is not None:
                    on_frame(self)
            if self.step % self.settings.checkpoint_interval == 0:
                self.checkpoint()
            if should_stop is not None and should_stop():
                self.checkpoint()
                return Outcome("interrupted", self.step)
        self.checkpoint()
        return Outcome("completed", self.step)

    def _advance(self) -> str | None:
        """Do one step; return what went wrong, if anything."""
        reason = None
        self._dynamics.nsteps += 1
        try:
            self._dynamics.step()
        except (MLMDError, CalculatorError) as error:
            reason = str(error)
        else:
            finite = np.isfinite(self.atoms.positions).all()
            if not (finite and np.isfinite(self.atoms.get_momenta()).all()):
                reason = "positions or velocities are not finite any more"
            else:
                reason = self._watch_bonds()
                if reason is not None:
                    self._record()
        if reason is not None:
            # Without the calculator, whose results may belong to another geometry.
            ase.io.write(self.folder / STOPPED_FILE, self.atoms.copy())
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
        atoms = self.atoms
        potential = float(atoms.get_potential_energy()) if self._has_energy else np.nan
        self._writer.append(
            (
                self.step,
                potential,
                atoms.get_kinetic_energy(),
                self._bond_deviation,
                atoms.positions,
                atoms.get_velocities() * units.FS,
            )
        )
        self._bond_deviation = 0.0

    def checkpoint(self) -> None:
        """Write a checkpoint; the frames recorded so far become readable as well."""
        self._writer.flush()
        Checkpoint(
            positions=self.atoms.get_positions(),
            momenta=self.atoms.get_momenta(),
            results=calculator_results(self.atoms.calc),
            progress=Progress(
                step=self.step,
                frames=self._writer.count,
                bond_deviation=self._bond_deviation,
                random_state=dict(self._rng.bit_generator.state),
                thermostat=thermostat_state(self._dynamics),
                rotations=rotation_state(self.atoms.calc),
            ),
        ).write(self.folder)

    def close(self) -> None:
        """Close the file of frames."""
        self._writer.close()

    def __enter__(self) -> Simulation:
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
