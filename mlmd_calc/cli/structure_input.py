"""The molecule a command line names: a file, a SMILES or a name."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ase
import ase.build
import ase.io
import numpy as np
from ase.collections import g2
from ase.io.formats import extension2format, filetype, open_with_compression

from mlmd_calc.biomolecules.charges import total_charge
from mlmd_calc.biomolecules.elements import two_letter_symbol
from mlmd_calc.biomolecules.reader import (
    NO_CELL,
    is_structure_file,
    read_structure,
    read_structure_file,
)
from mlmd_calc.biomolecules.residues import PARENTS, RESIDUES
from mlmd_calc.biomolecules.structure import BondedStructure, bonded_structure_from_ase
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.data.biomolecules.peptides import Peptide, build_peptide
from mlmd_calc.data.molecules import (
    MOLECULES,
    atoms_from_smiles,
    embed,
    is_smiles,
    molecule_from_smiles,
)
from mlmd_calc.data.molfile import MOLFILE_SUFFIXES, read_molfile
from mlmd_calc.electrons import (
    charge_question,
    check_parity,
    electronic_state,
    implied_ion,
    store_state,
)
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import (
    check_bonded,
    check_contacts,
    check_hydrogens,
)
from mlmd_calc.geometry.constraints import acting_constraints
from mlmd_calc.geometry.lewis import charge_of_bonds
from mlmd_calc.io.files import (
    bare_suffix,
    refuse_byte_order_mark,
    refuse_capital_ending,
    refuse_huge,
)
from mlmd_calc.io.xyz import refuse_frames_behind_blank_lines, refuse_odd_columns
from mlmd_calc.wording import counted

_CHARGE_IS_LEFT_OUT: Final = ("gamess", "gaussian", "nwchem", "orca")
"""How the names of formats begin whose charge and multiplicity ASE does not pass on."""

_ELEMENTS_ARE_GUESSED: Final = ("gromos", "lammps")
"""How the names of formats begin that do not state elements."""

_HALVES: Final = (
    *(".xtc", ".trr", ".dcd", ".nc", ".ncdf", ".mdcrd", ".inpcrd", ".rst7", ".ncrst", ".crd"),
    *(".prmtop", ".parm7", ".psf", ".top", ".tpr"),
)
"""Endings of trajectories and topologies, of which one is nothing without the other."""

_STATED: Final = re.compile(
    r"\b((charge|chrg)\b\s*=?\s*[+-]?|(unpaired|uhf|spin)\b\s*=?\s*)[1-9]", re.IGNORECASE
)
"""What a file of Turbomole or xtb says of a charge or of unpaired electrons."""

_NO_BOHR: Final = re.compile(
    r"^\s*\$(coord\b.*\b(?:angs|frac)\w*|(?:periodic|lattice|cell)\b.*)",
    re.IGNORECASE | re.MULTILINE,
)
"""What a file of Turbomole or xtb says of other units, or of a cell; ASE reads neither."""

SMILES_PREFIX: Final = "smiles:"
SEQUENCE_PREFIX: Final = "sequence:"


def load_structure(
    text: str,
    *,
    smiles: bool = False,
    charge: int | None = None,
    multiplicity: int | None = None,
    seed: int = 0,
    vacuum: bool = False,
    report: Callable[[str], None] = lambda note: None,
) -> ase.Atoms:
    """Build or read a molecule; the first of these that fits decides.

    1. ``smiles:CCO``, or any text with ``smiles=True``: a SMILES, embedded and optimised by RDKit;
       ``sequence:AAG``: a peptide with the caps Ace and Nme, ``sequence:H-AAG-OH`` with free ends.
    2. A file that exists: the first model of a PDB or mmCIF file, else the last frame in any format
       ASE reads; also compressed.
    3. A name ASE knows (``CH3CH2OH``, ``trans-butane``, ...).
    4. A name of the built-in molecule table (``ethanol``, ``aspirin``, ...), built from its SMILES.
    5. A SMILES.

    Parameters
    ----------
    text
        What the user wrote.
    smiles
        The text is a SMILES.
    charge, multiplicity
        Total charge in e and 2S + 1. They must agree with what a file or a SMILES says, and replace
        the neutral ground state of ASE's names.
    seed
        Seed of RDKit's embedding.
    vacuum
        Leave out a periodic cell of the file.
    report
        Called with sentences on what was chosen or assumed.

    Returns
    -------
    ase.Atoms
        Charge and multiplicity are in ``atoms.info``.

    Raises
    ------
    InputError
        If the text is none of these, the file or SMILES cannot be read, charge or multiplicity
        contradict it, atoms overlap or are bonded to nothing, or hydrogens are missing.
    MissingDependencyError
        If RDKit is needed but not installed.
    """
    if smiles or text.startswith(SMILES_PREFIX):
        bare = text.removeprefix(SMILES_PREFIX)
        return atoms_from_smiles(bare, charge=charge, multiplicity=multiplicity, seed=seed)
    if text.startswith(SEQUENCE_PREFIX):
        atoms = _from_structure(_peptide(text, seed), report)
        return _with_state(atoms, charge, multiplicity)
    if is_file(text):
        atoms = _read(Path(text), vacuum, report, charge_known=charge is not None)
        atoms = _with_state(atoms, charge, multiplicity)
        check_start(atoms)
        if charge is None:
            state = electronic_state(atoms)
            implied = charge_of_bonds(atoms)
            how_to_state = (
                f"; an ion needs --charge{implied_ion(implied)}, a radical --multiplicity"
            )
            check_parity(f"{text}: ", int(atoms.numbers.sum()), state, lambda: how_to_state)
            if question := charge_question(text, state, implied, "--charge "):
                raise InputError(question)
        return atoms
    if text in g2.names:
        if is_smiles(text):
            report(f"{text} is taken as ASE's molecule; {SMILES_PREFIX}{text} would be a SMILES.")
        return _from_ase(text, charge, multiplicity)
    if text in MOLECULES:
        known = MOLECULES[text]
        molecule = molecule_from_smiles(
            known.name,
            known.smiles,
            charge=charge,
            multiplicity=known.multiplicity if multiplicity is None else multiplicity,
        )
        return embed(molecule, seed)
    if is_smiles(text):
        report(f"{text!r} is taken as a SMILES.")
        return atoms_from_smiles(text, charge=charge, multiplicity=multiplicity, seed=seed)
    raise InputError(_unknown(text))


def load_bonded(text: str, seed: int) -> BondedStructure:
    """Read or build a molecule with its residues, names and bonds.

    Parameters
    ----------
    text
        A PDB or mmCIF file, a SMILES, alone or after ``smiles:``, or ``sequence:`` and a peptide,
        as of `Peptide.parse`.
    seed
        Seed of structures that are built.

    Raises
    ------
    InputError
        If it is none of these.
    """
    if text.startswith(SEQUENCE_PREFIX):
        return _peptide(text, seed)
    stated = text.startswith(SMILES_PREFIX)
    if not stated and is_file(text):
        return read_structure(text)
    if stated or is_smiles(text):
        return structure_from_smiles(text.removeprefix(SMILES_PREFIX), seed=seed)
    is_sequence = text.isalpha() and text.isupper()
    raise InputError(
        f"there is no file {text!r}; give a PDB or mmCIF file, a SMILES as {SMILES_PREFIX}CCO, or "
        f"a peptide as {SEQUENCE_PREFIX}{text if is_sequence else 'AAG'}"
    )


def is_file(text: str) -> bool:
    """Tell whether a text names a file."""
    return _is(Path.is_file, text)


def _is(kind: Callable[[Path], bool], text: str) -> bool:
    """Tell whether a text names something of a kind; a SMILES may be too long for that."""
    try:
        return kind(Path(text))
    except OSError:
        return False


def bonded_structure_of(text: str, atoms: ase.Atoms, seed: int) -> BondedStructure:
    """Residues, names and bonds of the molecule that :func:`load_structure` has made of a text."""
    if text.startswith(SEQUENCE_PREFIX):
        return _peptide(text, seed)
    if is_file(text) and is_structure_file(text):
        return read_structure(text)
    return bonded_structure_from_ase(atoms)


def check_start(atoms: ase.Atoms) -> None:
    """Refuse a structure that is not made of whole molecules with all their hydrogens.

    Raises
    ------
    InputError
        If atoms overlap or are bonded to nothing, there is no hydrogen where some belong, or an
        atom is none.
    """
    dummies = np.flatnonzero(atoms.numbers < 1)
    if len(dummies):
        raise InputError(
            f"atom {dummies[0]} is X, a dummy atom or one of an unknown element; remove it, or "
            "write its chemical symbol"
        )
    check_contacts(atoms.numbers, atoms.positions)
    check_hydrogens(atoms)
    check_bonded(atoms)


def _peptide(text: str, seed: int) -> BondedStructure:
    return build_peptide(Peptide.parse(text.removeprefix(SEQUENCE_PREFIX)), seed)


def _with_state(atoms: ase.Atoms, charge: int | None, multiplicity: int | None) -> ase.Atoms:
    """Put charge and multiplicity into ``atoms.info``, by the rule for all atoms."""
    results = {} if atoms.calc is None else atoms.calc.results
    store_state(atoms, electronic_state(atoms, charge, multiplicity, results=results))
    # The file's forces and energy are not the model's.
    atoms.calc = None
    return atoms


def _read(
    path: Path, vacuum: bool, report: Callable[[str], None], *, charge_known: bool
) -> ase.Atoms:
    refuse_huge(path)
    refuse_capital_ending(path)
    if is_structure_file(path):
        file = read_structure_file(path)
        atoms = _from_structure(file.structure, report)
        if file.has_isotopes:
            atoms.set_masses(file.masses)
        if file.cell is not None:
            atoms.set_cell(file.cell)
            atoms.pbc = True
        if "charge" not in atoms.info and not charge_known:
            raise InputError(
                f"{path} does not state the charges of its ions or nucleotides, or of ionic "
                "ligands; give --charge"
            )
    elif bare_suffix(path) in MOLFILE_SUFFIXES:
        atoms = read_molfile(path)
    else:
        atoms = _read_with_ase(path, charge_known=charge_known)
    if vacuum or tuple(atoms.cell.lengths()) in NO_CELL:
        atoms.pbc, atoms.cell = False, None
    if atoms.pbc.any():
        raise InputError(
            f"{path} has a periodic cell of {atoms.cell.lengths().round(3).tolist()} Å, but the "
            "model knows isolated molecules only; give --vacuum if the molecule is whole and alone"
        )
    return atoms


def _from_structure(structure: BondedStructure, report: Callable[[str], None]) -> ase.Atoms:
    for note in structure.notes:
        report(note)
    atoms = ase.Atoms(structure.numbers, structure.positions)
    charge = total_charge(structure)
    if charge is not None:
        atoms.info["charge"] = charge
        if any(PARENTS.get(name, name) in RESIDUES for name in structure.residue_names):
            report(f"Charge {charge:+d}, from the hydrogens of {counted(len(structure), 'atom')}.")
    return atoms


def _last_frame(path: Path) -> tuple[str, ase.Atoms]:
    """Read the last frame of a file; return the kind of the file by ASE's name, and the atoms."""
    suffix = bare_suffix(path)
    known = extension2format.get(suffix.removeprefix("."))
    try:
        # ASE does not know capital letters; where it knows nothing, it looks into the file.
        is_capital = suffix not in path.suffixes
        kind = known.name if known is not None and is_capital else filetype(str(path))
        atoms: Any = ase.io.read(path, index=-1, format=kind, do_not_split_by_at_sign=True)
        return kind, atoms
    except Exception as error:  # ASE's many readers raise whatever they stumble over
        if isinstance(error, KeyError) and error.args:
            raise InputError(
                f"{path} has {error.args[0]!r} where ASE expects a chemical symbol; write symbols, "
                "and for isotopes H and a column masses:R:1 (or a SMILES with [2H])"
            ) from error
        if isinstance(error, UnicodeDecodeError):
            raise InputError(
                f"{path} is not text in UTF-8 ({error}); save it as UTF-8, or give it the ending "
                "of its kind"
            ) from error
        reason = str(error) or "it does not begin with a frame"
        raise InputError(
            f"ASE cannot read {path} ({type(error).__name__}: {reason}); give a whole file that is "
            "of the kind its ending says, such as .xyz, .extxyz, .gro, .pdb, .cif, .sdf or .traj"
        ) from error


