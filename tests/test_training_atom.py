"""Training of ATOM integrators: what they learn, write, resume and refuse."""

from dataclasses import replace

import needs_lightning  # noqa: F401
import numpy as np
import pytest
import torch
from harmonic_trajectories import harmonic_trajectory, springs
from toy_models import toy_model

from mlmd_calc.analysis.jump_baselines import Ballistic
from mlmd_calc.analysis.jumps import jumps_of, measure_jumps
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.models import MDET, MDETConfig
from mlmd_calc.models.atom import ATOM, ATOMConfig, ATOMIntegrator
from mlmd_calc.potential import Evaluation
from mlmd_calc.propagation.atom import ATOMPropagator
from mlmd_calc.training.atom.batches import TrajectoryTable
from mlmd_calc.training.atom.module import ATOMTraining
from mlmd_calc.training.atom.recipe import ATOMLossWeights, ATOMRecipe
from mlmd_calc.training.card import card_entries
from mlmd_calc.training.held_out import split
from mlmd_calc.training.mdet.recipe import MDETRecipe
from mlmd_calc.training.recipe import Recipe
from mlmd_calc.training.train import train
from mlmd_calc.zoo import load_any_model, load_atom, load_model, save_model

TINY = {
    "lifting_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "integrator": {"pairs": True, "accelerations": True, "max_horizon": 8.0},
}
BLIND = {**TINY, "integrator": {"max_horizon": 8.0}}
FRAMES = [
    harmonic_trajectory("water", [8, 1, 1], frames=30),
    harmonic_trajectory("methyl", [6, 1, 1, 1], frames=30, seed=1),
    harmonic_trajectory("peroxide", [8, 8, 1, 1], frames=30, seed=2),
]
RECIPE = ATOMRecipe(
    model=TINY,
    steps=8,
    learning_rate=1e-3,
    warmup_steps=3,
    atoms_per_batch=60,
    times=2,
    ema_decay=0.8,
    validate_every=4,
    validation_structures=10_000,
    held_out_molecules=("peroxide",),
    held_out_fraction=0.4,
)


def run(folder, recipe=RECIPE, frames=FRAMES, **options):
    return train(frames, recipe, folder, accelerator="cpu", progress=False, **options)


def weights(path):
    return load_atom(path, device="cpu").network.state_dict()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of `RECIPE`."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder, card={"name": "springs"})
    return folder


class SpringForces:
    """The forces that made the trajectories, for molecules of any size."""

    def evaluate(self, structures, properties=("energy", "forces")):
        return [
            Evaluation(*springs(len(s.numbers)).energy_and_forces(s.positions)) for s in structures
        ]


def test_training_learns(tmp_path):
    frames = [harmonic_trajectory("methyl", [6, 1, 1, 1], frames=150)]
    recipe = replace(
        RECIPE,
        optimizer="muon",
        steps=80,
        learning_rate=1e-2,
        warmup_steps=10,
        atoms_per_batch=400,
        validate_every=80,
        held_out_molecules=(),
        held_out_fraction=0.2,
    )
    held_out = split(frames, recipe)[1]["frames"][0]
    model = load_atom(run(tmp_path, recipe, frames))
    jumps = jumps_of(held_out, [4.0, 8.0])
    propagator = ATOMPropagator(model, potential=SpringForces())
    learned, ballistic = (measure_jumps(p, jumps, [4.0, 8.0]) for p in (propagator, Ballistic()))
    for quantity in ("position", "velocity"):
        assert (learned.relative(quantity) < ballistic.relative(quantity) / 3.0).all()


