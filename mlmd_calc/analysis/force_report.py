"""Where a force field is wrong: by element, by class of molecule, along conformations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.accuracy import MoleculeErrors, spread_index
from mlmd_calc.analysis.molecule_classes import classes_of
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.stereochemistry import dihedrals

Measured = Sequence[tuple[MoleculeFrames, MoleculeErrors]]
"""Molecules and the errors of a model on at most so many of their frames."""


@dataclass(frozen=True)
class ForceErrors:
    """Errors of the forces on a part of the atoms.

    Attributes
    ----------
    molecules
        Names in the data that have such atoms.
    atoms
        Atoms whose forces were compared, in all structures.
    mae, rmse
        Mean absolute and root-mean-square error per force component, meV/Å.
    """

    molecules: int
    atoms: int
    mae: float
    rmse: float


@dataclass(frozen=True)
class ConformationalErrors:
    """Errors of the energies of one molecule relative to its frame of lowest reference energy.

    Attributes
    ----------
    mae, rmse
        Over the other frames, meV per molecule.
    """

    mae: float
    rmse: float


@dataclass(frozen=True)
class TorsionProfile:
    """Energies along a torsion, relative to the point of lowest reference energy.

    Attributes
    ----------
    name
        Name of the molecule.
    atoms
        The four atoms of the torsion, counted from 0.
    angles
        Torsion in degrees from -180 to 180, ascending.
    reference, model
        meV.
    """

    name: str
    atoms: tuple[int, int, int, int]
    angles: list[float]
    reference: list[float]
    model: list[float]

    @property
    def mae(self) -> float:
        """Mean absolute error of the profile, meV."""
        return float(np.abs(np.subtract(self.model, self.reference)).mean())

    @property
    def barrier(self) -> float:
        """Largest energy of the reference, meV."""
        return max(self.reference)

    @property
    def barrier_error(self) -> float:
        """What the model says at the angle of that energy, less that energy, meV."""
        highest = int(np.argmax(self.reference))
        return self.model[highest] - self.reference[highest]


def errors_by_element(measured: Measured) -> dict[str, ForceErrors]:
    """Errors of the forces on the atoms of each element, by symbol in order of atomic number."""
    numbers = sorted({int(z) for molecule, _ in measured for z in molecule.numbers})
    return {
        chemical_symbols[z]: _force_errors(
            (molecule.name, errors.forces[:, molecule.numbers == z])
            for molecule, errors in measured
        )
        for z in numbers
    }


def components_by_element(measured: Measured) -> dict[str, NDArray[np.float64]]:
    """Errors of all force components, eV/Å, by symbol in order of atomic number."""
    numbers = sorted({int(z) for molecule, _ in measured for z in molecule.numbers})
    return {
        chemical_symbols[z]: np.concatenate(
            [errors.forces[:, molecule.numbers == z].ravel() for molecule, errors in measured]
        )
        for z in numbers
    }


def errors_by_class(measured: Measured) -> dict[str, ForceErrors]:
    """Errors of the forces on all atoms of the molecules of each class, the worst class first.

    A molecule with two functional groups counts in both; see
    :func:`~mlmd_calc.analysis.molecule_classes.classes_of`.
    """
    members: dict[str, list[tuple[str, NDArray[np.float64]]]] = {}
    for molecule, errors in measured:
        for name in classes_of(molecule):
            members.setdefault(name, []).append((molecule.name, errors.forces))
    found = {name: _force_errors(parts) for name, parts in members.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1].mae))


def _force_errors(parts: Iterable[tuple[str, NDArray[np.float64]]]) -> ForceErrors:
    parts = [(name, forces.ravel()) for name, forces in parts if forces.size]
    every = np.concatenate([forces for _, forces in parts])
    return ForceErrors(
        molecules=len({name for name, _ in parts}),
        atoms=len(every) // 3,
        mae=float(np.abs(every).mean()) / units.MEV,
        rmse=float(np.sqrt(np.square(every).mean())) / units.MEV,
    )


def conformational_errors(
    molecule: MoleculeFrames, errors: MoleculeErrors, most: int | None = None
) -> ConformationalErrors | None:
    """Errors of relative energies, as benchmarks of conformational energies have them.

    Parameters
    ----------
    molecule
        Frames.
    errors
        Of at most ``most`` frames of it.
    most
        As for :func:`~mlmd_calc.analysis.accuracy.molecule_errors`.

    Returns
    -------
    ConformationalErrors or None
        None without energies or with a single frame.
    """
    energies = _energies(molecule, errors, most)
    if energies is None or len(energies[0]) < 2:
        return None
    reference, model = energies
    lowest = int(reference.argmin())
    wrong = np.delete((model - model[lowest]) - (reference - reference[lowest]), lowest)
    return ConformationalErrors(
        mae=float(np.abs(wrong).mean()) / units.MEV,
        rmse=float(np.sqrt(np.square(wrong).mean())) / units.MEV,
    )


def torsion_profile(
    molecule: MoleculeFrames, errors: MoleculeErrors, most: int | None = None
) -> TorsionProfile | None:
    """Energies along the torsion that the metadata of a molecule name, ``torsion: "0 1 2 3"``.

    Parameters
    ----------
    molecule, errors, most
        As for :func:`conformational_errors`.

    Returns
    -------
    TorsionProfile or None
        None if no torsion is named, or without energies.

    Raises
    ------
    InputError
        If the torsion is not of four atoms of the molecule.
    """
    text = molecule.metadata.get("torsion")
    energies = _energies(molecule, errors, most)
    if text is None or energies is None:
        return None
    words = text.split()
    atoms = [int(word) for word in words if word.isdecimal()]
    n = len(molecule.numbers)
    if len(words) != 4 or len(atoms) != 4 or len(set(atoms)) != 4 or max(atoms) >= n:
        raise InputError(
            f"molecule {molecule.name!r}: torsion {text!r} does not name four of its {n} atoms; "
            "give their indices, counted from 0, like '0 1 2 3'"
        )
    frames = molecule.positions[spread_index(len(molecule), most)].astype(np.float64)
    angles = np.degrees(dihedrals(frames, np.array(atoms)))
    order = np.argsort(angles)
    reference, model = ((part - part[energies[0].argmin()]) / units.MEV for part in energies)
    return TorsionProfile(
        name=molecule.name,
        atoms=(atoms[0], atoms[1], atoms[2], atoms[3]),
        angles=angles[order].tolist(),
        reference=reference[order].tolist(),
        model=model[order].tolist(),
    )


def _energies(
    molecule: MoleculeFrames, errors: MoleculeErrors, most: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Energies of labels and model, ``(f,)`` eV each."""
    if molecule.energies is None or errors.energies is None:
        return None
    reference = molecule.energies[spread_index(len(molecule), most)].astype(np.float64)
    return reference, reference + errors.energies * len(molecule.numbers)
