"""Where a propagator works: strides, masses, thermostats, warm molecules; changed during a run."""

import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from another_process import code, run_child
from ase.build import molecule
from jump_systems import Spoilt, forces_of, nan, tethered

from mlmd_calc import MDETCalculator, load_propagator, units
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.md import JumpNVE, JumpNVT, JumpSettings, MDSettings
from mlmd_calc.propagation import (
    Bussi,
    Conditions,
    Corrections,
    Displacement,
    Guard,
    JumpLoop,
    Langevin,
    State,
    Strides,
    Temperature,
    VerletPropagator,
    state_from_ase,
)
from mlmd_calc.propagation.harmonic import HarmonicPropagator

FREE = {"corrections": Corrections.none(), "guard": Guard.off()}
SHIPPED = "atom-small-organics"
OTHER = "atom-small-organics-gfn2"


@pytest.fixture(scope="module")
def atom():
    return load_propagator(SHIPPED, device="cpu")


class Choosy(HarmonicPropagator):
    """Exact motion, measured to work under some conditions only."""

    conditions = Conditions(8.0, 20.0, 5.0, (200.0, 400.0))


def choosy_loop(thermostat=None, state=None, **options):
    harmonic, start = tethered()
    state = start if state is None else state
    options = {**FREE, "forces": forces_of(harmonic), **options}
    return JumpLoop([state], Choosy(harmonic), 8.0, thermostat=thermostat, **options)


# Strides


def test_strides_are_those_of_the_training(atom):
    assert all(time in atom.strides for time in (2, 4, 6, 8, 16))
    for time in (0.5, 1.0, 5.0, 18.0):
        with pytest.raises(ConfigError, match=f"jump of {time:g} fs is not possible.*2, 4, 6"):
            atom.strides.check(time)


def test_strides_may_be_in_single_precision(atom):
    atoms = molecule("CH4")
    for stride in atom.strides.only:
        JumpNVT(atoms, np.float32(stride * units.FS), atom, 300)


def test_a_jump_is_not_halved_to_a_time_that_nobody_trained():
    harmonic, start = tethered()
    for stride, halved in ((12.0, 1), (6.0, 0)):
        spoilt = Spoilt(harmonic, nan)
        spoilt.strides = Strides.among([2.0, 6.0, 12.0])
        guard = Guard(checks=(), halvings=2, frames_file="/dev/null")
        loop = JumpLoop([start], spoilt, stride, forces=forces_of(harmonic), guard=guard)
        loop.advance()
        assert loop.events.counts()["shorter"] == halved


# Masses


@pytest.mark.parametrize("mass", [2.014, 3.0])
def test_other_masses_are_refused(atom, mass):
    """Deuterium, and hydrogen made heavy for long time steps."""
    atoms = molecule("CH4")
    masses = atoms.get_masses()
    masses[1] = mass
    atoms.set_masses(masses)
    with pytest.raises(InputError, match=rf"atom 1, H, has a mass of {mass:g} amu.*1.008 amu"):
        JumpNVT(atoms, 8 * units.FS, atom, 300)


def test_masses_of_another_table_are_not():
    from mlmd_calc.propagation.atom import _check_masses

    # OpenMM's, and the lightest isotopes.
    for masses in ([1.007947, 12.01078, 14.00672, 15.99943], [1.00783, 12.0, 14.00307, 15.9949]):
        _check_masses(State(np.eye(4)[:, :3], np.zeros((4, 3)), [1, 6, 7, 8], masses))


# Thermostats


def test_too_little_friction_is_refused_and_the_recommended_one_is_the_default(atom, tmp_path):
    atoms = molecule("CH3CH2OH")
    with pytest.raises(ConfigError, match=r"friction of 0.5/ps is too low.*best 10/ps"):
        JumpNVT(atoms, 8 * units.FS, atom, 300, friction=0.0005 / units.FS)
    dyn = JumpNVT(atoms, 8 * units.FS, atom, 300)
    assert dyn.loop.thermostat.friction_per_fs == pytest.approx(0.01)
    settings = MDSettings(jumps=JumpSettings(SHIPPED, 8.0))
    assert settings.with_friction(atom.conditions.friction_per_ps).friction_per_ps == 10.0
    assert MDSettings().friction_per_ps == 1.0
    assert settings.with_friction(None).friction_per_ps == 1.0


