"""Reference conformers, formal charges and local frames of molecules outside the residue table."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import InputError
from mlmd_calc.optional import require

_WHY: Final = "build ligands from SMILES"
_SEED: Final = 0
_TIE: Final = 3
"""Decimals of an Å within which distances count as equal."""
_NARROWEST, _WIDEST = np.cos(np.deg2rad([25.0, 155.0]))


def upright(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a conformer so that it does not depend on the pose it was given in.

    The second atom lies on the x axis as seen from the first, the third in the upper half of the
    xy plane.

    Parameters
    ----------
    positions
        ``(n, 3)``.
    """
    arms = (positions - positions[0]).T
    if len(positions) == 1:
        return np.zeros((1, 3))
    if len(positions) == 2:
        return np.array([[0.0, 0.0, 0.0], [np.linalg.norm(arms[:, 1]), 0.0, 0.0]])
    q, r = np.linalg.qr(arms[:, 1:3])
    x, y = (q * np.where(np.diag(r) < 0, -1.0, 1.0)).T
    turned: NDArray[np.float64] = (np.stack([x, y, np.cross(x, y)]) @ arms).T
    return turned


def local_frames(conformer: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Choose the frames of tokens that are single atoms (AlphaFold 3, supplement 4.3.2).

    The origin is the atom itself; the other two are its nearest and second nearest atom.

    Parameters
    ----------
    conformer
        ``(n, 3)`` Å.

    Returns
    -------
    ndarray
        ``(n, 3)`` indices of the atoms a, b, c.
    ndarray
        ``(n,)`` whether the frame is valid: there are three atoms, and the angle between b - a and
        c - b lies between 25° and 155°.
    """
    count = len(conformer)
    own = np.arange(count)
    if count < 3:
        return np.stack([own] * 3, axis=1), np.zeros(count, dtype=bool)
    distances = np.linalg.norm(conformer[:, None] - conformer, axis=-1).round(_TIE)
    np.fill_diagonal(distances, np.inf)
    a, c = np.argsort(distances, axis=1, kind="stable")[:, :2].T
    first, second = conformer - conformer[a], conformer[c] - conformer
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = np.divide((first * second).sum(1), lengths, out=np.ones(count), where=lengths > 0)
    return np.stack([a, own, c], axis=1), (cosine < _NARROWEST) & (cosine > _WIDEST)


def embed_ligand(
    numbers: NDArray[np.int64],
    bonds: NDArray[np.int64],
    positions: NDArray[np.float64],
    smiles: str,
    label: str,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Build the reference conformer of a ligand whose SMILES is known, with ETKDGv3.

    Stereochemistry the SMILES leaves open is taken from the positions.

    Parameters
    ----------
    numbers, bonds, positions
        ``(n,)``, ``(b, 2)`` and ``(n, 3)`` Å: the ligand's heavy atoms.
    smiles
        The ligand.
    label
        What to call it in messages.

    Returns
    -------
    ndarray
        ``(n, 3)`` Å conformer.
    ndarray
        ``(n,)`` formal charges in e.

    Raises
    ------
    InputError
        If the SMILES is not valid, does not have the ligand's atoms, bonds and stereochemistry, or
        cannot be built.
    MissingDependencyError
        If rdkit is not installed.
    """
    chem = require("rdkit.Chem", extra="data", why=_WHY)
    base = require("rdkit.rdBase", extra="data", why=_WHY)
    embedding = require("rdkit.Chem.rdDistGeom", extra="data", why=_WHY)
    with base.BlockLogs():  # the reason is in our own message
        template = chem.MolFromSmiles(smiles)
        if template is None or template.GetNumAtoms() == 0:
            raise InputError(f"{label}: {smiles!r} is not a valid SMILES")
        match = _match(template, numbers, bonds)
        if match is None:
            raise InputError(
                f"{label} does not have the heavy atoms and bonds of its SMILES {smiles!r}; give "
                "the SMILES of the residue as it is in the structure"
            )
        molecule = _with_stereochemistry(template, positions[match])
        if not molecule.HasSubstructMatch(template, useChirality=True):
            raise InputError(f"{label} is another stereoisomer than its SMILES {smiles!r}")
        molecule = chem.AddHs(molecule)
        parameters = embedding.ETKDGv3()
        parameters.randomSeed = _SEED
        if embedding.EmbedMolecule(molecule, parameters) != 0:
            raise InputError(f"{label}: no conformer of {smiles!r} could be built")
    conformer = np.empty((len(numbers), 3))
    conformer[match] = molecule.GetConformer().GetPositions()[: len(numbers)]
    charges = np.empty(len(numbers), dtype=np.int64)
    charges[match] = [atom.GetFormalCharge() for atom in template.GetAtoms()]
    return conformer, charges


def _match(template: Any, numbers: NDArray[np.int64], bonds: NDArray[np.int64]) -> list[int] | None:
    """Our index of each atom of the template, by elements and bonds of any order."""
    chem = require("rdkit.Chem", extra="data", why=_WHY)
    ours = chem.RWMol()
    for number in numbers:
        ours.AddAtom(chem.Atom(int(number)))
    for first, second in bonds:
        ours.AddBond(int(first), int(second), chem.BondType.SINGLE)
    if (template.GetNumAtoms(), template.GetNumBonds()) != (len(numbers), len(bonds)):
        return None
    parameters = chem.AdjustQueryParameters.NoAdjustments()
    parameters.makeBondsGeneric = True
    query = chem.RWMol(template)
    for atom in query.GetAtoms():
        atom.SetFormalCharge(0)
    found = ours.GetSubstructMatch(chem.AdjustQueryProperties(query, parameters))
    return list(found) or None


def _with_stereochemistry(template: Any, positions: NDArray[np.float64]) -> Any:
    """Return the template with the stereochemistry of positions."""
    chem = require("rdkit.Chem", extra="data", why=_WHY)
    molecule = chem.Mol(template)
    conformer = chem.Conformer(len(positions))
    conformer.SetPositions(np.ascontiguousarray(positions))
    molecule.AddConformer(conformer)
    chem.AssignStereochemistryFrom3D(molecule)
    return molecule