def _read_with_ase(path: Path, *, charge_known: bool) -> ase.Atoms:
    refuse_byte_order_mark(path)
    if bare_suffix(path) in _HALVES:
        raise InputError(
            f"{path} is of a kind that holds positions without elements, or a topology without "
            "positions; write one frame with its topology as a PDB or .xyz file, for example with "
            "mdtraj, MDAnalysis or VMD"
        )
    kind, atoms = _last_frame(path)
    left_out = kind.startswith(_CHARGE_IS_LEFT_OUT) or (
        kind == "turbomole" and _STATED.search(_text(path)) is not None
    )
    if left_out and not charge_known:
        raise InputError(
            f"the charge and multiplicity that {path} states are not read from files of the kind "
            f"{kind}; give --charge, and --multiplicity unless it is 1"
        )
    if kind == "turbomole" and (found := _NO_BOHR.search(_text(path))):
        raise InputError(
            f"{path} says '${found[1].strip()}', but files of the kind turbomole are read as "
            "isolated molecules in Bohr; write it as an .xyz or .extxyz file in Å"
        )
    if kind.startswith(_ELEMENTS_ARE_GUESSED):
        raise InputError(
            f"ASE guesses the elements of files of the kind {kind}, chlorine as carbon and types "
            f"as atomic numbers; convert {path} to a PDB or .xyz file"
        )
    if kind == "gromacs":
        _complete_gro(path, atoms)
    elif kind in ("xyz", "extxyz"):
        refuse_frames_behind_blank_lines(path)
    if not len(atoms):
        raise InputError(f"the last frame of {path} has no atoms; remove it")
    refuse_odd_columns(str(path), atoms)
    atoms.set_constraint(acting_constraints(atoms))
    return atoms


