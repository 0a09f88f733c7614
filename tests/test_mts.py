"""Multiple time stepping: what it is with one inner step, its order, its ensemble, its errors."""

import numpy as np
import pytest
from analytic_potentials import Springs, Tethers
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLengths
from ase.md.verlet import VelocityVerlet
from restart_child import water
from toy_models import toy_model

from mlmd_calc import MDETCalculator, Potential, units
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.md import MTSLangevin, MTSVelocityVerlet, draw_momenta
from mlmd_calc.propagation import FunctionForces


def moving_water():
    atoms = water()
    draw_momenta(atoms, 600.0, np.random.default_rng(1))
    atoms.calc = Counting(20.0, 1.0)
    return atoms


class Counting(Springs):
    """Counts its calculations."""

    count = 0

    def calculate(self, *arguments, **options):
        self.count += 1
        super().calculate(*arguments, **options)


def after(dynamics, steps):
    dynamics.run(steps)
    return dynamics.atoms.get_positions()


def test_one_inner_step_is_velocity_verlet_of_the_accurate_forces():
    atoms, other = moving_water(), moving_water()
    found = after(MTSVelocityVerlet(atoms, 0.5 * units.FS, Springs(3.0, 1.4), inner_steps=1), 40)
    known = after(VelocityVerlet(other, 0.5 * units.FS), 40)
    assert np.allclose(found, known, rtol=0, atol=1e-12)
    assert np.allclose(atoms.get_momenta(), other.get_momenta(), rtol=0, atol=1e-12)


def test_equal_forces_are_velocity_verlet_with_the_inner_step():
    atoms, other = moving_water(), moving_water()
    found = after(MTSVelocityVerlet(atoms, 2.0 * units.FS, Springs(20.0, 1.0), inner_steps=4), 10)
    known = after(VelocityVerlet(other, 0.5 * units.FS), 40)
    assert np.allclose(found, known, rtol=0, atol=1e-12)


def test_accurate_forces_are_evaluated_once_and_cheap_ones_as_often_as_said():
    atoms, fast = moving_water(), Counting(19.0, 1.0)
    MTSVelocityVerlet(atoms, 2.0 * units.FS, fast, inner_steps=4).run(10)
    assert atoms.calc.count == 1 + 10
    assert fast.count == 1 + 40


def test_moved_atoms_are_noticed():
    atoms = moving_water()
    dynamics = MTSVelocityVerlet(atoms, 1.0 * units.FS, Springs(18.0, 1.0), inner_steps=2)
    dynamics.run(3)
    atoms.positions[0] += 0.1
    other = atoms.copy()
    other.calc = Springs(20.0, 1.0)
    dynamics.step()
    fresh = MTSVelocityVerlet(other, 1.0 * units.FS, Springs(18.0, 1.0), inner_steps=2)
    fresh.step()
    assert np.array_equal(atoms.positions, other.positions)


def swings(timestep_fs, fast):
    """Width of the total energy over 400 fs, eV."""
    atoms = moving_water()
    dynamics = MTSVelocityVerlet(atoms, timestep_fs * units.FS, fast, inner_steps=4)
    energies = []
    for _ in dynamics.irun(round(400 / timestep_fs)):
        energies.append(atoms.get_total_energy())
    return np.std(energies)


def test_energy_error_is_of_second_order_and_small_if_the_cheap_forces_are_good():
    good, bad = Springs(19.0, 1.0), Springs(10.0, 1.0)
    assert swings(0.5, good) == pytest.approx(swings(1.0, good) / 4, rel=0.15)
    # The correction is what the long step is taken with.
    assert swings(2.0, good) < 0.3 * swings(2.0, bad)


