"""The exact ensemble: it is that of the target whatever the proposal, and goes on bit for bit."""

import math
from pathlib import Path

import ase.io
import numpy as np
import pytest
import restart_child
from analytic_potentials import Springs, Tethers
from another_process import run_child, script
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.io.trajectory import Trajectory
from restart_child import water
from toy_models import toy_model

from mlmd_calc import Potential, units
from mlmd_calc.analysis import effective_samples, summarise_exact
from mlmd_calc.electrons import electronic_state
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.md import ExactNVT, MTSLangevin, MTSVelocityVerlet
from mlmd_calc.md.step_length import ACCEPTANCE, StepLength
from mlmd_calc.propagation import FunctionForces

K, TEMPERATURE = 20.0, 300.0
EXACT = units.KB * TEMPERATURE / K
"""⟨x²⟩ of one coordinate, Å²."""


class EnergyOnly(Tethers):
    """Knows no forces, and counts its energies."""

    implemented_properties = ("energy",)
    count = 0

    def calculate(self, *arguments, **options):
        self.count += 1
        super().calculate(*arguments, **options)
        del self.results["forces"]


def spring(k, swirl=0.0):
    """Tethers to the origin, with a force that is no gradient added."""
    turn = swirl * np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    def evaluate(positions):
        return 0.5 * k * float((positions**2).sum()), positions @ (turn.T - k * np.eye(3))

    return FunctionForces(evaluate)


def sampler(target, proposal, n_atoms=8, **options):
    atoms = Atoms(f"C{n_atoms}", np.random.default_rng(7).normal(0, 0.03, (n_atoms, 3)))
    options = {
        "timestep": 2.0 * units.FS,
        "temperature_K": TEMPERATURE,
        "trajectory_steps": 7,
        "friction": 0.05 / units.FS,
        "warmup": 0,
        "rng": np.random.default_rng(11),
        **options,
    }
    return ExactNVT(atoms, options.pop("timestep"), target, proposal, **options)


def mean_square(dynamics, steps):
    squares = [(dynamics.atoms.positions**2).mean() for _ in dynamics.irun(steps)]
    return np.mean(squares)


@pytest.mark.parametrize("swirl", [0.0, 3.0], ids=["gradient", "no gradient"])
def test_ensemble_is_that_of_the_target_for_a_wrong_proposal(swirl):
    found = sampler(EnergyOnly(K, np.zeros((8, 3))), spring(0.9 * K, swirl))
    assert mean_square(found, 5000) == pytest.approx(EXACT, rel=0.02)
    assert 0.4 < found.acceptance < 0.99
    # One that believes the proposal is off by its force constant.
    believed = sampler(spring(0.9 * K), spring(0.9 * K))
    assert mean_square(believed, 5000) > 1.05 * EXACT


def test_momenta_stay_maxwellian():
    dynamics = sampler(spring(K), spring(0.7 * K), friction=0.005 / units.FS)
    kinetic = [dynamics.atoms.get_kinetic_energy() for _ in dynamics.irun(5000)]
    assert np.mean(kinetic) == pytest.approx(0.5 * 24 * units.KB * TEMPERATURE, rel=0.03)
    assert dynamics.acceptance < 0.9


def test_target_is_asked_for_one_energy_in_each_step():
    target = EnergyOnly(K, np.zeros((8, 3)))
    dynamics = sampler(target, spring(0.9 * K))
    dynamics.run(50)
    assert target.count == 1 + 50
    found = dynamics.atoms.get_potential_energy()
    assert found == pytest.approx(0.5 * K * (dynamics.atoms.positions**2).sum())
    with pytest.raises(PropertyNotImplementedError):
        dynamics.atoms.get_forces()


def test_momenta_turn_round_where_a_trajectory_is_rejected():
    dynamics = sampler(spring(K), spring(K), timestep=40 * units.FS, friction=1e-20)
    before, momenta = dynamics.atoms.get_positions(), dynamics.atoms.get_momenta()
    dynamics.step()
    assert dynamics.samples.accepted == [False]
    assert np.array_equal(dynamics.atoms.positions, before)
    assert np.allclose(dynamics.atoms.get_momenta(), -momenta, rtol=0, atol=1e-12)