def test_temperatures_that_nobody_tried_are_warned_of():
    with pytest.warns(UserWarning, match="900 K is outside 200 to 400 K"):
        choosy_loop(Langevin(900.0, 0.02))
    loop = choosy_loop(Langevin(300.0, 0.02))
    with pytest.warns(UserWarning, match="500 K is outside"):
        loop.thermostat = Langevin(500.0, 0.02)
    with pytest.raises(ConfigError, match="too low"):
        loop.thermostat = Langevin(300.0, 0.001)
    # Who goes on, as the next cell of a notebook does, goes on with the old one.
    assert loop.thermostat == Langevin(500.0, 0.02)
    with pytest.raises(ConfigError, match="rescaling has no friction"):
        choosy_loop(Bussi(300.0, 1000.0))


# Starts at rest


def at_rest():
    _, start = tethered()
    return State(start.positions, 0.0 * start.velocities, start.numbers, start.masses)


def test_a_start_at_rest_is_warmed_up_by_force_based_steps():
    loop = choosy_loop(Langevin(300.0, 0.02), at_rest(), rng=np.random.default_rng(0))
    for _ in range(100):
        loop.advance()
    cold = [event for event in loop.events if event.check == "cold"]
    assert 1 <= len(cold) < 20
    assert {event.action for event in cold} == {"fallback"}
    # Once warm it stays with jumps, although four atoms are now and then as cold again.
    assert [event.step for event in cold] == list(range(len(cold)))


class Still:
    """Random numbers that move nothing."""

    def standard_normal(self, size):
        return np.zeros(size)


@pytest.mark.parametrize(
    ("thermostat", "forces", "missing"),
    [
        (None, forces_of(tethered()[0]), "without a thermostat"),
        (Langevin(300.0, 0.02), None, "without forces"),
    ],
)
def test_a_start_at_rest_that_cannot_be_warmed_up_is_refused(thermostat, forces, missing):
    loop = choosy_loop(thermostat, at_rest(), forces=forces, rng=np.random.default_rng(0))
    if thermostat is not None:
        # It acts before the first jump.
        loop.thermostat = Langevin(300.0, 0.005)
        loop.setup.rng = Still()
    with pytest.raises(InputError, match=rf"none below .* K; {missing} .*draw_momenta"):
        loop.advance()


# Changes during a run


def test_checks_follow_the_thermostat():
    harmonic, start = tethered()
    loop = JumpLoop(
        [start],
        HarmonicPropagator(harmonic),
        8.0,
        thermostat=Langevin(300.0, 0.02),
        corrections=Corrections.none(),
        guard=Guard(checks=(Displacement(), Temperature(window_fs=0.0)), frames_file="/dev/null"),
        rng=np.random.default_rng(0),
    )
    for temperature in (300.0, 3000.0, 30000.0, 300000.0):
        loop.thermostat = Langevin(temperature, 0.02)
        for _ in range(10):
            assert loop.advance()
    assert len(loop.events) == 0


def test_femtoseconds_without_their_unit_are_told():
    harmonic, start = tethered()
    propagator = HarmonicPropagator(harmonic)
    propagator.strides = Strides.among([4.0, 8.0])
    with pytest.raises(ConfigError, match=r"timestep=8 is 81.44 fs in .* write 8 \* ase.units.fs"):
        JumpNVE(start.to_atoms(), 8, propagator, **FREE)
    dyn = JumpNVE(start.to_atoms(), 8 * units.FS, propagator, **FREE)
    with pytest.raises(ConfigError, match=r"timestep=4 is 40.72 fs"):
        dyn.set_timestep(4)


def test_setters_of_ases_dynamics():
    harmonic, start = tethered()
    atoms = start.to_atoms()
    dyn = JumpNVT(
        atoms, 8 * units.FS, HarmonicPropagator(harmonic), 300, friction=0.02 / units.FS, **FREE
    )
    dyn.set_temperature(temperature_K=500)
    dyn.set_friction(0.05 / units.FS)
    dyn.set_timestep(4 * units.FS)
    assert dyn.loop.thermostat.temperature_K == 500.0
    assert dyn.loop.thermostat.friction_per_fs == pytest.approx(0.05)
    dyn.run(5)
    assert dyn.get_time() == pytest.approx(20 * units.FS)
    dyn.dt = 2 * units.FS
    dyn.run(5)
    assert dyn.get_time() == pytest.approx(30 * units.FS)
    dyn.set_temperature(0.03)
    assert dyn.loop.thermostat.temperature_K == pytest.approx(0.03 / units.KB)
    with pytest.raises(ConfigError, match="give one of them"):
        dyn.set_temperature()
    with pytest.raises(ConfigError, match="Langevin has no relaxation_fs"):
        dyn.set_taut(1.0)
    with pytest.raises(ConfigError, match="no thermostat to change"):
        JumpNVE(
            atoms, 8 * units.FS, HarmonicPropagator(harmonic), **FREE
        ).loop.thermostat = Langevin(300.0, 0.02)


