"""Checkpoints: everything that decides how a run goes on, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import ModelFileError
from mlmd_calc.io.restart import read_restart, write_restart
from mlmd_calc.md.record import Description

CHECKPOINT_FILE: Final = "checkpoint.npz"


@dataclass(frozen=True)
class Checkpoint:
    """A run at one instant.

    Attributes
    ----------
    identity
        What this is a checkpoint of, JSON-able: :func:`run_identity`.
    step
        Steps done.
    positions, momenta
        ``(b, n, 3)`` Å and ASE units, of all replicas.
    results, thermostat
        What only the engine knows, see :class:`mlmd_calc.md.engine.DynamicsState`.
    random_state
        State of the run's random numbers.
    rotations
        State of the calculator's stream of random orientations, or None if it has none.
    frames
        Frames recorded.
    bond_deviations
        Largest bond deviation in Å of each replica since the last frame.
    trajectory
        Format of the trajectories beside the frames, and their sizes in bytes; None without.
    """

    identity: dict[str, Any]
    step: int
    positions: NDArray[np.float64]
    momenta: NDArray[np.float64]
    results: dict[str, Any]
    thermostat: dict[str, Any]
    random_state: dict[str, Any]
    rotations: dict[str, Any] | None
    frames: int
    bond_deviations: list[float]
    trajectory: dict[str, Any] | None = None

    def molecules(self, description: Description) -> list[ase.Atoms]:
        """Return the molecules as they were, without a calculator."""
        return [
            ase.Atoms(
                description.numbers,
                positions,
                masses=description.masses,
                momenta=momenta,
                info=description.info,
            )
            for positions, momenta in zip(self.positions, self.momenta, strict=True)
        ]

    def write(self, folder: Path) -> None:
        """Write the checkpoint into the folder of a run, replacing an older one."""
        write_restart(folder / CHECKPOINT_FILE, vars(self))

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Read the checkpoint in the folder of a run.

        Raises
        ------
        ModelFileError
            If there is none, or it is damaged.
        """
        path = folder / CHECKPOINT_FILE
        if not path.exists():
            raise ModelFileError(
                f"{folder} holds no checkpoint ({path.name}) to continue from; a run was "
                "stopped before its first step, if at all; start it anew"
            )
        content = read_restart(path)
        # Where older versions kept a part of it.
        progress = content.pop("progress", {})
        try:
            return cls(**content, **progress)
        except TypeError as error:
            raise ModelFileError(
                f"{path} is not a checkpoint of a run ({error!r}); start a new run"
            ) from error


def run_identity(description: Mapping[str, Any], calculator: Any) -> dict[str, Any]:
    """Describe what decides the course of a run."""
    options = {"calculator": type(calculator).__name__}
    if getattr(calculator, "potential", None) is not None:
        # The same model may lie elsewhere by now; the seed is in the state of the random numbers.
        passing = ("model", "device", "seed")
        options |= {k: v for k, v in calculator.todict().items() if k not in passing}
    identity: dict[str, Any] = json.loads(json.dumps({**description, **options}))
    return identity


def calculator_results(calculator: Any) -> dict[str, NDArray[np.float64]]:
    """Numeric results a calculator holds."""
    return {
        name: np.asarray(value, dtype=np.float64)
        for name, value in calculator.results.items()
        if isinstance(value, (int, float, np.ndarray, np.floating))
    }


def restore_results(atoms: ase.Atoms, results: dict[str, NDArray[Any]]) -> None:
    """Let the calculator of atoms answer from stored results as long as the atoms stay put."""
    atoms.calc.atoms = atoms.copy()
    atoms.calc.results = {
        name: value if value.ndim else float(value) for name, value in results.items()
    }


def rotation_state(calculator: Any) -> dict[str, Any] | None:
    """State of the random orientations of an MD-ET calculator; None for other calculators."""
    potential = getattr(calculator, "potential", None)
    state: dict[str, Any] | None = potential.state_dict() if potential is not None else None
    return state


def load_rotation_state(calculator: Any, state: dict[str, Any] | None) -> None:
    """Continue the random orientations from :func:`rotation_state`.

    Raises
    ------
    ModelFileError
        If only one of calculator and checkpoint has such a stream.
    """
    if (state is None) != (getattr(calculator, "potential", None) is None):
        raise ModelFileError(
            f"the checkpoint was written with another kind of calculator than "
            f"{type(calculator).__name__}; continue with the calculator of the run"
        )
    if state is not None:
        calculator.potential.load_state_dict(state)
