"""Layouts in which collections are published: values, units, charges, velocities."""

import numpy as np
import pytest
from ase.build import molecule
from typer.testing import CliRunner

from mlmd_calc import units
from mlmd_calc.cli import app
from mlmd_calc.data import MoleculeFrames, read_dataset
from mlmd_calc.data.differences import with_velocities
from mlmd_calc.data.hdf5_files import formal_charge
from mlmd_calc.data.trajectories import Trajectory
from mlmd_calc.errors import InputError, ModelFileError

METHANOL = molecule("CH3OH")
N = len(METHANOL)
FREQUENCY = 0.3
"""1/fs, angular: a period of 21 fs."""


def without_rigid_motion(amplitude):
    """What is left of a motion that moves and turns a molecule, whose forces would do the same."""
    arms = METHANOL.positions - METHANOL.positions.mean(axis=0)
    shifts = [np.broadcast_to(axis, (N, 3)) for axis in np.eye(3)]
    turns = [np.cross(axis, arms) for axis in np.eye(3)]
    basis, _ = np.linalg.qr(np.array([*shifts, *turns]).reshape(6, -1).T)
    flat = amplitude.ravel()
    return (flat - basis @ (basis.T @ flat)).reshape(N, 3)


AMPLITUDE = without_rigid_motion(np.random.default_rng(0).normal(scale=0.03, size=(N, 3)))


def moving(times):
    """Positions (Å) and velocities (Å/fs) of a harmonic motion at times in fs."""
    phase = FREQUENCY * np.asarray(times, dtype=float)[:, None, None]
    return (
        METHANOL.positions + AMPLITUDE * np.sin(phase),
        FREQUENCY * AMPLITUDE * np.cos(phase),
    )


def labels(positions):
    """Energies (eV) and forces (eV/Å) of springs to the start, as stiff as bonds."""
    away = positions - METHANOL.positions
    return -3150.0 + 20.0 * (away**2).sum(axis=(1, 2)), -40.0 * away


# ---- trajectories ----------------------------------------------------------------------------


def write_md17(path, positions, **more):
    energies, forces = labels(positions)
    np.savez(
        path,
        z=METHANOL.numbers,
        R=positions,
        E=energies[:, None] / units.KCAL_PER_MOL,
        F=forces / units.KCAL_PER_MOL,
        **more,
    )


def test_md17_as_a_trajectory_has_velocities_by_differences(tmp_path):
    times = 0.5 * np.arange(40)
    positions, velocities = moving(times)
    write_md17(tmp_path / "md17_methanol.npz", positions)
    (read,) = read_dataset(tmp_path, frame_spacing_fs=0.5)
    energies, forces = labels(positions)
    assert read.dt_fs == 0.5
    assert len(read) == 38
    np.testing.assert_allclose(read.positions, positions[1:-1], rtol=1e-12)
    np.testing.assert_allclose(read.energies, energies[1:-1], rtol=1e-12)
    np.testing.assert_allclose(read.forces, forces[1:-1], rtol=1e-12, atol=1e-12)
    # Exactly what central differences make of a vibration.
    slowed = np.sinc(FREQUENCY * 0.5 / np.pi)
    np.testing.assert_allclose(read.velocities, slowed * velocities[1:-1], rtol=1e-9, atol=1e-12)
    assert Trajectory.of(read).starts(1).tolist() == list(range(37))
    # Without a spacing the frames are labels and nothing is left out.
    (bare,) = read_dataset(tmp_path)
    assert (bare.dt_fs, bare.velocities, len(bare)) == (None, None, 40)


def test_differences_are_the_velocities_of_velocity_verlet():
    step, stiffness = 0.5, 0.02
    x, v = np.array([0.7, 0.0, 0.0]), np.array([0.0, 0.1, 0.0])
    path, speeds = [], []
    for _ in range(20):
        path.append(x)
        speeds.append(v)
        half = v - 0.5 * step * stiffness * x
        x = x + step * half
        v = half - 0.5 * step * stiffness * x
    frames = MoleculeFrames("atom", np.array([1]), np.array(path)[:, None])
    found = with_velocities(frames, step)
    np.testing.assert_allclose(found.velocities[:, 0], speeds[1:-1], atol=1e-14)


