"""How well a potential reproduces labels, and how much it depends on orientation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.rotations import icosahedral_rotations
from mlmd_calc.potential import Evaluation, Potential, Structure
from mlmd_calc.potential.coverage import Coverage


@dataclass(frozen=True)
class MoleculeErrors:
    """Prediction minus label for frames of one molecule.

    Attributes
    ----------
    forces
        ``(f, n, 3)`` eV/Å.
    energies
        ``(f,)`` eV per atom; None if labels or model have no energy.
    """

    forces: NDArray[np.float64]
    energies: NDArray[np.float64] | None


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


def spread_index(available: int, most: int | None) -> NDArray[np.int64]:
    """Choose at most ``most`` of the available frames, evenly spread, first and last included.

    Parameters
    ----------
    available
        Number of frames.
    most
        Largest number of indices; None for all.
    """
    count = available if most is None else min(most, available)
    index: NDArray[np.int64] = np.linspace(0, available - 1, count).round().astype(np.int64)
    return index


def structures_of(molecule: MoleculeFrames, most: int | None = None) -> list[Structure]:
    """Frames as structures, those of :func:`spread_index`."""
    return [
        Structure(molecule.numbers, x.astype(np.float64), molecule.charge, molecule.multiplicity)
        for x in molecule.positions[spread_index(len(molecule), most)]
    ]


def molecule_errors(
    potential: Potential, molecule: MoleculeFrames, most: int | None = None
) -> MoleculeErrors:
    """Prediction minus label for at most ``most`` frames of one molecule, evenly spread.

    Raises
    ------
    InputError
        If the molecule has no forces.
    """
    if molecule.forces is None:
        raise InputError(
            f"molecule {molecule.name!r} has no forces to compare with; "
            + molecule.where_labels_are("leave it out or label it (mlmd data generate)")
        )
    index = spread_index(len(molecule), most)
    # How wrong a model is beyond its training data is worth measuring.
    results = potential.evaluate(structures_of(molecule, most), coverage=Coverage())
    energies = None
    if molecule.energies is not None and potential.has_energy:
        predicted = np.array([result.energy for result in results], dtype=np.float64)
        energies = (predicted - molecule.energies[index]) / len(molecule.numbers)
    return MoleculeErrors(_forces(results) - molecule.forces[index], energies)


def summarise_errors(errors: Sequence[MoleculeErrors]) -> Accuracy:
    """Averages over all force components and all structures of several molecules.

    Raises
    ------
    InputError
        If there are no errors to average.
    """
    if not sum(len(e.forces) for e in errors):
        raise InputError("there is no structure to measure the accuracy on")
    forces = np.concatenate([e.forces.ravel() for e in errors])
    energies = [e.energies for e in errors if e.energies is not None]
    return Accuracy(
        structures=sum(len(e.forces) for e in errors),
        forces_mae=float(np.abs(forces).mean()) / units.MEV,
        forces_rmse=float(np.sqrt(np.square(forces).mean())) / units.MEV,
        energy_mae=_mean_absolute(energies),
        energy_mae_relative=_mean_absolute([e - e.mean() for e in energies]),
    )


def _mean_absolute(parts: list[NDArray[np.float64]]) -> float | None:
    return float(np.abs(np.concatenate(parts)).mean()) / units.MEV if parts else None


def _forces(results: Sequence[Evaluation]) -> NDArray[np.float64]:
    return np.stack([result.forces for result in results if result.forces is not None])


def orientation_errors(
    potential: Potential, structures: Sequence[Structure]
) -> NDArray[np.float64]:
    """Lengths of the orientation-dependent part of the forces, eV/Å.

    With f_r the forces of a structure turned by rotation r, turned back, and f̄ their mean over the
    60 rotations of the 600-cell, these are |f_r − f̄| of all structures, rotations and atoms. Their
    mean is called the equivariance error.

    Parameters
    ----------
    potential
        What to measure, in its own rotation setting: averaging over orientations lowers them.
    structures
        Molecules, at least one.
    """
    lengths = []
    for structure in structures:
        results = potential.evaluate(turned_copies(structure), ["forces"], coverage=Coverage())
        forces = turned_back(results)
        lengths.append(np.linalg.norm(forces - forces.mean(axis=0), axis=-1).ravel())
    return np.concatenate(lengths)


def turned_copies(structure: Structure) -> list[Structure]:
    """Turn a structure about its centre by the 60 rotations of the 600-cell."""
    centred = structure.positions - structure.positions.mean(axis=0)
    return [replace(structure, positions=centred @ r) for r in icosahedral_rotations()]


def turned_back(results: Sequence[Evaluation]) -> NDArray[np.float64]:
    """Turn the forces of :func:`turned_copies` back, ``(60, n, 3)`` eV/Å."""
    back: NDArray[np.float64] = _forces(results) @ icosahedral_rotations().transpose(0, 2, 1)
    return back
