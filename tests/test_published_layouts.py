"""ATLAS, MDGen and Timewarp: small files in their layouts, read and converted."""

import numpy as np
import pytest
from typer.testing import CliRunner

from mlmd_calc.biomolecules import build_system
from mlmd_calc.biomolecules.pdb import format_pdb, format_structure
from mlmd_calc.biomolecules.prochirality import with_arm_names
from mlmd_calc.cli.data import app as command
from mlmd_calc.data.biomolecules.frame_files import frame_interval
from mlmd_calc.data.biomolecules.peptides import Peptide, build_peptide
from mlmd_calc.data.biomolecules.published import read_atlas, read_mdgen, read_timewarp
from mlmd_calc.data.biomolecules.trajectories import read_trajectories
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.io import files
from mlmd_calc.sampling import TrajectoryFile
from mlmd_calc.sampling.trajectory_file import topology_of

pytest.importorskip("mdtraj", reason="mdtraj writes the frames")
pytest.importorskip("rdkit", reason="rdkit builds the peptides")

SEQUENCE = "AIKW"
SLOTS = {
    "A": "N CA C O CB",
    "I": "N CA C O CB CG1 CG2 CD1",
    "K": "N CA C O CB CG CD CE NZ",
    "W": "N CA C O CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
}
"""Places of atoms in arrays of AlphaFold with fourteen per residue."""


def peptide():
    return build_peptide(Peptide(SEQUENCE, is_capped=False), 0)


def without_hydrogens(structure):
    return topology_of(structure, np.flatnonzero(structure.numbers > 1))


def moving(structure, count=5):
    return structure.positions + np.random.default_rng(0).normal(
        0.0, 0.02, (count, len(structure), 3)
    )


def write_atlas(folder, name="1abc_A", interval_ps=100.0, pattern="{name}_R{run}.xtc"):
    structure = peptide()
    folder.mkdir(parents=True)
    (folder / f"{name}.pdb").write_text(format_structure(structure))
    frames = moving(structure)
    for run in (1, 3):
        path = folder / pattern.format(name=name, run=run)
        TrajectoryFile(path, structure, interval_ps).append(frames + run, 0)
    return structure, frames


def write_mdgen(folder, interval_ps=0.1):
    structure = without_hydrogens(peptide())
    folder.mkdir(parents=True)
    (folder / f"{folder.name}.pdb").write_text(format_pdb(structure) + "END\n")
    frames = moving(structure)
    TrajectoryFile(folder / f"{folder.name}.xtc", structure, interval_ps).append(frames, 0)
    return structure, frames


def write_array(path):
    structure = without_hydrogens(peptide())
    place = {key: i for i, key in enumerate(zip(structure.residues, structure.names, strict=True))}
    frames = moving(structure)
    array = np.zeros((len(frames), len(SEQUENCE), 14, 3), dtype=np.float16)
    for residue, letter in enumerate(SEQUENCE):
        for slot, name in enumerate(SLOTS[letter].split()):
            array[:, residue, slot] = frames[:, place[residue, name]]
    np.save(path, array)
    return structure, frames


def write_timewarp(folder, name="AIKW", **arrays):
    structure = peptide()
    (folder / f"{name}-traj-state0.pdb").write_text(format_structure(structure))
    frames = moving(structure)
    written = {
        "positions": (frames / 10.0).astype(np.float32),
        "time": 5.0 * np.arange(1, 6),
        "energies": np.zeros((5, 2)),
    } | arrays
    path = folder / f"{name}-traj-arrays.npz"
    np.savez_compressed(path, **{key: value for key, value in written.items() if value is not None})
    return path, structure, frames


def assert_same(trajectory, structure, frames, atol):
    """Atoms of the network by their names and residues, wherever they are in the file."""
    order = build_system(structure).atoms
    ours = trajectory.structure
    assert [(ours.residues[atom], ours.names[atom]) for atom in trajectory.system.atoms] == [
        (structure.residues[atom], structure.names[atom]) for atom in order
    ]
    np.testing.assert_allclose(trajectory.positions, frames[:, order], atol=atol)


