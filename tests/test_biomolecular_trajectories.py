"""Trajectories of biomolecules: their npz files, and splits by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from peptide_structures import HEAVY_DIPEPTIDE, write_dipeptide

from mlmd_calc.biomolecules import build_system
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.data.biomolecules.trajectories import (
    BiomolecularTrajectory,
    read_trajectories,
    write_biomolecular_trajectory,
)
from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.sampling import TrajectoryFile
from mlmd_calc.sampling.trajectory_file import write_start

pytest.importorskip("mdtraj", reason="mdtraj reads PDB text")

STARTER = Path(__file__).resolve().parents[2] / "shared" / "data" / "train" / "peptides"


def moved(structure, count: int = 4) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(count, *structure.positions.shape))
    return structure.positions + 0.02 * noise


def test_heavy_atoms_in_the_order_of_the_network(dipeptide):
    order = np.random.default_rng(1).permutation(len(dipeptide))
    shuffled = replace(
        dipeptide,
        names=tuple(dipeptide.names[i] for i in order),
        numbers=dipeptide.numbers[order],
        residues=dipeptide.residues[order],
        bonds=np.argsort(order)[dipeptide.bonds],
        positions=dipeptide.positions[order],
    )
    frames = moved(shuffled)
    trajectory = BiomolecularTrajectory.from_frames("peptide", shuffled, frames, 2.0)
    assert [shuffled.names[i] for i in trajectory.system.atoms] == HEAVY_DIPEPTIDE
    assert trajectory.positions.dtype == np.float32
    np.testing.assert_allclose(trajectory.positions, frames[:, trajectory.system.atoms], atol=1e-6)
    assert trajectory.sequence == "A"


def test_round_trip_keeps_everything(dipeptide, tmp_path):
    trajectory = BiomolecularTrajectory.from_frames(
        "peptide",
        dipeptide,
        moved(dipeptide),
        2.0,
        temperature_K=400.0,
        replica=3,
        metadata={"provenance": "a test"},
    )
    write_biomolecular_trajectory(tmp_path / "file.npz", trajectory)
    (read,) = read_trajectories(tmp_path)
    np.testing.assert_array_equal(read.positions, trajectory.positions)
    for key in ("name", "dt_ps", "temperature_K", "replica", "ligands", "sequence"):
        assert getattr(read, key) == getattr(trajectory, key), key
    assert read.metadata == {"source": "file.npz", "provenance": "a test"}
    assert read.structure.names == dipeptide.names
    np.testing.assert_array_equal(read.structure.positions, dipeptide.positions)
    np.testing.assert_array_equal(read.system.bonds, trajectory.system.bonds)
    np.testing.assert_array_equal(read.system.features.ref_pos, trajectory.system.features.ref_pos)
    assert [path.name for path in tmp_path.iterdir()] == ["file.npz"]


def test_ligands_keep_their_charges(tmp_path):
    acetate = structure_from_smiles("CC(=O)[O-]", "ACT")
    trajectory = BiomolecularTrajectory.from_frames(
        "acetate", acetate, acetate.positions[None], 1.0, ligands={"ACT": "CC(=O)[O-]"}
    )
    write_biomolecular_trajectory(tmp_path / "acetate.npz", trajectory)
    (read,) = read_trajectories(tmp_path / "acetate.npz")
    assert read.temperature_K is None
    assert read.ligands == {"ACT": "CC(=O)[O-]"}
    assert read.system.features.ref_charge.tolist() == [0.0, 0.0, 0.0, -1.0]


def test_older_files_are_read_with_equal_arms_in_place(tmp_path):
    """Their frames followed the names that a builder had given by chance."""
    structure = capped_peptide("VLI", 0)
    frames = structure.positions + np.random.default_rng(0).normal(0, 0.02, (3, len(structure), 3))
    trajectory = BiomolecularTrajectory.from_frames("peptide", structure, frames, 1.0)
    write_biomolecular_trajectory(tmp_path / "file.npz", trajectory)
    with np.load(tmp_path / "file.npz") as file:
        arrays = dict(file)
    names = [structure.names[atom] for atom in trajectory.system.atoms]
    arms = [names.index("CG1"), names.index("CG2")], [names.index("CD1"), names.index("CD2")]
    for first, second in arms:
        arrays["x"][:, [first, second]] = arrays["x"][:, [second, first]]
    np.savez(tmp_path / "older.npz", **arrays)
    (found,) = read_trajectories(tmp_path / "older.npz")
    np.testing.assert_array_equal(found.positions, trajectory.positions)


def test_all_atom_file_with_overlapping_start(dipeptide, tmp_path):
    """Bonds come from the first frame, not from the PDB text."""
    lines = write_dipeptide(tmp_path / "start.pdb").read_text().splitlines(keepends=True)
    place = lines[0][30:54]
    lines[13] = lines[13][:30] + place + lines[13][54:]
    frames = moved(dipeptide).astype(np.float32)
    np.savez(tmp_path / "Ace-A-Nme_r2.npz", x=frames, pdb="".join(lines), dt_ps=1.0)
    (read,) = read_trajectories([tmp_path / "Ace-A-Nme_r2.npz"])
    assert (read.name, read.replica, read.temperature_K) == ("Ace-A-Nme", 2, None)
    np.testing.assert_array_equal(read.positions, frames[:, read.system.atoms])
    whole = build_system(replace(dipeptide, positions=frames[0].astype(float)))
    np.testing.assert_array_equal(read.system.bonds, whole.bonds)


def test_existing_peptide_trajectories():
    if not STARTER.exists():
        pytest.skip(f"{STARTER} is not there")
    for letter, atoms in (("D", 13), ("W", 19)):
        (read,) = read_trajectories(STARTER / f"Ace-{letter}-Nme_r0.npz")
        assert read.sequence == letter
        assert read.positions.shape == (2500, atoms, 3)
        assert len(read.system.phi_psi) == 1


@pytest.mark.parametrize(
    ("frames", "dt_ps", "message"),
    [
        (np.zeros((3, 5, 3)), 1.0, r"frames have shape \(3, 5, 3\), expected \(frames, 22, 3\)"),
        (np.zeros((0, 22, 3)), 1.0, "at least one frame"),
        (np.full((2, 22, 3), np.nan), 1.0, "positions of frame 0 are not finite"),
        (np.zeros((2, 22, 3)), 0.0, "dt_ps is 0.0"),
    ],
)
def test_refuses_frames_that_do_not_fit(dipeptide, frames, dt_ps, message):
    with pytest.raises(InputError, match=message):
        BiomolecularTrajectory.from_frames("peptide", dipeptide, frames, dt_ps)


def test_refuses_bad_files(tmp_path, dipeptide):
    with pytest.raises(ModelFileError, match="does not exist"):
        read_trajectories(tmp_path / "absent.npz")
    with pytest.raises(InputError, match=r"no file ending in \.npz"):
        read_trajectories(tmp_path)
    with pytest.raises(InputError, match="list of trajectory files is empty"):
        read_trajectories([])
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no archive")
    for other in (bad, write_dipeptide(tmp_path / "frames.pdb")):
        with pytest.raises(ModelFileError, match="is neither an npz file"):
            read_trajectories(other)
    np.savez(bad, x=np.zeros(3))
    with pytest.raises(ModelFileError, match=r"has the keys \['x'\], which is not a layout"):
        read_trajectories(bad)
    np.savez(bad, x=np.array([{}], dtype=object), pdb="", dt_ps=1.0)
    with pytest.raises(ModelFileError, match="x holds objects of Python"):
        read_trajectories(bad)
    pdb = write_dipeptide(tmp_path / "start.pdb").read_text()
    np.savez(bad, x=np.zeros((2, 21, 3)), pdb=pdb, dt_ps=1.0)
    with pytest.raises(InputError, match=r"bad\.npz: .* has 22 atoms, the frames have 21"):
        read_trajectories(bad)
    trajectory = BiomolecularTrajectory.from_frames("peptide", dipeptide, moved(dipeptide), 1.0)
    with pytest.raises(InputError, match=r"must end in \.npz"):
        write_biomolecular_trajectory(tmp_path / "file.h5", trajectory)


@pytest.mark.parametrize("suffix", ["xtc", "dcd"])
def test_trajectories_of_other_programs(dipeptide, tmp_path, suffix):
    frames = dipeptide.positions + np.random.default_rng(0).normal(0.0, 0.02, (5, 22, 3))
    file = TrajectoryFile(tmp_path / f"run.{suffix}", dipeptide, 2.5)
    file.append(frames, 0)
    write_start(tmp_path / "top.pdb", dipeptide, dipeptide.positions)
    options = {"topology": tmp_path / "top.pdb"}
    if suffix == "dcd":
        with pytest.raises(InputError, match="does not tell the time between its frames"):
            read_trajectories(file.path, **options)
        options["interval_ps"] = 2.5
    else:
        with pytest.raises(InputError, match=r"interval of 3 ps is given, but.*2\.5 ps apart"):
            read_trajectories(file.path, **options, interval_ps=3.0)
    (read,) = read_trajectories([file.path], **options)
    assert (read.name, read.dt_ps, len(read)) == ("top", 2.5, 5)
    np.testing.assert_allclose(read.positions, frames[:, read.system.atoms], atol=0.006)
    with pytest.raises(InputError, match="give the topology"):
        read_trajectories(file.path)
    in_capitals = tmp_path / f"run.{suffix.upper()}"
    in_capitals.write_bytes(file.path.read_bytes())
    np.testing.assert_array_equal(
        read_trajectories(in_capitals, **options)[0].positions, read.positions
    )
    collapsed = TrajectoryFile(tmp_path / f"collapsed.{suffix}", dipeptide, 2.5)
    collapsed.append(frames * [[[1.0]], [[0.0]], [[1.0]], [[1.0]], [[1.0]]], 0)
    with pytest.raises(InputError, match=r"frame 1 of .* has a bond of 0\.0 Å"):
        read_trajectories(collapsed.path, **options)
    frames[3, :6] += [30.0, 0.0, 0.0]  # the acetyl group, on the other side of a cell
    torn = TrajectoryFile(tmp_path / f"torn.{suffix}", dipeptide, 2.5)
    torn.append(frames, 0)
    with pytest.raises(InputError, match=r"frame 3 of .*make molecules whole"):
        read_trajectories(torn.path, **options)
