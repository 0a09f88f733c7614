"""Checks and policies, and that no broken propagator makes a silent bad trajectory."""

import warnings
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from jump_systems import (
    Noisy,
    Spoilt,
    explode,
    forces_of,
    give_up,
    make_state,
    nan,
    springs,
    tethered,
)

from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.propagation import (
    Bonding,
    Check,
    Contact,
    Corrections,
    Displacement,
    EnergyWindow,
    EventLog,
    Finding,
    Frames,
    FunctionForces,
    Guard,
    JumpLoop,
    Langevin,
    Propagator,
    Proposal,
    State,
    Strides,
    Temperature,
    VerletPropagator,
    state_from_ase,
)
from mlmd_calc.propagation.harmonic import HarmonicPropagator

FRAMES = "frames.extxyz"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def guard(*checks, **options):
    return Guard(checks=checks, **{"frames_file": FRAMES, **options})


def tethered_loop(propagator, state=None, **options):
    """Loop over a system in which nothing is conserved, so without corrections."""
    options = {"guard": guard(), "corrections": Corrections.none(), **options}
    states = [tethered()[1]] if state is None else state
    return JumpLoop(states, propagator, options.pop("stride", 8.0), **options)


def ethanol(seed=0, temperature_K=300.0):
    start = state_from_ase(molecule("CH3CH2OH"))
    return make_state(start.numbers, start.positions, seed=seed, temperature_K=temperature_K)


def later(state, positions=None, velocities=None, time=8.0):
    return Proposal(
        state,
        replace(
            state,
            positions=state.positions if positions is None else positions,
            velocities=state.velocities if velocities is None else velocities,
            time=time,
        ),
    )


def begun(check, state, thermostat=None):
    check.begin(state, thermostat)
    return check


# Checks


def test_displacement_is_compared_with_thermal_flight():
    state = ethanol()
    check = begun(Displacement(factor=2.0), state, Langevin(300.0, 0.01))
    flight = np.sqrt(3.0 * 8.617333e-5 * 300.0 / state.masses) * 0.09822695 * 8.0
    for atom in (0, 8):
        for part, wrong in ((1.99, False), (2.01, True)):
            positions = state.positions.copy()
            positions[atom, 1] += part * flight[atom]
            finding = check.judge(later(state, positions))
            assert (finding is not None) == wrong
            if wrong:
                assert finding.value == pytest.approx(part * flight[atom], rel=1e-3)
                assert finding.limit == pytest.approx(2.0 * flight[atom], rel=1e-3)
                assert f"{molecule('CH3CH2OH').symbols[atom]}{atom} moved" in finding.reason


def test_contact_and_bonding():
    state = ethanol()
    contact, bonding = begun(Contact(), state), begun(Bonding(), state)
    assert contact.judge(later(state)) is None
    assert bonding.judge(later(state)) is None
    # The hydrogen of the hydroxyl group, along its bond.
    bond = state.positions[3] - state.positions[2]
    for stretch, wrong in ((0.49, False), (0.51, True)):
        positions = state.positions.copy()
        positions[3] += stretch * bond / np.linalg.norm(bond)
        finding = bonding.judge(later(state, positions))
        assert (finding is not None) == wrong
    assert finding.value == pytest.approx(0.51)
    assert "O2-H3 is 1.48 Å long instead of 0.97 Å" in finding.reason
    positions[3] = state.positions[2] + 0.5 * bond / np.linalg.norm(bond)
    finding = contact.judge(later(state, positions))
    assert finding.value == pytest.approx(0.5)
    assert "O2 and H3" in finding.reason
    alone = State([[0.0, 0, 0]], [[0.0, 0, 0]], [18], [40.0])
    for check in (Contact(), Bonding(), Temperature(window_fs=0.0), Displacement()):
        assert begun(check, alone, Langevin(300.0, 0.1)).judge(later(alone)) is None


def test_temperature_of_one_frame_knows_how_few_atoms_there_are():
    cold = ethanol()
    check = begun(Temperature("redraw", window_fs=0.0), cold, Langevin(300.0, 0.01))
    for seed in range(200):
        assert check.judge(later(ethanol(seed))) is None
    hot = check.judge(later(ethanol(temperature_K=3000.0)))
    assert hot.value > hot.limit > 300.0
    # Heat in one element alone is found, too.
    velocities = cold.velocities.copy()
    velocities[cold.numbers == 8] *= 9.0
    assert "of O" in check.judge(later(cold, velocities=velocities)).reason
    # A molecule at rest may warm up.
    assert check.judge(later(cold, velocities=0.0 * cold.velocities)) is None


