"""Spread of the forces: what it is, what is done about it, and what it tells of errors."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from ase.build import molecule
from spring_molecules import spring_frames
from toy_models import SMALL, molecules, toy_model
from typer.testing import CliRunner

from mlmd_calc import MDETCalculator, Potential
from mlmd_calc.analysis.spread import SpreadsAndErrors, calibrate_spread, spreads_and_errors
from mlmd_calc.cli import app
from mlmd_calc.data import write_labels
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.potential import structure_from_ase

FORCE_HEAD = {"forces": "direct", "remove_net_force": False, "remove_net_torque": False}


@pytest.fixture(scope="module")
def model():
    return toy_model()


def structures():
    return [structure_from_ase(atoms) for atoms in molecules()]


@pytest.mark.parametrize(
    "rotation", [{"rotation": "none"}, {"rotation": "average", "n_rotations": 4}]
)
def test_spread_of_conservative_forces_is_the_difference_to_the_force_head(model, rotation):
    measured = Potential(model, forces="conservative", on_spread="measure", **rotation)
    gradients = Potential(model, forces="conservative", **rotation).evaluate(structures())
    heads = Potential(model, **FORCE_HEAD, **rotation).evaluate(structures())
    for found, gradient, head in zip(
        measured.evaluate(structures()), gradients, heads, strict=True
    ):
        difference = gradient.forces - head.forces
        np.testing.assert_allclose(found.forces, gradient.forces, atol=1e-12)
        assert found.energy == pytest.approx(gradient.energy, abs=1e-10)
        expected = np.sqrt((difference**2).mean(axis=1))
        np.testing.assert_allclose(found.forces_spread, expected, atol=1e-10)
        assert found.spread == pytest.approx(np.sqrt((difference**2).mean()))
        assert gradient.spread is None


def test_spread_is_the_same_when_calls_are_recorded(model):
    potential = Potential(model, forces="conservative", rotation="none", on_spread="measure")
    structure = structures()[1]
    spreads = [potential.evaluate([structure])[0].forces_spread for _ in range(8)]
    for spread in spreads:
        np.testing.assert_allclose(spread, spreads[0], atol=1e-10)


def test_spread_of_direct_forces_is_their_standard_deviation_over_orientations(model):
    options = {"forces": "direct", "rotation": "random", "n_rotations": 4, "seed": 3}
    potential = Potential(model, on_spread="measure", **options)
    found = potential.evaluate(structures())
    for result in found:
        np.testing.assert_allclose(
            result.forces_spread, np.sqrt((result.forces_std**2).mean(axis=1)), atol=1e-12
        )
    assert found[1].spread > 1e-3
    # Knowing the spread changes neither forces nor the stream of orientations.
    for result, same in zip(found, Potential(model, **options).evaluate(structures()), strict=True):
        assert np.array_equal(result.forces, same.forces)


def test_calculator_has_spread_where_it_is_asked_for(model):
    atoms = molecules()[1]
    atoms.calc = MDETCalculator(model, forces="conservative", rotation="none", on_spread="measure")
    atoms.get_potential_energy()
    by_atom = atoms.calc.get_property("forces_spread", atoms)
    assert by_atom.shape == (9,)
    assert atoms.calc.results["spread"] == pytest.approx(np.sqrt((by_atom**2).mean()))
    silent = MDETCalculator(model, forces="conservative", rotation="none")
    assert "spread" not in silent.implemented_properties


@pytest.mark.parametrize("action", ["warn", "raise", "average"])
def test_a_spread_within_the_limit_changes_nothing(model, action):
    options = {"forces": "direct", "rotation": "average", "n_rotations": 4}
    limited = Potential(model, max_spread=1e3, on_spread=action, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = limited.evaluate(structures())
    for result, same in zip(found, Potential(model, **options).evaluate(structures()), strict=True):
        assert np.array_equal(result.forces, same.forces)


def test_large_spread_warns_once_per_composition(model):
    potential = Potential(model, forces="conservative", rotation="none", max_spread=1e-3)
    water, ethanol = structures()[:2]
    with pytest.warns(UserWarning, match=r"C2H6O: the spread of its forces is .* more than max_sp"):
        potential.evaluate([ethanol])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential.evaluate([ethanol])
        with pytest.raises(UserWarning, match="H2O"):
            potential.evaluate([water])


def test_large_spread_raises_and_leaves_no_results(model):
    atoms = molecules()[1]
    atoms.calc = MDETCalculator(
        model, forces="conservative", rotation="none", max_spread=1e-3, on_spread="raise"
    )
    for _ in range(2):
        with pytest.raises(PredictionError, match=r"max_spread=0\.001.*largest on atom \d"):
            atoms.get_forces()
    assert not atoms.calc.results


def test_forces_that_spread_are_averaged_over_sixty_orientations(model):
    options = {"forces": "direct", "rotation": "random", "n_rotations": 2, "seed": 1}
    averaged = Potential(model, max_spread=1e-6, on_spread="average", **options)
    sixty = Potential(model, forces="direct", rotation="average", n_rotations=60)
    few = Potential(model, on_spread="measure", **options)
    chosen = structures()[:3]
    found = averaged.evaluate(chosen)
    for result, many, own in zip(found, sixty.evaluate(chosen), few.evaluate(chosen), strict=True):
        np.testing.assert_allclose(result.forces, many.forces, atol=1e-10)
        assert result.spread == own.spread
    assert averaged.state_dict() == few.state_dict()


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"on_spread": "shout"}, "on_spread='shout'; choose one of measure, warn, raise, av"),
        ({}, {"max_spread": -1.0}, "max_spread=-1.0"),
        ({}, {"max_spread": float("nan")}, "max_spread=nan"),
        ({}, {"max_spread": 0.1, "on_spread": "measure"}, "leave out max_spread"),
        ({}, {"forces": "conservative", "on_spread": "raise"}, "give max_spread in eV/Å"),
        ({}, {"forces": "conservative", "on_spread": "average"}, "conserves no energy"),
        ({}, {"forces": "direct", "max_spread": 0.1}, "give n_rotations=4 or more"),
        ({"directions": "none"}, {"forces": "direct", "max_spread": 0.1}, "sees no directions"),
        ({"energy_conserving": True}, {"max_spread": 0.1}, "which this model does not have"),
    ],
)
def test_impossible_options_are_refused(config, options, message):
    with pytest.raises(ConfigError, match=message):
        Potential(toy_model(replace(SMALL, **config)), **options)


def test_the_limit_of_the_card_belongs_to_the_recommended_forces():
    model = toy_model(
        recommended={"forces": "conservative", "rotation": "none", "max_spread": 0.125}
    )
    assert Potential(model, on_spread="raise").spread_limit.largest == 0.125
    assert Potential(model, on_spread="raise", max_spread=0.5).spread_limit.largest == 0.5
    assert Potential(model).spread_limit is None
    wrong = toy_model(recommended={"forces": "conservative", "max_spread": "large"})
    with pytest.raises(ConfigError, match="max_spread='large'"):
        Potential(wrong, on_spread="warn")
    with pytest.raises(ConfigError, match="recommends none for direct forces"):
        Potential(model, forces="direct", rotation="random", n_rotations=4, on_spread="raise")


def test_copies_keep_the_limit(model):
    calculator = MDETCalculator(model, forces="conservative", rotation="none", max_spread=0.25)
    options = calculator.todict()
    assert (options["max_spread"], options["on_spread"]) == (0.25, "warn")
    json.dumps(options)


def test_setting_of_the_paper(model):
    recommended = replace(
        model, card=replace(model.card, recommended={"forces": "conservative", "rotation": "none"})
    )
    paper = Potential(recommended, setting="paper", seed=5)
    spelt = Potential(
        recommended,
        forces="direct",
        rotation="random",
        n_rotations=1,
        dtype="float64",
        remove_net_force=True,
        remove_net_torque=True,
        seed=5,
    )
    assert paper.options == spelt.options
    ethanol = structures()[1]
    first, second = (paper.evaluate([ethanol])[0].forces for _ in range(2))
    assert np.array_equal(first, spelt.evaluate([ethanol])[0].forces)
    assert np.abs(first - second).max() > 1e-3
    for forces in (first, second):
        np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-10)
        centred = ethanol.positions - ethanol.positions.mean(axis=0)
        np.testing.assert_allclose(np.cross(centred, forces).sum(axis=0), 0.0, atol=1e-10)
    assert Potential(recommended, setting="recommended").forces == "conservative"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setting": "article"}, "setting='article'; choose one of recommended, paper"),
        ({"setting": "paper", "forces": "conservative"}, "means forces='direct'"),
        ({"setting": "paper", "n_rotations": 4}, "means n_rotations=1"),
        ({"setting": "paper", "remove_net_force": False}, "means remove_net_force=True"),
    ],
)
def test_what_contradicts_a_setting_is_refused(model, options, message):
    with pytest.raises(ConfigError, match=message):
        MDETCalculator(model, **options)


# ---- calibration -----------------------------------------------------------------------------


def samples(error_of, frames=200, atoms=5):
    """Molecules whose errors are a function of the spread."""
    rng = np.random.default_rng(0)
    found = []
    for name in ("a", "b"):
        spreads = np.exp(rng.normal(-2.0, 0.5, size=(frames, atoms)))
        found.append(SpreadsAndErrors(name, spreads, error_of(spreads, rng)))
    return found


def test_a_spread_that_is_half_the_error_is_seen_as_such():
    found = calibrate_spread(samples(lambda spreads, _: 2.0 * spreads), 0.9)
    assert found.structures == 400
    for one in (
        found.rank_correlation,
        found.rank_correlation_within,
        found.rank_correlation_atoms,
        found.worst_found,
    ):
        assert one == pytest.approx(1.0)
    assert found.error_by_spread == pytest.approx(2.0)
    for one in found.bins:
        assert one.error == pytest.approx(2.0 * one.spread)
        assert one.low < one.error < one.high
    assert [one.spread for one in found.bins] == sorted(one.spread for one in found.bins)
    of_structures = np.concatenate(
        [np.sqrt((one.spreads**2).mean(axis=1)) for one in samples(lambda s, _: s)]
    )
    assert (of_structures > found.max_spread).mean() == pytest.approx(0.1)
    assert found.error_beyond > 2e3 * found.max_spread > found.error_within


def test_a_spread_that_says_nothing_is_seen_as_such():
    found = calibrate_spread(
        samples(lambda spreads, rng: rng.uniform(0.1, 0.2, size=spreads.shape))
    )
    assert abs(found.rank_correlation) < 0.15
    assert abs(found.rank_correlation_atoms) < 0.1
    assert found.worst_found < 0.3
    assert found.error_beyond == pytest.approx(found.error_within, rel=0.1)


def test_calibration_needs_structures_and_a_share():
    few = [SpreadsAndErrors("a", np.ones((5, 3)), np.ones((5, 3)))]
    with pytest.raises(InputError, match="5 structures are too few"):
        calibrate_spread(few)
    with pytest.raises(ConfigError, match="share_kept=1"):
        calibrate_spread(few, 1.0)


def test_errors_are_those_of_the_labels(model):
    labelled = spring_frames("water", [8, 1, 1], 6)
    potential = Potential(model, forces="conservative", rotation="none", on_spread="measure")
    found = spreads_and_errors(potential, labelled)
    forces = np.array(
        [
            potential.evaluate([atoms])[0].forces
            for atoms in (
                molecule("H2O", positions=positions.astype(float))
                for positions in labelled.positions
            )
        ]
    )
    errors = np.sqrt(((forces - labelled.forces) ** 2).mean(axis=-1))
    np.testing.assert_allclose(found.errors, errors, atol=1e-6)
    assert found.spreads.shape == (6, 3)
    with pytest.raises(ConfigError, match="knows no spread"):
        spreads_and_errors(Potential(model), labelled)


def test_command_finds_the_largest_errors_of_the_default_model(tmp_path):
    """Labels are the model's own forces, but for structures on which its heads disagree."""
    potential = Potential(on_spread="measure")
    rng = np.random.default_rng(2)
    start = molecule("CH3OH").positions
    widths = np.linspace(0.0, 0.15, 40)[:, None, None]
    labelled = spring_frames("methanol", [6, 8, 1, 1, 1, 1], 40)
    positions = start + widths * rng.normal(size=(40, 6, 3))
    structures = [structure_from_ase(molecule("CH3OH", positions=one)) for one in positions]
    found = [potential.evaluate([one])[0] for one in structures]
    forces = np.array([result.forces for result in found])
    wrong = np.array([2.0 * result.spread for result in found])
    labelled = replace(
        labelled,
        numbers=structures[0].numbers,
        positions=positions,
        forces=forces + wrong[:, None, None] * np.sign(rng.normal(size=forces.shape)),
    )
    write_labels(tmp_path / "methanol.npz", labelled)
    arguments = ["validate", "spread", "mdet-small-organics", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    calibration = json.loads(done.stdout)["calibration"]
    assert calibration["rank_correlation"] == pytest.approx(1.0, abs=1e-3)
    assert calibration["error_by_spread"] == pytest.approx(2.0, rel=1e-3)
    shown = CliRunner().invoke(app, [*arguments, "--keep", "0.9"])
    assert "error / spread 2.00" in shown.stdout
    assert "keeps 90 %" in shown.stdout
