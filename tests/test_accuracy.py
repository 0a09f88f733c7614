"""Accuracy: errors are those of the definition, in the right units."""

from dataclasses import replace

import numpy as np
import pytest
from spring_molecules import spring_frames
from toy_models import SMALL, toy_model

from mlmd_calc.analysis.accuracy import (
    equivariance_error,
    measure_accuracy,
    molecule_errors,
    orientation_errors,
    spread_index,
    structures_of,
    summarise_errors,
)
from mlmd_calc.errors import InputError
from mlmd_calc.potential import Potential

WATER = spring_frames("water", [8, 1, 1], 9)
METHANOL = spring_frames("methanol", [6, 8, 1, 1, 1, 1], 4, seed=1)


@pytest.fixture(scope="module")
def potential():
    return Potential(toy_model(replace(SMALL, extensive=True)), rotation="none", forces="direct")


def labelled_by(potential, molecule):
    """The molecule with the potential's own answers as labels."""
    results = potential.evaluate(structures_of(molecule))
    return replace(
        molecule,
        forces=np.array([result.forces for result in results]),
        energies=np.array([result.energy for result in results]),
    )


def test_a_potential_reproduces_itself(potential):
    accuracy = measure_accuracy(potential, [labelled_by(potential, m) for m in (WATER, METHANOL)])
    assert accuracy.structures == len(WATER) + len(METHANOL)
    for error in (accuracy.forces_mae, accuracy.forces_rmse, accuracy.energy_mae):
        assert error == pytest.approx(0.0, abs=1e-9)


def test_errors_are_per_component_and_per_atom_in_mev(potential):
    labels = [labelled_by(potential, m) for m in (WATER, METHANOL)]
    rng = np.random.default_rng(0)
    noise = [0.1 * rng.normal(size=m.forces.shape) for m in labels]
    wrong = [
        replace(m, forces=m.forces + f, energies=m.energies - shift * len(m.numbers))
        for m, f, shift in zip(labels, noise, (0.2, 0.5), strict=True)
    ]
    components = 1000 * np.concatenate([f.ravel() for f in noise])
    accuracy = measure_accuracy(potential, wrong)
    assert accuracy.forces_mae == pytest.approx(np.abs(components).mean())
    assert accuracy.forces_rmse == pytest.approx(np.sqrt((components**2).mean()))
    counts = len(WATER), len(METHANOL)
    assert accuracy.energy_mae == pytest.approx(np.average([200.0, 500.0], weights=counts))
    # A constant per molecule does not matter to dynamics.
    assert accuracy.energy_mae_relative == pytest.approx(0.0, abs=1e-6)


def test_sets_of_molecules_are_pooled(potential):
    errors = [molecule_errors(potential, m) for m in (WATER, METHANOL)]
    together = summarise_errors(errors)
    weights = [e.forces.size for e in errors]
    alone = [summarise_errors([e]).forces_mae for e in errors]
    assert together.forces_mae == pytest.approx(np.average(alone, weights=weights))
    assert together == measure_accuracy(potential, [WATER, METHANOL])


def test_only_some_frames_are_measured_if_asked(potential):
    some = measure_accuracy(potential, [WATER, METHANOL], most=3)
    chosen = [m.select(spread_index(len(m), 3)) for m in (WATER, METHANOL)]
    assert some == measure_accuracy(potential, chosen)
    assert some.structures == 6


def test_spread_keeps_the_ends_and_repeats_nothing():
    assert spread_index(9, 3).tolist() == [0, 4, 8]
    assert spread_index(3, 10).tolist() == [0, 1, 2]
    assert spread_index(3, None).tolist() == [0, 1, 2]
    assert len(set(spread_index(100, 37).tolist())) == 37


def test_energies_are_optional(potential):
    accuracy = measure_accuracy(potential, [replace(WATER, energies=None)])
    assert accuracy.energy_mae is None
    assert accuracy.energy_mae_relative is None
    forces_only = Potential(
        toy_model(replace(SMALL, target_heads=("forces",))), rotation="none", forces="direct"
    )
    assert measure_accuracy(forces_only, [WATER]).energy_mae is None


def test_nothing_to_compare_with_is_refused(potential):
    with pytest.raises(InputError, match="'water' has no forces"):
        measure_accuracy(potential, [replace(WATER, forces=None)])
    with pytest.raises(InputError, match="no structure"):
        measure_accuracy(potential, [])


def test_charge_and_multiplicity_reach_the_potential():
    (structure,) = structures_of(replace(WATER, charge=1, multiplicity=2), 1)
    assert (structure.charge, structure.multiplicity) == (1, 2)


def test_equivariance_error_is_what_rotations_change(potential):
    structures = structures_of(WATER, 2)
    error = equivariance_error(potential, structures)
    lengths = [orientation_errors(potential, structure) for structure in structures]
    assert error == pytest.approx(1000 * np.mean(lengths))
    assert lengths[0].shape == (60, 3)
    # The mean over a group of rotations does not depend on the first of them.
    averaged = Potential(potential.model, rotation="average", n_rotations=60, forces="direct")
    assert equivariance_error(averaged, structures) < 1e-6 * error
    partly = Potential(potential.model, rotation="average", n_rotations=12, forces="direct")
    assert equivariance_error(partly, structures) < 0.5 * error


def test_equivariance_error_does_not_depend_on_the_place(potential):
    here = structures_of(WATER, 1)
    there = [replace(s, positions=s.positions + 50.0) for s in here]
    assert equivariance_error(potential, there) == pytest.approx(
        equivariance_error(potential, here), rel=1e-6
    )
