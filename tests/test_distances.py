"""h(r) of systems with known answers."""

import numpy as np
import pytest
from scipy.stats import norm

from mlmd_calc.analysis.distances import (
    WIDTH_A,
    distance_counts,
    distance_difference,
    half_difference,
)
from mlmd_calc.errors import InputError


def oscillator(width, frames, seed):
    """Frames of two atoms on a spring, whose distance has a normal distribution about 3 Å."""
    rng = np.random.default_rng(seed)
    arms = rng.normal(size=(frames, 3))
    arms /= np.linalg.norm(arms, axis=1, keepdims=True)
    lengths = rng.normal(3.0, width, size=(frames, 1))
    return np.stack([np.zeros((frames, 3)), lengths * arms], axis=1)


@pytest.mark.parametrize(("narrow", "wide"), [(0.2, 0.3), (0.25, 0.5)])
def test_difference_of_two_oscillators(narrow, wide):
    """The densities cross at ±x; outside the wide one is larger, inside the narrow one."""
    x = narrow * wide * np.sqrt(2.0 * np.log(wide / narrow) / (wide**2 - narrow**2))
    expected = 4.0 * (norm.cdf(x / narrow) - norm.cdf(x / wide))
    first, second = (
        distance_counts(oscillator(width, 200_000, seed))
        for seed, width in enumerate((narrow, wide))
    )
    assert distance_difference(first, second) == pytest.approx(expected, abs=0.01)
    assert distance_difference(second, first) == distance_difference(first, second)


def test_limits_of_the_difference():
    near, far = (distance_counts(np.array([[[0.0, 0, 0], [d, 0, 0]]])) for d in (1.0, 9.0))
    assert distance_difference(near, near) == 0.0
    assert distance_difference(near, far) == 2.0
    # How many frames there are does not matter.
    assert distance_difference(3.0 * near, near) == 0.0


def test_all_pairs_and_frames_count():
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(5, 2, 4, 3))
    counts = distance_counts(frames)
    expected = np.zeros(len(counts))
    for molecule in frames.reshape(-1, 4, 3):
        for i in range(4):
            for j in range(i):
                expected[int(np.linalg.norm(molecule[i] - molecule[j]) / WIDTH_A)] += 1
    np.testing.assert_array_equal(counts, expected)


def test_halves_differ_by_chance_the_less_the_longer_the_run():
    short, long = (half_difference(oscillator(0.2, frames, 2)) for frames in (200, 20_000))
    assert long < short / 5.0
    moved = np.concatenate([oscillator(0.2, 5000, 3), oscillator(0.2, 5000, 4) * 2.0])
    assert half_difference(moved) > 1.99


def test_what_has_no_distances_is_refused():
    with pytest.raises(InputError, match="1 atoms have no distances"):
        distance_counts(np.zeros((3, 1, 3)))
    with pytest.raises(InputError, match="not finite"):
        distance_counts(np.full((1, 2, 3), np.nan))
    with pytest.raises(InputError, match="a single frame has no halves"):
        half_difference(np.zeros((1, 2, 3)))
