"""Training of the published ATOM operator: its samples, its noise, and what it is measured on."""

import json
from dataclasses import replace

import needs_lightning  # noqa: F401
import numpy as np
import pytest
import torch
from ase.build import molecule
from harmonic_trajectories import harmonic_trajectory
from typer.testing import CliRunner

from mlmd_calc.analysis.operator import measure_operator, operator_frames
from mlmd_calc.cli import app
from mlmd_calc.data import MoleculeFrames, read_dataset, write_trajectory
from mlmd_calc.errors import ConfigError
from mlmd_calc.training.held_out import split
from mlmd_calc.training.operator.batches import OperatorBatches, OperatorTable, split_starts
from mlmd_calc.training.operator.recipe import OperatorRecipe
from mlmd_calc.training.operator.task import operator_task
from mlmd_calc.training.recipe import Recipe, load_recipe
from mlmd_calc.training.train import train
from mlmd_calc.zoo import load_operator

TINY = {"lifting_dim": 32, "num_layers": 1, "num_heads": 2, "rrwp_length": 2}
STEADY = {**TINY, "attention_dropout": 0.0, "ffn_dropout": 0.0}
RECIPE = OperatorRecipe(
    model=TINY,
    steps=4,
    learning_rate=1e-3,
    warmup_steps=0,
    ema_decay=0.0,
    samples_per_batch=6,
    horizon=10,
    slots=4,
    margin=3,
    train_starts=12,
    test_starts=5,
    validation_structures=7,
    held_out_fraction=0.0,
    validate_every=2,
)
FRAMES = [
    harmonic_trajectory("methyl", [6, 6, 8, 1], frames=60),
    harmonic_trajectory("ether", [6, 8, 6, 7, 1], frames=60, seed=1),
]
SEEN = [operator_frames(frames) for frames in FRAMES]


def run(folder, recipe=RECIPE, frames=FRAMES, **options):
    return train(frames, recipe, folder, accelerator="cpu", progress=False, **options)


def stream(recipe=RECIPE, frames=SEEN):
    starts = [split_starts(m, recipe).train for m in frames]
    return OperatorBatches(OperatorTable(frames, starts, recipe, 2), recipe, seed=0)


def test_recipe_of_the_paper():
    recipe = load_recipe("atom-md17")
    assert isinstance(recipe, OperatorRecipe)
    # 1000 epochs of 500 samples in batches of 100; 1500 fs in frames of MD17.
    assert recipe.steps * recipe.samples_per_batch == 1000 * recipe.train_starts
    assert recipe.horizon * 0.5 == 1500.0


def test_starts_are_drawn_apart_and_within_the_margins():
    split = split_starts(SEEN[0], RECIPE)
    assert [len(part) for part in split] == [12, 7, 5]
    drawn = np.concatenate(split)
    assert len(set(drawn.tolist())) == 24
    assert drawn.min() >= 3
    assert drawn.max() <= len(SEEN[0]) - 1 - 3 - 10
    segment = SEEN[0].segment
    assert (segment[drawn] == segment[drawn + 10]).all()
    again = split_starts(SEEN[0], RECIPE)
    assert all(map(np.array_equal, split, again))
    other = split_starts(SEEN[0], replace(RECIPE, seed=1))
    assert not np.array_equal(split.train, other.train)
    with pytest.raises(ConfigError, match=r"has 92 frames.*asks for 1,012"):
        split_starts(SEEN[0], replace(RECIPE, train_starts=1000))


def test_batches_without_noise_are_frames_and_what_followed():
    batches = stream(replace(RECIPE, noise=0.0))
    found = [batch for batch, _ in zip(iter(batches), range(4), strict=False)]
    assert sorted(len(batch.later[0, 0]) for batch in found) == [3, 3, 4, 4]
    for batch in found:
        frames = next(m for m in SEEN if len(m.numbers) == batch.later.shape[2])
        for x, v, context, later in zip(*batch.inputs, batch.later, strict=True):
            start = np.flatnonzero(
                (frames.positions.astype("f4") == x[0, :, :3].numpy()).all((1, 2))
            )
            (start,) = start
            assert start in split_starts(frames, RECIPE).train
            targets = frames.positions[start + np.array([2, 5, 7, 10])]
            np.testing.assert_array_equal(later, targets.astype("f4"))
            np.testing.assert_array_equal(v[0, :, :3], frames.velocities[start].astype("f4"))
            np.testing.assert_array_equal(context[0, :, 8], frames.numbers)
        assert (batch.increments == 2.5).all()


def test_noise_is_on_all_inputs_of_every_slot_but_the_walks():
    recipe = replace(RECIPE, noise=0.3)
    clean, noisy = (next(iter(stream(r))) for r in (replace(recipe, noise=0.0), recipe))
    torch.testing.assert_close(noisy.later, clean.later, rtol=0.0, atol=0.0)
    found = [a - b for a, b in zip(noisy.inputs, clean.inputs, strict=True)]
    assert found[0].shape[1] == 4
    assert (found[2][..., 9:] == 0.0).all()
    noise = torch.cat([found[0], found[1], found[2][..., :9]], dim=-1)
    assert noise.std().item() == pytest.approx(0.3, rel=0.1)
    assert len(noise.unique()) > 0.99 * noise.numel()


