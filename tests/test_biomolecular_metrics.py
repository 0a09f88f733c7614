"""Measures of generated ensembles against hand-computed cases, mdtraj and scipy."""

import json
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from peptide_structures import sequence_structure, write_dipeptide
from scipy.linalg import sqrtm
from scipy.spatial.transform import Rotation

from mlmd_calc.analysis import ensembles
from mlmd_calc.analysis.biomolecular import EnsembleTarget, evaluate_ensembles, pocket
from mlmd_calc.analysis.biomolecular_plots import plot_pca, plot_ramachandran, plot_rmsf
from mlmd_calc.biomolecules import build_system, read_structure
from mlmd_calc.errors import InputError
from mlmd_calc.geometry import stereochemistry

mdtraj = pytest.importorskip("mdtraj", reason="mdtraj is not installed")


@pytest.fixture(scope="module")
def pdb(tmp_path_factory):
    return write_dipeptide(tmp_path_factory.mktemp("pdb") / "dipeptide.pdb")


@pytest.fixture(scope="module")
def dipeptide(pdb):
    return build_system(read_structure(pdb))


@pytest.fixture(scope="module")
def trajectory(pdb):
    """The dipeptide with noise, in mdtraj (nm)."""
    model = mdtraj.load(str(pdb))
    noise = np.random.default_rng(0).normal(0.0, 0.02, (30, model.n_atoms, 3))
    return mdtraj.Trajectory(model.xyz + noise, model.top)


def noisy(structure, frames, scale=0.2, seed=0):
    noise = np.random.default_rng(seed).normal(0.0, scale, (frames, *structure.shape))
    return structure + noise


# ---- superposition and fluctuations -------------------------------------------------------------


def test_superposition_undoes_a_rigid_motion_but_no_reflection(dipeptide):
    x = dipeptide.reference
    turned = np.einsum("fij,nj->fni", Rotation.random(3, rng=0).as_matrix(), x) + 7.0
    np.testing.assert_allclose(
        ensembles.superpose(turned, x), np.broadcast_to(x, turned.shape), atol=1e-9
    )
    mirrored = ensembles.superpose(turned * [1, 1, -1], x)
    assert np.abs(mirrored - x).max() > 0.5


def test_pairwise_rmsd_by_hand():
    """Two frames a distance d apart: of the four pairs, two have d and two nothing."""
    frames = np.zeros((2, 5, 3))
    frames[1, :, 0] = 0.6
    assert ensembles.mean_pairwise_rmsd(frames, frames) == pytest.approx(0.3)
    one_atom = np.zeros((1, 4, 3))
    one_atom[0, 2] = [0.0, 3.0, 4.0]
    assert ensembles.mean_pairwise_rmsd(one_atom, np.zeros((3, 4, 3))) == pytest.approx(5 / 2)


def test_rmsf_and_rmsd_against_mdtraj(trajectory):
    frames = 10.0 * trajectory.xyz.astype(np.float64)
    moved = trajectory[:]  # mdtraj centres what it is given
    expected = 10.0 * mdtraj.rmsf(moved, moved, 0)
    np.testing.assert_allclose(
        ensembles.rmsf(ensembles.superpose(frames, frames[0])), expected, rtol=1e-5
    )
    expected = 10.0 * mdtraj.rmsd(moved, moved, 0)
    np.testing.assert_allclose(ensembles.rmsd(frames, frames[0])[1:], expected[1:], rtol=1e-4)
    np.testing.assert_allclose(ensembles.rmsd(frames, frames), 0.0, atol=1e-6)


def test_correlation():
    x = np.array([1.0, 2.0, 4.0])
    assert ensembles.correlation(x, 3.0 - 2.0 * x) == pytest.approx(-1.0)
    assert ensembles.correlation(x, np.array([0.0, 1.0, 0.0])) == pytest.approx(-1 / np.sqrt(28))
    assert np.isnan(ensembles.correlation(x, np.full(3, 0.1)))


# ---- Wasserstein distances and principal components ---------------------------------------------


