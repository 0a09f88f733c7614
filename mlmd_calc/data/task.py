"""Sampling one molecule into one file, with its provenance."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlmd_calc.data.gfn2 import ACCURACY, METHOD, gfn2_version
from mlmd_calc.data.molecules import Molecule, atom_count
from mlmd_calc.data.npz import read_npz, write_labels, write_trajectory
from mlmd_calc.data.provenance import is_finished
from mlmd_calc.data.reference import GFN2, reference_program
from mlmd_calc.data.sampling import sample
from mlmd_calc.data.sampling_settings import SamplingSettings
from mlmd_calc.options import with_lists


@dataclass(frozen=True)
class Task:
    """One molecule to sample: a task of `mlmd_calc.data.pool`.

    Attributes
    ----------
    molecule, settings
        What to sample, and how.
    path
        The npz file to write.
    """

    molecule: Molecule
    settings: SamplingSettings
    path: Path

    @property
    def label(self) -> str:
        """Name of the molecule."""
        return self.molecule.name

    @property
    def steps(self) -> int:
        """Number of frames of dynamics."""
        return self.settings.frames

    @property
    def cost(self) -> float:
        """About the square of the number of atoms."""
        return float(atom_count(self.molecule) ** 2)

    def run(self, on_step: Callable[[], None] = lambda: None) -> None:
        """Sample the molecule and write its file; errors as `mlmd_calc.data.sampling.sample`."""
        samples = sample(self.molecule, self.settings, on_step)
        provenance = {
            "code": f"mlmd {version('mlmd')}",
            "rdkit": version("rdkit"),
            "ase": version("ase"),
            "dropped": samples.dropped,
            **self._identity(),
        }
        metadata = {**samples.frames.metadata, "provenance": json.dumps(provenance)}
        frames = replace(samples.frames, metadata=metadata)
        if self.settings.mode == "nve":
            write_trajectory(self.path, frames)
        else:
            write_labels(self.path, frames, temperatures=samples.temperatures, kind=samples.kind)

    def is_done(self) -> bool:
        """Tell whether the file exists already.

        Raises
        ------
        ConfigError
            If it exists but holds something else.
        """
        return is_finished(self.path, lambda path: read_npz(path).metadata, self._identity())

    def _identity(self) -> dict[str, Any]:
        """Everything that must agree for a finished file to be the one asked for."""
        settings = with_lists(asdict(self.settings))
        if self.settings.reference == GFN2:
            del settings["reference"]
        else:
            settings["reference_program"] = reference_program(self.settings.reference)
        return {
            "smiles": self.molecule.smiles,
            "charge": self.molecule.charge,
            "multiplicity": self.molecule.multiplicity,
            "teacher": METHOD,
            "teacher_accuracy": ACCURACY,
            "teacher_program": gfn2_version(),
            **settings,
        }
