"""Accuracy: errors are those of the definition, in the right units."""

from dataclasses import replace

import numpy as np
import pytest
from spring_molecules import spring_frames
from toy_models import SMALL, toy_model

from mlmd_calc.analysis.accuracy import (
    molecule_errors,
    orientation_errors,
    spread_index,
    structures_of,
    summarise_errors,
)
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.rotations import icosahedral_rotations
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


def measured(potential, molecules, most=None):
    return summarise_errors([molecule_errors(potential, m, most) for m in molecules])


def test_a_potential_reproduces_itself(potential):
    accuracy = measured(potential, [labelled_by(potential, m) for m in (WATER, METHANOL)])
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
    accuracy = measured(potential, wrong)
    assert accuracy.forces_mae == pytest.approx(np.abs(components).mean())
    assert accuracy.forces_rmse == pytest.approx(np.sqrt((components**2).mean()))
    counts = len(WATER), len(METHANOL)
    assert accuracy.energy_mae == pytest.approx(np.average([200.0, 500.0], weights=counts))
    # A constant per molecule does not matter to dynamics.
    assert accuracy.energy_mae_relative == pytest.approx(0.0, abs=1e-6)


def test_sets_of_molecules_are_pooled(potential):
    errors = [molecule_errors(potential, m) for m in (WATER, METHANOL)]
    weights = [e.forces.size for e in errors]
    alone = [summarise_errors([e]).forces_mae for e in errors]
    together = summarise_errors(errors).forces_mae
    assert together == pytest.approx(np.average(alone, weights=weights))


def test_only_some_frames_are_measured_if_asked(potential):
    some = measured(potential, [WATER, METHANOL], 3)
    chosen = [m.select(spread_index(len(m), 3)) for m in (WATER, METHANOL)]
    assert some == measured(potential, chosen)
    assert some.structures == 6


def test_spread_keeps_the_ends_and_repeats_nothing():
    assert spread_index(9, 3).tolist() == [0, 4, 8]
    assert spread_index(3, 10).tolist() == [0, 1, 2]
    assert spread_index(3, None).tolist() == [0, 1, 2]
    assert len(set(spread_index(100, 37).tolist())) == 37


def test_energies_are_optional(potential):
    accuracy = measured(potential, [replace(WATER, energies=None)])
    assert accuracy.energy_mae is None
    assert accuracy.energy_mae_relative is None
    forces_only = Potential(
        toy_model(replace(SMALL, target_heads=("forces",))), rotation="none", forces="direct"
    )
    assert measured(forces_only, [WATER]).energy_mae is None


def test_nothing_to_compare_with_is_refused(potential):
    with pytest.raises(InputError, match="'water' has no forces"):
        measured(potential, [replace(WATER, forces=None)])
    elsewhere = {"left_out": "REF_forces (--forces-key)"}
    with pytest.raises(InputError, match=r"its file has REF_forces \(--forces-key\)"):
        measured(potential, [replace(WATER, forces=None, metadata=elsewhere)])
    with pytest.raises(InputError, match="no structure"):
        measured(potential, [])


def test_charge_and_multiplicity_reach_the_potential():
    (structure,) = structures_of(replace(WATER, charge=1, multiplicity=2), 1)
    assert (structure.charge, structure.multiplicity) == (1, 2)


def test_errors_of_orientation_are_what_rotations_change(potential):
    structures = structures_of(WATER, 2)
    lengths = orientation_errors(potential, structures)
    assert lengths.shape == (2 * 60 * 3,)
    results = [
        potential.evaluate([replace(s, positions=s.positions @ r) for r in icosahedral_rotations()])
        for s in structures
    ]
    turns = np.swapaxes(icosahedral_rotations(), 1, 2)
    back = np.array([[result.forces for result in one] for one in results]) @ turns
    expected = np.linalg.norm(back - back.mean(axis=1, keepdims=True), axis=-1)
    assert lengths == pytest.approx(expected.ravel(), rel=1e-6, abs=1e-9)
    # The mean over a group of rotations does not depend on the first of them.
    averaged = Potential(potential.model, rotation="average", n_rotations=60, forces="direct")
    assert orientation_errors(averaged, structures).mean() < 1e-6 * lengths.mean()
    partly = Potential(potential.model, rotation="average", n_rotations=12, forces="direct")
    assert orientation_errors(partly, structures).mean() < 0.5 * lengths.mean()


def test_errors_of_orientation_do_not_depend_on_the_place(potential):
    here = structures_of(WATER, 1)
    there = [replace(s, positions=s.positions + 50.0) for s in here]
    assert orientation_errors(potential, there) == pytest.approx(
        orientation_errors(potential, here), rel=1e-6
    )
