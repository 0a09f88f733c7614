"""Forces of a model put into trajectories."""

from dataclasses import replace

import ase
import numpy as np
import pytest
from ase.build import molecule
from spring_molecules import spring_frames
from typer.testing import CliRunner

from mlmd_calc import MDETCalculator, Potential
from mlmd_calc.cli import app
from mlmd_calc.data import label, read_dataset, write_labels, write_trajectory
from mlmd_calc.data.label import label_forces
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.potential import Evaluation
from mlmd_calc.propagation import FunctionForces

# The labels are of springs, but the model knows no molecule in pieces.
WATER = replace(
    spring_frames("water", [8, 1, 1], 7),
    positions=molecule("H2O").positions + 0.01 * np.random.default_rng(0).normal(size=(7, 3, 3)),
)
TRAJECTORY = replace(
    WATER,
    velocities=np.zeros_like(WATER.positions),
    segment=np.zeros(7, np.int64),
    dt_fs=2.0,
)


def test_every_frame_gets_the_force_of_its_own_positions(monkeypatch):
    monkeypatch.setattr(label, "FRAMES_PER_CALL", 3)  # 7 frames are no whole number of calls
    seen = []
    labelled = label_forces(TRAJECTORY, FunctionForces(lambda x: (0.0, -2.0 * x)), seen.append)
    np.testing.assert_array_equal(labelled.forces, -2.0 * TRAJECTORY.positions)
    assert seen == [3, 3, 1]


def test_a_model_without_forces_is_refused():
    class EnergyOnly:
        def evaluate(self, structures, properties):
            return [Evaluation(energy=0.0, forces=None) for _ in structures]

    with pytest.raises(PredictionError, match="gave no forces"):
        label_forces(TRAJECTORY, EnergyOnly())


def test_command_writes_the_forces_of_the_calculator_and_keeps_what_is_done(tmp_path):
    compact = replace(TRAJECTORY, positions=WATER.positions[:1].repeat(7, axis=0))
    write_trajectory(tmp_path / "water.npz", compact)
    arguments = ["data", "label", str(tmp_path / "water.npz"), "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(app, [*arguments, "--dtype", "float64"])
    assert first.exit_code == 0, first.output
    (found,) = read_dataset(tmp_path / "out")
    atoms = ase.Atoms(found.numbers, found.positions[3], calculator=MDETCalculator())
    np.testing.assert_allclose(found.forces[3], atoms.get_forces(), rtol=1e-5, atol=1e-5)
    assert found.metadata["forces"] == Potential().model.card.name
    assert "0 molecules labelled" in CliRunner().invoke(app, arguments).output


def test_labels_of_other_weights_of_the_model_are_not_taken_for_its_own(tmp_path):
    write_trajectory(tmp_path / "water.npz", TRAJECTORY)
    arguments = ["data", "label", str(tmp_path / "water.npz"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (path,) = (tmp_path / "out").glob("*.npz")
    (found,) = read_dataset(path)
    older = {**found.metadata, "teacher_sha256": "0" * 64}
    write_trajectory(path, replace(found, metadata=older))
    with pytest.raises(ConfigError, match="other weights of it; choose another directory"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_molecules_of_one_name_get_a_file_each(tmp_path):
    other = replace(TRAJECTORY, positions=TRAJECTORY.positions[::-1])
    for folder, frames in (("a", TRAJECTORY), ("b", other)):
        (tmp_path / folder).mkdir()
        write_trajectory(tmp_path / folder / "water.npz", frames)
    folders = [str(tmp_path / folder) for folder in "ab"]
    arguments = ["data", "label", *folders, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert "2 molecules labelled" in result.output
    found = read_dataset(tmp_path / "out")
    assert [frames.name for frames in found] == ["water", "water"]
    np.testing.assert_array_equal(found[0].positions, found[1].positions[::-1])
    assert "0 molecules labelled" in CliRunner().invoke(app, arguments).output
    # The first file there is not that of the second folder.
    again = CliRunner().invoke(app, ["data", "label", folders[1], "--out", str(tmp_path / "out")])
    assert "water.npz holds other frames" in str(again.exception)


def test_frames_that_are_no_trajectory_are_refused_before_any_is_labelled(tmp_path, monkeypatch):
    monkeypatch.setattr("mlmd_calc.potential.Potential", None)  # a call would fail
    write_labels(tmp_path / "water.npz", WATER)
    arguments = ["data", "label", str(tmp_path / "water.npz"), "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"has no velocities, segment, dt_fs, .*--frame-spacing"):
        raise CliRunner().invoke(app, arguments).exception
    assert not (tmp_path / "out").exists()


def test_names_of_data_files_never_leave_the_folder():
    named = [replace(WATER, name=name) for name in ("../../up", "a/b", "a_b", "", "H2O (1)")]
    assert label.file_stems(named) == ["_.._up", "a_b", "a_b_2", "molecule", "H2O_(1)"]