def _text(path: Path) -> str:
    with open_with_compression(str(path), "r") as file:
        text: str = file.read()
    return text


def _complete_gro(path: Path, atoms: ase.Atoms) -> None:
    """Refuse files without a box, whose last atom ASE takes for it, and name elements anew.

    ASE takes the first letter of a name in capitals for the element, chlorine for carbon.
    """
    stated = "".join(_text(path).splitlines()[1:2]).strip() or "no number of"
    if stated != str(len(atoms)):
        raise InputError(
            f"{path} states {stated} atoms and has {len(atoms)} between its second and last line; "
            "the last line is the box, which may be 0 0 0"
        )
    residues = list(zip(atoms.arrays["residuenumbers"], atoms.arrays["residuenames"], strict=True))
    sizes = Counter(residues)
    for i, (name, residue) in enumerate(zip(atoms.arrays["atomtypes"], residues, strict=True)):
        if symbol := two_letter_symbol(str(name), sizes[residue]):
            atoms.symbols[i] = symbol


def _from_ase(name: str, charge: int | None, multiplicity: int | None) -> ase.Atoms:
    atoms: ase.Atoms = ase.build.molecule(name)
    if charge is not None or multiplicity is not None:
        # ASE's moments are those of the neutral ground state, which is not what is asked for.
        atoms.set_initial_magnetic_moments(None)
    return _with_state(atoms, charge, multiplicity)


def _unknown(text: str) -> str:
    if "." in text and all(map(is_smiles, text.split("."))):
        return (
            f"{text!r} is a SMILES of several molecules, and one isolated molecule is needed; give "
            "the part you want, an ion with its charge"
        )
    if _is(Path.is_dir, text):
        return f"{text!r} is a folder; name a file in it"
    if "/" in text or Path(text).suffix:
        return f"there is no file {text!r}; a SMILES is given as {SMILES_PREFIX}{text}"
    close = difflib.get_close_matches(text, [*g2.names, *MOLECULES], n=3, cutoff=0.6)
    hint = f" (similar names: {', '.join(close)})" if close else ""
    return (
        f"{text!r} is neither a file nor a molecule known by name{hint}; give a structure file, a "
        f"SMILES as {SMILES_PREFIX}CCO, a peptide as {SEQUENCE_PREFIX}AAG, a name of ASE's g2 "
        "collection (CH3CH2OH, C6H6, ...) or of the built-in table (ethanol, aspirin, ...)"
    )