def mean_temperature_verdict(check, temperature, steps=400, seed=0):
    """Feed frames of a temperature that depends on the step, until something is found."""
    for step in range(steps):
        state = ethanol(seed + step, temperature(step))
        finding = check.judge(later(state))
        if finding is not None:
            return step, finding
        check.accepted(state, 8.0)
    return None


def test_mean_temperature_finds_slow_heating_and_freezing_but_no_ghosts():
    def fresh():
        return begun(Temperature(), ethanol(), Langevin(300.0, 0.1))

    assert mean_temperature_verdict(fresh(), lambda step: 300.0) is None
    step, heated = mean_temperature_verdict(fresh(), lambda step: 300.0 * 1.005**step)
    assert 50 < step < 250
    assert heated.value > heated.limit > 300.0
    _, frozen = mean_temperature_verdict(fresh(), lambda step: 300.0 * 0.99**step)
    assert frozen.value < frozen.limit < 300.0
    # Without a thermostat the first window, 10 ps, is the reference.
    check = Temperature(window_fs=400.0)
    assert mean_temperature_verdict(begun(check, ethanol()), lambda step: 500.0) is None
    check = begun(Temperature(window_fs=400.0), ethanol())
    step, _ = mean_temperature_verdict(check, lambda step: 500.0 * 1.02 ** max(0, step - 60))
    assert 60 < step < 300


def test_energy_window():
    proposal = replace(later(ethanol()), energy_error=0.1)
    assert EnergyWindow(limit=0.02).judge(proposal) is None
    assert EnergyWindow(limit=0.01).judge(proposal).value == pytest.approx(0.1 / 9)


class Biased(HarmonicPropagator):
    """Exact, but for a shift along x."""

    def propagate(self, states, times_fs, generator):
        return [
            replace(frames, positions=frames.positions + [0.02, 0.0, 0.0] * np.arange(5)[:, None])
            for frames in super().propagate(states, times_fs, generator)
        ]


# Policies


def test_accept_records_and_goes_on():
    harmonic, _ = tethered()
    loop = tethered_loop(
        HarmonicPropagator(harmonic), guard=guard(Displacement("accept", factor=1e-3))
    )
    for _ in range(5):
        assert loop.advance()
    assert [event.action for event in loop.events] == ["accept"] * 5
    assert [event.step for event in loop.events] == list(range(5))
    assert loop.events[2].time_fs == 16.0
    assert len(ase.io.read(FRAMES, index=":")) == 5


def test_redraw_takes_the_first_good_draw():
    harmonic, start = tethered()
    loop = tethered_loop(Spoilt(harmonic, nan, lambda call, stride: call in (1, 2)))
    exact = tethered_loop(HarmonicPropagator(harmonic))
    for _ in range(3):
        loop.advance()
        exact.advance()
    np.testing.assert_array_equal(loop.states[0].positions, exact.states[0].positions)
    assert [(event.step, event.action) for event in loop.events] == [(1, "redraw"), (1, "redraw")]
    offending = ase.io.read(FRAMES, index=":")
    assert np.isnan(offending[0].positions[0, 0])
    np.testing.assert_allclose(
        offending[0].positions[1:], exact_positions(harmonic, start, 16.0)[1:], atol=1e-7
    )
    assert offending[0].info["check"] == "finite"


def exact_positions(harmonic, start, time):
    return HarmonicPropagator(harmonic).propagate([start], [time], None)[0].positions[0]


def test_shorter_jumps_follow_when_no_draw_is_good():
    harmonic, start = tethered()
    loop = tethered_loop(Spoilt(harmonic, nan, lambda call, stride: stride > 4.0))
    loop.advance()
    np.testing.assert_allclose(
        loop.states[0].positions, exact_positions(harmonic, start, 8.0), atol=1e-12
    )
    assert loop.states[0].time == 8.0
    assert loop.events.counts() == {"redraw": 2, "shorter": 1}
    # Halved twice: 2 draws again at 8 and at 4 fs for each half.
    loop = tethered_loop(
        Spoilt(harmonic, nan, lambda call, stride: stride > 2.0), guard=guard(halvings=2)
    )
    loop.advance()
    assert loop.events.counts() == {"redraw": 6, "shorter": 3}


