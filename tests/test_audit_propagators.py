"""Audit of propagators: estimators on systems with known answers, and planted faults."""

import math
from dataclasses import replace

import numpy as np
import pytest
from audit_systems import MINIMUM, NUMBERS, SHAPE, Forgetful, Jumps, heating, in_ase_units, springs
from test_audit_forces import by_name, failures

from mlmd_calc import units
from mlmd_calc.analysis.audit import chain, jump
from mlmd_calc.analysis.audit.forces import temperature_measurements
from mlmd_calc.analysis.audit.measurement import Verdict
from mlmd_calc.analysis.audit.propagators import JumpConditions, PropagatorAudit
from mlmd_calc.analysis.audit.settings import AuditSettings
from mlmd_calc.analysis.jump_ensemble import Sample
from mlmd_calc.analysis.jump_map import JumpMap
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation import (
    Conditions,
    Corrections,
    FunctionForces,
    Langevin,
    State,
    Strides,
    VerletPropagator,
)
from mlmd_calc.propagation.harmonic import HarmonicPropagator
from mlmd_calc.propagation.thermostats import draw_velocities

WATER = FunctionForces(springs)
MASSES = np.array([16.0, 1.0, 1.0])
STRIDE = 4.0
SMALL = AuditSettings(jump_replicas=24, states=480)
STRONG = JumpConditions(STRIDE, friction_per_ps=40.0)


def rng():
    """The same random numbers every time."""
    return np.random.default_rng(2)


def warm_states(count):
    """States of water with thermal velocities."""
    random = rng()
    start = State(SHAPE, np.zeros((3, 3)), NUMBERS, MASSES)
    return [replace(start, velocities=draw_velocities(start, 300.0, random)) for _ in range(count)]


# ---- single jumps ----------------------------------------------------------------------------


def test_exact_motion_on_springs_has_no_errors():
    """Springs of zero rest length: quadratic, and the same from all sides."""
    harmonic = Harmonic.springs(np.full((3, 3), 5.0))
    exact, forces = HarmonicPropagator(harmonic), FunctionForces(harmonic.energy_and_forces)
    states, map_ = warm_states(6), JumpMap(HarmonicPropagator(harmonic), STRIDE)
    assert jump.reversibility_percent(map_, states).value < 1e-9
    assert jump.log_determinant(map_, states[:2]).value < 1e-9
    assert jump.flight_percent(map_, states).value < 1e-9
    assert jump.rotation_percent(exact, forces, states[:2], STRIDE).value < 1e-9
    assert np.abs(jump.jump_energies(map_, forces, states, 300.0).changes).max() < 1e-12
    # Force-based steps follow slow springs to second order.
    response = jump.momentum_response_percent(exact, forces, states, STRIDE, 300.0, rng())
    assert response.value < 0.5


def test_known_heating():
    """A factor c brings (c² − 1) of the kinetic energy at the end of each jump."""
    states = warm_states(200)
    found, sound = (
        jump.jump_energies(JumpMap(one, STRIDE), WATER, states, 300.0)
        for one in (heating(), Jumps())
    )
    kinetic = np.array([state.kinetic_energy for state in JumpMap(Jumps(), STRIDE)(states)])
    assert found.changes - sound.changes == pytest.approx((1.005**2 - 1.0) * kinetic)
    scale = 9 * units.KB * 300.0 * STRIDE / units.FS_PER_PS
    estimate = found.heating_percent_per_ps
    assert estimate.value == pytest.approx(100.0 * found.changes.mean() / scale)
    error = found.changes.std(ddof=1) / np.sqrt(200)
    assert estimate.standard_error == pytest.approx(100.0 * error / scale)


def test_a_metropolis_test_rejects_half_of_what_costs_more():
    costs = np.array([-1.0, math.log(2.0) * units.KB * 300.0])
    assert jump.EnergyChanges(costs, 3, STRIDE, 300.0).rejected_percent.value == pytest.approx(25.0)


