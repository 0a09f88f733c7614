"""Training runs from data to model file: what they learn, write, resume and refuse."""

import copy
import csv
import errno
import itertools
import json
import logging
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import needs_lightning  # noqa: F401
import numpy as np
import pytest
import torch
from another_process import run_child
from spring_molecules import spring_frames
from toy_models import SMALL, toy_model

from mlmd_calc.analysis.accuracy import molecule_errors, summarise_errors
from mlmd_calc.data import MoleculeFrames
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.io.files import FolderLock
from mlmd_calc.potential import Potential
from mlmd_calc.training import clock
from mlmd_calc.training.card import card_entries
from mlmd_calc.training.held_out import spare_molecules, split
from mlmd_calc.training.mdet.module import MDETTraining
from mlmd_calc.training.mdet.recipe import MDETLossWeights, MDETRecipe
from mlmd_calc.training.metrics_file import MetricsFile
from mlmd_calc.training.module import learning_rate
from mlmd_calc.training.recipe import Recipe
from mlmd_calc.training.stop import TrainingStopped
from mlmd_calc.training.train import train
from mlmd_calc.zoo import load_model
from mlmd_calc.zoo.training_run import MODEL_NAME, RAW_NAME

TINY = {
    "n_layers": 1,
    "embd_dim": 16,
    "num_heads": 2,
    "num_3d_kernels": 8,
    "target_heads": ["forces", "formation_energy"],
}
FRAMES = [
    spring_frames("water", [8, 1, 1], 40),
    spring_frames("formaldehyde", [6, 8, 1, 1], 40, seed=1),
    spring_frames("methanol", [6, 8, 1, 1, 1, 1], 12, seed=2),
]
RECIPE = MDETRecipe(
    model=TINY,
    loss=MDETLossWeights(forces=1.0, energy=1.0),
    steps=12,
    learning_rate=1e-3,
    warmup_steps=3,
    pairs_per_batch=200,
    ema_decay=0.8,
    validate_every=6,
    held_out_molecules=("methanol",),
    held_out_fraction=0.2,
)


def run(folder, recipe=RECIPE, frames=FRAMES, **options):
    options = {"accelerator": "cpu", "progress": False, **options}
    return train(frames, recipe, folder, **options)


def weights(path):
    return load_model(path, device="cpu", dtype="float32").network.state_dict()


