"""Molecules to generate data for: the built-in table, the user's own, and 3-D start structures."""

from __future__ import annotations

import csv
import difflib
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import ase
import numpy as np
from ase.data import atomic_masses
from numpy.typing import NDArray

from mlmd_calc.electrons import ElectronicState, as_integer, check_parity
from mlmd_calc.errors import InputError
from mlmd_calc.io import toml
from mlmd_calc.optional import require
from mlmd_calc.wording import counted

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{,99}")

_EMBEDDING_ATTEMPTS: Final = 40
_EMBEDDING_SECONDS: Final = 30
"""Time after which a molecule is given up; RDKit would go on for hours with a large one."""

_DISTANCES_ALONE: Final = MappingProxyType(
    {"useExpTorsionAnglePrefs": False, "useBasicKnowledge": False}
)


@dataclass(frozen=True)
class Molecule:
    """What is needed to build a molecule.

    Attributes
    ----------
    name
        Letters, digits, ``_``, ``+`` and ``-``; also the name of its data file.
    smiles
        Structure; fixes the order of the atoms (heavy atoms as written, then hydrogens).
    charge, multiplicity
        Total charge in e and 2S + 1.
    tags
        Sets the molecule belongs to.
    """

    name: str
    smiles: str
    charge: int = 0
    multiplicity: int = 1
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                f"{self.name!r} cannot name a molecule: use letters, digits, '_', '+' and '-', "
                "100 at most, and begin with a letter or digit"
            )


def _table() -> dict[str, Molecule]:
    text = (resources.files("mlmd_calc.data") / "molecules.csv").read_text(encoding="utf-8")
    return {
        row["name"]: Molecule(
            row["name"],
            row["smiles"],
            int(row["charge"]),
            int(row["multiplicity"]),
            frozenset(row["tags"].split()),
        )
        for row in csv.DictReader(text.splitlines())
    }


MOLECULES: Final[Mapping[str, Molecule]] = MappingProxyType(_table())
"""The built-in molecules by name.

Each carries the tag of its group. ``md17``, ``md22`` and ``tg80`` cut across groups: ``tg80`` is a
set of common organics in the spirit of the TG80 collection, ``extra`` marks further ones that widen
it.
"""


def molecule_from_smiles(
    name: str,
    smiles: str,
    *,
    charge: int | None = None,
    multiplicity: int | None = None,
    tags: Collection[str] = (),
) -> Molecule:
    """Describe a molecule by its SMILES.

    Parameters
    ----------
    name
        Name of the molecule and of its data file.
    smiles
        One connected molecule.
    charge
        Total charge in e; None takes the formal charges of the SMILES, which a given value must
        agree with.
    multiplicity
        2S + 1; None couples all unpaired electrons of the SMILES in parallel.
    tags
        Sets the molecule belongs to.

    Raises
    ------
    InputError
        If the SMILES cannot be read or has several fragments, or charge and multiplicity
        contradict it.
    MissingDependencyError
        If rdkit is not installed.
    """
    graph = _graph(name, smiles)
    if not all(atom.GetAtomicNum() for atom in graph.GetAtoms()):
        raise InputError(
            f"molecule {name!r}: the SMILES {smiles!r} has an atom of no element (*); write what "
            "is attached there"
        )
    if any(str(bond.GetBondType()) == "UNSPECIFIED" for bond in graph.GetBonds()):
        raise InputError(
            f"molecule {name!r}: the SMILES {smiles!r} has a bond of any kind (~), which leaves "
            "the number of hydrogens open; write which it is"
        )
    formal = sum(atom.GetFormalCharge() for atom in graph.GetAtoms())
    if charge is not None and charge != formal:
        raise InputError(
            f"molecule {name!r}: the charge is given as {charge} but the SMILES {smiles!r} has "
            f"{formal}; write the charges into the SMILES"
        )
    if multiplicity is None:
        multiplicity = 1 + sum(atom.GetNumRadicalElectrons() for atom in graph.GetAtoms())
    protons = sum(atom.GetAtomicNum() for atom in graph.GetAtoms())
    check_parity(f"molecule {name!r}: ", protons, ElectronicState(formal, multiplicity))
    return Molecule(name, smiles, formal, multiplicity, frozenset(tags))


