"""Errors by element and class, of conformational energies and torsions, and their command."""

import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from spring_molecules import spring_frames
from toy_models import write_model
from typer.testing import CliRunner

from mlmd_calc import Potential
from mlmd_calc.analysis.accuracy import MoleculeErrors, structures_of
from mlmd_calc.analysis.force_report import (
    conformational_errors,
    errors_by_class,
    errors_by_element,
    torsion_profile,
)
from mlmd_calc.analysis.molecule_classes import classes_of
from mlmd_calc.cli import app
from mlmd_calc.data import read_dataset, write_labels
from mlmd_calc.errors import InputError

WATER = spring_frames("water", [8, 1, 1], 4)
METHANOL = spring_frames("methanol", [6, 8, 1, 1, 1, 1], 3, seed=1)


def constant(labelled, value):
    """Errors that are the atomic number times a value, of alternating sign."""
    signs = np.where(np.arange(3) % 2, -1.0, 1.0)
    per_atom = value * labelled.numbers[:, None] * signs
    return MoleculeErrors(np.broadcast_to(per_atom, labelled.forces.shape), None)


def test_errors_are_those_of_the_atoms_of_each_element():
    measured = [(WATER, constant(WATER, 0.001)), (METHANOL, constant(METHANOL, 0.003))]
    found = errors_by_element(measured)
    assert list(found) == ["H", "C", "O"]
    assert (found["C"].molecules, found["C"].atoms) == (1, 3)
    assert found["C"].mae == found["C"].rmse == pytest.approx(18.0)
    assert (found["O"].molecules, found["O"].atoms) == (2, 7)
    assert found["O"].mae == pytest.approx((4 * 8.0 + 3 * 24.0) / 7)
    assert found["O"].rmse == pytest.approx(np.sqrt((4 * 8.0**2 + 3 * 24.0**2) / 7))
    assert found["H"].atoms == 4 * 2 + 3 * 4


def test_classes_without_smiles_are_elements_and_the_worst_comes_first():
    ion = replace(WATER, name="hydroxide?", charge=-1, multiplicity=2)
    measured = [
        (WATER, constant(WATER, 0.001)),
        (METHANOL, constant(METHANOL, 0.003)),
        (ion, constant(ion, 0.001)),
    ]
    found = errors_by_class(measured)
    assert list(found) == ["C H O", "H O", "ion"]
    assert [one.molecules for one in found.values()] == [1, 2, 1]
    everything = np.abs(constant(METHANOL, 0.003).forces)
    assert found["C H O"].mae == pytest.approx(1000 * everything.mean())


@pytest.mark.parametrize(
    ("smiles", "classes"),
    [
        ("CCO", {"alcohol"}),
        ("C[C@H](N)C(=O)O", {"amine", "carboxylic acid"}),
        ("COC=O", {"ester"}),
        ("CC(=O)NC", {"amide"}),
        ("CC=O", {"aldehyde"}),
        ("C=O", {"aldehyde"}),
        ("CC(=O)C", {"ketone"}),
        ("Oc1ccccc1", {"phenol", "benzene ring"}),
        ("C1COCCO1", {"ether"}),
        ("CC#N", {"nitrile"}),
        ("C[N+](=O)[O-]", {"nitro"}),
        ("c1cn[nH]c1", {"heteroaromatic ring"}),
        ("CSC", {"sulfide"}),
        ("CS", {"thiol"}),
        ("CS(=O)C", {"S(=O)"}),
        ("CC(F)Cl", {"fluoride", "chloride"}),
        ("CC(C)C", {"alkane"}),
        ("C=C=C=C", {"cumulene"}),
        ("C[CH2]", {"other"}),
        ("O", {"other"}),
    ],
)
def test_functional_groups(smiles, classes):
    pytest.importorskip("rdkit", reason="rdkit is not installed")
    assert set(classes_of(replace(WATER, metadata={"smiles": smiles}))) == classes


def test_an_unreadable_smiles_leaves_the_elements():
    assert classes_of(replace(WATER, metadata={"smiles": "not a SMILES"})) == ("H O",)


def test_conformational_energies_are_relative_to_the_lowest_reference():
    labelled = replace(WATER, energies=np.array([3.0, 1.0, 2.0, 4.0]))
    # Per atom, of three atoms: the model's energies are wrong by 0.3, 0.6, 0.3 and 0.9 eV.
    errors = MoleculeErrors(WATER.forces, np.array([0.1, 0.2, 0.1, 0.3]))
    found = conformational_errors(labelled, errors)
    assert found.mae == pytest.approx(300.0)
    assert found.rmse == pytest.approx(300.0)
    shifted = MoleculeErrors(WATER.forces, errors.energies + 7.0)
    assert conformational_errors(labelled, shifted).mae == pytest.approx(300.0)
    assert conformational_errors(labelled, MoleculeErrors(WATER.forces, None)) is None
    single = labelled.select(slice(0, 1))
    assert conformational_errors(single, MoleculeErrors(WATER.forces[:1], np.zeros(1))) is None


