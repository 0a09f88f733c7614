"""What `mlmd demo` computes: each run of ethanol and the peptide in a process of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import ase.build
import ase.io
import numpy as np

from mlmd_calc import units
from mlmd_calc.calculator import MDETCalculator
from mlmd_calc.cli.job import relax, run_engine
from mlmd_calc.cli.jumps import choose_propagator
from mlmd_calc.cli.structure_input import SEQUENCE_PREFIX
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.geometry.stereochemistry import dihedrals
from mlmd_calc.io.files import write_json
from mlmd_calc.md import Engine, MDSettings, Run, read_record
from mlmd_calc.md.dynamics import draw_momenta
from mlmd_calc.md.export import export_frames
from mlmd_calc.sampling import SamplingJob, SamplingRun

MOLECULE: Final = "CH3CH2OH"
"""Ethanol, in ASE's g2 collection."""

SEQUENCE: Final = "A"
"""Alanine dipeptide: one alanine between caps."""


@dataclass(frozen=True)
class DemoTask:
    """What is computed in a process of its own: a task of `mlmd_calc.data.pool`.

    Attributes
    ----------
    path
        File for what came of it; the run is in the folder beside it of the same name.
    trajectory
        File for the frames.
    """

    path: Path
    trajectory: Path

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self.path.with_suffix("")

    @property
    def label(self) -> str:
        """The name of the run."""
        return self.path.stem

    def is_done(self) -> bool:
        """Return False: a demonstration begins anew."""
        return False


@dataclass(frozen=True)
class EthanolRun(DemoTask):
    """Dynamics of ethanol.

    Its file has how the run ended: verdict, step, reason and speed in ps per second of processor
    time, which other programs on the machine do not change much. All of them start from the same
    minimum with the same velocities, drawn at twice the temperature because half of it turns into
    potential energy at once.

    Attributes
    ----------
    calculator
        Options of the calculator.
    settings
        Settings of the run.
    engine
        What moves the atoms.
    length
        Number of steps or jumps.
    cost
        Relative time that one frame takes.
    """

    calculator: dict[str, Any]
    settings: MDSettings
    engine: Engine
    length: int
    cost: float

    @property
    def steps(self) -> int:
        """Number of frames."""
        return self.length // self.settings.interval

    def run(self, on_step: Callable[[], None]) -> None:
        """Do the run, export its frames, and call ``on_step`` after every frame."""
        seed, jumps = self.settings.seed, self.settings.jumps
        atoms = ase.build.molecule(MOLECULE)
        atoms.calc = MDETCalculator(**self.calculator, seed=seed)
        if atoms.calc.potential.conservative:
            relax(atoms)
        bonds = find_bonds(atoms)
        draw_momenta(atoms, 2 * self.settings.temperature_K, np.random.default_rng(seed))
        propagator = None
        if jumps is not None:
            choice = choose_propagator(jumps.propagator)
            propagator = choice.make(atoms.calc.potential, self.settings.timestep_fs, "auto")
        clock: list[tuple[int, float]] = []

        def on_frame(running: Run) -> None:
            # From the first frame on: what compiles at the first call is no part of the speed.
            clock[1:] = [(running.step, time.process_time())]
            on_step()

        with Run.start(
            atoms,
            self.folder,
            self.settings,
            engine=run_engine(self.engine),
            propagator=propagator,
            bonds=bonds,
            keep_velocities=True,
        ) as simulation:
            outcome = simulation.run(self.length, on_frame=on_frame)
            counts = simulation.counts
        # A run that failed is done with, too; the step it failed in has no frame.
        done = (outcome.step - (outcome.verdict == "failed")) // self.settings.interval
        for _ in range(done, self.steps):
            on_step()
        export_frames(read_record(self.folder), self.trajectory)
        write_json(
            self.path,
            {
                **asdict(outcome),
                "ps_per_second": _speed(clock, self.settings.step_fs),
                "jumps": None if counts is None else asdict(counts),
            },
        )


@dataclass(frozen=True)
class PeptideFrames(DemoTask):
    """Frames of alanine dipeptide by an ATMOS model.

    Its file has the summary of the run, (φ, ψ) of what was drawn in radians, and the speed in ps
    per second of processor time; that of the frames is a PDB file.

    Attributes
    ----------
    model
        Name of the ATMOS model.
    length
        Number of frames.
    seed
        Seed of all random numbers.
    cost
        Relative time that one frame takes.
    """

    model: str
    length: int
    seed: int
    cost: float

    @property
    def steps(self) -> int:
        """Number of frames."""
        return self.length

    def run(self, on_step: Callable[[], None]) -> None:
        """Draw the frames, and call ``on_step`` after each of them."""
        start = capped_peptide(SEQUENCE, self.seed)
        name = f"{SEQUENCE_PREFIX}{SEQUENCE}"
        job = SamplingJob(name, self.model, frames=self.length, seed=self.seed, format="pdb")
        sampling = SamplingRun.start(self.folder, job, start)
        begin, done = time.process_time(), 0

        def on_frames(frames: int) -> None:
            nonlocal done
            for _ in range(frames - done):
                on_step()
            done = frames

        try:
            sampling.run(on_frames)
        finally:
            sampling.close()
        seconds = time.process_time() - begin
        shutil.copy(sampling.paths[0], self.trajectory)
        frames = ase.io.read(self.trajectory, index=":")
        positions = sampling.system.select(np.stack([atoms.positions for atoms in frames]))
        write_json(
            self.path,
            {
                **sampling.summary(),
                # Without the start, which was not drawn.
                "phi_psi": dihedrals(positions, sampling.system.phi_psi)[1:, 0].tolist(),
                "ps_per_second": self.length * sampling.interval_ps / seconds,
            },
        )


def _speed(clock: list[tuple[int, float]], step_fs: float) -> float | None:
    """Return ps per second between two marks of (step, seconds); None without two."""
    if len(clock) < 2:
        return None
    (first, begin), (last, end) = clock
    return (last - first) * step_fs / units.FS_PER_PS / (end - begin)