def test_log_determinant_of_scaled_velocities():
    found = jump.log_determinant(JumpMap(heating(), STRIDE), warm_states(3))
    assert found.value == pytest.approx(9 * math.log(1.005), rel=1e-4)


def test_wrong_unit_of_velocity_shows_in_the_flight_of_the_centre():
    found = jump.flight_percent(JumpMap(in_ase_units(), STRIDE), warm_states(4))
    assert found.value == pytest.approx(100.0 * (1.0 - units.FS))


def test_ignored_momenta_have_no_response():
    states = warm_states(4)
    ignored = jump.momentum_response_percent(Forgetful(), WATER, states, STRIDE, 300.0, rng())
    assert ignored.value == pytest.approx(100.0)
    heard = jump.momentum_response_percent(Jumps(), WATER, states, STRIDE, 300.0, rng())
    assert heard.value < 1e-9


# ---- runs ------------------------------------------------------------------------------------


def thermostatted(temperature_K, friction_per_fs, frames, replicas=16):
    """Velocities under a thermostat alone, as a sample of molecules that stay in place."""
    random, thermostat = rng(), Langevin(temperature_K, friction_per_fs)
    states = warm_states(replicas)
    kept = []
    for _ in range(frames):
        states = [thermostat.apply(s, STRIDE, Corrections.none(), random) for s in states]
        kept.append([replace(state, time=len(kept) * STRIDE) for state in states])
    return Sample.from_states(kept)


def test_a_thermostat_with_a_known_bias():
    sample = thermostatted(360.0, 0.1, frames=400).without_first(0.1)
    whole, *elements = temperature_measurements(sample, 300.0)
    assert whole.value == pytest.approx(20.0, abs=3 * whole.standard_error)
    assert whole.verdict is Verdict.FAIL
    for one in elements:
        assert one.value == pytest.approx(20.0, abs=3 * one.standard_error)


def test_autocorrelation_of_friction_and_noise():
    """C(t) = exp(−γ t)."""
    friction = 0.05
    found = chain.autocorrelations(thermostatted(300.0, friction, frames=1000), 60)
    mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(len(found))
    known = np.exp(-friction * STRIDE * np.arange(60))
    assert np.abs((mean - known)[1:] / error[1:]).max() < 4.5
    left = chain.remaining_correlation(found, slice(30, 60))
    assert left.value + 2 * left.standard_error < 0.15


def test_momenta_that_stay_are_fully_correlated():
    kept = [[replace(s, time=STRIDE * i) for s in warm_states(8)] for i in range(30)]
    found = chain.autocorrelations(Sample.from_states(kept), 20)
    assert chain.remaining_correlation(found, slice(10, 20)).value == pytest.approx(1.0, abs=0.3)
    with pytest.raises(InputError, match="run longer"):
        chain.autocorrelations(Sample.from_states(kept), 30)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_energies_remember_what_a_thermostat_leaves(decay):
    """Energies that forget a tenth of their deviation in every frame: C = 0.9ⁿ."""
    random = rng()
    energies = [random.standard_normal(40)]
    for _ in range(400):
        noise = random.standard_normal(40)
        energies.append(decay * energies[-1] + math.sqrt(1.0 - decay**2) * noise)
    found = chain.remaining_energy_correlation(np.array(energies), slice(5, 8))
    known = np.mean(decay ** np.arange(5, 8))
    assert found.value == pytest.approx(known, abs=3 * found.standard_error + 0.02)
    assert found.standard_error < 0.06