def test_a_propagator_that_always_answers_alike_is_not_asked_again():
    harmonic, _ = tethered()
    spoilt = Spoilt(harmonic, nan, stochastic=False)
    spoilt.strides = Strides(8.0, 8.0)
    loop = tethered_loop(spoilt)
    with pytest.raises(PredictionError):
        loop.advance()
    assert spoilt.calls == 1


@pytest.mark.parametrize("spoil", [nan, give_up, explode])
def test_fallback_is_so_many_force_steps(spoil):
    harmonic, start = tethered()
    spoilt = Spoilt(harmonic, lambda f, s: spoil(f, s) if s.time == 8.0 else f)
    loop = tethered_loop(spoilt, forces=forces_of(harmonic), guard=guard(Displacement()))
    for _ in range(3):
        assert loop.advance()
    # Three draws of the second jump, and three of its first half.
    assert loop.events.counts() == {"redraw": 4, "shorter": 1, "fallback": 1}
    # Energies are not known here, so the end of the first jump is not trusted any more.
    jumps = HarmonicPropagator(harmonic)
    verlet = VerletPropagator(forces_of(harmonic), 0.5)
    state = start
    for propagator, time in ((verlet, 16.0), (jumps, 8.0)):
        frames = propagator.propagate([state], [time], None)[0]
        state = replace(state, positions=frames.positions[0], velocities=frames.velocities[0])
    np.testing.assert_allclose(loop.states[0].positions, state.positions, atol=1e-13)
    assert loop.states[0].time == 24.0


def test_fallback_at_once_and_time_steps_that_do_not_divide_the_stride():
    harmonic, start = tethered()
    spoilt = Spoilt(harmonic, nan)
    loop = tethered_loop(
        spoilt, forces=forces_of(harmonic), guard=guard(failure="fallback"), md_timestep_fs=0.3
    )
    loop.advance()
    assert spoilt.calls == 1
    expected = VerletPropagator(forces_of(harmonic), 8.0 / 27).propagate([start], [8.0], None)
    np.testing.assert_allclose(loop.states[0].positions, expected[0].positions[0], atol=1e-13)


def test_too_many_fallbacks_in_a_row_end_the_run():
    harmonic, _ = tethered()
    loop = tethered_loop(
        Spoilt(harmonic, nan, lambda call, stride: call != 3),
        forces=forces_of(harmonic),
        guard=guard(failure="fallback", max_fallbacks=3),
    )
    # The fourth jump is good, so counting starts again.
    for _ in range(7):
        loop.advance()
    with pytest.raises(PredictionError, match="step 7 at 56 fs"):
        loop.advance()
    assert loop.events.counts() == {"fallback": 6, "raise": 1}


def test_force_steps_that_fail_end_the_run():
    harmonic, _ = tethered()
    bad = forces_of(harmonic)
    bad.function = lambda x: (0.0, np.full((4, 3), np.nan))
    loop = tethered_loop(Spoilt(harmonic, nan), forces=bad)
    with pytest.raises(PredictionError, match="24 coordinates and velocities are not finite"):
        loop.advance()
    assert loop.events[-1].action == "raise"


def test_raise_leaves_the_last_good_state_and_the_offending_frame():
    harmonic, start = tethered()
    loop = tethered_loop(
        Spoilt(harmonic, explode, lambda call, stride: call >= 2),
        guard=guard(Displacement("raise")),
    )
    loop.advance()
    loop.advance()
    with pytest.raises(PredictionError, match=r"step 2 at 16 fs failed: .* moved .* frames.extxyz"):
        loop.advance()
    np.testing.assert_allclose(
        loop.states[0].positions, exact_positions(harmonic, start, 16.0), atol=1e-12
    )
    assert loop.step == 2
    offending = ase.io.read(FRAMES)
    np.testing.assert_allclose(
        offending.positions, 10 * exact_positions(harmonic, start, 24.0), atol=1e-6
    )
    assert offending.info["step"] == 2


@pytest.mark.parametrize("policy", [{"last": "stop"}, {"failure": "stop"}])
def test_stop_ends_the_run_without_an_exception(policy):
    harmonic, start = tethered()
    loop = tethered_loop(
        Spoilt(harmonic, nan, lambda call, stride: call >= 1), guard=guard(**policy)
    )
    assert loop.advance()
    assert not loop.advance()
    assert not loop.advance()
    assert "not finite" in loop.stopped
    assert loop.step == 1
    np.testing.assert_array_equal(loop.states[0].positions, exact_positions(harmonic, start, 8.0))
    assert loop.events[-1].action == "stop"
    assert ase.io.read(FRAMES)


