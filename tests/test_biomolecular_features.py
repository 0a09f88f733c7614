"""Features of peptides, proteins, ligands and complexes, and the way back to the engine."""

import dataclasses
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from atmos_systems import draw
from peptide_structures import (
    HEAVY_DIPEPTIDE,
    permuted,
    sequence_structure,
    without,
    write_dipeptide,
)
from rdkit import Chem
from scipy.spatial.transform import Rotation

from mlmd_calc.biomolecules import bonded_structure_from_ase, build_system, read_structure
from mlmd_calc.biomolecules.ligands import local_frames
from mlmd_calc.biomolecules.residues import RESIDUES
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.geometry.superposition import superpose
from mlmd_calc.models import ATMOS, ATMOSConfig
from mlmd_calc.models.atmos.features import Features

app = pytest.importorskip("openmm.app", reason="openmm is not installed")

from openmm import unit  # noqa: E402

from openmm_bridge.topology_features import structure_from_topology  # noqa: E402

ALL = "ARNDCQEGHILKMFPSTWYV"


@pytest.fixture(scope="module")
def pdb(tmp_path_factory):
    return write_dipeptide(tmp_path_factory.mktemp("pdb") / "dipeptide.pdb")


@pytest.fixture(scope="module")
def dipeptide(pdb):
    return read_structure(pdb)


@pytest.fixture(scope="module")
def complexed(tmp_path_factory):
    path = tmp_path_factory.mktemp("pdb") / "complex.pdb"
    return read_structure(write_dipeptide(path, complexed=True))


def assert_same(first: Features, second: Features) -> None:
    for field in dataclasses.fields(Features):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            assert a.dtype == b.dtype, field.name
            torch.testing.assert_close(a, b, msg=field.name)


def names_of(features: Features) -> list[str]:
    return ["".join(chr(c + 32) for c in row).strip() for row in features.ref_atom_name_chars]


# ---- peptides ---------------------------------------------------------------------------------


def test_dipeptide(dipeptide):
    system = build_system(dipeptide)
    features = system.features
    assert names_of(features) == HEAVY_DIPEPTIDE
    assert features.restype.tolist() == [20, 0, 20]
    assert features.atom_to_token.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
    assert features.ref_space_uid.tolist() == features.atom_to_token.tolist()
    # CH3 of the caps and CB stand for their tokens; the frame of NME begins in the residue before.
    assert features.representative_atom.tolist() == [0, 7, 9]
    assert features.frame_atoms.tolist() == [[0, 1, 2], [3, 4, 5], [5, 8, 9]]
    assert features.frame_mask.all()
    assert features.residue_index.tolist() == [1, 2, 3]
    assert not features.asym_id.any()
    assert not features.token_bonds.any()
    assert not features.is_ligand.any()
    assert not features.ref_charge.any()
    assert (features.ref_element + 1).tolist() == [6, 6, 8, 7, 6, 6, 8, 6, 7, 6]
    assert [dipeptide.names[i] for i in system.atoms] == HEAVY_DIPEPTIDE
    assert system.bonds.tolist() == [
        [0, 1], [1, 2], [1, 3], [3, 4], [4, 5], [4, 7], [5, 6], [5, 8], [8, 9],
    ]  # fmt: skip
    assert system.phi_psi.tolist() == [[[1, 3, 4, 5], [3, 4, 5, 8]]]
    assert system.chirality_centres.tolist() == [[4, 3, 5, 7]]
    assert system.alpha_carbons.tolist() == [4]
    assert system.notes == ()
    assert len(system.left_out) == 0


def test_every_source_gives_the_same_features(pdb, dipeptide, tmp_path):
    expected = build_system(dipeptide)
    file = app.PDBFile(str(pdb))
    with (tmp_path / "same.cif").open("w") as output:
        app.PDBxFile.writeFile(file.topology, file.positions, output)
    bare = np.array(file.positions.value_in_unit(unit.nanometer))
    for structure in (
        structure_from_topology(file.topology, file.positions),
        structure_from_topology(file.topology, bare),
        read_structure(tmp_path / "same.cif"),
        bonded_structure_from_ase(ase.io.read(pdb)),
    ):
        system = build_system(structure)
        assert_same(system.features, expected.features)
        assert system.atoms.tolist() == expected.atoms.tolist()
        np.testing.assert_allclose(system.reference, expected.reference, atol=1e-5)
        assert system.hydrogens.parents.tolist() == expected.hydrogens.parents.tolist()


