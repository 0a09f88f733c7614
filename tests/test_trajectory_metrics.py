"""Errors of predicted trajectories, their baselines, and ATOM as a propagator."""

import json
from dataclasses import replace

import ase.data
import numpy as np
import pytest
import torch
import typer
from harmonic_trajectories import exact_propagator, harmonic_trajectory, springs
from toy_models import SMALL, random_network
from typer.testing import CliRunner

from mlmd_calc.analysis.jump_baselines import Ballistic, MeanStructure, Persistence
from mlmd_calc.analysis.jumps import (
    energy_errors,
    jumps_of,
    measure_jumps,
    rotation_defect,
)
from mlmd_calc.cli import evaluate
from mlmd_calc.data import write_trajectory
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.geometry.rotations import random_rotations
from mlmd_calc.geometry.superposition import superpose
from mlmd_calc.models.atom import ATOM, ATOMConfig, ATOMIntegrator, IntegratorConfig
from mlmd_calc.potential import Evaluation
from mlmd_calc.propagation import FunctionForces, Propagator, State
from mlmd_calc.propagation.atom import ATOMPropagator
from mlmd_calc.propagation.load import load_propagator
from mlmd_calc.propagation.state import Frames
from mlmd_calc.training.atom.recipe import ATOMRecipe
from mlmd_calc.zoo import load_atom, save_model

METHYL = harmonic_trajectory("methyl", [6, 1, 1, 1])
TIMES = [2.0, 8.0, 12.0]
SHIFT = np.array([100.0, -50.0, 3.0])
FORCES = FunctionForces(springs(4).energy_and_forces)


class Shifted(Propagator):
    """The exact motion, wrong by fixed displacements of every atom."""

    def __init__(self, positions, velocities):
        self.positions = np.array(positions)
        self.velocities = np.array(velocities)

    def propagate(self, states, times_fs, generator):
        exact = exact_propagator(4).propagate(states, times_fs, generator)
        return [
            Frames(f.times, f.positions + self.positions, f.velocities + self.velocities)
            for f in exact
        ]


def test_exact_motion_has_no_error():
    errors = measure_jumps(exact_propagator(4), jumps_of(METHYL, TIMES), TIMES)
    for quantity in ("position", "velocity"):
        assert errors.relative(quantity).max() < 1e-10
    assert errors.s2t < 1e-20


def test_errors_are_relative_to_the_change_and_kept_by_element():
    shift = np.array([[0.3, 0, 0], [0, 0.1, 0], [0, 0, 0.1], [0.1, 0, 0]])
    jumps = jumps_of(METHYL, TIMES)
    errors = measure_jumps(Shifted(shift, 0.01 * shift), jumps, TIMES)
    assert errors.elements == [1, 6]
    assert errors.coordinates.sum() == 12 * len(jumps)
    # Mean square per coordinate, at all times the same.
    assert errors.s2s == pytest.approx((0.3**2 + 3 * 0.1**2) / 12)
    assert errors.s2t == pytest.approx(errors.s2s)
    change = np.stack([j.positions - j.state.positions for j in jumps])
    for element, atoms, square in (
        (6, [0], 0.09),
        (1, [1, 2, 3], 0.01),
        (None, [0, 1, 2, 3], 0.03),
    ):
        rms = np.sqrt(np.square(change[:, :, atoms]).sum(-1).mean((0, 2)))
        np.testing.assert_allclose(errors.relative("position", element), np.sqrt(square) / rms)


def test_s2s_is_the_last_time_and_s2t_the_mean_over_times():
    jumps = jumps_of(METHYL, TIMES)
    errors = measure_jumps(Persistence(), jumps, TIMES)
    squares = np.stack([(j.positions - j.state.positions) ** 2 for j in jumps]).mean((0, 2, 3))
    assert errors.s2s == pytest.approx(squares[-1])
    assert errors.s2t == pytest.approx(squares.mean())
    assert errors.s2t != pytest.approx(errors.s2s, rel=0.01)


def test_sums_of_several_molecules_add_up():
    water = harmonic_trajectory("water", [8, 1, 1], seed=1)
    parts = [measure_jumps(Ballistic(), jumps_of(m, TIMES), TIMES) for m in (METHYL, water)]
    total = parts[0] + parts[1]
    assert total.elements == [1, 6, 8]
    np.testing.assert_allclose(total.relative("position", 8), parts[1].relative("position", 8))
    with pytest.raises(InputError, match="do not add up"):
        _ = parts[0] + measure_jumps(Ballistic(), jumps_of(water, [4.0]), [4.0])


