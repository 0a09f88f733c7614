"""How fast torsions change: basins, torsions of molecules, RMSD of frames some time apart."""

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mlmd_calc.analysis.biomolecular import EnsembleTarget, evaluate_ensembles
from mlmd_calc.analysis.kinetics import (
    LAG,
    basin_changes,
    basin_populations,
    basins,
    extended_phi_width,
    rmsd_after,
    rotatable_torsions,
    torsion_divergences,
)
from mlmd_calc.biomolecules import build_system, read_structure
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.geometry.stereochemistry import dihedrals

pytest.importorskip("rdkit", reason="rdkit is not installed")

from peptide_structures import write_dipeptide


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    path = write_dipeptide(tmp_path_factory.mktemp("pdb") / "dipeptide.pdb")
    return build_system(read_structure(path))


def psi_turned(system, degrees):
    """Frames ``(f, a, 3)`` in which ψ is turned from that of the reference by some angles."""
    first, second, *after = 4, 5, 6, 8, 9  # CA, C, O, N and C of NME
    axis = system.reference[second] - system.reference[first]
    frames = np.repeat(system.reference[None], len(degrees), axis=0)
    for frame, angle in zip(frames, degrees, strict=True):
        turn = Rotation.from_rotvec(np.radians(angle) * axis / np.linalg.norm(axis))
        frame[after] = turn.apply(frame[after] - frame[second]) + frame[second]
    return frames


def test_basins_by_hand():
    angles = np.radians([[60, 40], [-60, -40], [-60, 140], [-150, 160], [-60, -170], [-60, 59]])
    assert basins(angles).tolist() == [0, 1, 2, 2, 2, 1]


def test_changes_are_counted_per_frame_and_trajectory(system):
    back_and_forth = psi_turned(system, [0.0, 0.0, 180.0, 180.0, 0.0])
    assert basin_changes(system, [back_and_forth]) == 0.5
    # From one trajectory to the next is no change.
    assert basin_changes(system, [back_and_forth[:1].repeat(3, 0), back_and_forth[2:4]]) == 0.0
    ethanol = build_system(structure_from_smiles("CCO"))
    assert np.isnan(basin_changes(ethanol, [ethanol.reference[None].repeat(3, 0)]))


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("CCCC", 1),
        ("c1ccccc1", 0),
        ("CCc1ccccc1", 1),
        ("C1CC1CC1CC1", 2),
        ("c1ccc2ccccc2c1", 0),
        ("C1CCCC1CCC(=O)O", 3),
    ],
)
def test_torsions_are_those_of_bonds_outside_of_rings(smiles, expected):
    system = build_system(structure_from_smiles(smiles))
    torsions = rotatable_torsions(len(system.atoms), system.bonds)
    assert len(torsions) == expected
    bonds = set(map(tuple, system.bonds.tolist()))
    for torsion in torsions.tolist():
        assert all(tuple(sorted(pair)) in bonds for pair in itertools.pairwise(torsion))


def test_divergence_of_the_torsion_that_differs(system):
    still, turned = psi_turned(system, [0.0] * 4), psi_turned(system, [90.0] * 4)
    found = torsion_divergences(system, still, turned)
    different = {name for name, value in found.items() if value > 0.1}
    assert different == {"ALA 2 of chain A, CA-C"}
    assert found["ALA 2 of chain A, CA-C"] == pytest.approx(np.log(2.0))
    assert len(found) == 4  # two peptide bonds, φ and ψ


def test_rows_tell_the_speed(system):
    """A slow walk beside a fast one of the same distribution."""
    rng = np.random.default_rng(0)

    def walk(rate):
        state = np.cumsum(rng.random(400) < rate) % 2
        return psi_turned(system, 180.0 * state + rng.normal(0.0, 5.0, 400))

    slow, fast = walk(0.05), [walk(0.3), walk(0.3)]
    target = EnsembleTarget("x", system, fast, [slow], np.arange(10))
    rows = {row["row"]: row for row in evaluate_ensembles([target], most=50).rows}
    rates = {name: row["basin_changes_per_frame"] for name, row in rows.items()}
    assert 0.02 < rates["generated"] < 0.1 < 0.2 < rates["reference"] < 0.4 < rates["shuffled"]
    assert rates["static"] == 0.0
    after = {name: row[f"rmsd_{LAG}_frames_apart_A"] for name, row in rows.items()}
    assert after["static"] < after["generated"] < after["reference"]
    assert rows["generated"]["torsion_divergence_nats"] < 0.1
    assert np.isnan(rmsd_after([slow[:LAG]]))


def test_populations_and_widths_of_basins(system):
    """Of ten frames three are turned into the other basin of ψ, and φ stays where it is."""
    start = basins(dihedrals(system.reference[None], system.phi_psi))[0, 0]
    turned = psi_turned(system, [0.0] * 7 + [180.0] * 3)
    (populations,) = basin_populations(system, [turned[:4], turned[4:]])
    assert sorted(populations) == pytest.approx([0.0, 0.3, 0.7])
    assert populations[start] == pytest.approx(0.7)
    assert extended_phi_width(system, [turned]) == pytest.approx(0.0, abs=1e-5)


def test_width_of_phi_is_that_of_extended_residues(system):
    rng = np.random.default_rng(1)
    (phi,) = system.phi_psi[:, 0]
    start = dihedrals(system.reference[None], system.phi_psi)[0, 0, 0]
    axis = system.reference[phi[2]] - system.reference[phi[1]]
    before = [atom for atom in range(len(system.atoms)) if atom < phi[1]]
    angles = np.deg2rad(rng.normal(-100.0, 12.0, 200))
    frames = np.repeat(system.reference[None], 200, axis=0)
    for frame, angle in zip(frames, angles, strict=True):
        turn = Rotation.from_rotvec((start - angle) * axis / np.linalg.norm(axis))
        frame[before] = turn.apply(frame[before] - frame[phi[1]]) + frame[phi[1]]
    assert dihedrals(frames, system.phi_psi)[:, 0, 0] == pytest.approx(angles)
    extended = psi_turned(system, [0.0])[0]
    assert basins(dihedrals(extended[None], system.phi_psi))[0, 0] == 2
    assert extended_phi_width(system, [frames]) == pytest.approx(np.rad2deg(angles.std()), rel=0.01)
