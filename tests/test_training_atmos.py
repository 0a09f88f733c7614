"""Training of ATMOS: which windows it sees, what it learns, writes, resumes and refuses."""

import json
from dataclasses import fields, replace
from itertools import islice

import needs_lightning  # noqa: F401
import numpy as np
import pytest
import torch
import typer
from atmos_systems import denoise_window
from peptide_structures import write_dipeptide
from toy_models import toy_model
from typer.testing import CliRunner

from mlmd_calc.biomolecules import read_structure
from mlmd_calc.cli.train import finetune_command, train_command
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.data.biomolecules.trajectories import (
    BiomolecularTrajectory,
    write_biomolecular_trajectory,
)
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.models import ATMOS
from mlmd_calc.models.atmos import Features
from mlmd_calc.models.atmos.protenix import protenix_names
from mlmd_calc.training.atmos.batches import WindowBatches, WindowTable, coordinate_scale
from mlmd_calc.training.atmos.module import ATMOSTraining
from mlmd_calc.training.atmos.protenix_start import start_from_protenix
from mlmd_calc.training.atmos.recipe import ATMOSRecipe
from mlmd_calc.training.held_out import split
from mlmd_calc.training.mdet.recipe import MDETRecipe
from mlmd_calc.training.recipe import Recipe, load_recipe
from mlmd_calc.training.resume import run_identity
from mlmd_calc.training.task import prepare
from mlmd_calc.training.train import train
from mlmd_calc.zoo import load_any_model, load_atmos, load_atom

TINY = {
    "preset": "xs",
    **{"c_s": 16, "c_z": 8, "c_token": 16, "c_atom": 16, "c_atompair": 4, "c_diffusion": 16},
    **{"c_triangle": 8, "triangle_heads": 2, "triangle_head_width": 4, "atom_heads": 2},
    **{"transition_blocks": 1, "diffusion_blocks": 1, "pair_dropout": 0.0},
    **{"distance_min": 1.0, "distance_max": 6.0},
}
RECIPE = ATMOSRecipe(
    model=TINY,
    steps=6,
    learning_rate=1e-3,
    warmup_steps=2,
    ema_decay=0.8,
    strides_ps=(2.0,),
    window=2,
    systems=2,
    subsequences=2,
    noise_samples=2,
    validate_every=3,
    validation_structures=4,
    held_out_molecules=("ethanol",),
    held_out_fraction=0.3,
)
INTERPOLATOR = replace(RECIPE, model={**TINY, "max_remaining": 3})