@pytest.mark.parametrize(
    ("pattern", "interval_ps"), [("{name}_R{run}.xtc", 100.0), ("{name}_prod_R{run}_fit.xtc", 10.0)]
)
def test_atlas(tmp_path, pattern, interval_ps):
    folder = tmp_path / "1abc_A_protein"
    structure, frames = write_atlas(folder, interval_ps=interval_ps, pattern=pattern)
    runs = read_atlas(folder)
    assert [(run.name, run.replica) for run in runs] == [("1abc_A", 1), ("1abc_A", 3)]
    for run in runs:
        assert (run.sequence, run.dt_ps, run.temperature_K) == (SEQUENCE, interval_ps, 300.0)
        assert_same(run, structure, frames + run.replica, 0.006)
    (first, _) = read_atlas(folder, every=2)
    assert first.dt_ps == 2.0 * interval_ps
    np.testing.assert_array_equal(first.positions, runs[0].positions[::2])


def test_atlas_refuses(tmp_path):
    with pytest.raises(ModelFileError, match=r"has 0 structures.*found: no \.pdb"):
        read_atlas(tmp_path)
    folder = tmp_path / "1abc_A"
    write_atlas(folder, pattern="{name}_R{run}0.xtc")
    with pytest.raises(ModelFileError, match=r"no run such as 1abc_A_prod_R1_fit\.xtc or"):
        read_atlas(folder)
    (folder / "1abc_A_R10.xtc").rename(folder / "1abc_A_R1.xtc")
    (folder / "1abc_A.pdb").write_text(format_structure(without_hydrogens(peptide())))
    with pytest.raises(InputError, match=r"have 78 atoms, the topology has 37; give the topology"):
        read_atlas(folder)
    with pytest.raises(ConfigError, match="every is 0"):
        read_atlas(folder, every=0)


def test_mdgen_folders(tmp_path):
    structure, frames = write_mdgen(tmp_path / SEQUENCE)
    read = read_mdgen(tmp_path / SEQUENCE)
    assert (read.name, read.dt_ps, read.temperature_K) == (SEQUENCE, 0.1, 350.0)
    assert_same(read, structure, frames, 0.006)
    # Heavy atoms alone: charges are those of pH 7.
    assert read.system.features.ref_charge.sum() == 1.0
    with pytest.raises(ModelFileError, match=r"would have AIKX\.xtc and AIKX\.pdb, and no \.npy"):
        read_mdgen(tmp_path / "AIKX")
    with pytest.raises(ConfigError, match=r"sequence AIKW is given, but .*; leave it out"):
        read_mdgen(tmp_path / SEQUENCE, sequence=SEQUENCE)


def test_mdgen_arrays(tmp_path):
    structure, frames = write_array(tmp_path / "AIKW_i100.npy")
    read = read_mdgen(tmp_path / "AIKW_i100.npy", interval_ps=10.0, every=2)
    assert (read.name, read.dt_ps, len(read), read.sequence) == ("AIKW_i100", 20.0, 3, SEQUENCE)
    names = [read.structure.names[atom] for atom in read.system.atoms]
    assert "OXT" not in names
    kept = np.array([i for i, name in enumerate(structure.names) if name != "OXT"])
    place = {(structure.residues[i], structure.names[i]): i for i in kept}
    order = [
        place[read.structure.residues[atom], read.structure.names[atom]]
        for atom in read.system.atoms
    ]
    # Half precision of coordinates of up to 10 Å.
    np.testing.assert_allclose(read.positions, frames[::2, order], atol=0.005)
    np.testing.assert_array_equal(with_arm_names(read.structure).names, read.structure.names)


def test_mdgen_arrays_refuse(tmp_path):
    path = tmp_path / "AIKW_i100.npy"
    write_array(path)
    with pytest.raises(InputError, match="does not tell the time between its frames"):
        read_mdgen(path)
    with pytest.raises(InputError, match=r"shape \(5, 4, 14, 3\), expected \(frames, 3, 14, 3\)"):
        read_mdgen(path, interval_ps=10.0, sequence="AIK")
    with pytest.raises(InputError, match="has 5 atoms of residue 1, which is LYS in"):
        read_mdgen(path, interval_ps=10.0, sequence="KIKW")
    with pytest.raises(InputError, match="has 14 atoms of residue 4, which is GLY in"):
        read_mdgen(path, interval_ps=10.0, sequence="AIKG")
    path.rename(tmp_path / "6cka_B_R1.npy")
    with pytest.raises(InputError, match="'6cka' is not a sequence of amino acids"):
        read_mdgen(tmp_path / "6cka_B_R1.npy", interval_ps=10.0)
    # Made of ATLAS, whose temperature is another one.
    of_atlas = read_mdgen(tmp_path / "6cka_B_R1.npy", interval_ps=10.0, sequence=SEQUENCE)
    assert (of_atlas.temperature_K, of_atlas.replica) == (300.0, 1)
    path.write_bytes(b"something else")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_mdgen(path, interval_ps=10.0)


