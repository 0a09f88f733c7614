"""The force field that is fitted to another's forces: right derivatives, known answers, errors."""

import ase
import numpy as np
import pytest
from another_process import code, run_child
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from bond_springs import springs

from mlmd_calc import MDETCalculator
from mlmd_calc.bonded import BondedForceField
from mlmd_calc.bonded.rotors import Rotors
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.io.restart import write_restart
from mlmd_calc.potential import Structure

NAMES = ("CH3CH2OH", "CO2", "C3H4_C3v", "cyclobutane", "C2H2", "CH3CONH2")
"""Chains, rings of three and four, straight and planar ones."""


def shaken(atoms, count, width, seed=0):
    rng = np.random.default_rng(seed)
    return atoms.positions + width * rng.standard_normal((count, *atoms.positions.shape))


def fitted(name, width=0.08, count=120, **options):
    atoms = molecule(name)
    positions = shaken(atoms, count, width)
    return atoms, BondedForceField(atoms, positions, springs(atoms, positions), **options)


@pytest.fixture(scope="module")
def with_network():
    """Water with a pull between its hydrogens that no polynomial of the coordinates is."""
    atoms = molecule("H2O")
    apart = np.linalg.norm(atoms.positions[1] - atoms.positions[2])

    def forces(positions):
        along = positions[:, 2] - positions[:, 1]
        length = np.linalg.norm(along, axis=1, keepdims=True)
        pull = 5.0 * np.sin(12.0 * (length - apart)) * along / length
        found = np.stack([springs(atoms, own[None])[0] for own in positions])
        found[:, 1] += pull
        found[:, 2] -= pull
        return found

    positions = shaken(atoms, 300, 0.12)
    alone = BondedForceField(atoms, positions, forces(positions))
    return alone, BondedForceField(atoms, positions, forces(positions), neurons=24, seed=1), forces


def test_the_network_learns_what_the_polynomial_leaves(with_network):
    alone, both, forces = with_network
    positions = shaken(molecule("H2O"), 50, 0.1, seed=4)
    left = [
        np.sqrt(
            np.mean(
                [
                    (field.forces(x) - f) ** 2
                    for x, f in zip(positions, forces(positions), strict=True)
                ]
            )
        )
        for field in (alone, both)
    ]
    assert left[1] < 0.4 * left[0]
    assert both.error < 0.4 * alone.error


def assert_forces_are_the_gradient(field, positions):
    _, forces = field.energy_and_forces(positions)
    step = 1e-5
    for atom, axis in np.ndindex(*positions.shape):
        moved = np.zeros_like(positions)
        moved[atom, axis] = step
        difference = (
            field.energy_and_forces(positions + moved)[0]
            - field.energy_and_forces(positions - moved)[0]
        )
        assert forces[atom, axis] == pytest.approx(-difference / (2 * step), abs=1e-6)
    assert np.abs(forces.sum(axis=0)).max() < 1e-10
    assert np.abs(np.cross(positions, forces).sum(axis=0)).max() < 1e-10


def test_forces_of_the_network_are_those_of_its_energy(with_network):
    assert_forces_are_the_gradient(with_network[1], shaken(molecule("H2O"), 1, 0.2, seed=3)[0])


@pytest.mark.parametrize("name", NAMES)
def test_springs_are_found_again(name):
    atoms, field = fitted(name)
    positions = shaken(atoms, 5, 0.08, seed=1)
    expected = springs(atoms, positions)
    found = np.array([field.forces(own) for own in positions])
    assert field.error < 1e-3
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_forces_are_those_of_the_energy(name):
    atoms, field = fitted(name)
    # Any parameters will do, and these leave out no term.
    field.weights = np.random.default_rng(2).standard_normal(len(field.weights))
    for positions in (atoms.positions, shaken(atoms, 1, 0.2, seed=3)[0]):
        assert_forces_are_the_gradient(field, positions)


def rotated(atoms, turning, centre, other, degrees):
    """Positions after a turn of some atoms about the bond from a centre to another atom."""
    turned = atoms.copy()
    axis = turned.positions[centre] - turned.positions[other]
    chosen = turned[turning]
    chosen.rotate(degrees, axis, center=turned.positions[centre])
    turned.positions[turning] = chosen.positions
    return turned.positions


@pytest.mark.parametrize("neurons", [0, 8])
def test_methyl_groups_may_turn(neurons, monkeypatch):
    monkeypatch.setattr("mlmd_calc.bonded.network._STEPS", 50)
    atoms = molecule("isobutane")
    atoms.calc = MDETCalculator()
    field = BondedForceField.fit(atoms, frames=60, neurons=neurons, seed=1)
    groups = field.state_dict()["rotors"]
    assert len(groups) == 3
    centre, other, _, *hydrogens = groups[0]
    displaced = shaken(atoms, 1, 0.03, seed=5)[0]
    for count in (1, 2):
        # The hydrogens have changed places as they do in a third of a turn.
        order = np.arange(len(atoms))
        order[hydrogens] = np.roll(hydrogens, count)
        energy, forces = field.energy_and_forces(displaced)
        moved, there = field.energy_and_forces(displaced[order])
        assert moved == energy
        assert (there == forces[order]).all()
        # And so they do if the group turns.
        turned = rotated(atoms, hydrogens, centre, other, 120.0 * count)
        start, end = (field.energy_and_forces(x)[0] for x in (atoms.positions, turned))
        assert end == pytest.approx(start, abs=0.02)
    # Two that change places make a mirror image, which no turn does.
    order = np.arange(len(atoms))
    order[hydrogens[:2]] = hydrogens[1], hydrogens[0]
    assert abs(field.energy_and_forces(displaced[order])[0] - energy) > 1e-4
    assert_forces_are_the_gradient(field, displaced[order])


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("CH4", 0),  # No bond to turn about.
        ("C2H6", 1),  # One group turns against the other.
        ("CH3CN", 0),  # Straight: there is no angle.
        ("CH3OCH3", 2),
        ("CH3CH2NH2", 1),
        ("CF3CN", 0),
        ("CH3Cl", 0),
        ("H3CNH2", 1),
        ("CH3COCl", 1),
    ],
)
def test_groups_that_turn(name, groups):
    atoms = molecule(name)
    found = Rotors.find(atoms.numbers, find_bonds(atoms).pairs, atoms.positions[None])
    assert len(found.atoms) == groups
    for centre, other, fixed, *ends in found.atoms:
        assert len(set(atoms.numbers[ends])) == 1
        assert atoms.get_distance(centre, other) < 1.7
        assert fixed not in (centre, *ends)
    assert found.order(atoms.positions) is None