def test_warm_up_finds_the_step_length_and_leaves_it():
    dynamics = sampler(spring(K), spring(K), timestep=0.2 * units.FS, warmup=300)
    dynamics.run(300)
    assert not dynamics.warming_up
    frozen = dynamics.dt
    assert len(dynamics.samples) == 0
    dynamics.run(1000)
    assert dynamics.dt == frozen > 2 * units.FS
    assert dynamics.acceptance == pytest.approx(ACCEPTANCE, abs=0.07)


def test_step_length_settles_where_the_acceptance_is_as_wanted():
    rng, length = np.random.default_rng(0), StepLength(1.0, 2000)
    while length.adapting:
        length.update(min(1.0, np.exp(-length.value) * rng.uniform(0.9, 1.1)))
    assert np.exp(-length.value) == pytest.approx(ACCEPTANCE, abs=0.01)


def test_summary_tells_what_the_proposal_alone_would_have_made_of_it():
    dynamics = sampler(spring(K), spring(0.9 * K))
    dynamics.run(4000)
    found = summarise_exact(dynamics)
    exact_energy = 0.5 * 24 * units.KB * TEMPERATURE
    assert found.steps == 4000
    assert found.acceptance == dynamics.acceptance
    assert found.energy.value == pytest.approx(exact_energy, abs=4 * found.energy.standard_error)
    assert found.proposal is not None
    # In the proposal's ensemble the target's energy is larger by 1/0.9.
    shift = exact_energy * (1 / 0.9 - 1) / units.MEV
    assert found.proposal.energy_shift_meV == pytest.approx(shift, rel=0.2)
    assert 0.5 < found.proposal.overlap < 1.0
    assert found.effective_samples_per_call == pytest.approx(found.effective_samples / 4000)


def test_effective_samples_of_a_correlated_series():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=20000)
    assert effective_samples(noise) == pytest.approx(20000, rel=0.3)
    kept, series = 0.9, np.empty_like(noise)
    series[0] = noise[0]
    for i in range(1, len(noise)):
        series[i] = kept * series[i - 1] + noise[i]
    assert effective_samples(series) == pytest.approx(20000 * (1 - kept) / (1 + kept), rel=0.3)


class Fragile(Tethers):
    """Fails beyond a distance, as self-consistent fields do."""

    def calculate(self, atoms=None, *arguments, **options):
        if np.abs(atoms.positions).max() > 0.06:
            raise CalculationFailed("no convergence")
        super().calculate(atoms, *arguments, **options)


def test_failed_evaluations_are_rejected_and_counted():
    dynamics = sampler(Fragile(K, np.zeros((1, 3))), spring(K), n_atoms=1)
    dynamics.atoms.positions[:] = 0.01
    found = [np.abs(dynamics.atoms.positions).max() for _ in dynamics.irun(300)]
    assert max(found) <= 0.06
    assert 0 < summarise_exact(dynamics).failed < 300
    # What fails at the start is no rejection.
    dynamics.atoms.positions[:] = 0.1
    with pytest.raises(Exception, match="no convergence"):
        dynamics.step()


