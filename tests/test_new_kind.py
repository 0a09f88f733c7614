"""What a contributor does for a new kind of networks: a module, and a line that registers it."""

import pkgutil

import needs_lightning  # noqa: F401
import pytest
import torch
from spring_molecules import spring_frames
from toy_kind import TOY, ToyRecipe
from toy_models import toy_model
from typer.testing import CliRunner

from mlmd_calc.cli import app, evaluate
from mlmd_calc.data import write_labels
from mlmd_calc.errors import ConfigError
from mlmd_calc.training.recipe import Recipe
from mlmd_calc.training.task import prepare
from mlmd_calc.zoo import KINDS, LoadedModel, load_any_model, load_model

RECIPE = """
kind = "toy"
steps = 2
warmup_steps = 1
learning_rate = 0.1
ema_decay = 0.0
validate_every = 2
held_out_molecules = ["peroxide"]
held_out_fraction = 0.2
"""


def invoke(*arguments):
    """Run a command; our own errors reach the caller."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """The line that registers the kind; labels and a recipe."""
    monkeypatch.setitem(KINDS, TOY.name, TOY)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "labels").mkdir()
    for name, numbers in (("water", [8, 1, 1]), ("peroxide", [8, 8, 1, 1])):
        write_labels(tmp_path / "labels" / f"{name}.npz", spring_frames(name, numbers, 10, seed=2))
    return tmp_path / "labels"


def test_a_new_kind_is_trained_saved_loaded_and_fine_tuned(labels, tmp_path):
    common = ("--recipe", tmp_path / "recipe.toml", "--accelerator", "cpu", "--out")
    result = invoke("train", labels, "--set", "model.width=3", *common, tmp_path / "run")
    assert "final: molecules/energy_mae" in result.stderr
    for path in (tmp_path / "run" / "model.safetensors", tmp_path / "run"):
        model = load_any_model(path, device="cpu", dtype="float32")
        assert type(model) is LoadedModel
        assert (model.card.kind, model.card.units) == ("toy", "energy eV")
        assert model.card.elements == (1, 8)
        assert set(model.card.validation) == {"molecules/energy_mae", "frames/energy_mae"}
        assert Recipe.from_dict(model.card.recipe) == ToyRecipe(
            model={"width": 3},
            steps=2,
            warmup_steps=1,
            learning_rate=0.1,
            ema_decay=0.0,
            validate_every=2,
            held_out_molecules=("peroxide",),
            held_out_fraction=0.2,
        )
    untrained = prepare([spring_frames("water", [8, 1, 1], 10)], ToyRecipe(), None).module.network
    assert not torch.equal(model.network.readout.bias, untrained.readout.bias)
    tuned = invoke("finetune", tmp_path / "run", labels, *common, tmp_path / "tuned")
    assert tuned.exit_code == 0
    assert load_any_model(tmp_path / "tuned", device="cpu").card.fine_tuned_from
    again = invoke("train", labels, "--set", "model.width=3", *common, tmp_path / "run")
    assert again.exit_code == 0
    assert invoke("models", tmp_path / "run").exit_code == 0
    refused(tmp_path / "run", labels, tmp_path)


def refused(path, labels, tmp_path):
    """What a kind without a measure and without a usual recipe is told."""
    with pytest.raises(ConfigError, match="is a toy, which no command of mlmd evaluate measures"):
        invoke("evaluate", labels, "--model", path)
    with pytest.raises(ConfigError, match="is a toy, which no command of mlmd evaluate measures"):
        invoke("evaluate", "forces", labels, "--model", path)
    with pytest.raises(ConfigError, match=r"is a toy, but an MD-ET force field .*load_any_model"):
        load_model(path, device="cpu")
    with pytest.raises(ConfigError, match="there is no usual recipe for fine-tuning"):
        invoke("finetune", path, labels, "--out", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"an MD-ET force field, but the recipe has kind='toy'"):
        prepare([], ToyRecipe(), toy_model())


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_all_that_a_kind_names_is_there(kind):
    if kind.recipe is None:
        assert kind.task is None
        return
    recipe = pkgutil.resolve_name(kind.recipe)
    assert issubclass(recipe, Recipe)
    assert recipe.kind == kind.name
    assert callable(pkgutil.resolve_name(kind.task))
    assert callable(pkgutil.resolve_name(f"mlmd_calc:{kind.loader}"))
    assert kind.evaluation in {command.name for command in evaluate.app.registered_commands}


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"kind='toy'; .* mdet, atom, atom-operator, atmos"):
        Recipe.from_dict({"kind": "toy"})
