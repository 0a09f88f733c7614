"""Splits that do not leak."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mlmd_calc.data import MoleculeFrames, split_by_block, split_by_molecule
from mlmd_calc.errors import ConfigError, InputError


def trajectory(name: str, count: int, segment: list[int] | None = None, **metadata: str):
    """Frames that carry their index as energy."""
    return MoleculeFrames(
        name=name,
        numbers=np.array([1, 1]),
        positions=np.zeros((count, 2, 3)),
        energies=np.arange(count, dtype=float),
        segment=None if segment is None else np.array(segment),
        metadata=metadata,
    )


@pytest.fixture
def molecules() -> list[MoleculeFrames]:
    # "a" twice: labels and a trajectory of the same molecule.
    return [trajectory(name, 4) for name in "abacdefghij"]


def names(frames: list[MoleculeFrames]) -> set[str]:
    return {molecule.name for molecule in frames}


def test_named_molecules_are_held_out(molecules):
    train, held_out = split_by_molecule(molecules, ["a", "c"])
    assert [molecule.name for molecule in held_out] == ["a", "a", "c"]
    assert names(train) == set("bdefghij")


@pytest.mark.parametrize("seed", range(5))
def test_fraction_never_splits_a_molecule(molecules, seed):
    train, held_out = split_by_molecule(molecules, fraction=0.3, seed=seed)
    assert not names(train) & names(held_out)
    assert len(names(held_out)) == 3
    assert len(train) + len(held_out) == len(molecules)


def test_fraction_depends_on_the_seed_alone(molecules):
    splits = [split_by_molecule(molecules, fraction=0.3, seed=seed)[1] for seed in range(10)]
    again = split_by_molecule(molecules[::-1], fraction=0.3, seed=0)[1]
    assert names(again) == names(splits[0])
    assert len({frozenset(names(held_out)) for held_out in splits}) > 1


def test_one_molecule_under_two_names_is_refused():
    molecules = [trajectory("ethanol", 2, smiles="CCO"), trajectory("alcohol", 2, smiles="CCO")]
    with pytest.raises(InputError, match="'ethanol' and 'alcohol' are the same molecule"):
        split_by_molecule(molecules, ["alcohol"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"holdout_names": ["z"]}, r"no molecule is called \['z'\]"),
        ({"holdout_names": list("abcdefghij")}, "empty"),
        ({"holdout_names": []}, "empty"),
        ({"fraction": 0.0, "seed": 1}, "fraction is 0.0"),
        ({"fraction": 1.0, "seed": 1}, "fraction is 1.0"),
        ({"fraction": 0.2}, "seed"),
        ({}, "either"),
        ({"holdout_names": ["a"], "fraction": 0.2, "seed": 1}, "either"),
    ],
)
def test_unusable_molecule_splits_are_refused(molecules, arguments, message):
    with pytest.raises(ConfigError, match=message):
        split_by_molecule(molecules, **arguments)


def test_blocks_are_the_ends_of_segments():
    frames = trajectory("a", 14, segment=[0] * 10 + [5] * 4)
    (train,), (held_out,) = split_by_block([frames], 0.25)
    assert held_out.energies.tolist() == [8, 9, 13]
    assert held_out.segment.tolist() == [0, 0, 5]
    assert train.energies.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12]


def test_no_held_out_frame_precedes_a_training_frame_of_its_segment():
    rng = np.random.default_rng(0)
    frames = trajectory("a", 60, segment=np.sort(rng.integers(4, size=60)).tolist())
    for fraction in (0.1, 0.5, 0.9):
        (train,), (held_out,) = split_by_block([frames], fraction)
        assert sorted([*train.energies, *held_out.energies]) == list(range(60))
        pairs = itertools.product(
            zip(train.segment, train.energies, strict=True),
            zip(held_out.segment, held_out.energies, strict=True),
        )
        assert all(early < late for (s, early), (t, late) in pairs if s == t)


def test_short_molecules_stay_in_training():
    train, held_out = split_by_block([trajectory("long", 10), trajectory("short", 2)], 0.3)
    assert names(train) == {"long", "short"}
    assert names(held_out) == {"long"}


def test_every_molecule_keeps_training_frames():
    (train,), (held_out,) = split_by_block([trajectory("a", 3)], 0.999)
    assert (len(train), len(held_out)) == (1, 2)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_unusable_block_fractions_are_refused(fraction):
    with pytest.raises(ConfigError, match="fraction"):
        split_by_block([trajectory("a", 10)], fraction)


def test_blocks_of_less_than_a_frame_are_made_of_single_frames():
    (train,), (held_out,) = split_by_block([trajectory("a", 10)], 0.04)
    assert (len(train), held_out.energies.tolist()) == (9, [9])
    conformers = trajectory("a", 12, segment=[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    (train,), (held_out,) = split_by_block([conformers], 0.25)
    assert held_out.energies.tolist() == [3, 7, 11]
    assert len(train) == 9


@pytest.mark.parametrize("fraction", [0.04, 0.3, 0.9])
def test_single_structures_can_be_held_out(fraction):
    frames = [trajectory(name, 1) for name in "abcdefghij"]
    train, held_out = split_by_block(frames, fraction)
    assert len(held_out) == max(1, round(10 * fraction))
    assert not names(train) & names(held_out)
    assert names(train) | names(held_out) == set("abcdefghij")


def test_held_out_structures_leave_every_element_in_training():
    rare = replace(trajectory("rare", 1), numbers=np.array([1, 8]))
    train, held_out = split_by_block([rare, *(trajectory(name, 1) for name in "ab")], 0.9)
    assert names(held_out) == {"a", "b"}
    assert names(train) == {"rare"}
    with pytest.raises(ConfigError, match="none of the 1 frame of 1 molecule can be held out"):
        split_by_block([rare], 0.9)


def test_many_trajectories_are_held_out_whole():
    label = np.repeat(np.arange(20), 10).tolist()
    many = replace(trajectory("a", 200, label), dt_fs=2.0)
    train, held_out = split_by_block([many], 0.1)
    assert np.unique(held_out[0].segment).tolist() == [18, 19]
    assert len(train[0]) == 180
    # Nine are too few for a tenth, and frames without a spacing are no trajectories.
    for molecule in (many.select(slice(0, 90)), replace(many, dt_fs=None)):
        (ends,) = split_by_block([molecule], 0.1)[1]
        assert (ends.energies % 10 == 9).all()
        assert len(ends) == len(molecule) // 10