def test_one_bad_molecule_does_not_hold_back_the_others():
    harmonic, start = tethered()

    def spoil(frames, state):
        return nan(frames, state) if state.time == 8.0 and state.charge == 1 else frames

    states = [replace(start, charge=charge) for charge in (0, 1, 0)]
    loop = tethered_loop(Spoilt(harmonic, spoil), states, forces=forces_of(harmonic))
    exact = tethered_loop(HarmonicPropagator(harmonic))
    for _ in range(3):
        loop.advance()
        exact.advance()
    assert {event.molecule for event in loop.events} == {1}
    assert loop.events.counts()["fallback"] == 1
    for good in (0, 2):
        np.testing.assert_array_equal(loop.states[good].positions, exact.states[0].positions)
    np.testing.assert_allclose(loop.states[1].positions, exact.states[0].positions, atol=1e-3)


def test_a_rejected_draw_leaves_no_trace_in_the_memory():
    harmonic, _ = tethered()

    class Forgetting(Noisy):
        def propagate(self, states, times_fs, generator):
            answers = super().propagate(states, times_fs, generator)
            self.draws = getattr(self, "draws", 0) + 1
            return [
                nan(a, s) if self.draws % 3 else a for a, s in zip(answers, states, strict=True)
            ]

    loop = tethered_loop(Forgetting(harmonic))
    for done in range(1, 5):
        loop.advance()
        assert loop.states[0].memory["calls"].tolist() == [done]
    # Neither do force-based steps.
    loop = tethered_loop(
        Noisy(harmonic), forces=forces_of(harmonic), md_steps_per_jump=4, guard=guard()
    )
    loop.advance()
    assert loop.states[0].memory["calls"].tolist() == [1]
    assert loop.states[0].time == 10.0
    with pytest.raises(ValueError, match="read-only"):
        loop.states[0].memory["calls"] += 1


def test_energy_rescaling_rejects_a_jump_uphill_and_is_never_nan():
    harmonic, start = tethered()
    options = {
        "forces": forces_of(harmonic),
        "corrections": replace(Corrections.none(), rescale_energy=True),
    }

    def uphill(frames, state):
        return replace(frames, positions=frames.positions + 0.5)

    loop = tethered_loop(Spoilt(harmonic, uphill, lambda call, stride: call == 1), **options)
    total = harmonic.energy_and_forces(start.positions)[0] + start.kinetic_energy
    for _ in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loop.advance()
        state = loop.states[0]
        energy = harmonic.energy_and_forces(state.positions)[0] + state.kinetic_energy
        assert energy == pytest.approx(total, rel=1e-12)
    assert [event.check for event in loop.events] == ["energy"]
    assert "leaves no kinetic energy" in loop.events[0].reason
    loop = tethered_loop(Spoilt(harmonic, uphill), **{**options, "guard": guard(failure="raise")})
    with pytest.raises(PredictionError, match="leaves no kinetic energy"):
        loop.advance()


def test_usual_checks_watch_the_energy_only_where_it_is_known():
    harmonic, _ = tethered()

    def heat(frames, state):
        return replace(frames, velocities=2.5 * frames.velocities)

    def run(forces):
        loop = tethered_loop(
            Spoilt(harmonic, heat, lambda call, stride: call == 3),
            forces=forces,
            guard=Guard(frames_file=FRAMES),
        )
        for _ in range(5):
            loop.advance()
        return loop.events

    assert len(run(NoEnergy(harmonic.energy_and_forces))) == 0
    assert [event.check for event in run(forces_of(harmonic))] == ["energy"]


class NoEnergy(FunctionForces):
    """A force model without energy."""

    has_energy = False

    def evaluate(self, structures, properties):
        return [replace(r, energy=None) for r in super().evaluate(structures, properties)]


def test_rescaling_without_an_energy_is_refused():
    loop = tethered_loop(
        HarmonicPropagator(tethered()[0]),
        forces=NoEnergy(tethered()[0].energy_and_forces),
        corrections=replace(Corrections.none(), rescale_energy=True),
    )
    with pytest.raises(ConfigError, match="NoEnergy has no energy"):
        loop.advance()