def test_order_of_the_engine_is_restored(dipeptide):
    order = np.random.default_rng(0).permutation(len(dipeptide))
    expected, system = build_system(dipeptide), build_system(permuted(dipeptide, order))
    assert_same(system.features, expected.features)
    frames = dipeptide.positions + np.random.default_rng(1).normal(size=(5, len(order), 3))
    np.testing.assert_array_equal(system.select(frames[:, order]), expected.select(frames))
    restored = system.restore(system.select(frames[:, order]), frames[:, order])
    np.testing.assert_allclose(restored, frames[:, order], atol=1e-12)


def test_residue_table_against_rdkit():
    """Names, order, elements, bonds, bond lengths and handedness of all amino acids."""
    for restype, letter in enumerate(ALL):
        molecule = Chem.MolFromSequence(letter)
        info = [atom.GetPDBResidueInfo() for atom in molecule.GetAtoms()]
        kind = RESIDUES[info[0].GetResidueName()]
        assert kind.restype == restype
        assert list(kind.atoms) == [entry.GetName().strip() for entry in info]
        for bond in molecule.GetBonds():
            ends = [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()]
            length = np.linalg.norm(np.subtract(*kind.conformer[ends]))
            heaviest = max(molecule.GetAtomWithIdx(i).GetAtomicNum() for i in ends)
            assert (1.6 if heaviest == 16 else 1.15) < length < (1.95 if heaviest == 16 else 1.65)
        before = Chem.FindMolChiralCenters(molecule, useLegacyImplementation=False)
        conformer = Chem.Conformer(molecule.GetNumAtoms())
        conformer.SetPositions(kind.conformer.copy())
        molecule.AddConformer(conformer)
        Chem.AssignStereochemistryFrom3D(molecule)
        assert Chem.FindMolChiralCenters(molecule, useLegacyImplementation=False) == before
        assert len(before) == {"G": 0, "I": 2, "T": 2}.get(letter, 1)


def test_protein_of_all_amino_acids():
    structure = sequence_structure(ALL)
    system = build_system(permuted(structure, np.arange(len(structure))[::-1]))
    features = system.features
    assert features.restype.tolist() == list(range(20))
    assert names_of(features)[-8:] == ["N", "CA", "C", "O", "CB", "CG1", "CG2", "OXT"]
    assert len(system.alpha_carbons) == 20
    assert len(system.phi_psi) == 18
    # CA of all but glycine, CB of isoleucine, threonine and valine, CG of leucine.
    assert len(system.chirality_centres) == 19 + 4
    assert features.representative_atom[7] == features.frame_atoms[7, 1]  # CA of glycine
    assert features.frame_mask.all()
    assert (features.asym_id == 0).all()
    centred = torch.zeros(20, 3).index_add(0, features.ref_space_uid, features.ref_pos)
    torch.testing.assert_close(centred, torch.zeros(20, 3), atol=1e-5, rtol=0)


def test_equal_arms_are_those_that_only_names_tell_apart():
    system = build_system(sequence_structure(ALL))
    structure_names = names_of(system.features)
    arms = [{structure_names[atom] for atom in row[4:]} for row in system.equal_arms]
    assert sorted(map(sorted, arms)) == [["CD1", "CD2"], ["CG1", "CG2"]]
    for smiles, count in {
        "CC(C)C": 1,
        "CC(C)O": 1,
        "CC(O)F": 0,
        "CCC(C)O": 0,
        "CC(=O)O": 0,
    }.items():
        assert len(build_system(structure_from_smiles(smiles)).equal_arms) == count, smiles


def test_equal_arms_drawn_the_other_way_round_are_exchanged():
    system = build_system(sequence_structure("AVLI"))
    reference = torch.from_numpy(system.reference)
    other = reference.clone()
    for *_, first, second in system.equal_arms:
        other[[first, second]] = other[[second, first]]
    # Isoleucine as its other diastereomer is another molecule.
    beta = len(names_of(system.features)) - 1 - names_of(system.features)[::-1].index("CB")
    wrong = reference.clone()
    methyl = len(names_of(system.features)) - 1 - names_of(system.features)[::-1].index("CG2")
    wrong[methyl] = 2.0 * wrong[beta] - wrong[methyl]
    found = system.exchange_arms(torch.stack([other, reference, wrong]))
    assert len(system.equal_arms) == 2
    assert (found == torch.stack([reference, reference, wrong])).all()
    assert (other != reference).any()