def test_rmd17_is_put_in_the_order_of_time(tmp_path):
    # Frames 0-9, 20-24 and a lone 50 of a run, shuffled as in the published files.
    places = np.array([*range(10), *range(20, 25), 50])
    positions, velocities = moving(0.5 * places)
    shuffled = np.random.default_rng(1).permutation(len(places))
    energies, forces = labels(positions)
    arrays = {
        "nuclear_charges": METHANOL.numbers,
        "coords": positions[shuffled],
        "energies": energies[shuffled] / units.KCAL_PER_MOL,
        "forces": forces[shuffled] / units.KCAL_PER_MOL,
    }
    np.savez(tmp_path / "rmd17.npz", old_indices=places[shuffled], **arrays)
    (read,) = read_dataset(tmp_path / "rmd17.npz", frame_spacing_fs=0.5)
    inner = [*range(1, 9), *range(11, 14)]
    np.testing.assert_allclose(read.positions, positions[inner], rtol=1e-12)
    np.testing.assert_allclose(read.energies, energies[inner], rtol=1e-12)
    slowed = np.sinc(FREQUENCY * 0.5 / np.pi)
    np.testing.assert_allclose(read.velocities, slowed * velocities[inner], rtol=1e-9, atol=1e-12)
    assert Trajectory.of(read).starts(1).tolist() == [*range(7), 8, 9]
    np.savez(tmp_path / "rmd17.npz", **arrays)
    with pytest.raises(InputError, match="in no order of time unless old_indices"):
        read_dataset(tmp_path / "rmd17.npz", frame_spacing_fs=0.5)


def write_tg80(path, positions, **change):
    arrays = {
        "nuclear_charges": METHANOL.numbers,
        "coords": positions,
        "energy": labels(positions)[0] / units.HARTREE,
        "forces": np.zeros_like(positions),
    }
    np.savez(path, **{**arrays, **change})


def test_tg80_has_energies_in_hartree_and_no_forces(tmp_path):
    positions, velocities = moving(np.arange(30.0))
    write_tg80(tmp_path / "methanol.npz", positions)
    (read,) = read_dataset(tmp_path, frame_spacing_fs=1.0)
    assert read.forces is None
    np.testing.assert_allclose(read.energies, labels(positions)[0][1:-1], rtol=1e-12)
    slowed = np.sinc(FREQUENCY / np.pi)
    np.testing.assert_allclose(read.velocities, slowed * velocities[1:-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": np.full(12, -3150.0)}, "cannot be total energies in Hartree"),
        ({"forces": np.ones((12, N, 3))}, "in a unit that is not known here"),
        # The published conversion writes 0 for elements it does not know.
        ({"nuclear_charges": np.array([6, 0, 1, 1, 1, 1])}, "cannot be total energies"),
    ],
)
def test_other_files_with_the_keys_of_tg80_are_refused(tmp_path, change, message):
    write_tg80(tmp_path / "x.npz", moving(np.arange(12.0))[0], **change)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "x.npz")


def test_frames_that_have_no_neighbours_make_no_trajectory():
    positions, _ = moving(np.arange(4.0))
    frames = MoleculeFrames("methanol", METHANOL.numbers, positions)
    with pytest.raises(InputError, match="none of 4 frames"):
        with_velocities(frames, 1.0, times=np.array([0, 2, 4, 6]))
    with pytest.raises(InputError, match="none of 2 frames"):
        with_velocities(frames.select(slice(2)), 1.0)


def test_xxmd_is_extended_xyz_and_may_be_read_as_a_trajectory(tmp_path):
    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator

    positions, velocities = moving(np.arange(12.0))
    energies, forces = labels(positions)
    frames = []
    for x, energy, force in zip(positions, energies, forces, strict=True):
        atoms = METHANOL.copy()
        atoms.positions = x
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=force)
        frames.append(atoms)
    ase.io.write(tmp_path / "mal_test_uks.xyz", frames, format="extxyz")
    (read,) = read_dataset(tmp_path)
    np.testing.assert_allclose(read.energies, energies, rtol=1e-10)
    np.testing.assert_allclose(read.forces, forces, atol=1e-7)
    (read,) = read_dataset(tmp_path, frame_spacing_fs=1.0)
    slowed = np.sinc(FREQUENCY / np.pi)
    np.testing.assert_allclose(read.velocities, slowed * velocities[1:-1], atol=1e-7)


# ---- HDF5 ------------------------------------------------------------------------------------


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py", reason="h5py reads HDF5 files")