def test_card_says_what_the_written_weights_do(finished):
    model = load_atom(finished / "model.safetensors")
    card = model.card
    assert card.name == "springs"
    assert card.elements == (1, 6, 8)
    assert Recipe.from_dict(card.recipe) == RECIPE
    times = [2.0, 4.0, 8.0]
    # The network sees in use what it saw in validation, up to the finite difference.
    propagator = ATOMPropagator(model, potential=SpringForces())
    assert len(card.validation) == 2 * 2 * len(times)
    for name, frames in split(FRAMES, RECIPE)[1].items():
        errors = None
        for molecule in frames:
            found = measure_jumps(propagator, jumps_of(molecule, times), times)
            errors = found if errors is None else errors + found
        for quantity in ("position", "velocity"):
            expected = 100.0 * errors.relative(quantity)
            logged = [card.validation[f"{name}/{quantity}_error_{t:g}fs"] for t in times]
            np.testing.assert_allclose(logged, expected, rtol=5e-3)


def test_untrained_network_has_a_loss_of_one():
    """It moves atoms ballistically, and that is the unit of both terms."""
    table = TrajectoryTable(FRAMES, (8.0, 8.0))
    recipe = replace(RECIPE, model=BLIND)
    module = ATOMTraining(ATOMIntegrator(recipe.network_config()), recipe)
    squares, atoms = np.zeros(2), 0
    for size, count in table.counts.items():
        # One sample at a time, as the mean of lengths is not that of squares.
        for index in np.split(np.arange(count), count):
            batch = table.batch(size, index, torch.zeros(1, 1, dtype=torch.long))
            # Whatever the run: what it moves is looked at below.
            terms = module.loss_terms(batch._replace(motion=torch.ones_like(batch.motion)))
            squares += size * np.array([term.item() for term in terms.values()]) ** 2
            atoms += size
    assert list(terms) == ["positions", "velocities"]
    np.testing.assert_allclose(squares / atoms, 1.0, rtol=1e-5)


def test_runs_that_move_less_count_as_much():
    molecule = FRAMES[0]
    centre = molecule.positions.mean(axis=0)
    slow = replace(
        molecule,
        positions=centre + 0.2 * (molecule.positions - centre),
        velocities=0.2 * molecule.velocities,
        segment=10 + molecule.segment,
        forces=None,
    )
    fast = replace(molecule, forces=None)
    table = TrajectoryTable([fast, slow], (8.0, 8.0))
    (size,) = table.counts
    count = table.counts[size] // 2
    errors = []
    for part in (np.arange(count), np.arange(count, 2 * count)):
        batch = table.batch(size, part, torch.zeros(count, 1, dtype=torch.long))
        change = (batch.later_velocities - batch.velocities[:, None]) / (
            batch.motion[:, None, None, None] * batch.velocity_scale[..., None]
        )
        errors.append(float(change.square().mean()))
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)
    assert errors[0] == pytest.approx(1.0, rel=0.2)


def test_runs_with_forces_start_at_their_first_frame():
    molecule = FRAMES[0]
    bare = replace(molecule, forces=None)
    known = replace(molecule, forces=np.zeros_like(molecule.positions))
    counts = [
        sum(TrajectoryTable([own], (8.0, 8.0), accelerations=True).counts.values())
        for own in (bare, known)
    ]
    assert counts[1] - counts[0] == len(np.unique(molecule.segment))


@pytest.mark.parametrize("model", [TINY, BLIND])
def test_padding_changes_no_loss(model):
    recipe = replace(RECIPE, model=model)
    module = ATOMTraining(ATOMIntegrator(recipe.network_config()), recipe)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    values = []
    for size_step in (1, 5):
        options = {"accelerations": model is TINY, "size_step": size_step}
        table = TrajectoryTable(FRAMES[:1], (2.0, 8.0), **options)
        values.append(module.loss_terms(next(table.spread(5, 10**6))))
    for name, value in values[0].items():
        assert value.item() == pytest.approx(values[1][name].item(), rel=1e-4)


class KilledError(Exception):
    pass


