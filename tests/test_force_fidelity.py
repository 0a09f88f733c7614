"""Estimators of `mlmd validate forces` on systems with known answers."""

import json

import numpy as np
import pytest
from audit_systems import MINIMUM, SHAPE, springs
from typer.testing import CliRunner

from mlmd_calc import Potential
from mlmd_calc.analysis.accuracy import orientation_errors
from mlmd_calc.analysis.audit.motion import survival
from mlmd_calc.analysis.force_fidelity import ForceFidelitySettings, orientation_spread
from mlmd_calc.cli.commands import app
from mlmd_calc.data import MoleculeFrames, write_trajectory
from mlmd_calc.errors import ConfigError
from mlmd_calc.geometry.rotations import icosahedral_rotations
from mlmd_calc.potential import Evaluation
from mlmd_calc.propagation import FunctionForces


class Leaning:
    """Springs that are pulled along z wherever the molecule lies, by as much as they pull."""

    def __init__(self, share):
        self.share = share

    def evaluate(self, structures, properties):
        answers = []
        for structure in structures:
            _, forces = springs(1.1 * structure.positions)
            lean = self.share * np.linalg.norm(forces, axis=1, keepdims=True) * [0.0, 0.0, 1.0]
            answers.append(Evaluation(None, forces + lean))
        return answers


def test_spread_over_orientations_of_a_lean():
    """The mean over the rotations is the sound force, and what is added has a known length."""
    found = orientation_spread(Leaning(0.1), [MINIMUM])
    _, forces = springs(1.1 * SHAPE)
    lengths = np.linalg.norm(forces, axis=1)
    assert found.error_meV_per_A == pytest.approx(100.0 * lengths.mean())
    leans = icosahedral_rotations() @ [0.0, 0.0, 1.0]
    cosines = np.array([leans @ f / np.linalg.norm(f) for f in forces])
    turned = np.sqrt(1.0 + 0.2 * cosines + 0.01)
    spread = (turned.std(axis=1) * lengths).mean()
    assert found.magnitude_meV_per_A == pytest.approx(1000.0 * spread)
    angles = np.degrees(np.arctan2(0.1 * np.sqrt(1.0 - cosines**2), 1.0 + 0.1 * cosines))
    assert found.angle_degrees == pytest.approx(angles.mean())


def test_the_error_is_that_of_mlmd_evaluate(model_file):
    potential = Potential(str(model_file), forces="direct", rotation="none")
    found = orientation_spread(potential, [MINIMUM]).error_meV_per_A
    assert found == pytest.approx(1000 * orientation_errors(potential, [MINIMUM]).mean())
    assert found > 0.0


@pytest.mark.parametrize(("push", "failures"), [(0.0, 0), (60.0, 3)])
def test_time_to_failure(push, failures):
    """Springs hold; atoms that are pushed apart break all bonds within a tenth of a picosecond."""

    def function(positions):
        energy, forces = springs(positions)
        return energy, forces + push * (positions - positions.mean(axis=0))

    found = survival(
        FunctionForces(function),
        MINIMUM,
        temperature_K=500.0,
        replicas=3,
        duration_ps=0.1,
        rng=np.random.default_rng(0),
    )
    assert len(found.failures_ps) == failures
    assert all(0.0 < time < 0.1 for time in found.failures_ps)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="replicas=0"):
        ForceFidelitySettings(replicas=0)


def test_command():
    """Direct forces of a model that sees directions, in both precisions."""
    arguments = ["validate", "forces", "mdet-small-organics-gfn2", "H2O", "--duration", "0.002"]
    arguments += ["--forces", "direct", "--rotation", "none", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    (found,) = json.loads(result.stdout).values()
    double, single = found["float64"], found["float32"]
    for one in (double, single):
        assert 0.001 < one["antisymmetry"] < 0.3
        assert one["error_meV_per_A"] > 1.0
        assert (one["replicas"], one["broken"], one["first_failure_ps"]) == (4, 0, None)
    assert single["error_meV_per_A"] == pytest.approx(double["error_meV_per_A"], rel=1e-2)
    assert single != double


def test_command_compares_distances_with_a_reference(tmp_path):
    """Water beside water that is straight and does not move, beside others and an isomer."""
    straight = np.repeat([[[-0.96, 0.0, 0.0], [0.0, 0.0, 0.0], [0.96, 0.0, 0.0]]], 4, axis=0)
    for name, numbers in (("water", [1, 8, 1]), ("other", [1, 16, 1]), ("isomer", [1, 1, 8])):
        frames = MoleculeFrames(
            name,
            np.array(numbers),
            straight,
            velocities=np.zeros_like(straight),
            energies=np.zeros(4),
            segment=np.zeros(4, np.int64),
            dt_fs=1.0,
        )
        write_trajectory(tmp_path / f"{name}.npz", frames)
    options = ["validate", "forces", "mdet-small-organics-gfn2", "H2O", "--json"]
    options += ["--duration", "0.02", "--replicas", "2", "--reference"]
    result = CliRunner().invoke(app, [*options, str(tmp_path)], catch_exceptions=False)
    found = json.loads(result.stdout)["H2O"]["float64"]
    # One distance of three, from H to H, is another one.
    assert 2.0 / 3.0 < found["distance_difference"] < 2.0
    assert found["distance_difference_of_reference_halves"] == 0.0
    for name in ("other", "isomer"):
        with pytest.raises(ConfigError, match=f"atoms and bonds of 'H2O', only of {name}"):
            CliRunner().invoke(
                app, [*options, str(tmp_path / f"{name}.npz")], catch_exceptions=False
            )