def checkpoint(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def metrics(folder):
    with (folder / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of `RECIPE`."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder, card={"name": "springs", "command": "as typed"})
    return folder


@pytest.mark.slow
def test_training_learns(tmp_path):
    frames = [spring_frames("carbon monoxide", [6, 8], 300)]
    recipe = MDETRecipe(
        model={**TINY, "embd_dim": 32, "num_3d_kernels": 32, "extensive": True},
        loss=MDETLossWeights(forces=1.0, energy=1.0),
        optimizer="muon",
        steps=240,
        learning_rate=2e-2,
        warmup_steps=10,
        pairs_per_batch=120,
        ema_decay=0.8,
        validate_every=120,
        held_out_fraction=0.2,
    )
    held_out = split(frames, recipe)[1]["frames"][0]
    model = load_model(run(tmp_path, recipe, frames))
    # The best that can be done without looking at the molecule.
    zero_forces = np.abs(held_out.forces).mean() * 1000
    mean_energy = np.abs(held_out.energies - np.median(held_out.energies)).mean() / 2 * 1000
    assert model.card.validation["frames/forces_mae"] < 0.5 * zero_forces
    assert model.card.validation["frames/energy_mae"] < 0.8 * mean_energy


def test_card_says_what_the_written_weights_do(finished):
    model = load_model(finished / "model.safetensors")
    card = model.card
    assert (card.name, card.command) == ("springs", "as typed")
    assert card.elements == (1, 6, 8)
    assert Recipe.from_dict(card.recipe) == RECIPE
    assert card.parameters == sum(p.numel() for p in model.network.parameters())
    potential = Potential(
        model, rotation="none", remove_net_force=False, remove_net_torque=False, forces="direct"
    )
    names = {f"{s}/{q}_mae" for s in ("molecules", "frames") for q in ("forces", "energy")}
    assert set(card.validation) == names
    for name, frames in split(FRAMES, RECIPE)[1].items():
        accuracy = summarise_errors([molecule_errors(potential, m) for m in frames])
        expected = (card.validation[f"{name}/{quantity}_mae"] for quantity in ("forces", "energy"))
        assert (accuracy.forces_mae, accuracy.energy_mae) == pytest.approx(
            tuple(expected), rel=1e-3
        )


def test_model_file_holds_the_averaged_weights(finished):
    written = weights(finished / "model.safetensors")
    saved = checkpoint(finished)
    assert equal({f"network.{k}": v for k, v in written.items()}, saved["state_dict"])
    assert not equal(saved["state_dict"], saved["current_model_state"])


def test_average_is_the_exponential_one(tmp_path, monkeypatch):
    seen = []

    def remember(module, *_arguments):
        seen.append({k: v.clone() for k, v in module.state_dict().items()})

    monkeypatch.setattr(MDETTraining, "on_train_batch_end", remember)
    path = run(tmp_path, replace(RECIPE, steps=4))
    average = seen[0]
    for later in seen[1:]:
        average = {k: 0.8 * average[k] + 0.2 * later[k] for k in average}
    for name, value in weights(path).items():
        torch.testing.assert_close(value, average[f"network.{name}"])


def test_metrics_are_written_for_people_and_tensorboard(finished):
    rows = metrics(finished)
    assert next(iter(rows[0])) == "step"
    assert {"train/forces", "train/energy", "frames/forces_mae", "lr-AdamW"} <= set(rows[0])
    assert float(rows[-1]["frames/forces_mae"]) == pytest.approx(
        load_model(finished / "model.safetensors").card.validation["frames/forces_mae"], abs=1e-3
    )
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    assert list((finished / "logs").glob("events.*"))


def test_metrics_of_lost_steps_are_dropped(tmp_path):
    path = tmp_path / "logs" / "metrics.csv"
    first = MetricsFile(path, 0)
    for step in range(8):
        first.log_metrics({"loss": float(step), "epoch": 0}, step)
        first.save()
    # The run died and continues after its first five steps, with one metric more.
    second = MetricsFile(path, 5)
    second.log_metrics({"loss": 50.0, "error": 1.5}, 5)
    second.log_metrics({"rate": 0.1}, 5)
    second.save()
    rows = metrics(tmp_path)
    assert [row["loss"] for row in rows] == ["0.0", "1.0", "2.0", "3.0", "4.0", "50.0"]
    assert rows[0] == {"step": "0", "error": "", "loss": "0.0", "rate": ""}
    assert rows[-1] == {"step": "5", "error": "1.5", "loss": "50.0", "rate": "0.1"}
    # A run that starts over keeps nothing.
    third = MetricsFile(path, 0)
    third.log_metrics({"loss": 7.0}, 0)
    third.save()
    assert metrics(tmp_path) == [{"step": "0", "loss": "7.0"}]


class KilledError(Exception):
    pass


def run_until(folder, step, recipe, monkeypatch):
    """Run, and die without warning in the given step."""
    original = MDETTraining.training_step

    def dying(module, batch, index):
        if module.trainer.global_step == step:
            raise KilledError
        return original(module, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(MDETTraining, "training_step", dying)
        with pytest.raises(KilledError):
            run(folder, recipe)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, optimizer):
    recipe = replace(RECIPE, optimizer=optimizer)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(straight, recipe)
    run_until(resumed, 9, recipe, monkeypatch)
    assert checkpoint(resumed)["global_step"] == 6
    assert not (resumed / "model.safetensors").exists()
    run(resumed, recipe)
    assert equal(weights(straight / "model.safetensors"), weights(resumed / "model.safetensors"))
    states = [checkpoint(folder)["current_model_state"] for folder in (straight, resumed)]
    assert equal(*states)
    # Metrics of the lost steps are not there twice, those before the interruption still are.
    assert metrics(resumed) == metrics(straight)


def test_run_that_died_before_its_first_checkpoint_starts_over(tmp_path, monkeypatch, finished):
    run_until(tmp_path, 3, RECIPE, monkeypatch)
    run(tmp_path)
    assert equal(weights(tmp_path / "model.safetensors"), weights(finished / "model.safetensors"))
    assert metrics(tmp_path) == metrics(finished)


def test_last_step_leaves_a_checkpoint_whatever_the_interval(tmp_path):
    run(tmp_path, replace(RECIPE, steps=8))
    assert checkpoint(tmp_path)["global_step"] == 8


def test_finished_run_writes_the_same_model_again(tmp_path):
    path = run(tmp_path)
    before, rows = load_model(path, dtype="float32"), metrics(tmp_path)
    path.unlink()
    after = load_model(run(tmp_path), dtype="float32")
    assert equal(after.network.state_dict(), before.network.state_dict())
    assert replace(after.card, sha256="") == replace(before.card, sha256="")
    assert metrics(tmp_path) == rows


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipe": replace(RECIPE, steps=24, seed=1)}, "steps was 12, is 24; seed was 0, is 1"),
        ({"frames": [FRAMES[0], FRAMES[2]]}, "data was .*, is "),
        ({"start": toy_model()}, "start was None, is "),
        ({"devices": 2}, "processes was 1, is 2"),
    ],
)
def test_folder_of_another_run_is_refused(finished, changed, message):
    before = (finished / "last.ckpt").read_bytes()
    with pytest.raises(ConfigError, match=f"holds another run: .*{message}"):
        run(finished, **changed)
    assert (finished / "last.ckpt").read_bytes() == before


