"""The reader of PDB and mmCIF files: what is read is right, or refused."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import openmm
import openmm.app as app
import pytest
from openmm import unit
from peptide_structures import DIPEPTIDE, pdb_line, write_dipeptide
from scipy.spatial.transform import Rotation

from mlmd_calc.biomolecules import build_system, read_structure
from mlmd_calc.biomolecules.charges import total_charge
from mlmd_calc.biomolecules.pdb import format_conect, format_pdb
from mlmd_calc.biomolecules.reader import read_structure_file
from mlmd_calc.biomolecules.residues import HYDROGENS, RESIDUE_BONDS
from mlmd_calc.cli.structure_input import load_structure
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.data.readers import read_dataset
from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.geometry.stereochemistry import handedness
from mlmd_calc.sampling.trajectory_file import topology_of
from openmm_bridge.topology_features import structure_from_topology

ETHANOL = """
    C1 C  1.168 -0.400  0.000
    C2 C  0.000  0.559  0.000
    O  O -1.190 -0.228  0.000
    HO H -1.947  0.382  0.000
    H1 H  0.043  1.208  0.887
    H2 H  0.043  1.208 -0.887
    H3 H  2.116  0.145  0.000
    H4 H  1.129 -1.037  0.886
    H5 H  1.129 -1.037 -0.886
