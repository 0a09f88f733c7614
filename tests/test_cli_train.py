"""`mlmd train`, `finetune`, `models` and `evaluate` as a user types them."""

import json
import shlex
import sys
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import typer
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from spring_molecules import spring_frames
from typer.testing import CliRunner

from mlmd_calc.analysis.accuracy import (
    molecule_errors,
    orientation_errors,
    structures_of,
    summarise_errors,
)
from mlmd_calc.analysis.force_report import conformational_errors
from mlmd_calc.cli import evaluate as evaluate_commands
from mlmd_calc.cli.models import models_command
from mlmd_calc.cli.train import finetune_command, train_command, usual_recipe
from mlmd_calc.data import read_dataset, write_labels
from mlmd_calc.errors import ConfigError
from mlmd_calc.potential import Potential
from mlmd_calc.training.recipe import list_recipes
from mlmd_calc.zoo import list_models, load_any_model, load_model

APP = typer.Typer()
APP.command("train")(train_command)
APP.command("finetune")(finetune_command)
APP.command("models")(models_command)
APP.add_typer(evaluate_commands.app, name="evaluate")

RECIPE = """
steps = 2
warmup_steps = 1
validate_every = 2
pairs_per_batch = 200
held_out_molecules = ["formaldehyde"]
held_out_fraction = 0.2

[model]
n_layers = 1
embd_dim = 16
num_heads = 2
num_3d_kernels = 8

[loss]
forces = 1.0
energy = 1.0
"""