def test_energy_of_non_conservative_cheap_forces_does_not_run_away():
    swirl = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    tethers = Tethers(20.0, np.zeros((3, 3)))

    def heating(positions):
        energy, forces = tethers.harmonic.energy_and_forces(positions)
        return energy, forces + 0.5 * positions @ swirl.T

    def gained(kind, *arguments, **options):
        atoms = Atoms("OH2", np.eye(3) * 0.1)
        draw_momenta(atoms, 300.0, np.random.default_rng(2))
        atoms.calc = Tethers(20.0, np.zeros((3, 3)))
        before = atoms.get_total_energy()
        kind(atoms, *arguments, **options).run(2000)
        return abs(atoms.get_total_energy() - before)

    mts = gained(MTSVelocityVerlet, 1.0 * units.FS, FunctionForces(heating), inner_steps=2)
    assert mts < 0.01
    # The same forces without a correction heat.
    atoms = Atoms("OH2", np.eye(3) * 0.1)
    draw_momenta(atoms, 300.0, np.random.default_rng(2))
    before = atoms.get_kinetic_energy() + tethers.harmonic.energy_and_forces(atoms.positions)[0]
    positions, momenta = atoms.get_positions(), atoms.get_momenta()
    masses, dt = atoms.get_masses()[:, None], 0.5 * units.FS
    for _ in range(4000):
        momenta = momenta + 0.5 * dt * heating(positions)[1]
        positions = positions + dt * momenta / masses
        momenta = momenta + 0.5 * dt * heating(positions)[1]
    kinetic = 0.5 * (momenta**2 / masses).sum()
    assert kinetic + tethers.harmonic.energy_and_forces(positions)[0] - before > 1.0


def test_langevin_samples_the_accurate_potential():
    anchors = np.random.default_rng(0).normal(0, 3, (200, 3))
    atoms = Atoms("C200", anchors)
    atoms.calc = Tethers(20.0, anchors)
    dynamics = MTSLangevin(
        atoms,
        3.0 * units.FS,
        Tethers(16.0, anchors),
        inner_steps=3,
        temperature_K=300,
        friction=0.05 / units.FS,
        rng=np.random.default_rng(4),
    )
    dynamics.run(100)
    squares, temperatures = [], []
    for _ in dynamics.irun(1000):
        squares.append(((atoms.positions - anchors) ** 2).mean())
        temperatures.append(atoms.get_temperature())
    assert np.mean(squares) == pytest.approx(units.KB * 300 / 20.0, rel=0.02)
    assert np.mean(temperatures) == pytest.approx(300, rel=0.03)


def test_direct_heads_are_the_cheap_forces_by_default():
    model = toy_model()
    start = water()
    draw_momenta(start, 20.0, np.random.default_rng(1))
    start.calc = MDETCalculator(model, forces="conservative")
    fast = Potential(model, forces="direct", rotation="none", dtype="float32")
    other = start.copy()
    other.calc = MDETCalculator(model, forces="conservative")
    found = after(MTSVelocityVerlet(start, 0.2 * units.FS, inner_steps=2), 5)
    known = after(MTSVelocityVerlet(other, 0.2 * units.FS, fast, inner_steps=2), 5)
    assert np.array_equal(found, known)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": 0}, "inner_steps=0"),
        ({"inner_steps": 2.5}, "inner_steps=2.5"),
        ({"loginterval": 0}, "loginterval=0"),
        ({"timestep": -1.0}, "timestep=-1.0"),
        ({"timestep": np.nan}, "timestep=nan"),
        ({"fast": None}, "no cheaper forces"),
        ({"fast": "mdet-small-organics"}, "not a source of forces"),
    ],
)
def test_options_are_checked(options, message):
    options = {"timestep": 1.0, "fast": Springs(18.0, 1.0), "inner_steps": 2, **options}
    with pytest.raises(ConfigError, match=message):
        MTSVelocityVerlet(moving_water(), **options)


def test_what_it_cannot_do_is_refused():
    atoms = moving_water()
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="constraints"):
        MTSVelocityVerlet(atoms, 1.0, Springs(18.0, 1.0), inner_steps=2)
    atoms.set_constraint([FixAtoms([]), FixBondLengths([])])
    dyn = MTSVelocityVerlet(atoms, 1.0, Springs(18.0, 1.0), inner_steps=2)
    assert dyn.run(1)
    atoms.set_constraint(FixAtoms([0]))
    for run in (dyn.run, lambda steps: next(dyn.irun(steps))):
        with pytest.raises(InputError, match="constraints"):
            run(1)
    with pytest.raises(ConfigError, match="no calculator"):
        MTSVelocityVerlet(water(), 1.0, Springs(18.0, 1.0), inner_steps=2)
    options = {"inner_steps": 2, "temperature_K": 300, "friction": 0.0}
    with pytest.raises(ConfigError, match=r"friction=0\.0"):
        MTSLangevin(moving_water(), 1.0, Springs(18.0, 1.0), **options)