"""


def ethanol(symbols=True, rename=lambda name: name, element=lambda symbol: symbol):
    """PDB lines of ethanol."""
    rows = [row.split() for row in ETHANOL.strip().splitlines()]
    lines = [
        pdb_line(i, rename(name), "ETH", "A", 1, map(float, x), element(symbol))
        for i, (name, symbol, *x) in enumerate(rows, start=1)
    ]
    return [line if symbols else line[:66] + "\n" for line in lines]


def write(path, lines):
    path.write_text("".join(lines))
    return path


def without_atoms(structure, atoms):
    return topology_of(structure, np.setdiff1d(np.arange(len(structure)), atoms))


def written(path, structure, conect=False):
    """PDB file of a structure, by default without what it says about bonds."""
    path.write_text(format_pdb(structure) + (format_conect(structure) if conect else ""))
    return path


@pytest.fixture(scope="module")
def peptide():
    return capped_peptide("KGD", 0)


@pytest.fixture(scope="module")
def bridged():
    """Two chains Ace-C-Nme with a disulfide bridge between them."""
    first = capped_peptide("C", 1)
    sulfur = first.names.index("SG")
    hydrogen = next(
        i for pair in first.bonds.tolist() for i in pair if sulfur in pair and first.numbers[i] == 1
    )
    x = first.positions - first.positions[sulfur]
    axis = x.mean(axis=0) / np.linalg.norm(x.mean(axis=0))
    turn = Rotation.from_rotvec(
        np.pi * np.cross(axis, [0.3, 0.5, 0.8]) / np.linalg.norm(np.cross(axis, [0.3, 0.5, 0.8]))
    )
    n = len(first)
    both = replace(
        first,
        names=first.names * 2,
        numbers=np.tile(first.numbers, 2),
        residues=np.concatenate([first.residues, first.residues + 3]),
        residue_names=first.residue_names * 2,
        residue_numbers=np.tile(first.residue_numbers, 2),
        chains=np.repeat([0, 1], 3),
        chain_names=("A", "B"),
        bonds=np.concatenate([first.bonds, first.bonds + n, [[sulfur, sulfur + n]]]),
        charges=np.tile(first.charges, 2),
        positions=np.concatenate([x, turn.apply(x) - 2.05 * axis]),
    )
    return without_atoms(both, [hydrogen, hydrogen + n])


# ---- bonds and charges ------------------------------------------------------------------------


def test_templates_against_amber():
    """Bonds between heavy atoms, and hydrogens on each, of all residues."""
    templates = app.ForceField("amber14/protein.ff14SB.xml")._templates
    for residue, bonds in RESIDUE_BONDS.items():
        template = templates["HIE" if residue == "HIS" else residue]
        names = [
            "C" if (residue, atom.name) == ("NME", "CH3") else atom.name for atom in template.atoms
        ]
        heavy = [atom.element.symbol != "H" for atom in template.atoms]
        expected = {
            frozenset((names[i], names[j])) for i, j in template.bonds if heavy[i] and heavy[j]
        }
        assert {frozenset(pair) for pair in bonds if "OXT" not in pair} == expected
        for name, count in HYDROGENS[residue].items():
            own = [pair for pair in template.bonds if names.index(name) in pair]
            assert sum(not all(heavy[i] for i in pair) for pair in own) == count, (residue, name)


@pytest.mark.parametrize("sequence", ["ARND", "CEQG", "HILK", "MFPS", "TWYV"])
def test_bonds_and_charge_against_openmm(sequence, tmp_path):
    """Hydrogens, their names and all bonds are OpenMM's, charges Amber's."""
    heavy = without_hydrogens(capped_peptide(sequence, 0))
    file = app.PDBFile(str(written(tmp_path / "heavy.pdb", heavy)))
    field = app.ForceField("amber14/protein.ff14SB.xml")
    modeller = app.Modeller(file.topology, file.positions)
    modeller.addHydrogens(field, platform=openmm.Platform.getPlatformByName("Reference"))
    path = tmp_path / "peptide.pdb"
    with path.open("w") as output:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, output)
    structure = read_structure(path)
    forces = field.createSystem(modeller.topology).getForces()
    nonbonded = next(force for force in forces if isinstance(force, openmm.NonbondedForce))
    charges = [
        nonbonded.getParticleParameters(i)[0].value_in_unit(unit.elementary_charge)
        for i in range(len(structure))
    ]
    assert total_charge(structure) == round(sum(charges))
    theirs = {frozenset((i.index, j.index)) for i, j in modeller.topology.bonds()}
    assert {frozenset(pair) for pair in structure.bonds.tolist()} == theirs


@pytest.mark.parametrize("sequence", ["D", "K", "RD", "EE", "KKH"])
def test_charges_of_runs(sequence, tmp_path):
    path = written(tmp_path / "peptide.pdb", capped_peptide(sequence, 0))
    charge = sum({"D": -1, "E": -1, "K": 1, "R": 1}.get(letter, 0) for letter in sequence)
    notes = []
    assert load_structure(str(path), report=notes.append).info["charge"] == charge
    assert notes[0].startswith(f"Charge {charge:+d}, from the hydrogens")


@pytest.mark.parametrize("name", ["CYS", "CYX"])
@pytest.mark.parametrize("suffix", ["pdb", "cif"])
def test_disulfide_bridges_are_found_by_their_length(bridged, name, suffix, tmp_path):
    renamed = replace(
        bridged, residue_names=tuple(name if r == "CYS" else r for r in bridged.residue_names)
    )
    path = written(tmp_path / "bridged.pdb", renamed)
    if suffix == "cif":
        file, path = app.PDBFile(str(path)), tmp_path / "bridged.cif"
        with path.open("w") as output:
            app.PDBxFile.writeFile(file.topology, file.positions, output, keepIds=True)
    structure = read_structure(path)
    assert total_charge(structure) == 0
    sulfurs = np.flatnonzero(structure.numbers == 16).tolist()
    assert sulfurs in structure.bonds.tolist()
    assert len(structure.bonds) == len(bridged.bonds)


def test_half_bridges(bridged, tmp_path):
    half = topology_of(bridged, np.arange(len(bridged) // 2))
    assert total_charge(read_structure(written(tmp_path / "thiolate.pdb", half))) == -1
    renamed = replace(
        half, residue_names=tuple("CYX" if r == "CYS" else r for r in half.residue_names)
    )
    with pytest.raises(InputError, match="SG of CYX 2 of chain A has no sulfur within reach"):
        read_structure(written(tmp_path / "half.pdb", renamed))


def test_isoleucine_in_the_names_of_files_and_of_rdkit(tmp_path):
    """RDKit has CD1 on CG2; what the networks see is the same."""
    structure = capped_peptide("I", 0)
    read = read_structure(written(tmp_path / "file.pdb", structure))
    swapped = {"CG1": "CG2", "CG2": "CG1"}
    rdkit = replace(structure, names=tuple(swapped.get(name, name) for name in structure.names))
    ours, theirs = build_system(read), build_system(rdkit)
    assert ours.atoms.tolist() == theirs.atoms.tolist()
    assert ours.features.ref_atom_name_chars.equal(theirs.features.ref_atom_name_chars)
    bonds = ours.features.ref_pos.numpy()[ours.bonds]
    assert np.linalg.norm(bonds[3:8, 0] - bonds[3:8, 1], axis=-1).max() < 5.0
    with pytest.raises(InputError, match=r"CB and|would be .* Å long"):
        read_structure(written(tmp_path / "rdkit.pdb", rdkit))


@pytest.mark.parametrize(("letter", "arms"), [("V", ("CG1", "CG2")), ("L", ("CD1", "CD2"))])
def test_equal_arms_have_the_names_of_protein_files_whatever_they_are_called(letter, arms):
    protein = read_structure(Path(openmm.__file__).parent / "app" / "data" / "test.pdb")
    kind = {"V": "VAL", "L": "LEU"}[letter]
    other = dict(zip(arms, arms[::-1], strict=True))
    swapped = replace(
        protein,
        names=tuple(
            other.get(name, name) if protein.residue_names[residue] == kind else name
            for name, residue in zip(protein.names, protein.residues, strict=True)
        ),
    )
    ours, theirs = build_system(protein), build_system(swapped)
    assert ours.atoms.tolist() == theirs.atoms.tolist()
    # In proteins and in what is built the same arm is the first.
    hands = set()
    for structure in (protein, *(capped_peptide(letter, seed) for seed in range(4))):
        for residue in np.flatnonzero([name == kind for name in structure.residue_names]):
            place = {structure.names[i]: i for i in np.flatnonzero(structure.residues == residue)}
            centre = ("CB", "CA") if letter == "V" else ("CG", "CB")
            atoms = np.array([[place[name] for name in (*centre, *arms)]])
            hands.add(float(handedness(structure.positions[None], atoms)[0, 0]))
    assert len(hands) == 1


# ---- what a file may look like ----------------------------------------------------------------


def test_sources_agree(peptide, tmp_path):
    path = written(tmp_path / "peptide.pdb", peptide)
    expected = read_structure(path)
    file = app.PDBFile(str(path))
    cif = tmp_path / "peptide.cif"
    with cif.open("w") as output:
        app.PDBxFile.writeFile(file.topology, file.positions, output, keepIds=True)
    (tmp_path / "peptide.ent").write_bytes(path.read_bytes())
    (tmp_path / "PEPTIDE.PDB.gz").write_bytes(gzip.compress(path.read_bytes()))
    for other in (cif, tmp_path / "peptide.ent", tmp_path / "PEPTIDE.PDB.gz"):
        structure = read_structure(other)
        np.testing.assert_array_equal(structure.bonds, expected.bonds)
        np.testing.assert_array_equal(structure.numbers, expected.numbers)
        np.testing.assert_allclose(structure.positions, expected.positions, atol=2e-3)
        assert structure.chain_names == ("A",)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        # As Amber's leap and CHARMM call hydrogens.
        lambda name: f"H{name[:1]}H{name[1:]}" if name in ("H1", "H2", "H3") else name,
        lambda name: name[-1] + name[:-1] if name.startswith("HB") else name,
    ],
)
def test_names_without_elements_in_the_wrong_columns(rename, tmp_path):
    rows = [row.split() for row in DIPEPTIDE.strip().splitlines()]
    lines = []
    for i, (name, residue, number, *x) in enumerate(rows, start=1):
        line = pdb_line(i, rename(name), residue, "A", int(number), map(float, x), "")
        lines.append(f"{line[:12]}{rename(name):<4}{line[16:66]}\n")
    atoms = load_structure(str(write(tmp_path / "left.pdb", lines)))
    assert atoms.get_chemical_formula() == "C6H12N2O2"
    plain = read_structure(write_dipeptide(tmp_path / "plain.pdb"))
    np.testing.assert_array_equal(read_structure(tmp_path / "left.pdb").bonds, plain.bonds)


@pytest.mark.parametrize("columns", [(12, 16), (17, 20), (12, 20)])
def test_names_in_small_letters(peptide, bridged, columns, tmp_path):
    """Taken for ligands, amino acids would be neutral."""
    for whole in (peptide, bridged):
        plain = read_structure(written(tmp_path / "plain.pdb", whole))
        begin, end = columns
        text = "".join(
            line[:begin] + line[begin:end].lower() + line[end:] if line.startswith("ATOM") else line
            for line in format_pdb(whole).splitlines(keepends=True)
        )
        small = read_structure(write(tmp_path / "small.pdb", text))
        assert (small.names, small.residue_names) == (plain.names, plain.residue_names)
        np.testing.assert_array_equal(small.bonds, plain.bonds)
        assert total_charge(small) == total_charge(plain)


def test_hydrogens_apart_from_their_residue_are_refused(tmp_path):
    """As RDKit writes a peptide to which it has added hydrogens."""
    path = write_dipeptide(tmp_path / "together.pdb")
    lines = [line for line in path.read_text().splitlines(True) if line.startswith("HETATM")]
    apart = write(tmp_path / "apart.pdb", sorted(lines, key=lambda line: line[76:78] == " H"))
    with pytest.raises(InputError, match=r"ACE 1 of chain A has no heavy atom.*one after the"):
        load_structure(str(apart))


def test_elements_of_ligands_follow_from_columns_or_names(tmp_path):
    path = write(tmp_path / "aligned.pdb", ethanol(symbols=False))
    assert load_structure(str(path)).get_chemical_formula() == "C2H6O"
    left = [f"{line[:12]}{line[12:16].strip():<4}{line[16:]}" for line in ethanol(symbols=False)]
    structure = read_structure(write(tmp_path / "left.pdb", left))
    assert "Elements of ETH were taken from the names of the atoms." in structure.notes
    np.testing.assert_array_equal(structure.numbers, read_structure(path).numbers)
    assert not read_structure(path).notes
    halogens = [
        f"{line[:12]}{'BR1 ' if line[12:14] == 'O ' else line[12:16]}{line[16:]}" for line in left
    ]
    with pytest.raises(InputError, match="atom BR1 of residue ETH 1 has no element in columns"):
        read_structure(write(tmp_path / "halogens.pdb", halogens))
    chlorine = ethanol(symbols=False, rename=lambda name: "CL" if name == "O" else name)
    with pytest.raises(InputError, match="atom CL of residue ETH 1 has no element"):
        read_structure(write(tmp_path / "chlorine.pdb", chlorine))


@pytest.mark.parametrize("names", [("CLA", "CLA"), ("CL-", "CL-"), ("Cl-", "Cl-"), ("CL", "ION")])
def test_ions_without_elements_are_left_out(names, tmp_path):
    """Two with one number, as some programs write them."""
    rows = [row.split() for row in DIPEPTIDE.strip().splitlines()]
    places = [(*row[:3], *map(float, row[3:])) for row in rows]
    places += [(*names, "9", 20.0 + 5.0 * k, 0.0, 0.0) for k in range(2)]
    lines = []
    for i, (name, residue, number, *x) in enumerate(places, start=1):
        line = pdb_line(i, name, residue, "A", int(number), x, "")
        lines.append(f"{line[:12]}{name:<4}{line[16:66]}\n")
    structure = read_structure(write(tmp_path / "ions.pdb", lines))
    assert structure.numbers[-2:].tolist() == [17, 17]
    assert build_system(structure).left_out.tolist() == [22, 23]


def test_deuterium(tmp_path):
    lines = ethanol(element=lambda symbol: "D" if symbol == "H" else symbol)
    atoms = load_structure(str(write(tmp_path / "d.pdb", lines)))
    assert atoms.get_chemical_formula() == "C2H6O"
    np.testing.assert_allclose(atoms.get_masses()[3:], 2.014, atol=1e-3)
    atoms = load_structure("smiles:[2H]C([2H])([2H])[2H]")
    assert atoms.get_masses().sum() == pytest.approx(12.011 + 4 * 2.014, abs=1e-3)
    assert not load_structure("smiles:C").has("masses")


def test_models_and_the_end_of_models(tmp_path):
    second = [line.replace("1.168", "1.170") for line in ethanol()]
    text = [
        "MODEL        1\n",
        *ethanol(),
        "ENDMDL\n",
        "MODEL        2\n",
        *second,
        "ENDMDL\nEND\n",
    ]
    path = write(tmp_path / "reporter.pdb", text)
    notes = []
    atoms = load_structure(str(path), report=notes.append)
    assert atoms.positions[0, 0] == 1.168
    assert notes == ["The file has 2 models; model 1 is taken."]
    assert read_structure(path, model=-1).positions[0, 0] == 1.170
    with pytest.raises(ModelFileError, match="there is no model 2; the file has 2"):
        read_structure(path, model=2)


def at_two_locations(first, second):
    """Lines of ethanol, each atom at a first place and, more often, at a second one."""
    lines = []
    for line in ethanol():
        moved = f"{line[:46]}{float(line[46:54]) + 0.01:8.3f}{line[54:]}"
        lines += [
            f"{line[:16]}{first}{line[17:54]}  0.40{line[60:]}",
            f"{moved[:16]}{second}{moved[17:54]}  0.60{moved[60:]}",
        ]
    return lines


def test_alternate_locations(tmp_path):
    structure = read_structure(write(tmp_path / "locations.pdb", at_two_locations("A", "B")))
    assert len(structure) == 9
    assert structure.positions[0, 2] == 0.01
    assert structure.notes == ("Alternate locations taken: B of ETH 1.",)


def test_first_alternate_location_without_a_label(tmp_path):
    structure = read_structure(write(tmp_path / "blank.pdb", at_two_locations(" ", "A")))
    assert (len(structure), structure.positions[0, 2]) == (9, 0.01)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_texts_of_editors_on_windows(encoding, tmp_path):
    (tmp_path / "x.pdb").write_text("".join(ethanol()), encoding=encoding)
    assert len(read_structure(tmp_path / "x.pdb")) == 9


def test_frames_that_end_with_end(tmp_path):
    """As VMD writes them; END between different atoms separates nothing."""
    second = [line.replace("1.168", "1.170") for line in ethanol()]
    path = write(tmp_path / "vmd.pdb", [*ethanol(), "END\n", *second, "END\n"])
    assert read_structure(path).notes == ("The file has 2 models; model 1 is taken.",)
    assert read_structure(path, model=-1).positions[0, 0] == 1.170
    halves = write(tmp_path / "halves.pdb", [*ethanol()[:4], "END\n", *ethanol()[4:], "END\n"])
    assert len(read_structure(halves)) == 9


def test_serial_numbers_of_six_digits(tmp_path):
    lines = [f"ATOM  {100_000 + i}{line[12:]}" for i, line in enumerate(ethanol())]
    shifted = [f"ATOM {line[6:12]}{line[12:]}" for line in lines]
    for text in (lines, shifted):
        assert len(read_structure(write(tmp_path / "large.pdb", text))) == 9


@pytest.mark.parametrize(
    ("text", "charge"), [("1+", 1), ("+1", 1), ("+ ", 1), ("- ", -1), ("1 ", 0)]
)
def test_formal_charges(text, charge, tmp_path):
    lines = [f"{line.rstrip():<78}{text if i == 2 else ''}\n" for i, line in enumerate(ethanol())]
    assert read_structure(write(tmp_path / "charged.pdb", lines)).charges.tolist()[2] == charge


def test_insertion_codes_survive(tmp_path):
    """Residues 1, 1A and 1B, in a file and in the start that `mlmd sample` writes."""
    peptide = capped_peptide("GA", 0)
    numbered = replace(
        peptide, residue_numbers=np.array([1, 1, 1, 2]), insertion_codes=("", "A", "B", "")
    )
    structure = read_structure(written(tmp_path / "codes.pdb", numbered))
    assert structure.residue_numbers.tolist() == [1, 1, 1, 2]
    assert structure.insertion_codes == ("", "A", "B", "")
    assert structure.residue_label(1) == "GLY 1A of chain A"
    assert len(structure.bonds) == len(peptide.bonds)
    again = read_structure(written(tmp_path / "again.pdb", structure))
    assert again.insertion_codes == structure.insertion_codes
    codes = [
        residue.insertionCode
        for residue in app.PDBFile(str(tmp_path / "again.pdb")).topology.residues()
    ]
    assert [code.strip() for code in codes] == ["", "A", "B", ""]


@pytest.mark.parametrize("cell", ["    1.000    1.000    1.000", "    0.000    0.000    0.000"])
def test_cells_that_stand_for_none(cell, tmp_path):
    record = f"CRYST1{cell}  90.00  90.00  90.00 P 1           1\n"
    path = write(tmp_path / "vacuum.pdb", [record, *ethanol()])
    assert not load_structure(str(path)).pbc.any()


def test_cells(tmp_path):
    record = "CRYST1   30.000   30.000   30.000  90.00  90.00  90.00 P 1           1\n"
    path = write(tmp_path / "box.pdb", [record, *ethanol()])
    with pytest.raises(InputError, match=r"cell of \[30.0, 30.0, 30.0\] Å.*--vacuum"):
        load_structure(str(path))
    assert not load_structure(str(path), vacuum=True).pbc.any()
    assert read_structure_file(path).cell == (30.0, 30.0, 30.0, 90.0, 90.0, 90.0)


@pytest.mark.parametrize(
    "cell",
    [
        "      nan      nan      nan  90.00  90.00  90.00",
        "   30.000   30.000   30.000   0.00   0.00   0.00",
        "  -30.000   30.000   30.000  90.00  90.00  90.00",
    ],
)
def test_cells_without_volume(cell, tmp_path):
    path = write(tmp_path / "box.pdb", [f"CRYST1{cell} P 1           1\n", *ethanol()])
    with pytest.raises(InputError, match="are those of no cell; remove CRYST1"):
        load_structure(str(path))


# ---- refusals ---------------------------------------------------------------------------------


def test_missing_loops(tmp_path):
    peptide = capped_peptide("AGGA", 0)
    gap = without_atoms(peptide, np.flatnonzero(np.isin(peptide.residues, [2, 3])))
    with pytest.raises(InputError, match="interrupted between ALA 2 of chain A and ALA 5 of chain"):
        read_structure(written(tmp_path / "gap.pdb", gap))


def test_half_modelled_side_chains(tmp_path):
    peptide = capped_peptide("K", 0)
    lysine = {name: i for i, name in enumerate(peptide.names) if peptide.residues[i] == 1}
    bare = without_atoms(peptide, [lysine["CE"], lysine["NZ"]])
    structure = read_structure(written(tmp_path / "bare.pdb", without_hydrogens(bare)))
    with pytest.raises(InputError, match="LYS 2 of chain A lacks CE, NZ"):
        build_system(structure)
    on_carbon = [
        j for i, j in peptide.bonds.tolist() if i == lysine["CE"] and peptide.numbers[j] == 1
    ]
    half = without_atoms(peptide, on_carbon[:1])
    with pytest.raises(InputError, match="LYS 2 of chain A has 1 hydrogen on CE where 2 belong"):
        total_charge(read_structure(written(tmp_path / "half.pdb", half)))
    on_nitrogen = [
        j for i, j in peptide.bonds.tolist() if i == lysine["NZ"] and peptide.numbers[j] == 1
    ]
    half = without_atoms(peptide, on_nitrogen[:2])
    with pytest.raises(InputError, match=r"LYS 2 .* 1 hydrogen on NZ, .* a charge of -1"):
        total_charge(read_structure(written(tmp_path / "half.pdb", half)))


def without_hydrogens(structure):
    return without_atoms(structure, np.flatnonzero(structure.numbers == 1))


def test_hydrogens_are_needed_for_a_run_but_not_for_atmos(tmp_path):
    path = written(tmp_path / "heavy.pdb", without_hydrogens(capped_peptide("AK", 0)))
    assert build_system(read_structure(path)).features.ref_charge.sum() == 1
    with pytest.raises(InputError, match="ACE 1 of chain A lacks hydrogens"):
        load_structure(str(path))
    with pytest.raises(InputError, match="no hydrogen, but 2 of 2 carbon atoms"):
        load_structure(str(write(tmp_path / "ethanol.pdb", ethanol()[:3])))


@pytest.mark.parametrize("smiles", ["FC(F)(F)C(F)(F)F", "N#CC#N", "O=C=C=C=O", "S=C=S"])
def test_molecules_that_have_no_hydrogens(smiles, tmp_path):
    atoms = load_structure(f"smiles:{smiles}")
    atoms.write(tmp_path / "molecule.xyz")
    assert len(load_structure(str(tmp_path / "molecule.xyz"))) == len(atoms)


@pytest.mark.parametrize(
    ("factor", "reason"), [(0.1, "Å apart, which is an overlap"), (10.0, "is bonded to nothing")]
)
@pytest.mark.parametrize("suffix", ["xyz", "pdb"])
def test_starts_in_another_unit(factor, reason, suffix, tmp_path):
    atoms = load_structure("smiles:CCO")
    atoms.positions *= factor
    atoms.write(tmp_path / f"start.{suffix}")
    with pytest.raises(InputError, match=reason):
        load_structure(str(tmp_path / f"start.{suffix}"))


def test_stated_bonds_are_measured(tmp_path):
    shifted = [
        f"{line[:22]}   2{line[26:30]}{float(line[30:38]) + 8.0:8.3f}{line[38:]}"
        for line in ethanol()
    ]
    text = [*ethanol(), *shifted, "CONECT    1   10\n"]
    # Serial numbers are counted on.
    text = [
        line if line.startswith("CONECT") else f"{line[:6]}{i:5d}{line[11:]}"
        for i, line in enumerate(text, start=1)
    ]
    with pytest.raises(InputError, match=r"C1 of ETH 1 .* C1 of ETH 2 .* would be 8\.00 Å"):
        read_structure(write(tmp_path / "far.pdb", text))


def test_links_of_mmcif_in_the_names_of_authors_and_of_the_archive(tmp_path):
    """Quoted names, lines of text, and a bond between residues that only the table states."""
    name = "O5'"
    sites = []
    for residue, shift in ((1, 0.0), (2, 2.75)):
        for row in ETHANOL.strip().splitlines():
            atom, symbol, x, y, z = row.split()
            atom = f'"{name}"' if atom == "O" else atom
            if (residue, atom) in ((1, "H3"), (2, f'"{name}"'), (2, "HO")):
                continue
            sites.append(
                f"HETATM {len(sites) + 1} {symbol} {atom} . ETH A 1 . ? {float(x) + shift} {y} {z} "
                f"1.0 X {10 * residue} ? {residue}"
            )
    text = """data_test