def test_rmwd_of_shifted_and_scaled_gaussians():
    frames = noisy(np.zeros((4, 3)), 500)
    shift = np.zeros((4, 3))
    shift[1] = [0.0, 3.0, 4.0]
    assert ensembles.rmwd(frames, frames) == pytest.approx(0.0, abs=1e-6)
    assert ensembles.rmwd(frames, frames + shift) == pytest.approx(5.0 / 2)
    # Scaled k times about the mean: W² = (k - 1)² tr Σ.
    centred = frames - frames.mean(axis=0)
    traces = (centred**2).sum(axis=-1).mean(axis=0)
    assert ensembles.rmwd(centred, 3.0 * centred) == pytest.approx(np.sqrt(4.0 * traces.mean()))


def test_rmwd_of_gaussians_that_do_not_commute():
    rng = np.random.default_rng(1)
    first, second = (rng.normal(size=(60, 1, 3)) @ rng.normal(size=(3, 3)) for _ in range(2))
    cov1, cov2 = (np.cov(frames[:, 0].T, bias=True) for frames in (first, second))
    assert np.abs(cov1 @ cov2 - cov2 @ cov1).max() > 0.1
    mean = (first - second).mean(axis=0)[0]
    expected = mean @ mean + np.trace(cov1 + cov2 - 2.0 * sqrtm(cov1 @ cov2).real)
    assert ensembles.rmwd(first, second) == pytest.approx(np.sqrt(expected))


def along(direction, amplitudes):
    """Frames of two atoms that move along a direction in configuration space."""
    return np.outer(amplitudes, direction).reshape(-1, 2, 3)


def test_principal_axes_against_eigenvectors():
    frames = noisy(np.zeros((3, 3)), 200) * np.array([3.0, 2.0, 1.0])
    axes = ensembles.principal_axes(frames, 2)
    values, vectors = np.linalg.eigh(np.cov(frames.reshape(200, -1).T))
    expected = vectors[:, np.argsort(values)[::-1][:2]].T
    np.testing.assert_allclose(np.abs(np.sum(axes * expected, axis=1)), 1.0, atol=1e-9)


def test_pca_w2_by_hand():
    x, y = np.eye(6)[[0, 4]]
    basis = np.concatenate([along(x, [-2.0, 2.0]), along(y, [-1.0, 1.0])])
    first = along(x, [0.0, 1.0, 2.0])
    # The order of frames does not matter, a shift counts per root of the two atoms.
    assert ensembles.pca_w2(first, first[[2, 0, 1]], basis) == pytest.approx(0.0, abs=1e-12)
    assert ensembles.pca_w2(first, first + along(y, [0.3]), basis) == pytest.approx(
        0.3 / np.sqrt(2)
    )
    # Best assignment of 0, 1, 2 to 1, 2, 3 on a line is in order.
    assert ensembles.pca_w2(first, first + along(x, [1.0]), basis) == pytest.approx(1 / np.sqrt(2))
    # A third direction is not seen.
    third = along(np.eye(6)[2], [5.0])
    assert ensembles.pca_w2(first, first + third, basis) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(InputError, match="3 frames cannot be assigned to 2"):
        ensembles.pca_w2(first, first[:2], basis)


def test_pc_similarity():
    x, y = np.eye(6)[[0, 4]]
    amplitudes = np.array([-1.0, 0.0, 1.0])
    first = along(x, amplitudes)
    tilted = along((x + np.sqrt(3.0) * y) / 2.0, amplitudes)
    assert ensembles.pc_similarity(first, -first) == pytest.approx(1.0)
    assert ensembles.pc_similarity(first, tilted) == pytest.approx(0.5)
    assert np.isnan(ensembles.pc_similarity(first, np.ones((3, 2, 3))))


# ---- contacts and time --------------------------------------------------------------------------


def test_contacts_by_hand():
    """Four atoms on a line; the last one moves."""
    start = np.zeros((4, 3))
    start[:, 0] = [0.0, 7.0, 14.0, 30.0]
    frames = np.repeat(start[None], 20, axis=0)
    frames[:3, 1, 0] = -2.0  # leaves atom 2 in 15 % of the frames, never atom 0
    frames[:2, 3, 0] = 21.0  # touches atom 2 in 10 %, which is not more than 10 %
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    np.testing.assert_allclose(
        ensembles.contact_probability(frames), [1.0, 0.0, 0.0, 0.85, 0.0, 0.1]
    )
    assert [pairs[i] for i in np.flatnonzero(ensembles.weak_contacts(frames, start))] == [(1, 2)]
    assert not ensembles.transient_contacts(frames, start).any()
    frames[2, 3, 0] = 21.0
    transient = ensembles.transient_contacts(frames, start)
    assert [pairs[i] for i in np.flatnonzero(transient)] == [(2, 3)]