def test_validation_measures_what_the_command_measures():
    recipe = replace(RECIPE, model=STEADY, samples_per_batch=7)
    task = operator_task(FRAMES[:1], {}, recipe, None)
    (batch,) = task.validation["starts"]
    logged = {}
    module = task.module.eval()
    module.log_mean = lambda name, value, weight: logged.update({name: float(value)})
    with torch.no_grad():
        module.measure(batch, "starts")
        loss = module.loss_terms(batch)["positions"].item()
    expected = measure_operator(
        module.network, SEEN[0], split_starts(SEEN[0], RECIPE).validation, horizon=10, slots=4
    )["model"]
    assert logged["starts/s2t"] == pytest.approx(100.0 * expected.s2t, rel=1e-4)
    assert logged["starts/s2s"] == pytest.approx(100.0 * expected.s2s, rel=1e-4)
    assert 100.0 * loss == pytest.approx(logged["starts/s2t"], rel=1e-5)


def test_a_batch_follows_from_its_number():
    first, *_, later = (batch for batch, _ in zip(iter(stream()), range(4), strict=False))
    starts = [split_starts(m, RECIPE).train for m in SEEN]
    table = OperatorTable(SEEN, starts, RECIPE, 2)
    resumed = next(iter(OperatorBatches(table, RECIPE, seed=0, start=3)))
    assert all(map(torch.equal, resumed.inputs, later.inputs))
    assert not torch.equal(first.inputs[0], later.inputs[0])


def test_training_learns(tmp_path):
    recipe = replace(RECIPE, model=STEADY, optimizer="muon", steps=30, learning_rate=1e-2)
    recipe = replace(recipe, noise=0.01, validate_every=30)
    model = load_operator(run(tmp_path, recipe), device="cpu", dtype="float32")
    assert model.card.elements == (6, 7, 8)
    untrained = operator_task(FRAMES, {}, recipe, None).module
    trained = operator_task(FRAMES, {}, recipe, model).module
    batches = operator_task(FRAMES, {}, recipe, None).validation["starts"]
    with torch.no_grad():
        before, after = (
            sum(m.eval().loss_terms(b)["positions"].item() for b in batches)
            for m in (untrained, trained)
        )
    assert after < 0.1 * before


def test_a_horizon_of_fewer_frames_than_slots_is_refused():
    with pytest.raises(ConfigError, match="horizon=3 frames for slots=4; it must be at least 4"):
        replace(RECIPE, horizon=3)


# ---- the commands ------------------------------------------------------------------------------


def ethanol(folder, frames):
    """Write ethanol that breathes."""
    atoms = molecule("CH3CH2OH")
    phase = np.arange(frames)[:, None, None] / 9.0 + np.arange(3 * len(atoms)).reshape(-1, 3)
    positions = atoms.positions + 0.03 * np.sin(phase)
    trajectory = MoleculeFrames(
        "ethanol",
        atoms.numbers,
        positions,
        velocities=0.03 * np.cos(phase) / 9.0 / 0.5,
        energies=np.zeros(frames),
        segment=np.zeros(frames, np.int64),
        dt_fs=0.5,
    )
    write_trajectory(folder / "ethanol.npz", trajectory)
    return folder / "ethanol.npz"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ethanol(tmp_path_factory.mktemp("data"), 140)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


SMALL = {
    **{"steps": 2, "horizon": 20, "margin": 5, "train_starts": 20, "test_starts": 9},
    **{"validation_structures": 5, "validate_every": 1, "samples_per_batch": 10},
    **{"held_out_fraction": 0.2, "model.num_layers": 1},
}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Model of the shipped recipe after two small steps."""
    out = tmp_path_factory.mktemp("run")
    overrides = [word for k, v in SMALL.items() for word in ("--set", f"{k}={v}")]
    options = ("--recipe", "atom-md17", "--accelerator", "cpu")
    result = invoke("train", data, *options, *overrides, "--out", out)
    assert "final: starts/s2t" in result.stderr
    assert "frames/s2s" in result.stderr
    return out


def test_commands_train_and_measure_on_the_starts_of_the_test(data, trained):
    options = ("--model", trained, "--json")
    rows = []
    for held_out in (("--held-out", "starts"), ("--held-out", "frames"), ()):
        (row,) = json.loads(invoke("evaluate", data, *options, *held_out).stdout)["rows"]
        assert row["horizon, frames"] == 20
        rows.append(row)
    assert [row["starts"] for row in rows] == [9, 7, 100]
    # What was drawn from was the part of the trajectory that is not held out.
    model = load_operator(trained)
    recipe = Recipe.from_dict(model.card.recipe)
    (part,) = split(read_dataset([data]), recipe)[0]
    seen = operator_frames(part)
    starts = split_starts(seen, recipe).test
    assert len(seen) == 111
    expected = measure_operator(model.network, seen, np.sort(starts), horizon=20)["model"]
    assert rows[0]["errors, Å²"]["model"]["s2t"] == pytest.approx(expected.s2t, rel=1e-4)


def test_starts_of_the_test_are_refused_for_other_data(data, trained, tmp_path):
    options = ("--model", trained, "--held-out", "starts")
    with pytest.raises(ConfigError, match=r"'140 frames .*'139 frames of ethanol'"):
        invoke("evaluate", "operator", ethanol(tmp_path, 139), *options)
    with pytest.raises(ConfigError, match=r"asks for 24 frames, but .* drawn for 20"):
        invoke("evaluate", "operator", data, *options, "--time", 12)


def test_fine_tuning_names_the_recipe(data, trained, tmp_path):
    with pytest.raises(ConfigError, match=r"--recipe \(atom-md17\)"):
        invoke("finetune", trained, data, "--out", tmp_path)