@pytest.fixture
def frames():
    positions, _ = moving(1.3 * np.arange(12))
    return positions, *labels(positions)


def assert_frames(read, frames, numbers=METHANOL.numbers):
    positions, energies, forces = frames
    assert read.numbers.tolist() == list(numbers)
    np.testing.assert_allclose(read.positions, positions, atol=2e-6)
    np.testing.assert_allclose(read.energies, energies, rtol=1e-9)
    np.testing.assert_allclose(read.forces, forces, atol=2e-5)


def test_spice(tmp_path, h5py, frames):
    positions, energies, forces = frames
    names = {"METHANOL": "[H:3][C:1]([H:4])([H:5])[O:2][H:6]", "methoxide": "[CH3:1][O-:2]"}
    with h5py.File(tmp_path / "SPICE.hdf5", "w") as file:
        for name, smiles in names.items():
            kept = slice(N) if name == "METHANOL" else slice(N - 1)
            group = file.create_group(name)
            group["smiles"] = [smiles]
            group["subset"] = [b"SPICE Dipeptides Single Points Dataset v1.3"]
            group["atomic_numbers"] = METHANOL.numbers[kept].astype(np.int16)
            group["conformations"] = (positions[:, kept] / units.BOHR).astype(np.float32)
            group["dft_total_energy"] = energies / units.HARTREE
            gradients = -forces[:, kept] * units.BOHR / units.HARTREE
            group["dft_total_gradient"] = gradients.astype(np.float32)
            group["mbis_charges"] = np.zeros((12, N, 1))
    methanol, ion = read_dataset(tmp_path / "SPICE.hdf5")
    assert_frames(methanol, frames)
    assert (methanol.name, methanol.charge) == ("METHANOL", 0)
    assert methanol.metadata["smiles"] == names["METHANOL"]
    assert methanol.metadata["subset"].startswith("SPICE Dipeptides")
    assert (ion.name, ion.charge, ion.multiplicity) == ("methoxide", -1, 1)
    assert_frames(ion, (positions[:, :-1], energies, forces[:, :-1]), METHANOL.numbers[:-1])


def test_other_units_than_those_of_spice_are_named_as_they_are_in_the_file(tmp_path, h5py, frames):
    """Numbers in eV/Å, read in Hartree/Bohr, look like others in eV/Å."""
    positions, energies, forces = frames
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        group = file.create_group("methanol")
        group["atomic_numbers"] = METHANOL.numbers
        group["conformations"] = positions / units.BOHR
        group["dft_total_energy"], group["dft_total_gradient"] = energies, -forces
    with pytest.raises(InputError, match=r"like eV/Å, convert them to Hartree/Bohr .*units of arr"):
        read_dataset(tmp_path / "x.hdf5")
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        file["methanol/dft_total_energy"].attrs["units"] = "eV"
        file["methanol/dft_total_gradient"].attrs["units"] = "eV/angstrom"
    assert_frames(read_dataset(tmp_path / "x.hdf5")[0], frames)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("CCO", 0),
        ("[O-:3]", -1),
        ("C[N+](C)(C)CC(=O)[O-]", 0),
        ("[Ca+2]", 2),
        ("[Fe++]", 2),
        ("[NH3+:12][C@@H:1]([CH2-:4])[S--:9]", -2),
        ("[13CH3+2:5]", 2),
        ("C#C-C", 0),
    ],
)
def test_formal_charge(smiles, charge):
    assert formal_charge(smiles) == charge


def test_qm7x(tmp_path, h5py, frames):
    positions, energies, forces = frames
    with h5py.File(tmp_path / "1000.hdf5", "w") as file:
        group = file.create_group("7")
        for k in range(12):
            # Conformers and distorted copies of one isomer, and one of another.
            isomer = 1 if k < 11 else 2
            one = group.create_group(f"Geom-m7-i{isomer}-c1-{'opt' if k == 0 else f'd{k:02}'}")
            one["atNUM"] = METHANOL.numbers
            one["atXYZ"] = positions[k]
            one["ePBE0+MBD"] = [energies[k]]
            one["totFOR"] = forces[k]
            one["ePBE0"] = [0.0]
    first, second = read_dataset(tmp_path)
    assert (first.name, second.name) == ("Geom-m7-i1", "Geom-m7-i2")
    # HDF5 lists groups by name: d01 to d10, then opt.
    order = [*range(1, 11), 0]
    assert_frames(first, (positions[order], energies[order], forces[order]))
    assert_frames(second, (positions[11:], energies[11:], forces[11:]))


