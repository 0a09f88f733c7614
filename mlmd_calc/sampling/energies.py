"""Potential energies of relaxed frames, beside those of dynamics."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.io.files import replacing
from mlmd_calc.propagation.relaxation import PotentialWindow


class EnergyRecord:
    """Energies of all frames of all trajectories."""

    def __init__(self, count: int) -> None:
        self._energies: NDArray[np.float64] = np.zeros((count, 0))

    def add(self, energies: NDArray[np.float64]) -> None:
        """Add those of new frames, ``(count, f)`` eV."""
        self._energies = np.concatenate([self._energies, energies], axis=1)

    def write(self, path: Path) -> None:
        """Write a table in kJ/mol, a row for each frame and a column for each trajectory."""
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["frame", *(f"trajectory-{k}" for k in range(len(self._energies)))])
            rows = (self._energies / units.KJ_PER_MOL).T
            table.writerows(
                [frame, *(f"{energy:.4f}" for energy in row)]
                for frame, row in enumerate(rows.tolist(), start=1)
            )

    def summary(self, window: PotentialWindow) -> dict[str, Any]:
        """Mean and standard deviation in kJ/mol of frames and dynamics, and how far they differ."""
        found: dict[str, Any] = {
            "dynamics_mean_kJ_per_mol": window.mean / units.KJ_PER_MOL,
            "dynamics_deviation_kJ_per_mol": window.deviation / units.KJ_PER_MOL,
            "limit_kJ_per_mol": window.limit * window.atoms / units.KJ_PER_MOL,
        }
        if self._energies.size == 0:
            return found
        mean = float(self._energies.mean())
        return {
            **found,
            "mean_kJ_per_mol": mean / units.KJ_PER_MOL,
            "deviation_kJ_per_mol": float(self._energies.std()) / units.KJ_PER_MOL,
            "deviations_above_dynamics": window.deviations(mean),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the energies."""
        return {"energies": self._energies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._energies = np.array(state["energies"])