def test_damaged_checkpoint_is_refused(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"half a checkpo")
    with pytest.raises(ModelFileError, match=r"last\.ckpt cannot be read .* delete it"):
        run(tmp_path)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half")])
def test_checkpoint_before_the_last_one_stands_in_for_it(tmp_path, monkeypatch, finished, damage):
    run_until(tmp_path, 9, replace(RECIPE, validate_every=4), monkeypatch)
    damage(tmp_path / "last.ckpt")
    assert "after 4 of 12 steps" in load_model(tmp_path).card.description
    run(tmp_path, replace(RECIPE, validate_every=4))
    assert equal(weights(tmp_path / "model.safetensors"), weights(finished / "model.safetensors"))


@pytest.mark.parametrize("steps", [5, 6])
def test_stopped_run_goes_on_bit_for_bit(tmp_path, finished, steps):
    """The stop is amid the interval between checkpoints, or at its end and before validation."""
    asked = iter([False] * (steps - 1) + [True])
    with pytest.raises(TrainingStopped, match=f"after {steps} steps"):
        run(tmp_path, should_stop=lambda: next(asked))
    assert checkpoint(tmp_path)["global_step"] == steps
    run(tmp_path)
    assert equal(weights(tmp_path / "model.safetensors"), weights(finished / "model.safetensors"))
    # A validation that was not reached is left out.
    assert (metrics(tmp_path) == metrics(finished)) == (steps == 5)


