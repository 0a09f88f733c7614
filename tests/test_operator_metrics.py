"""The published operator: checkpoints by path, data and metrics, against the public code."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from ase.build import molecule
from conftest import GOLDEN
from harmonic_trajectories import harmonic_trajectory
from safetensors import safe_open
from typer.testing import CliRunner

from mlmd_calc.analysis.operator import measure_operator, operator_frames, operator_starts
from mlmd_calc.cli import evaluate
from mlmd_calc.cli.models import models_command
from mlmd_calc.data import MoleculeFrames, write_trajectory
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.models.atom import ATOM, ATOMConfig
from mlmd_calc.propagation.load import load_propagator
from mlmd_calc.zoo import load_atom, load_operator

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
    motion = MoleculeFrames(
        name="synthetic",
        numbers=tensors["traj.nuclear_charges"].numpy(),
        positions=tensors["traj.coords"].numpy(),
    )
    return config, motion, tensors, weights


def test_metrics_are_those_of_the_public_code(golden):
    config, motion, tensors, weights = golden
    frames = operator_frames(motion)
    start = tensors["split.train"][3]
    n = len(frames.numbers)
    velocities = tensors["item.train.3.v_0"][0, :n, :3].numpy()
    np.testing.assert_array_equal(frames.velocities[start], velocities)
    network = ATOM.from_official(config["model"], weights).double()
    starts = tensors["split.val"][: config["max_samples"]].numpy()
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


def test_starts_and_targets_are_of_one_segment():
    frames = operator_frames(METHYL)
    starts = operator_starts(frames, 30, 1000)
    assert starts.tolist() == [*range(9), *range(39, 48)]
    assert operator_starts(frames, 30, 2).tolist() == [0, 47]
    with pytest.raises(ConfigError, match=r"'methyl' has no 41 frames.*horizon of 40 frames"):
        operator_starts(frames, 40, 10)


def test_baselines_of_the_operator():
    frames = operator_frames(replace(METHYL, segment=None))
    network = ATOM(ATOMConfig(lifting_dim=16, num_layers=1, num_heads=2)).double().eval()
    starts = np.arange(10)
    found = measure_operator(network, frames, starts, horizon=8, slots=4)
    assert set(found) == {"model", "persistence", "ballistic", "mean structure"}
    last = frames.positions[starts + 8] - frames.positions[starts]
    assert found["persistence"].s2s == pytest.approx(np.square(last).mean())
    drift = last - 8 * frames.velocities[starts]
    assert found["ballistic"].s2s == pytest.approx(np.square(drift).mean())
    assert found["model"].s2t > 0.0


def test_a_molecule_without_heavy_atoms_is_refused():
    with pytest.raises(InputError, match="'methyl' has no heavy atoms"):
        operator_frames(replace(METHYL, numbers=np.array([1, 1, 1, 1])))


# ---- checkpoints of the authors' code ---------------------------------------------------------

FIRST = """
[dataloader]
dataset = "md17"
molecule_type = "aspirin"
delta_T = 100
num_timesteps = 8
explicit_hydrogen = false
radius_graph_threshold = 1.6
rrwp_length = 8
normalize_z = false

[atom_config]
num_layers = 2
num_heads = 4
lifting_dim = 32
output_heads = 1
delta_update = false
heterogenous_attention_type = "ghca"
use_rope = true
rope_base = 1000
learnable_attention_denom = false
use_spherical_harmonics = false
equivariant_lifting_type = "equivariant"
norm = "rms"
activation = "swiglu"
value_residual_type = "learnable"
"""
LATER = """
[dataloader]
rrwp_length = 0

[atom_config]
num_layers = 1
num_heads = 2
lifting_dim = 16
output_heads = 1
delta_update = false
heterogenous_attention_type = "ghca"
positional_encoding = "trope"
rope_base = 1000
rope_tau = 24_000
learnable_attention_denom = false
lifting_type = "quasi_equivariant"
projection_type = "equivariant"
norm = "rms"
activation = "swiglu"
value_residual_type = "learnable"
output_mode = "pos_vel_energy"
"""
LATER_CONFIG = ATOMConfig(
    lifting_dim=16,
    num_layers=1,
    num_heads=2,
    lifting_type="quasi_equivariant",
    rope_tau=24_000.0,
    output_mode="full",
)


def write_run(folder, weights, configuration):
    """Write the folder of a run of the authors' code; return a checkpoint in it."""
    path = folder / "atom_run" / "run_1" / "best_val_model.pth"
    path.parent.mkdir(parents=True)
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in weights.items()}, path)
    (folder / "atom_run" / "atom_run.toml").write_text(configuration, encoding="utf-8")
    return path


@pytest.fixture
def later(tmp_path):
    return write_later_run(tmp_path)


def write_later_run(folder):
    """Write a run of the later revision; return a checkpoint and its random network."""
    network = ATOM(LATER_CONFIG)
    state = network.state_dict()
    twice = {n.replace(".layers.1.", ".layers.3."): w for n, w in state.items() if ".ffn." in n}
    return write_run(folder, {**state, **twice}, LATER), network


def test_a_checkpoint_opens_by_its_path(later):
    path, network = later
    model = load_operator(path, device="cpu")
    assert model.network.config == LATER_CONFIG
    assert (model.card.kind, model.card.name) == ("atom-operator", "atom_run")
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor)
    with pytest.raises(ConfigError, match="ATOM operator, but an ATOM propagator is needed"):
        load_atom(path)
    with pytest.raises(ConfigError, match=r"published operator.*heavy atoms"):
        load_propagator(path)