def swinging(name, structure, frames=30, temperature_K=300.0):
    """All atoms swing about their places, each in a direction of its own, five frames a period."""
    rng = np.random.default_rng(len(name))
    mode = rng.normal(scale=0.3, size=structure.positions.shape)
    swing = np.sin(2.0 * np.pi * np.arange(frames) / 5)[:, None, None]
    return BiomolecularTrajectory.from_frames(
        name, structure, structure.positions + swing * mode, 1.0, temperature_K=temperature_K
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    dipeptide = read_structure(write_dipeptide(tmp_path_factory.mktemp("pdb") / "ala.pdb"))
    return [
        swinging("Ace-A-Nme", dipeptide),
        swinging("propanoate", structure_from_smiles("CCC(=O)[O-]")),
        swinging("ethanol", structure_from_smiles("CCO")),
    ]


def run(folder, data, recipe=RECIPE, **options):
    return train(data, recipe, folder, accelerator="cpu", progress=False, **options)


def weights(path):
    return load_atmos(path, device="cpu").network.state_dict()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """Folder of a finished run of `RECIPE`."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder, data, card={"name": "swinging"})
    return folder


def numbered(trajectory):
    """The same trajectory with the number of the frame as all its coordinates."""
    number = np.arange(len(trajectory), dtype=np.float32)[:, None, None]
    return replace(trajectory, positions=np.broadcast_to(number, trajectory.positions.shape))


def table(trajectories, recipe=RECIPE, **changes):
    """Windows of the trajectories, with noise on what is read where ``frame_noise`` is given."""
    recipe = replace(recipe, **{"crop_tokens": 100, **changes})
    config = recipe.network_config(2.0)
    return WindowTable(trajectories, config, recipe, frame_noise=recipe.frame_noise)


def stream(trajectories, recipe=RECIPE, seed=0, start=0, **changes):
    batched = replace(recipe, systems=2, subsequences=3, size_step=16)
    return WindowBatches(table(trajectories, recipe, **changes), batched, seed=seed, start=start)


# ---- windows --------------------------------------------------------------------------------


def test_windows_are_consecutive_frames_and_what_follows(data):
    starts = set()
    for batch in islice(stream([numbered(data[0])]), 60):
        read, target = batch.frames[:, :, 0, 0], batch.targets[:, :, 0, 0]
        assert read.shape == target.shape == (3, 2)
        assert torch.equal(read, read[:, :1] + torch.tensor([0.0, 2.0]))
        assert torch.equal(target, read + 2.0)
        assert batch.lag is batch.end is batch.remaining is None
        starts |= set(read[:, 0].tolist())
    # From the first frame to the last that leaves two strides behind it.
    assert starts == set(range(30 - 4))


def test_windows_of_an_interpolator_cover_an_interval(data):
    starts = set()
    for batch in islice(stream([numbered(data[0])], INTERPOLATOR), 60):
        read, target = batch.frames[:, :, 0, 0], batch.targets[:, :, 0, 0]
        assert torch.equal(target, read[:, :1] + torch.tensor([2.0, 4.0]))
        assert torch.equal(batch.end[:, 0, 0], read[:, 0] + 6.0)
        assert batch.remaining.tolist() == [3, 3, 3]
        starts |= set(read[:, 0].tolist())
    assert starts == set(range(30 - 6))


def test_windows_at_several_strides_tell_the_lag(data):
    recipe = replace(RECIPE, strides_ps=(1.0, 3.0), model={**TINY, "tau": "lag"})
    lags = set()
    for batch in islice(stream([numbered(data[0])], recipe), 10):
        step = batch.targets[:, 0, 0, 0] - batch.frames[:, 0, 0, 0]
        assert torch.equal(batch.lag, step)
        lags |= set(step.tolist())
    assert lags == {1.0, 3.0}


def test_systems_are_padded_and_batched_by_size(data):
    batches = list(islice(stream(data), 4))
    assert stream(data).counts == {16: 3}
    for batch in batches:
        atoms = batch.features.atom_mask.sum(-1)
        # Two systems of three windows each.
        assert (atoms.view(2, 3) == atoms.view(2, 3)[:, :1]).all()
        assert atoms.max() == batch.features.n_atoms
        padding = ~batch.features.atom_mask[:, None, :, None]
        assert not (batch.frames * padding).any()
        bonds = batch.bond_mask.sum(-1)
        expected = {10: 9, 5: 4, 3: 2}
        assert bonds.tolist() == [expected[n] for n in atoms.tolist()]


def test_noise_is_on_copies_of_the_targets_and_on_what_is_read(data):
    clean = next(iter(stream(data)))
    noisy = next(iter(stream(data, frame_noise=0.1)))
    assert torch.equal(clean.targets, noisy.targets)
    assert torch.equal(clean.noisy, noisy.noisy)
    added = (noisy.frames - clean.frames)[:, :, clean.features.atom_mask[0]]
    assert added.std().item() == pytest.approx(0.1, rel=0.2)
    # Bond lengths survive random poses where there is little noise.
    low = clean.sigma.min() == clean.sigma
    denoised, target = clean.noisy[low][0], clean.targets[low.any(-1)][0]
    error = (denoised[0] - denoised[1]).norm() - (target[0] - target[1]).norm()
    assert abs(error.item()) < 6.0 * clean.sigma.min().item()


def test_large_systems_are_cropped(data):
    recipe = replace(RECIPE, strides_ps=(1.0,))
    kept = set()
    for batch in islice(stream([data[0]], recipe, crop_tokens=2), 10):
        assert batch.features.n_tokens == 2
        first, second = batch.bonds[batch.bond_mask].unbind(-1)
        owner = torch.arange(len(batch.frames))[:, None].expand_as(batch.bond_mask)
        frames = batch.targets[owner[batch.bond_mask], 0]
        rows = torch.arange(len(first))
        length = (frames[rows, first] - frames[rows, second]).norm(dim=-1)
        assert len(length)
        assert (length < 3.5).all()
        kept.add(tuple(batch.features.restype[0].tolist()))
    # The residue with one cap or the other.
    assert kept == {(20, 0), (0, 20)}
    around_ligand = table([data[1]], recipe, crop_tokens=3)
    for batch in around_ligand.spread(4, 2):
        assert batch.features.n_tokens == 3


def test_a_stream_continues_where_it_was(data):
    batches = list(islice(stream(data), 5))
    resumed = next(iter(stream(data, start=3)))
    for name in ("frames", "targets", "noisy", "sigma"):
        assert torch.equal(getattr(resumed, name), getattr(batches[3], name))
    assert not torch.equal(next(iter(stream(data, seed=1))).noisy[:1], batches[0].noisy[:1])


def test_what_is_held_out_is_never_in_the_stream(data):
    marked = []
    for trajectory in data:
        positions = trajectory.positions.copy()
        positions[21:] += 1000.0
        marked.append(replace(trajectory, positions=positions))
    train_part, validation = split([*marked, replace(marked[2], replica=1)], RECIPE)
    assert [t.name for t in train_part] == ["Ace-A-Nme", "propanoate"]
    assert [t.name for t in validation["molecules"]] == ["ethanol", "ethanol"]
    assert [len(t) for t in validation["frames"]] == [9, 9]
    assert all((t.positions > 500.0).all() for t in validation["frames"])
    for batch in islice(stream(train_part), 20):
        assert set(batch.features.atom_mask.sum(-1).tolist()) <= {10, 5}
        assert (batch.frames < 500.0).all()
        assert (batch.targets < 500.0).all()


# ---- network and losses ---------------------------------------------------------------------


def test_coordinates_set_the_unit_of_noise(data):
    positions = np.array([[[1.0, 0, 0], [3.0, 0, 0]]], dtype=np.float32) + 7.0
    pair = replace(swinging("ethane", structure_from_smiles("CC")), positions=positions)
    assert coordinate_scale([pair]) == pytest.approx(np.sqrt(1.0 / 3.0))
    fitted = prepare(data, RECIPE, None).module.network.config
    train_part, _ = split(data, RECIPE)
    assert fitted.sigma_data == pytest.approx(coordinate_scale(train_part), abs=0.005)
    assert fitted.sampler.gamma_min == pytest.approx(fitted.sigma_data / 16.0)
    assert fitted.pose_translation == pytest.approx(fitted.sigma_data / 16.0)
    given = replace(RECIPE, model={**TINY, "sigma_data": 16.0}).network_config(2.0)
    assert (given.sigma_data, given.pose_translation, given.sampler.gamma_min) == (16.0, 1.0, 1.0)


def randomised(task):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return task.module.eval()


@pytest.mark.parametrize("recipe", [RECIPE, INTERPOLATOR], ids=["keyframes", "interpolator"])
def test_last_frame_of_a_window_is_that_of_the_network(data, recipe):
    task = prepare(data, recipe, None)
    module, batch = randomised(task), next(iter(task.stream(seed=0)))
    with torch.no_grad():
        prediction, features = module.predict(batch)
        expected = denoise_window(
            module.network,
            batch.features,
            batch.frames,
            batch.noisy[:, -1],
            batch.sigma[:, -1],
            end=batch.end,
            remaining=batch.remaining,
        )
    shape = batch.targets.shape[:2]
    for found, value in zip(prediction, expected, strict=True):
        torch.testing.assert_close(found.unflatten(0, shape)[:, -1], value, rtol=1e-4, atol=1e-4)
    assert len(features.restype) == shape.numel()


@pytest.mark.parametrize("recipe", [RECIPE, INTERPOLATOR], ids=["keyframes", "interpolator"])
def test_every_parameter_is_trained(data, recipe):
    """Distributed training wants every parameter used."""
    task = prepare(data, recipe, None)
    sum(task.module.loss_terms(next(iter(task.stream(seed=0)))).values()).backward()
    assert [n for n, p in task.module.named_parameters() if p.grad is None] == []


def test_activation_checkpointing_keeps_less_and_changes_no_bit(data):
    found = {}
    model = {**TINY, "pair_dropout": 0.25, "transition_blocks": 2, "diffusion_blocks": 2}
    for wanted in (False, True):
        recipe = replace(RECIPE, model=model, activation_checkpointing=wanted)
        task = prepare(data, recipe, None)
        module, kept = randomised(task).train(), []
        batch = next(iter(task.stream(seed=0)))
        with (
            torch.random.fork_rng(),
            torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, kept=kept: kept.append(tensor.numel()) or tensor, lambda x: x
            ),
        ):
            torch.manual_seed(1)
            sum(module.loss_terms(batch).values()).backward()
        found[wanted] = sum(kept), [p.grad for p in module.parameters()]
    assert found[True][0] < 0.5 * found[False][0]
    for ours, theirs in zip(found[True][1], found[False][1], strict=True):
        assert torch.equal(ours, theirs)
    checkpointed = run_identity(data, replace(RECIPE, activation_checkpointing=True), None, 1)
    assert checkpointed == run_identity(data, RECIPE, None, 1)


def test_padding_changes_no_loss(data):
    """The noise of a padded batch is cut down to that of the system alone."""
    task = prepare(data, replace(RECIPE, noise_samples=3), None)
    module = randomised(task)
    batch = next(iter(stream([data[1], data[0]])))
    row = int((batch.features.atom_mask.sum(-1) == 5).nonzero()[0])
    alone = Features.stack([data[1].system.features])
    single = {
        name: None if getattr(batch, name) is None else getattr(batch, name)[row : row + 1]
        for name in batch._fields[1:]
    }
    for name in ("frames", "targets", "noisy"):
        single[name] = single[name][..., :5, :]
    cut = batch._replace(features=alone, **single)
    padded = Features(
        **{
            entry.name: None if value is None else value[row : row + 1]
            for entry in fields(Features)
            for value in [getattr(batch.features, entry.name)]
        }
    )
    with_padding = batch._replace(
        features=padded,
        **{n: getattr(batch, n)[row : row + 1] for n, v in single.items() if v is not None},
    )
    with torch.no_grad():
        first, second = module.loss_terms(cut), module.loss_terms(with_padding)
    for name, value in first.items():
        assert second[name].item() == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize("recipe", [RECIPE, INTERPOLATOR], ids=["keyframes", "interpolator"])
def test_one_batch_is_learnt_by_heart(data, recipe):
    task = prepare(data[2:], replace(recipe, held_out_molecules=()), None)
    batch = next(iter(task.stream(seed=0)))
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        terms = task.module.loss_terms(batch)
        losses.append([term.item() for term in terms.values()])
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert (np.array(losses[-1]) < np.array(losses[0]) / 10.0).all()


# ---- runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["atmos-mdcath", "atmos-misato"])
def test_published_settings_train_at_reduced_width(name, data, tmp_path):
    """Two steps of the recipe, with its windows, batches and losses."""
    recipe = load_recipe(name)
    assert recipe.network_config(2.0) == recipe.network_config(3.0)
    reduced = replace(
        recipe,
        model={**TINY, "sigma_data": 16.0, "sampler": recipe.model.get("sampler", {})},
        **{"steps": 2, "warmup_steps": 1, "validate_every": 2, "validation_structures": 2},
        strides_ps=(1.0,),
    )
    run(tmp_path, data[:1], reduced)
    model = load_atmos(tmp_path / "model.safetensors", device="cpu")
    assert model.network.config.max_steps == recipe.window
    assert all(
        torch.isfinite(weight).all() for weight in weights(tmp_path / "model.safetensors").values()
    )


def test_card_says_what_the_model_is_for(finished, data):
    model = load_atmos(finished / "model.safetensors")
    card = model.card
    assert isinstance(load_any_model(finished / "model.safetensors").network, ATMOS)
    assert (card.name, card.kind, card.elements) == ("swinging", "atmos", (6, 7, 8))
    assert (card.strides_ps, card.temperature_K) == ((2.0,), 300.0)
    assert "2 ps" in str(card)
    assert "300 K" in str(card)
    assert card.domain.objections(data[0].system.residues) == []
    assert card.domain.longest == 1
    assert Recipe.from_dict(card.recipe) == RECIPE
    task = prepare(data, RECIPE, None)
    task.module.network.load_state_dict(model.network.state_dict())
    expected = {}
    with torch.no_grad():
        for name, batches in task.validation.items():
            sizes = [len(batch.frames) for batch in batches]
            losses = [task.module.eval().loss_terms(batch) for batch in batches]
            for term in ("diffusion", "distogram"):
                values = [float(loss[term]) for loss in losses]
                expected[f"{name}/{term}"] = np.average(values, weights=sizes)
    assert card.validation == pytest.approx(expected, abs=1e-4)


def test_command_trains_and_fine_tunes(tmp_path, data):
    (tmp_path / "data").mkdir()
    for trajectory in data:
        write_biomolecular_trajectory(tmp_path / "data" / f"{trajectory.name}.npz", trajectory)
    app = typer.Typer()
    app.command("train")(train_command)
    app.command("finetune")(finetune_command)
    entries = {
        **{"steps": 1, "window": 2, "strides_ps": [2.0], "warmup_steps": 0},
        **{"held_out_molecules": ["ethanol"], "held_out_fraction": 0.0, "validate_every": 1},
    }
    changes = [f"--set={name}={json.dumps(value)}" for name, value in entries.items()]
    options = ["--recipe", "atmos-peptides", "--accelerator", "cpu", *changes]
    first, second = tmp_path / "first", tmp_path / "second"
    model = str(first / "model.safetensors")
    for command in (
        ["train", str(tmp_path / "data"), "--out", str(first), f"--set=model={json.dumps(TINY)}"],
        ["finetune", model, str(tmp_path / "data"), "--out", str(second)],
    ):
        result = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        assert result.exit_code == 0
        assert "3 molecules, 90 structures" in result.stderr
    tuned = load_atmos(second / "model.safetensors")
    assert tuned.network.config == load_atmos(model).network.config
    assert tuned.card.strides_ps == (2.0,)


def test_options_of_other_data_are_refused(tmp_path):
    app = typer.Typer()
    app.command()(train_command)
    words = [str(tmp_path), "--out", str(tmp_path), "--recipe", "atmos-peptides"]
    with pytest.raises(ConfigError, match=r"--frame-spacing means nothing for .* kind='atmos'"):
        CliRunner().invoke(app, [*words, "--frame-spacing", "2"], catch_exceptions=False)


def test_temperatures_that_differ_are_not_on_the_card(tmp_path, data):
    other = [data[0], replace(data[1], temperature_K=None)]
    recipe = replace(RECIPE, held_out_molecules=(), steps=1)
    assert load_atmos(run(tmp_path / "unknown", other, recipe)).card.temperature_K is None
    card = {"temperature_K": 320.0}
    path = run(tmp_path / "given", other, recipe, card=card)
    assert load_atmos(path).card.temperature_K == 320.0


class KilledError(Exception):
    pass


@pytest.mark.parametrize("recipe", [RECIPE, INTERPOLATOR], ids=["keyframes", "interpolator"])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, data, recipe):
    straight = weights(run(tmp_path / "straight", data, recipe))
    original = ATMOSTraining.training_step

    def dying(module, batch, index):
        if module.trainer.global_step == 4:
            raise KilledError
        return original(module, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(ATMOSTraining, "training_step", dying)
        with pytest.raises(KilledError):
            run(tmp_path / "resumed", data, recipe)
    assert equal(weights(run(tmp_path / "resumed", data, recipe)), straight)


def test_other_positions_are_another_run(finished, data):
    other = [replace(data[0], positions=2.0 * data[0].positions), *data[1:]]
    with pytest.raises(ConfigError, match="holds another run: data was"):
        run(finished, other)


def test_fine_tuning_starts_from_the_given_weights(finished, tmp_path, data):
    start = load_atmos(finished / "model.safetensors")
    recipe = replace(RECIPE, steps=1, learning_rate=1e-9, final_learning_rate=0.0)
    model = load_atmos(run(tmp_path / "tuned", data, recipe, start=start))
    assert model.network.config == start.network.config
    for name, value in model.network.state_dict().items():
        torch.testing.assert_close(value, start.network.state_dict()[name], atol=1e-6, rtol=0.0)
    with pytest.raises(ConfigError, match=r"max_steps=2 of the network differs from window=3"):
        run(tmp_path / "other", data, replace(recipe, window=3), start=start)


def test_an_interpolator_is_fine_tuned_from_keyframes(finished, tmp_path, data):
    start = load_atmos(finished / "model.safetensors")
    recipe = replace(INTERPOLATOR, steps=1, learning_rate=1e-9, final_learning_rate=0.0)
    model = load_atmos(run(tmp_path / "tuned", data, recipe, start=start))
    assert model.network.config == replace(start.network.config, max_remaining=3)
    for name, value in start.network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], value, atol=1e-6, rtol=0.0)


# ---- weights of Protenix ---------------------------------------------------------------------


def protenix_file(path, config):
    """Checkpoint with random weights of all shared parts, and of one that ATMOS lacks."""
    generator = torch.Generator().manual_seed(5)
    shared = protenix_names(ATMOS(config))
    state = {
        f"module.{name}": 0.1 * torch.randn(w.shape, generator=generator)
        for name, w in shared.items()
    }
    torch.save({"model": {**state, "module.confidence_head.w": torch.ones(2)}, "step": 9}, path)
    return {name: state[f"module.{name}"] for name in shared}


def test_training_starts_from_protenix(tmp_path, data):
    recipe = replace(RECIPE, model={**TINY, "msa_blocks": 1, "c_m": 4}, held_out_molecules=())
    path = tmp_path / "protenix.pt"
    weights_before = protenix_file(path, recipe.network_config(2.0))
    start, report = start_from_protenix(path, recipe, data)
    again, _ = start_from_protenix(path, recipe, data)
    assert equal(start.network.state_dict(), again.network.state_dict())
    assert report.unused == ("confidence_head.w",)
    assert start.network.config.sigma_data == pytest.approx(
        coordinate_scale(split(data, recipe)[0]), abs=0.005
    )
    for name, tensor in protenix_names(start.network).items():
        assert torch.equal(tensor, weights_before[name])
    with pytest.raises(ConfigError, match=r"recipe has kind='mdet'"):
        start_from_protenix(path, MDETRecipe(), data)
    with pytest.raises(ConfigError, match="there is no file"):
        start_from_protenix(tmp_path / "absent.pt", recipe, data)
    wider = replace(recipe, model={**recipe.model, "c_s": 32})
    with pytest.raises(ModelFileError, match="have another shape than in this network"):
        start_from_protenix(path, wider, data)


def test_the_command_that_starts_from_protenix_goes_on_where_it_was(tmp_path, data):
    app = typer.Typer()
    app.command("train")(train_command)
    protenix_file(tmp_path / "protenix.pt", RECIPE.network_config(2.0))
    write_biomolecular_trajectory(tmp_path / "propanoate.npz", data[1])
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'kind = "atmos"\nsteps = 2\nlearning_rate = 1e-9\nfinal_learning_rate = 0.0\n'
        "warmup_steps = 1\nwindow = 2\nsystems = 1\nnoise_samples = 2\nstrides_ps = [2.0]\n"
        "held_out_fraction = 0.3\nvalidate_every = 1\nvalidation_structures = 2\n[model]\n"
        + "\n".join(f"{key} = {json.dumps(value)}" for key, value in TINY.items()),
        encoding="utf-8",
    )
    line = [
        *(str(tmp_path / "propanoate.npz"), "--out", str(tmp_path / "run"), "-r", str(recipe)),
        *("--from-protenix", str(tmp_path / "protenix.pt"), "--accelerator", "cpu"),
    ]
    for _ in range(2):
        result = CliRunner().invoke(app, line, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "left out: 1 of known parts, 0 of unknown ones" in " ".join(result.output.split())
    model = load_atmos(tmp_path / "run", device="cpu")
    assert model.card.fine_tuned_from.startswith("protenix (sha256 ")
    assert model.card.licence == "Apache-2.0 (Protenix)"
    start, _ = start_from_protenix(tmp_path / "protenix.pt", load_recipe(recipe), data[1:2])
    for name, tensor in start.network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], tensor, atol=1e-6, rtol=0.0)


def test_kinds_of_models_and_data_are_not_mixed_up(finished, tmp_path, data):
    start = load_atmos(finished / "model.safetensors")
    with pytest.raises(ConfigError, match=r"'swinging' is an ATMOS propagator.*kind='mdet'"):
        prepare([], MDETRecipe(), start)
    with pytest.raises(ConfigError, match=r"'toy' is an MD-ET force field, but .*kind='atmos'"):
        run(tmp_path, data, start=toy_model())
    with pytest.raises(
        ConfigError, match=r"is an ATMOS propagator, but an ATOM propagator is needed"
    ):
        load_atom(finished / "model.safetensors")
    with pytest.raises(ConfigError, match=r"trains on MoleculeFrames, but .*Biomolecular"):
        run(tmp_path, data, MDETRecipe())


def test_data_that_do_not_fit_are_refused(data):
    with pytest.raises(ConfigError, match=r"0\.5 ps, which is not a multiple of the 1 ps between"):
        prepare(data, replace(RECIPE, strides_ps=(0.5,)), None)
    with pytest.raises(InputError, match=r"'Ace-A-Nme' has 21 frames of 1 ps, .* needs 31;"):
        prepare(data, replace(RECIPE, strides_ps=(15.0,)), None)
    with pytest.raises(ConfigError, match="held-out molecules contain N,"):
        prepare(data, replace(RECIPE, held_out_molecules=("Ace-A-Nme",)), None)
    with pytest.raises(ConfigError, match=r"names \['methane'\], which the data do not have"):
        prepare(data, replace(RECIPE, held_out_molecules=("methane",)), None)
    with pytest.raises(ConfigError, match="leaves one side of the split empty"):
        prepare(data[2:], RECIPE, None)
    with pytest.raises(ConfigError, match="holds out no frame of trajectories of at most 30"):
        prepare(data, replace(RECIPE, held_out_fraction=0.01), None)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"times": 2}, r"unknown recipe entries \['times'\]"),
        ({"loss": {"forces": 1.0}}, r"unknown loss terms \['forces'\]; known are"),
        ({"loss": {"bond": "much"}}, "loss.bond='much'; it must be a finite number"),
        ({"loss": {"bond": -1.0}}, "bond=-1.0; it must not be negative"),
        ({"loss": {"distogram": 0.0}}, "loss.distogram=0, so that a part of the network"),
        ({"window": 0}, "window=0; it must be at least 1"),
        ({"strides_ps": []}, r"strides_ps=\[\]; it must be a list of one or more positive"),
        ({"strides_ps": [0.0]}, r"strides_ps=\[0.0\]; it must be"),
        ({"strides_ps": 5.0}, "strides_ps=5.0; it must be a list"),
        ({"strides_ps": [1.0, 2.0]}, "tau='step' has a single stride"),
        ({"model": {**TINY, "max_steps": 9}}, "max_steps=9 of the network differs from window=4"),
        ({"model": {**TINY, "max_remaining": 4}}, "reads max_remaining - 1 frames; set window=3"),
        ({"model": {**TINY, "layers": 3}}, r"unknown ATMOS options \['layers'\]"),
        ({"model": {"preset": "huge"}}, "preset='huge'; choose one of xs"),
    ],
)
def test_wrong_recipes_are_refused(entries, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict({"kind": "atmos", **entries})


def test_recipes_in_the_package_make_small_networks():
    for name in ("atmos-peptides", "atmos-peptides-interpolator"):
        recipe = load_recipe(name)
        assert isinstance(recipe, ATMOSRecipe)
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        network = ATMOS(recipe.network_config(1.5))
        assert 4 * sum(p.numel() for p in network.parameters()) < 3_000_000