def test_ani_1x(tmp_path, h5py, frames):
    positions, energies, forces = frames
    missing = energies / units.HARTREE
    missing[3] = np.nan
    with h5py.File(tmp_path / "ani1x-release.h5", "w") as file:
        group = file.create_group("C1H4O1")
        group["atomic_numbers"] = METHANOL.numbers.astype(np.uint8)
        group["coordinates"] = positions.astype(np.float32)
        group["wb97x_dz.energy"] = missing
        group["wb97x_dz.forces"] = (forces / units.HARTREE).astype(np.float32)
        group["ccsd(t)_cbs.energy"] = np.full(12, np.nan)
    (read,) = read_dataset(tmp_path)
    done = np.arange(12) != 3
    assert read.name == "C1H4O1"
    assert_frames(read, (positions[done], energies[done], forces[done]))


def test_transition1x(tmp_path, h5py, frames):
    positions, energies, forces = frames
    with h5py.File(tmp_path / "Transition1x.h5", "w") as file:
        group = file.create_group("data/C1H4O1/rxn0007")
        group["atomic_numbers"] = METHANOL.numbers
        group["positions"] = positions
        group["wB97x_6-31G(d).energy"] = energies
        group["wB97x_6-31G(d).forces"] = forces
        group["wB97x_6-31G(d).atomization_energy"] = energies + 100.0
        group.create_group("reactant")["positions"] = positions[:1]
        # The same frames once more.
        file["train/C1H4O1/rxn0007"] = group
    (read,) = read_dataset(tmp_path)
    assert read.name == "rxn0007"
    assert_frames(read, (positions, energies, forces))


def test_ani_2x(tmp_path, h5py, frames):
    positions, energies, forces = frames
    swapped = [1, 0, *range(2, N)]
    species = np.tile(METHANOL.numbers, (24, 1))
    species[12:] = species[12:, swapped]
    with h5py.File(tmp_path / "ANI-2x-wB97X-631Gd.h5", "w") as file:
        group = file.create_group("006")
        group["species"] = species
        group["coordinates"] = np.concatenate([positions, positions[:, swapped]])
        group["energies"] = np.tile(energies, 2) / units.HARTREE
        group["forces"] = np.concatenate([forces, forces[:, swapped]]) / units.HARTREE
    found = {one.name: one for one in read_dataset(tmp_path)}
    assert set(found) == {"006_0", "006_1"}
    for one in found.values():
        same = one.numbers.tolist() == METHANOL.numbers.tolist()
        index = list(range(N)) if same else swapped
        expected = (positions[:, index], energies, forces[:, index])
        assert_frames(one, expected, METHANOL.numbers[index])


