"""Frames inside jumps: where and when they are, and that they change nothing else."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from importlib.util import find_spec

import ase.io
import inner_frames_child
import numpy as np
import pytest
from analytic_potentials import HarmonicCalculator
from ase.build import molecule
from inner_frames_child import STEPS
from jump_run_child import Exact, SpringPotential, Unsteady, spring_molecule
from jump_systems import (
    HarmonicPropagator,
    Spoilt,
    explode,
    forces_of,
    nan,
    springs,
    springs_state,
    tethered,
)
from typer.testing import CliRunner

from mlmd_calc import load_propagator, units
from mlmd_calc.cli import app
from mlmd_calc.data import read_dataset
from mlmd_calc.errors import ConfigError
from mlmd_calc.md import Ensemble, JumpNVE, JumpSettings, MDSettings, Run, read_record
from mlmd_calc.md.dynamics import draw_momenta
from mlmd_calc.md.export import export_frames
from mlmd_calc.md.frames import FRAMES_FILE
from mlmd_calc.propagation import (
    Corrections,
    Displacement,
    FunctionForces,
    Guard,
    JumpLoop,
    Langevin,
    Strides,
    VerletPropagator,
)
from mlmd_calc.propagation.atom import ATOMPropagator
from mlmd_calc.propagation.state import state_from_ase

SHIPPED = "atom-small-organics"
STRIDE = 8.0
AT = (2.0, 4.0, 6.0)
"""Times of the frames inside a jump of four frames."""

OFF = Guard.off()
ENGINES = [
    "ase",
    pytest.param(
        "openmm",
        marks=pytest.mark.skipif(find_spec("openmm") is None, reason="openmm is not installed"),
    ),
]


def strict(**options):
    """A guard that refuses atoms which fly apart."""
    checks = (Displacement("redraw"),)
    return Guard(checks=checks, frames_file=os.devnull, **options)


def loop_of(harmonic, state, propagator=None, **options):
    """A loop at constant energy with four frames in a jump."""
    options = {"guard": OFF, "frames_per_jump": 4, "rng": np.random.default_rng(0), **options}
    return JumpLoop([state], propagator or HarmonicPropagator(harmonic), STRIDE, **options)


def is_exact(harmonic, start, frames, at=AT, atol=1e-10):
    """Whether frames are the exact motion from a state, at times after it."""
    x, v = harmonic.evolve(start.positions, start.velocities, start.masses, at)
    assert [frame.time - start.time for frame in frames] == pytest.approx(at, abs=1e-12)
    np.testing.assert_allclose([frame.positions for frame in frames], x, rtol=0, atol=atol)
    np.testing.assert_allclose([frame.velocities for frame in frames], v, rtol=0, atol=atol)
    return True


def test_frames_inside_jumps_are_the_exact_motion():
    harmonic, state = springs(), springs_state()
    # The usual corrections, and random orientations.
    loop = loop_of(harmonic, state)
    assert loop.inner_frames == ((),)
    for step in range(3):
        (start,) = loop.states
        assert start.time == STRIDE * step
        assert loop.advance()
        assert is_exact(harmonic, start, loop.inner_frames[0])
    without = loop_of(harmonic, state, frames_per_jump=1)
    for _ in range(3):
        without.advance()
    assert without.inner_frames == ((),)
    for name in ("positions", "velocities"):
        one, four = (getattr(run.states[0], name) for run in (without, loop))
        np.testing.assert_allclose(four, one, rtol=0, atol=1e-12)


def test_frames_are_corrected_like_the_end_of_the_jump():
    harmonic, state = springs(), springs_state()

    def drifting(frames, state):
        return replace(
            frames, positions=frames.positions + 1.0, velocities=1.01 * frames.velocities + 0.01
        )

    loop = loop_of(harmonic, state, Spoilt(harmonic, drifting))
    loop.advance()
    masses = state.masses
    momentum = masses @ state.velocities
    for frame in loop.inner_frames[0]:
        np.testing.assert_allclose(masses @ frame.velocities, momentum, atol=1e-12)
        way = masses @ (frame.positions - state.positions)
        np.testing.assert_allclose(way, frame.time * momentum, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_the_end_of_a_jump_is_the_same_from_the_same_calls(monkeypatch, dtype, tolerance):
    atoms = molecule("CH3OH")
    draw_momenta(atoms, 300.0, np.random.default_rng(0))
    ends, calls = {}, {}
    propagator = load_propagator(SHIPPED, device="cpu", dtype=dtype)
    predict = ATOMPropagator._propagate

    def counted(self, states, times_fs, generator):
        counts.append(len(times_fs))
        return predict(self, states, times_fs, generator)

    monkeypatch.setattr(ATOMPropagator, "_propagate", counted)
    for frames in (1, 4):
        counts = []
        options = {"rng": np.random.default_rng(2), "frames_per_jump": frames}
        loop = JumpLoop(
            [state_from_ase(atoms)],
            propagator,
            STRIDE,
            thermostat=Langevin(300.0, 0.01),
            guard=strict(),
            **options,
        )
        loop.advance()
        ends[frames], calls[frames] = loop.states[0], counts
    assert calls == {1: [1], 4: [4]}
    for name in ("positions", "velocities"):
        one, four = (getattr(ends[frames], name) for frames in (1, 4))
        np.testing.assert_allclose(four, one, rtol=0, atol=tolerance)


def test_a_rejected_jump_gives_no_frames():
    harmonic, state = springs(), springs_state()
    # The first call is far off, and with it all frames of its answer.
    spoilt = Spoilt(harmonic, explode, lambda call, stride: call == 0)
    loop = loop_of(harmonic, state, spoilt, guard=strict())
    loop.advance()
    assert loop.events.counts() == {"redraw": 1}
    assert is_exact(harmonic, state, loop.inner_frames[0])


def test_a_frame_that_is_no_number_rejects_the_jump():
    harmonic, state = springs(), springs_state()

    def inside(frames, state):
        positions = frames.positions.copy()
        positions[1, 0, 0] = np.nan
        return replace(frames, positions=positions)

    for spoil in (inside, nan):
        spoilt = Spoilt(harmonic, spoil, lambda call, stride: call == 0)
        loop = loop_of(harmonic, state, spoilt, guard=strict())
        loop.advance()
        assert loop.events.counts("check") == {"finite": 1}
        assert is_exact(harmonic, state, loop.inner_frames[0])


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_halves_of_a_jump_give_its_frames(frames):
    harmonic, state = springs(), springs_state()
    spoilt = Spoilt(harmonic, explode, lambda call, stride: stride == STRIDE, stochastic=False)
    loop = loop_of(harmonic, state, spoilt, guard=strict(), frames_per_jump=frames)
    loop.advance()
    assert loop.events.counts()["shorter"] == 1
    at = [STRIDE * k / frames for k in range(1, frames)]
    assert is_exact(harmonic, state, loop.inner_frames[0], at)


def test_no_jump_is_halved_where_the_halves_have_not_its_frames():
    harmonic, state = springs(), springs_state()
    for frames, action in ((1, "shorter"), (3, "fallback")):
        spoilt = Spoilt(harmonic, explode, lambda call, stride: stride == 6.0)
        # Halves of 3 fs are known, but not the frame 1 fs after the start of the second.
        spoilt.strides = Strides.among([2.0, 3.0, 4.0, 6.0])
        options = {"forces": forces_of(harmonic), "guard": strict(redraws=0)}
        loop = JumpLoop([state], spoilt, 6.0, frames_per_jump=frames, **options)
        loop.advance()
        assert loop.events.counts() == {action: 1}
        assert len(loop.inner_frames[0]) == frames - 1


def test_force_based_steps_in_the_place_of_a_jump_give_its_frames():
    harmonic, state = springs(), springs_state()
    spoilt = Spoilt(harmonic, explode)
    loop = loop_of(harmonic, state, spoilt, guard=strict(), forces=forces_of(harmonic))
    loop.advance()
    assert loop.events.counts()["fallback"] == 1
    reference = VerletPropagator(forces_of(harmonic), 0.5)
    (answer,) = reference.propagate([state], (*AT, STRIDE), loop.setup.generator)
    frames = [*loop.inner_frames[0], loop.states[0]]
    assert [frame.time for frame in frames] == [*AT, STRIDE]
    shown = [frame.positions for frame in frames]
    np.testing.assert_allclose(shown, answer.positions, rtol=0, atol=1e-12)


def test_steps_that_begin_at_the_frame_before_give_frames_of_this_step_only():
    harmonic, state = springs(), springs_state()
    # Nothing confirms the first jump, so that steps in the place of the second begin before it.
    spoilt = Spoilt(harmonic, explode, lambda call, stride: call > 0, stochastic=False)
    loop = loop_of(harmonic, state, spoilt, guard=strict(), forces=forces_of(harmonic))
    loop.advance()
    assert is_exact(harmonic, state, loop.inner_frames[0])
    loop.advance()
    assert [frame.time for frame in loop.inner_frames[0]] == [10.0, 12.0, 14.0]
    assert is_exact(harmonic, state, loop.inner_frames[0], (10.0, 12.0, 14.0), atol=1e-3)


def test_force_based_steps_after_jumps_give_frames_at_the_same_spacing():
    harmonic, state = springs(), springs_state()
    options = {"forces": forces_of(harmonic), "md_steps_per_jump": 12, "md_timestep_fs": 0.5}
    loop = loop_of(harmonic, state, **options)
    loop.advance()
    assert loop.states[0].time == 14.0
    at = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
    assert is_exact(harmonic, state, loop.inner_frames[0], at, atol=1e-3)
    loop = loop_of(harmonic, state, **options, frames_per_jump=1)
    loop.advance()
    assert loop.inner_frames == ((),)


def test_frames_of_jumps_that_other_forces_kick():
    harmonic, state = tethered()

    def push(positions):
        energy, forces = harmonic.energy_and_forces(positions)
        forces[0, 0] += 0.5
        return energy - 0.5 * positions[0, 0], forces

    propagator = HarmonicPropagator(harmonic)
    propagator.potential = forces_of(harmonic)
    loop = loop_of(
        harmonic,
        state,
        propagator,
        forces=FunctionForces(push),
        other_forces="kick",
        corrections=Corrections.none(),
    )
    loop.advance()
    reference = VerletPropagator(FunctionForces(push), 0.01)
    (answer,) = reference.propagate([state], AT, loop.setup.generator)
    frames = loop.inner_frames[0]
    assert [frame.time for frame in frames] == list(AT)
    shown = [frame.positions for frame in frames]
    error = np.abs(shown - answer.positions).max()
    (unmoved,) = propagator.propagate([state], AT, loop.setup.generator)
    assert error < 0.2 * np.abs(unmoved.positions - answer.positions).max()


def test_a_kicked_half_that_is_rescued_from_the_frame_before_keeps_its_frames():
    harmonic, state = tethered()
    spoilt = Spoilt(harmonic, explode, lambda call, stride: call == 2)
    spoilt.potential = forces_of(harmonic)
    loop = loop_of(
        harmonic,
        state,
        spoilt,
        forces=forces_of(harmonic),
        other_forces="kick",
        corrections=Corrections.none(),
        guard=strict(redraws=0, halvings=0),
    )
    loop.advance()
    assert len(loop.events) == 0
    loop.advance()
    assert loop.events.counts() == {"fallback": 1}
    assert is_exact(harmonic, state, loop.inner_frames[0], (10.0, 12.0, 14.0), atol=1e-3)


# ---- in ASE ----------------------------------------------------------------------------------


def test_trajectories_have_all_frames_and_observers_see_jumps(tmp_path):
    harmonic, start = tethered()
    atoms = start.to_atoms()
    atoms.calc = HarmonicCalculator(harmonic)
    path = tmp_path / "run.traj"
    dyn = JumpNVE(
        atoms,
        STRIDE * units.FS,
        HarmonicPropagator(harmonic),
        corrections=Corrections.none(),
        guard=OFF,
        frames_per_jump=4,
        trajectory=path,
    )
    seen, inside = [], []
    dyn.attach(lambda: seen.append(dyn.get_time() / units.FS), 2)
    dyn.attach(lambda: inside.append([frame.info["time_fs"] for frame in dyn.inner_frames]))
    dyn.run(4)
    assert seen == pytest.approx([0.0, 16.0, 32.0])
    assert inside == [[], *([8.0 * k + 2.0, 8.0 * k + 4.0, 8.0 * k + 6.0] for k in range(4))]
    times = 2.0 * np.arange(17)
    x, v = harmonic.evolve(start.positions, start.velocities, start.masses, times)
    written = ase.io.read(path, ":")
    np.testing.assert_allclose([frame.positions for frame in written], x, rtol=0, atol=1e-10)
    shown = [frame.get_velocities() * units.FS for frame in written]
    np.testing.assert_allclose(shown, v, rtol=0, atol=1e-10)
    given = ase.io.Trajectory(tmp_path / "given.traj", "w")
    options = {"corrections": Corrections.none(), "guard": OFF, "frames_per_jump": 4}
    again = start.to_atoms()
    with given:
        JumpNVE(
            again, STRIDE * units.FS, HarmonicPropagator(harmonic), trajectory=given, **options
        ).run(4)
    assert len(ase.io.read(tmp_path / "given.traj", ":")) == 17


class Still(HarmonicPropagator):
    """Predicts no velocities."""

    gives_velocities = False


class Coarse(HarmonicPropagator):
    """Knows two strides."""

    strides = Strides.among([4.0, 8.0])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (HarmonicPropagator, {"frames_per_jump": 0}, "frames_per_jump=0; .* from 1 to 1,000"),
        (Still, {"thermostat": Langevin(300.0, 0.01)}, "predicts no velocities, and no frames"),
        (Coarse, {}, "a frame 2 fs after its start, but the propagator was made for 4, 8 fs"),
        (
            Coarse,
            {"frames_per_jump": 2, "other_forces": "kick"},
            None,
        ),
        (Coarse, {"other_forces": "kick"}, "two halves, asks for a frame 2 fs"),
        (
            HarmonicPropagator,
            {"md_steps_per_jump": 1},
            "2 fs apart, which do not divide the 0.5 fs",
        ),
    ],
)
def test_frames_that_cannot_be_are_refused(kind, options, message):
    harmonic, state = springs(), springs_state()
    propagator = kind(harmonic)
    propagator.potential = forces_of(harmonic)
    if message is None:
        loop_of(harmonic, state, propagator, **options).advance()
        return
    with pytest.raises(ConfigError, match=message):
        loop_of(harmonic, state, propagator, **options)


def test_frames_that_would_not_be_equally_spaced_are_refused(tmp_path):
    harmonic, start = tethered()
    options = {"guard": OFF, "frames_per_jump": 4}
    of_dynamics = start.to_atoms(), STRIDE * units.FS, HarmonicPropagator(harmonic)
    with pytest.raises(ConfigError, match="loginterval=2 with a trajectory of frames inside"):
        JumpNVE(*of_dynamics, trajectory=tmp_path / "run.traj", loginterval=2, **options)
    dyn = JumpNVE(*of_dynamics, loginterval=2, **options)
    dyn.set_timestep(STRIDE * units.FS)
    with pytest.raises(ConfigError, match="a stride of 4 fs after one of 8 fs"):
        dyn.set_timestep(4 * units.FS)
    with pytest.raises(ConfigError, match="frames_per_jump=2 with interval=10"):
        MDSettings(jumps=JumpSettings("x", STRIDE, frames_per_jump=2))
    with pytest.raises(ConfigError, match="frames_per_jump=0"):
        JumpSettings("x", STRIDE, frames_per_jump=0)


def test_scripts_of_openmm_find_the_frames_beside_their_reporters():
    pytest.importorskip("openmm", reason="openmm is not installed")
    from openmm import app, unit
    from openmm_systems import system_of, topology_of

    from openmm_bridge import JumpNVEIntegrator

    harmonic, state = springs(), springs_state()
    atoms = state.to_atoms()
    integrator = JumpNVEIntegrator(
        HarmonicPropagator(harmonic),
        topology_of(atoms),
        STRIDE * unit.femtosecond,
        guard=OFF,
        frames_per_jump=4,
    )
    simulation = app.Simulation(topology_of(atoms), system_of(atoms), integrator)
    simulation.context.setPositions(state.positions / units.NM)
    simulation.context.setVelocities(state.velocities * units.FS_PER_PS / units.NM)
    times = []
    for _ in range(2):
        simulation.step(1)
        times += [frame.time for frame in integrator.loop.inner_frames[0]]
    assert times == pytest.approx([2.0, 4.0, 6.0, 10.0, 12.0, 14.0])
    with pytest.raises(ConfigError, match="would not be equally spaced"):
        integrator.setStepSize(4 * unit.femtosecond)
    assert integrator.getStepSize() == STRIDE * unit.femtosecond
    simulation.step(1)
    assert simulation.context.getTime().value_in_unit(unit.femtosecond) == pytest.approx(24.0)


# ---- recorded runs ---------------------------------------------------------------------------


def settings_of(frames, **others):
    jumps = JumpSettings("exact", STRIDE, frames_per_jump=frames, **others)
    return MDSettings(Ensemble.NVE, seed=2, interval=1, jumps=jumps)


def test_runs_record_frames_at_the_right_times_and_are_otherwise_the_same(tmp_path):
    for frames in (1, 4):
        atoms = spring_molecule(SpringPotential)
        with Run.start(
            atoms, tmp_path / str(frames), settings_of(frames, replicas=2), propagator=Exact()
        ) as simulation:
            assert simulation.run(5).verdict == "completed"
    for replica in ("replica-0", "replica-1"):
        plain, full = (read_record(tmp_path / str(frames) / replica) for frames in (1, 4))
        np.testing.assert_allclose(full.times_ps, 0.002 * np.arange(21), atol=1e-15)
        ends = full.at_steps
        np.testing.assert_array_equal(ends.frames["step"], plain.frames["step"])
        np.testing.assert_allclose(ends.times_ps, plain.times_ps, atol=1e-15)
        for name in plain.frames.dtype.names:
            np.testing.assert_array_equal(ends.frames[name], plain.frames[name])
        inside = np.isnan(full.frames["potential"])
        assert inside.sum() == 15
        # The steps of velocity Verlet, whose energy is nearly conserved: frames are on the path.
        kinetic = full.frames["kinetic"][inside]
        assert (kinetic < 1.05 * ends.total_energies.max()).all()
        assert plain.at_steps is plain
    assert MDSettings.from_dict(settings_of(4).to_dict()) == settings_of(4)
    # Runs of earlier versions go on.
    assert "frames_per_jump" not in settings_of(1).to_dict()["jumps"]


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_runs_go_on_bit_for_bit(tmp_path, engine):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert inner_frames_child.run(whole, engine).verdict == "completed"
    in_children(inner_frames_child.run, killed, engine)
    frames = [
        [path.read_bytes() for path in sorted(folder.rglob(FRAMES_FILE))]
        for folder in (whole, killed)
    ]
    assert frames[0] == frames[1]
    record = read_record(whole if engine == "openmm" else whole / "replica-1")
    # A jump of 2 fs and two steps of 0.5 fs.
    np.testing.assert_allclose(1000.0 * record.times_ps, np.arange(3 * STEPS + 1), atol=1e-9)
    # OpenMM tells forces, but not inside steps, and readers refuse labels of some frames only.
    export_frames(record, tmp_path / "run.extxyz")
    (read,) = read_dataset(tmp_path / "run.extxyz")
    assert read.dt_fs == pytest.approx(1.0)
    assert len(read) == len(record)
    assert read.forces is None
    assert read.energies is None


def test_killed_dynamics_of_ase_go_on_to_the_same_trajectory(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    inner_frames_child.run_with_ase(whole)
    in_children(inner_frames_child.run_with_ase, killed)
    one, other = (ase.io.read(folder / "run.traj", ":") for folder in (whole, killed))
    assert len(one) == len(other) == 4 * STEPS + 1
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.get_momenta(), b.get_momenta())


def in_children(function, *arguments):
    """Call a function in processes of which two are killed after a step and the last is not."""
    context = multiprocessing.get_context("forkserver")
    modules = ["pytest", "mlmd_calc.md.run", "mlmd_calc.md.jumps", "toy_models"]
    bridge = ["openmm.app", "openmm_bridge.engine"]
    context.set_forkserver_preload(modules + (bridge if find_spec("openmm") else []))
    for kill_at in (7, 17, None):
        child = context.Process(target=function, args=arguments, kwargs={"kill_at": kill_at})
        child.start()
        child.join()
        assert child.exitcode == (0 if kill_at is None else -signal.SIGKILL)
        child.close()


def test_rejected_jumps_leave_no_hole_in_a_record(tmp_path):
    jumps = JumpSettings("unsteady", 2.0, replicas=2, frames_per_jump=2)
    settings = MDSettings(friction_per_ps=10.0, seed=1, interval=1, jumps=jumps)
    with Run.start(spring_molecule(), tmp_path, settings, propagator=Unsteady()) as simulation:
        simulation.run(30)
        assert simulation.counts.redrawn > 0
    for index in range(2):
        record = read_record(tmp_path / f"replica-{index}")
        np.testing.assert_allclose(1000.0 * record.times_ps, np.arange(61), atol=1e-9)
        # Rejected frames are five times as large.
        sizes = np.linalg.norm(record.frames["positions"].std(axis=1), axis=1)
        assert sizes.max() < 1.5 * sizes.min()


# ---- as a user types it ----------------------------------------------------------------------


def invoke(*arguments):
    """Run a command; our own errors reach the caller."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_command_records_frames_that_spectra_read(tmp_path):
    options = ("--propagator", SHIPPED, "--frames-per-jump", 4, "--seed", 3, "-T", 600)
    options = ("run", "CH4", *options, "-e", "nve")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = invoke(*options, "-d", 0.064, "-o", whole, "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["settings"]["jumps"]["frames_per_jump"] == 4
    assert summary["jumps"]["accepted"] == 8
    assert summary["energy_drift_meV_per_atom_per_ps"] is not None
    frames = ase.io.read(summary["trajectory"], ":")
    assert [frame.info["time_fs"] for frame in frames] == [2.0 * k for k in range(33)]
    assert all(frame.calc is None for frame in frames)
    assert invoke(*options, "-d", 0.024, "-o", parts).exit_code == 0
    result = invoke("run", "--restart", "-d", 0.064, "-o", parts)
    assert "8 fs by atom-small-organics, 4 frames of each" in result.stdout
    assert (parts / FRAMES_FILE).read_bytes() == (whole / FRAMES_FILE).read_bytes()
    result = invoke("evaluate", "spectrum", whole / "trajectory.extxyz", "--resolution", 600)
    assert result.exit_code == 0
    assert "peak" in result.stdout


def test_command_refuses_what_makes_no_sense(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--frames-per-jump is an option of runs made of jumps"):
        invoke("run", "CH4", "--frames-per-jump", 4)
    options = ("run", "CH4", "--propagator", SHIPPED, "--frames-per-jump")
    with pytest.raises(ConfigError, match="frames_per_jump=4 with interval=10"):
        invoke(*options, 4, "--interval", 10)
    with pytest.raises(ConfigError, match="asks for a frame 1 fs after its start"):
        invoke(*options, 8, "--no-relax")
    assert list(tmp_path.iterdir()) == []
