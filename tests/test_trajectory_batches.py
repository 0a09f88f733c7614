"""Samples of trajectories: within one run, log-uniform in time, turned without being bent."""

import itertools
from collections import Counter
from dataclasses import replace

import ase.data
import numpy as np
import pytest
import torch
from harmonic_trajectories import harmonic_trajectory, springs

from mlmd_calc import units
from mlmd_calc.data import MoleculeFrames, split_by_block
from mlmd_calc.data.trajectories import Trajectory
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.training.atom.batches import JumpBatches, TrajectoryTable

WATER = harmonic_trajectory("water", [8, 1, 1])
METHYL = harmonic_trajectory("methyl", [6, 1, 1, 1], seed=1)
HORIZONS = (2.0, 16.0)


def table(frames=(WATER, METHYL), horizons=HORIZONS, **options):
    return TrajectoryTable(list(frames), horizons, **options)


def stream(trajectories=None, **options):
    defaults = {"atoms_per_batch": 60, "times": 3, "seed": 0}
    return JumpBatches(trajectories or table(), **{**defaults, **options})


def take(count, **options):
    return list(itertools.islice(stream(**options), count))


def same(first, second):
    return all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def counted(segment):
    """Two equal atoms that say by their distance and relative velocity which frame it is."""
    count = np.arange(len(segment), dtype=float)
    arms = np.array([[0.5, 0, 0], [-0.5, 0, 0]])
    return MoleculeFrames(
        name="nitrogen",
        numbers=np.array([7, 7]),
        positions=count[:, None, None] * arms,
        velocities=100.0 * count[:, None, None] * arms,
        dt_fs=2.0,
        segment=np.array(segment),
    )


def frame_numbers(positions):
    return (positions[..., 0, :] - positions[..., 1, :]).norm(dim=-1).round().long()


@pytest.mark.parametrize("accelerations", [False, True])
def test_samples_stay_within_one_run_and_use_all_of_it(accelerations):
    # The label 0 comes back: that is a run of its own.
    segment = [0] * 12 + [1] * 15 + [0] * 11
    run = np.repeat([0, 1, 2], [12, 15, 11])
    trajectories = table([counted(segment)], accelerations=accelerations)
    batches = stream(trajectories, times=2, atoms_per_batch=40)
    starts = Counter()
    for batch in itertools.islice(batches, 4 * batches.batches_per_epoch):
        first, later = frame_numbers(batch.positions), frame_numbers(batch.later_positions)
        assert (later - first[:, None]).tolist() == (batch.times / 2.0).long().tolist()
        assert (run[later] == run[first][:, None]).all()
        torch.testing.assert_close(
            (batch.later_velocities[..., 0, :] - batch.later_velocities[..., 1, :]).norm(dim=-1),
            100.0 * later.double(),
        )
        starts.update(first.tolist())
    before = 1 if accelerations else 0
    expected = [
        i
        for i in range(len(run))
        if i + 8 < len(run)
        and run[i + 8] == run[i]
        and i - before >= 0
        and run[i - before] == run[i]
    ]
    assert sorted(starts) == expected


def test_samples_of_the_training_part_do_not_see_the_held_out_block():
    train, held_out = split_by_block([counted([0] * 30)], 0.4)
    seen = {
        part: {
            number
            for batch in itertools.islice(stream(table(frames)), 40)
            for number in frame_numbers(batch.later_positions).flatten().tolist()
        }
        for part, frames in (("train", train), ("held_out", held_out))
    }
    assert max(seen["train"]) == 17
    assert min(seen["held_out"]) > 18


def test_times_are_log_uniform():
    counts = Counter()
    for batch in take(200, times=1, atoms_per_batch=400):
        counts.update(batch.times.flatten().tolist())
    total = sum(counts.values())
    assert sorted(counts) == [2.0 * k for k in range(1, 9)]
    for k in range(1, 9):
        expected = np.log((k + 1) / k) / np.log(9)
        assert counts[2.0 * k] / total == pytest.approx(expected, rel=0.1)


def test_a_sample_has_one_time_from_each_part_of_the_range():
    for batch in take(50, times=2):
        assert (batch.times[:, 0] <= 6.0).all()
        assert (batch.times[:, 1] >= 6.0).all()


def test_batch_is_a_function_of_seed_and_number():
    whole = take(24)
    for number, batch in enumerate(take(10, start=14), 14):
        assert same(batch, whole[number])
    assert not any(same(a, b) for a, b in zip(whole, take(24, seed=1), strict=True))
    for rank in range(2):
        assert all(map(same, take(12, rank=rank, world_size=2), whole[rank::2]))


def test_states_are_relative_to_the_centre_of_mass():
    for batch in take(6):
        weight = torch.from_numpy(ase.data.atomic_masses)[batch.numbers][..., None]
        for vectors in (batch.positions, batch.velocities):
            assert (weight * vectors).sum(1).abs().max() < 1e-10
        for vectors in (batch.later_positions, batch.later_velocities):
            assert (weight[:, None] * vectors).sum(2).abs().max() < 1e-10


