"""The published operator's data pipeline and metrics, against the public code."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import GOLDEN
from harmonic_trajectories import harmonic_trajectory
from safetensors import safe_open

from mlmd_calc.analysis.operator import measure_operator
from mlmd_calc.data import MoleculeFrames
from mlmd_calc.data.operator_frames import operator_frames, operator_split, operator_targets
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atom import ATOM, ATOMConfig

CASE = GOLDEN / "atom" / "a_dataset"
METHYL = harmonic_trajectory("methyl", [6, 6, 8, 1])


@pytest.fixture(scope="module")
def golden():
    if not CASE.is_dir():
        pytest.skip(f"no trajectory at {CASE}; set MLMD_GOLDEN")
    with safe_open(CASE / "io.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with safe_open(CASE / "state_dict.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads((CASE / "config.json").read_text())
    molecule = MoleculeFrames(
        name="synthetic",
        numbers=tensors["traj.nuclear_charges"].numpy(),
        positions=tensors["traj.coords"].numpy(),
    )
    return config, molecule, tensors, weights


def test_splits_and_metrics_are_those_of_the_public_code(golden):
    config, molecule, tensors, weights = golden
    frames = operator_frames(molecule)
    parts = operator_split(
        len(frames),
        config["delta_frame"],
        margin=config["edge_margin_frames"],
        fractions=[config[f"{name}_fraction"] for name in ("train", "val", "test")],
        seed=config["split_seed"],
    )
    for name, part in zip(("train", "val", "test"), parts, strict=True):
        assert part.tolist() == tensors[f"split.{name}"].tolist()
    item = tensors["item.train.3.x_t"]
    target = operator_targets(parts[0], config["delta_frame"], config["num_timesteps"])[3]
    n = len(frames.numbers)
    np.testing.assert_array_equal(frames.positions[target], item[:, :n].numpy())
    velocities = tensors["item.train.3.v_0"][0, :n, :3].numpy()
    np.testing.assert_array_equal(frames.velocities[parts[0][3]], velocities)
    network = ATOM.from_official(config["model"], weights).double()
    starts = parts[1][: config["max_samples"]]
    found = measure_operator(network, frames, starts, horizon=config["delta_frame"])
    assert found["model"].s2t == pytest.approx(config["s2t"], rel=1e-5)
    assert found["model"].s2s == pytest.approx(config["s2s"], rel=1e-5)


def test_frames_have_velocities_per_frame_and_no_hydrogens():
    frames = operator_frames(METHYL)
    assert frames.numbers.tolist() == [6, 6, 8]
    # The last frame of both segments has no next one.
    assert len(frames) == len(METHYL) - 2
    assert (frames.segment == 1).sum() == 39
    np.testing.assert_allclose(
        frames.velocities[40], METHYL.positions[42, :3] - METHYL.positions[41, :3], atol=1e-12
    )
    assert len(operator_frames(METHYL, explicit_hydrogen=True).numbers) == 4


def test_baselines_of_the_operator():
    frames = operator_frames(replace(METHYL, segment=None))
    network = ATOM(ATOMConfig(lifting_dim=16, num_layers=1, num_heads=2)).eval()
    starts = np.arange(10)
    found = measure_operator(network, frames, starts, horizon=8, slots=4)
    assert set(found) == {"model", "persistence", "ballistic", "mean structure"}
    last = frames.positions[starts + 8] - frames.positions[starts]
    assert found["persistence"].s2s == pytest.approx(np.square(last).mean())
    drift = last - 8 * frames.velocities[starts]
    assert found["ballistic"].s2s == pytest.approx(np.square(drift).mean())
    assert found["model"].s2t > 0.0


def test_what_the_operator_cannot_use_is_refused():
    hydrogen = replace(METHYL, numbers=np.array([1, 1, 1, 1]))
    with pytest.raises(ConfigError, match="no heavy atoms"):
        operator_frames(hydrogen)
    with pytest.raises(ConfigError, match=r"50 frames leave no start.*horizon of 40"):
        operator_split(50, 40, margin=10)
