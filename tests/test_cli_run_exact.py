"""`mlmd run --exact`: what it samples, what it says of it, how it goes on, what it refuses."""

import itertools
import json

import analytic_potentials
import ase.io
import numpy as np
import pytest
import typer
from analytic_potentials import Springs
from another_process import mlmd, run_child
from toy_models import write_model
from typer.testing import CliRunner

from mlmd_calc import MDETCalculator
from mlmd_calc.cli.run import run
from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.md import ASEEngine, ExactSettings, MDSettings, Run, read_record

APP = typer.Typer()
APP.command("run")(run)
APP.callback()(lambda: None)

TARGET = "analytic_potentials:water_springs"
SAMPLING = ("--exact", TARGET, "--warmup", 4, "--trajectory-steps", 6, "--timestep", 0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "weak.safetensors", 0.3)


def invoke(*arguments):
    """Run the command; our own errors reach the caller."""
    return CliRunner().invoke(APP, [str(a) for a in arguments], catch_exceptions=False)


def sample(model, out, proposals, *options):
    proposing = ("-m", model, "--rotation", "none", "--seed", 3)
    return invoke(
        "run", "H2O", *proposing, *SAMPLING, "--proposals", proposals, "-o", out, *options
    )


def go_on(out, proposals):
    """Continue a run in another process; return its summary."""
    restart = ("run", "--restart", "--out", out, "--json")
    return json.loads(run_child(mlmd, *restart, "--proposals", proposals))


def test_run_in_parts_is_the_run_in_one_go(tmp_path, model):
    whole = json.loads(sample(model, tmp_path / "whole", 30, "--json").stdout)
    assert sample(model, tmp_path / "parts", 11).exit_code == 0
    parts = go_on(tmp_path / "parts", 30)
    assert whole["exact"] == parts["exact"]
    assert whole["exact"]["proposals"] == 30
    frames = [read_record(tmp_path / name).frames for name in ("whole", "parts")]
    assert frames[0].tobytes() == frames[1].tobytes()
    far = [
        ase.io.read(tmp_path / name / "far_frames.traj", index=":") for name in ("whole", "parts")
    ]
    assert len(far[0]) == len(far[1]) == whole["exact"]["target_gradients"] > 0
    for one, other in zip(*far, strict=True):
        assert np.array_equal(one.positions, other.positions)
        assert np.array_equal(one.get_forces(), other.get_forces())


def test_frames_are_samples_of_the_target_without_time(tmp_path, model):
    result = sample(model, tmp_path, 20)
    assert result.exit_code == 0
    assert "physical time" in result.stdout
    record = read_record(tmp_path)
    assert len(record) == 25
    samples = ase.io.read(tmp_path / "trajectory.extxyz", index=":")
    assert [atoms.info["step"] for atoms in samples] == list(range(5, 25))
    target = Springs(20.0, 1.0)
    for atoms in samples:
        assert "time_fs" not in atoms.info
        known = target.get_potential_energy(atoms)
        assert atoms.get_potential_energy() == pytest.approx(known, abs=1e-6)
    summary = json.loads((tmp_path / "summary.json").read_text())
    pairs = itertools.pairwise(samples)
    rejected = [np.array_equal(one.positions, other.positions) for one, other in pairs]
    assert summary["exact"]["acceptance"] == pytest.approx(1 - np.mean(rejected), abs=0.051)
    assert summary["exact"]["energy"]["value"] == pytest.approx(
        np.mean([atoms.get_potential_energy() for atoms in samples])
    )
    assert summary["exact"]["proposal"]["overlap"] < 1.0
    assert not {"time_ps", "ns_per_day"} & set(summary)
    with pytest.raises(ConfigError, match="no physical time passes"):
        _ = record.times_ps


def test_stopped_in_the_warm_up_there_is_no_summary_of_samples(tmp_path, model, monkeypatch):
    whole = Run.run
    monkeypatch.setattr(Run, "run", lambda run, last, **options: whole(run, 2, **options))
    result = sample(model, tmp_path, 20)
    assert "warm-up is not over" in result.stdout
    assert "accepted" not in result.stdout
    # No NaN, which is no JSON.
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["acceptance"] is None


def test_another_target_is_noticed(tmp_path, model, monkeypatch):
    assert sample(model, tmp_path, 10).exit_code == 0
    monkeypatch.setattr(analytic_potentials, "water_springs", lambda: Springs(21.0, 1.0))
    with pytest.raises(ModelFileError, match="continue with the target of the run"):
        invoke("run", "--restart", "-o", tmp_path, "--proposals", 20)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="give --proposals"):
        invoke("run", "--restart", "-o", tmp_path, "--duration", 1)
    with pytest.raises(ConfigError, match="has done 14 steps already"):
        invoke("run", "--restart", "-o", tmp_path, "--proposals", 5)
    with pytest.raises(ConfigError, match="--proposals 0"):
        invoke("run", "--restart", "-o", tmp_path, "--proposals", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "openmm"), "--engine openmm with --exact"),
        (("--propagator", "verlet"), "--propagator verlet with --exact"),
        (("--mts", 4), "--mts 4 with --exact"),
        (("--ensemble", "nve"), "--ensemble nve with --exact"),
        (("--duration", 1), "say how many trajectories with --proposals"),
        (("--format", "xtc"), "have no time"),
        (("--proposals", 0), "--proposals 0"),
        (("--trajectory-steps", 0), "trajectory_steps=0"),
        (("--warmup", -1), "warmup=-1"),
        (("--rotation", "random"), "cannot be reversed"),
        (("--exact", "gfn3"), "reference 'gfn3'"),
        (("--exact", "analytic_potentials:missing"), "cannot be imported"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, model, options, message):
    with pytest.raises(ConfigError, match=message):
        sample(model, tmp_path / "out", 10, *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--proposals", "--trajectory-steps", "--warmup"])
def test_options_of_exact_ensembles_need_one(tmp_path, model, option):
    with pytest.raises(ConfigError, match="give --exact with it"):
        invoke("run", "H2O", "-m", model, option, 5, "-o", tmp_path / "out")


def test_settings_and_engine_must_fit(tmp_path, model):
    atoms = ase.Atoms("OH2", [[0, 0, 0], [1.05, 0, 0], [0, 0.9, 0]])
    atoms.calc = MDETCalculator(model, rotation="none")
    exact = MDSettings(exact=ExactSettings("springs"))
    with pytest.raises(ConfigError, match="give both or none"):
        Run.start(atoms, tmp_path, exact)
    with pytest.raises(ConfigError, match="give both or none"):
        Run.start(atoms, tmp_path, MDSettings(), engine=ASEEngine(target=Springs(20.0, 1.0)))
    with pytest.raises(ConfigError, match="settings are of a run without them"):
        Run.start(atoms, tmp_path, exact, engine=ASEEngine(object(), Springs(20.0, 1.0)))
    with pytest.raises(ConfigError, match="with an exact ensemble"):
        MDSettings(exact=exact.exact, inner_steps=2)