def atoms_from_smiles(
    smiles: str, *, charge: int | None = None, multiplicity: int | None = None, seed: int = 0
) -> ase.Atoms:
    """Build a molecule from its SMILES with RDKit, hydrogens included.

    Parameters
    ----------
    smiles, charge, multiplicity
        As for `molecule_from_smiles`.
    seed
        Seed of the embedding, 0 ≤ seed < 2³¹.

    Returns
    -------
    ase.Atoms
        One conformer; charge and multiplicity are in ``atoms.info``, where the calculator looks.

    Raises
    ------
    InputError
        As `molecule_from_smiles`, or if RDKit cannot embed the molecule.
    MissingDependencyError
        If rdkit is not installed.

    Examples
    --------
    >>> atoms = atoms_from_smiles("[CH2]C")
    >>> atoms.get_chemical_formula(), atoms.info["multiplicity"]
    ('C2H5', 2)
    """
    molecule = molecule_from_smiles("input", smiles, charge=charge, multiplicity=multiplicity)
    return embed(molecule, seed)


def embed(molecule: Molecule, seed: int) -> ase.Atoms:
    """One conformer of a molecule, as `atoms_from_smiles` returns it."""
    structure = start_structures(molecule, conformers=1, seed=seed)
    info = {"charge": molecule.charge, "multiplicity": molecule.multiplicity}
    masses = structure.masses if structure.has_isotopes else None
    return ase.Atoms(structure.numbers, structure.positions[0], masses=masses, info=info)


def select_molecules(selection: Iterable[str]) -> list[Molecule]:
    """Find molecules by name or tag, read them from recipe files, or take them inline.

    Parameters
    ----------
    selection
        Each entry is one of

        * a name or a tag of the built-in table, or ``all``,
        * ``NAME=SMILES``,
        * a TOML file: one table per molecule, its key the name, with ``smiles`` and optionally
          ``charge``, ``multiplicity`` and ``tags``,
        * a CSV file with the columns ``name`` and ``smiles`` and optionally ``charge``,
          ``multiplicity`` and ``tags`` (separated by spaces).

    Returns
    -------
    list of Molecule
        Without repetitions, in the order first met.

    Raises
    ------
    InputError
        If an entry is none of these, a recipe is malformed, or one name stands for two different
        molecules.
    """
    chosen: dict[str, Molecule] = {}
    for entry in selection:
        for molecule in _resolve(entry):
            known = chosen.setdefault(molecule.name, molecule)
            if known.smiles != molecule.smiles or known.multiplicity != molecule.multiplicity:
                raise InputError(
                    f"the name {molecule.name!r} stands for two molecules, {known.smiles} with "
                    f"multiplicity {known.multiplicity} and {molecule.smiles} with multiplicity "
                    f"{molecule.multiplicity}; rename one"
                )
    if not chosen:
        raise InputError("no molecules selected; give names, tags, NAME=SMILES or recipe files")
    return list(chosen.values())


