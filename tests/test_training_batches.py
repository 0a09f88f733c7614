"""Batches: nothing left out, reproducible, and turned without being bent."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from spring_molecules import ATOM_ENERGY, spring_frames
from toy_models import toy_model

from mlmd_calc.errors import InputError
from mlmd_calc.potential import Potential, Structure
from mlmd_calc.training.mdet.atomic_energies import fit_atomic_energies, refit_atomic_energies
from mlmd_calc.training.mdet.batches import StructureTable, TrainingBatches, augment

WATER = spring_frames("water", [8, 1, 1], 23, seed=0)
METHYL = spring_frames("methyl", [6, 1, 1, 1], 10, seed=1)
FORMALDEHYDE = spring_frames("formaldehyde", [6, 8, 1, 1], 7, seed=2)
FRAMES = [WATER, METHYL, FORMALDEHYDE]


def table(size_step=1):
    return StructureTable(FRAMES, ATOM_ENERGY, size_step)


def stream(**options):
    defaults = {"pairs_per_batch": 100, "copies": 2, "seed": 0}
    return TrainingBatches(table(), **{**defaults, **options})


def take(count, **options):
    return list(itertools.islice(stream(**options), count))


def epochs(batches, count):
    numbers = iter(batches)
    return [list(itertools.islice(numbers, batches.batches_per_epoch)) for _ in range(count)]


def same(first, second):
    return all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def distances(positions):
    return torch.linalg.norm(positions[:, :, None] - positions[:, None], dim=-1)


def test_table_is_centred_padded_and_relative_to_the_atoms():
    groups = table(size_step=4).groups
    assert list(groups) == [4]
    (group,) = groups.values()
    assert len(group.energies) == len(WATER) + len(METHYL) + len(FORMALDEHYDE)
    water = slice(0, len(WATER))
    assert group.mask[water].tolist() == [[True, True, True, False]] * len(WATER)
    assert group.mask[len(WATER) :].all()
    assert not group.numbers[water, 3].any()
    assert not group.positions[water, 3].any()
    assert not group.forces[water, 3].any()
    assert group.positions.sum(1).abs().max() < 1e-12
    np.testing.assert_array_equal(group.forces[water, :3], WATER.forces)
    expected = WATER.energies - ATOM_ENERGY[8] - 2 * ATOM_ENERGY[1]
    np.testing.assert_allclose(group.energies[water], expected, atol=1e-9)


def test_without_padding_there_is_no_mask():
    assert [group.mask for group in table().groups.values()] == [None, None]
    assert list(table().groups) == [3, 4]


def test_charge_and_multiplicity_reach_the_batch():
    ion = replace(WATER, charge=1, multiplicity=2)
    batch = next(StructureTable([ion], ATOM_ENERGY).spread(3, 1000))
    assert batch.charge.tolist() == [1, 1, 1]
    assert batch.multiplicity.tolist() == [2, 2, 2]


@pytest.mark.parametrize("key", ["energies", "forces"])
def test_missing_labels_are_refused(key):
    with pytest.raises(InputError, match=rf"'water' has no {key}.*mlmd data info"):
        StructureTable([replace(WATER, **{key: None})], ATOM_ENERGY)


def test_every_epoch_visits_every_structure():
    batches = stream(copies=1)
    # More energies than structures would mean structures made up.
    everything = {e.item() for g in table().groups.values() for e in g.energies}
    for epoch in epochs(batches, 3):
        visits = [e.item() for batch in epoch for e in batch.energies]
        assert set(visits) == everything
        # Only what fills the last batch of a size comes twice.
        spare = sum(
            -len(group.energies) % batches.batch_size[size]
            for size, group in batches.table.groups.items()
        )
        assert len(visits) == len(everything) + spare
        assert spare < batches.batches_per_epoch


def test_epochs_are_in_different_orders():
    batches = stream(copies=1)
    first, second = (torch.cat([b.energies for b in epoch]) for epoch in epochs(batches, 2))
    assert first.tolist() != second.tolist()


def test_batches_hold_about_the_wanted_number_of_pairs():
    batches = stream(pairs_per_batch=90, copies=2)
    limits = {size: 90 / (2 * size**2) for size in batches.table.groups}
    for batch in itertools.islice(batches, batches.batches_per_epoch):
        size = batch.numbers.shape[1]
        assert len(batch.energies) == 2 * batches.batch_size[size]
        assert 0.5 * limits[size] <= batches.batch_size[size] <= limits[size] + 0.5


def test_a_batch_holds_at_least_one_structure():
    assert set(stream(pairs_per_batch=1).batch_size.values()) == {1}


def test_batch_is_a_function_of_seed_and_number():
    whole = take(30)
    for start in (0, 7, 29):
        for number, batch in enumerate(take(30 - start, start=start), start):
            assert same(batch, whole[number])
    assert not any(same(a, b) for a, b in zip(whole, take(30, seed=1), strict=True))


def test_processes_share_the_stream():
    whole = take(24)
    for rank in range(3):
        assert all(map(same, take(8, rank=rank, world_size=3), whole[rank::3]))
        # After two steps of three processes, six batches are used up.
        later = take(6, rank=rank, world_size=3, start=2)
        assert all(map(same, later, whole[6 + rank :: 3]))


def test_copies_are_turned_and_reflected_but_not_bent():
    batch = table().batch(4, np.arange(10))
    turned = augment(batch, 40, torch.Generator().manual_seed(0))
    copies = [tensor.unflatten(0, (10, 40)) for tensor in (turned.positions, turned.forces)]
    positions, forces = (tensor.transpose(0, 1) for tensor in copies)
    handedness = []
    for x, f in zip(positions, forces, strict=True):
        torch.testing.assert_close(distances(x), distances(batch.positions))
        # The scalar products of forces and positions say that both were turned alike.
        torch.testing.assert_close(
            torch.einsum("bic,bjc->bij", f, x),
            torch.einsum("bic,bjc->bij", batch.forces, batch.positions),
        )
        edges = (m[:, 1:] - m[:, :1] for m in (x, batch.positions))
        now, before = (torch.linalg.det(edge) for edge in edges)
        torch.testing.assert_close(now.abs(), before.abs())
        handedness.append(now.sign() * before.sign())
    reflected = (torch.stack(handedness) < 0).double().mean().item()
    assert reflected == pytest.approx(0.5, abs=0.1)
    assert len({tuple(x.flatten().tolist()) for x in positions.flatten(0, 1)}) == 400
    torch.testing.assert_close(turned.energies, batch.energies.repeat_interleave(40))
    torch.testing.assert_close(turned.numbers, batch.numbers.repeat_interleave(40, 0))


def test_padding_stays_padding_when_copied():
    batch = augment(table(size_step=4).batch(4, np.arange(3)), 2, torch.Generator().manual_seed(0))
    assert not batch.mask[:, 3].any()
    assert not batch.positions[:, 3].any()
    assert not batch.forces[:, 3].any()


def test_spread_takes_about_the_count_in_small_batches():
    batches = list(table().spread(20, pairs_per_batch=40))
    assert 18 <= sum(len(batch.energies) for batch in batches) <= 22
    assert all(len(b.energies) * b.numbers.shape[1] ** 2 <= 40 for b in batches)
    everything = torch.cat([batch.energies for batch in table().spread(10**6, 100)])
    assert sorted(everything.tolist()) == sorted(
        e for group in table().groups.values() for e in group.energies.tolist()
    )


def test_atomic_energies_are_found_from_rigid_molecules():
    rigid = [
        spring_frames(name, numbers, 2, scatter=0.0)
        for name, numbers in (("a", [8, 1, 1]), ("b", [6, 8]), ("c", [6, 1, 1, 1, 1]))
    ]
    assert fit_atomic_energies(rigid) == pytest.approx(ATOM_ENERGY)


def test_atomic_energies_of_one_molecule_add_up_to_its_energy():
    energies = fit_atomic_energies([WATER])
    assert energies[8] + 2 * energies[1] == pytest.approx(WATER.energies.mean())


def test_atomic_energies_follow_the_scale_of_new_labels():
    """What is left between labels and model has no mean, whatever the labels are relative to."""
    start = replace(toy_model(elements=(1, 6, 8)), atomic_energies={1: 1.0, 6: 2.0, 8: 3.0})
    shifted = refit_atomic_energies(start, [WATER])
    potential = Potential(replace(start, atomic_energies=shifted), rotation="none", forces="direct")
    structures = [Structure(WATER.numbers, x) for x in WATER.positions]
    predicted = [result.energy for result in potential.evaluate(structures, ["energy"])]
    spread = WATER.energies.std()
    assert np.mean(predicted) == pytest.approx(WATER.energies.mean(), abs=0.5 * spread)
    # Oxygen and hydrogen moved by hundreds of eV; carbon, which the data lack, did not.
    assert shifted[8] < -100
    assert shifted[6] == 2.0


def test_atomic_energies_start_at_nothing_for_models_without():
    start = toy_model()
    assert set(refit_atomic_energies(start, [METHYL])) == {1, 6}


def test_unknown_elements_are_refused_in_fine_tuning():
    with pytest.raises(InputError, match="does not know"):
        refit_atomic_energies(toy_model(elements=(1, 6)), [WATER])
