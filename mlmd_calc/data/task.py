"""Sampling one molecule into one file, with its provenance."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlmd_calc.data.molecules import Molecule
from mlmd_calc.data.npz import read_npz, write_labels, write_trajectory
from mlmd_calc.data.sampling import sample
from mlmd_calc.data.sampling_settings import SamplingSettings
from mlmd_calc.data.teacher import ACCURACY, METHOD, teacher_version
from mlmd_calc.errors import ConfigError, ModelFileError


@dataclass(frozen=True)
class Task:
    """One molecule to sample.

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

    def run(self, on_frame: Callable[[], None] = lambda: None) -> None:
        """Sample the molecule and write its file; errors as `mlmd_calc.data.sampling.sample`.

        Parameters
        ----------
        on_frame
            Called after every frame of dynamics.
        """
        samples = sample(self.molecule, self.settings, on_frame)
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
        if not self.path.exists():
            return False
        try:
            stored = json.loads(read_npz(self.path).metadata["provenance"])
        except (ModelFileError, KeyError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"{self.path} exists but was not written by this generator ({error}); "
                "choose another directory or remove the file"
            ) from error
        wanted = self._identity()
        different = [
            f"{key} is {stored.get(key)} instead of {value}"
            for key, value in wanted.items()
            if stored.get(key) != value
        ]
        if different:
            raise ConfigError(
                f"{self.path} exists but was generated differently: {'; '.join(different)}; "
                "choose another directory, remove the file, or repeat its settings"
            )
        return True

    def _identity(self) -> dict[str, Any]:
        """Everything that must agree for a finished file to be the one asked for."""
        settings = {
            # As JSON gives it back.
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self.settings).items()
        }
        return {
            "smiles": self.molecule.smiles,
            "charge": self.molecule.charge,
            "multiplicity": self.molecule.multiplicity,
            "teacher": METHOD,
            "teacher_accuracy": ACCURACY,
            "teacher_program": teacher_version(),
            **settings,
        }