def _resolve(entry: str) -> list[Molecule]:
    if entry == "all":
        return list(MOLECULES.values())
    if entry in MOLECULES:
        return [MOLECULES[entry]]
    if tagged := [molecule for molecule in MOLECULES.values() if entry in molecule.tags]:
        return tagged
    if entry.lower().endswith((".toml", ".csv")):
        return _read_recipe(Path(entry))
    name, separator, smiles = entry.partition("=")
    if separator:
        return [molecule_from_smiles(name, smiles)]
    tags = sorted(frozenset().union(*(molecule.tags for molecule in MOLECULES.values())))
    close = difflib.get_close_matches(entry, [*MOLECULES, *tags], n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise InputError(
        f"there is no molecule or tag called {entry!r}{hint} The tags are all, {', '.join(tags)}; "
        "other molecules can be given as NAME=SMILES or in a .toml or .csv file"
    )


def _read_recipe(path: Path) -> list[Molecule]:
    try:
        # With or without the byte-order mark that spreadsheets write.
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".toml":
            rows = [{"name": name, **row} for name, row in toml.loads(text).items()]
        else:
            rows = _csv_rows(text)
    except UnicodeDecodeError as error:
        raise InputError(
            f"the recipe {path} is not text in UTF-8 ({error}); save it as that, in spreadsheets "
            "as CSV UTF-8"
        ) from error
    except (OSError, toml.TOMLDecodeError, TypeError) as error:
        raise InputError(f"the recipe {path} cannot be read: {error}") from error
    if not rows:
        raise InputError(
            f"the recipe {path} holds no molecule; the first line of a CSV file names the columns, "
            "name,smiles, and each of the others is a molecule"
        )
    return [_from_row(path, row) for row in rows]


def _csv_rows(text: str) -> list[dict[str | Any, Any]]:
    """Rows of a table as spreadsheets of any language write them.

    Cells may be separated by semicolons, which the first line may say, columns may have no name and
    no content, and names of columns may be in capitals.
    """
    lines = text.splitlines()
    while lines and (not lines[0].strip() or lines[0].startswith("sep=")):
        del lines[0]
    delimiter = next((mark for mark in ";\t" if lines and mark in lines[0]), ",")
    rows = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
    return [
        {name: cell for name, cell in row.items() if name != "" or cell}
        for row in rows
        if any(row.values())
    ]


def _from_row(path: Path, row: Mapping[str | None, Any]) -> Molecule:
    allowed = {"name", "smiles", "charge", "multiplicity", "tags"}
    # None is where csv puts the cells beyond the header.
    if not {"name", "smiles"} <= row.keys() <= allowed:
        raise InputError(
            f"{path}: a molecule has the fields {list(row)}; needed are name and smiles, allowed "
            "charge, multiplicity and tags"
        )
    for key in ("name", "smiles"):
        if not (isinstance(row[key], str) and row[key].strip()):
            raise InputError(
                f"{path}: the molecule {row['name']!r} has {key}={row[key]!r}; it must be a text"
            )
    where = f"{path}, molecule {row['name']!r}: "
    tags = row.get("tags") or ()
    if isinstance(tags, str):
        tags = tags.split()
    elif not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
        raise InputError(f"{where}tags={tags!r}; give texts")
    charge, multiplicity = (_cell(where, key, row.get(key)) for key in ("charge", "multiplicity"))
    return molecule_from_smiles(
        row["name"].strip(),
        row["smiles"].strip(),
        charge=charge,
        multiplicity=multiplicity,
        tags=tags,
    )


def _cell(where: str, key: str, value: Any) -> int | None:
    """Whole number of a table, where spreadsheets may have written 1.0; empty is not given."""
    if isinstance(value, str):
        text = value.strip().replace("\N{MINUS SIGN}", "-")
        try:
            value = float(text) if text else None
        except ValueError as error:
            raise InputError(f"{where}{key}={value!r} is not a number") from error
    try:
        return as_integer(key, value)
    except InputError as error:
        raise InputError(f"{where}{error}") from error


def _graph(name: str, smiles: str) -> Any:
    """Molecular graph with explicit hydrogens."""
    chem = require("rdkit.Chem", extra="data", why="build molecules from SMILES")
    base = require("rdkit.rdBase", extra="data", why="build molecules from SMILES")
    with base.BlockLogs():  # the reason is in our own message
        graph = chem.MolFromSmiles(smiles)
    if graph is None or graph.GetNumAtoms() == 0:
        raise InputError(f"molecule {name!r}: {smiles!r} is not a valid SMILES")
    if len(chem.GetMolFrags(graph)) > 1:
        raise InputError(
            f"molecule {name!r}: {smiles!r} has several fragments; give one connected molecule"
        )
    return chem.AddHs(graph)


def is_smiles(text: str) -> bool:
    """Tell whether RDKit is there and can read a text as a SMILES."""
    if find_spec("rdkit") is None:
        return False
    try:
        _graph("input", text)
    except InputError:
        return False
    return True


def atom_count(molecule: Molecule) -> int:
    """Return the number of atoms, hydrogens included; errors as `molecule_from_smiles`."""
    return int(_graph(molecule.name, molecule.smiles).GetNumAtoms())


@dataclass(frozen=True)
class StartStructures:
    """Three-dimensional structures of a molecule.

    Attributes
    ----------
    numbers
        Atomic numbers, ``(n,)``.
    positions
        ``(conformers, n, 3)`` Å.
    bonds
        Index pairs of bonded atoms, ``(bonds, 2)``.
    masses
        ``(n,)`` amu: of the isotopes that the SMILES names, of the natural mixture elsewhere.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    bonds: NDArray[np.int64]
    masses: NDArray[np.float64]

    @property
    def has_isotopes(self) -> bool:
        """Whether the SMILES names isotopes."""
        return bool((self.masses != atomic_masses[self.numbers]).any())


def start_structures(molecule: Molecule, conformers: int, seed: int) -> StartStructures:
    """Build conformers with RDKit: ETKDG, then MMFF94 or, where that lacks parameters, UFF.

    Cages that ETKDG's knowledge of torsions does not fit, such as fullerenes, are built from
    distances alone. Molecules neither force field knows (some ions and radicals) stay as embedded.

    Parameters
    ----------
    molecule
        What to build.
    conformers
        How many; rigid molecules give (nearly) the same structure several times.
    seed
        Seed of the embedding, 0 ≤ seed < 2³¹.

    Raises
    ------
    InputError
        If RDKit cannot embed the molecule within the attempts and the time it is given.
    MissingDependencyError
        If rdkit is not installed.
    """
    graph = _graph(molecule.name, molecule.smiles)
    force_fields = require("rdkit.Chem.rdForceFieldHelpers", extra="data", why="build structures")
    base = require("rdkit.rdBase", extra="data", why="build 3-D structures")
    with base.BlockLogs():
        found = _embed(graph, molecule, conformers, seed)
        if force_fields.MMFFHasAllMoleculeParams(graph):
            force_fields.MMFFOptimizeMoleculeConfs(graph)
        elif force_fields.UFFHasAllMoleculeParams(graph):
            force_fields.UFFOptimizeMoleculeConfs(graph)
    atoms = list(graph.GetAtoms())
    numbers = np.array([atom.GetAtomicNum() for atom in atoms])
    isotope = np.array([atom.GetIsotope() > 0 for atom in atoms])
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in graph.GetBonds()]
    return StartStructures(
        numbers=numbers,
        positions=np.array([graph.GetConformer(index).GetPositions() for index in found]),
        bonds=np.array(bonds, dtype=np.int64).reshape(-1, 2),
        masses=np.where(isotope, [atom.GetMass() for atom in atoms], atomic_masses[numbers]),
    )


def _embed(graph: Any, molecule: Molecule, conformers: int, seed: int) -> list[int]:
    """Give a graph conformers, by simpler methods where ETKDG fails; return their indices."""
    embedding = require("rdkit.Chem.rdDistGeom", extra="data", why="build 3-D structures")
    parameters = embedding.ETKDGv3()
    # RDKit knows no larger ones.
    parameters.randomSeed = seed % 2**31
    # Attempts are what decides, so that a seed gives the same structure on every machine.
    parameters.maxIterations = _EMBEDDING_ATTEMPTS
    parameters.timeout = _EMBEDDING_SECONDS
    begin = time.monotonic()
    found: list[int] = []
    for change in ({}, {"useRandomCoords": True}, _DISTANCES_ALONE):
        for name, value in change.items():
            setattr(parameters, name, value)
        tried = embedding.EmbedMultipleConfs(graph, conformers, parameters)
        found = [index for index in tried if index >= 0]
        if len(found) == conformers:
            return found
        if time.monotonic() - begin > _EMBEDDING_SECONDS:
            break
    raise InputError(
        f"molecule {molecule.name!r}: only {len(found)} of {conformers} conformers of "
        f"{molecule.smiles[:60]!r} ({counted(graph.GetNumAtoms(), 'atom')}) could be built within "
        f"{_EMBEDDING_ATTEMPTS} attempts and {_EMBEDDING_SECONDS} s; ask for fewer, "
        "check the SMILES, or give a structure file"
    )
