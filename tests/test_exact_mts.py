"""Long steps with a Metropolis test: exact whatever the cheap forces are, and reversible."""

import numpy as np
import pytest
from analytic_potentials import Springs, Tethers
from ase import Atoms
from ase.build import molecule
from ase.calculators.mixing import SumCalculator
from bond_springs import springs
from restart_child import exact_mts, water
from toy_models import toy_model

from mlmd_calc import MDETCalculator, units
from mlmd_calc.bonded import BondedForceField
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.md import ExactMTS, MTSLangevin, MTSVelocityVerlet, draw_momenta
from mlmd_calc.md.attached import ForceModelCalculator
from mlmd_calc.propagation import FunctionForces

K, TEMPERATURE = 20.0, 300.0
ANCHORS = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])


def tethered(fast, kind=ExactMTS, **options):
    atoms = Atoms("C2", ANCHORS + 0.05)
    draw_momenta(atoms, TEMPERATURE, np.random.default_rng(1))
    atoms.calc = Tethers(K, ANCHORS)
    options = {
        "inner_steps": 4,
        "temperature_K": TEMPERATURE,
        "friction": 0.02 / units.FS,
        "rng": np.random.default_rng(2),
        **options,
    }
    return kind(atoms, 14.0 * units.FS, fast, **options)


def mean_square(dynamics, steps):
    dynamics.run(50)
    squares = [np.square(dynamics.atoms.positions - ANCHORS).mean() for _ in dynamics.irun(steps)]
    return np.mean(squares)


def test_ensemble_is_exact_where_that_of_the_same_steps_is_not():
    known = units.KB * TEMPERATURE / K
    wrong = Tethers(0.6 * K, ANCHORS)
    dynamics = tethered(wrong)
    assert mean_square(dynamics, 4000) == pytest.approx(known, rel=0.03)
    assert 0.3 < dynamics.acceptance < 0.9
    assert mean_square(tethered(wrong, MTSLangevin), 1000) > 1.15 * known


def test_equal_forces_are_never_rejected():
    dynamics = tethered(Tethers(K, ANCHORS), inner_steps=40)
    dynamics.run(100)
    assert dynamics.trials == 100
    assert dynamics.acceptance > 0.99


def fitted_methanol():
    """Methanol that moves, with two force fields that differ by a tenth."""
    atoms = molecule("CH3OH")
    rng = np.random.default_rng(3)
    positions = atoms.positions + 0.05 * rng.standard_normal((60, *atoms.positions.shape))
    accurate = BondedForceField(atoms, positions, springs(atoms, positions))
    cheap = BondedForceField(atoms, positions, 0.9 * springs(atoms, positions))
    atoms.calc = ForceModelCalculator(accurate)
    draw_momenta(atoms, TEMPERATURE, rng)
    return atoms, cheap


def test_a_step_comes_back_the_way_it_went():
    atoms, cheap = fitted_methanol()
    start, momenta = atoms.get_positions(), atoms.get_momenta()
    dynamics = MTSVelocityVerlet(atoms, 8.0 * units.FS, cheap, inner_steps=16)
    dynamics.run(5)
    assert np.abs(atoms.positions - start).max() > 0.01
    atoms.set_momenta(-atoms.get_momenta())
    dynamics.run(5)
    assert np.abs(atoms.positions - start).max() < 1e-10
    assert np.abs(atoms.get_momenta() + momenta).max() < 1e-10


def test_a_step_keeps_the_volume_of_phase_space():
    atoms, cheap = fitted_methanol()
    size = atoms.positions.size
    before = np.concatenate([atoms.positions.ravel(), atoms.get_momenta().ravel()])

    def after(point):
        atoms.set_positions(point[:size].reshape(-1, 3))
        atoms.set_momenta(point[size:].reshape(-1, 3))
        MTSVelocityVerlet(atoms, 8.0 * units.FS, cheap, inner_steps=16).step()
        return np.concatenate([atoms.positions.ravel(), atoms.get_momenta().ravel()])

    step = 1e-4
    columns = [
        (
            8 * (after(before + step * unit) - after(before - step * unit))
            - (after(before + 2 * step * unit) - after(before - 2 * step * unit))
        )
        / (12 * step)
        for unit in np.eye(2 * size)
    ]
    sign, logarithm = np.linalg.slogdet(np.array(columns))
    assert sign == 1
    assert abs(logarithm) < 1e-8


