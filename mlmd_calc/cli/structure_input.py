"""The molecule a command line names: a file, a SMILES or a name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Final

import ase
import ase.build
import ase.io
import numpy as np
from ase.collections import g2

from mlmd_calc.data.molecules import (
    MOLECULES,
    Molecule,
    molecule_from_smiles,
    start_structures,
)
from mlmd_calc.errors import InputError

SMILES_PREFIX: Final = "smiles:"


def load_structure(
    text: str,
    *,
    smiles: bool = False,
    charge: int | None = None,
    multiplicity: int | None = None,
    seed: int = 0,
) -> ase.Atoms:
    """Build or read a molecule; the first of these that fits decides.

    1. ``smiles:CCO``, or any text with ``smiles=True``: a SMILES, embedded and optimised by RDKit.
    2. A file that exists: its last frame, in any format ASE reads.
    3. A name ASE knows (``CH3CH2OH``, ``trans-butane``, ...).
    4. A name of the built-in molecule table (``ethanol``, ``aspirin``, ...), built from its SMILES.

    Parameters
    ----------
    text
        What the user wrote.
    smiles
        The text is a SMILES.
    charge, multiplicity
        Total charge in e and 2S + 1. They replace what a file or ASE says, but must agree with a
        SMILES.
    seed
        Seed of RDKit's embedding.

    Returns
    -------
    ase.Atoms
        Charge and multiplicity are in ``atoms.info`` where the source knows them.

    Raises
    ------
    InputError
        If the text is none of these, or the file or SMILES cannot be read.
    MissingDependencyError
        If RDKit is needed but not installed.
    """
    if smiles or text.startswith(SMILES_PREFIX):
        smiles_text = text.removeprefix(SMILES_PREFIX)
        molecule = molecule_from_smiles(
            "input", smiles_text, charge=charge, multiplicity=multiplicity
        )
        return _embed(molecule, seed)
    if Path(text).is_file():
        return _with_state(_read(Path(text)), charge, multiplicity)
    if text in g2.names:
        return _with_state(_from_ase(text), charge, multiplicity)
    if text in MOLECULES:
        known = MOLECULES[text]
        molecule = molecule_from_smiles(
            known.name,
            known.smiles,
            charge=charge,
            multiplicity=known.multiplicity if multiplicity is None else multiplicity,
        )
        return _embed(molecule, seed)
    raise InputError(_unknown(text))


def _with_state(atoms: ase.Atoms, charge: int | None, multiplicity: int | None) -> ase.Atoms:
    if charge is not None:
        atoms.info["charge"] = charge
    if multiplicity is not None:
        atoms.info["multiplicity"] = multiplicity
        atoms.info.pop("spin", None)
    return atoms


def _embed(molecule: Molecule, seed: int) -> ase.Atoms:
    structure = start_structures(molecule, conformers=1, seed=seed)
    info = {"charge": molecule.charge, "multiplicity": molecule.multiplicity}
    return ase.Atoms(structure.numbers, structure.positions[0], info=info)


def _read(path: Path) -> ase.Atoms:
    try:
        atoms: Any = ase.io.read(path, index=-1)
    except Exception as error:  # ASE's many readers raise whatever they stumble over
        raise InputError(f"ASE cannot read {path} ({type(error).__name__}: {error})") from error
    result: ase.Atoms = atoms
    # The file's forces and energy are not the model's.
    result.calc = None
    return result


def _from_ase(name: str) -> ase.Atoms:
    atoms: ase.Atoms = ase.build.molecule(name)
    unpaired = int(np.rint(atoms.get_initial_magnetic_moments().sum()))
    atoms.info["multiplicity"] = 1 + abs(unpaired)
    return atoms


def _unknown(text: str) -> str:
    if "/" in text or Path(text).suffix:
        return f"there is no file {text!r}; a SMILES is given as {SMILES_PREFIX}{text}"
    close = difflib.get_close_matches(text, [*g2.names, *MOLECULES], n=3, cutoff=0.6)
    hint = f" (similar names: {', '.join(close)})" if close else ""
    return (
        f"{text!r} is neither a file nor a molecule known by name{hint}; give a structure file, a "
        f"SMILES as {SMILES_PREFIX}CCO, a name of ASE's g2 collection (CH3CH2OH, C6H6, ...) or of "
        "the built-in table (ethanol, aspirin, ...)"
    )
