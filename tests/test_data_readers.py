"""Reading every kind of data file, and refusing what would be read wrongly."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from typer.testing import CliRunner

from mlmd_calc import units
from mlmd_calc.cli import app
from mlmd_calc.cli.structure_input import load_structure
from mlmd_calc.data import MoleculeFrames, read_dataset, write_labels, write_trajectory
from mlmd_calc.data.trajectories import Trajectory
from mlmd_calc.errors import ConfigError, InputError, MLMDError, ModelFileError
from mlmd_calc.io.restart import write_restart
from mlmd_calc.training.mdet.batches import labels

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture
def water() -> MoleculeFrames:
    rng = np.random.default_rng(1)
    atoms = molecule("H2O")
    return MoleculeFrames(
        name="water",
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions + 0.1 * rng.normal(size=(6, 3, 3)),
        forces=rng.normal(size=(6, 3, 3)),
        energies=rng.normal(size=6),
        velocities=rng.normal(size=(6, 3, 3)),
        dt_fs=2.0,
        segment=np.array([0, 0, 0, 1, 1, 1]),
        metadata={"smiles": "O", "provenance": "a test"},
    )


def labelled(atoms: Atoms, energy: float, **info: object) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(
        atoms, energy=energy, forces=np.full((len(atoms), 3), energy)
    )
    atoms.info.update(info)
    return atoms


# our own layouts


def test_frames_shown_by_a_notebook_are_a_line(water):
    bare = replace(water, forces=None, energies=None, velocities=None)
    shown = "<MoleculeFrames water: 6 frames of H2O"
    assert [repr(bare), repr(water)] == [f"{shown}>", f"{shown} with energies, forces, velocities>"]


def test_labels_survive_writing_and_reading(tmp_path, water):
    kind = np.array([0, 1, 2, 1, 2, 2])
    write_labels(tmp_path / "water.npz", water, temperatures=np.full(6, 300), kind=kind)
    (read,) = read_dataset(tmp_path / "water.npz")
    assert read.name == "water"
    assert read.numbers.tolist() == water.numbers.tolist()
    assert (read.charge, read.multiplicity) == (0, 1)
    np.testing.assert_allclose(read.positions, water.positions, rtol=1e-6)
    np.testing.assert_allclose(read.forces, water.forces, rtol=1e-6)
    np.testing.assert_array_equal(read.energies, water.energies)
    np.testing.assert_array_equal(read.segment, water.segment)
    assert read.velocities is None
    assert read.metadata == {**water.metadata, "source": "water.npz"}
    with np.load(tmp_path / "water.npz") as file:
        assert file["kind"].tolist() == kind.tolist()
        assert file["T"].tolist() == [300] * 6


def test_trajectory_survives_writing_and_reading(tmp_path, water):
    write_trajectory(tmp_path / "water.npz", water)
    (read,) = read_dataset(tmp_path / "water.npz")
    np.testing.assert_allclose(read.velocities, water.velocities, rtol=1e-6)
    np.testing.assert_array_equal(read.segment, water.segment)
    assert read.dt_fs == water.dt_fs
    np.testing.assert_allclose(read.forces, water.forces, rtol=1e-6)


def test_writing_leaves_nothing_behind_when_it_fails(tmp_path, water, monkeypatch):
    write_labels(tmp_path / "water.npz", water)
    before = (tmp_path / "water.npz").read_bytes()

    def half_written(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", half_written)
    with pytest.raises(OSError, match="disk full"):
        write_labels(tmp_path / "water.npz", water)
    assert [path.name for path in tmp_path.iterdir()] == ["water.npz"]
    assert (tmp_path / "water.npz").read_bytes() == before


def test_writers_refuse_incomplete_frames(tmp_path, water):
    bare = MoleculeFrames("water", water.numbers, water.positions)
    with pytest.raises(InputError, match="no forces"):
        write_labels(tmp_path / "water.npz", bare)
    with pytest.raises(InputError, match="velocities"):
        write_trajectory(tmp_path / "water.npz", bare)
    with pytest.raises(InputError, match=r"\.npz"):
        write_labels(tmp_path / "water.dat", water)
    with pytest.raises(InputError, match=r"kind has shape \(2,\)"):
        write_labels(tmp_path / "water.npz", water, kind=np.array([0, 1]))
    assert not list(tmp_path.iterdir())


def test_runs_are_told_apart_by_temperature_where_segments_are_missing(tmp_path, water):
    temperatures = np.array([0, 300, 300, 0, 300, 500], dtype=np.int16)
    np.savez(
        tmp_path / "water.npz",
        numbers=water.numbers,
        R=water.positions,
        F=water.forces,
        E=water.energies,
        T=temperatures,
    )
    (read,) = read_dataset(tmp_path / "water.npz")
    assert read.segment.tolist() == [0, 1, 1, 2, 3, 4]


# foreign npz


@pytest.mark.parametrize(
    ("keys", "energy_shape"),
    [
        (("nuclear_charges", "coords", "energies", "forces"), (6,)),
        (("z", "R", "E", "F"), (6, 1)),
    ],
)
def test_md17_layouts_are_converted_from_kcal(tmp_path, water, keys, energy_shape):
    numbers, positions, energies, forces = keys
    # As totals of all electrons they tell their unit.
    water = replace(water, energies=water.energies - 76.4 * units.HARTREE)
    np.savez(
        tmp_path / "md17_water.npz",
        **{
            numbers: water.numbers,
            positions: water.positions,
            energies: (water.energies / units.KCAL_PER_MOL).reshape(energy_shape),
            forces: water.forces / units.KCAL_PER_MOL,
        },
    )
    (read,) = read_dataset(tmp_path / "md17_water.npz")
    np.testing.assert_allclose(read.positions, water.positions, rtol=1e-12)
    np.testing.assert_allclose(read.energies, water.energies, rtol=1e-12)
    np.testing.assert_allclose(read.forces, water.forces, rtol=1e-12)
    assert read.dt_fs is None


def test_md17_that_tells_no_unit_must_state_it(tmp_path, water):
    """Energies that are no totals, and too few frames to see how stiff bonds are."""
    arrays = {"z": water.numbers, "R": water.positions, "E": water.energies, "F": water.forces}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=r"states no units.*e_unit='kcal/mol' and r_unit='Ang'"):
        read_dataset(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", **arrays, e_unit="kcal/mol")
    (read,) = read_dataset(tmp_path / "x.npz")
    assert "read_in" not in read.metadata


@pytest.mark.parametrize("unit", ["Hartree", b"Hartree"])
@pytest.mark.parametrize(("r_unit", "length"), [("Ang", 1.0), ("bohr", units.BOHR)])
def test_md17_in_stated_units_is_converted(tmp_path, water, unit, r_unit, length):
    """As sGDML writes it."""
    np.savez(
        tmp_path / "x.npz",
        z=water.numbers,
        R=water.positions / length,
        E=water.energies / units.HARTREE,
        F=water.forces * length / units.HARTREE,
        e_unit=np.array(unit),
        r_unit=r_unit,
    )
    (read,) = read_dataset(tmp_path / "x.npz")
    np.testing.assert_allclose(read.positions, water.positions, rtol=1e-12)
    np.testing.assert_allclose(read.energies, water.energies, rtol=1e-12)
    np.testing.assert_allclose(read.forces, water.forces, rtol=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("z", np.tile([8, 1, 1], (6, 1)), r"atomic numbers have shape \(6, 3\)"),
        ("z", np.array(["O", "H", "H"]), "atomic numbers .* are not whole numbers"),
        ("F", np.zeros((6, 3, 3), complex), "forces are of type complex128"),
        ("R", np.zeros((6, 3, 3), "U3"), "positions are of type <U3"),
        ("Q", np.full(6, -2), "Q=-2 looks like a charge"),
        ("charge", np.array([0, 0, 0, 0, 0, 2]), "charge differs from frame to frame"),
        ("units", "Hartree/Bohr", "units is 'Hartree/Bohr', but force is read in kcal/mol/Å"),
        ("charge", np.array({"total": 1}, object), "charge holds objects of Python"),
        ("lattice", 20.0 * np.eye(3), "its labels are those of a periodic lattice"),
    ],
)
def test_arrays_of_other_kinds_beside_md17_are_refused(tmp_path, water, key, value, message):
    arrays = {"z": water.numbers, "R": water.positions, "E": water.energies, "F": water.forces}
    np.savez(tmp_path / "x.npz", **{**arrays, key: value})
    with pytest.raises(MLMDError, match=message):
        read_dataset(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "extra",
    [
        {"r_unit": "Angstrom", "e_unit": "kcal mol-1", "f_unit": "kcal/(mol*A)"},
        {"units": "real"},
        {"charge": np.zeros(6, int), "multiplicity": np.ones((6, 1)), "e_unit": "kcal/mol"},
        {"Q": np.zeros(6), "partial_charges": np.full((6, 3), 0.3), "e_unit": "kcal/mol"},
    ],
)
def test_arrays_beside_md17_that_agree_are_fine(tmp_path, water, extra):
    arrays = {
        "z": water.numbers,
        "R": water.positions,
        "E": water.energies / units.KCAL_PER_MOL,
        "F": water.forces / units.KCAL_PER_MOL,
    }
    np.savez(tmp_path / "x.npz", **arrays, **extra)
    (read,) = read_dataset(tmp_path / "x.npz")
    assert read.state == (0, 1)
    np.testing.assert_allclose(read.energies, water.energies, rtol=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("E", np.zeros(6, np.float16), "energies are in half precision"),
        ("E", np.zeros(6, bool), "energies are of type bool"),
        ("F", np.zeros((6, 3, 3), "U3"), "forces are of type <U3"),
        ("segment", np.full(6, np.nan), "segment .* are not whole numbers"),
        ("metadata", "no JSON", "metadata is 'no JSON', which is not a JSON object"),
        ("r_unit", b"Bohr", "r_unit is 'Bohr', but length is read in Å"),
    ],
)
def test_arrays_of_other_kinds_in_our_labels_are_refused(tmp_path, water, key, value, message):
    arrays = {
        "numbers": water.numbers,
        "R": water.positions,
        "E": water.energies,
        "F": water.forces,
    }
    np.savez(tmp_path / "x.npz", **{**arrays, key: value})
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "x.npz")


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan, np.inf])
def test_times_between_frames_that_are_none_are_refused(water, spacing):
    with pytest.raises(InputError, match=r"time between frames is .* fs; it must be above 0"):
        replace(water, dt_fs=spacing)


def test_real_rmd17_excerpt(tmp_path):
    path = shared("real/rmd17_benzene_10frames.npz")
    # The excerpt was cut to ten along the first axis of every array, the atoms included.
    with pytest.raises(InputError, match=r"\(10, 12, 3\), expected \(frames, 10, 3\)"):
        read_dataset(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["nuclear_charges"] = np.array([6] * 6 + [1] * 6)
    np.savez(tmp_path / "benzene.npz", **arrays)
    (benzene,) = read_dataset(tmp_path / "benzene.npz")
    assert len(benzene) == 10
    np.testing.assert_allclose(benzene.forces / units.KCAL_PER_MOL, arrays["forces"], rtol=1e-12)
    # The PBE energy of benzene is about -232 Hartree.
    np.testing.assert_allclose(benzene.energies / units.HARTREE, -232, atol=1)


def test_unknown_layout_names_the_keys(tmp_path):
    np.savez(tmp_path / "x.npz", frames=np.zeros(3), species=np.zeros(3))
    with pytest.raises(ModelFileError, match=r"\['frames', 'species'\]"):
        read_dataset(tmp_path / "x.npz")


def test_the_folder_of_a_run_is_no_data(tmp_path):
    write_restart(tmp_path / "checkpoint.npz", {})
    with pytest.raises(
        ModelFileError, match=r"checkpoint\.npz is a checkpoint.*name the trajectory"
    ):
        read_dataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no zip at all", b"\x93NUMPY"])
def test_damaged_npz_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"x\.npz"):
        read_dataset(tmp_path / "x.npz")


def test_pickled_arrays_are_not_loaded(tmp_path, water):
    np.savez(
        tmp_path / "x.npz",
        numbers=np.array([{"evil": 1}], dtype=object),
        R=water.positions,
        F=water.forces,
        E=water.energies,
    )
    with pytest.raises(ModelFileError, match=r"allow_pickle|[Oo]bject"):
        read_dataset(tmp_path / "x.npz")


# extxyz and ASE databases


def test_units_in_comments_must_be_ours(tmp_path):
    atoms = labelled(molecule("H2O"), 1.0, units="eV, Angstrom", time_unit="fs")
    ase.io.write(tmp_path / "x.extxyz", atoms)
    assert len(read_dataset(tmp_path / "x.extxyz")[0]) == 1
    atoms.info["energy_unit"] = "Hartree"
    ase.io.write(tmp_path / "x.extxyz", atoms)
    with pytest.raises(InputError, match="frame 0: energy_unit is 'Hartree', but energy is read"):
        read_dataset(tmp_path / "x.extxyz")


def test_databases_of_schnetpack_state_their_units(tmp_path):
    atoms = molecule("H2O")
    stated = {"energy": "eV", "forces": "eV/Ang", "dipole_moment": "Debye"}
    with ase.db.connect(tmp_path / "x.db") as database:
        database.write(atoms, data={"energy": np.array([-2081.0]), "forces": np.ones((3, 3))})
        database.metadata = {"_property_unit_dict": stated, "_distance_unit": "Ang"}
    with pytest.warns(UserWarning, match=r"energy \(--energy-key\) and forces \(--forces-key\)"):
        read_dataset(tmp_path / "x.db")
    (read,) = read_dataset(tmp_path / "x.db", energy_key="energy", forces_key="forces")
    assert read.energies.tolist() == [-2081.0]
    for changed in ({"_distance_unit": "Bohr"}, {"_property_unit_dict": {"forces": "kcal/mol/A"}}):
        with ase.db.connect(tmp_path / "x.db") as database:
            database.metadata = changed
        with pytest.raises(InputError, match=r"but (length|force) is read in"):
            read_dataset(tmp_path / "x.db", energy_key="energy", forces_key="forces")


def test_folders_in_a_folder_are_named(tmp_path):
    (tmp_path / "set.000").mkdir()
    with pytest.raises(InputError, match=r"not looked into, name them: set\.000"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("suffix", [".extxyz", ".xyz"])
def test_frames_behind_blank_lines_are_not_left_out_in_silence(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    frame = "2\n\nH 0 0 0\nH 0 0 0.74\n"
    path.write_text(frame + "\n" + frame)
    with pytest.raises(ModelFileError, match="a blank line behind 1 of its frames"):
        read_dataset(path)
    with pytest.raises(ModelFileError, match="a blank line behind 1 of its frames"):
        load_structure(str(path))
    path.write_text(frame + frame + "\n \n")
    assert len(read_dataset(path)[0]) == 2


def write_mixed(path: Path) -> None:
    """Two molecules, one of them in two charge states, in mixed order."""
    water, hydroxyl = molecule("H2O"), molecule("OH")
    hydroxide = hydroxyl.copy()
    hydroxide.set_initial_magnetic_moments(None)
    frames = [
        labelled(water, 1.0),
        labelled(hydroxyl, 2.0, multiplicity=2),
        labelled(water, 3.0),
        labelled(hydroxide, 4.0, charge=-1, multiplicity=1, name="hydroxide"),
    ]
    if path.suffix == ".db":
        with ase.db.connect(path) as database:
            for atoms in frames:
                database.write(atoms, **atoms.info)
    else:
        ase.io.write(path, frames, format="extxyz")


@pytest.mark.parametrize("name", ["mixed.extxyz", "mixed.xyz", "mixed.db"])
def test_molecules_of_one_file_are_grouped(tmp_path, name):
    write_mixed(tmp_path / name)
    read = {frames.name: frames for frames in read_dataset(tmp_path / name)}
    assert list(read) == ["mixed_H2O", "mixed_HO", "hydroxide"]
    water, hydroxyl, hydroxide = read.values()
    assert water.energies.tolist() == [1.0, 3.0]
    np.testing.assert_array_equal(water.forces[1], np.full((3, 3), 3.0))
    np.testing.assert_allclose(water.positions[0], molecule("H2O").positions, atol=1e-7)
    assert (hydroxyl.charge, hydroxyl.multiplicity) == (0, 2)
    assert (hydroxide.charge, hydroxide.multiplicity) == (-1, 1)


def test_isomers_without_names_share_one_name(tmp_path):
    frames = [molecule("CH3CH2OH"), molecule("CH3OCH3")]
    ase.io.write(tmp_path / "isomers.extxyz", frames, format="extxyz")
    read = read_dataset(tmp_path / "isomers.extxyz")
    assert len(read) == 2
    assert read[0].name == read[1].name


def test_momenta_are_read_in_angstrom_per_fs(tmp_path):
    atoms = molecule("H2O")
    per_fs = np.random.default_rng(0).normal(size=(3, 3))
    atoms.set_velocities(per_fs / units.FS)
    ase.io.write(tmp_path / "x.extxyz", [atoms], format="extxyz")
    (read,) = read_dataset(tmp_path / "x.extxyz")
    np.testing.assert_allclose(read.velocities[0], per_fs, atol=1e-6)


def test_columns_of_masses_and_momenta_have_numbers(tmp_path):
    head = "2\nProperties=species:S:1:pos:R:3"
    for columns, values, said in (
        ("masses:S:1:momenta:R:3", "x 0 0 0", "'masses' begins with 'x'; each atom needs one"),
        ("momenta:R:1", "0.5", r"'momenta' begins with 0\.5; each atom needs three numbers"),
    ):
        atoms = f"H 0 0 0 {values}\nH 0 0 0.74 {values}\n"
        (tmp_path / "x.extxyz").write_text(f"{head}:{columns}\n{atoms}")
        with pytest.raises(InputError, match=rf"frame 0: the column {said}"):
            read_dataset(tmp_path / "x.extxyz")


@pytest.mark.filterwarnings("ignore:.*left out are total_energy")
def test_real_velocities_need_a_unit():
    # Both files have displacements over 1 fs; they agree with the velocities in one unit each.
    for name, unit in (
        ("real/aspirin_energy.extxyz", "angstrom/fs"),
        ("real/benzene_validation_traj.extxyz", "ase"),
    ):
        path = shared(name)
        with pytest.warns(UserWarning, match="velocity_unit"):
            (without,) = read_dataset(path)
        assert without.velocities is None
        (read,) = read_dataset(path, velocity_unit=unit)
        displaced = np.diff(read.positions, axis=0)
        midpoint = (read.velocities[1:] + read.velocities[:-1]) / 2
        assert np.abs(displaced - midpoint).max() < 0.1 * np.abs(displaced).max()


def test_real_md22_excerpt():
    (read,) = read_dataset(shared("real/md22_Ac-Ala3-NHMe_disp_100frames.extxyz"))
    assert read.positions.shape == (98, 42, 3)
    assert read.energies is None
    assert read.forces is None


def test_molecule_across_the_cell_boundary_is_refused(tmp_path):
    atoms = molecule("H2O", vacuum=5.0, pbc=True)
    ase.io.write(tmp_path / "whole.extxyz", [atoms], format="extxyz")
    assert len(read_dataset(tmp_path / "whole.extxyz")) == 1
    atoms.positions -= atoms.positions[0]
    atoms.wrap()
    ase.io.write(tmp_path / "cut.extxyz", [atoms], format="extxyz")
    with pytest.raises(InputError, match="unwrap"):
        read_dataset(tmp_path / "cut.extxyz")


def test_frames_without_labels_among_labelled_ones_are_refused(tmp_path):
    ase.io.write(
        tmp_path / "x.extxyz", [labelled(molecule("H2O"), 1.0), molecule("H2O")], format="extxyz"
    )
    with pytest.raises(InputError, match="1 of 2 frames"):
        read_dataset(tmp_path / "x.extxyz")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"charge": 1}, "cannot have multiplicity=1"),
        ({"multiplicity": 4}, "cannot have multiplicity=4"),
        ({"charge": 0.5}, r"charge.*0\.5.* is not an integer"),
        ({"charge": True}, "charge.*True.* is not an integer"),
        ({"charge": "plus"}, "charge.*'plus' is not an integer"),
    ],
)
def test_impossible_charge_or_multiplicity_is_refused(tmp_path, info, message):
    ase.io.write(tmp_path / "x.extxyz", [labelled(molecule("H2O"), 1.0, **info)], format="extxyz")
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "x.extxyz")


def test_charges_of_atoms_must_agree_with_the_charge(tmp_path):
    atoms = ase.Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], charges=[-1.0, 0.0])
    ase.io.write(tmp_path / "x.extxyz", [labelled(atoms, 1.0)], format="extxyz")
    (hydroxide,) = read_dataset(tmp_path / "x.extxyz")
    assert (hydroxide.charge, hydroxide.multiplicity) == (-1, 1)
    atoms.info["charge"] = 1
    ase.io.write(tmp_path / "x.extxyz", [labelled(atoms, 1.0)], format="extxyz")
    with pytest.raises(InputError, match="initial charges=-1 disagree"):
        read_dataset(tmp_path / "x.extxyz")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"spin": 2}, "multiplicity=2"),
        ({"total_charge": 1}, "charge=1 leaves 9"),
        ({"charge": 0.5}, "0.5 is not an integer"),
        ({"net_spin": 1}, "net_spin=1 looks like"),
    ],
)
def test_charge_and_spin_of_npz_files_follow_the_same_rule(tmp_path, water, extra, message):
    arrays = {"numbers": water.numbers, "R": water.positions, "F": water.forces}
    path = tmp_path / "x.npz"
    np.savez(path, **arrays, E=water.energies, total_charge=[1], total_spin=2.0)
    (read,) = read_dataset(path)
    assert (read.charge, read.multiplicity) == (1, 2)
    np.savez(path, **arrays, E=water.energies, **extra)
    with pytest.raises(InputError, match=message):
        read_dataset(path)


def test_all_kinds_of_ase_files_are_read_alike(tmp_path):
    frames = [labelled(molecule("H2O"), value) for value in (1.0, 2.0)]
    ase.io.write(tmp_path / "x.traj", frames)
    ase.io.write(tmp_path / "x.XYZ", frames, format="extxyz")
    packed = gzip.compress((tmp_path / "x.XYZ").read_bytes())
    (tmp_path / "x.extxyz.gz").write_bytes(packed)
    with ase.db.connect(tmp_path / "x.json") as database:
        for atoms in frames:
            database.write(atoms)
    for name in ("x.traj", "x.XYZ", "x.extxyz.gz", "x.json"):
        (read,) = read_dataset(tmp_path / name)
        assert read.name == "x"
        assert read.energies.tolist() == [1.0, 2.0]
        np.testing.assert_array_equal(read.forces[1], np.full((3, 3), 2.0))
    # Other JSON files may lie about in a directory.
    assert len(read_dataset(tmp_path)) == 3


def write_renamed(path: Path) -> None:
    frames = []
    for value in (1.0, 2.0):
        atoms = molecule("H2O")
        atoms.info.update(REF_energy=value, dft_energy=-value)
        atoms.set_array("REF_forces", np.full((3, 3), value))
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def test_labels_under_other_names_are_named_and_can_be_chosen(tmp_path):
    path = tmp_path / "x.extxyz"
    write_renamed(path)
    with pytest.warns(UserWarning, match=r"REF_energy, dft_energy \(--energy-key\) and REF_forces"):
        (bare,) = read_dataset(path)
    with pytest.raises(InputError, match="no energies; its file has REF_energy"):
        labels(bare, "energies")
    (read,) = read_dataset(path, energy_key="dft_energy", forces_key="REF_forces")
    assert read.energies.tolist() == [-1.0, -2.0]
    np.testing.assert_array_equal(read.forces[1], np.full((3, 3), 2.0))
    with pytest.raises(InputError, match="no 'energy_xtb'; energy may be REF_energy, dft_energy"):
        read_dataset(path, energy_key="energy_xtb", forces_key="REF_forces")
    options = ["--energy-key", "dft_energy", "--forces-key", "REF_forces", "--json"]
    shown = CliRunner().invoke(app, ["data", "info", str(path), *options])
    (row,) = json.loads(shown.stdout)
    assert row["force_rms_eV_per_A"] == pytest.approx(np.sqrt(2.5))
    assert row["energies"] is True
    with pytest.warns(UserWarning, match="left out are"):
        shown = CliRunner().invoke(app, ["data", "info", str(path)])
    assert shown.stdout.count("none") == 2
    assert "1 entry, 2 frames" in shown.stdout


@pytest.mark.parametrize(("key", "kind"), [("REF_energy", "energy"), ("dft_forces", "forces")])
def test_labels_of_two_methods_are_not_chosen_between(tmp_path, key, kind):
    atoms = labelled(molecule("H2O"), 1.0)
    same = {"REF_energy": np.float64(1.0), "dft_forces": atoms.get_forces()}[key]
    for other, refused in ((same, False), (same + 0.5, True)):
        (atoms.arrays if kind == "forces" else atoms.info)[key] = other
        ase.io.write(tmp_path / "x.extxyz", [atoms], format="extxyz")
        if refused:
            with pytest.raises(InputError, match=f"has {kind} and {key}, which differ"):
                read_dataset(tmp_path / "x.extxyz")
        for chosen in (key, kind):
            (read,) = read_dataset(tmp_path / "x.extxyz", **{f"{kind}_key": chosen})
            found = read.energies[0] if kind == "energy" else read.forces[0]
            expected = other if chosen == key else same
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradients_are_named(tmp_path):
    """What quantum chemistry programs write; the check of signs refuses them as forces."""
    atoms = molecule("H2O")
    atoms.set_array("gradient", np.ones((3, 3)))
    ase.io.write(tmp_path / "x.extxyz", [atoms], format="extxyz")
    with pytest.warns(UserWarning, match=r"left out are gradient \(--forces-key\)"):
        read_dataset(tmp_path / "x.extxyz")


def test_lists_of_numbers_in_comments_are_not_passed_over(tmp_path):
    """As in the first files of MD17: frames without labels would be left."""
    atoms = molecule("H2O")
    forces = np.random.default_rng(0).normal(size=(3, 3)).tolist()
    lines = ["3", f"-47907.1;{forces}"]
    lines += [f"{atom.symbol} {atom.x} {atom.y} {atom.z}" for atom in atoms]
    (tmp_path / "water.xyz").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"numbers in the comment, '-47907.*MD17, take the npz"):
        read_dataset(tmp_path / "water.xyz")


@pytest.mark.parametrize("comment", ["energy=-5", "Properties=species:S:1:pos:R:3 energy=-5"])
def test_columns_without_names_are_not_passed_over(tmp_path, comment):
    path = tmp_path / "x.xyz"
    path.write_text(f"2\n{comment}\nH 0 0 0 0.1 0 0\nH 0 0 0.74 -0.1 0 0\n")
    with pytest.raises(
        ModelFileError, match=r"has 7 columns, of which only the first 4 have names"
    ):
        read_dataset(path)


def test_single_atoms_are_kept_apart(tmp_path):
    atoms = labelled(ase.Atoms("H"), -10.0, config_type="IsolatedAtom")
    ase.io.write(tmp_path / "x.extxyz", [atoms, labelled(molecule("H2O"), 1.0)], format="extxyz")
    with pytest.warns(UserWarning, match=r"1 frames of single atoms \(H\) are left out"):
        (read,) = read_dataset(tmp_path / "x.extxyz")
    assert read.energies.tolist() == [1.0]
    ase.io.write(tmp_path / "x.extxyz", [atoms], format="extxyz")
    with pytest.raises(InputError, match="nothing but single atoms"):
        read_dataset(tmp_path / "x.extxyz")


def write_times(path: Path, times: list[float], key: str) -> None:
    frames = []
    for time in times:
        atoms = molecule("H2O")
        atoms.info[key] = time
        atoms.set_velocities(np.ones((3, 3)))
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


@pytest.mark.parametrize(("key", "unit"), [("time_fs", 1.0), ("time_ps", 1e-3), ("time", 1.0)])
def test_trajectories_with_times_can_train_propagators(tmp_path, key, unit):
    path = tmp_path / "x.extxyz"
    # A frame is missing before 10 fs, and another run begins.
    write_times(path, [unit * time for time in (0.0, 2.0, 4.0, 10.0, 12.0, 0.0, 2.0)], key)
    (read,) = read_dataset(path)
    assert read.dt_fs == pytest.approx(2.0)
    assert Trajectory.of(read).starts(1).tolist() == [0, 1, 3, 5]


def test_the_spacing_of_frames_without_times_can_be_given(tmp_path):
    path = tmp_path / "x.extxyz"
    write_times(path, [0.0, 1.0], "note")
    (bare,) = read_dataset(path)
    with pytest.raises(InputError, match="--frame-spacing"):
        Trajectory.of(bare)
    (read,) = read_dataset(path, frame_spacing_fs=0.5)
    assert (read.dt_fs, Trajectory.of(read).starts(1).tolist()) == (0.5, [0])
    with pytest.raises(ConfigError, match="above 0"):
        read_dataset(path, frame_spacing_fs=0.0)


# paths and contents


def test_directory_and_list_of_paths(tmp_path, water):
    folder = tmp_path / "data"
    folder.mkdir()
    write_labels(folder / "b.npz", water)
    write_labels(folder / "a.npz", water)
    (folder / "README.md").write_text("passed over")
    (folder / ".a.npz").write_bytes(b"hidden")
    assert [frames.name for frames in read_dataset(folder)] == ["a", "b"]
    assert [frames.name for frames in read_dataset([folder / "b.npz", folder])] == ["b", "a", "b"]


def test_missing_or_unsuitable_paths_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("1")
    with pytest.raises(ModelFileError, match="does not exist"):
        read_dataset(tmp_path / "absent.npz")
    with pytest.raises(ModelFileError, match=r"ends in '\.csv'"):
        read_dataset(tmp_path / "x.csv")
    with pytest.raises(InputError, match="holds no file"):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="empty"):
        read_dataset([])
    with pytest.raises(ConfigError, match="'m/s'"):
        read_dataset(tmp_path / "x.xyz", velocity_unit="m/s")


@pytest.mark.parametrize("name", ["x.extxyz", "x.db"])
def test_garbage_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00 neither xyz nor a database")
    with pytest.raises(ModelFileError, match=name):
        read_dataset(tmp_path / name)


def test_non_finite_labels_are_refused(tmp_path, water):
    water.forces[4, 1, 0] = np.nan
    write_labels(tmp_path / "water.npz", water)
    with pytest.raises(InputError, match="forces of frame 4"):
        read_dataset(tmp_path / "water.npz")


def test_padding_atoms_are_refused(tmp_path, water):
    arrays = {"R": water.positions, "F": water.forces, "E": water.energies}
    np.savez(tmp_path / "x.npz", numbers=np.array([8, 1, 0]), **arrays)
    with pytest.raises(InputError, match=r"\[0, 1, 8\]"):
        read_dataset(tmp_path / "x.npz")


def test_starting_data_are_readable():
    frames = read_dataset(shared("train/labels/nitric_oxide.npz"))[0]
    assert (frames.charge, frames.multiplicity) == (0, 2)
    assert frames.metadata["smiles"] == "[N]=O"
    trajectory = read_dataset(shared("train/traj/water.npz"))[0]
    # Central differences over 4 fs see little of the fast O-H vibration, but have its scale.
    inner = slice(1, 500)
    differences = (trajectory.positions[2:501] - trajectory.positions[:499]) / 4
    np.testing.assert_allclose(trajectory.velocities[inner], differences, atol=0.01)


def test_velocities_of_made_up_masses_are_left_out(tmp_path):
    frames = []
    for step in range(3):
        atoms = labelled(molecule("H2O"), 1.0, time_fs=2.0 * step)
        atoms.set_masses([16.0, 3.0, 3.0])
        atoms.set_velocities(np.full((3, 3), 0.01))
        frames.append(atoms)
    ase.io.write(tmp_path / "x.extxyz", frames)
    with pytest.warns(UserWarning, match="masses are not the natural ones"):
        (water,) = read_dataset(tmp_path / "x.extxyz")
    assert water.velocities is None
    assert water.forces is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "\ufeff" + text, "byte-order mark"),
        (lambda text: text.replace("energy=", "time=late energy="), "time='late' is not a number"),
        (lambda text: text.replace("energy=", "time_fs=inf energy="), r"time_fs has \[inf.* one"),
        (lambda text: text.replace("energy=", 'time="1 2" energy='), "time has .*; give one time"),
        (lambda text: text.replace("energy=", "Q=1 energy="), "Q=.*1.* looks like a charge"),
    ],
)
def test_texts_that_say_something_else(tmp_path, change, message):
    ase.io.write(tmp_path / "x.extxyz", [labelled(molecule("H2O"), 1.0)])
    text = (tmp_path / "x.extxyz").read_text()
    (tmp_path / "x.extxyz").write_text(change(text), encoding="utf-8")
    with pytest.raises((InputError, ModelFileError), match=message):
        read_dataset(tmp_path / "x.extxyz")


def test_energies_that_are_words_and_names_that_are_numbers(tmp_path):
    ase.io.write(tmp_path / "x.extxyz", [labelled(molecule("H2O"), 1.0)])
    text = (tmp_path / "x.extxyz").read_text()
    (tmp_path / "x.extxyz").write_text(text.replace("energy=", 'total=low name="1 2" energy='))
    with pytest.raises(InputError, match="total='low' is not a number"):
        read_dataset(tmp_path / "x.extxyz", energy_key="total")
    (water,) = read_dataset(tmp_path / "x.extxyz")
    assert water.name == "[1 2]"
    # As xtb writes it.
    (tmp_path / "x.xyz").write_text("2\nenergy: -1.07 gnorm: 0.0\nH 0 0 0\nH 0 0 0.74\n")
    with pytest.raises(InputError, match="energy:=True is not a number"):
        read_dataset(tmp_path / "x.xyz", energy_key="energy:")


def test_atomic_numbers_of_npz_files_are_whole(tmp_path, water):
    arrays = {"R": water.positions, "F": water.forces, "E": water.energies}
    np.savez(tmp_path / "x.npz", numbers=water.numbers.astype(float), **arrays)
    np.testing.assert_array_equal(read_dataset(tmp_path / "x.npz")[0].numbers, water.numbers)
    np.savez(tmp_path / "x.npz", numbers=water.numbers + 0.5, **arrays)
    with pytest.raises(InputError, match=r"atomic numbers \[.*\.5.* are not whole numbers"):
        read_dataset(tmp_path / "x.npz")


def test_an_at_sign_in_the_name_of_a_file_means_nothing(tmp_path):
    ase.io.write(tmp_path / "x.extxyz", [labelled(molecule("H2O"), 1.0)] * 2)
    path = (tmp_path / "x.extxyz").rename(tmp_path / "water@300K.extxyz")
    (water,) = read_dataset(path)
    assert (water.name, len(water)) == ("water@300K", 2)


def test_files_without_frames_and_frames_with_overlaps_are_refused(tmp_path, water):
    arrays = {"numbers": water.numbers, "R": water.positions, "F": water.forces}
    arrays["E"] = water.energies
    per_frame = {name: array[:0] for name, array in arrays.items() if name != "numbers"}
    np.savez(tmp_path / "none.npz", **{**arrays, **per_frame})
    with pytest.raises(InputError, match="has no frames"):
        read_dataset(tmp_path / "none.npz")
    arrays["R"][2, 1] = arrays["R"][2, 2]
    np.savez(tmp_path / "twice.npz", **arrays)
    with pytest.raises(InputError, match="atoms 1 and 2 of a frame are 0 Å apart"):
        read_dataset(tmp_path / "twice.npz")