def test_fits_along_a_run_of_the_calculator():
    atoms = molecule("H2O")
    before = atoms.positions.copy()

    class Springs(LennardJones):
        def calculate(self, atoms=None, properties=None, system_changes=()):
            force = springs(molecule("H2O"), atoms.positions[None])[0]
            self.results = {"energy": 0.0, "forces": force}

    atoms.calc = Springs()
    seen = []
    field = BondedForceField.fit(atoms, frames=30, seed=1, on_frame=lambda: seen.append(1))
    assert len(seen) == 50
    assert field.error < 1e-3
    assert np.array_equal(atoms.positions, before)
    again = BondedForceField.fit(atoms, frames=30, seed=1)
    assert np.array_equal(field.weights, again.weights)
    other = BondedForceField.fit(atoms, frames=30, seed=2)
    assert not np.array_equal(field.weights, other.weights)
    # The first 200 are as they were without a network; then come steps of multiple time stepping.
    seen.clear()
    far = BondedForceField.fit(
        atoms, frames=230, neurons=4, seed=1, on_frame=lambda: seen.append(1)
    )
    assert len(seen) == 250
    assert far.error < 1e-3
    # A run that goes on elsewhere needs the same one.
    other.load_state_dict(field.state_dict())
    assert np.array_equal(other.forces(before), field.forces(before))


def test_refuses_what_it_cannot_fit():
    water = molecule("H2O")
    with pytest.raises(ConfigError, match="no calculator"):
        BondedForceField.fit(water)
    water.calc = LennardJones()
    for option in ({"frames": 0}, {"temperature_K": -1}, {"neurons": -1}):
        ((name, value),) = option.items()
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            BondedForceField.fit(water, **{"frames": 3, **option})
    few = shaken(water, 1, 0.05)
    with pytest.raises(InputError, match=r"1 structures have 9 forces for \d+"):
        BondedForceField(water, few, springs(water, few))
    apart = ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 5]])
    with pytest.raises(InputError, match="no bonds"):
        BondedForceField(apart, apart.positions[None], np.zeros((1, 2, 3)))
    _, field = fitted("H2O")
    other = Structure(np.array([8, 1, 9]), water.positions)
    with pytest.raises(InputError, match="H2O"):
        field.evaluate([other], ("forces",))
    with pytest.raises(ConfigError, match="other terms"):
        field.load_state_dict(fitted("C2H2")[1].state_dict())


def test_refuses_arrays_that_do_not_fit():
    water = molecule("H2O")
    positions = shaken(water, 40, 0.05)
    forces = springs(water, positions)
    for wrong in (forces[1:], forces[:, 1:], forces.reshape(40, 9)):
        with pytest.raises(InputError, match=r"both must be \(structures, 3, 3\)"):
            BondedForceField(water, positions, wrong)
    forces[3, 1] = np.nan
    with pytest.raises(InputError, match="not finite"):
        BondedForceField(water, positions, forces)


def test_what_no_structure_moves_has_no_force():
    water = molecule("H2O")
    still = np.tile(water.positions, (40, 1, 1))
    field = BondedForceField(water, still, np.zeros_like(still))
    assert field.error == 0.0
    assert not field.forces(shaken(water, 1, 0.05)[0]).any()


def test_refuses_atoms_that_are_held():
    water = molecule("H2O")
    water.calc = LennardJones()
    water.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match=r"FixAtoms.*as if it were forces"):
        BondedForceField.fit(water, frames=3)


@pytest.mark.parametrize("network", [False, True])
def test_goes_on_in_another_process(tmp_path, with_network, network):
    atoms, field = fitted("CH3CH2OH")
    if network:
        atoms, field = molecule("H2O"), with_network[1]
    field.save(tmp_path / "bonded.npz")
    answer = """
import numpy as np
from mlmd_calc.bonded import BondedForceField
field = BondedForceField.load("bonded.npz")
np.save("forces.npy", field.forces(np.load("positions.npy")))
"""
    positions = shaken(atoms, 1, 0.1)[0]
    np.save(tmp_path / "positions.npy", positions)
    run_child(code, answer, cwd=tmp_path)
    assert np.array_equal(np.load(tmp_path / "forces.npy"), field.forces(positions))
    write_restart(tmp_path / "other.npz", {"numbers": atoms.numbers})
    with pytest.raises(ModelFileError, match="bonds"):
        BondedForceField.load(tmp_path / "other.npz")
