"""Exact and Verlet propagators, conservation, and sampled distributions."""

import numpy as np
import pytest
from analytic_potentials import Morse
from ase import Atoms
from ase.md.verlet import VelocityVerlet
from jump_systems import forces_of, make_state, springs, springs_state, tethered

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.md.attached import AttachedCalculator
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation import (
    Bussi,
    Corrections,
    FunctionForces,
    Guard,
    JumpLoop,
    Langevin,
    State,
    Strides,
    VerletPropagator,
    state_from_ase,
)
from mlmd_calc.propagation.corrections import angular_momentum, centre_of_mass
from mlmd_calc.propagation.harmonic import HarmonicPropagator


def one(propagator, state, *times):
    """Frames of a single state."""
    return propagator.propagate([state], times, None)[0]


def total_energy(harmonic, state):
    return harmonic.energy_and_forces(state.positions)[0] + state.kinetic_energy


def test_diatomic_swings_with_its_frequency():
    masses = np.array([12.0, 16.0])
    frequencies = Harmonic.springs(80.0 * np.ones((2, 2))).frequencies(masses)
    expected = np.sqrt(80.0 * masses.sum() / masses.prod()) * units.FS
    np.testing.assert_allclose(frequencies, [0, 0, 0, *3 * [expected]], atol=1e-12)


def test_harmonic_forces_are_the_slope_of_the_energy():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(9, 9))
    harmonic = Harmonic(root @ root.T, rng.normal(size=(3, 3)))
    x = rng.normal(size=(3, 3))
    forces = harmonic.energy_and_forces(x)[1]
    for index in np.ndindex(3, 3):
        step = np.zeros((3, 3))
        step[index] = 1e-5
        up, down = (harmonic.energy_and_forces(x + sign * step)[0] for sign in (1, -1))
        assert forces[index] == pytest.approx((down - up) / 2e-5, abs=1e-7)


def test_exact_motion_obeys_newton_and_composes():
    harmonic, state = springs(), springs_state()
    exact = HarmonicPropagator(harmonic)
    errors = []
    for timestep in (0.2, 0.1):
        verlet = VerletPropagator(forces_of(harmonic), timestep)
        difference = one(verlet, state, 40.0).positions - one(exact, state, 40.0).positions
        errors.append(np.abs(difference).max())
    assert errors[1] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.02)
    frames = one(exact, state, 13.0, 40.0)
    middle = State(frames.positions[0], frames.velocities[0], state.numbers, state.masses)
    rest = one(exact, middle, 27.0)
    np.testing.assert_allclose(rest.positions[0], frames.positions[1], atol=1e-12)
    np.testing.assert_allclose(rest.velocities[0], frames.velocities[1], atol=1e-12)


def test_potentials_without_a_minimum_are_refused():
    with pytest.raises(ConfigError, match="negative eigenvalue -2"):
        Harmonic(np.diag([1.0, -2.0, 1.0]), np.zeros((1, 3)))
    with pytest.raises(ConfigError, match="not symmetric"):
        Harmonic(np.triu(np.ones((3, 3))), np.zeros((1, 3)))
    with pytest.raises(ConfigError, match=r"\(3, 3\)"):
        Harmonic(np.eye(3), np.zeros((2, 3)))


@pytest.mark.parametrize("rescale", [False, True])
def test_exact_jumps_conserve_energy_and_momenta(rescale):
    harmonic, start = springs(), springs_state()
    loop = JumpLoop(
        [start],
        HarmonicPropagator(harmonic),
        17.0,
        corrections=Corrections(rescale_energy=rescale),
        guard=Guard.off(),
        forces=forces_of(harmonic),
        rng=np.random.default_rng(1),
    )
    energy = total_energy(harmonic, start)
    for _ in range(1000):
        assert loop.advance()
        assert total_energy(harmonic, loop.states[0]) == pytest.approx(energy, rel=1e-10)
    end = loop.states[0]
    assert end.time == 17000.0
    drift = centre_of_mass(start.velocities, start.masses)
    np.testing.assert_allclose(centre_of_mass(end.velocities, end.masses), drift, rtol=1e-10)
    way = centre_of_mass(end.positions, end.masses) - centre_of_mass(start.positions, start.masses)
    np.testing.assert_allclose(way, 17000.0 * drift, rtol=1e-9)
    np.testing.assert_allclose(angular_momentum(end), angular_momentum(start), rtol=1e-9)