def test_timewarp(tmp_path):
    path, structure, frames = write_timewarp(tmp_path)
    read = read_timewarp(path)
    assert (read.name, read.dt_ps, read.temperature_K) == ("AIKW", 5.0, 310.0)
    assert_same(read, structure, frames, 1e-5)
    every = read_timewarp(path, every=2)
    assert (every.dt_ps, len(every)) == (10.0, 3)
    path, _, _ = write_timewarp(tmp_path, time=None)
    assert read_timewarp(path, interval_ps=2.5).dt_ps == 2.5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"positions": None}, r"has the arrays \['energies', 'time'\], but Timewarp has positions"),
        ({"positions": np.zeros((5, 9, 3))}, r"shape \(5, 9, 3\), expected \(frames, 78, 3\)"),
        ({"time": np.arange(4.0)}, "has 4 times for 5 frames"),
        ({"time": np.array([0.0, 1.0, 3.0, 4.0, 5.0])}, "are 1 to 2 ps apart"),
        # As of two runs that were joined.
        ({"time": np.array([0.0, 1.0, 2.0, 0.0, 1.0])}, "are -2 to 1 ps apart"),
        ({"time": None}, "does not tell the time between its frames"),
    ],
)
def test_timewarp_refuses(tmp_path, arrays, message):
    path, _, _ = write_timewarp(tmp_path, **arrays)
    with pytest.raises((InputError, ModelFileError), match=message):
        read_timewarp(path)


def test_torn_molecules_and_large_files_are_refused(tmp_path, monkeypatch):
    path, _, frames = write_timewarp(tmp_path)
    torn = frames / 10.0
    torn[3, :20] += 3.0
    write_timewarp(tmp_path, positions=torn)
    with pytest.raises(InputError, match=r"frame 3 of .* make molecules whole"):
        read_timewarp(path)
    # In another order than the topology, or without any positions.
    for wrong in (frames[:, ::-1] / 10.0, np.zeros_like(frames)):
        write_timewarp(tmp_path, positions=wrong)
        with pytest.raises(InputError, match="the topology of this very trajectory"):
            read_timewarp(path)
    write_timewarp(tmp_path, positions=np.zeros((100, 78, 3), dtype=np.float32))
    write_array(tmp_path / "AIKW.npy")
    # Enough for the structure, but not for twice the positions.
    monkeypatch.setattr(files, "_memory", lambda: 100_000)
    with pytest.raises(ModelFileError, match=r"AIKW-traj-arrays\.npz take .* take fewer of them"):
        read_timewarp(path)
    monkeypatch.setattr(files, "_memory", lambda: 2000)
    with pytest.raises(ModelFileError, match=r"AIKW\.npy take"):
        read_mdgen(tmp_path / "AIKW.npy", interval_ps=1.0)


def test_late_times_in_single_precision_are_coarse(tmp_path):
    """100 ns in steps of 0.1 ps, which differ by a tenth there."""
    times = (20.0 + 0.1 * np.arange(1_000_000)).astype(np.float32).astype(np.float64)
    assert np.diff(times).max() > 1.05 * np.diff(times).min()
    assert frame_interval(tmp_path, times, None) == 0.1
    with pytest.raises(InputError, match=r"interval of 0\.2 ps is given"):
        frame_interval(tmp_path, times, 0.2)


def test_commands(tmp_path):
    write_atlas(tmp_path / "1abc_A")
    write_mdgen(tmp_path / SEQUENCE)
    path, _, _ = write_timewarp(tmp_path)
    out = ["--out", str(tmp_path / "out")]
    runner = CliRunner()
    for line in (
        ["atlas", str(tmp_path / "1abc_A"), str(tmp_path / "missing")],
        ["mdgen", str(tmp_path / SEQUENCE), "--every", "2"],
        ["timewarp", str(path)],
    ):
        done = runner.invoke(command, [*line, *out])
        assert done.exit_code == 0, done.output
    read = {(one.name, one.replica, one.temperature_K): one for one in read_trajectories(out[1])}
    assert set(read) == {
        ("1abc_A", 1, 300.0),
        ("1abc_A", 3, 300.0),
        (SEQUENCE, 0, 350.0),
        (SEQUENCE, 0, 310.0),
    }
    assert read[SEQUENCE, 0, 350.0].dt_ps == 0.2
    refused = runner.invoke(command, ["mdgen", "a.npy", "b.npy", "--sequence", "A", *out])
    assert "--sequence is for one array" in str(refused.exception)
