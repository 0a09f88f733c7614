"""Coordinates that contradict the names of a topology are refused, with what to do."""

import numpy as np
import pytest
from test_published_layouts import (
    moving,
    peptide,
    without_hydrogens,
    write_array,
    write_mdgen,
    write_timewarp,
)

from mlmd_calc.data.biomolecules.peptides import Peptide, build_peptide
from mlmd_calc.data.biomolecules.published import read_mdgen, read_timewarp
from mlmd_calc.data.biomolecules.trajectories import read_trajectories
from mlmd_calc.errors import InputError

MIRROR = np.array([-1.0, 1.0, 1.0])


@pytest.mark.parametrize("mirrored", [[0], [2, 4], [0, 1, 2, 3, 4]])
def test_mirrored_frames_of_timewarp_are_refused(tmp_path, mirrored):
    frames = moving(peptide()) / 10.0
    frames[mirrored] *= MIRROR
    path, _, _ = write_timewarp(tmp_path, positions=frames.astype(np.float32))
    message = f"frame {mirrored[0]} of .*other hand than .* in {len(mirrored)} of 5 frames.*Leave"
    with pytest.raises(InputError, match=message):
        read_timewarp(path)


def test_a_single_residue_of_the_other_hand_is_refused(tmp_path):
    structure = peptide()
    frames = moving(structure)
    alpha = structure.names.index("CA")
    arms = [structure.names.index(name) for name in ("CB", "HA")]
    side = [i for i, r in enumerate(structure.residues) if r == structure.residues[alpha]]
    # Alanine: the methyl group and the hydrogen change places.
    for frame in frames:
        ways = frame[arms] - frame[alpha]
        lengths = np.linalg.norm(ways, axis=1, keepdims=True)
        hydrogens = [i for i in side if structure.names[i].startswith("HB")]
        shift = ways[1] / lengths[1] * lengths[0] - ways[0]
        frame[[arms[0], *hydrogens]] += shift
        frame[arms[1]] = frame[alpha] + ways[0] / lengths[0] * lengths[1]
    path, _, _ = write_timewarp(tmp_path, positions=(frames / 10.0).astype(np.float32))
    with pytest.raises(InputError, match=r"CA of ALA 1.* has the other hand .* 5 of 5 frames"):
        read_timewarp(path)


def test_arrays_of_mirror_images_are_refused(tmp_path):
    path = tmp_path / "AIKW_i100.npy"
    write_array(path)
    np.save(path, np.load(path) * MIRROR.astype(np.float16))
    with pytest.raises(InputError, match=r"ALA 1.* mirror image at CA, but has the name of"):
        read_mdgen(path, interval_ps=10.0)


@pytest.mark.parametrize(
    ("name", "slot", "length", "letters", "message"),
    [
        # A cysteine that is called serine, and the reverse.
        ("SG", 5, 1.81, "ASKW", "bond CB-OG of SER 2.* 1.8. Å .* 1.42 Å are usual between C and O"),
        ("OG", 5, 1.42, "ACKW", "bond CB-SG of CYS 2.* 1.4. Å .* 1.81 Å are usual between C and S"),
    ],
)
def test_residues_under_another_name_are_refused(tmp_path, name, slot, length, letters, message):
    path = tmp_path / f"{letters}_i100.npy"
    write_array(path)
    array = np.load(path).astype(np.float64)
    alpha, beta = array[:, 1, 1], array[:, 1, 4]
    along = array[:, 1, 5] - beta
    array[:, 1, 6:] = 0.0
    array[:, 1, slot] = beta + length * along / np.linalg.norm(along, axis=-1, keepdims=True)
    assert np.linalg.norm(array[:, 1, slot] - alpha, axis=-1).min() > 2.0
    np.save(path, array.astype(np.float16))
    with pytest.raises(InputError, match=message):
        read_mdgen(path, interval_ps=10.0)
    # Under its own name it is read.
    right = {"ASKW": "ACKW", "ACKW": "ASKW"}[letters]
    assert read_mdgen(path, interval_ps=10.0, sequence=right).sequence == right


@pytest.mark.parametrize(
    ("letter", "others"), [("D", "NL"), ("N", "DL"), ("E", "Q"), ("Q", "E"), ("T", "V"), ("V", "T")]
)
def test_residues_whose_atoms_are_joined_alike_are_told_apart(tmp_path, letter, others):
    """Without hydrogens they differ by the length of a bond, or by the hand of threonine."""
    structure = build_peptide(Peptide(f"A{letter}A", is_capped=False), 0)
    heavy = without_hydrogens(structure)
    array = np.zeros((50, 3, 14, 3), dtype=np.float16)
    for residue in range(3):
        # OXT is the last, where there is one.
        own = [i for i in np.flatnonzero(heavy.residues == residue) if heavy.names[i] != "OXT"]
        array[:, residue, : len(own)] = moving(heavy, 50)[:, own]
    path = tmp_path / f"A{letter}A.npy"
    np.save(path, array)
    assert read_mdgen(path, interval_ps=10.0).sequence == f"A{letter}A"
    for other in others:
        with pytest.raises(InputError, match=r"another one than it is called|is a mirror image"):
            read_mdgen(path, interval_ps=10.0, sequence=f"A{other}A")


def test_frames_of_other_programs_may_have_some_faults_that_models_make(tmp_path):
    formats = pytest.importorskip("mdtraj.formats")
    structure, _ = write_mdgen(tmp_path / "AIKW")
    topology = tmp_path / "AIKW" / "AIKW.pdb"
    for mirrored, accepted in ((4, True), (5, False)):
        frames = moving(structure)
        frames[:mirrored] *= MIRROR
        with formats.DCDTrajectoryFile(str(tmp_path / "x.dcd"), "w", force_overwrite=True) as file:
            file.write(frames.astype(np.float32))
        if accepted:
            (read,) = read_trajectories(tmp_path / "x.dcd", topology=topology, interval_ps=1.0)
            assert len(read) == 5
            continue
        with pytest.raises(InputError, match="5 of 5 frames"):
            read_trajectories(tmp_path / "x.dcd", topology=topology, interval_ps=1.0)