def invoke(*arguments):
    """Run a command; our own errors reach the caller."""
    return CliRunner().invoke(APP, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labels, a recipe, a card, and a model trained from them."""
    path = tmp_path_factory.mktemp("springs")
    (path / "labels").mkdir()
    for frames in (
        spring_frames("water", [8, 1, 1], 10),
        spring_frames("methanol", [6, 8, 1, 1, 1, 1], 10, seed=1),
        spring_frames("formaldehyde", [6, 8, 1, 1], 10, seed=2),
    ):
        write_labels(path / "labels" / f"{frames.name}.npz", frames)
    (path / "recipe.toml").write_text(RECIPE)
    (path / "card.toml").write_text('name = "springs"\nlicence = "MIT"\n')
    result = invoke(
        *("train", path / "labels", "--out", path / "run", "--accelerator", "cpu"),
        *("--recipe", path / "recipe.toml", "--card", path / "card.toml", "--set", "steps=3"),
    )
    assert result.exit_code == 0
    assert "3 molecules, 30 structures" in result.stderr
    assert "final: molecules/forces_mae" in result.stderr
    assert "model written to" in result.stderr
    assert result.stdout == ""
    return path


def test_train_writes_a_model_with_its_card(folder):
    card = load_model(folder / "run" / "model.safetensors").card
    assert (card.name, card.licence) == ("springs", "MIT")
    assert card.recipe["steps"] == 3
    assert "molecules/forces_mae" in card.validation
    assert shlex.split(card.command)[0] == "mlmd"


def test_card_holds_the_command_as_typed(folder, tmp_path, monkeypatch):
    typed = ["train", str(folder / "labels"), "--out", str(tmp_path / "a run")]
    typed += ["--recipe", str(folder / "recipe.toml"), "--accelerator", "cpu"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/mlmd", *typed])
    assert invoke(*typed).exit_code == 0
    card = load_model(tmp_path / "a run" / "model.safetensors").card
    assert shlex.split(card.command) == ["mlmd", *typed]


def test_finetune_starts_from_a_model_file(folder, tmp_path):
    start = folder / "run" / "model.safetensors"
    result = invoke(
        *("finetune", start, folder / "labels" / "water.npz", "--out", tmp_path),
        *("--accelerator", "cpu", "--set", "steps=1", "--set", "held_out_fraction=0.2"),
        *("--set", "warmup_steps=0"),
        *("--set", "learning_rate=1e-9", "--set", 'loss={"forces": 1, "energy": 1}'),
    )
    assert result.exit_code == 0
    tuned, original = (load_model(p).network for p in (tmp_path / "model.safetensors", start))
    assert tuned.config == original.config
    for name, value in original.state_dict().items():
        assert (tuned.state_dict()[name] - value).abs().max() < 1e-6


def test_finetune_refuses_an_architecture_that_it_would_not_give(folder, tmp_path):
    """A trained network can grow in some ways, and keeps the rest whatever a recipe says."""
    common = ("finetune", folder / "run", folder / "labels" / "water.npz", "--out", tmp_path)
    for wanted in ("model.embd_dim=128", 'model={"n_layers": 9}'):
        with pytest.raises(
            ConfigError, match=r"keeps the network .* by model\.n_layers and model\.ffn_multiplier"
        ):
            invoke(*common, "--set", wanted)


def test_default_recipe_trains_on_any_data(tmp_path):
    """It holds out molecules that these data lack; one that they have; and single frames."""
    for frames in (spring_frames("phenol", [8, 1, 1], 4), spring_frames("mine", [8, 8, 1], 4)):
        write_labels(tmp_path / f"{frames.name}.npz", frames)
    small = ("--set", "compile=false", "--set", "model.n_layers=1", "--set", "steps=1")
    common = (*small, "--accelerator", "cpu", "--out")
    result = invoke("train", tmp_path, *common, tmp_path / "all")
    assert result.exit_code == 0
    assert "held out: phenol, and 4% of the other structures" in result.stderr
    recipe = load_model(tmp_path / "all").card.recipe
    assert recipe["held_out_molecules"] == ["phenol"]
    assert recipe["model"]["embd_dim"] == 64
    result = invoke("train", tmp_path / "phenol.npz", *common, tmp_path / "one")
    assert result.exit_code == 0
    assert "held out: no molecules" in result.stderr
    names = ("--set", 'held_out_molecules=["phenol", "benzene"]')
    with pytest.raises(ConfigError, match=r"\['benzene'\], which the data do not have"):
        invoke("train", tmp_path, *names, *common, tmp_path / "none")


def test_finetune_starts_from_the_folder_of_a_run(folder, tmp_path):
    arguments = ("finetune", folder / "run", folder / "labels" / "water.npz", "--out", tmp_path)
    result = invoke(*arguments, "--accelerator", "cpu", "--set", "steps=1")
    assert result.exit_code == 0
    card = load_model(tmp_path).card
    assert card.fine_tuned_from.startswith("springs (sha256 ")
    # Of the others of its parent it has forgotten what it knew.
    assert [(state.molecules, state.most_atoms) for state in card.electronic_states] == [(1, 3)]
    # That of mdet-finetune.
    assert card.recipe["loss"] == {"forces": 1.0, "energy": 0.5, "gradient": 0.0, "consistency": 0}
    assert card.licence == "MIT"


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("mdet-small-organics", "molecule-finetune"),
        ("atom-small-organics", "atom-molecule"),
        ("atmos-peptides", "there is no usual recipe"),
    ],
)
def test_usual_recipe_suits_the_model(model, recipe):
    start = load_any_model(model, device="cpu")
    if recipe in list_recipes():
        assert usual_recipe(start) == recipe
    else:
        with pytest.raises(ConfigError, match=recipe):
            usual_recipe(start)


def test_an_entry_of_a_table_is_set(folder, tmp_path):
    arguments = (folder / "labels", "--out", tmp_path, "--recipe", folder / "recipe.toml")
    arguments += ("--accelerator", "cpu", "--set", "model.edge_types=true")
    assert invoke("train", *arguments).exit_code == 0
    config = load_model(tmp_path).network.config
    assert (config.edge_types, config.embd_dim) == (True, 16)
    with pytest.raises(ConfigError, match=r"unknown MD-ET options \['edges'\]; known are"):
        invoke("train", *arguments, "--set", "model.edges=true")


def test_train_refuses_to_continue_another_run(folder):
    with pytest.raises(ConfigError, match=r"holds another run: steps was 3, is 2"):
        invoke(
            *("train", folder / "labels", "--out", folder / "run", "--accelerator", "cpu"),
            *("--recipe", folder / "recipe.toml"),
        )


@pytest.mark.parametrize(
    ("setting", "message"),
    [("steps", "not of the form KEY=VALUE"), ("steps=many", "steps='many'"), ("x=1", "unknown")],
)
def test_wrong_settings_are_refused(folder, tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        invoke("train", folder / "labels", "--out", tmp_path, "--set", setting)


def test_no_processes_are_refused(folder, tmp_path):
    result = invoke("train", folder / "labels", "--out", tmp_path, "--devices", 0)
    assert result.exit_code == 2


def test_models_shows_a_card(folder):
    path = folder / "run" / "model.safetensors"
    card = json.loads(invoke("models", path, "--json").stdout)
    assert card == load_model(path).card.to_dict()
    assert "springs" in invoke("models", path).stdout


def test_models_lists_what_is_shipped():
    cards = json.loads(invoke("models", "--json").stdout)
    assert cards == [card.to_dict() for card in list_models()]
    listed = invoke("models").stdout
    assert all(card["name"] in listed for card in cards)
    # A glance, not the cards.
    assert len(listed.splitlines()) < 3 * len(cards) + 8
    assert "ATOM propagator" in listed


def evaluate(folder, *arguments):
    model = folder / "run" / "model.safetensors"
    settings = ("--model", model, "--rotation", "none", "--forces", "direct")
    return invoke("evaluate", "forces", folder / "labels", *settings, *arguments)


def test_evaluate_measures_every_molecule_and_all_of_them(folder):
    result = json.loads(evaluate(folder, "--frames", 4, "--json").stdout)
    assert result["settings"]["rotation"] == "none"
    rows = result["errors"]
    assert list(rows) == ["formaldehyde", "methanol", "water", "all"]
    potential = Potential(
        str(folder / "run" / "model.safetensors"), rotation="none", forces="direct"
    )
    molecules = read_dataset(folder / "labels")
    for molecule in molecules:
        expected = summarise_errors([molecule_errors(potential, molecule, 4)])
        assert rows[molecule.name]["structures"] == 4
        assert rows[molecule.name]["force MAE, meV/Å"] == pytest.approx(expected.forces_mae)
    errors = [molecule_errors(potential, m, 4) for m in molecules]
    accuracy = summarise_errors(errors)
    structures = [s for m in molecules for s in structures_of(m, 3)]
    assert list(rows["all"].values()) == pytest.approx(
        [
            *(accuracy.structures, accuracy.forces_mae, accuracy.forces_rmse),
            *(accuracy.energy_mae, accuracy.energy_mae_relative),
            np.mean(
                [
                    conformational_errors(m, found, 4).mae
                    for m, found in zip(molecules, errors, strict=True)
                ]
            ),
            1000 * orientation_errors(potential, structures).mean(),
        ]
    )


def test_evaluate_pools_files_of_one_molecule(folder, tmp_path):
    water = spring_frames("water", [8, 1, 1], 5, seed=9)
    write_labels(tmp_path / "water.npz", water)
    rows = json.loads(evaluate(folder, tmp_path, "--only", "water", "--json").stdout)["errors"]
    assert list(rows) == ["water", "all"]
    assert rows["water"] == rows["all"]
    assert rows["water"]["structures"] == 15


def test_evaluate_prints_a_table(folder):
    output = evaluate(folder, "--frames", 2, "--only", "water").stdout
    assert "water" in output
    assert "methanol" not in output


def test_evaluate_refuses_unknown_names(folder):
    with pytest.raises(ConfigError, match=r"no molecule is called \['benzene'\]; there are"):
        evaluate(folder, "--only", "benzene")


def test_evaluate_without_energies_leaves_them_out(folder, tmp_path):
    """An extxyz file may hold forces alone."""
    water = replace(spring_frames("water", [8, 1, 1], 2), energies=None)
    images = []
    for positions, forces in zip(water.positions, water.forces, strict=True):
        atoms = Atoms(water.numbers, positions)
        atoms.calc = SinglePointCalculator(atoms, forces=forces)
        images.append(atoms)
    ase.io.write(tmp_path / "water.extxyz", images)
    model = folder / "run" / "model.safetensors"
    # Without the name of the command, that for the kind of the model is taken.
    result = invoke("evaluate", "--rotation", "none", f"--model={model}", tmp_path, "--json")
    row = json.loads(result.stdout)["errors"]["all"]
    assert row["energy MAE, meV/atom"] is None
    assert row["structures"] == 2
