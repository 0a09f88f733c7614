"""ATMOS models measured on trajectories: baselines, broken trajectories, choice of data, output."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from atmos_systems import FINE_STEPS, STRIDE_PS, small_network, write_model
from typer.testing import CliRunner

from mlmd_calc.analysis.rollouts import (
    BondLengths,
    compare_rollouts,
    group_runs,
    moving_atoms,
    roll_out,
)
from mlmd_calc.biomolecules import build_system, read_structure
from mlmd_calc.cli import app
from mlmd_calc.cli.evaluate_rollouts import RolloutOptions
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.data.biomolecules.trajectories import (
    BiomolecularTrajectory,
    write_biomolecular_trajectory,
)
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.models import MDET, MDETConfig
from mlmd_calc.models.atmos import SamplerConfig
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.sampling import TrajectoryFile
from mlmd_calc.sampling.rollouts import SamplerOptions
from mlmd_calc.sampling.trajectory_file import write_start
from mlmd_calc.training.held_out import held_out
from mlmd_calc.training.recipe import Recipe
from mlmd_calc.zoo import save_model

pytest.importorskip("rdkit", reason="rdkit is not installed")

from peptide_structures import sequence_structure, write_dipeptide

FINE_PS = STRIDE_PS / FINE_STEPS
RECIPE = {"held_out_molecules": ["valine"], "held_out_fraction": 0.25}
LOWER_IS_BETTER = ("rmwd_A", "md_pca_w2_A", "joint_pca_w2_A", "t_rmsd_error_A", "lag_rmsd_error_A")
HIGHER_IS_BETTER = ("rmsf_r", "global_rmsf_r", "pc_similarity_above_0.5_percent")


@pytest.fixture(scope="module")
def system(dipeptide):
    return build_system(dipeptide)


def walk(structure, frames, seed, scale=0.03):
    """Slow motion about a structure: a random walk drawn back to it."""
    noise = np.random.default_rng(seed).normal(0.0, scale, (frames, *structure.shape))
    noise[:, ::2] *= 2.0
    out = np.zeros_like(noise)
    for step in range(1, frames):
        out[step] = 0.9 * out[step - 1] + noise[step]
    return structure + out


def trajectory(structure, name="alanine", frames=120, seed=0, dt_ps=FINE_PS, **options):
    positions = walk(structure.positions, frames, seed)
    return BiomolecularTrajectory.from_frames(name, structure, positions, dt_ps, **options)


@pytest.fixture(scope="module")
def data(dipeptide, tmp_path_factory):
    """Two runs of a molecule, and one of another."""
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, replica) in enumerate((("alanine", 0), ("alanine", 1), ("valine", 0))):
        found = trajectory(dipeptide, name, 41, seed, replica=replica, temperature_K=300.0)
        write_biomolecular_trajectory(folder / f"{name}_r{replica}.npz", found)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    card = {"recipe": RECIPE, "temperature_K": 300.0}
    return {
        "key": write_model(folder / "key.safetensors", card=card),
        "fine": write_model(folder / "fine.safetensors", max_remaining=FINE_STEPS),
    }


def evaluate(*arguments):
    """Run the command; our own errors reach the caller."""
    texts = ["evaluate", "rollouts", *map(str, arguments)]
    return CliRunner().invoke(app, texts, catch_exceptions=False)


# ---- comparison ---------------------------------------------------------------------------------


def test_a_model_that_replays_the_reference_reaches_the_ceiling(dipeptide):
    runs = [trajectory(dipeptide, seed=seed, replica=seed) for seed in range(2)]
    references = group_runs(runs)
    true = references[0].frames(FINE_PS)
    other = walk(references[0].system.reference, 120, 9)
    generated = {"replay": {"alanine": true}, "as good": {"alanine": [other]}}
    report = compare_rollouts(references, generated, FINE_PS, seed=0)
    rows = {row["row"]: row for row in report.rows}
    assert list(rows) == ["replay", "as good", "reference", "shuffled", "static"]
    for row in ("reference", "static"):
        for column in LOWER_IS_BETTER:
            assert rows["replay"][column] < rows[row][column]
    for column in HIGHER_IS_BETTER:
        assert rows["replay"][column] >= rows["reference"][column]
    for column in ("rmwd_A", "md_pca_w2_A", "lag_rmsd_error_A"):
        assert rows["as good"][column] < 0.7 * rows["static"][column]
    # The two starts of a roll-out, here whole, are not drawn and do not count.
    whole = (240 * rows["reference"]["whole_frames_percent"] - 2 * 100) / 238
    assert rows["replay"]["whole_frames_percent"] == pytest.approx(whole)
    assert [entry["row"] for entry in report.targets] == list(rows)


def test_frames_are_taken_at_the_interval(dipeptide):
    [reference] = group_runs([trajectory(dipeptide)])
    run = reference.runs[0]
    np.testing.assert_array_equal(reference.frames(STRIDE_PS)[0], run.positions[::FINE_STEPS])
    with pytest.raises(InputError, match=r"2.5 ps apart, but those of the model 4 ps"):
        reference.frames(4.0)
    with pytest.raises(InputError, match=r"2.5 ps apart, but those of the model 1 ps"):
        reference.frames(1.0)
    with pytest.raises(InputError, match=r"has 3 frames 100 ps apart; a comparison needs 4"):
        reference.frames(100.0)


def test_runs_are_grouped(dipeptide):
    runs = [
        trajectory(dipeptide, name, 4, temperature_K=temperature, replica=replica)
        for name, temperature, replica in (
            *(("a", 300.0, 0), ("b", 300.0, 0), ("a", 300.0, 1), ("a", None, 0)),
        )
    ]
    groups = {
        reference.name: [run.replica for run in reference.runs] for reference in group_runs(runs)
    }
    assert groups == {"a, 300 K": [0, 1], "b": [0], "a, unknown temperature": [0]}


def test_atoms_that_count(system, tmp_path):
    assert moving_atoms(system).tolist() == list(range(10))
    protein = build_system(sequence_structure("A" * 20))
    assert moving_atoms(protein).tolist() == protein.alpha_carbons.tolist()
    pdb = write_dipeptide(tmp_path / "complex.pdb", complexed=True)
    bound = build_system(read_structure(pdb))
    assert len(moving_atoms(bound)) == len(bound.atoms)


def test_bonds_by_hand(system):
    frames = np.repeat(system.reference[None], 4, axis=0)
    bonds = BondLengths(system, [frames])
    ends = [atom for atom in range(10) if (system.bonds == atom).sum() == 1]
    end = ends[0]
    [bond] = [pair for pair in system.bonds if end in pair]
    neighbour = bond[bond != end][0]
    direction = system.reference[end] - system.reference[neighbour]
    length = np.linalg.norm(direction)
    for index, stretch in enumerate((0.19, 0.21, 0.6 * length)):
        frames[index + 1, end] += stretch * direction / length
    assert bonds.whole_percent(frames) == 50.0
    assert bonds.broken_at(frames) == 3
    assert bonds.broken_at(frames[:3]) is None


# ---- roll-outs ----------------------------------------------------------------------------------


def broken_network(weight=torch.nan):
    network = small_network()
    network.diffusion_module.atom_attention_decoder.linear_no_bias_out.weight.data[:] = weight
    return network


def test_a_rollout_that_ends_early_is_told(dipeptide, system):
    rollout = Rollout(broken_network(), system.features)
    made = roll_out(rollout, system.reference, 3, replicas=2, seed=0)
    assert made.frames.shape == (2, 1, 10, 3)
    assert "not finite" in made.stopped
    references = group_runs([trajectory(dipeptide)])
    report = compare_rollouts(
        references, {"sde": {"alanine": list(made.frames)}}, STRIDE_PS, seed=0
    )
    assert [row["row"] for row in report.rows] == ["reference", "shuffled", "static"]


def test_a_rollout_begins_at_the_start_and_counts(system):
    sampler = SamplerConfig(steps=1)
    rollout = Rollout(small_network(), system.features, sampler=sampler)
    fine = Rollout(small_network(max_remaining=FINE_STEPS), system.features, sampler=sampler)
    counts = []
    made = roll_out(
        rollout,
        system.reference,
        12,
        replicas=2,
        seed=0,
        interpolator=fine,
        on_frames=counts.append,
    )
    assert made.frames.shape == (2, 12 * FINE_STEPS + 1, 10, 3)
    assert made.stopped is None
    assert counts == [10, 2]
    np.testing.assert_array_equal(made.frames[:, 0], [system.reference] * 2)


# ---- the command --------------------------------------------------------------------------------


def test_json_of_all_variants(data, models, tmp_path):
    plots = tmp_path / "plots"
    result = evaluate(
        *(data, "--model", models["key"], "--interpolator", models["fine"], "--ablation"),
        *("--frames", 4, "--replicas", 2, "--seed", 3, "--steps", 1, "--redraws", 0),
        *("--plots", plots, "--json"),
    )
    found = json.loads(result.stdout)
    assert list(found) == [
        *("settings", "tables", "trajectories", "beyond_training"),
        *("refused_frames", "seconds_per_frame"),
    ]
    samplers = found["settings"]["samplers"]
    assert list(samplers) == ["sde", "sde, bi-level", "ode", "ode, bi-level"]
    assert {name for own in samplers.values() for name in own} == {"alanine", "valine"}
    noisy = [[own["gamma_0"] > 0 for own in row.values()] for row in samplers.values()]
    assert noisy == [[True] * 2] * 2 + [[False] * 2] * 2
    assert {own["steps"] for row in samplers.values() for own in row.values()} == {1}
    keys, fine = found["tables"]
    baselines = ["reference", "shuffled", "static"]
    assert (keys["interval_ps"], fine["interval_ps"]) == (STRIDE_PS, FINE_PS)
    assert [row["row"] for row in keys["rows"]] == ["sde", "ode", *baselines]
    assert [row["row"] for row in fine["rows"]] == ["sde, bi-level", "ode, bi-level", *baselines]
    for table in (keys, fine):
        assert {row["targets"] for row in table["rows"]} == {2}
        assert {entry["target"] for entry in table["targets"]} == {"alanine", "valine"}
        for entry in (*table["rows"], *table["targets"]):
            assert 0.0 <= entry["whole_frames_percent"] <= 100.0
    # Four variants, three runs, two trajectories of each.
    assert len(found["trajectories"]) == 4 * 3 * 2
    for entry in found["trajectories"]:
        assert entry["frames"] == 4 * (FINE_STEPS if "bi-level" in entry["row"] else 1)
        assert entry["stopped"] is None
    assert list(found["refused_frames"]) == list(samplers)
    assert min(found["seconds_per_frame"].values()) > 0.0
    kinds = ("pca", "ramachandran", "rmsf")
    expected = sorted(f"{name}-{kind}.png" for name in ("alanine", "valine") for kind in kinds)
    assert sorted(path.name for path in plots.iterdir()) == expected


def test_table_of_a_model_that_breaks(data, tmp_path):
    model = tmp_path / "broken.safetensors"
    # No file holds weights that are not finite; these overflow.
    save_model(model, broken_network(3e38).float(), {}, {"strides_ps": [STRIDE_PS]})
    result = evaluate(data, "--model", model, "--only", "valine", "--frames", 2)
    assert result.exit_code == 0
    assert "frames 10 ps apart" in result.stdout
    assert "stopped after 0 frames: the network has drawn" in " ".join(result.stdout.split())
    assert " s per frame" not in result.stdout


def test_one_seed_one_result(data, models):
    options = (
        data,
        "--model",
        models["key"],
        "--only",
        "valine",
        "--frames",
        1,
        "--redraws",
        0,
        "--json",
    )
    first, again, other = (
        json.loads(evaluate(*options, "--seed", seed).stdout)["tables"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_trajectories_that_exist_already(data, dipeptide, tmp_path):
    """Of another program, with its topology; the better one is nearer to the reference."""
    write_start(tmp_path / "top.pdb", dipeptide, dipeptide.positions)
    options = ("--topology", tmp_path / "top.pdb", "--json")
    for name, scale in (("good", 0.03), ("wild", 0.2)):
        file = TrajectoryFile(tmp_path / f"{name}.xtc", dipeptide, FINE_PS)
        file.append(walk(dipeptide.positions, 41, 7, scale), 0)
    found = {}
    for name in ("good", "wild"):
        result = evaluate(data, "--sampled", tmp_path / f"{name}.xtc", *options)
        [table] = json.loads(result.stdout)["tables"]
        assert table["interval_ps"] == FINE_PS
        assert [row["row"] for row in table["rows"]] == [
            *("sampled", "reference", "shuffled", "static")
        ]
        found[name] = table["rows"][0]
    assert found["good"]["rmwd_A"] < found["wild"]["rmwd_A"]
    assert found["good"]["whole_frames_percent"] > found["wild"]["whole_frames_percent"]
    ethanol = structure_from_smiles("CCO")
    write_start(tmp_path / "other.pdb", ethanol, ethanol.positions)
    other = TrajectoryFile(tmp_path / "other.xtc", ethanol, FINE_PS)
    other.append(np.repeat(ethanol.positions[None], 4, axis=0), 0)
    with pytest.raises(InputError, match="no molecular dynamics of the molecule of 'other'"):
        evaluate(data, "--sampled", other.path, "--topology", tmp_path / "other.pdb")


# ---- choice of data -----------------------------------------------------------------------------


def test_held_out_is_what_the_card_says(dipeptide):
    runs = [trajectory(dipeptide, name, 40) for name in ("alanine", "valine")]
    recipe = Recipe.from_dict(RECIPE)
    assert held_out(runs, recipe, "molecules") == runs[1:]
    [block] = held_out(runs, recipe, "frames")
    assert block.name == "alanine"
    np.testing.assert_array_equal(block.positions, runs[0].positions[30:])
    with pytest.raises(ConfigError, match=r"'blocks'; .* held out \['molecules', 'frames'\]"):
        held_out(runs, recipe, "blocks")
    with pytest.raises(ConfigError, match=r"'frames'; .* held out \['molecules'\]"):
        held_out(runs, replace(recipe, held_out_fraction=0.0), "frames")
    with pytest.raises(ConfigError, match=r"'molecules'; .* held out \['frames'\]"):
        held_out(runs, Recipe.from_dict({}), "molecules")
    for part, data in (("molecules", runs[:1]), ("frames", runs[1:])):
        names = [run.name for run in data]
        with pytest.raises(ConfigError, match=rf"no held-out {part}.*data are of \{names}"):
            held_out(data, recipe, part)


def test_held_out_molecules_from_the_command_line(data, models):
    result = evaluate(
        data,
        "--model",
        models["key"],
        "--held-out",
        "molecules",
        "--frames",
        2,
        "--redraws",
        0,
        "--json",
    )
    assert {e["target"] for e in json.loads(result.stdout)["trajectories"]} == {"valine"}


# ---- refusals -----------------------------------------------------------------------------------


def test_models_of_other_kinds(data, models, tmp_path):
    path = tmp_path / "forces.safetensors"
    config = MDETConfig(n_layers=1, embd_dim=16, num_heads=2, num_3d_kernels=8)
    save_model(path, MDET(config), {1: 0.0}, {})
    with pytest.raises(
        ConfigError, match=r"'forces', which is an MD-ET force field; use .* forces"
    ):
        evaluate(data, "--model", path)
    with pytest.raises(ConfigError, match=r"'key', which is an ATMOS propagator; use .* rollouts"):
        CliRunner().invoke(
            app,
            ["evaluate", "forces", str(data), "--model", str(models["key"])],
            catch_exceptions=False,
        )


def test_what_does_not_fit_is_refused(data, dipeptide, models, tmp_path):
    data = data / "valine_r0.npz"
    with pytest.raises(ConfigError, match="--ablation draws with both samplers"):
        RolloutOptions(sampler=SamplerOptions("ode"), ablation=True)
    with pytest.raises(ConfigError, match="no molecule is called"):
        evaluate(data, "--model", models["key"], "--only", "leucine")
    with pytest.raises(ConfigError, match="sampler='langevin'"):
        evaluate(data, "--model", models["key"], "--sampler", "langevin")
    with pytest.raises(ConfigError, match="is not an interpolator"):
        evaluate(data, "--model", models["key"], "--interpolator", models["key"])
    with pytest.raises(ConfigError, match="a stride of 5 ps"):
        evaluate(data, "--model", models["key"], "--stride", 5)
    hot = trajectory(dipeptide, temperature_K=400.0)
    write_biomolecular_trajectory(tmp_path / "hot.npz", hot)
    with pytest.raises(InputError, match="is of 400 K, but the model knows 300 K"):
        evaluate(tmp_path / "hot.npz", "--model", models["key"])
    write_biomolecular_trajectory(
        tmp_path / "odd.npz", replace(hot, dt_ps=3.0, temperature_K=300.0)
    )
    with pytest.raises(InputError, match="3 ps apart, but those of the model 10 ps"):
        evaluate(tmp_path / "odd.npz", "--model", models["key"])


# ---- the benchmark ------------------------------------------------------------------------------


def test_benchmark_of_a_long_rollout(benchmark, tmp_path):
    bench = benchmark("bench_rollout")
    if not bench.PROC.is_dir():
        pytest.skip("memory is read from /proc, which only Linux has")
    model = write_model(tmp_path / "key.safetensors")
    found = bench.measure(str(model), "sequence:A", 6, 2, 3)
    assert (found["atoms"], found["frames"], found["sampler_steps"]) == (10, 6, 3)
    for clock in ("wall", "cpu"):
        first, last = (found[clock][f"{end}_s_per_frame"] for end in ("first", "last"))
        assert min(first, last) > 0.0
        assert found[clock]["ratio"] == last / first
    assert found["resident_bytes_at_end"] > 1e8