def sample(loop, steps, observe):
    """Observations of all molecules after each of the last steps, ``(steps, molecules, ...)``."""
    for _ in range(30):
        loop.advance()
    observed = []
    for _ in range(steps):
        loop.advance()
        observed.append([observe(state) for state in loop.states])
    return np.array(observed)


def test_langevin_jumps_sample_every_oscillator():
    rng = np.random.default_rng(2)
    numbers = np.repeat([1, 6, 8], 7)
    anchors = 5.0 * rng.normal(size=(len(numbers), 3))
    start = make_state(numbers, anchors)
    loop = JumpLoop(
        [start] * 16,
        HarmonicPropagator(Harmonic.tethers(5.0, anchors)),
        37.0,
        thermostat=Langevin(300.0, friction_per_fs=0.03),
        corrections=Corrections.none(),
        guard=Guard.off(),
        rng=rng,
    )
    seen = sample(loop, 400, lambda s: (s.positions - anchors, s.velocities))
    kt = units.KB * 300.0
    position, velocity = (seen[:, :, k].reshape(-1, 3, 7, 3) for k in (0, 1))
    # Three elements, so that neither stiff nor soft oscillators hide behind the others.
    np.testing.assert_allclose(position.var(axis=(0, 2, 3)), kt / 5.0, rtol=0.02)
    expected = kt / start.masses[[0, 7, 14]] * units.FS**2
    np.testing.assert_allclose(velocity.var(axis=(0, 2, 3)), expected, rtol=0.02)


def test_corrections_and_rotations_do_not_disturb_the_sampling():
    n, stride = 8, 8.0
    harmonic, start = springs(n), springs_state(n)
    # A mode that ends each jump where it began would keep its energy for ever.
    assert np.abs(np.sin(stride * harmonic.frequencies(start.masses)[3:])).min() > 0.1
    loop = JumpLoop(
        [start] * 16,
        HarmonicPropagator(harmonic),
        stride,
        thermostat=Langevin(300.0, friction_per_fs=0.1),
        guard=Guard.off(),
        rng=np.random.default_rng(3),
    )
    potential, kinetic = sample(
        loop,
        250,
        lambda s: (harmonic.energy_and_forces(s.positions)[0], s.kinetic_energy),
    ).mean(axis=(0, 1))
    kt = units.KB * 300.0
    assert potential == pytest.approx(1.5 * (n - 1) * kt, rel=0.02)
    assert kinetic == pytest.approx(1.5 * n * kt, rel=0.02)


@pytest.mark.parametrize(
    ("corrections", "degrees"),
    [(Corrections(), 9), (Corrections.none(), 15), (Corrections(angular_momentum=False), 12)],
)
def test_bussi_gives_internal_motion_the_canonical_distribution(corrections, degrees):
    rng = np.random.default_rng(4)
    state = springs_state()
    thermostat = Bussi(300.0, relaxation_fs=100.0)
    energies = []
    for _ in range(6000):
        state = thermostat.apply(state, 100.0, corrections, rng)
        energies.append(state.kinetic_energy)
    kt = units.KB * 300.0
    energies = np.array(energies) - _rigid_energy(state, corrections)
    assert energies.mean() == pytest.approx(0.5 * degrees * kt, rel=0.03)
    assert energies.var() == pytest.approx(0.5 * degrees * kt**2, rel=0.1)


def _rigid_energy(state, corrections):
    """Kinetic energy of what is conserved, from the textbook formulas."""
    if not corrections.momentum:
        return 0.0
    drift = centre_of_mass(state.velocities, state.masses) / units.FS
    energy = 0.5 * state.masses.sum() * drift @ drift
    if corrections.angular_momentum:
        arms = state.positions - centre_of_mass(state.positions, state.masses)
        square = (state.masses[:, None] * arms).T @ arms
        spin = angular_momentum(state) / units.FS
        energy += 0.5 * spin @ np.linalg.solve(np.trace(square) * np.eye(3) - square, spin)
    return energy