def test_time_ends_a_run_with_averaged_and_other_weights(tmp_path, monkeypatch, capsys):
    recipe = replace(RECIPE, steps=1000, max_minutes=10.0)
    # A clock that goes on by two minutes whenever it is read; stopped amid the run.
    time = itertools.count(0.0, 120.0)
    monkeypatch.setattr(clock, "monotonic", lambda: next(time))
    asked = iter([False, True])
    with pytest.raises(TrainingStopped):
        run(tmp_path, recipe, should_stop=lambda: next(asked))
    assert checkpoint(tmp_path)["minutes"] == 4.0
    run(tmp_path, recipe, progress=True)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "step 5 " in shown
    assert shown.index("final: ") < shown.index("final, not averaged: ")
    last = checkpoint(tmp_path)
    assert (last["global_step"], last["minutes"]) == (5, 10.0)
    # Set when the clock had been read for the last time but one.
    rates = [group["lr"] for group in last["optimizer_states"][0]["param_groups"]]
    assert rates == [learning_rate(recipe, 5, 8.0)]
    averaged, others = (weights(tmp_path / name) for name in (MODEL_NAME, RAW_NAME))
    assert equal({f"network.{k}": v for k, v in averaged.items()}, last["state_dict"])
    assert equal({f"network.{k}": v for k, v in others.items()}, last["current_model_state"])
    cards = [load_model(tmp_path / name).card for name in (MODEL_NAME, RAW_NAME)]
    assert cards[0].validation.keys() == cards[1].validation.keys()
    assert cards[0].validation != cards[1].validation
    # A finished run is not gone on with.
    assert equal(weights(run(tmp_path, recipe)), averaged)
    assert checkpoint(tmp_path)["global_step"] == 5


def test_run_stops_amid_a_validation(tmp_path, finished):
    asked = iter([False] * 7 + [True])
    with pytest.raises(TrainingStopped, match="after 6 steps"):
        run(tmp_path, should_stop=lambda: next(asked))
    run(tmp_path)
    assert equal(weights(tmp_path / "model.safetensors"), weights(finished / "model.safetensors"))


def test_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, finished):
    original = Path.write_bytes

    def full(path, content):
        if (tmp_path / "last.ckpt").exists():
            original(path, content[:1000])
            raise OSError(errno.ENOSPC, "full")
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="full"):
            run(tmp_path)
    assert checkpoint(tmp_path)["global_step"] == 6
    assert not list(tmp_path.glob("*last.ckpt*part"))
    run(tmp_path)
    assert equal(weights(tmp_path / "model.safetensors"), weights(finished / "model.safetensors"))