def test_samples_are_turned_and_mirrored_as_a_whole():
    trajectories = table([METHYL], accelerations=True)
    index = np.arange(20).repeat(20)
    column = torch.tensor([[0, 3, 7]]).expand(400, -1)
    plain = trajectories.batch(4, index, column)
    batches = stream(trajectories)
    batches._random_columns = lambda *_: column
    turned = batches.make(4, index, torch.Generator().manual_seed(0))

    def vectors(batch):
        now = torch.stack([batch.positions, batch.velocities, batch.accelerations], 1)
        return torch.cat([now, batch.later_positions, batch.later_velocities], 1).flatten(1, 2)

    # All scalar products of all vectors at all times.
    products = [v @ v.transpose(1, 2) for v in (vectors(turned), vectors(plain))]
    torch.testing.assert_close(*products)
    handedness = [torch.linalg.det(vectors(b)[:, :3]).sign() for b in (turned, plain)]
    mirrored = (handedness[0] * handedness[1] < 0).double().mean().item()
    assert mirrored == pytest.approx(0.5, abs=0.1)
    assert len({tuple(x.flatten().tolist()) for x in turned.positions}) == 400


@pytest.mark.parametrize("time", [2.0, 10.0, 16.0])
def test_scales_are_what_force_free_motion_leaves_unexplained(time):
    """In these units the errors of ballistic motion are 1, for every element."""
    trajectories = table(horizons=(time, time))
    errors = {1: [], 6: [], 8: []}
    for size, count in trajectories.counts.items():
        column = torch.zeros(count, 1, dtype=torch.long)
        batch = trajectories.batch(size, np.arange(count), column)
        x = batch.later_positions[:, 0] - batch.positions - time * batch.velocities
        v = batch.later_velocities[:, 0] - batch.velocities
        pair = torch.stack([x, v], -1) / torch.stack(
            [batch.position_scale[:, 0], batch.velocity_scale[:, 0]], -1
        ).unsqueeze(-2)
        for z, found in errors.items():
            found.append(pair[batch.numbers == z].flatten(0, 1))
    for found in errors.values():
        torch.testing.assert_close(
            torch.cat(found).square().mean(0), torch.ones(2, dtype=torch.float64)
        )


def test_scales_of_validation_are_those_of_training():
    training = table([METHYL])
    held_out = table([replace(METHYL, velocities=3.0 * METHYL.velocities)], scales=training.scales)
    for own in (training, held_out):
        batch = next(own.spread(4, 10**6))
        assert torch.equal(batch.position_scale, next(training.spread(4, 10**6)).position_scale)


def test_accelerations_are_those_of_the_forces():
    trajectory = Trajectory.of(METHYL)
    index = trajectory.starts(1, before=1)
    masses = ase.data.atomic_masses[METHYL.numbers][:, None]
    forces = np.stack([springs(4).energy_and_forces(x)[1] for x in METHYL.positions])
    expected = forces[index] / masses * units.FS**2
    found = trajectory.accelerations(index)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    given = Trajectory.of(replace(METHYL, forces=forces))
    np.testing.assert_allclose(given.accelerations(index), expected)


def test_padding_is_empty():
    trajectories = table(size_step=4, accelerations=True)
    assert list(trajectories.groups) == [4]
    batch = next(trajectories.spread(10**6, 10**6))
    water = batch.numbers[:, 3] == 0
    assert batch.mask[water].tolist() == [[True, True, True, False]] * int(water.sum())
    for vectors in (batch.positions, batch.velocities, batch.accelerations):
        assert not vectors[water, 3].any()
    assert not batch.later_positions[water, :, 3].any()
    assert (batch.position_scale[water, :, 3] == 1.0).all()
    assert table().batch(3, np.arange(2), torch.zeros(2, 1, dtype=torch.long)).mask is None


def test_spread_is_even_at_doubling_times():
    batches = list(table().spread(20, atoms_per_batch=60))
    assert 18 <= sum(len(batch.times) for batch in batches) <= 22
    assert all(batch.times[0].tolist() == [2.0, 4.0, 8.0, 16.0] for batch in batches)
    assert all(batch.numbers.numel() * 4 <= 60 for batch in batches)


@pytest.mark.parametrize(
    ("frames", "horizons", "error", "message"),
    [
        ([replace(WATER, velocities=None)], HORIZONS, InputError, "'water' has no velocities"),
        ([replace(WATER, dt_fs=None)], HORIZONS, InputError, "no frame spacing"),
        ([WATER, replace(METHYL, dt_fs=1.0)], HORIZONS, InputError, r"\[1.0, 2.0\] fs apart"),
        ([WATER], (0.5, 1.5), ConfigError, "hold no multiple of the frame spacing 2 fs"),
        ([WATER], (2.0, 80.0), ConfigError, "has 40, but jumps of up to 80 fs need 41"),
    ],
)
def test_what_is_no_trajectory_or_too_short_is_refused(frames, horizons, error, message):
    with pytest.raises(error, match=message):
        table(frames, horizons)
