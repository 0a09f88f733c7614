"""Corrections keep what they claim to keep, for molecules of every shape."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import molecule
from jump_systems import make_state, springs, springs_state

from mlmd_calc.propagation import (
    Corrections,
    Frames,
    Guard,
    JumpLoop,
    Propagator,
    State,
    state_from_ase,
)
from mlmd_calc.propagation.corrections import (
    angular_momentum,
    centre_of_mass,
    rigid_basis,
    rigid_velocities,
)
from mlmd_calc.propagation.harmonic import HarmonicPropagator

NAMES = ("Ne", "N2", "CO2", "C2H2", "H2O", "CH3CH2OH")
LINEAR = ("Ne", "N2", "CO2", "C2H2")


def system(name, offset=0.0):
    """A molecule in motion, turned out of the axes, and what a bad jump makes of it."""
    atoms = molecule(name) if name != "Ne" else molecule("H2O")[:1]
    atoms.rotate(37.0, (1, 2, 3))
    state = state_from_ase(atoms)
    before = make_state(state.numbers, state.positions + offset, seed=1)
    rng = np.random.default_rng(2)
    spread = np.zeros(3) if len(atoms) == 1 else 0.02 * atoms.positions
    after = replace(
        before,
        # Linear molecules stay linear.
        positions=before.positions + spread + 0.1 * rng.normal(size=3),
        velocities=before.velocities + 1e-3 * rng.normal(size=before.velocities.shape),
        time=8.0,
    )
    return before, after


def test_what_is_known_of_positions_is_known_of_these_alone():
    asked = []

    def centre(state):
        asked.append(state)
        return centre_of_mass(state.positions, state.masses)

    before, after = system("CH3CH2OH")
    first = before.once(centre)
    for same in (before, before.changed(velocities=after.velocities, energy=1.0)):
        np.testing.assert_array_equal(same.once(centre), first)
    assert asked == [before]
    heavy = 2.0 + before.masses
    for other in (before.moved_to(after.positions), replace(before, masses=heavy)):
        expected = centre_of_mass(other.positions, other.masses)
        np.testing.assert_array_equal(other.once(centre), expected)


@pytest.mark.parametrize("name", NAMES)
def test_centre_of_mass_and_momenta_are_kept(name):
    before, after = system(name)
    fixed = Corrections().apply(before, after)
    masses = before.masses
    drift = centre_of_mass(before.velocities, masses)
    way = centre_of_mass(fixed.positions, masses) - centre_of_mass(before.positions, masses)
    np.testing.assert_allclose(way, 8.0 * drift, atol=1e-14)
    np.testing.assert_allclose(centre_of_mass(fixed.velocities, masses), drift, atol=1e-16)
    assert np.isfinite(fixed.velocities).all()
    kept, wanted = angular_momentum(fixed), angular_momentum(before)
    if name in LINEAR and len(before) > 1:
        # Along the axis a linear molecule has none to keep.
        axis = fixed.positions[0] - fixed.positions[1]
        axis = axis / np.linalg.norm(axis)
        kept, wanted = (vector - (vector @ axis) * axis for vector in (kept, wanted))
    np.testing.assert_allclose(kept, wanted, atol=1e-13)
    assert np.abs(fixed.positions - after.positions).max() > 1e-3
    np.testing.assert_allclose(np.ptp(fixed.positions - after.positions, axis=0), 0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_each_correction_can_be_left_out(name):
    before, after = system(name)
    same = Corrections.none().apply(before, after)
    np.testing.assert_array_equal(same.positions, after.positions)
    np.testing.assert_array_equal(same.velocities, after.velocities)
    moved = replace(Corrections.none(), centre_of_mass=True).apply(before, after)
    np.testing.assert_array_equal(moved.velocities, after.velocities)
    pushed = replace(Corrections.none(), momentum=True).apply(before, after)
    np.testing.assert_array_equal(pushed.positions, after.positions)
    np.testing.assert_allclose(angular_momentum(pushed), angular_momentum(after), atol=1e-13)
    turned = replace(Corrections.none(), angular_momentum=True).apply(before, after)
    np.testing.assert_allclose(
        centre_of_mass(turned.velocities, before.masses),
        centre_of_mass(after.velocities, before.masses),
        atol=1e-16,
    )


def test_the_angular_momentum_is_kept_by_the_smallest_change():
    before, after = system("CH3CH2OH")
    kick = replace(
        after, velocities=Corrections().apply(before, after).velocities - after.velocities
    )
    # Nothing but rigid motion is changed.
    np.testing.assert_allclose(
        rigid_velocities(kick, rigid_basis(after)), kick.velocities, atol=1e-15
    )


def test_molecules_far_away_lose_nothing():
    near, far = (Corrections().apply(*system("H2O", offset)) for offset in (0.0, 1e6))
    np.testing.assert_allclose(far.velocities, near.velocities, atol=1e-12)


def test_a_nearly_linear_molecule_does_not_start_to_spin():
    before, _ = system("C2H2")
    rng = np.random.default_rng(0)
    bent = before.positions + 1e-3 * rng.normal(size=before.positions.shape)
    after = replace(before, positions=bent, velocities=before.velocities.copy(), time=8.0)
    fixed = Corrections().apply(before, after)
    change = np.abs(fixed.velocities - before.velocities).max()
    assert change < 0.1 * np.abs(before.velocities).max()


@pytest.mark.parametrize("name", [*NAMES[1:]])
def test_rescaling_sets_the_energy_and_nothing_else(name):
    before, after = system(name)
    corrections = Corrections(rescale_energy=True)
    after = replace(corrections.apply(before, after), energy=0.3)
    total = 0.3 + after.kinetic_energy + 0.01
    scaled = corrections.rescale(after, total)
    assert scaled.kinetic_energy + 0.3 == pytest.approx(total, rel=1e-14)
    for measure in (angular_momentum, lambda s: centre_of_mass(s.velocities, s.masses)):
        np.testing.assert_allclose(measure(scaled), measure(after), atol=1e-13)
    # Less than the motion of the whole, which is not scaled.
    assert corrections.rescale(after, 0.3) is None
    assert corrections.rescale(after, 0.2) is None


def test_nothing_to_rescale_is_not_rescaled():
    _, after = system("Ne")
    assert Corrections().rescale(replace(after, energy=0.0), 1.0) is None


def test_a_fixed_centre_stays():
    start = springs_state()
    loop = JumpLoop(
        [start],
        HarmonicPropagator(springs()),
        8.0,
        corrections=Corrections(fix_centre=True),
        guard=Guard.off(),
    )
    for _ in range(20):
        loop.advance()
    end = loop.states[0]
    np.testing.assert_allclose(centre_of_mass(end.velocities, end.masses), 0.0, atol=1e-16)
    np.testing.assert_allclose(
        centre_of_mass(end.positions, end.masses),
        centre_of_mass(start.positions, start.masses),
        atol=1e-13,
    )


class Watching(Propagator):
    """Keeps what it is shown, and moves everything along x."""

    def __init__(self):
        self.shown = []

    def propagate(self, states, times_fs, generator):
        self.shown += states
        return [
            Frames(
                np.array(times_fs),
                s.positions[None] + np.array([0.1, 0.0, 0.0]),
                s.velocities[None] + np.array([0.0, 1e-3, 0.0]),
            )
            for s in states
        ]


@pytest.mark.parametrize("rotation", [True, False])
def test_every_jump_is_made_in_another_orientation(rotation):
    watching, start = Watching(), springs_state()
    corrections = replace(Corrections.none(), random_rotation=rotation)
    loop = JumpLoop([start] * 2, watching, 8.0, corrections=corrections, guard=Guard.off())
    for _ in range(2):
        loop.advance()
    if not rotation:
        np.testing.assert_array_equal(watching.shown[0].positions, start.positions)
        moved = loop.states[0].positions - start.positions
        np.testing.assert_allclose(moved, np.tile([0.2, 0.0, 0.0], (5, 1)), atol=1e-14)
        return
    for state in watching.shown:
        np.testing.assert_allclose(centre_of_mass(state.positions, state.masses), 0.0, atol=1e-14)
    first, second = (state.positions for state in watching.shown[:2])
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-14)
    assert np.abs(first - second).max() > 1e-2
    # Turned back, the shift is one of the same length in a random direction.
    steps = [state.positions - start.positions for state in loop.states]
    assert np.abs(steps[0] - steps[1]).max() > 1e-2
    for step in steps:
        np.testing.assert_allclose(np.ptp(step, axis=0), 0.0, atol=1e-13)
        assert 0.0 < np.linalg.norm(step[0]) < 0.2


def test_rotations_change_nothing_for_an_equivariant_propagator():
    ends = []
    for rotation in (True, False):
        loop = JumpLoop(
            [springs_state()],
            HarmonicPropagator(springs()),
            8.0,
            corrections=Corrections(random_rotation=rotation),
            guard=Guard.off(),
        )
        for _ in range(20):
            loop.advance()
        ends.append(loop.states[0])
    np.testing.assert_allclose(ends[0].positions, ends[1].positions, atol=1e-12)
    np.testing.assert_allclose(ends[0].velocities, ends[1].velocities, atol=1e-13)


def test_a_state_is_one_atom_at_least_and_may_be_just_one():
    atom = State([[1.0, 2.0, 3.0]], [[1e-3, 0.0, 0.0]], [18], [39.9])
    loop = JumpLoop([atom], HarmonicPropagator(springs(1)), 10.0)
    loop.advance()
    np.testing.assert_allclose(loop.states[0].positions, [[1.01, 2.0, 3.0]], atol=1e-14)
    assert len(loop.events) == 0
