"""Forces of a model put into trajectories."""

from dataclasses import replace

import ase
import numpy as np
import pytest
from spring_molecules import spring_frames
from typer.testing import CliRunner

from mlmd_calc import MDETCalculator, Potential
from mlmd_calc.cli import app
from mlmd_calc.data import label, read_dataset, write_trajectory
from mlmd_calc.data.label import label_forces
from mlmd_calc.errors import PredictionError
from mlmd_calc.potential import Evaluation
from mlmd_calc.propagation import FunctionForces

WATER = spring_frames("water", [8, 1, 1], 7)
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
