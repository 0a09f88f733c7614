"""Reference energies of the elements, so that a network learns only what bonding adds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlmd_calc.analysis.accuracy import spread_index, structures_of
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.potential import Potential
from mlmd_calc.potential.coverage import Coverage
from mlmd_calc.training.mdet.batches import labels
from mlmd_calc.zoo import Model

_FRAMES_PER_MOLECULE = 20


def fit_atomic_energies(frames: Sequence[MoleculeFrames]) -> dict[int, float]:
    """Least-squares energy of each element.

    Where the molecules do not tell the elements apart (a single molecule, say) it is the solution
    of least norm: it fits these molecules and means nothing for others.

    Parameters
    ----------
    frames
        Molecules with energies; each counts once, by its mean energy.

    Returns
    -------
    dict
        Atomic number to energy in eV.

    Raises
    ------
    InputError
        If a molecule has no energies.
    """
    return _per_element(frames, [float(labels(m, "energies").mean()) for m in frames])


def refit_atomic_energies(start: Model, frames: Sequence[MoleculeFrames]) -> dict[int, float]:
    """Shift the reference energies of a model to the energy scale of new labels.

    Labels of another level of theory differ by hundreds of eV per atom, which fine-tuning would
    spend itself on. The shift is the least-squares energy of each element of what the model leaves
    unexplained; for labels like those the model was trained on it is almost nothing.

    Parameters
    ----------
    start
        Model with an energy head.
    frames
        Molecules with energies.

    Returns
    -------
    dict
        Atomic number to energy in eV, for all elements of the model and of the frames.

    Raises
    ------
    InputError
        If a molecule has no energies, or has an element the model was not trained on.
    """
    potential = Potential(start, device="cpu", dtype="float32", forces="direct", rotation="none")
    unexplained = []
    for molecule in frames:
        expected = labels(molecule, "energies")[spread_index(len(molecule), _FRAMES_PER_MOLECULE)]
        structures = structures_of(molecule, _FRAMES_PER_MOLECULE)
        # To learn more than the model knows is what the new labels are for.
        results = potential.evaluate(structures, ["energy"], coverage=Coverage())
        predicted = np.array([result.energy for result in results], dtype=np.float64)
        unexplained.append(float((expected - predicted).mean()))
    references = dict(start.atomic_energies)
    for element, shift in _per_element(frames, unexplained).items():
        references[element] = references.get(element, 0.0) + shift
    return references


def _per_element(frames: Sequence[MoleculeFrames], energies: list[float]) -> dict[int, float]:
    """Least-squares energy of each element from one energy per molecule."""
    elements = sorted({int(z) for molecule in frames for z in molecule.numbers})
    counts = np.array([[(m.numbers == z).sum() for z in elements] for m in frames], dtype=float)
    solution = np.linalg.lstsq(counts, np.array(energies), rcond=None)[0]
    return {z: float(e) for z, e in zip(elements, solution, strict=True)}