def test_frames_where_the_proposal_is_wrong_are_training_data(tmp_path):
    path, anchors = tmp_path / "wrong.traj", water().positions
    target = Tethers(K, anchors)
    target.parameters["charge"] = 2
    proposal = FunctionForces(Tethers(0.4 * K, anchors).harmonic.energy_and_forces)
    options = {"temperature_K": TEMPERATURE, "trajectory_steps": 9, "warmup": 0}
    options |= {"frames_file": path, "rng": np.random.default_rng(0)}
    dynamics = ExactNVT(water(), 1.0 * units.FS, target, proposal, **options)
    dynamics.run(40)
    changes, accepted = np.array(dynamics.samples.changes), np.array(dynamics.samples.accepted)
    far = np.abs(changes) > 2 * units.KB * TEMPERATURE
    # Not `read_dataset`, which refuses forces of tethers.
    frames = ase.io.read(path, ":")
    assert len(frames) == (far | ~accepted).sum() > 0
    for atoms in frames:
        assert electronic_state(atoms, results=atoms.calc.results).charge == 2
        energy, forces = target.harmonic.energy_and_forces(atoms.positions)
        assert np.isclose(atoms.get_potential_energy(), energy)
        assert np.allclose(atoms.get_forces(), forces)
    contrary = water()
    contrary.info["charge"] = -2
    with pytest.raises(InputError, match="charge"):
        ExactNVT(contrary, 1.0 * units.FS, target, proposal, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature_K": 0.0}, r"temperature_K=0\.0"),
        ({"trajectory_steps": 0}, "trajectory_steps=0"),
        ({"friction": 0.0}, r"friction=0\.0"),
        ({"warmup": -1}, "warmup=-1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        sampler(spring(K), spring(K), **options)


def test_random_orientations_and_missing_energies_are_refused():
    options = {"temperature_K": TEMPERATURE}
    turning = Potential(toy_model(), forces="direct", rotation="random")
    with pytest.raises(ConfigError, match="cannot be reversed"):
        ExactNVT(water(), 1.0, Tethers(K, water().positions), turning, **options)
    blind = Potential(toy_model(), forces="direct", rotation="none")
    blind.prediction.head = None
    with pytest.raises(ConfigError, match="knows no energy"):
        ExactNVT(water(), 1.0, blind, spring(K), **options)
    with pytest.raises(InputError, match="warm-up"):
        summarise_exact(sampler(spring(K), spring(K), warmup=5))
    with pytest.raises(ConfigError, match="cannot be changed"):
        sampler(spring(K), spring(K)).set_timestep(1.0)
    for timestep in (0.0, -1.0, math.inf):
        with pytest.raises(ConfigError, match=r"timestep=.*must be a positive number"):
            sampler(spring(K), spring(K), timestep=timestep)


# ---- restarts of all dynamics with force models ----------------------------------------------


def test_goes_on_in_another_process_bit_for_bit(tmp_path, monkeypatch):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    whole = restart_child.run(30)
    monkeypatch.chdir(tmp_path / "parts")
    # Both stop five steps after their restart files.
    for steps in (12, 13):
        run_child(script, restart_child.__file__, steps, cwd=tmp_path / "parts")
    parts = restart_child.run(15)
    for kind, known in whole.items():
        found = parts[kind]
        assert found.nsteps == known.nsteps == 30
        assert np.array_equal(found.atoms.positions, known.atoms.positions)
        assert np.array_equal(found.atoms.get_momenta(), known.atoms.get_momenta())
    assert 0 < parts["exact_mts"].accepted == whole["exact_mts"].accepted < 30
    for name in ("mts.traj", "exact_mts.traj", "exact.traj", "far.traj"):
        with Trajectory(tmp_path / "whole" / name) as one, Trajectory(name) as other:
            assert len(one) == len(other) > 0
            for a, b in zip(one, other, strict=True):
                assert np.array_equal(a.positions, b.positions)
                assert a.get_potential_energy() == b.get_potential_energy()
    assert parts["exact"].samples == whole["exact"].samples
    assert len(whole["exact"].samples) == 20


def test_restart_file_of_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mts = restart_child.mts()
    mts.save_restart("run.npz")
    with pytest.raises(ModelFileError, match="belongs to another run"):
        restart_child.exact(restart="run.npz")
    exact = restart_child.exact()
    exact.save_restart("exact.npz")
    atoms = water()
    atoms.calc = Springs(20.0, 1.0)
    with pytest.raises(ModelFileError, match="belongs to another run"):
        MTSVelocityVerlet(atoms, 1.0, spring(K), inner_steps=2, restart="exact.npz")
    with pytest.raises(ModelFileError, match="friction is"):
        MTSLangevin(
            atoms,
            1.0 * units.FS,
            Springs(17.0, 1.0),
            inner_steps=2,
            temperature_K=300,
            friction=0.02 / units.FS,
            restart="run.npz",
        )
    assert Path("far.traj").exists()