class Counting(Tethers):
    """Counts its calculations, and has no answer beyond some distance."""

    count, most = 0, np.inf

    def calculate(self, *arguments, **options):
        self.count += 1
        super().calculate(*arguments, **options)
        if np.abs(self.atoms.positions - ANCHORS).max() > self.most:
            raise PredictionError("too far")


@pytest.mark.parametrize("most", [np.inf, 0.3])
def test_a_rejected_step_turns_the_momenta_round_and_costs_no_more(most):
    def away(positions):
        return 0.0, 300.0 * (positions - ANCHORS)

    dynamics = tethered(FunctionForces(away), friction=1e-9)
    atoms = dynamics.atoms
    atoms.calc = calculator = Counting(K, ANCHORS)
    calculator.most = most
    atoms.get_forces()
    positions, momenta = atoms.get_positions(), atoms.get_momenta()
    dynamics.run(3)
    assert dynamics.acceptance == 0
    assert calculator.count == 1 + 3
    assert np.array_equal(atoms.positions, positions)
    assert np.allclose(atoms.get_momenta(), -momenta, rtol=0, atol=1e-3 * np.abs(momenta).max())
    assert np.allclose(atoms.get_forces(), -K * (positions - ANCHORS), rtol=0, atol=1e-12)
    assert calculator.count == 1 + 3


def test_what_cannot_be_exact_is_refused():
    class ForcesOnly(Springs):
        implemented_properties = ("forces",)

    def on(calculator, fast, **options):
        atoms = water()
        atoms.calc = calculator
        options = {"inner_steps": 2, "temperature_K": 300, "friction": 0.1, **options}
        return ExactMTS(atoms, units.FS, fast, **options)

    with pytest.raises(ConfigError, match="ForcesOnly knows no energy"):
        on(ForcesOnly(20.0, 1.0), Springs(18.0, 1.0))
    with pytest.raises(ConfigError, match="rotation='random'"):
        on(MDETCalculator(toy_model(), rotation="random"), Springs(18.0, 1.0))
    parts = [MDETCalculator(toy_model(), rotation="random"), Springs(20.0, 1.0)]
    with pytest.raises(ConfigError, match="rotation='random'"):
        on(SumCalculator(parts), Springs(18.0, 1.0))
    with pytest.raises(ConfigError, match="temperature_K=-1"):
        on(Springs(20.0, 1.0), Springs(18.0, 1.0), temperature_K=-1)


def test_a_run_that_accepts_nothing_says_so():
    run = tethered(Tethers(1e4 * K, ANCHORS))
    with pytest.warns(UserWarning, match="none of the first 100 steps was accepted"):
        run.run(150)
    assert run.accepted == 0


def test_cheap_forces_of_another_molecule_are_refused():
    """They would reject every step, and nothing would move."""
    methanol = molecule("CH3OH")
    positions = methanol.positions + 0.05 * np.random.default_rng(0).normal(size=(60, 6, 3))
    cheap = BondedForceField(methanol, positions, springs(methanol, positions))
    atoms = water()
    atoms.calc = Springs(20.0, 1.0)
    run = ExactMTS(atoms, units.FS, cheap, inner_steps=2, temperature_K=300, friction=0.1)
    with pytest.raises(InputError, match="not those that the force field was fitted to"):
        run.run(1)


def test_a_restart_of_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exact_mts().save_restart("run.npz")
    with pytest.raises(Exception, match="temperature_K"):
        exact_mts(restart="run.npz", temperature_K=400)