def test_what_was_changed_is_restored(tmp_path):
    def make():
        return choosy_loop(Langevin(300.0, 0.02), rng=np.random.default_rng(0))

    loop, again = make(), make()
    loop.thermostat = Langevin(350.0, 0.03)
    loop.stride_fs = 4.0
    loop.advance()
    loop.save(tmp_path / "run.npz")
    again.load(tmp_path / "run.npz")
    assert again.thermostat == Langevin(350.0, 0.03)
    assert again.stride_fs == 4.0


def test_arguments_of_ases_langevin():
    class Communicator:
        def __init__(self, size):
            self.size = size

    harmonic, start = tethered()
    atoms, options = start.to_atoms(), {"friction": 0.02 / units.FS, "guard": Guard.off()}
    arguments = (atoms, 8 * units.FS, HarmonicPropagator(harmonic), 300)
    dyn = JumpNVT(*arguments, fixcm=True, communicator=Communicator(1), **options)
    centre = atoms.get_center_of_mass()
    dyn.run(10)
    np.testing.assert_allclose(atoms.get_center_of_mass(), centre, atol=1e-10)
    with pytest.raises(ConfigError, match="communicator has 4 processes"):
        JumpNVT(*arguments, communicator=Communicator(4), **options)


# Propagators by name, in other processes, in threads


def test_a_propagator_by_name():
    dyn = JumpNVT(molecule("CH4"), 8 * units.FS, SHIPPED, 300)
    assert dyn.loop.propagator.model.source == SHIPPED


def test_a_pickled_propagator_answers_alike_in_another_process(atom, tmp_path):
    (tmp_path / "propagator.pickle").write_bytes(pickle.dumps(atom))
    answer = """
import pickle, numpy as np
from ase.build import molecule
from mlmd_calc.propagation import state_from_ase
with open("propagator.pickle", "rb") as file:
    propagator = pickle.load(file)
frames, = propagator.propagate([state_from_ase(molecule("H2O"))], [8.0], None)
np.save("answer.npy", frames.positions)
"""
    run_child(code, answer, cwd=tmp_path)
    (frames,) = atom.propagate([state_from_ase(molecule("H2O"))], [8.0], None)
    np.testing.assert_array_equal(np.load(tmp_path / "answer.npy"), frames.positions)


def test_the_device_that_torch_takes_by_default_does_not_matter(atom):
    atoms = molecule("CH3CH2OH")

    def end_of_a_run():
        moved = atoms.copy()
        moved.calc = MDETCalculator(device="cpu")
        propagator = load_propagator(SHIPPED, device="cpu", rotation="random")
        JumpNVT(moved, 8 * units.FS, propagator, 300, rng=np.random.default_rng(0)).run(1)
        return moved.positions

    expected = end_of_a_run()
    with torch.device("meta"):
        np.testing.assert_array_equal(end_of_a_run(), expected)


def test_threads_share_a_propagator(atom):
    state = state_from_ase(molecule("H2O"))
    (expected,) = atom.propagate([state], [8.0], None)
    answers, errors = [], []

    def jump():
        try:
            # More than it takes to record the call.
            for _ in range(40):
                answers.append(atom.propagate([state], [8.0], None)[0].positions)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=jump) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for answer in answers:
        np.testing.assert_allclose(answer, expected.positions, atol=1e-6)


def test_verlet_has_no_conditions():
    harmonic, _ = tethered()
    forces = forces_of(harmonic)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = JumpLoop([at_rest()], VerletPropagator(forces, 0.5), 8.0, **FREE)
        assert loop.advance()
    assert loop.forces is forces


def test_a_propagator_runs_with_the_force_field_of_its_training_only():
    atoms = molecule("CH3CH2OH")
    atoms.calc = MDETCalculator()
    propagator = load_propagator(OTHER, potential=atoms.calc.potential)
    with pytest.raises(ConfigError, match=r"'mdet-small-organics-gfn2'.*'mdet-small-organics';"):
        JumpNVT(atoms, 8 * units.FS, propagator, temperature_K=300)
