"""Recorded runs made of jumps: the same in both engines, and after a SIGKILL."""

import json
import signal
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from analytic_potentials import Springs
from another_process import PROCESSES
from jump_run_child import (
    R0,
    STEPS,
    Exact,
    K,
    SpringPotential,
    engine_of,
    run,
    spring_molecule,
    springs,
    tetrahedron,
)

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.md import (
    Ensemble,
    JumpNVE,
    JumpNVT,
    JumpSettings,
    MDSettings,
    Run,
    read_record,
)
from mlmd_calc.md.checkpoint import Checkpoint
from mlmd_calc.md.dynamics import draw_momenta, remove_rigid_motion
from mlmd_calc.md.frames import FRAMES_FILE
from mlmd_calc.md.jump_engine import EVENTS_FILE
from mlmd_calc.md.record import STOPPED_FILE
from mlmd_calc.propagation import EventLog

KILLS = 4
ENGINES = [
    "ase",
    pytest.param(
        "openmm",
        marks=pytest.mark.skipif(find_spec("openmm") is None, reason="openmm is not installed"),
    ),
]


def jump_settings(ensemble=Ensemble.LANGEVIN, **jumps):
    settings = JumpSettings(**{"propagator": "test", "stride_fs": 2.0, **jumps})
    return MDSettings(ensemble, friction_per_ps=10.0, seed=2, interval=1, jumps=settings)


def frames_of(folder):
    return [path.read_bytes() for path in sorted(folder.rglob(FRAMES_FILE))]


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_runs_go_on_bit_for_bit(tmp_path, engine):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    outcome, simulation = run(whole, engine)
    assert outcome.verdict == "completed"
    rng = np.random.default_rng()
    for kill in range(KILLS + 1):
        step = 10 * kill + int(rng.integers(1, 10)) if kill < KILLS else None
        arguments = (killed, engine, step, 0.01 * rng.random())
        child = PROCESSES.Process(target=run, args=arguments)
        child.start()
        child.join()
        assert child.exitcode == (0 if step is None else -signal.SIGKILL)
        child.close()
        assert step is None or Checkpoint.read(killed).step < STEPS
    assert frames_of(killed) == frames_of(whole)
    assert len(frames_of(whole)) == (3 if engine == "ase" else 1)
    assert (killed / EVENTS_FILE).read_text() == (whole / EVENTS_FILE).read_text()
    counts = simulation.counts
    assert counts.redrawn > 0
    assert counts.accepted + counts.fallback == STEPS * simulation.settings.replicas
    assert sum(simulation.loop.events.counts("check").values()) == len(
        EventLog.load(whole / EVENTS_FILE)
    )


@pytest.mark.parametrize("ensemble", [Ensemble.NVE, Ensemble.LANGEVIN, Ensemble.BUSSI])
def test_a_run_is_what_the_dynamics_of_ase_does(tmp_path, monkeypatch, ensemble):
    monkeypatch.chdir(tmp_path)
    atoms = tetrahedron()
    atoms.calc = Springs(K, R0)
    draw_momenta(atoms, 300.0, np.random.default_rng(0))
    remove_rigid_motion(atoms, ensemble, torque_free=True)
    settings = jump_settings(ensemble)
    with Run.start(
        atoms, tmp_path / "run", settings, propagator=Exact(), keep_velocities=True
    ) as simulation:
        options = {"propagator": Exact(), "rng": np.random.default_rng(2)}
        if ensemble is Ensemble.NVE:
            dyn = JumpNVE(atoms, 2 * units.FS, rescale_energy=True, **options)
        else:
            rate = {"friction": 0.01 / units.FS}
            if ensemble is Ensemble.BUSSI:
                rate = {"thermostat": "bussi", "taut": 100 * units.FS}
            dyn = JumpNVT(atoms, 2 * units.FS, temperature_K=300.0, **rate, **options)
        assert simulation.run(10).verdict == "completed"
        dyn.run(10)
    last = read_record(tmp_path / "run").frames[-1]
    np.testing.assert_allclose(last["positions"], atoms.positions, rtol=0, atol=1e-12)
    assert np.abs(last["positions"] - tetrahedron().positions).max() > 0.01


@pytest.mark.parametrize("ensemble", [Ensemble.NVE, Ensemble.LANGEVIN])
def test_both_engines_make_the_same_jumps(tmp_path, ensemble):
    pytest.importorskip("openmm", reason="openmm is not installed")
    frames = {}
    for engine in ("ase", "openmm"):
        settings = jump_settings(ensemble, md_steps_per_jump=1)
        parts = {"engine": engine_of(engine), "propagator": Exact()}
        with Run.start(spring_molecule(), tmp_path / engine, settings, **parts) as run:
            assert run.run(5).verdict == "completed"
            assert run.loop.states[0].time == pytest.approx(5 * 2.5)
        frames[engine] = read_record(tmp_path / engine).frames
    for name in ("positions", "velocities", "potential", "kinetic"):
        np.testing.assert_allclose(
            frames["openmm"][name], frames["ase"][name], rtol=0, atol=1e-9, err_msg=name
        )
    # What OpenMM has evaluated with the energies of frames.
    for frame in frames["openmm"]:
        known = springs(frame["positions"])[1]
        np.testing.assert_allclose(frame["forces"], known, rtol=0, atol=1e-9)
    totals = read_record(tmp_path / "ase").total_energies
    assert (np.ptp(totals) < 1e-9) == (ensemble is Ensemble.NVE)