def test_names_of_force_fields():
    structure = sequence_structure("IHCMG")
    residue_names = ("ILE", "HSD", "CYX", "MSE", "GLY")
    names, numbers = list(structure.names), structure.numbers.copy()
    others = {(0, "CD1"): "CD", (3, "SD"): "SE", (4, "O"): "OT1", (4, "OXT"): "OT2"}
    for (residue, name), other in others.items():
        atom = next(i for i in np.flatnonzero(structure.residues == residue) if names[i] == name)
        names[atom] = other
        numbers[atom] = 34 if other == "SE" else numbers[atom]
    renamed = replace(structure, names=tuple(names), residue_names=residue_names, numbers=numbers)
    assert_same(build_system(renamed).features, build_system(structure).features)


# ---- protonation ------------------------------------------------------------------------------

SITES = {
    "D": (2, "OD2", -1),
    "E": (2, "OE2", -1),
    "Y": (2, "OH", -1),
    "C": (2, "SG", -1),
    "K": (2, "NZ", 1),
}


def charges_of(structure) -> dict[str, float]:
    features = build_system(structure).features
    return {
        f"{name}{int(token) + 1}": charge
        for name, token, charge in zip(
            names_of(features), features.atom_to_token, features.ref_charge.tolist(), strict=True
        )
        if charge
    }


@pytest.mark.parametrize("letter", SITES)
def test_charges_follow_from_hydrogens(letter):
    number, name, charge = SITES[letter]
    assert charges_of(sequence_structure(f"G{letter}G")) == {}
    charged = {(number, name): charge, (1, "N"): 1, (3, "OXT"): -1}
    assert charges_of(sequence_structure(f"G{letter}G", charged)) == {
        "N1": 1,
        f"{name}{number}": charge,
        "OXT3": -1,
    }


def test_charges_of_delocalised_groups_and_proline():
    """Whichever atom bears it in a drawing, a charge is put on the same one."""
    assert charges_of(sequence_structure("GHG", {(2, "ND1"): 1})) == {"ND12": 1}
    assert charges_of(sequence_structure("GRG", {(2, "NH1"): 1})) == {"NH22": 1}
    assert charges_of(sequence_structure("PG", {(1, "N"): 1})) == {"N1": 1}


def test_charges_at_ph_7_without_hydrogens():
    def bare(sequence, **names):
        structure = sequence_structure(sequence)
        structure = without(structure, np.flatnonzero(structure.numbers == 1).tolist())
        renamed = tuple(names.get(name, name) for name in structure.residue_names)
        return charges_of(replace(structure, residue_names=renamed))

    assert bare("GDEHKRCYG") == {
        "N1": 1, "OD22": -1, "OE23": -1, "NZ5": 1, "NH26": 1, "OXT9": -1,
    }  # fmt: skip
    stated = bare("GDEHKCG", ASP="ASH", GLU="GLH", HIS="HIP", LYS="LYN", CYS="CYM")
    assert stated == {"N1": 1, "ND14": 1, "SG6": -1, "OXT7": -1}


def test_a_disulfide_bridge_is_neutral():
    structure = sequence_structure("CGC")
    sulfur = np.flatnonzero(structure.numbers == 16)
    bonded = structure.bonds[np.isin(structure.bonds, sulfur).any(axis=1)]
    protons = [int(i) for i in np.unique(bonded) if structure.numbers[i] == 1]
    bridged = without(structure, protons)
    bridge = np.flatnonzero(bridged.numbers == 16)[None]
    joined = replace(bridged, bonds=np.concatenate([bridged.bonds, bridge]))
    assert charges_of(joined) == {}
    assert charges_of(bridged) == {"SG1": -1, "SG3": -1}
    assert not build_system(joined).features.token_bonds.any()


# ---- ligands and complexes --------------------------------------------------------------------


def test_small_molecule():
    system = build_system(structure_from_smiles("CC(=O)[O-]"))
    features = system.features
    assert features.n_tokens == features.n_atoms == 4
    assert names_of(features) == ["C1", "C2", "O1", "O2"]
    assert features.restype.tolist() == [20] * 4
    assert features.residue_index.tolist() == [1] * 4
    assert features.ref_charge.tolist() == [0, 0, 0, -1]
    assert features.token_bonds.nonzero().tolist() == [
        [0, 1], [1, 0], [1, 2], [1, 3], [2, 1], [3, 1],
    ]  # fmt: skip
    assert features.is_ligand.all()
    assert features.frame_atoms[0].tolist()[:2] == [1, 0]
    assert features.frame_mask.all()
    assert system.notes == (
        "MOL 1 of chain 1 is not a standard residue; its 4 heavy atoms are one token each.",
    )