def test_baselines_are_what_they_say():
    jumps = jumps_of(METHYL, TIMES)
    persistence, ballistic = (measure_jumps(p, jumps, TIMES) for p in (Persistence(), Ballistic()))
    for errors, quantity in (
        (persistence, "position"),
        (persistence, "velocity"),
        (ballistic, "velocity"),
    ):
        np.testing.assert_allclose(errors.relative(quantity), 1.0)
    state = jumps[0].state
    (frames,) = Ballistic().propagate([state], [3.0], torch.Generator())
    np.testing.assert_allclose(frames.positions[0], state.positions + 3.0 * state.velocities)


def test_mean_structure_follows_the_orientation_of_the_state():
    rotation = random_rotations(1, torch.Generator().manual_seed(3))[0].numpy()
    shape = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    turned = shape @ rotation + 4.0
    np.testing.assert_allclose(superpose(shape[None], turned)[0], turned, atol=1e-12)
    # The mirror image cannot be reached.
    assert np.abs(superpose(shape[None], turned * [1, 1, -1])[0] - turned * [1, 1, -1]).max() > 0.1
    frames = replace(METHYL, positions=np.stack([shape, turned] * 40))
    state = State(turned @ rotation, np.ones((4, 3)), METHYL.numbers, np.ones(4))
    (found,) = MeanStructure(frames).propagate([state], [2.0], torch.Generator())
    np.testing.assert_allclose(found.positions[0], state.positions, atol=1e-10)
    assert not found.velocities.any()
    other = State(np.zeros((1, 3)), np.zeros((1, 3)), [1], [1.0])
    with pytest.raises(InputError, match="not one of the molecule 'methyl'"):
        MeanStructure(frames).propagate([other], [2.0], torch.Generator())


def test_times_asked_for_one_by_one_give_the_same_errors():
    jumps = jumps_of(METHYL, TIMES, 5)
    whole = measure_jumps(exact_propagator(4), jumps, TIMES)
    single = measure_jumps(exact_propagator(4), jumps, TIMES, times_per_call=1)
    np.testing.assert_allclose(single.position_changes, whole.position_changes)
    np.testing.assert_allclose(single.position_errors, whole.position_errors, atol=1e-20)


def test_rotation_defect_is_that_of_a_preferred_direction():
    shift = np.array([[0.1, 0.0, 0.0]] * 4)
    jumps = jumps_of(METHYL, TIMES, 3)
    assert rotation_defect(Ballistic(), jumps, TIMES).max() < 1e-10
    defect = rotation_defect(Shifted(shift, shift), jumps, TIMES)
    change = np.stack([j.positions - j.state.positions for j in jumps])
    rms = np.sqrt(np.square(change).sum(-1).mean((0, 2)))
    np.testing.assert_allclose(defect, 0.1 / rms, rtol=1e-6)


def test_energy_changes_are_judged_by_the_potential():
    jumps = jumps_of(METHYL, TIMES, 4)
    assert energy_errors(exact_propagator(4), FORCES, jumps, TIMES).max() < 1e-6
    state = jumps[0].state
    moved = energy_errors(Ballistic(), FORCES, jumps[:1], [2.0])[0]
    potential = springs(4)
    before, after = (
        potential.energy_and_forces(x)[0]
        for x in (state.positions, state.positions + 2.0 * state.velocities)
    )
    assert moved == pytest.approx(1000 * abs(after - before) / 4)


def test_energies_of_ions_are_those_of_their_charge():
    class Charge:
        def evaluate(self, structures, properties):
            return [Evaluation(float(structure.charge), None) for structure in structures]

    jumps = jumps_of(replace(METHYL, charge=1, multiplicity=1), TIMES, 2)
    assert energy_errors(Ballistic(), Charge(), jumps, TIMES).max() < 1e-9


@pytest.mark.parametrize(
    ("molecule", "times", "message"),
    [
        (METHYL, [3.0], "2 fs apart, of which 3 fs is not a multiple"),
        (METHYL, [80.0], "no uninterrupted run of more than 80 fs"),
        (replace(METHYL, velocities=None), [2.0], "has no velocities"),
    ],
)
def test_jumps_that_cannot_be_taken_are_refused(molecule, times, message):
    with pytest.raises(InputError, match=message):
        jumps_of(molecule, times)


@pytest.mark.parametrize("time", [0.0, -2.0, np.nan, np.inf])
def test_jumps_take_positive_times(time):
    with pytest.raises(ConfigError, match="is impossible; give positive times"):
        jumps_of(METHYL, [2.0, time])


def test_jumps_are_spread_and_end_within_their_run():
    jumps = jumps_of(METHYL, TIMES, 6)
    assert len(jumps) == 6
    # 40 frames less the first and the last 6 of both segments.
    assert len(jumps_of(METHYL, TIMES)) == 2 * 33
    exact = exact_propagator(4)
    for jump in jumps:
        (frames,) = exact.propagate([jump.state], TIMES, torch.Generator())
        np.testing.assert_allclose(frames.positions, jump.positions, atol=1e-10)