@pytest.mark.parametrize("turning", [0.0, 0.5])
def test_arrow_of_time_of_a_driven_oscillator(turning):
    """Two coordinates with friction and noise, driven in a circle: C₁₂ − C₂₁ = 2 e⁻ᵗ sin ω t."""
    step, frames, replicas = 0.5, 1000, 16
    decay = np.exp(-step)
    cos, sin = math.cos(turning * step), math.sin(turning * step)
    matrix = decay * np.array([[cos, sin], [-sin, cos]])
    random = rng()
    x = random.standard_normal((replicas, 2))
    series = []
    for _ in range(frames):
        noise = random.standard_normal((replicas, 2))
        x = x @ matrix.T + math.sqrt(1.0 - decay**2) * noise
        series.append(x)
    found = chain.time_asymmetry(np.array(series), (1, 2))
    known = [2.0 * math.exp(-n * step) * math.sin(turning * n * step) for n in (1, 2)]
    expected = math.sqrt(np.mean(np.square(known)))
    assert found.value == pytest.approx(expected, abs=3 * found.standard_error)
    assert found.standard_error < 0.05


def test_one_quantity_has_no_arrow_of_time():
    with pytest.raises(InputError, match="1 quantities"):
        chain.time_asymmetry(np.zeros((10, 4, 1)), (1,))


# ---- whole audits ----------------------------------------------------------------------------


def audit_of(propagator):
    """Audit of a propagator of water."""
    return PropagatorAudit(propagator, WATER, MINIMUM, SMALL, STRONG)


def test_force_based_steps_pass():
    found = by_name(audit_of(VerletPropagator(WATER, 0.5)))
    failed = {name for name, one in found.items() if one.verdict is Verdict.FAIL}
    assert not failed
    for name in (
        "flight of the centre of mass",
        "rotation of jumps",
        "way back after a jump and its reverse",
        "log |det J|",
        "heating by jumps",
        "jumps that a Metropolis test rejects",
        "response to new momenta",
        "velocity correlation that is left",
        "energy correlation that is left",
    ):
        assert found[name].verdict is Verdict.PASS, found[name]


def test_a_heating_propagator_is_caught():
    found = failures(audit_of(heating()), "single jumps", "energies")
    assert {"heating by jumps", "log |det J|"} <= found


def test_a_wrong_unit_of_velocity_is_caught():
    found = failures(audit_of(in_ase_units()), "single jumps", "new momenta")
    assert {"flight of the centre of mass", "response to new momenta"} <= found


def test_momenta_that_are_not_refreshed_are_caught():
    found = failures(audit_of(Forgetful()), "new momenta", "run of jumps")
    assert {"response to new momenta", "energy correlation that is left"} <= found


def test_a_run_that_is_refused_is_told():
    """Less friction than the propagator asks for."""
    careful = Jumps()
    careful.conditions = Conditions(lowest_friction_per_ps=100.0)
    audit = PropagatorAudit(careful, WATER, MINIMUM, AuditSettings.quick(), STRONG)
    (lost,) = by_name(audit, "run of jumps").values()
    assert lost.verdict is Verdict.CANNOT_TELL
    assert "40/ps is too low" in lost.note


def test_random_jumps_are_no_map():
    noisy = Jumps()
    noisy.stochastic = True
    found = by_name(PropagatorAudit(noisy, WATER, MINIMUM, AuditSettings.quick(), STRONG))
    for name in ("log |det J|", "way back after a jump and its reverse"):
        assert found[name].verdict is Verdict.CANNOT_TELL
        assert "random numbers" in found[name].note


def test_conditions_are_those_of_the_card():
    propagator = Jumps()
    assert JumpConditions.usual(propagator, None, None) == JumpConditions(0.5, 10.0)
    propagator.conditions = Conditions(stride_fs=8.0, friction_per_ps=20.0)
    assert JumpConditions.usual(propagator, None, None) == JumpConditions(8.0, 20.0)
    assert JumpConditions.usual(propagator, 4.0, 5.0) == JumpConditions(4.0, 5.0)
    propagator.conditions, propagator.strides = Conditions(), Strides()
    with pytest.raises(ConfigError, match="--stride"):
        JumpConditions.usual(propagator, None, None)