def test_labels_in_other_units_are_refused(tmp_path, h5py, frames):
    positions, energies, forces = frames
    with h5py.File(tmp_path / "1000.hdf5", "w") as file:
        group = file.create_group("1")
        for k in range(12):
            one = group.create_group(f"Geom-m1-i1-c1-d{k}")
            one["atNUM"] = METHANOL.numbers
            one["atXYZ"] = positions[k]
            one["ePBE0+MBD"] = energies[k]
            one["totFOR"] = forces[k] * units.BOHR / units.HARTREE
    with pytest.raises(InputError, match="Hartree/Bohr"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("count", [2, 12])
def test_units_that_a_file_states_are_believed(tmp_path, h5py, frames, count):
    positions, energies, forces = (values[:count] for values in frames)
    stated = {
        "conformations": (positions, "angstrom"),
        "dft_total_energy": (energies / units.KJ_PER_MOL, b"kJ mol^-1"),
        "dft_total_gradient": (-forces / units.KJ_PER_MOL * units.NM, "kJ/(mol nm)"),
    }
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["README"] = "what it is about"
        file.create_group("another")
        group = file.create_group("methanol")
        group["atomic_numbers"] = METHANOL.numbers
        for key, (values, unit) in stated.items():
            group[key] = values
            group[key].attrs["units"] = unit
    (read,) = read_dataset(path)
    assert_frames(read, (positions, energies, forces))
    with h5py.File(path, "a") as file:
        file["methanol/conformations"].attrs["units"] = "furlong"
    with pytest.raises(ModelFileError, match="'furlong', which is not a unit of length known here"):
        read_dataset(path)


def test_charges_that_a_file_states_are_believed(tmp_path, h5py, frames):
    positions, energies, forces = frames
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("methanol")
        group["atomic_numbers"] = METHANOL.numbers
        group["coordinates"] = positions
        group["wb97x_dz.energy"] = energies / units.HARTREE
        group["wb97x_dz.forces"] = forces / units.HARTREE
        group["wb97x_dz.hirshfeld_charges"] = np.zeros((12, N))
        group["charge"] = np.full((12, 1), 2)
        group.attrs["multiplicity"] = 3
    (read,) = read_dataset(path)
    assert read.state == (2, 3)
    with h5py.File(path, "a") as file:
        file["methanol/charge"][3] = 0
    with pytest.raises(InputError, match=r"charge differs from frame to frame \(0, 2, "):
        read_dataset(path)


def test_other_hdf5_files_are_refused(tmp_path, h5py):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_group("protein")["backbone"] = np.zeros(3)
    with pytest.raises(ModelFileError, match=r"has \['backbone'\], which is not a known layout"):
        read_dataset(path)
    with h5py.File(path, "w") as file:
        file["loose"] = np.zeros(3)
    with pytest.raises(ModelFileError, match="not a known layout"):
        read_dataset(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(ModelFileError, match="has no groups"):
        read_dataset(path)
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(ModelFileError, match="cannot be read as HDF5"):
        read_dataset(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "atomic_numbers",
            METHANOL.numbers + 0.5,
            "cannot be read as int64: its numbers are not whole",
        ),
        ("conformations", np.zeros((1, N, 3), complex), "its numbers are complex"),
        ("smiles", [b"CO", b"CCO"], "smiles is not a single text"),
        ("subset", [3], "subset is not a single text"),
    ],
)
def test_content_of_another_kind_is_refused(tmp_path, h5py, key, value, message):
    content = {
        "atomic_numbers": METHANOL.numbers,
        "conformations": METHANOL.positions[None] / units.BOHR,
        "dft_total_energy": np.zeros(1),
        "dft_total_gradient": np.zeros((1, N, 3)),
        "smiles": [b"CO"],
    }
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("methanol")
        for name, array in {**content, key: value}.items():
            group[name] = array
    with pytest.raises(ModelFileError, match=message):
        read_dataset(tmp_path / "x.h5")


def test_damage_in_qm7x_is_refused(tmp_path, h5py):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("7/Geom-m7-i1-c1-opt")
        group["atNUM"] = METHANOL.numbers
        group["atXYZ"] = METHANOL.positions
        group["totFOR"] = np.zeros((N, 3))
        group["ePBE0+MBD"] = [b"unknown"]
    with pytest.raises(ModelFileError, match=r"has no number 'ePBE0\+MBD'"):
        read_dataset(tmp_path)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["7/Geom-m7-i1-c1-opt/ePBE0+MBD"]
        file["7/Geom-m7-i1-c1-opt/ePBE0+MBD"] = [1.0]
        file["8"] = np.zeros(3)
    with pytest.raises(ModelFileError, match="/8 is an array, not a group; the file"):
        read_dataset(tmp_path)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["8"]
        file["8"] = h5py.SoftLink("/gone")
    with pytest.raises(ModelFileError, match="/8 is a link that leads nowhere; remove it"):
        read_dataset(tmp_path)


def test_a_file_of_ani_1x_without_a_calculated_frame_is_refused(tmp_path, h5py):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("C1H4O1")
        group["atomic_numbers"] = METHANOL.numbers
        group["coordinates"] = METHANOL.positions[None]
        group["wb97x_dz.energy"] = [np.nan]
        group["wb97x_dz.forces"] = np.full((1, N, 3), np.nan)
    with pytest.raises(InputError, match="no frame that was calculated"):
        read_dataset(tmp_path)


def test_command_reads_them(tmp_path, h5py, frames):
    test_ani_1x(tmp_path, h5py, frames)
    done = CliRunner().invoke(app, ["data", "info", str(tmp_path / "ani1x-release.h5"), "--json"])
    assert done.exit_code == 0, done.output
    assert '"structures": 11' in done.stdout or '"frames": 11' in done.stdout