def test_a_halogen_in_a_molecule_is_no_ion():
    assert build_system(structure_from_smiles("FC(F)F")).features.n_tokens == 4


def test_frames_by_hand():
    """A rectangle and a fifth atom in line with two of its corners; ties go to the first atom."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1.5, 0], [1, 1.5, 0], [-1, 0, 0]], dtype=float)
    frames, valid = local_frames(corners)
    assert frames.tolist() == [[1, 0, 4], [0, 1, 3], [3, 2, 0], [2, 3, 1], [0, 4, 2]]
    # Atoms 1, 0 and 4 lie on a line.
    assert valid.tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("smiles", "valid"),
    [("C", [False]), ("CO", [False] * 2), ("O=C=O", [False] * 3), ("CCO", [True] * 3)],
)
def test_frames_need_three_atoms_and_an_angle(smiles, valid):
    assert build_system(structure_from_smiles(smiles)).features.frame_mask.tolist() == valid


def test_reference_conformers_do_not_depend_on_the_pose():
    structure = structure_from_smiles("C[C@H](F)C(=O)OCC#N")
    turn = Rotation.random(rng=0).as_matrix()
    moved = replace(structure, positions=structure.positions @ turn.T + 5.0)
    assert_same(build_system(moved).features, build_system(structure).features)
    system = build_system(structure)
    conformer = system.features.ref_pos.numpy().astype(np.float64)
    np.testing.assert_allclose(
        superpose(system.reference[None], conformer)[0], conformer, atol=1e-5
    )
    mirrored = replace(structure, positions=structure.positions * [1, 1, -1])
    different = build_system(mirrored).features.ref_pos - build_system(structure).features.ref_pos
    assert different.abs().max() > 0.3


def test_ligand_from_ase():
    structure = structure_from_smiles("c1ccccc1[N+](=O)[O-]")
    atoms = ase.Atoms(structure.numbers, structure.positions)
    system = build_system(bonded_structure_from_ase(atoms))
    expected = build_system(structure)
    uncharged = replace(expected.features, ref_charge=torch.zeros(9))
    assert_same(system.features, uncharged)
    known = build_system(bonded_structure_from_ase(atoms), {"MOL": "[O-][N+](=O)c1ccccc1"})
    assert sorted(known.features.ref_charge.tolist()) == [-1] + [0] * 7 + [1]
    assert known.features.ref_charge[6] == 1  # nitrogen


def test_smiles_gives_conformers_that_do_not_depend_on_the_structure():
    smiles = "C[C@H](F)C(=O)OCC#N"
    one, other = (structure_from_smiles(smiles, seed=seed) for seed in (1, 2))
    assert not np.allclose(one.positions, other.positions, atol=0.1)
    systems = [build_system(structure, {"MOL": smiles}) for structure in (one, other)]
    assert_same(systems[0].features, systems[1].features)
    bonds = systems[0].bonds
    lengths = np.linalg.norm(np.subtract(*systems[0].features.ref_pos.numpy()[bonds.T]), axis=-1)
    assert lengths.min() > 1.1
    assert lengths.max() < 1.6


def test_smiles_may_leave_stereochemistry_to_the_structure():
    for smiles in ("C[C@H](F)CO", "C[C@@H](F)CO"):
        structure = structure_from_smiles(smiles)
        stated = build_system(structure, {"MOL": smiles}).features
        open_ended = build_system(structure, {"MOL": "CC(F)CO"}).features
        assert_same(stated, open_ended)


def test_complex(complexed):
    system = build_system(complexed)
    features = system.features
    assert features.n_tokens == 3 + 3 + 3
    assert features.n_atoms == 10 + 6
    assert features.asym_id.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert features.entity_id.tolist() == [0] * 3 + [1] * 6
    assert features.sym_id.tolist() == [0] * 6 + [1] * 3
    assert features.residue_index.tolist() == [1, 2, 3] + [1] * 6
    assert features.is_ligand.tolist() == [False] * 10 + [True] * 6
    assert names_of(features)[10:13] == ["C1", "C2", "O3"]
    pairs = features.token_bonds.triu().nonzero().tolist()
    assert pairs == [[3, 4], [4, 5], [6, 7], [7, 8]]
    assert [complexed.residue_names[complexed.residues[i]] for i in system.left_out] == [
        "HOH",
        "NA",
    ]
    assert system.notes == (
        "Left out: 1 HOH.",
        "Left out: 1 NA.",
        "LIG 1 of chain B is not a standard residue; its 3 heavy atoms are one token each.",
        "LIG 2 of chain B is not a standard residue; its 3 heavy atoms are one token each.",
        "Bonds of LIG 1 of chain B were taken from distances.",
        "Bonds of LIG 2 of chain B were taken from distances.",
    )
    frame = complexed.positions
    np.testing.assert_allclose(system.restore(system.select(frame), frame), frame, atol=1e-12)


def test_chain_numbering():
    structure = sequence_structure("AGA")
    gap = replace(structure, residue_numbers=np.array([5, 6, 9]))
    assert build_system(gap).features.residue_index.tolist() == [5, 6, 9]
    repeated = replace(structure, residue_numbers=np.array([5, 5, 6]))
    assert build_system(repeated).features.residue_index.tolist() == [1, 2, 3]


def test_a_modified_residue_stays_in_its_chain():
    structure = sequence_structure("ASA")
    named = replace(structure, residue_names=("ALA", "SEX", "ALA"))
    features = build_system(named).features
    assert features.n_tokens == 1 + 6 + 1
    assert features.asym_id.tolist() == [0] * 8
    assert features.residue_index.tolist() == [1] + [2] * 6 + [3]
    assert not features.is_ligand.any()
    # Bonds inside it and those to its neighbours.
    assert features.token_bonds.sum() == 2 * (5 + 2)


def test_the_network_takes_them(dipeptide, complexed):
    network = ATMOS(ATMOSConfig.preset("xs")).eval()
    systems = [build_system(structure) for structure in (dipeptide, complexed)]
    batch = Features.stack([system.features for system in systems])
    frames = torch.zeros(2, batch.n_atoms, 3)
    for b, system in enumerate(systems):
        frames[b, : len(system.atoms)] = torch.from_numpy(system.reference)
    with torch.no_grad():
        context = network.context(batch)
        memory = network.step(network.initial_memory(context), frames, batch, context)
        drawn = draw(network, memory, batch, context, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 1, 16, 3)
    assert drawn.isfinite().all()


# ---- hydrogens --------------------------------------------------------------------------------


def test_hydrogens_follow_a_rigid_motion(dipeptide):
    system = build_system(dipeptide)
    turns = Rotation.random(4, rng=0).as_matrix()
    moved = np.einsum("fij,nj->fni", turns, dipeptide.positions) + 3.0
    restored = system.restore(system.select(moved), dipeptide.positions)
    np.testing.assert_allclose(restored, moved, atol=1e-6)


def test_hydrogens_follow_a_rotation_about_a_bond(dipeptide):
    system = build_system(dipeptide)
    x = dipeptide.positions
    nitrogen, carbon = 6, 8
    axis = (x[carbon] - x[nitrogen]) / np.linalg.norm(x[carbon] - x[nitrogen])
    beyond = np.arange(9, 22)  # HA and what comes after it
    turned = x.copy()
    turn = Rotation.from_rotvec(np.deg2rad(110.0) * axis)
    turned[beyond] = turn.apply(x[beyond] - x[carbon]) + x[carbon]
    np.testing.assert_allclose(system.restore(system.select(turned), x), turned, atol=1e-6)


def test_hydrogens_keep_bond_lengths_when_heavy_atoms_move_anyhow(complexed):
    system = build_system(complexed)
    x = complexed.positions
    moved = system.select(x) + np.random.default_rng(0).normal(0.0, 0.3, (20, 16, 3))
    restored = system.restore(moved, x)
    frames = system.hydrogens

    def lengths(positions):
        return np.linalg.norm(
            positions[..., frames.hydrogens, :] - positions[..., frames.parents, :], axis=-1
        )

    np.testing.assert_allclose(lengths(restored), np.broadcast_to(lengths(x), (20, 24)), rtol=1e-9)
    np.testing.assert_array_equal(system.select(restored), moved)
    left = restored[:, system.left_out]
    np.testing.assert_array_equal(left, np.broadcast_to(x[system.left_out], left.shape))


@pytest.mark.parametrize("smiles", ["C", "CO", "C#N", "C#CC"])
def test_hydrogens_of_molecules_without_a_frame(smiles):
    structure = structure_from_smiles(smiles)
    system = build_system(structure)
    moved = Rotation.from_rotvec([0.3, -0.4, 0.5]).apply(structure.positions) + 2.0
    restored = system.restore(system.select(moved), structure.positions)
    pairs = np.triu_indices(len(structure), 1)

    def distances(x):
        return np.linalg.norm(x[pairs[0]] - x[pairs[1]], axis=-1)

    np.testing.assert_allclose(distances(restored), distances(structure.positions), atol=1e-6)


# ---- refusals ---------------------------------------------------------------------------------


def test_unknown_and_missing_atoms(dipeptide):
    carbon = dipeptide.names.index("CB")
    with pytest.raises(InputError, match=r"ALA 2 of chain A lacks CB; complete .* PDBFixer"):
        build_system(without(dipeptide, [carbon, 13, 14, 15]))
    renamed = tuple("CX" if i == carbon else name for i, name in enumerate(dipeptide.names))
    with pytest.raises(
        InputError, match=r"ALA 2 of chain A has atom 12 \(CX\), which ALA does not"
    ):
        build_system(replace(dipeptide, names=renamed))
    numbers = dipeptide.numbers.copy()
    numbers[carbon] = 7
    with pytest.raises(InputError, match="is C by its name and N by its element"):
        build_system(replace(dipeptide, numbers=numbers))


def test_what_cannot_be_represented(dipeptide, complexed):
    names = ("ACE", "DA", "NME")
    with pytest.raises(InputError, match="DA 2 of chain A is a nucleotide"):
        build_system(replace(dipeptide, residue_names=names))
    numbers = dipeptide.numbers.copy()
    numbers[3] = 0
    with pytest.raises(InputError, match="ACE 1 of chain A has virtual sites"):
        build_system(replace(dipeptide, numbers=numbers))
    water = without(complexed, list(range(len(complexed) - 2)))
    water = replace(
        water,
        residues=np.arange(2),
        residue_names=("HOH", "NA"),
        residue_numbers=np.arange(2),
        chains=np.zeros(2, dtype=np.int64),
    )
    with pytest.raises(InputError, match="nothing but water and ions"):
        build_system(water)
    positions = dipeptide.positions.copy()
    positions[3] += 30.0
    lone = replace(
        dipeptide,
        positions=positions,
        bonds=dipeptide.bonds[(dipeptide.bonds != 3).all(axis=1)],
    )
    with pytest.raises(InputError, match=r"atom 3 \(H3\) of ACE 1 .* bonded to no heavy atom"):
        build_system(lone)
    with pytest.raises(InputError, match=r"has no heavy atom"):
        build_system(bonded_structure_from_ase(ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])))


def test_smiles_that_do_not_fit():
    structure = structure_from_smiles("C[C@H](N)C(=O)O")
    for smiles, reason in {
        "CCN": "does not have the heavy atoms and bonds of its SMILES 'CCN'",
        "CNCC(=O)O": "does not have the heavy atoms and bonds",
        "C[C@@H](N)C(=O)O": "is another stereoisomer than its SMILES",
        "C(": "is not a valid SMILES",
    }.items():
        with pytest.raises(InputError, match=reason):
            build_system(structure, {"MOL": smiles})
    with pytest.raises(InputError, match=r"given for LIG, but no ligand has that name; .* are MOL"):
        build_system(structure, {"LIG": "CC"})


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        read_structure(tmp_path / "none.pdb")
    (tmp_path / "structure.xyz").write_text("")
    with pytest.raises(ModelFileError, match="not a structure file by its name"):
        read_structure(tmp_path / "structure.xyz")
    (tmp_path / "broken.cif").write_text("loop_\n")
    with pytest.raises(ModelFileError, match=r"there is no table _atom_site"):
        read_structure(tmp_path / "broken.cif")


def test_shapes_are_checked(dipeptide):
    system = build_system(dipeptide)
    with pytest.raises(InputError, match=r"\(21, 3\); with the atoms of the engine .* \(22, 3\)"):
        system.select(np.zeros((21, 3)))
    with pytest.raises(InputError, match=r"with the atoms of the network .* \(10, 3\)"):
        system.restore(np.zeros((22, 3)), dipeptide.positions)
    with pytest.raises(InputError, match="give one finite position per atom"):
        replace(dipeptide, positions=np.full((22, 3), np.nan))
    with pytest.raises(InputError, match=r"pass an openmm.app.Topology"):
        structure_from_topology("ALA", dipeptide.positions)