def network(seed=0, **options):
    """Integrator with random weights, far from ballistic."""
    config = IntegratorConfig(lifting_dim=32, num_layers=1, num_heads=2, **options)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        built = ATOMIntegrator(config)
        for parameter in built.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return built.eval()


@pytest.fixture
def atom_file(tmp_path):
    """Model file of an integrator that takes accelerations."""
    path = tmp_path / "atom.safetensors"
    recipe = ATOMRecipe(held_out_molecules=("methyl",), held_out_fraction=0.5)
    card = {"name": "jumper", "elements": [1, 6, 8], "recipe": recipe.to_dict()}
    save_model(path, network(accelerations=True), {}, card)
    return path


def water(**options):
    numbers = [8, 1, 1]
    rng = np.random.default_rng(5)
    return State(
        rng.normal(size=(3, 3)),
        0.01 * rng.normal(size=(3, 3)),
        numbers,
        ase.data.atomic_masses[numbers],
        **options,
    )


def methyl_state():
    return jumps_of(METHYL, TIMES, 1)[0].state


class AnyForces:
    """The springs, for molecules of any size; remembers where it was asked."""

    def __init__(self):
        self.seen = []

    def evaluate(self, structures, properties=("energy", "forces")):
        self.seen += [s.positions for s in structures]
        return [
            FunctionForces(springs(len(s.numbers)).energy_and_forces).evaluate([s])[0]
            for s in structures
        ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_propagator_answers_for_mixed_molecules_as_for_each(atom_file, dtype):
    forces = AnyForces()
    propagator = load_propagator(atom_file, device="cpu", dtype=dtype, potential=forces)
    states = [water(), methyl_state()]
    together = propagator.propagate(states, TIMES, torch.Generator())
    assert len(forces.seen) == 2
    for state, found in zip(states, together, strict=True):
        (alone,) = propagator.propagate([state], TIMES, torch.Generator())
        tolerance = 1e-4 if dtype == "float32" else 1e-10
        np.testing.assert_allclose(found.positions, alone.positions, rtol=tolerance)
        np.testing.assert_allclose(found.velocities, alone.velocities, rtol=tolerance)
        assert found.positions.dtype == np.float64
        assert np.abs(found.velocities - state.velocities).max() > 1e-4


def test_accelerations_are_those_of_the_potential(atom_file):
    model = load_atom(atom_file, dtype="float64")
    state = methyl_state()
    (found,) = ATOMPropagator(model, potential=FORCES).propagate([state], [4.0], torch.Generator())
    trajectory = jumps_of(METHYL, TIMES, 1)
    forces = springs(4).energy_and_forces(trajectory[0].state.positions)[1]
    from mlmd_calc import units

    x, v = (torch.from_numpy(np.array(a))[None] for a in (state.positions, state.velocities))
    a = torch.from_numpy(forces / state.masses[:, None] * units.FS**2)[None]
    z = torch.from_numpy(np.array(state.numbers))[None]
    with torch.no_grad():
        out = model.network.propagate(x, v, z, torch.tensor([[4.0]]).double(), accelerations=a)
    np.testing.assert_allclose(found.positions, out["pos"][0].numpy(), atol=1e-9)


def test_random_orientations_change_rounding_only(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_model(path, network(), {}, {"name": "plain", "elements": [1, 6]})
    still = load_propagator(path, device="cpu", dtype="float64")
    turned = load_propagator(path, device="cpu", dtype="float64", rotation="random")
    assert (still.stochastic, turned.stochastic) == (False, True)

    def positions(propagator, seed):
        generator = torch.Generator().manual_seed(seed)
        return propagator.propagate([methyl_state()], [4.0], generator)[0].positions

    np.testing.assert_array_equal(positions(turned, 0), positions(turned, 0))
    assert (positions(turned, 0) != positions(turned, 1)).any()
    np.testing.assert_allclose(positions(turned, 0), positions(still, 0), atol=1e-9)


def test_translation_moves_the_answer(atom_file):
    propagator = load_propagator(atom_file, device="cpu", dtype="float64", potential=AnyForces())
    state = methyl_state()
    moved = replace(state, positions=state.positions + SHIFT)
    first, second = propagator.propagate([state, moved], [4.0], torch.Generator())
    np.testing.assert_allclose(second.positions - SHIFT, first.positions, atol=1e-9)


def test_states_the_model_does_not_know_are_refused(atom_file):
    propagator = load_propagator(atom_file, device="cpu", potential=AnyForces())
    generator = torch.Generator()
    with pytest.raises(InputError, match=r"charge=1 and multiplicity=2.*neutral"):
        propagator.propagate([water(charge=1, multiplicity=2)], [2.0], generator)
    nitrogen = State(np.eye(2, 3), np.zeros((2, 3)), [7, 7], [14.0, 14.0])
    with pytest.raises(InputError, match="does not know N; it was trained on H, C, O"):
        propagator.propagate([nitrogen], [2.0], generator)
    with pytest.raises(ConfigError, match="a jump of 40 fs is not possible"):
        propagator.propagate([water()], [40.0], generator)


def test_options_that_do_not_fit_are_refused(atom_file, tmp_path):
    with pytest.raises(ConfigError, match="'jumper' takes accelerations; give the potential"):
        load_propagator(atom_file)
    path = tmp_path / "plain.safetensors"
    save_model(path, network(), {}, {"name": "plain"})
    with pytest.raises(ConfigError, match="'plain' takes no accelerations"):
        load_propagator(path, potential=FORCES)
    with pytest.raises(ConfigError, match="rotation='sometimes'; choose one of none, random"):
        load_propagator(path, rotation="sometimes")
    with pytest.raises(ConfigError, match="dtype='mixed'; choose one of float32, float64"):
        load_propagator(path, dtype="mixed")
    save_model(path, ATOM(ATOMConfig(lifting_dim=16, num_layers=1, num_heads=2)), {}, {})
    with pytest.raises(ConfigError, match="published operator"):
        load_propagator(path)


APP = typer.Typer()
APP.add_typer(evaluate.app, name="evaluate")
APP.command("other")(lambda: None)


def invoke(*arguments):
    return CliRunner().invoke(APP, [str(a) for a in arguments], catch_exceptions=False)


def test_evaluate_prints_the_errors_beside_the_baselines(atom_file, tmp_path):
    # Springs of no length let atoms pass through each other.
    potential = tmp_path / "toy.safetensors"
    card = {"name": "toy", "elements": [1, 6, 8], "closest_contact": 1e-6, "largest_gap_A": 1e9}
    save_model(potential, random_network(SMALL), {}, card)
    (tmp_path / "data").mkdir()
    write_trajectory(tmp_path / "data" / "methyl.npz", replace(METHYL, multiplicity=2))
    write_trajectory(
        tmp_path / "data" / "water.npz", harmonic_trajectory("water", [8, 1, 1], seed=1)
    )
    arguments = (
        "evaluate",
        "jumps",
        tmp_path / "data",
        "--model",
        atom_file,
        "--potential",
        potential,
    )
    arguments += ("--frames", 3, "--time", 8, "--time", 2, "--verlet", 2, "--held-out", "frames")
    result = invoke(*arguments, "--plots", tmp_path / "plots", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["times_fs"] == [2.0, 8.0]
    assert set(found["errors"]) == {"water", "all"}
    names = {"model", "persistence", "ballistic", "mean structure", "velocity Verlet"}
    assert set(found["errors"]["all"]) == names
    row = found["errors"]["all"]["persistence"]
    assert row["position error, %"] == pytest.approx([100.0, 100.0])
    assert set(row["elements"]) == {"H", "O"}
    assert len(found["energy change, meV/atom"]) == 2
    assert (tmp_path / "plots" / "errors.png").stat().st_size > 1000
    table = invoke(*arguments).stdout
    assert "position error, % of RMS change" in table
    assert "velocity Verlet" in table


def test_evaluate_refuses_what_is_for_the_other_kind(atom_file, model_file, tmp_path):
    data = tmp_path / "water.npz"
    write_trajectory(data, harmonic_trajectory("water", [8, 1, 1]))
    for words in (
        ("evaluate", data, "--model", atom_file, "--forces", "direct"),
        ("evaluate", data, "--model", model_file, "--time", 2),
    ):
        refused = invoke(*words)
        assert refused.exit_code == 2
        assert f"No such option: {words[4]}" in refused.stderr
    with pytest.raises(ConfigError, match=r"'jumper', which is an ATOM propagator; use .* jumps"):
        invoke("evaluate", "forces", data, "--model", atom_file)
    with pytest.raises(ConfigError, match=r"'toy', which is an MD-ET force field; use .* forces"):
        invoke("evaluate", "jumps", data, "--model", model_file)
    assert "Missing option '--model'" in invoke("evaluate", "jumps", data).stderr
    write_trajectory(tmp_path / "methyl.npz", replace(METHYL, multiplicity=2))
    with pytest.raises(ConfigError, match=r"held_out='bonds'; .* held out \['molecules', 'frames'"):
        invoke("evaluate", tmp_path, "--model", atom_file, "--held-out", "bonds")
