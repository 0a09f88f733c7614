"""Frictions of elements that make up for energy which jumps pass from one to another."""

from dataclasses import replace

import numpy as np
import pytest
from jump_systems import forces_of, make_state, springs, springs_state

from mlmd_calc import units
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation import (
    Bussi,
    Corrections,
    Guard,
    JumpLoop,
    Langevin,
    State,
    VerletPropagator,
)
from mlmd_calc.propagation.harmonic import HarmonicPropagator

STRIDE = 8.0
PER_JUMP = 0.002
"""Share of the velocities that a jump takes from hydrogen and gives to carbon."""

BALANCED = replace(Corrections.none(), balance_elements=True)


class Passing(HarmonicPropagator):
    """Takes kinetic energy from hydrogen and gives it to carbon, as errors of learned jumps do."""

    conserves_energy = False

    def propagate(self, states, times_fs, generator):
        numbers = states[0].numbers
        factor = 1.0 + PER_JUMP * ((numbers == 6).astype(float) - (numbers == 1))
        frames = super().propagate(states, times_fs, generator)
        return [replace(f, velocities=factor[:, None] * f.velocities) for f in frames]


def oscillators(propagator, corrections, *, friction=0.002):
    """Sixteen molecules of atoms on springs of their own: four H, four C and four O each."""
    rng = np.random.default_rng(5)
    numbers = np.repeat([1, 6, 8], 4)
    anchors = 5.0 * rng.normal(size=(len(numbers), 3))
    return JumpLoop(
        [make_state(numbers, anchors)] * 16,
        propagator(Harmonic.tethers(5.0, anchors)),
        STRIDE,
        thermostat=Langevin(300.0, friction),
        corrections=corrections,
        guard=Guard.off(),
        rng=rng,
    )


def temperatures(state, fix_centre=False):
    """Kinetic temperatures of H, C and O in K."""
    squares = state.masses * ((state.velocities / units.FS) ** 2).sum(axis=1)
    free = 3.0 - (3.0 * state.masses / state.masses.sum() if fix_centre else 0.0)
    degrees = np.broadcast_to(free, len(state)).reshape(3, -1).sum(axis=1)
    return squares.reshape(3, -1).sum(axis=1) / (degrees * units.KB)


def observed(loop, steps, observe):
    """What is seen of all molecules after each step but the first 4 ps, and their frictions."""
    seen, frictions = [], []
    for step in range(steps + 500):
        loop.advance()
        if step >= 500:
            seen.append([observe(state) for state in loop.states])
            frictions.append([list(one.values()) for one in loop.element_frictions])
    return np.array(seen), np.array(frictions)


def error_of(values):
    """Standard errors of means, from the scatter of the molecules."""
    return values.mean(axis=0).std(axis=0, ddof=1) / np.sqrt(values.shape[1])


def assert_means(values, expected):
    assert (np.abs(values.mean(axis=(0, 1)) - expected) < 4.0 * error_of(values)).all()


def test_elements_have_their_share_although_jumps_pass_energy():
    off, _ = observed(oscillators(Passing, Corrections.none()), 500, temperatures)
    hydrogen, carbon, _ = off.mean(axis=(0, 1))
    assert hydrogen < 270.0
    assert carbon > 330.0
    on, frictions = observed(oscillators(Passing, BALANCED), 1500, temperatures)
    np.testing.assert_allclose(on.mean(axis=(0, 1)), 300.0, rtol=0.03)
    # What each jump takes is a friction of that much per stride.
    rate = 1000.0 * PER_JUMP / STRIDE
    assert_means(frictions, [-rate, rate, 0.0])
    assert abs(rate) > 4.0 * error_of(frictions).max()


def test_right_jumps_stay_canonical():
    loop = oscillators(HarmonicPropagator, BALANCED, friction=0.02)
    anchors = loop.propagator.harmonic.equilibrium
    seen, frictions = observed(
        loop, 1000, lambda s: (s.positions - anchors, s.velocities * np.sqrt(s.masses)[:, None])
    )
    by_element = seen.reshape(len(seen), 16, 2, 3, 12).var(axis=(0, 1, 4))
    kt = units.KB * 300.0
    np.testing.assert_allclose(by_element[0] / (kt / 5.0), 1.0, rtol=0.03)
    np.testing.assert_allclose(by_element[1] / (kt * units.FS**2), 1.0, rtol=0.03)
    # Normally distributed with a variance of γ² / degrees.
    assert_means(frictions, 0.0)
    np.testing.assert_allclose(frictions.std(axis=(0, 1)), 20.0 / np.sqrt(12.0), rtol=0.05)


def test_a_centre_of_mass_at_rest_stays_there_and_is_not_counted():
    corrections = Corrections(fix_centre=True, balance_elements=True, rescale_energy=False)
    harmonic = springs(6)
    start = springs_state(6)
    start = State(start.positions, start.velocities, np.repeat([1, 6, 8], 2), start.masses)
    loop = JumpLoop(
        [start] * 16,
        HarmonicPropagator(harmonic),
        STRIDE,
        thermostat=Langevin(300.0, 0.02),
        corrections=corrections,
        guard=Guard.off(),
        rng=np.random.default_rng(1),
    )
    seen, frictions = observed(loop, 1000, lambda s: temperatures(s, fix_centre=True))
    np.testing.assert_allclose(seen.mean(axis=(0, 1)), 300.0, rtol=0.03)
    assert_means(frictions, 0.0)
    for state in loop.states:
        np.testing.assert_allclose(state.masses @ state.velocities, 0.0, atol=1e-15)


def made(propagator, thermostat, **options):
    harmonic = springs()
    return JumpLoop(
        [springs_state()],
        propagator(harmonic),
        STRIDE,
        thermostat=thermostat,
        forces=forces_of(harmonic),
        **options,
    )


def test_it_is_on_where_jumps_have_errors():
    langevin = Langevin(300.0, 0.01)
    assert made(Passing, langevin).setup.corrections.balance_elements
    assert not made(HarmonicPropagator, langevin).setup.corrections.balance_elements
    assert not made(Passing, None).setup.corrections.balance_elements
    assert not made(Passing, Bussi(300.0, 100.0)).setup.corrections.balance_elements
    verlet = made(lambda h: VerletPropagator(forces_of(h), 0.5), langevin)
    assert not verlet.setup.corrections.balance_elements


@pytest.mark.parametrize("thermostat", [None, Bussi(300.0, 100.0)])
def test_other_thermostats_are_refused(thermostat):
    with pytest.raises(ConfigError, match="only 'langevin'"):
        made(Passing, thermostat, corrections=BALANCED)
    loop = made(Passing, Langevin(300.0, 0.01), corrections=BALANCED)
    if thermostat is not None:
        with pytest.raises(ConfigError, match="only 'langevin'"):
            loop.thermostat = thermostat
