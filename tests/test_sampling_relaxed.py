"""Relaxed trajectories: restart, feedback to the model, energies beside dynamics, refusals."""

import csv
import json

import numpy as np
import pytest
import torch
from another_process import run_child
from atmos_systems import write_model
from typer.testing import CliRunner

from mlmd_calc import units
from mlmd_calc.biomolecules import read_structure
from mlmd_calc.cli import app
from mlmd_calc.errors import ConfigError, InputError, RefusedFramesError
from mlmd_calc.propagation import FunctionForces
from mlmd_calc.sampling import SamplingJob, SamplingRun, relaxed

pytest.importorskip("mdtraj", reason="mdtraj is not installed")
pytest.importorskip("rdkit", reason="rdkit is not installed")

from peptide_structures import write_dipeptide
from relaxed_child import go_on, springs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("models") / "key.safetensors"))


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(relaxed, "MINIMISE_STEPS", 300)
    monkeypatch.setattr(relaxed, "DYNAMICS_STEPS", 20)


def start(folder, structure, model, make_forces=springs, **options):
    options = {"frames": 2, "reference_ps": 0.05, "relax": "springs", "redraws": 2, **options}
    job = SamplingJob("x", model, seed=1, keyframes_per_checkpoint=1, **options)
    return SamplingRun.start(folder, job, structure, make_forces)


