"""`mlmd demo` as a user types it."""

import json
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import typer
from another_process import pool_process
from toy_models import write_model
from typer.testing import CliRunner

from mlmd_calc.cli import demo as demo_module
from mlmd_calc.data import pool
from mlmd_calc.errors import ConfigError, MissingDependencyError
from mlmd_calc.md import read_record

APP = typer.Typer()
APP.command("demo")(demo_module.demo)


def invoke(*arguments):
    """Run the command; our own errors reach the caller."""
    return CliRunner().invoke(APP, [str(a) for a in arguments], catch_exceptions=False)


@pytest.mark.slow
def test_demo_shows_everything_and_runs_that_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "_require_openmm", missing("openmm"))
    monkeypatch.setattr(pool._Worker, "run", pool_process)
    wild = write_model(tmp_path / "wild.safetensors", 0.6)
    out = tmp_path / "demo"
    result = invoke("--quick", "--model", wild, "--out", out, "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    rows = {row["run"]: row for row in summary["runs"]}
    # Direct forces are all that this model recommends, and are run once.
    assert set(rows) == {"steps", "jumps", "energy"}
    assert rows["energy"]["label"] == "recommended: direct forces"
    # Jumps follow the model that their propagator has learnt from, not the wild one.
    assert Path(rows["jumps"]["calculator"]["model"]).name == "mdet-small-organics"
    assert rows["jumps"]["jumps"] == {"accepted": 20, "redrawn": 0, "fallback": 0}
    failed = [row for row in summary["runs"] if row["ended"] == "failed"]
    assert failed
    assert all(row["reason"] and row["verdict"].startswith("failed") for row in failed)
    # 20 fs tell nothing.
    assert not any(row["sound"] for row in summary["runs"])
    assert "too short to tell" in rows["jumps"]["verdict"]
    starts = [read_record(row["folder"]).frames["positions"][0] for row in failed]
    assert all(np.array_equal(start, starts[0]) for start in starts)
    assert Path(summary["picture"]).read_bytes().startswith(b"\x89PNG")
    assert "OpenMM is left out" in result.stderr
    assert "whatever --model says" in result.stderr
    for path in summary["trajectories"]:
        frames = ase.io.read(path, index=":")
        expected = 22 if path.endswith(".pdb") else 9
        assert all(len(atoms) == expected for atoms in frames)
    assert len(frames) == summary["peptide"]["frames"] + 1
    assert sum(summary["peptide"]["basins"].values()) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="not empty"):
        invoke("--quick", "--model", wild, "--out", out)


def missing(package):
    """Make a function that fails as one that needs a package which is not installed."""

    def refuse():
        raise MissingDependencyError(f"{package} is needed to run")

    return refuse


def test_demo_without_optional_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "_require_openmm", missing("openmm"))
    monkeypatch.setitem(sys.modules, "rdkit", None)
    monkeypatch.setitem(sys.modules, "rdkit.Chem", None)
    notes = []
    assert "openmm" not in demo_module._plan_runs(tmp_path, None, True, notes)
    assert demo_module._plan_peptide(tmp_path, True, notes) is None
    assert len(notes) == 2
    assert "pip install 'mlmd[data]'" in notes[1]