def test_folder_has_one_writer(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(ConfigError, match="is being written to by another process"):
        run(tmp_path)
    lock.release()
    run(tmp_path, replace(RECIPE, steps=1))
    FolderLock(tmp_path).release()


def test_folder_that_vanished_ends_the_run(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    original = MDETTraining.training_step

    def removing(module, batch, index):
        if module.trainer.global_step == 9:
            shutil.rmtree(folder)
        return original(module, batch, index)

    monkeypatch.setattr(MDETTraining, "training_step", removing)
    with pytest.raises(FileNotFoundError):
        run(folder)
    assert not folder.exists()


def test_folder_of_a_run_is_a_model(tmp_path, monkeypatch, finished):
    model = load_model(finished, dtype="float32")
    assert model.card.name == "springs"
    assert equal(model.network.state_dict(), weights(finished / "model.safetensors"))
    run_until(tmp_path, 9, RECIPE, monkeypatch)
    unfinished = load_model(tmp_path, dtype="float32")
    # The averaged weights, as in the model of a finished run.
    averaged = {f"network.{k}": v for k, v in unfinished.network.state_dict().items()}
    assert equal(averaged, checkpoint(tmp_path)["state_dict"])
    assert unfinished.card.name == tmp_path.name
    assert unfinished.card.description == "Unfinished: after 6 of 12 steps."
    assert unfinished.atomic_energies == model.atomic_energies
    assert unfinished.sha256 != model.sha256


def test_held_out_molecules_and_frames_are_never_trained_on(tmp_path, monkeypatch):
    trained = []
    original = MDETTraining.training_step

    def remember(module, batch, index):
        trained.extend(zip(batch.numbers.tolist(), batch.energies.tolist(), strict=True))
        return original(module, batch, index)

    monkeypatch.setattr(MDETTraining, "training_step", remember)
    path = run(tmp_path, replace(RECIPE, steps=30, validate_every=30))
    references = load_model(path).atomic_energies

    def labels(molecules: list[MoleculeFrames]):
        return {
            (*m.numbers.tolist(), round(e - sum(references[z] for z in m.numbers.tolist()), 6))
            for m in molecules
            for e in m.energies
        }

    seen = {(*numbers, round(energy, 6)) for numbers, energy in trained}
    allowed, held_out = split(FRAMES, RECIPE)
    assert seen == labels(allowed)
    assert not seen & labels(held_out["molecules"] + held_out["frames"])
    assert {m.name for m in held_out["molecules"]} == {"methanol"}
    assert {m.name for m in held_out["frames"]} == {"water", "formaldehyde"}


def test_training_without_held_out_data_has_no_validation(tmp_path):
    recipe = replace(RECIPE, held_out_molecules=(), held_out_fraction=0.0, steps=2)
    assert load_model(run(tmp_path, recipe)).card.validation == {}


def test_fine_tuning_starts_from_the_given_weights(tmp_path):
    start = load_model_in_memory()
    before = copy.deepcopy(start.network.state_dict())
    recipe = replace(RECIPE, steps=2, learning_rate=1e-9, final_learning_rate=0.0, model={})
    model = load_model(run(tmp_path, recipe, start=start), dtype="float32")
    assert equal(start.network.state_dict(), before)
    assert model.network.config == start.network.config
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, before[name].float(), atol=1e-5, rtol=0.0)


def load_model_in_memory(**card):
    """Model in double precision that knows the elements of `FRAMES`."""
    start = toy_model(replace(SMALL, extensive=True), elements=(1, 6, 8), **card)
    start.network.double()
    return replace(start, atomic_energies={1: 0.0, 6: 0.0, 8: 0.0})


PARENT = {
    "recommended": {
        "forces": "conservative",
        "rotation": "none",
        "dtype": "float64",
        "max_spread": 0.2,
    },
    "level_of_theory": "GFN2-xTB (tblite)",
    "training_data": "springs of old",
    "licence": "MIT",
    "citation": "Hooke 1678",
    "command": "mlmd train springs",
    "errors": {"test": {"forces, meV/Å": 3.0}},
}


def taught(teacher):
    """`FRAMES` that say who labelled them."""
    metadata = {"provenance": json.dumps({"teacher": teacher})}
    return [replace(molecule, metadata=metadata) for molecule in FRAMES]


def test_a_model_can_be_fine_tuned_larger(tmp_path):
    start = load_model_in_memory()
    size = {"n_layers": start.network.config.n_layers + 1, "ffn_multiplier": 3}
    model = load_model(run(tmp_path, replace(RECIPE, steps=2, model=size), start=start))
    assert model.network.config == replace(start.network.config, **size)


def test_fine_tuned_model_keeps_what_holds_and_says_what_changed(tmp_path):
    start = replace(load_model_in_memory(**PARENT), sha256="5eed")
    recipe = replace(RECIPE, steps=1, model={})
    path = run(tmp_path, recipe, taught("GFN2-xTB"), start=start, card={"command": "mlmd finetune"})
    card = load_model(path).card
    potential = Potential(path)
    assert (potential.forces, potential.rotation) == ("conservative", "none")
    # A limit on the spread is one of the weights that it was measured with.
    assert {**card.recommended, "max_spread": 0.2} == start.card.recommended
    assert (card.licence, card.citation) == ("MIT", "Hooke 1678")
    assert card.level_of_theory == "GFN2-xTB (tblite)"
    assert card.fine_tuned_from == "toy (sha256 5eed)"
    assert card.description == "toy, fine-tuned on formaldehyde, methanol, water."
    assert card.training_data == (
        "92 frames of formaldehyde, methanol, water; before that, of toy: springs of old"
    )
    assert card.command == "mlmd train springs\nmlmd finetune"
    # Those were of other weights.
    assert card.errors == {}


@pytest.mark.parametrize(
    ("frames", "level"),
    [
        (taught("PBE"), "PBE; before fine-tuning GFN2-xTB (tblite)"),
        (FRAMES, "GFN2-xTB (tblite); that of the fine-tuning is not stated"),
        ([*taught("PBE")[:2], FRAMES[2]], "GFN2-xTB (tblite); that of the fine-tuning is not"),
    ],
)
def test_level_of_theory_is_that_of_both_trainings(frames, level):
    start = load_model_in_memory(**PARENT)
    assert card_entries(frames, RECIPE, start, {})["level_of_theory"].startswith(level)


def test_entries_given_by_the_user_come_first():
    start = load_model_in_memory(**PARENT)
    given = {"licence": "CC0", "recommended": {"forces": "direct"}}
    entries = card_entries(FRAMES, RECIPE, start, given)
    assert entries["licence"] == "CC0"
    assert entries["recommended"] == {"forces": "direct"}


def test_conservative_model_is_not_fine_tuned_on_forces_alone(tmp_path):
    recipe = replace(RECIPE, loss=MDETLossWeights(), model={})
    start = load_model_in_memory(**PARENT)
    with pytest.raises(ConfigError, match=r"'toy' is recommended with .*--set loss.gradient=1"):
        run(tmp_path, recipe, start=start)
    assert card_entries(FRAMES, recipe, start, {"recommended": {"forces": "direct"}})


def test_fine_tuning_moves_to_the_energy_scale_of_the_labels(tmp_path):
    """The start is thousands of eV off; what is left is within the spread of the labels."""
    recipe = replace(RECIPE, steps=1, learning_rate=1e-9, final_learning_rate=0.0)
    recipe = replace(recipe, held_out_molecules=(), model={})
    model = load_model(run(tmp_path, recipe, start=load_model_in_memory()))
    assert model.card.validation["frames/energy_mae"] < 5000


def test_force_only_model_can_be_fine_tuned(tmp_path):
    start = toy_model(replace(SMALL, target_heads=("forces",)))
    recipe = replace(RECIPE, steps=1, model={})
    with pytest.raises(ConfigError, match="no energy head"):
        run(tmp_path, recipe, start=start)
    card = load_model(run(tmp_path, replace(recipe, loss=MDETLossWeights()), start=start)).card
    assert set(card.validation) == {"molecules/forces_mae", "frames/forces_mae"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradient_is_clipped_over_all_parameters(tmp_path, monkeypatch, optimizer):
    norms = []

    def remember(module, used):
        parameters = [p for group in used.param_groups for p in group["params"]]
        if parameters[0].grad is not None:
            assert len(parameters) == len(list(module.parameters()))
            norms.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())

    monkeypatch.setattr(MDETTraining, "on_before_zero_grad", remember)
    recipe = replace(RECIPE, gradient_clip=1e-3, optimizer=optimizer, steps=3)
    run(tmp_path, recipe)
    assert norms == pytest.approx([1e-3] * 2, rel=1e-3)


def test_energy_gradient_is_trained_and_validated(tmp_path):
    recipe = replace(
        RECIPE, loss=MDETLossWeights(energy=1.0, gradient=1.0, consistency=0.1), steps=2
    )
    path = run(tmp_path, replace(recipe, size_step=4))
    model = load_model(path)
    assert {"molecules/gradient_mae", "frames/gradient_mae"} <= set(model.card.validation)
    potential = Potential(model, rotation="none", forces="conservative")
    frames = split(FRAMES, RECIPE)[1]["molecules"]
    accuracy = summarise_errors([molecule_errors(potential, m) for m in frames])
    assert model.card.validation["molecules/gradient_mae"] == pytest.approx(
        accuracy.forces_mae, rel=1e-3
    )


@pytest.mark.parametrize("term", ["gradient", "consistency"])
def test_bfloat16_is_refused_where_it_would_change_nothing(tmp_path, term):
    loss = MDETLossWeights(energy=1.0, **{term: 0.5})
    with pytest.raises(ConfigError, match=rf"bf16-mixed.*loss\.{term}=0\.5"):
        run(tmp_path, replace(RECIPE, loss=loss, precision="bf16-mixed"))


def test_bfloat16_trains_the_heads(tmp_path):
    recipe = replace(RECIPE, loss=MDETLossWeights(energy=1.0), steps=2)
    single, half = (
        load_model(run(tmp_path / precision, replace(recipe, precision=precision))).network
        for precision in ("32-true", "bf16-mixed")
    )
    pairs = zip(single.parameters(), half.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


def test_divergence_is_an_error_and_no_model_is_written(tmp_path):
    labels = replace(FRAMES[0], forces=np.full_like(FRAMES[0].forces, np.inf))
    with pytest.raises(PredictionError, match=r"not finite at step 0 \(forces nan.*learning_rate"):
        run(tmp_path, replace(RECIPE, held_out_molecules=()), [labels])
    assert not (tmp_path / "model.safetensors").exists()


def train_without_compiler(folder):
    """Train where no C++ compiler is found, nor what one has compiled before."""
    import torch._inductor.config

    # What the environment says of it was read before.
    torch._inductor.config.cpp.cxx = (None, "/nowhere/c++")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
    with pytest.warns(UserWarning, match=r"cannot be compiled .*/nowhere/c\+\+.*compile=false"):
        run(folder, replace(RECIPE, compile=True))


def test_without_a_compiler_layers_are_not_compiled(tmp_path, finished):
    run_child(train_without_compiler, tmp_path)
    assert equal(weights(tmp_path / MODEL_NAME), weights(finished / MODEL_NAME))
    steps = [int(row["step"]) for row in metrics(tmp_path)]
    assert steps == [int(row["step"]) for row in metrics(finished)]


def test_training_leaves_no_trace_in_the_process(tmp_path):
    def state():
        return (
            torch.get_rng_state().tolist(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            np.random.get_state()[1].tolist(),
            [logging.getLogger(f"lightning.{part}").level for part in ("pytorch", "fabric")],
            list(warnings.filters),
        )

    before = state()
    run(tmp_path, replace(RECIPE, steps=1))
    assert state() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"held_out_molecules": ("benzene",)}, r"\['benzene'\], which the data do not have.*water"),
        ({"held_out_molecules": ("water", "formaldehyde", "methanol")}, "leaves one side"),
        ({"held_out_molecules": ("formaldehyde", "methanol")}, "held-out molecules contain C,"),
        ({"model": {**TINY, "target_heads": ["forces"]}}, "no energy head"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, replace(RECIPE, **changed))


def test_recipes_of_the_package_hold_out_what_the_data_can_spare():
    def held_out(*names):
        recipe = replace(RECIPE, held_out_molecules=names)
        return spare_molecules(FRAMES, recipe).held_out_molecules

    assert held_out("benzene", "methanol", "phenol") == ("methanol",)
    # Without both there is no carbon to train on, without all nothing.
    assert held_out("formaldehyde", "methanol") == ()
    assert held_out("water", "formaldehyde", "methanol", "benzene") == ()


def test_missing_labels_wrong_cards_and_device_counts_are_refused(tmp_path):
    with pytest.raises(InputError, match="no forces"):
        run(tmp_path, frames=[*FRAMES[1:], replace(FRAMES[0], forces=None)])
    with pytest.raises(ConfigError, match=r"unknown model card entries \['nmae'\]"):
        run(tmp_path, card={"nmae": "typo"})
    with pytest.raises(ConfigError, match="devices=0"):
        run(tmp_path, devices=0)
    with pytest.raises(ConfigError, match="accelerator='tpu'; choose one of auto, cpu, gpu"):
        run(tmp_path, accelerator="tpu")


def test_initial_weights_follow_the_seed(tmp_path):
    networks = []
    for seed in (0, 0, 1):
        recipe = replace(RECIPE, seed=seed, steps=1, learning_rate=1e-9, final_learning_rate=0.0)
        networks.append(weights(run(tmp_path / f"{len(networks)}", recipe)))
    assert equal(networks[0], networks[1])
    assert not equal(networks[0], networks[2])