def test_bussi_jumps_keep_the_mean_kinetic_energy_of_a_free_molecule():
    harmonic, start = springs(), springs_state()
    loop = JumpLoop(
        [start] * 8,
        HarmonicPropagator(harmonic),
        11.0,
        thermostat=Bussi(300.0, relaxation_fs=30.0),
        guard=Guard.off(),
        rng=np.random.default_rng(5),
    )
    # The energy of rotation changes with the shape, although the angular momentum does not.
    kinetic = sample(loop, 200, lambda s: s.kinetic_energy - _rigid_energy(s, Corrections()))
    # Its error is 4 %; three degrees of freedom more or fewer would make a third.
    assert kinetic.mean() == pytest.approx(4.5 * units.KB * 300.0, rel=0.1)


def test_thermostats_refuse_what_they_cannot_do():
    with pytest.raises(ConfigError, match="temperature_K=0"):
        Langevin(0.0, 0.01)
    with pytest.raises(ConfigError, match="relaxation_fs=-1"):
        Bussi(300.0, -1.0)
    with pytest.raises(ConfigError, match=r"temperature_K=\[300, 310\]; it must be a positive"):
        Langevin([300, 310], 0.01)
    rest = State(np.eye(3), np.zeros((3, 3)), [8, 1, 1], [16.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match="set velocities first"):
        Bussi(300.0, 10.0).apply(rest, 1.0, Corrections(), np.random.default_rng(0))
    atom = State([[0, 0, 0]], [[0, 0, 1.0]], [18], [40.0])
    with pytest.raises(ConfigError, match="0 degrees of freedom"):
        Bussi(300.0, 10.0).apply(atom, 1.0, Corrections(), np.random.default_rng(0))


def tetrahedron():
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    atoms = Atoms("CNOF", 1.6 / np.sqrt(8) * corners)
    atoms.set_velocities(0.01 * np.random.default_rng(0).normal(size=(4, 3)))
    atoms.calc = Morse(depth=4.0, a=1.5, r0=1.5)
    return atoms


class Counting:
    """A force model that counts its evaluations."""

    def __init__(self, forces):
        self.forces, self.count = forces, 0

    def evaluate(self, structures, properties):
        self.count += len(structures)
        return self.forces.evaluate(structures, properties)


def test_a_verlet_jump_is_so_many_verlet_steps():
    atoms = tetrahedron()
    forces = Counting(AttachedCalculator(tetrahedron()))
    loop = JumpLoop(
        [state_from_ase(atoms)],
        VerletPropagator(forces, 0.5),
        8.0,
        corrections=Corrections.none(),
        guard=Guard.off(),
    )
    for _ in range(10):
        loop.advance()
    VelocityVerlet(atoms, 0.5 * units.FS).run(160)
    np.testing.assert_allclose(loop.states[0].positions, atoms.positions, atol=1e-11)
    velocities = atoms.get_velocities() * units.FS
    np.testing.assert_allclose(loop.states[0].velocities, velocities, atol=1e-12)
    # One for the start; later jumps begin with the forces that the jump before has left.
    assert forces.count == 161


def test_verlet_does_not_use_old_forces_for_atoms_that_were_moved():
    forces = Counting(forces_of(springs()))
    verlet = VerletPropagator(forces, 1.0)
    frames = one(verlet, springs_state(), 2.0)
    moved = State(
        frames.positions[-1] + 0.1 * np.eye(5, 3),
        frames.velocities[-1],
        springs_state().numbers,
        springs_state().masses,
    )
    forgetful = one(verlet, moved, 2.0)
    remembering = State(
        moved.positions, moved.velocities, moved.numbers, moved.masses, memory=frames.memory
    )
    np.testing.assert_array_equal(one(verlet, remembering, 2.0).positions, forgetful.positions)


def test_one_call_gives_frames_at_several_times():
    verlet = VerletPropagator(forces_of(springs()), 0.5)
    frames = one(verlet, springs_state(), 2.0, 3.0, 8.0)
    assert frames.times.tolist() == [2.0, 3.0, 8.0]
    for k, time in enumerate(frames.times):
        single = one(verlet, springs_state(), time)
        np.testing.assert_array_equal(frames.positions[k], single.positions[0])
        np.testing.assert_array_equal(frames.velocities[k], single.velocities[0])


def test_molecules_of_different_sizes_advance_as_if_each_were_alone():
    pull = FunctionForces(lambda x: (0.5 * float((x**2).sum()), -x))
    states = [springs_state(n, seed=n) for n in (2, 5, 3)]
    options = {"corrections": Corrections.none(), "guard": Guard.off()}

    def end(chosen):
        loop = JumpLoop(chosen, VerletPropagator(pull, 0.5), 4.0, **options)
        for _ in range(5):
            loop.advance()
        return loop.states

    together = end(states)
    for state, found in zip(states, together, strict=True):
        (alone,) = end([state])
        np.testing.assert_array_equal(found.positions, alone.positions)
        np.testing.assert_array_equal(found.velocities, alone.velocities)


@pytest.mark.parametrize(
    ("strides", "allowed", "refused"),
    [
        (Strides(), [0.1, 1e6], [0.0, -1.0, np.nan]),
        (Strides(8.0, 8.0), [8.0, 8.0 + 1e-12], [4.0, 16.0]),
        (Strides(unit=0.5), [0.5, 8.0, 0.3 / 0.6], [0.7]),
        (Strides(2.0, 32.0), [2.0, 32.0], [1.0, 64.0]),
    ],
)
def test_strides(strides, allowed, refused):
    for time in allowed:
        strides.check(time)
    for time in refused:
        with pytest.raises(ConfigError, match="fs"):
            strides.check(time)


def test_a_stride_that_the_propagator_cannot_do_is_refused():
    verlet = VerletPropagator(forces_of(springs()), 0.5)
    with pytest.raises(ConfigError, match=r"1.7 fs .* multiples of 0.5 fs"):
        JumpLoop([springs_state()], verlet, 1.7)


def test_states_are_checked_and_cannot_be_written_to():
    state = springs_state()
    with pytest.raises(ValueError, match="read-only"):
        state.positions[0] = 0.0
    with pytest.raises(InputError, match=r"velocities has shape \(4, 3\)"):
        State(np.zeros((5, 3)), np.zeros((4, 3)), state.numbers, state.masses)
    with pytest.raises(InputError, match="masses"):
        State(np.zeros((1, 3)), np.zeros((1, 3)), [1], [0.0])
    broken = State(np.full((1, 3), np.nan), np.zeros((1, 3)), [1], [1.0])
    with pytest.raises(InputError, match=r"molecule 1 .* not finite"):
        JumpLoop([springs_state(1), broken], HarmonicPropagator(springs(1)), 1.0)
    with pytest.raises(InputError, match="no molecules"):
        JumpLoop([], HarmonicPropagator(springs(1)), 1.0)


def test_states_go_to_ase_and_back():
    _, state = tethered()
    charged = State(
        state.positions, state.velocities, state.numbers, state.masses, charge=1, multiplicity=2
    )
    back = state_from_ase(charged.to_atoms())
    np.testing.assert_allclose(back.velocities, state.velocities, rtol=1e-14)
    assert (back.charge, back.multiplicity) == (1, 2)
    assert back.kinetic_energy == pytest.approx(charged.to_atoms().get_kinetic_energy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rng": np.random.RandomState(0)}, "default_rng"),
        ({"md_steps_per_jump": 2}, "need forces"),
        ({"corrections": Corrections(rescale_energy=True)}, "need forces"),
        ({"md_steps_per_jump": -1}, "md_steps_per_jump=-1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        JumpLoop([springs_state()], HarmonicPropagator(springs()), 8.0, **options)
