"""The table of molecules, recipes of the user's own, and start structures."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.data import covalent_radii

from mlmd_calc.cli.structure_input import load_structure
from mlmd_calc.data import (
    MOLECULES,
    Molecule,
    atoms_from_smiles,
    molecule_from_smiles,
    read_dataset,
    select_molecules,
)
from mlmd_calc.data.molecules import start_structures
from mlmd_calc.errors import InputError

LABELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "train" / "labels"

pytest.importorskip("rdkit", reason="rdkit builds the molecules")


def tagged(tag: str) -> set[str]:
    return {molecule.name for molecule in select_molecules([tag])}


def test_importing_the_package_is_light():
    code = (
        "import sys, mlmd_calc.data, mlmd_calc.cli.data;"
        "print(sorted({'torch', 'rdkit', 'tblite', 'lightning'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_table_agrees_with_its_smiles():
    from rdkit.Chem import CanonSmiles

    for molecule in MOLECULES.values():
        # Raises if charge or multiplicity contradict the SMILES.
        rebuilt = molecule_from_smiles(molecule.name, molecule.smiles, tags=molecule.tags)
        assert rebuilt == molecule
    canonical = {CanonSmiles(molecule.smiles) for molecule in MOLECULES.values()}
    assert len(canonical) == len(MOLECULES)


def test_table_holds_what_it_promises():
    assert len(tagged("md17")) == 10
    assert len(tagged("alkane")) == 12
    assert len(tagged("tg80")) >= 80
    assert len(tagged("ion")) >= 8
    assert len(tagged("radical")) >= 8
    assert "Ac-Ala3-NHMe" in tagged("md22")
    assert not tagged("tg80") & (tagged("md17") | tagged("alkane") | tagged("extra"))
    assert all(MOLECULES[name].charge for name in tagged("ion"))
    assert all(MOLECULES[name].multiplicity > 1 for name in tagged("radical"))
    tags = set().union(*(molecule.tags for molecule in MOLECULES.values()))
    assert not tags & {*MOLECULES, "all"}
    # C, H, N, O only: what the teacher's data and the shipped models cover.
    letters = {letter for m in MOLECULES.values() for letter in m.smiles if letter.isalpha()}
    assert letters <= set("HCNOcno")


def test_table_agrees_with_existing_labels():
    if not LABELS.exists():
        pytest.skip(f"{LABELS} is not there")
    for frames in read_dataset(LABELS):
        molecule = MOLECULES[frames.name]
        assert molecule.smiles == frames.metadata["smiles"]
        assert (molecule.charge, molecule.multiplicity) == (frames.charge, frames.multiplicity)
        if len(frames.numbers) < 10:
            start = start_structures(molecule, 1, seed=0)
            assert start.numbers.tolist() == frames.numbers.tolist()


def test_selection_keeps_order_and_drops_repetitions():
    chosen = select_molecules(["water", "x=CC#C", "alkane", "ethane", "water"])
    assert [molecule.name for molecule in chosen[:4]] == ["water", "x", "methane", "ethane"]
    assert len(chosen) == 14
    assert len(select_molecules(["all"])) == len(MOLECULES)


def test_inline_smiles_give_charge_and_multiplicity():
    ketene, ion, radical = select_molecules(["k=C=C=O", "i=[NH2-]", "r=[CH]"])
    assert ketene == Molecule("k", "C=C=O")
    assert (ion.charge, ion.multiplicity) == (-1, 1)
    assert (radical.charge, radical.multiplicity) == (0, 4)


def test_atoms_from_smiles_are_those_of_the_command_line():
    atoms = atoms_from_smiles("C[NH3+]", seed=1)
    assert (atoms.info["charge"], atoms.info["multiplicity"]) == (1, 1)
    np.testing.assert_array_equal(
        atoms.positions, load_structure("smiles:C[NH3+]", seed=1).positions
    )
    assert atoms_from_smiles("[CH2]", multiplicity=1).info["multiplicity"] == 1
    with pytest.raises(InputError, match="several fragments"):
        atoms_from_smiles("O.O")


def test_recipe_files(tmp_path):
    toml = tmp_path / "mine.toml"
    toml.write_text(
        '[singlet_methylene]\nsmiles = "[CH2]"\nmultiplicity = 1\ntags = ["carbene"]\n'
        '[cyanide]\nsmiles = "[C-]#N"\ncharge = -1\n'
    )
    table = tmp_path / "mine.csv"
    # As spreadsheets write it, with a byte-order mark.
    table.write_text("\ufeffname,smiles,charge,tags\r\nketene2,C=C=O,,a b\ncyanate,[O-]C#N,-1,\n")
    carbene, cyanide, ketene, cyanate = select_molecules([str(toml), str(table)])
    assert carbene == Molecule("singlet_methylene", "[CH2]", 0, 1, frozenset({"carbene"}))
    assert cyanide.charge == cyanate.charge == -1
    assert ketene.tags == {"a", "b"}


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_of_spreadsheets_in_other_languages(tmp_path, delimiter):
    rows = ["name,smiles,charge,multiplicity", "oxygen,O=O,0,3", ",,,"]
    (tmp_path / "x.csv").write_text("\r\n".join(rows).replace(",", delimiter))
    (oxygen,) = select_molecules([str(tmp_path / "x.csv")])
    assert oxygen == Molecule("oxygen", "O=O", 0, 3)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nname;smiles;charge\na;C[NH3+];1.0\n",
        "\n\nName, SMILES ,Charge\na, C[NH3+] ,+1\n",
        ",name,smiles,\n,a,C[NH3+],\n",
    ],
)
def test_tables_that_spreadsheets_write(tmp_path, text):
    (tmp_path / "X.CSV").write_text(text)
    assert select_molecules([str(tmp_path / "X.CSV")]) == [Molecule("a", "C[NH3+]", 1, 1)]
    minus = "name,smiles,charge\na,[C-]#N,\N{MINUS SIGN}1\n"
    (tmp_path / "x.csv").write_text(minus, encoding="utf-8")
    assert select_molecules([str(tmp_path / "x.csv")])[0].charge == -1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.toml",
            '[a]\nsmiles = "C[NH3+]"\ncharge = 1.7',
            "molecule 'a'.*charge=1.7 is not an int",
        ),
        ("x.toml", '[a]\nsmiles = "C"\ncharge = false', "charge=False is not an integer"),
        ("x.toml", '[a]\nsmiles = "C"\ntags = 5', "molecule 'a'.*tags=5; give texts"),
        ("x.csv", "name,smiles,multiplicity\na,C,1.9", "multiplicity=1.9 is not an integer"),
        ("x.csv", f"name,smiles\n{101 * 'a'},C", "cannot name a molecule.*100 at most"),
        ("x.toml", 'smiles = "C"', "cannot be read"),
        ("x.toml", "[a", "cannot be read"),
        ("x.toml", '[a]\nsmile = "C"', r"fields \['name', 'smile'\]"),
        ("x.toml", '[a]\nsmiles = "C"\ncharge = 1', "given as 1 but the SMILES"),
        ("x.toml", '[a]\nsmiles = "C"\nmultiplicity = 2', "cannot have multiplicity=2"),
        ("x.csv", "name,smiles,charge\na,C,one", "molecule 'a'.*one"),
        ("x.csv", "name,smiles\na,C,0", "fields"),
        ("x.csv", "", "holds no molecule"),
        ("x.csv", "ethanol,CCO", "x.csv holds no molecule; the first line .* names the columns"),
    ],
)
def test_malformed_recipes_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        select_molecules([str(tmp_path / name)])


def test_other_encodings_of_tables_are_named(tmp_path):
    (tmp_path / "x.csv").write_text("name,smiles\na,C\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"not text in UTF-8.* spreadsheets as CSV"):
        select_molecules([str(tmp_path / "x.csv")])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("etanol", "did you mean ethanol"),
        ("a=C(", "not a valid SMILES"),
        ("a=C.C", "several fragments"),
        ("a=*CC*", r"an atom of no element \(\*\)"),
        ("a=C~C", "a bond of any kind"),
        ("a=", "not a valid SMILES"),
        ("../a=C", "cannot name"),
        ("absent.toml", "absent.toml"),
        ("water=CO", "two molecules"),
    ],
)
def test_unusable_selections_are_refused(entry, message):
    with pytest.raises(InputError, match=message):
        select_molecules(["water", entry])


def test_nothing_selected_is_refused():
    with pytest.raises(InputError, match="no molecules"):
        select_molecules([])


def test_start_structures_are_sound_and_reproducible():
    molecule = MOLECULES["butanol"]
    start = start_structures(molecule, 3, seed=7)
    assert start.positions.shape == (3, 15, 3)
    assert len(start.bonds) == 14
    bonded = np.zeros((15, 15), dtype=bool)
    bonded[tuple(start.bonds.T)] = bonded[tuple(start.bonds.T[::-1])] = True
    np.fill_diagonal(bonded, True)
    radii = covalent_radii[start.numbers]
    distances = np.linalg.norm(start.positions[:, :, None] - start.positions[:, None], axis=-1)
    near = distances < 1.3 * (radii[:, None] + radii)
    assert (near == bonded).all()
    assert not np.allclose(distances[0], distances[1], atol=0.1)
    np.testing.assert_array_equal(start.positions, start_structures(molecule, 3, seed=7).positions)
    assert not np.array_equal(start.positions, start_structures(molecule, 3, seed=8).positions)


@pytest.mark.parametrize("name", ["hydrogen", "hydroxide", "dioxygen", "nitrate", "methylene"])
def test_smallest_and_oddest_molecules_can_be_built(name):
    start = start_structures(MOLECULES[name], 2, seed=0)
    assert np.isfinite(start.positions).all()
    first, second = start.bonds.T
    lengths = np.linalg.norm(start.positions[:, first] - start.positions[:, second], axis=-1)
    assert lengths.min() > 0.5