def test_jaccard():
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert ensembles.jaccard(a, b) == pytest.approx(1 / 3)
    assert np.isnan(ensembles.jaccard(a & b & False, b & False))


def stretched(lengths):
    """Two atoms at given distances in random poses: RMSD is half the change of the distance."""
    frames = np.zeros((len(lengths), 2, 3))
    frames[:, 1, 0] = lengths
    turns = Rotation.random(len(lengths), rng=0).as_matrix()
    return np.einsum("fij,fnj->fni", turns, frames) + 4.0


def test_errors_in_time_by_hand():
    true, generated = stretched([1.0, 3.0, 1.0, 3.0]), stretched([2.0, 2.0, 2.0, 8.0, 9.0])
    # RMSD from the start: 0 1 0 1 and 0 0 0 3, the fifth frame is cut.
    assert ensembles.t_rmsd_error(generated, true) == pytest.approx(np.sqrt(5.0) / 2)
    assert ensembles.t_rmsd_error(true[:, ::-1], true) == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(ensembles.lag_rmsd(true, np.array([1, 2])), [1.0, 0.0], atol=1e-9)
    slow = stretched([1.0, 1.0, 3.0, 3.0])
    # Lags of 1 and 2: 1 and 0 against 1/3 and 1.
    assert ensembles.lag_rmsd_error([true], [slow]) == pytest.approx(
        np.sqrt((4 / 9 + 1.0) / 2), rel=1e-6
    )


# ---- stereochemistry ----------------------------------------------------------------------------


def test_dihedrals_against_mdtraj(trajectory, dipeptide):
    frames = dipeptide.select(10.0 * trajectory.xyz)
    angles = stereochemistry.dihedrals(frames, dipeptide.phi_psi)
    assert angles.shape == (30, 1, 2)
    for column, compute in enumerate((mdtraj.compute_phi, mdtraj.compute_psi)):
        _, expected = compute(trajectory)
        np.testing.assert_allclose(angles[:, :, column], expected, atol=1e-4)


def test_dihedral_by_hand():
    """Seen along b → c, a points up and d to the right: a quarter turn clockwise."""
    frame = np.array([[[0, 1, 0], [0, 0, 0], [0, 0, -1], [1, 0, -1]]], dtype=float)
    angle = stereochemistry.dihedrals(frame, np.array([[0, 1, 2, 3]]))
    np.testing.assert_allclose(angle, [[np.pi / 2]])


def test_jensen_shannon_divergence_by_hand():
    divergence = stereochemistry.jensen_shannon_divergence
    rng = np.random.default_rng(0)
    for counts in rng.random((20, 50)):
        assert divergence(counts, 3 * counts) == pytest.approx(0.0, abs=1e-12)
    assert divergence(np.array([1, 0]), np.array([0, 5])) == pytest.approx(np.log(2.0))
    # p = (1/2, 1/2), q = (1, 0), m = (3/4, 1/4).
    expected = 0.5 * (0.5 * np.log(2 / 3) + 0.5 * np.log(2.0)) + 0.5 * np.log(4 / 3)
    assert divergence(np.array([3, 3]), np.array([7, 0])) == pytest.approx(expected)


def test_ramachandran_divergence():
    rng = np.random.default_rng(0)
    alpha, beta = (
        rng.normal(np.deg2rad(centre), 0.2, (500, 1, 2)) for centre in ([-60, -45], [-120, 130])
    )
    both = np.concatenate([alpha, beta], axis=1)
    flipped = both[:, ::-1]
    divergence = stereochemistry.ramachandran_divergence
    assert divergence(both, both) == pytest.approx(0.0, abs=1e-12)
    assert divergence(both, flipped) == pytest.approx(np.log(2.0), abs=1e-6)
    assert divergence(both, np.concatenate([alpha, alpha], axis=1)) == pytest.approx(
        np.log(2.0) / 2, abs=1e-6
    )
    edge = np.full((4, 1, 2), np.pi * (1 + 1e-12))
    assert stereochemistry.angle_histogram(edge[:, 0], 10)[-1, -1] == 4


def test_chirality_flips(dipeptide):
    x = dipeptide.reference
    swapped = x.copy()
    swapped[[5, 7]] = swapped[[7, 5]]  # C and CB of alanine
    frames = np.stack([x, swapped, -x, x])
    flips = stereochemistry.chirality_flips(frames, x, dipeptide.chirality_centres)
    assert flips.tolist() == [0, 1, 1, 0]


