"""Recipes: every entry is checked, and the shipped ones are complete."""

import json
from dataclasses import replace

import needs_lightning  # noqa: F401
import pytest
from toy_models import SMALL

from mlmd_calc.errors import ConfigError
from mlmd_calc.models import MDETConfig
from mlmd_calc.training.mdet.module import energy_head
from mlmd_calc.training.mdet.recipe import MDETLossWeights, MDETRecipe
from mlmd_calc.training.module import learning_rate
from mlmd_calc.training.recipe import Recipe, list_recipes, load_recipe


def test_shipped_recipes_load_and_survive_json():
    assert {"mdet", "mdet-finetune", "molecule-finetune", "small-organics"} <= set(list_recipes())
    for name in list_recipes():
        recipe = load_recipe(name)
        assert recipe.warmup_steps < recipe.steps
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_shipped_recipes_train_the_heads_they_need():
    for name in list_recipes():
        recipe = load_recipe(name)
        if recipe.kind == "mdet" and recipe.model:
            head = energy_head(MDETConfig.from_dict(recipe.model), recipe.loss)
            assert head == "formation_energy"


def test_overrides_replace_entries(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('steps = 7\noptimizer = "adamw"\n[loss]\nforces = 2.0\nenergy = 3.0\n')
    recipe = load_recipe(file, {"steps": 9, "loss": {"energy": 1}})
    assert (recipe.steps, recipe.optimizer) == (9, "adamw")
    assert recipe.loss == MDETLossWeights(forces=1.0, energy=1)


def test_overrides_reach_into_tables():
    recipe = load_recipe("mdet-finetune", {"loss.gradient": 0.5})
    assert recipe.loss == replace(load_recipe("mdet-finetune").loss, gradient=0.5)
    model = load_recipe("atom-small-organics", {"model.integrator.max_horizon": 16.0}).model
    usual = load_recipe("atom-small-organics").model
    assert model == {**usual, "integrator": {**usual["integrator"], "max_horizon": 16.0}}
    with pytest.raises(ConfigError, match=r"'steps\.many' is not a recipe entry: steps is 2000"):
        load_recipe("mdet-finetune", {"steps.many": 3})


@pytest.mark.parametrize(
    ("recipe", "key", "message"),
    [
        ("mdet-finetune", "loss.slope", r"unknown loss terms \['slope'\]; known are .*gradient"),
        ("mdet", "modle.n_layers", r"unknown recipe entries \['modle'\]; known are .*model"),
        ("mdet", "model.layers", r"unknown MD-ET options \['layers'\]; known are .*n_layers"),
        (
            "atom-small-organics",
            "model.integrator.acceleration",
            r"unknown ATOM integrator options \['acceleration'\]; known are accelerations",
        ),
        ("atom-small-organics", "model.layers", r"unknown ATOM options \['layers'\]"),
        ("atmos-peptides", "model.sampler.step", r"unknown ATMOS sampler options \['step'\]"),
        ("mdet", "model.n_layers.many", r"'model.n_layers.many' is not a .*: model.n_layers is 12"),
    ],
)
def test_overrides_of_what_there_is_not_are_refused(recipe, key, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe, {key: 3})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"stepz": 3}, r"unknown recipe entries \['stepz'\]; known are .*steps"),
        ({"loss": {"force": 1.0}}, r"unknown loss terms \['force'\]; known are .*forces"),
        ({"loss": 3}, "loss terms are 3; they must be a table"),
        ({"loss": {"forces": "much"}}, "loss.forces='much'; it must be a finite number"),
        ({"loss": {"forces": -1.0}}, "none may be negative"),
        ({"loss": {"forces": 0.0}}, "at least one must be positive"),
        ({"steps": "many"}, "steps='many'; it must be a whole number"),
        ({"steps": 10.5}, "steps=10.5; it must be a whole number"),
        ({"steps": True}, "steps=True; it must be a whole number"),
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps=-1; it must be at least 0"),
        ({"compile": 1}, "compile=1; it must be true or false"),
        ({"learning_rate": "fast"}, "learning_rate='fast'; it must be a finite number"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; it must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate=nan; it must be a finite number"),
        ({"ema_decay": 1.0}, "ema_decay=1.0; it must be at least 0 and less than 1"),
        ({"held_out_fraction": 1.5}, "held_out_fraction=1.5"),
        ({"held_out_molecules": "ethanol"}, "it must be a list in which each entry is a text"),
        ({"precision": "16"}, "precision='16'; choose one of 32-true, bf16-mixed"),
        ({"optimizer": "sgd"}, "optimizer='sgd'; choose one of adamw, muon"),
        ({"model": {"layers": 3}}, r"unknown MD-ET options \['layers'\]"),
    ],
)
def test_wrong_entries_are_refused(entries, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(entries)


def test_whole_numbers_are_floats():
    assert Recipe.from_dict({"gradient_clip": 1}).gradient_clip == 1


def test_recipe_on_top_of_another(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "atmos-peptides"\nsteps = 9\n[model.sampler]\nsteps = 5\n')
    base, found = load_recipe("atmos-peptides"), load_recipe(file)
    sampler = {**base.model["sampler"], "steps": 5}
    assert found == replace(base, steps=9, model={**base.model, "sampler": sampler})
    for bad in ("'mine'", "3"):
        file.write_text(f"base = {bad}\n")
        with pytest.raises(ConfigError, match=rf"base={bad}.*atmos-peptides"):
            load_recipe(file)


def test_missing_recipes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe 'best'.*small-organics"):
        load_recipe("best")
    with pytest.raises(ConfigError, match="no file"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        load_recipe(tmp_path / "bad.toml")


def test_learning_rate_rises_linearly_and_falls_like_a_cosine():
    recipe = MDETRecipe(steps=110, warmup_steps=10, learning_rate=1e-3, final_learning_rate=1e-5)
    rates = [learning_rate(recipe, step) for step in range(111)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert max(rates) == rates[10] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[110] == pytest.approx(1e-5)


def test_learning_rate_without_warmup_starts_at_the_peak():
    assert learning_rate(MDETRecipe(warmup_steps=0), 0) == MDETRecipe().learning_rate


def test_learning_rate_follows_the_clock_where_it_is_ahead_of_the_steps():
    recipe = MDETRecipe(steps=110, warmup_steps=10, learning_rate=2.0, max_minutes=60.0)
    steps = replace(recipe, max_minutes=0.0)
    assert learning_rate(recipe, 4, 30.0) == learning_rate(steps, 4)
    assert learning_rate(recipe, 20, 30.0) == learning_rate(steps, 60)
    assert learning_rate(recipe, 80, 30.0) == learning_rate(steps, 80)
    assert learning_rate(recipe, 20, 75.0) == learning_rate(steps, 110)


def test_energy_head_is_found_under_both_names():
    weights = MDETLossWeights(forces=1.0, energy=1.0)
    assert energy_head(SMALL, weights) == "formation_energy"
    assert energy_head(replace(SMALL, target_heads=("forces", "energy")), weights) == "energy"


def test_networks_that_lack_a_head_are_refused():
    forces_only = replace(SMALL, target_heads=("forces",))
    assert energy_head(forces_only, MDETLossWeights()) is None
    for name in ("energy", "gradient", "consistency"):
        with pytest.raises(ConfigError, match="no energy head"):
            energy_head(forces_only, MDETLossWeights(**{name: 1.0}))
    for config in (
        replace(SMALL, energy_conserving=True),
        replace(SMALL, target_heads=("formation_energy",)),
    ):
        with pytest.raises(ConfigError, match="training needs the head 'forces'"):
            energy_head(config, MDETLossWeights())