@pytest.mark.parametrize("error", [InputError("too close"), RuntimeError("out of memory")])
def test_energies_that_cannot_be_evaluated(error):
    harmonic, start = tethered()

    def fail(positions):
        if np.abs(positions - start.positions).max() > 0.2:
            raise error
        return harmonic.energy_and_forces(positions)

    def astray(frames, state):
        return replace(frames, positions=frames.positions + 0.3 * (state.charge == 1))

    loop = tethered_loop(
        Spoilt(harmonic, astray, lambda call, stride: call == 1),
        [start, replace(start, charge=1)],
        forces=FunctionForces(fail),
        guard=guard(EnergyWindow(limit=1.0)),
    )
    loop.advance()
    if isinstance(error, InputError):
        loop.advance()
        assert [(e.molecule, e.action) for e in loop.events] == [(1, "redraw")]
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            loop.advance()
        assert [(e.molecule, e.action) for e in loop.events] == [(1, "raise")]
    assert str(error) in loop.events[0].reason
    assert np.abs(ase.io.read(FRAMES).positions - start.positions).max() > 0.2


# Broken propagators


@pytest.mark.parametrize("spoil", [nan, explode, give_up])
@pytest.mark.parametrize("ensemble", [None, Langevin(300.0, 0.01)])
def test_nan_explosions_and_failures_raise_with_the_usual_guard(spoil, ensemble):
    harmonic, _ = tethered()
    loop = tethered_loop(
        Spoilt(harmonic, spoil, lambda call, stride: call >= 2),
        thermostat=ensemble,
        guard=Guard(frames_file=FRAMES),
    )
    assert loop.advance()
    assert loop.advance()
    with pytest.raises(PredictionError, match="step 2"):
        loop.advance()
    assert loop.events[-1].action == "raise"
    assert np.isfinite(loop.states[0].positions).all()
    assert len(ase.io.read(FRAMES, index=":")) == len(loop.events)


def test_nan_raises_even_without_a_guard():
    harmonic, _ = tethered()
    loop = tethered_loop(Spoilt(harmonic, nan), guard=replace(Guard.off(), frames_file=FRAMES))
    with pytest.raises(PredictionError, match="not finite"):
        loop.advance()


def advance(loop, steps):
    for _ in range(steps):
        loop.advance()


def heated(frames, state):
    return replace(frames, velocities=1.004 * frames.velocities)


def test_slow_heating_is_found_at_constant_temperature():
    harmonic, start = tethered()
    loop = tethered_loop(
        Spoilt(harmonic, heated),
        [start] * 2,
        thermostat=Langevin(300.0, 5e-4),
        guard=guard(Temperature(window_fs=4000.0)),
    )
    with pytest.raises(PredictionError, match="averaged over 4000 fs"):
        advance(loop, 3000)
    assert loop.step > 500
    assert loop.events[-1].check == "mean temperature"