_struct.title
;several lines
loop_
;
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_entity_id
_atom_site.label_seq_id
_atom_site.pdbx_PDB_ins_code
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.occupancy
_atom_site.auth_asym_id
_atom_site.auth_seq_id
_atom_site.pdbx_formal_charge
_atom_site.unknown
"""
    link = """loop_
_struct_conn.id
_struct_conn.conn_type_id
_struct_conn.ptnr1_auth_asym_id
_struct_conn.ptnr1_auth_seq_id
_struct_conn.ptnr1_label_atom_id
_struct_conn.ptnr2_auth_asym_id
_struct_conn.ptnr2_auth_seq_id
_struct_conn.ptnr2_label_atom_id
covale1 covale X 10 C1 X 20 C2
"""
    (tmp_path / "linked.cif").write_text(text + "\n".join(sites) + "\n" + link)
    structure = read_structure(tmp_path / "linked.cif")
    assert structure.residue_numbers.tolist() == [10, 20]
    assert structure.chain_names == ("X",)
    assert name in structure.names
    first = structure.names.index("C1")
    second = len(structure.names) - 1 - structure.names[::-1].index("C2")
    assert [first, second] in structure.bonds.tolist()


def test_openmm_positions_in_another_unit(tmp_path):
    file = app.PDBFile(str(write_dipeptide(tmp_path / "dipeptide.pdb")))
    bare = np.array(file.positions.value_in_unit(unit.angstrom))
    with pytest.raises(InputError, match=r"Å long; give positions with a unit, or in nm"):
        structure_from_topology(file.topology, bare)


def test_ions_need_a_charge(tmp_path):
    ion = pdb_line(10, "NA", "NA", "B", 1, (9.0, 0.0, 0.0), "NA")
    path = write(tmp_path / "ion.pdb", [*ethanol(), ion])
    with pytest.raises(InputError, match=r"not state the charges of its ions .*; give --charge"):
        load_structure(str(path))
    assert load_structure(str(path), charge=1).info["charge"] == 1
    path = write(tmp_path / "stated.pdb", [*ethanol(), f"{ion.rstrip():<78}1+\n"])
    assert load_structure(str(path)).info["charge"] == 1


def test_ionic_ligands_need_a_charge(tmp_path):
    atoms = load_structure("smiles:C(CC(=O)[O-])C(=O)[O-]")
    lines = [
        pdb_line(i, f"{symbol}{i}", "SIN", "L", 1, position, symbol)
        for i, (symbol, position) in enumerate(zip(atoms.symbols, atoms.positions, strict=True), 1)
    ]
    path = write(tmp_path / "ligand.pdb", lines)
    with pytest.raises(InputError, match=r"or of ionic ligands; give --charge"):
        load_structure(str(path))
    assert load_structure(str(path), charge=-2).info["charge"] == -2
    oxygens = [i for i, symbol in enumerate(atoms.symbols) if symbol == "O"][::2]
    stated = [f"{row.rstrip():<78}1-\n" if i in oxygens else row for i, row in enumerate(lines)]
    assert load_structure(str(write(tmp_path / "stated.pdb", stated))).info["charge"] == -2


def test_charges_of_amino_acids_that_their_hydrogens_contradict(peptide, tmp_path):
    lines = written(tmp_path / "peptide.pdb", peptide).read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if line.startswith("ATOM"))
    lines[first] = f"{lines[first].rstrip():<78}3-\n"
    path = write(tmp_path / "stated.pdb", lines)
    with pytest.raises(InputError, match=r"by its hydrogens, but the file states -3; correct"):
        load_structure(str(path))


def test_files_cut_off(peptide, tmp_path):
    path = written(tmp_path / "peptide.pdb", peptide)
    text = path.read_text()
    with pytest.raises(ModelFileError, match=r"in columns \d+-\d+ is not a number"):
        read_structure(write(tmp_path / "cut.pdb", [text[: 40 * 81 + 40]]))
    with pytest.raises(ModelFileError, match="there are no atoms"):
        read_structure(write(tmp_path / "empty.pdb", [""]))
    compressed = gzip.compress(text.encode())
    (tmp_path / "cut.pdb.gz").write_bytes(compressed[:500])
    (tmp_path / "damaged.pdb.gz").write_bytes(compressed[:300] + bytes(50) + compressed[350:])
    for name in ("cut.pdb.gz", "damaged.pdb.gz"):
        with pytest.raises(ModelFileError, match="cannot be read"):
            read_structure(tmp_path / name)


def test_names_of_files(tmp_path):
    atoms = load_structure("smiles:CCO")
    atoms.write(tmp_path / "start.xyz")
    (tmp_path / "START.XYZ").write_bytes((tmp_path / "start.xyz").read_bytes())
    (tmp_path / "start.xyz.gz").write_bytes(gzip.compress((tmp_path / "start.xyz").read_bytes()))
    for name in ("START.XYZ", "start.xyz.gz"):
        assert len(load_structure(str(tmp_path / name))) == 9
    for name, small in (("START.XYZ.GZ", "START.XYZ.gz"), ("a.pdb.BZ2", "a.pdb.bz2")):
        (tmp_path / name).write_bytes((tmp_path / "start.xyz.gz").read_bytes())
        with pytest.raises(ModelFileError, match=f"small letters; rename it to {small}"):
            load_structure(str(tmp_path / name))
    with pytest.raises(ModelFileError, match=r"rename it to START.XYZ.gz"):
        read_dataset(tmp_path / "START.XYZ.GZ")
    notes = []
    assert len(load_structure("CO", report=notes.append)) == 2
    assert notes == ["CO is taken as ASE's molecule; smiles:CO would be a SMILES."]
    notes.clear()
    assert len(load_structure("CCO", report=notes.append)) == 9
    assert notes == ["'CCO' is taken as a SMILES."]
    (tmp_path / "start@300K.xyz").write_bytes((tmp_path / "start.xyz").read_bytes())
    assert len(load_structure(str(tmp_path / "start@300K.xyz"))) == 9


G96 = "    1 LIG   CL1        1    0.0 0.0 0.0\n    1 LIG   H1         2    0.0 0.0 0.128\n"
XYZ = "".join(
    f"{symbol} {x} {y} {z}\n"
    for _, symbol, x, y, z in (row.split() for row in ETHANOL.strip().splitlines())
)
COORD = "0 0 0 o\n1.8 0 0 h\n-.45 1.75 0 h\n"
SHORT = "".join(
    f"{symbol} " + " ".join(str(0.529 * float(v)) for v in x) + "\n"
    for symbol, *x in (row.split() for row in XYZ.splitlines())
)
GRO = "".join(
    f"    1ETH  {name:>5}{i:5d}" + "".join(f"{float(v) / 10:8.3f}" for v in x) + "\n"
    for i, (name, _, *x) in enumerate((row.split() for row in ETHANOL.strip().splitlines()), 1)
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.gro", f"ethanol\n    9\n{GRO}   0.00000   0.00000   0.00000\n"),
        ("x.xyz", f'9\nProperties=species:S:1:pos:R:3 pbc="T T T"\n{XYZ}'),
        ("x.xyz", f'9\nLattice="1 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3\n{XYZ}'),
    ],
)
def test_other_files_without_a_cell(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    atoms = load_structure(str(tmp_path / name))
    assert atoms.get_chemical_formula() == "C2H6O"
    assert not atoms.pbc.any()


def test_elements_of_two_letters_and_missing_boxes_in_gro_files(tmp_path):
    def gro(names, residue, box="   0.00000   0.00000   0.00000\n"):
        sites = [(0.0, 0.0, 0.0), (0.0, 0.0, 0.12), (0.0, 0.1, -0.06)]
        rows = [
            f"    1{residue:<5}{name:>5}{i:5d}" + "".join(f"{x:8.3f}" for x in site) + "\n"
            for i, (name, site) in enumerate(zip(names, sites, strict=False), 1)
        ]
        path = tmp_path / "x.gro"
        path.write_text(f"title\n{len(names):5d}\n{''.join(rows)}{box}")
        return str(path)

    for name, symbol in (("CL1", "Cl"), ("Cl", "Cl"), ("BR", "Br"), ("CA", "C"), ("NA1", "N")):
        atoms = load_structure(gro([name, "HO1", "HO2"], "LIG"), charge=0)
        assert list(atoms.symbols) == [symbol, "H", "H"]
    assert list(load_structure(gro(["NA"], "NA"), charge=1).symbols) == ["Na"]
    assert list(load_structure(gro(["CLA"], "CLA"), charge=-1).symbols) == ["Cl"]
    with pytest.raises(InputError, match=r"states 3 atoms and has 2 .* the last line is the box"):
        load_structure(gro(["O", "H1", "H2"], "SOL", box=""))


def test_constraints_that_hold_nothing_are_none(tmp_path):
    for letter, held in (("T", 0), ("F", 1)):
        rows = XYZ.replace("\n", " T\n").replace(" T\n", f" {letter}\n", 1)
        comment = "Properties=species:S:1:pos:R:3:move_mask:L:1"
        (tmp_path / "x.xyz").write_text(f"9\n{comment}\n{rows}")
        assert len(load_structure(str(tmp_path / "x.xyz")).constraints) == held


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.xyz", f"9\n\n{XYZ.replace('1.168', 'nan')}", r"C0 has the position \[nan, -0.4"),
        ("x.xyz", f"\ufeff9\n\n{XYZ}", "begins with a byte-order mark"),
        ("x.xyz", f"9\n\n{XYZ}0\n\n", "the last frame of .* has no atoms"),
        ("x.xyz", f"\n9\n\n{XYZ}", "ASE cannot read .*; give a whole file"),
        ("x.txt", f"9\n\n{XYZ}", "ASE cannot read .* such as .xyz"),
        ("x.xyz", f"9\ncharge: 1\n{XYZ}", "comment says 'charge: 1', but .* write charge=1"),
        ("x.psf", "PSF\n", "a topology without positions; write one frame with its topology"),
        ("x.INPCRD", "ethanol\n    9\n", "positions without elements"),
        ("x.xyz", f"9\nmol|charge|-2\n{XYZ}", r"says 'charge\|-2', but .* write charge=-2"),
        ("x.xyz", f'9\ncharge_spin="-2.0 1.0"\n{XYZ}', "charge_spin=.* looks like a charge"),
        ("coord", "$coord\n0 0 0 o\n1.8 0 0 h\n-.45 1.75 0 h\n$eht charge=2\n", "give --charge"),
        ("coord", "$chrg -2\n$coord\n0 0 0 o\n1.8 0 0 h\n-.45 1.75 0 h\n$end\n", "give --charge"),
        ("coord", f"$coord\n{COORD}$set\n  uhf 2\n$end\n", "give --charge, and --multiplicity"),
        ("coord", f"$coord angs\n{COORD}$end\n", r"says '\$coord angs', but .* in Bohr; write it"),
        ("coord", f"$periodic 1\n$coord\n{COORD}$end\n", r"says '\$periodic 1', but .* isolated"),
        ("x.xyz", f"9\n\n{SHORT}", "an overlap; give positions in Å .neither nm nor Bohr"),
        ("x.gro", "ethanol\n", "states no number of atoms and has 0 between"),
        (
            "x.xyz",
            "9\nProperties=species:S:1:pos:R:3:masses:S:1\n" + XYZ.replace("\n", " heavy\n"),
            "column 'masses' begins with 'heavy'; each atom needs one number, so correct it",
        ),
        (
            "x.xyz",
            "9\nProperties=species:S:1:pos:R:3:isotope:I:1\n" + XYZ.replace("\n", " 2\n"),
            "column 'isotope' has 2 for atom 0, C, and would be passed over; call it masses",
        ),
        ("x.g96", f"POSITION\n{G96}END\n", "chlorine as carbon .* convert .* to a PDB or .xyz"),
        ("x.com", f"#p hf\n\nethanol\n\n-1 1\n{XYZ}\n", "charge .* are not read .* give --charge"),
    ],
)
def test_other_files_that_are_refused(name, text, reason, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises((InputError, ModelFileError), match=reason):
        load_structure(str(tmp_path / name))