def peroxide_scan(points=12):
    """Hydrogen peroxide turned about its O–O bond, with a made energy of the angle."""
    atoms = molecule("H2O2")
    oxygens = [i for i, z in enumerate(atoms.numbers) if z == 8]
    hydrogens = [i for i, z in enumerate(atoms.numbers) if z == 1]
    torsion = (
        min(hydrogens, key=lambda h: atoms.get_distance(h, oxygens[0])),
        *oxygens,
        min(hydrogens, key=lambda h: atoms.get_distance(h, oxygens[1])),
    )
    frames = []
    for angle in np.linspace(-165.0, 165.0, points):
        one = atoms.copy()
        one.set_dihedral(*torsion, angle, indices=[torsion[3]])
        # Nothing may depend on how the molecule lies.
        one.rotate(37.0, (1, 2, 3))
        energy = -4120.0 + 0.1 * (1.0 + np.cos(np.radians(angle)))
        one.calc = SinglePointCalculator(one, energy=energy)
        one.info |= {"torsion": " ".join(map(str, torsion)), "smiles": "OO"}
        frames.append(one)
    return frames, torsion


def test_torsion_profile_of_a_scan(tmp_path):
    frames, torsion = peroxide_scan()
    ase.io.write(tmp_path / "scan.extxyz", [frames[i] for i in (3, 1, 2, 0, *range(4, 12))])
    (labelled,) = read_dataset(tmp_path / "scan.extxyz")
    assert labelled.metadata["smiles"] == "OO"
    wrong = np.zeros(12)
    profile = torsion_profile(labelled, MoleculeErrors(np.zeros_like(labelled.positions), wrong))
    angles = np.linspace(-165.0, 165.0, 12)
    assert profile.atoms == torsion
    np.testing.assert_allclose(profile.angles, angles, atol=1e-4)
    expected = 100.0 * (np.cos(np.radians(angles)) - np.cos(np.radians(165.0)))
    np.testing.assert_allclose(profile.reference, expected, atol=1e-4)
    assert profile.mae == pytest.approx(0.0, abs=1e-6)
    assert profile.barrier == pytest.approx(expected.max(), abs=1e-4)
    # 10 meV per atom too much at the highest point, of four atoms.
    highest = int(labelled.energies.argmax())
    wrong[highest] = 0.01
    profile = torsion_profile(labelled, MoleculeErrors(np.zeros_like(labelled.positions), wrong))
    assert profile.barrier_error == pytest.approx(40.0)
    assert profile.mae == pytest.approx(40.0 / 12)


def test_scans_of_two_torsions_of_a_molecule_stay_apart(tmp_path):
    frames, torsion = peroxide_scan(6)
    others = [atoms.copy() for atoms in frames]
    for atoms, source in zip(others, frames, strict=True):
        atoms.calc = source.calc
        atoms.info["torsion"] = " ".join(map(str, reversed(torsion)))
    ase.io.write(tmp_path / "scan.extxyz", frames + others)
    found = read_dataset(tmp_path / "scan.extxyz")
    assert [len(one) for one in found] == [6, 6]
    profiles = [torsion_profile(one, MoleculeErrors(one.forces, np.zeros(6))) for one in found]
    np.testing.assert_allclose(profiles[0].angles, profiles[1].angles, atol=1e-4)


@pytest.mark.parametrize("text", ["0 1 2", "0 1 2 4", "0 1 1 2", "a b c d", "0 1 2 -1"])
def test_a_torsion_of_other_atoms_is_refused(text):
    frames = spring_frames("four", [8, 8, 1, 1], 3)
    errors = MoleculeErrors(frames.forces, np.zeros(3))
    with pytest.raises(InputError, match="does not name four of its 4 atoms"):
        torsion_profile(replace(frames, metadata={"torsion": text}), errors)


def test_command_lists_elements_classes_and_the_worst(tmp_path):
    model = write_model(tmp_path / "model.safetensors", 0.3, name="toy")
    potential = Potential(model, rotation="none")
    folder = tmp_path / "labels"
    folder.mkdir()
    # Labels are the model's answers plus an error that grows with the number of the molecule.
    for k in range(22):
        labelled = spring_frames(f"m{k:02}", [8, 1, 1], 2, seed=k)
        found = potential.evaluate(structures_of(labelled))
        labelled = replace(
            labelled,
            forces=np.array([one.forces for one in found]) + 0.01 * k,
            energies=np.array([one.energy for one in found]),
        )
        write_labels(folder / f"m{k:02}.npz", labelled)
    arguments = ["evaluate", "forces", str(folder), "--model", model, "--rotation", "none"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["worst"] == [f"m{k:02}" for k in range(21, 11, -1)]
    assert report["errors"]["m21"]["force MAE, meV/Å"] == pytest.approx(210.0, abs=1e-2)
    assert report["errors"]["all"]["conformational energy MAE, meV"] < 1.0
    assert set(report["elements"]) == {"H", "O"}
    assert report["classes"]["H O"]["molecules"] == 22
    assert report["torsions"] == []
    shown = CliRunner().invoke(app, arguments).stdout
    assert "the 10 worst of 22 molecules" in shown
    assert "m21" in shown
    assert "m05" not in shown
