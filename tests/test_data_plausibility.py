"""Labels in other units are refused before anything learns from them."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mlmd_calc import units
from mlmd_calc.data import MoleculeFrames, read_dataset, write_labels
from mlmd_calc.data.plausibility import check_units
from mlmd_calc.errors import InputError

SPACING = 0.5


def vibrating(frames: int = 20, *, stiffness: float = 100.0):
    """Frames of N2, a Morse oscillator (eV/Å²) that also turns, with all that labels hold."""
    width, depth, usual = 2.7, stiffness / (2 * 2.7**2), 1.1
    time = SPACING * np.arange(frames)
    length, rate = usual + 0.04 * np.sin(0.6 * time), 0.04 * 0.6 * np.cos(0.6 * time)
    angle, turn = 0.01 * time, 0.01
    along = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1)
    across = np.stack([-np.sin(angle), np.cos(angle), 0 * angle], axis=-1)
    decay = np.exp(-width * (length - usual))
    pull = -2 * depth * width * (1 - decay) * decay
    half = 0.5 * (rate[:, None] * along + (length * turn)[:, None] * across)
    return MoleculeFrames(
        name="nitrogen",
        numbers=np.array([7, 7]),
        positions=0.5 * length[:, None, None] * np.stack([-along, along], axis=1),
        forces=pull[:, None, None] * np.stack([-along, along], axis=1),
        energies=depth * (1 - decay) ** 2,
        velocities=np.stack([-half, half], axis=1),
        dt_fs=SPACING,
        segment=np.zeros(frames, np.int64),
    )


def test_right_units_pass():
    check_units(vibrating())


def test_very_few_frames_are_not_judged_by_slopes():
    few = vibrating(2)
    check_units(replace(few, forces=20 * few.forces))


@pytest.mark.parametrize("factor", [1 / units.KCAL_PER_MOL, units.BOHR / units.HARTREE, -1.0])
def test_three_frames_tell_the_unit_of_forces(factor):
    few = vibrating(3)
    check_units(few)
    with pytest.raises(InputError, match="the forces look like"):
        check_units(replace(few, forces=factor * few.forces))


@pytest.mark.parametrize("unit", [units.HARTREE, units.KCAL_PER_MOL, units.KJ_PER_MOL])
def test_one_frame_tells_the_unit_of_total_energies(unit):
    """Of nitrogen, with all its electrons: -109.5 Hartree by any method."""
    one = replace(vibrating(1), forces=None, velocities=None)
    total = -109.5 * units.HARTREE
    check_units(replace(one, energies=np.array([total])))
    # Valence electrons (GFN2-xTB), and energies from the free atoms.
    for energy in (-172.0, -9.8, 0.0):
        check_units(replace(one, energies=np.array([energy])))
    with pytest.raises(InputError, match=r"all its electrons in .*, in eV it is about -2966"):
        check_units(replace(one, energies=np.array([total / unit])))


def test_md17_in_other_units_that_nothing_states_is_refused(tmp_path):
    """Numbers that look like Hartree/Å in kcal/mol/Å are in eV/Å."""
    molecule = vibrating()
    arrays = {"z": molecule.numbers, "R": molecule.positions}
    labels = {"E": molecule.energies, "F": molecule.forces}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    with pytest.raises(InputError, match=r"like eV/Å, .* to kcal/mol/Å .* e_unit='eV'"):
        read_dataset(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", **arrays, **labels, e_unit="eV")
    (read,) = read_dataset(tmp_path / "x.npz")
    np.testing.assert_array_equal(read.forces, molecule.forces)


def test_bonds_with_hydrogen_tell_kj_from_kcal(tmp_path):
    """Whatever the energies are counted from."""
    molecule = replace(vibrating(stiffness=45.0), numbers=np.array([8, 1]), multiplicity=2)
    arrays = {"z": molecule.numbers, "R": molecule.positions}
    for unit in (units.KCAL_PER_MOL, units.KJ_PER_MOL):
        labels = {"E": molecule.energies / unit, "F": molecule.forces / unit}
        np.savez(tmp_path / f"{unit}.npz", **arrays, **labels, multiplicity=2)
    (read,) = read_dataset(tmp_path / f"{units.KCAL_PER_MOL}.npz")
    np.testing.assert_allclose(read.forces, molecule.forces, rtol=1e-12)
    write_labels(tmp_path / "ours.npz", read)
    check_units(read_dataset(tmp_path / "ours.npz")[0].select(slice(5)))
    with pytest.raises(InputError, match=r"with hydrogen resists .* like kJ/mol/Å, convert"):
        read_dataset(tmp_path / f"{units.KJ_PER_MOL}.npz")


@pytest.mark.parametrize(
    ("rounded", "message"),
    [
        (lambda x: x.astype(np.float16), r"positions are in half precision \(float16\)"),
        (lambda x: x.astype(np.float16).astype(np.float32), "are rounded to half precision"),
        (lambda x: np.round(x, 2).astype(np.float32), "are rounded to two decimals in Å"),
    ],
)
def test_positions_with_too_few_digits_for_forces(tmp_path, rounded, message):
    molecule = vibrating()
    path = tmp_path / "x.npz"
    labels = {"F": molecule.forces, "E": molecule.energies}
    for numbers, units_stated in (("numbers", {}), ("z", {"e_unit": "eV", "r_unit": "Ang"})):
        arrays = {numbers: molecule.numbers, "R": rounded(molecule.positions), **units_stated}
        np.savez(path, **arrays, **labels)
        with pytest.raises(InputError, match=message):
            read_dataset(path)


def test_energies_that_were_not_computed():
    molecule = vibrating()
    with pytest.raises(InputError, match=r"all frames is the same, 0 eV, .* leave it out"):
        check_units(replace(molecule, energies=np.zeros(len(molecule))))


def vibrating_water(frames=20):
    """Frames of water, harmonic about its geometry, whose energy knows distances alone."""
    atoms = molecule("H2O")
    rng = np.random.default_rng(0)
    positions = atoms.positions + rng.normal(0.0, 0.03, (frames, 3, 3))
    vectors = positions[:, :, None] - positions[:, None]
    lengths = np.linalg.norm(vectors, axis=-1)
    stretch = lengths - atoms.get_all_distances()
    forces = -40.0 * ((stretch / (lengths + np.eye(3)))[..., None] * vectors).sum(axis=2)
    energies = 10.0 * (stretch**2).sum(axis=(1, 2))
    return MoleculeFrames("water", atoms.numbers, positions, forces, energies)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda forces: forces[:, :, [1, 0, 2]], r"torque of all atoms .* positions are turned"),
        (lambda forces: forces + 1.0, r"force of all atoms together .* cancel"),
    ],
)
def test_forces_that_move_or_turn_a_molecule(change, message):
    water = vibrating_water()
    check_units(water)
    with pytest.raises(InputError, match=message):
        check_units(replace(water, forces=change(water.forces)))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ("CHCHHHHHO", "is bonded to nothing, and neither is another hydrogen"),
        ("OCCHHHHHH", "atom 0, O, has 4 bonds, more than it can have"),
        ("CCOCHHHHH", "atom 2, O, is 1.0. Å from atom 3, nearer than any bond"),
    ],
)
def test_elements_in_another_order_than_positions(numbers, message):
    atoms = molecule("CH3CH2OH")
    rng = np.random.default_rng(0)
    positions = atoms.positions + rng.normal(0.0, 0.03, (5, 9, 3))
    forces = rng.normal(0.0, 0.01, positions.shape)
    frames = MoleculeFrames("ethanol", atoms.numbers, positions, forces)
    check_units(frames)
    # What has one composition may be several molecules, or in several orders.
    other = frames.positions[:, [0, 1, 2, 5, 4, 3, 8, 7, 6]]
    check_units(replace(frames, positions=np.concatenate([other[:2], frames.positions[2:]])))
    with pytest.raises(InputError, match=message):
        check_units(replace(frames, numbers=Atoms(numbers).numbers))


@pytest.mark.parametrize(
    ("factor", "message"), [(-1.0, "do not move where"), (0.0, "move inf times as far")]
)
def test_velocities_that_atoms_do_not_follow(factor, message):
    molecule = vibrating()
    with pytest.raises(InputError, match=message):
        check_units(replace(molecule, velocities=factor * molecule.velocities))


def test_relaxed_structures_tell_no_unit():
    """Lengths of bonds differ between conformers and along scans, without any force."""
    molecule = vibrating()
    noise = np.random.default_rng(0).normal(0.0, 0.01, molecule.forces.shape)
    check_units(replace(molecule, forces=noise, energies=None))


def test_forces_of_other_frames_are_refused():
    molecule = vibrating()
    order = np.random.default_rng(0).permutation(20)
    with pytest.raises(InputError, match=r"do not go with the lengths.* in the same order"):
        check_units(replace(molecule, forces=molecule.forces[order], energies=None))


def test_forces_that_are_all_zero_are_none():
    molecule = vibrating()
    with pytest.raises(InputError, match=r"all forces are zero.*leave them out"):
        check_units(replace(molecule, forces=np.zeros_like(molecule.forces)))
    some = molecule.forces.copy()
    some[4::2] = 0.0
    with pytest.raises(InputError, match=r"of frame 0 are zero.*\(9 of 20 frames\); leave such"):
        check_units(replace(molecule, forces=some))


def test_frames_that_are_the_same_tell_nothing_of_energies():
    check_units(replace(vibrating().select(np.ones(12, int)), velocities=None))


@pytest.mark.parametrize(
    ("name", "factor", "message"),
    [
        ("positions", 1 / units.NM, "0.1.* covalent bond.* look like nm"),
        ("positions", 1 / units.BOHR, "look like Bohr"),
        ("positions", 100.0, "look like pm"),
        ("forces", 1 / units.KCAL_PER_MOL, "look like kcal/mol/Å"),
        ("forces", units.KCAL_PER_MOL**-2, "look like kcal/mol/Å converted twice"),
        ("forces", 1 / units.KJ_PER_MOL, "look like .*kJ/mol/Å"),
        ("forces", units.BOHR / units.HARTREE, "look like Hartree/Bohr"),
        ("forces", -1.0, "gradients of the energy, change their sign"),
        ("energies", 1 / units.HARTREE, "look like Hartree"),
        ("energies", 1 / units.KCAL_PER_MOL, "look like kcal/mol"),
        ("energies", 1 / 3, "0.33.* times .* as work, as it does with energies per atom"),
        ("forces", units.BOHR, "1.8.* times .* as work, as it does with forces in eV/Bohr"),
        ("velocities", 1 / units.FS, "0.098.* as far as their velocities say"),
        ("velocities", units.FS, "10.* as far as their velocities say"),
    ],
)
def test_other_units_are_named(name, factor, message):
    molecule = vibrating()
    wrong = replace(molecule, **{name: factor * getattr(molecule, name)})
    if name == "positions":
        wrong = replace(wrong, velocities=None)
    with pytest.raises(InputError, match=f"nitrogen.*{message}"):
        check_units(wrong)


def test_times_in_another_unit_are_refused():
    with pytest.raises(InputError, match=r"in 0\.0005 fs; correct .* the time between frames"):
        check_units(replace(vibrating(), dt_fs=SPACING / units.FS_PER_PS))


def test_a_dissociating_molecule_and_noble_gases_are_fine():
    nitrogen = vibrating()
    stretched = nitrogen.positions * np.linspace(1.0, 4.0, 20)[:, None, None]
    check_units(replace(nitrogen, positions=stretched, forces=None, velocities=None))
    argon = replace(nitrogen, numbers=np.array([18, 18]), positions=3.4 * nitrogen.positions)
    check_units(replace(argon, forces=None, velocities=None))
