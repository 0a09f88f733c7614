"""All runs that `mlmd demo` does of one molecule, in a process of their own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import ase
import ase.build
import numpy as np

from mlmd_calc.calculator import MDETCalculator
from mlmd_calc.cli.job import relax
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.io.files import write_json
from mlmd_calc.md import Ensemble, MDSettings, Run, read_record
from mlmd_calc.md.dynamics import draw_momenta
from mlmd_calc.md.export import frame_atoms

ENSEMBLES: Final = (Ensemble.LANGEVIN, Ensemble.NVE)


@dataclass(frozen=True)
class MoleculeRuns:
    """All runs of one molecule: a task of `mlmd_calc.data.pool`.

    Attributes
    ----------
    molecule
        Name in ASE's g2 collection.
    path
        File for how the runs ended: verdict, step, reason and seconds by the name of the run (see
        :func:`run_name`), which is also that of its folder beside the file.
    calculators
        Options of the calculator by the name of the setting; the first is the recommended one.
    length
        Steps of each run.
    interval
        Steps between frames.
    seed
        Seed of all random numbers.
    """

    molecule: str
    path: Path
    calculators: dict[str, dict[str, Any]]
    length: int
    interval: int
    seed: int

    @property
    def runs(self) -> list[tuple[Ensemble, str]]:
        """Ensemble and setting of each run, in the order they are done."""
        return [(ensemble, setting) for ensemble in ENSEMBLES for setting in self.calculators]

    @property
    def label(self) -> str:
        """The molecule."""
        return self.molecule

    @property
    def steps(self) -> int:
        """Number of frames of all runs."""
        return len(self.runs) * (self.length // self.interval)

    @property
    def cost(self) -> float:
        """The same for all molecules, which are about as large."""
        return 1.0

    def is_done(self) -> bool:
        """Return False: a demonstration begins anew."""
        return False

    def run(self, on_step: Callable[[], None]) -> None:
        """Do all runs, and call ``on_step`` after every frame.

        All Langevin runs start from the same minimum with the same velocities, drawn at twice the
        temperature because half of it turns into potential energy at once. All runs without a
        thermostat start where the recommended Langevin run ended.
        """
        folder = self.path.parent
        reference = self.calculators[next(iter(self.calculators))]
        minimum = ase.build.molecule(self.molecule)
        minimum.calc = MDETCalculator(**reference, seed=self.seed)
        if minimum.calc.potential.conservative:
            relax(minimum)
        bonds = find_bonds(minimum)
        draw_momenta(minimum, 2 * MDSettings().temperature_K, np.random.default_rng(self.seed))
        ends = {}
        for ensemble, setting in self.runs:
            settings = MDSettings(ensemble, seed=self.seed, interval=self.interval)
            name = run_name(ensemble, setting)
            thermal = ensemble is not Ensemble.LANGEVIN
            atoms = self._thermal_start() if thermal else minimum.copy()
            atoms.calc = MDETCalculator(**self.calculators[setting], seed=self.seed)
            begin = time.perf_counter()
            with Run.start(
                atoms, folder / name, settings, bonds=bonds, keep_velocities=True
            ) as simulation:
                outcome = simulation.run(self.length, on_frame=lambda _: on_step())
            ends[name] = {**asdict(outcome), "seconds": time.perf_counter() - begin}
            # A run that failed is done with, too; the step it failed in has no frame.
            done = (outcome.step - (outcome.verdict == "failed")) // self.interval
            for _ in range(done, self.length // self.interval):
                on_step()
        write_json(self.path, ends)

    def _thermal_start(self) -> ase.Atoms:
        """End of the recommended Langevin run, or its start if it failed."""
        name = run_name(Ensemble.LANGEVIN, next(iter(self.calculators)))
        record = read_record(self.path.parent / name)
        return frame_atoms(record, 0 if record.failed else len(record) - 1)


def run_name(ensemble: Ensemble, setting: str) -> str:
    """Name of a run and of its folder, e.g. ``"nve-direct-no-offset-float32"``."""
    return "-".join([ensemble.value, *re.findall(r"[a-z0-9]+", setting)])
