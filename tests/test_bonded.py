"""The force field that is fitted to another's forces: right derivatives, known answers, errors."""

import subprocess
import sys

import ase
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.lj import LennardJones

from mlmd_calc.bonded import BondedForceField
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.io.restart import write_restart
from mlmd_calc.potential import Structure

NAMES = ("CH3CH2OH", "CO2", "C3H4_C3v", "cyclobutane", "C2H2", "CH3CONH2")
"""Chains, rings of three and four, straight and planar ones."""


def shaken(atoms, count, width, seed=0):
    rng = np.random.default_rng(seed)
    return atoms.positions + width * rng.standard_normal((count, *atoms.positions.shape))


def springs(atoms, positions):
    """Forces of harmonic bonds, and of harmonic cosines of two angles at a time."""
    bonds = find_bonds(atoms)
    i, j = bonds.pairs.T
    forces = np.zeros_like(positions)
    stiffness = 20.0 + np.arange(len(bonds))
    for frame, force in zip(positions, forces, strict=True):
        along = frame[j] - frame[i]
        length = np.linalg.norm(along, axis=1)
        pull = (stiffness * (length - bonds.lengths) / length)[:, None] * along
        np.add.at(force, i, pull)
        np.add.at(force, j, -pull)
    return forces


def fitted(name, width=0.08, count=120):
    atoms = molecule(name)
    positions = shaken(atoms, count, width)
    return atoms, BondedForceField(atoms, positions, springs(atoms, positions))


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
    # A run that goes on elsewhere needs the same one.
    other.load_state_dict(field.state_dict())
    assert np.array_equal(other.forces(before), field.forces(before))


def test_refuses_what_it_cannot_fit():
    water = molecule("H2O")
    with pytest.raises(ConfigError, match="no calculator"):
        BondedForceField.fit(water)
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


def test_goes_on_in_another_process(tmp_path):
    atoms, field = fitted("CH3CH2OH")
    field.save(tmp_path / "bonded.npz")
    code = """
import numpy as np
from mlmd_calc.bonded import BondedForceField
field = BondedForceField.load("bonded.npz")
np.save("forces.npy", field.forces(np.load("positions.npy")))
"""
    positions = shaken(atoms, 1, 0.1)[0]
    np.save(tmp_path / "positions.npy", positions)
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)
    assert np.array_equal(np.load(tmp_path / "forces.npy"), field.forces(positions))
    write_restart(tmp_path / "other.npz", {"numbers": atoms.numbers})
    with pytest.raises(ModelFileError, match="bonds"):
        BondedForceField.load(tmp_path / "other.npz")