def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    recipe = replace(RECIPE, optimizer="muon")
    straight = weights(run(tmp_path / "straight", recipe))
    original = ATOMTraining.training_step

    def dying(module, batch, index):
        if module.trainer.global_step == 6:
            raise KilledError
        return original(module, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(ATOMTraining, "training_step", dying)
        with pytest.raises(KilledError):
            run(tmp_path / "resumed", recipe)
    assert equal(weights(run(tmp_path / "resumed", recipe)), straight)


def test_other_velocities_are_another_run(finished):
    other = [replace(FRAMES[0], velocities=2.0 * FRAMES[0].velocities), *FRAMES[1:]]
    with pytest.raises(ConfigError, match="holds another run: data was"):
        run(finished, frames=other)


@pytest.mark.parametrize("model", [TINY, BLIND])
def test_every_parameter_is_trained(tmp_path, monkeypatch, model):
    """Distributed training wants every parameter used."""
    missing = []

    def remember(module, _optimizer):
        if module.trainer.global_step:
            missing.extend(n for n, p in module.named_parameters() if p.grad is None)

    monkeypatch.setattr(ATOMTraining, "on_before_zero_grad", remember)
    run(tmp_path, replace(RECIPE, steps=2, model=model))
    assert missing == []


def test_fine_tuning_starts_from_the_given_weights(finished, tmp_path):
    start = load_atom(finished / "model.safetensors")
    recipe = replace(RECIPE, steps=1, learning_rate=1e-9, final_learning_rate=0.0, model={})
    model = load_atom(run(tmp_path, recipe, start=start))
    assert model.network.config == start.network.config
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, start.network.state_dict()[name], atol=1e-6, rtol=0.0)


def test_kinds_of_models_are_not_mixed_up(finished, tmp_path, model_file):
    path = finished / "model.safetensors"
    start = load_atom(path)
    with pytest.raises(ConfigError, match=r"'springs' is an ATOM propagator, but .*kind='mdet'"):
        run(tmp_path, MDETRecipe(), start=start)
    with pytest.raises(ConfigError, match=r"'toy' is an MD-ET force field, but .*kind='atom'"):
        run(tmp_path, RECIPE, start=toy_model())
    with pytest.raises(
        ConfigError, match=r"an ATOM propagator, but an MD-ET force field is .*load_propagator"
    ):
        load_model(path)
    with pytest.raises(ConfigError, match=r"is an MD-ET force field.*load_model"):
        load_atom(model_file)
    assert load_any_model(path).card.name == "springs"


def test_published_operator_is_no_start_of_an_integrator(tmp_path):
    path = tmp_path / "operator.safetensors"
    config = ATOMConfig(lifting_dim=16, num_layers=1, num_heads=2)
    save_model(path, ATOM(config), {}, {"name": "operator"})
    with pytest.raises(
        ConfigError, match=r"'operator' is the published ATOM operator, but .*atom'"
    ):
        run(tmp_path, RECIPE, start=load_any_model(path))


