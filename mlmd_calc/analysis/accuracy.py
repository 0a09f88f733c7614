"""How well a potential reproduces labels, and how much it depends on orientation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import InputError
from mlmd_calc.potential import Evaluation, Potential, Structure
from mlmd_calc.potential.rotations import icosahedral_rotations


@dataclass(frozen=True)
class Accuracy:
    """Errors of a potential on labelled structures.

    Attributes
    ----------
    structures
        Structures compared.
    forces_mae, forces_rmse
        Mean absolute and root-mean-square error per force component, meV/Å.
    energy_mae
        Mean absolute energy error per atom, meV; None without energies.
    energy_mae_relative
        The same with each molecule's mean error subtracted, meV: what matters to dynamics.
    """

    structures: int
    forces_mae: float
    forces_rmse: float
    energy_mae: float | None
    energy_mae_relative: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the numbers, JSON-able."""
        return asdict(self)


def structures_of(molecule: MoleculeFrames, most: int | None = None) -> list[Structure]:
    """Frames as structures, at most ``most`` of them, evenly spread."""
    return [
        Structure(molecule.numbers, x.astype(np.float64), molecule.charge, molecule.multiplicity)
        for x in molecule.positions[_spread(len(molecule), most)]
    ]


def _spread(available: int, most: int | None) -> NDArray[np.int64]:
    count = available if most is None else min(most, available)
    return np.linspace(0, available - 1, count).round().astype(np.int64)


def measure_accuracy(
    potential: Potential,
    frames: Sequence[MoleculeFrames],
    *,
    most: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Accuracy:
    """Compare a potential with labels.

    Parameters
    ----------
    potential
        What to measure, in its own rotation setting and projections.
    frames
        Molecules with forces and, optionally, energies.
    most
        At most this many frames of each molecule, evenly spread.
    progress
        Called with the number of structures done since the last call.

    Raises
    ------
    InputError
        If a molecule has no forces.
    """
    force_errors: list[NDArray[np.float64]] = []
    energy_errors: list[NDArray[np.float64]] = []
    for molecule in frames:
        if molecule.forces is None:
            raise InputError(f"molecule {molecule.name!r} has no forces to compare with")
        index = _spread(len(molecule), most)
        results = potential.evaluate(structures_of(molecule, most))
        force_errors.append((_forces(results) - molecule.forces[index]).ravel())
        if molecule.energies is not None and potential.has_energy:
            predicted = np.array([result.energy for result in results], dtype=np.float64)
            energy_errors.append((predicted - molecule.energies[index]) / len(molecule.numbers))
        if progress:
            progress(len(index))
    errors = np.concatenate(force_errors)
    relative = [error - error.mean() for error in energy_errors]
    return Accuracy(
        structures=sum(len(_spread(len(m), most)) for m in frames),
        forces_mae=float(np.abs(errors).mean()) / units.MEV,
        forces_rmse=float(np.sqrt(np.square(errors).mean())) / units.MEV,
        energy_mae=_mean_absolute(energy_errors),
        energy_mae_relative=_mean_absolute(relative),
    )


def _mean_absolute(parts: list[NDArray[np.float64]]) -> float | None:
    return float(np.abs(np.concatenate(parts)).mean()) / units.MEV if parts else None


def _forces(results: Sequence[Evaluation]) -> NDArray[np.float64]:
    return np.stack([result.forces for result in results if result.forces is not None])


def equivariance_error(potential: Potential, structures: Sequence[Structure]) -> float:
    """Mean length of the orientation-dependent part of the forces, meV/Å.

    With f_r the forces of a structure turned by rotation r, turned back, and f̄ their mean over the
    60 rotations of the 600-cell,

        E = mean over structures, rotations and atoms of |f_r − f̄|

    Parameters
    ----------
    potential
        What to measure, in its own rotation setting: averaging over orientations lowers E.
    structures
        Molecules.
    """
    rotations = icosahedral_rotations()
    lengths = []
    for structure in structures:
        centred = structure.positions - structure.positions.mean(axis=0)
        turned = [replace(structure, positions=centred @ rotation) for rotation in rotations]
        forces = _forces(potential.evaluate(turned, ["forces"])) @ rotations.transpose(0, 2, 1)
        lengths.append(np.linalg.norm(forces - forces.mean(axis=0), axis=-1).ravel())
    return float(np.concatenate(lengths).mean()) / units.MEV