APP = typer.Typer()
APP.command("models")(models_command)
APP.add_typer(evaluate.app, name="evaluate")


def invoke(*arguments):
    return CliRunner().invoke(APP, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def data(tmp_path):
    """Ethanol that breathes, 120 frames of 0.5 fs; the file has velocities of its own."""
    atoms = molecule("CH3CH2OH")
    phase = np.arange(120)[:, None, None] / 9.0 + np.arange(3 * len(atoms)).reshape(-1, 3)
    positions = atoms.positions + 0.03 * np.sin(phase)
    frames = MoleculeFrames(
        "ethanol",
        atoms.numbers,
        positions.astype(np.float32).astype(float),
        velocities=0.03 * np.cos(phase) / 9.0 / 0.5,
        energies=np.zeros(120),
        segment=np.zeros(120, np.int64),
        dt_fs=0.5,
    )
    write_trajectory(tmp_path / "ethanol.npz", frames)
    return tmp_path / "ethanol.npz", frames


def test_commands_show_and_measure_the_authors_checkpoint(tmp_path, data):
    file, motion = data
    config = ATOMConfig(
        lifting_dim=32,
        num_layers=2,
        num_heads=4,
        positional_encoding="slot_rope",
        rope_tau=1.0,
        rrwp_length=8,
        tensor_product_rrwp=True,
    )
    network = ATOM(config).double().eval()
    path = write_run(tmp_path, first_revision(network), FIRST)
    shown = invoke("models", path)
    assert shown.exit_code == 0
    assert "Trained on md17 aspirin, horizon 100 frames" in " ".join(shown.output.split())
    options = ("--model", path, "--time", 50, "--frames", 5)
    result = invoke("evaluate", file, *options, "--json")
    (row,) = json.loads(result.stdout)["rows"]
    frames = operator_frames(motion)
    expected = measure_operator(network, frames, operator_starts(frames, 100, 5), horizon=100)
    assert (row["horizon, frames"], row["starts"]) == (100, 5)
    for name, errors in expected.items():
        found = row["errors, Å²"][name]
        assert found["s2s"] == pytest.approx(errors.s2s, rel=1e-6)
        assert found["s2t"] == pytest.approx(errors.s2t, rel=1e-6)
    table = invoke("evaluate", file, *options).stdout
    assert f"{100.0 * expected['model'].s2t:.3g}" in table


def first_revision(network):
    """Weights under the names of the first revision, with scores divided by the head width."""
    renames = {
        "lifting_layer.concat_feats_linear": "lifting_layers.concatenated_features",
        "lifting_layer.x_0_linear": "lifting_layers.x_0",
        "lifting_layer.vz_0_linear": "lifting_layers.vz_0",
        "lifting_layer.v_0_linear": "lifting_layers.v_0",
        "projection_layer.linear_pos": "projection_layer",
        ".norms.0.": ".pre_norm.",
    }
    state = {}
    for name, tensor in network.state_dict().items():
        if ".norms.1." in name or ".norms.2." in name:
            continue
        if ".attention.query." in name:
            tensor = tensor * network.config.head_dim**0.5
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
        if ".ffn.layers.1." in name:
            state[name.replace(".layers.1.", ".layers.3.")] = tensor
    return state


def test_evaluation_refuses_what_means_nothing(later, data):
    for options, message in (
        (("--time", 8.1), "time=8.1 fs is not a whole number of frames of 0.5 fs"),
        (("--time", 2), "at least 8"),
        ((), "has no 3001 frames"),
    ):
        with pytest.raises(ConfigError, match=message):
            invoke("evaluate", data[0], "--model", later[0], *options)
    result = invoke("evaluate", data[0], "--model", later[0], "--potential", "mdet-ethanol")
    assert result.exit_code == 2
    with pytest.raises(ConfigError, match="use mlmd evaluate operator"):
        invoke("evaluate", "jumps", data[0], "--model", later[0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('projection_type = "equivariant"', 'projection_type = "mlp"', "projection_type='mlp'"),
        ("rrwp_length = 0", "explicit_hydrogen = true", "explicit_hydrogen=True is not supported"),
        ("rrwp_length = 0", "rrwp_length = 2", "wrong shape"),
        ("output_heads = 1", "output_heads = 8", "output_heads=8 is not supported, only 1"),
        ("[atom_config]", "[other]", "lacks the tables"),
        ("num_layers = 1", "num_layers = ", "Invalid value"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(later, old, new, message):
    path, _ = later
    file = path.parent.parent / "atom_run.toml"
    assert old in LATER
    file.write_text(LATER.replace(old, new), encoding="utf-8")
    with pytest.raises(ModelFileError, match=message):
        load_operator(path)


def test_the_configuration_is_found_or_asked_for(later):
    path, _ = later
    file = path.parent.parent / "atom_run.toml"
    file.rename(path.parent / "moved.toml")
    assert load_operator(path).card.name == "moved"
    (path.parent / "second.toml").write_text(LATER, encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"several configurations \(moved.toml, second.toml\)"):
        load_operator(path)
    for name in ("moved", "second"):
        (path.parent / f"{name}.toml").unlink()
    with pytest.raises(ModelFileError, match=r"no \.toml file beside"):
        load_operator(path)
    path.write_bytes(b"nonsense")
    file.write_text(LATER, encoding="utf-8")
    with pytest.raises(ModelFileError, match="not a checkpoint of tensors"):
        load_operator(path)