def test_labels_are_no_trajectories(tmp_path):
    with pytest.raises(InputError, match=r"'water' has no velocities.*--mode nve"):
        run(tmp_path, frames=[replace(m, velocities=None) for m in FRAMES])
    with pytest.raises(ConfigError, match="held-out molecules contain C,"):
        run(tmp_path, replace(RECIPE, held_out_molecules=("methyl",)))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"kind": "atoms"}, "kind='atoms'; choose one of mdet, atom, atom-operator, atmos"),
        ({"pairs_per_batch": 5}, r"unknown recipe entries \['pairs_per_batch'\]"),
        ({"loss": {"forces": 1.0}}, r"unknown loss terms \['forces'\]; known are"),
        ({"loss": {"positions": 0.0, "velocities": 0.0}}, "at least one must be positive"),
        ({"times": 0}, "times=0; it must be at least 1"),
        ({"shortest_horizon": 40.0}, "shortest_horizon=40.0 fs; .* max_horizon=32.0 fs"),
        ({"model": {"layers": 3}}, r"unknown ATOM options \['layers'\]; known are"),
        ({"model": {"integrator": {"time": 3}}}, r"unknown ATOM integrator options \['time'\]"),
    ],
)
def test_wrong_recipes_are_refused(entries, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict({"kind": "atom", **entries})


def test_recipe_survives_a_dictionary():
    recipe = replace(RECIPE, loss=ATOMLossWeights(velocities=0.5))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert isinstance(Recipe.from_dict({}), MDETRecipe)


def test_a_card_recommends_the_force_field_that_made_the_motion():
    shipped, foreign = (
        [replace(FRAMES[0], metadata={"forces": name, "teacher_sha256": "5eed"})]
        for name in ("mdet-ethanol", "my own")
    )
    cards = [card_entries(data, RECIPE, None, {}) for data in (shipped, foreign)]
    assert [card.get("recommended") for card in cards] == [{"potential": "mdet-ethanol"}, None]
    assert [card.get("potential_sha256") for card in cards] == ["5eed", None]
    given = {"recommended": {"potential": "another"}}
    assert card_entries(shipped, RECIPE, None, given)["recommended"] == given["recommended"]


def test_a_fine_tuned_card_says_which_weights_made_the_motion(finished):
    before = load_atom(finished / "model.safetensors")
    recommended = {"potential": "mdet-ethanol", "stride_fs": 8.0, "lowest_friction_per_ps": 5.0}
    start = replace(
        before,
        card=replace(before.card, recommended=recommended, potential_sha256="01d"),
    )
    found = []
    for forces in ("mdet-ethanol", "my own", ""):
        data = [replace(FRAMES[0], metadata={"forces": forces, "teacher_sha256": "5eed"})]
        card = card_entries(data, RECIPE, start, {})
        found.append((card["recommended"].get("potential"), card.get("potential_sha256")))
        # How little friction is too little was seen with the weights before.
        assert "lowest_friction_per_ps" not in card["recommended"]
        assert card["recommended"]["stride_fs"] == 8.0
    assert found == [("mdet-ethanol", "5eed"), (None, None), ("mdet-ethanol", "01d")]


def test_an_encoder_is_taken_and_kept(finished, tmp_path):
    config = MDETConfig(
        n_layers=1, embd_dim=8, num_heads=2, num_3d_kernels=8, directions="none", extensive=True
    )
    forces = MDET(config)
    path = tmp_path / "forces.safetensors"
    save_model(path, forces, {}, {"name": "forces"})
    recipe = replace(RECIPE, steps=2, encoder=str(path))
    fresh = load_atom(run(tmp_path / "fresh", recipe))
    start = load_atom(finished / "model.safetensors")
    tuned = load_atom(run(tmp_path / "tuned", replace(recipe, model={}), start=start))
    again = replace(RECIPE, steps=1, model={})
    again = load_atom(run(tmp_path / "again", again, start=tuned))
    known = forces.state_dict()
    for model in (fresh, tuned, again):
        assert model.network.config.encoder == config
        for name, weight in model.network.lifting_layer.encoder.state_dict().items():
            # Averages of the same number are rounded.
            torch.testing.assert_close(weight, known[name], rtol=1e-5, atol=1e-8)
        # What is read of it has been trained.
        assert model.network.lifting_layer.from_encoder.weight.any()
    with pytest.raises(ConfigError, match="encoder already"):
        run(tmp_path / "twice", replace(recipe, model={}), start=tuned)


def test_a_model_can_be_fine_tuned_wider(tmp_path, finished):
    start = load_any_model(finished / "model.safetensors", device="cpu")
    wider = {"integrator": {"pair_hidden_dim": 72}}
    recipe = replace(RECIPE, model=wider, precision="bf16-mixed")
    model = load_atom(run(tmp_path, recipe, start=start), device="cpu")
    expected = replace(start.network.config, pair_hidden_dim=72)
    assert model.network.config == expected
    with pytest.raises(ConfigError, match="pair_hidden_dim=9 is less than the network's 64"):
        run(
            tmp_path / "narrow",
            replace(recipe, model={"integrator": {"pair_hidden_dim": 9}}),
            start=start,
        )