def test_natural_amino_acids_are_left_handed():
    system = build_system(sequence_structure("ARNDCQEHILKMFPSTWYV"))
    centres = system.chirality_centres
    alpha = centres[np.isin(centres[:, 0], system.alpha_carbons)]
    # Neighbours are N, C and CB in this order.
    assert set(stereochemistry.handedness(system.reference[None], alpha)[0]) == {1.0}


def test_clashes_by_hand():
    frames = np.zeros((2, 3, 3))
    frames[:, :, 0] = [0.0, 1.05, 2.1]
    frames[1, 1, 0] = 1.2
    assert stereochemistry.clashes(frames).tolist() == [2, 1]
    others = np.zeros((2, 1, 3))
    others[1, 0] = [0.0, 5.0, 0.0]
    assert stereochemistry.clashes(frames, others).tolist() == [2, 0]


# ---- the table ----------------------------------------------------------------------------------


def walk(structure, frames, seed):
    """Slow motion about a structure: a random walk drawn back to it."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0.0, 0.1, (frames, *structure.shape))
    noise[:, ::2] *= 3.0
    out = np.zeros_like(noise)
    for step in range(1, frames):
        out[step] = 0.9 * out[step - 1] + noise[step]
    return structure + out


@pytest.fixture(scope="module")
def targets(dipeptide):
    found = []
    for index, scale in enumerate((0.7, 1.0, 1.4)):
        system = replace(dipeptide, reference=scale * dipeptide.reference)
        replicas = [scale * walk(dipeptide.reference, 200, 10 * index + k) for k in range(4)]
        found.append(EnsembleTarget(f"t{index}", system, replicas[:3], replicas[3:], np.arange(10)))
    return found


@pytest.fixture(scope="module")
def report(targets):
    return evaluate_ensembles(targets, most=60)


def test_table_orders_the_rows(report):
    rows = {row["row"]: row for row in report.rows}
    assert list(rows) == ["generated", "reference", "shuffled", "static"]
    generated, reference, shuffled, static = rows.values()
    for row in (generated, reference, shuffled):
        assert row["targets"] == 3
        assert row["pairwise_rmsd_r"] > 0.95
        assert row["global_rmsf_r"] > 0.9
        assert row["rmwd_A"] < 0.7 * static["rmwd_A"]
        assert row["md_pca_w2_A"] < 0.7 * static["md_pca_w2_A"]
        assert row["joint_pca_w2_A"] < 0.7 * static["joint_pca_w2_A"]
        assert row["lag_rmsd_error_A"] < 0.7 * static["lag_rmsd_error_A"]
        assert row["chirality_flips_per_1000_frames"] < 500
    assert static["pc_similarity_above_0.5_percent"] == 0.0
    assert static["rmsf_r"] is None
    assert static["pairwise_rmsd_r"] is None
    # Shuffling changes nothing but time.
    for column in ("rmsf_r", "global_rmsf_r", "ramachandran_divergence_nats"):
        assert shuffled[column] == pytest.approx(reference[column], rel=1e-9)
    assert shuffled["lag_rmsd_error_A"] > 3 * reference["lag_rmsd_error_A"]
    # One α-carbon has no contacts, and there is no ligand.
    assert generated["weak_contacts_jaccard"] is None
    assert generated["ligand_clashes_per_trajectory"] is None
    json.dumps(report.rows, allow_nan=False)
    json.dumps(report.targets, allow_nan=False)
    assert len(report.targets) == 12
    assert report.targets[0]["target"] == "t0"


def test_table_is_reproducible(targets, report):
    alone = evaluate_ensembles(targets[:1], most=60)
    assert alone.targets == report.targets[:4]
    assert evaluate_ensembles(targets[:1], most=60, seed=1).targets != alone.targets


def test_identical_ensembles(dipeptide):
    frames = walk(dipeptide.reference, 120, 0)
    target = EnsembleTarget("same", dipeptide, [frames], [frames], np.arange(10))
    row = evaluate_ensembles([target]).rows[0]
    for column in ("t_rmsd_error_A", "lag_rmsd_error_A", "ramachandran_divergence_nats"):
        assert row[column] == pytest.approx(0.0, abs=1e-6)
    assert row["rmsf_r"] == pytest.approx(1.0)
    assert row["pc_similarity_above_0.5_percent"] == 100.0
    assert row["pairwise_rmsd_r"] is None  # needs three targets


def test_table_without_generated_trajectories_splits_a_single_reference(dipeptide):
    frames = walk(dipeptide.reference, 200, 0)
    target = EnsembleTarget("alone", dipeptide, [frames], [], np.arange(10))
    report = evaluate_ensembles([target])
    assert [row["row"] for row in report.rows] == ["reference", "shuffled", "static"]


def test_contacts_and_clashes_of_a_complex(tmp_path):
    system = build_system(read_structure(write_dipeptide(tmp_path / "complex.pdb", complexed=True)))
    reference = noisy(system.reference, 50, 0.01)
    generated = reference.copy()
    generated[3, 10] = generated[3, 4] + [0.0, 0.0, 1.0]  # ligand into the peptide
    generated[7, 13] = generated[7, 10] + [0.5, 0.0, 0.0]  # ligand into ligand
    made = [generated, reference]
    target = EnsembleTarget("complex", system, [reference], made, pocket(system))
    row = evaluate_ensembles([target]).rows[0]
    assert row["protein_ligand_clashes_per_trajectory"] >= 0.5
    assert row["ligand_clashes_per_trajectory"] == 0.5
    assert row["clashes_per_trajectory"] == pytest.approx(
        row["protein_ligand_clashes_per_trajectory"] + 0.5
    )


def test_pocket(tmp_path, dipeptide):
    system = build_system(read_structure(write_dipeptide(tmp_path / "complex.pdb", complexed=True)))
    assert pocket(system).tolist() == list(range(16))
    away = system.reference.copy()
    away[10:, 1] += 11.0  # the acetyl end is too far away now
    atoms = pocket(replace(system, reference=away)).tolist()
    ligand = away[10:]
    near = [
        residue
        for residue in range(3)
        if (
            np.linalg.norm(
                away[:10][system.features.ref_space_uid[:10] == residue][:, None] - ligand, axis=-1
            ).min()
            < 10.0
        )
    ]
    assert 0 < len(near) < 3
    assert {int(system.features.ref_space_uid[i]) for i in atoms} == {*near, 3, 4}
    with pytest.raises(InputError, match="no ligand"):
        pocket(dipeptide)


def test_targets_are_checked(dipeptide):
    good, atoms = noisy(dipeptide.reference, 5), np.arange(10)
    with pytest.raises(InputError, match="'x' has no reference"):
        EnsembleTarget("x", dipeptide, [], [good], atoms)
    with pytest.raises(InputError, match=r"shape \(5, 9, 3\); needed are .* 10 atoms"):
        EnsembleTarget("x", dipeptide, [good], [good[:, :9]], atoms)
    with pytest.raises(InputError, match="at least two frames"):
        EnsembleTarget("x", dipeptide, [good[:1]], [], atoms)
    with pytest.raises(InputError, match="'x' is not finite"):
        EnsembleTarget("x", dipeptide, [good], [good * np.nan], atoms)
    with_and_without = [
        EnsembleTarget("x", dipeptide, [good], made, atoms) for made in ([], [good])
    ]
    for wrong in ([], with_and_without):
        with pytest.raises(InputError, match="give at least one target, and trajectories to all"):
            evaluate_ensembles(wrong)


# ---- pictures -----------------------------------------------------------------------------------


def test_pictures(tmp_path, dipeptide):
    before = dict(matplotlib.rcParams)
    frames = {name: walk(dipeptide.reference, 300, seed) for seed, name in enumerate("ab")}
    angles = {name: stereochemistry.dihedrals(x, dipeptide.phi_psi) for name, x in frames.items()}
    plot_rmsf({k: ensembles.rmsf(x) for k, x in frames.items()}, tmp_path / "rmsf.png", "RMSF")
    plot_pca(frames, tmp_path / "pca.png", "PCA")
    plot_ramachandran(angles, tmp_path / "ramachandran.png", "Ramachandran")
    for name in ("rmsf", "pca", "ramachandran"):
        image = imread(tmp_path / f"{name}.png")
        assert image.shape[1] > image.shape[0]
        # Something coloured, not only black and white.
        colourful = np.ptp(image[..., :3], axis=-1) > 0.2
        assert colourful.mean() > 0.001
    assert dict(matplotlib.rcParams) == before
