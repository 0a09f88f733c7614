"""One molecular-dynamics run with ASE: recorded, watched, and restartable bit for bit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import ase
import numpy as np

from mlmd_calc.bonds import Bonds
from mlmd_calc.md.checkpoint import Checkpoint, calculator_results, restore_results
from mlmd_calc.md.dynamics import load_thermostat_state, make_dynamics, thermostat_state
from mlmd_calc.md.record import Description
from mlmd_calc.md.recorded_run import RecordedRun
from mlmd_calc.md.replica import Measured
from mlmd_calc.md.settings import Engine, MDSettings


class Simulation(RecordedRun):
    """A run with ASE's dynamics and any ASE calculator; make one with `start` or `resume`.

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

    engine: ClassVar[Engine] = Engine.ASE

    def __init__(
        self,
        molecules: list[ase.Atoms],
        folder: Path,
        description: Description,
        checkpoint: Checkpoint,
    ) -> None:
        super().__init__(molecules, folder, description, checkpoint)
        restore_results(self.atoms, checkpoint.results)
        self._dynamics: Any = make_dynamics(
            self.atoms, self.settings, description.degrees_of_freedom, self._rng
        )
        load_thermostat_state(self._dynamics, checkpoint.progress.thermostat)

    @classmethod
    def start(
        cls,
        atoms: ase.Atoms,
        folder: str | os.PathLike[str],
        settings: MDSettings,
        *,
        bonds: Bonds | None = None,
        keep_velocities: bool = False,
        job: Mapping[str, Any] | None = None,
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
        job
            What a program wants to find again beside the run; JSON-able, written as ``job.json``.

        Raises
        ------
        ConfigError
            If the folder holds a run already, or there are no velocities to keep.
        InputError
            If the atoms carry constraints, or the calculator refuses them.
        """
        return cls._start(atoms, folder, settings, bonds, keep_velocities, {}, job)

    def _move(self) -> None:
        self._dynamics.step()

    def _measure(self) -> list[Measured]:
        # ASE has both from the last step.
        potential = float(self.atoms.get_potential_energy()) if self._has_energy else np.nan
        return [Measured(potential, self.atoms.get_forces())]

    def _engine_results(self) -> dict[str, Any]:
        return calculator_results(self.atoms.calc)

    def _thermostat_state(self) -> dict[str, Any]:
        return thermostat_state(self._dynamics)
