"""`mlmd run --propagator` as a user types it."""

import json
import re

import ase.io
import numpy as np
import pytest
import typer
from ase.build import molecule
from toy_models import toy_model, write_model
from typer.testing import CliRunner

from mlmd_calc.cli import job
from mlmd_calc.cli.jumps import choose_propagator
from mlmd_calc.cli.run import run
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.md import read_record
from mlmd_calc.md.jump_engine import EVENTS_FILE
from mlmd_calc.potential import Potential
from mlmd_calc.propagation import EventLog
from mlmd_calc.propagation.atom import ATOMPropagator
from mlmd_calc.propagation.harmonic import HarmonicPropagator

SHIPPED = "atom-small-organics"

APP = typer.Typer()
APP.command("run")(run)
# With a single command Typer would not expect its name.
APP.command("nothing")(lambda: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A force model of which nothing comes apart."""
    return write_model(tmp_path_factory.mktemp("model") / "weak.safetensors", 0.1)


def invoke(*arguments):
    """Run the command; our own errors reach the caller."""
    return CliRunner().invoke(APP, [str(a) for a in arguments], catch_exceptions=False)


def test_replicas_of_a_shipped_model_restart_bit_for_bit(tmp_path):
    options = ("--propagator", SHIPPED, "-e", "nve", "--jump", 2, "--replicas", 2)
    options = (*options, "--interval", 2, "--seed", 3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = invoke("run", "CH4", *options, "-d", 0.016, "-o", whole, "--json")
    assert result.exit_code == 0
    assert "accepted 16  redrawn 0  fallback 0" in result.stderr
    assert re.search(r"ps/s +\S+ ns/day", result.stderr)
    summary = json.loads(result.stdout)
    assert summary == json.loads((whole / "summary.json").read_text())
    assert summary["settings"]["jumps"]["stride_fs"] == 2.0
    assert summary["step"] == 8
    assert summary["calculator"]["model"] == "mdet-small-organics"
    counts = {name: summary["jumps"][name] for name in ("accepted", "redrawn", "fallback")}
    assert counts == {"accepted": 16, "redrawn": 0, "fallback": 0}
    assert len(EventLog.load(whole / EVENTS_FILE)) == 0
    for index, replica in enumerate(summary["replicas"]):
        frames = ase.io.read(replica["trajectory"], index=":")
        assert [frame.info["time_fs"] for frame in frames] == [0.0, 4.0, 8.0, 12.0, 16.0]
        # Energy rescaling.
        assert np.ptp(read_record(whole / f"replica-{index}").total_energies) < 1e-9
    assert invoke("run", "CH4", *options, "-d", 0.006, "-o", parts).exit_code == 0
    result = invoke("run", "--restart", "-d", 0.016, "-o", parts)
    assert result.exit_code == 0
    assert f"2 fs by {SHIPPED}, 2 replicas" in result.stdout
    for name in ("replica-0", "replica-1"):
        frames = [read_record(folder / name).frames.tobytes() for folder in (whole, parts)]
        assert frames[0] == frames[1]


def test_openmm_with_steps_between_jumps(tmp_path):
    pytest.importorskip("openmm", reason="openmm is not installed")
    options = ("--propagator", SHIPPED, "--engine", "openmm", "--steps-per-jump", 2, "--jump", 4)
    for name, duration in (("whole", 0.030), ("parts", 0.010)):
        out = ("--seed", 3, "--interval", 1, "-d", duration, "-o", tmp_path / name)
        assert invoke("run", "CH4", *options, *out).exit_code == 0
    result = invoke("run", "--restart", "-d", 0.030, "-o", tmp_path / "parts", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["step"] == 6
    assert summary["time_ps"] == pytest.approx(0.030)
    assert summary["jumps"]["accepted"] == 6
    assert summary["engine"]["name"] == "openmm"
    whole, parts = (read_record(tmp_path / name).frames for name in ("whole", "parts"))
    assert whole.tobytes() == parts.tobytes()


def test_verlet_is_the_reference(tmp_path, model):
    # Bussi's thermostat is there for jumps in OpenMM, unlike for time steps.
    pytest.importorskip("openmm", reason="openmm is not installed")
    options = ("--propagator", "verlet", "-m", model, "-e", "bussi", "--jump", 2, "--interval", 1)
    frames = {}
    for engine in ("ase", "openmm"):
        out = ("--engine", engine, "-d", 0.006, "--seed", 1, "-o", tmp_path / engine)
        result = invoke("run", "CH4", *options, "--rotation", "none", *out)
        assert result.exit_code == 0
        assert "2 fs by verlet" in result.stdout
        frames[engine] = read_record(tmp_path / engine).frames
    for name in ("positions", "velocities", "potential"):
        np.testing.assert_allclose(frames["openmm"][name], frames["ase"][name], atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--jump", 2), "--jump is an option of runs made of jumps; give --propagator"),
        (("--replicas", 2), "--replicas is an option of runs made of jumps"),
        (("--steps-per-jump", 0), "--steps-per-jump is an option of runs made of jumps"),
        (("--propagator", "verlet", "-e", "nose-hoover"), "'nose-hoover' has no jumps"),
        (("--propagator", "verlet", "--replicas", 0), "replicas=0"),
        (("--propagator", "verlet", "--jump", 0.7), "multiples of 0.5 fs"),
        (("--propagator", "verlet", "-d", 0.001, "--jump", 4), "shorter than one step of 4 fs"),
        (("--propagator", SHIPPED, "--jump", 40), "14, 16 fs"),
        (("--propagator", "mdet-ethanol-gfn2"), "propagates nothing"),
        (("--propagator", "atom-small-organic"), SHIPPED),
        (("--propagator", "verlet", "--platform", "CPU"), "--platform is an option of OpenMM"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, monkeypatch, model, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        invoke("run", "CH4", "-m", model, "--no-relax", *options)
    assert list(tmp_path.iterdir()) == []


def test_replicas_in_openmm_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--propagator", "verlet", "--replicas", 2, "--engine", "openmm")
    with pytest.raises(ConfigError, match="together with --engine ase"):
        invoke("run", "CH4", *options)
    with pytest.raises(ConfigError, match="--replicas cannot be given with --restart"):
        invoke("run", "--restart", "--replicas", 2)
    assert list(tmp_path.iterdir()) == []


def test_a_stride_that_nobody_recommends_must_be_given():
    with pytest.raises(ConfigError, match="recommends no stride; give one"):
        HarmonicPropagator(None).usual_stride_fs()
    verlet = choose_propagator("verlet")
    potential = Potential(toy_model(), device="cpu")
    assert verlet.make(potential, 0.25, "cpu").usual_stride_fs() == 0.25


def test_the_force_model_of_the_run_is_that_of_the_propagator():
    potential = Potential(toy_model(), device="cpu")
    made = choose_propagator(SHIPPED).make(potential, 0.5, "cpu")
    assert isinstance(made, ATOMPropagator)
    assert made.potential is potential


def test_an_ion_is_refused_before_it_is_relaxed(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "relax", lambda atoms: pytest.fail("relaxed first"))
    ethanolate = tmp_path / "ethanolate.xyz"
    ase.io.write(ethanolate, molecule("CH3CH2OH")[[0, 1, 2, *range(4, 9)]], format="xyz")
    with pytest.raises(InputError, match="leave out --propagator"):
        invoke("run", ethanolate, "--charge", -1, "--propagator", SHIPPED, "-o", tmp_path / "ion")