def test_slow_heating_is_found_at_constant_energy():
    harmonic, _ = tethered()
    by_energy = tethered_loop(
        Spoilt(harmonic, heated), forces=forces_of(harmonic), guard=guard(EnergyWindow("raise"))
    )
    with pytest.raises(PredictionError, match=r"total energy is off by 0\.02"):
        advance(by_energy, 200)
    by_temperature = tethered_loop(
        Spoilt(harmonic, heated), guard=guard(Temperature(window_fs=2000.0))
    )
    with pytest.raises(PredictionError, match="averaged over 2000 fs"):
        advance(by_temperature, 3000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, s: replace(f, times=0.5 * f.times), r"frames at \[4.0\] fs instead of \[8\]"),
        (lambda f, s: replace(f, positions=f.positions[:, :3]), r"positions of shape \(1, 3, 3\)"),
        (lambda f, s: replace(f, velocities=f.velocities[0]), r"velocities of shape \(4, 3\)"),
        (lambda f, s: replace(f, velocities=None), r"velocities of shape \(\) instead"),
        (lambda f, s: f.positions, "a ndarray instead of Frames"),
        (lambda f, s: 1 / 0, "raised ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("off", [False, True])
def test_answers_that_are_none_raise_whatever_the_guard(spoil, message, off):
    harmonic, _ = tethered()
    loop = tethered_loop(
        Spoilt(harmonic, spoil, lambda call, stride: call == 1),
        forces=forces_of(harmonic),
        guard=replace(Guard.off() if off else Guard(), frames_file=FRAMES),
    )
    loop.advance()
    with pytest.raises(PredictionError, match=message):
        loop.advance()
    assert loop.events[-1].check == "propagator"
    assert loop.step == 1
    assert len(ase.io.read(FRAMES)) in (3, 4)


def test_a_wrong_number_of_answers_raises():
    class Silent(HarmonicPropagator):
        def propagate(self, states, times_fs, generator):
            return super().propagate(states, times_fs, generator)[1:]

    harmonic, start = tethered()
    loop = tethered_loop(Silent(harmonic), [start] * 3)
    with pytest.raises(PredictionError, match="gave 2 answers for 3 molecules"):
        loop.advance()


def test_a_wrong_molecule_is_an_input_error():
    loop = tethered_loop(HarmonicPropagator(springs()), forces=forces_of(tethered()[0]))
    with pytest.raises(InputError, match="the state has 4 atoms, but the potential has 5"):
        loop.advance()
    assert loop.events[-1].action == "raise"


class Positions(HarmonicPropagator):
    """Predicts positions only."""

    gives_velocities = False

    def propagate(self, states, times_fs, generator):
        return [
            replace(frames, velocities=None)
            for frames in super().propagate(states, times_fs, generator)
        ]


def test_without_velocities_they_are_drawn_and_constant_energy_is_refused():
    harmonic, start = tethered()
    with pytest.raises(ConfigError, match="predicts no velocities"):
        tethered_loop(Positions(harmonic))
    loop = JumpLoop(
        [start] * 200,
        Positions(harmonic),
        8.0,
        thermostat=Langevin(300.0, 1e-6),
        corrections=Corrections(centre_of_mass=False, random_rotation=False),
        guard=guard(),
        rng=np.random.default_rng(0),
    )
    loop.advance()
    kinetic = np.mean([state.kinetic_energy for state in loop.states])
    assert kinetic == pytest.approx(1.5 * 4 * 8.617e-5 * 300.0, rel=0.1)
    np.testing.assert_allclose(
        loop.states[0].positions, exact_positions(harmonic, start, 8.0), atol=1e-3
    )


# Own checks, and the log


class Far(Check):
    """The molecule stays near the origin."""

    name = "far"

    def judge(self, proposal):
        distance = np.abs(proposal.after.positions).max()
        if distance < 5.0:
            return None
        return Finding(self.name, distance, 5.0, f"{distance:.0f} Å is far", self.action)


def test_own_checks():
    harmonic, _ = tethered()
    loop = tethered_loop(Spoilt(harmonic, explode), guard=guard(Far("raise")))
    with pytest.raises(PredictionError, match="Å is far"):
        loop.advance()


def test_the_log_can_be_counted_saved_read_and_plotted(tmp_path):
    harmonic, _ = tethered()
    loop = tethered_loop(
        Spoilt(harmonic, nan, lambda call, stride: call % 2), guard=guard(redraws=3)
    )
    for _ in range(4):
        loop.advance()
    log = loop.events
    assert log.counts() == {"redraw": 3}
    assert log.counts("check") == {"finite": 3}
    log.save(tmp_path / "events.jsonl")
    assert list(EventLog.load(tmp_path / "events.jsonl")) == list(log)
    log.plot(tmp_path / "events.png")
    assert (tmp_path / "events.png").read_bytes().startswith(b"\x89PNG")
    EventLog().plot(tmp_path / "empty.png")
    (tmp_path / "events.jsonl").write_text('{"step": 1}')
    with pytest.raises(ModelFileError, match="not a readable log"):
        EventLog.load(tmp_path / "events.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failure": "accept"}, "failure='accept'; choose one of redraw, fallback"),
        ({"failure": "retry"}, "failure='retry'"),
        ({"last": "redraw"}, "last='redraw'"),
        ({"redraws": -1}, "redraws=-1"),
    ],
)
def test_guards_refuse_impossible_policies(options, message):
    with pytest.raises(ConfigError, match=message):
        Guard(**options)
    with pytest.raises(ConfigError, match="action='never'"):
        Contact("never")


def test_the_least_propagator_is_one_method():
    class Resting(Propagator):
        def propagate(self, states, times_fs, generator):
            return [
                Frames(np.array(times_fs), s.positions[None], s.velocities[None]) for s in states
            ]

    loop = tethered_loop(Resting(), guard=Guard(frames_file=FRAMES))
    assert loop.advance()
    assert loop.propagator.identity.endswith("Resting")