def test_a_longer_run_in_another_process_is_the_same(dipeptide, model, tmp_path):
    whole = start(tmp_path / "whole", dipeptide, model, frames=4, replicas=2)
    whole.run()
    whole.close()
    part = start(tmp_path / "part", dipeptide, model, replicas=2)
    part.run()
    part.close()
    run_child(go_on, tmp_path / "part", 4)
    for name in ("trajectory-0.xtc", "trajectory-1.xtc", "energies.csv"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_relaxed_frames_are_fed_back_and_their_energies_told(
    dipeptide, model, tmp_path, monkeypatch
):
    run = start(tmp_path, dipeptide, model, format="extxyz")
    trajectories = run._drawing._trajectories
    seen, step = [], trajectories.rollout.step

    def watched(memory, positions, generators):
        seen.append(positions.numpy())
        return step(memory, positions, generators)

    monkeypatch.setattr(trajectories.rollout, "step", watched)
    run.run()
    run.close()
    # The network, which was never trained, draws far from where the springs pull.
    frame = trajectories._whole[0]
    assert 0.01 < np.abs(frame - dipeptide.positions).max() < 1.0
    assert np.abs(seen[1][0] - run.system.reference).max() < 1.0
    forces = springs("springs", dipeptide)
    energy = run.summary()["energy"]
    with (tmp_path / "energies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == ["1", "2"]
    energies = [float(row["trajectory-0"]) for row in rows]
    # Superposition on the frame before has moved the last one out of the springs.
    assert energy["mean_kJ_per_mol"] == pytest.approx(np.mean(energies), abs=1e-3)
    assert max(energies) < energy["dynamics_mean_kJ_per_mol"] + energy["limit_kJ_per_mol"]
    assert min(energies) > forces.function(dipeptide.positions)[0] / units.KJ_PER_MOL
    assert run.quality.unsound == 0


def test_too_high_an_energy_ends_the_run_with_the_reason(dipeptide, model, tmp_path):
    shift = {"eV": 0.0}

    def shifted(name, structure):
        forces = springs(name, structure).function
        return FunctionForces(lambda x: (forces(x)[0] + shift["eV"], forces(x)[1]))

    run = start(tmp_path, dipeptide, model, shifted)
    shift["eV"] = 1.0
    before = [part.clone() for part in run._drawing._trajectories._memory]
    with pytest.raises(
        RefusedFramesError,
        match=r"relaxed 3 times, and refused every time, the last because relaxed 4 times, "
        r"the potential energy is .* eV per atom \(.* kJ/mol in all, .* above the mean",
    ):
        run.run()
    assert run.frame == 0
    energy = run.summary()["energy"]
    assert (energy["refused"], energy["relaxed_again"]) == (3, 3)
    after = run._drawing._trajectories._memory
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    run.close()
    kept = start(tmp_path / "kept", dipeptide, model, shifted, redraws=0)
    shift["eV"] = 2.0
    kept.run()
    assert kept.summary()["energy"]["deviations_above_dynamics"] > 2.0
    kept.close()


def test_what_forces_make_nothing_of_is_drawn_again(dipeptide, model, tmp_path):
    """Two replicas whose first draws cannot be evaluated, one of them not even alone."""
    calls = []

    def failing(name, structure):
        forces = springs(name, structure).function

        def function(x):
            energy, f = forces(x)
            # Far from the start: of both together, and then of one of them alone.
            fails = len(calls) < 3 and np.abs(x - structure.positions).max() > 2.0
            if fails:
                calls.append(x)
            return energy, f * (np.nan if fails else 1.0)

        return FunctionForces(function)

    run = start(tmp_path, dipeptide, model, failing, frames=1, replicas=2)
    run.run()
    run.close()
    assert len(calls) == 3
    assert (run.frame, run.summary()["energy"]["refused"]) == (1, 1)


def test_refusals(dipeptide, model, tmp_path):
    with pytest.raises(ConfigError, match="relax='springs' with an interpolator"):
        SamplingJob("x", model, relax="springs", interpolator="fine")
    with pytest.raises(ConfigError, match="a reference run of 0 ps is shorter than its time step"):
        start(tmp_path / "run", dipeptide, model, reference_ps=0.0)
    assert not (tmp_path / "run").exists()
    solvated = read_structure(write_dipeptide(tmp_path / "complex.pdb", complexed=True))
    with pytest.raises(InputError, match="2 atoms are water or ions, which would stand still"):
        start(tmp_path / "run", solvated, model)

    def refused(*arguments):
        options = ["-m", model, "-o", str(tmp_path / "run")]
        return str(CliRunner().invoke(app, ["sample", *arguments, *options]).exception)

    assert "give --relax with it" in refused("sequence:A", "--reference-ps", "1")
    assert "'no-such-model'" in refused("sequence:A", "--relax", "no-such-model")
    assert "cannot be imported" in refused("sequence:A", "--relax", "no.such:calculator")
    pytest.importorskip("openmm", reason="openmm is not installed")
    assert "Amber ff14SB does not know the molecule (No template found" in refused(
        "smiles:CCO", "--relax", "amber14"
    )


def test_command_with_amber(tmp_path, monkeypatch):
    pytest.importorskip("openmm", reason="openmm is not installed")
    monkeypatch.setattr(relaxed, "MINIMISE_STEPS", 100)
    monkeypatch.setattr(relaxed, "DYNAMICS_STEPS", 300)
    arguments = ["sequence:A", "-m", "atmos-peptides", "-n", "4", "--relax", "amber14", "--json"]
    arguments += ["--reference-ps", "1", "--seed", "2", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, ["sample", *arguments])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["job"]["redraws"] == 10
    assert summary["quality"]["unsound"] == 0
    assert abs(summary["energy"]["deviations_above_dynamics"]) < 2.0
    assert not any("Energies of single frames" in note for note in summary["notes"])


def test_command_with_a_calculator_of_ase(model, tmp_path, monkeypatch):
    """Bonds of Lennard-Jones are absurd; every frame is kept."""
    monkeypatch.setattr(relaxed, "DYNAMICS_STEPS", 2)
    arguments = ["sequence:G", "-m", model, "-n", "1", "--redraws", "0", "--json", "--seed", "1"]
    arguments += ["--relax", "ase.calculators.emt:EMT", "--reference-ps", "0.001"]
    done = CliRunner().invoke(app, ["sample", *arguments, "-o", str(tmp_path)])
    assert "mean_kJ_per_mol" in json.loads(done.stdout)["energy"], done.output


def test_command_with_mdet(tmp_path, monkeypatch):
    """With next to no relaxation, which a frame of a trained model survives."""
    monkeypatch.setattr(relaxed, "MINIMISE_STEPS", 2)
    monkeypatch.setattr(relaxed, "DYNAMICS_STEPS", 2)
    arguments = ["sequence:G", "-m", "atmos-peptides", "-n", "1", "--redraws", "0", "--json"]
    arguments += ["--relax", "mdet-small-organics", "--reference-ps", "0.001", "--seed", "1"]
    done = CliRunner().invoke(app, ["sample", *arguments, "-o", str(tmp_path)])
    summary = json.loads(done.stdout)
    # The network, and the force model.
    assert len(summary["sha256"]) == 2
    assert abs(summary["energy"]["mean_kJ_per_mol"]) > 1e5, done.output