def test_replicas_differ_and_share_the_temperature(tmp_path):
    settings = jump_settings(replicas=4)
    with Run.start(spring_molecule(), tmp_path, settings, propagator=Exact()) as simulation:
        simulation.run(3)
        mean = np.mean([read_record(tmp_path / f"replica-{i}").temperatures[0] for i in range(4)])
        kinetic = [atoms.get_kinetic_energy() for atoms in simulation.molecules]
        expected = 2 * np.mean(kinetic) / (12 * units.KB)
        assert simulation.temperature == pytest.approx(expected)
    assert len(set(frames_of(tmp_path))) == 4
    assert 50.0 < mean < 900.0
    assert not (tmp_path / FRAMES_FILE).exists()


class Nonsense(Exact):
    """Answers with what is not a number."""

    def propagate(self, states, times_fs, generator):
        answers = super().propagate(states, times_fs, generator)
        return [replace(answer, positions=np.nan * answer.positions) for answer in answers]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hopeless_run_says_why_and_keeps_its_events(tmp_path, engine):
    parts = {"engine": engine_of(engine), "propagator": Nonsense()}
    settings = jump_settings(stride_fs=0.5)
    with Run.start(spring_molecule(), tmp_path, settings, **parts) as simulation:
        outcome = simulation.run(60)
        counts = simulation.counts
    assert outcome.verdict == "failed"
    assert outcome.step == 51
    assert "not finite" in outcome.reason
    assert (counts.accepted, counts.fallback) == (0, 50)
    events = EventLog.load(tmp_path / EVENTS_FILE)
    assert events[-1].action == "raise"
    assert (tmp_path / STOPPED_FILE).exists()
    assert (tmp_path / "rejected_frames.extxyz").exists()


def test_a_mistake_in_the_forces_is_not_taken_for_a_bad_jump(tmp_path):
    pytest.importorskip("openmm", reason="openmm is not installed")

    class Broken(SpringPotential):
        calls = 0

        def evaluate(self, structures, properties=(), coverage=None):
            self.calls += 1
            if self.calls > 3:
                raise TypeError("a mistake")
            return super().evaluate(structures, properties)

    parts = {"engine": engine_of("openmm"), "propagator": Exact()}
    settings = jump_settings(Ensemble.NVE)
    with (
        Run.start(spring_molecule(Broken), tmp_path, settings, **parts) as simulation,
        pytest.raises(TypeError, match="a mistake"),
    ):
        simulation.run(20)


def test_runs_of_another_kind_are_refused(tmp_path):
    atoms = spring_molecule()
    with pytest.raises(ConfigError, match="made of jumps by 'test'; pass that propagator"):
        Run.start(atoms, tmp_path / "a", jump_settings())
    with pytest.raises(ConfigError, match="these settings are of a run made of force-based steps"):
        Run.start(atoms, tmp_path / "a", MDSettings(), propagator=Exact())
    assert not (tmp_path / "a").exists()
    Run.start(atoms, tmp_path / "b", jump_settings(), propagator=Exact()).close()
    with pytest.raises(ConfigError, match="these settings are of a run made of jumps"):
        Run.resume(tmp_path / "b", atoms.calc)
    with pytest.raises(ModelFileError, match="propagator = VerletPropagator"):
        Run.resume(tmp_path / "b", atoms.calc, propagator=Other())


class Other(Exact):
    """Has a name of its own."""

    identity = "other"


class Blind(Exact):
    """Gives no velocities."""

    gives_velocities = False


def test_refusals_leave_nothing_behind(tmp_path):
    atoms = spring_molecule()
    draw_momenta(atoms, 300.0, np.random.default_rng(0))
    cases = [
        (jump_settings(Ensemble.BUSSI), Blind(), False, "none that 'bussi' could scale"),
        (jump_settings(Ensemble.NVE), Blind(), False, "run it with a thermostat"),
        (jump_settings(Ensemble.NVE, replicas=2), Exact(), True, "would all do the same"),
    ]
    for settings, chosen, keep, message in cases:
        with pytest.raises(ConfigError, match=message):
            Run.start(atoms, tmp_path / "run", settings, propagator=chosen, keep_velocities=keep)
    if find_spec("openmm"):
        with pytest.raises(ConfigError, match="2 replicas in OpenMM"):
            Run.start(
                atoms,
                tmp_path / "run",
                jump_settings(replicas=2),
                engine=engine_of("openmm"),
                propagator=Exact(),
            )
    assert not (tmp_path / "run").exists()


def test_settings_survive_the_way_through_a_file():
    settings = jump_settings(stride_fs=8.0, md_steps_per_jump=4, replicas=3)
    assert settings.step_fs == 8.0 + 4 * 0.5
    assert MDSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride_fs": 0.0}, "stride_fs=0.0"),
        ({"md_steps_per_jump": -1}, "md_steps_per_jump=-1"),
        ({"replicas": 0}, "replicas=0"),
        ({"ensemble": Ensemble.NOSE_HOOVER}, "'nose-hoover' has no jumps"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        jump_settings(**options)
