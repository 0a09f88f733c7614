"""Random rotations are uniform and fixed sets cover SO(3)."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mlmd_calc.geometry import rotations
from mlmd_calc.geometry.rotations import (
    fixed_rotations,
    icosahedral_rotations,
    matrices_from_quaternions,
    random_reflections,
    random_rotations,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_rotations(matrices: torch.Tensor, determinant: float = 1.0) -> None:
    identity = torch.eye(3, dtype=torch.float64).expand_as(matrices)
    assert matrices.dtype == torch.float64
    torch.testing.assert_close(matrices @ matrices.mT, identity, rtol=0, atol=1e-14)
    determinants = torch.linalg.det(matrices)
    expected = torch.full_like(determinants, determinant)
    torch.testing.assert_close(determinants, expected, rtol=0, atol=1e-14)


def angles(matrices: np.ndarray) -> np.ndarray:
    trace = np.trace(matrices, axis1=-2, axis2=-1)
    return np.arccos(np.clip((trace - 1.0) / 2.0, -1.0, 1.0))


def test_quaternions_follow_the_usual_convention() -> None:
    quaternions = np.random.default_rng(0).normal(size=(2, 10, 4))
    quaternions /= np.linalg.norm(quaternions, axis=-1, keepdims=True)
    ours = matrices_from_quaternions(torch.from_numpy(quaternions))
    assert ours.shape == (2, 10, 3, 3)
    theirs = Rotation.from_quat(quaternions.reshape(-1, 4)[:, [1, 2, 3, 0]]).as_matrix()
    np.testing.assert_allclose(ours.reshape(-1, 3, 3).numpy(), theirs, rtol=0, atol=1e-14)


def test_random_rotations_are_proper_rotations() -> None:
    assert_rotations(random_rotations(500, generator()))


def test_random_reflections_are_reflections() -> None:
    matrices = random_reflections(500, generator())
    assert_rotations(matrices, determinant=-1.0)
    assert torch.equal(matrices, matrices.mT)
    # n nᵀ of a direction uniform on the sphere is 1/3 on average.
    mean = (torch.eye(3) - matrices).mean(dim=0) / 2.0
    np.testing.assert_allclose(mean.numpy(), np.eye(3) / 3.0, atol=0.06)


def test_random_rotations_are_uniform() -> None:
    count = 20_000
    matrices = random_rotations(count, generator(1)).numpy()
    noise = 5.0 / math.sqrt(count)
    # Haar measure: E R_ab = 0, E R_ab R_cd = δ_ac δ_bd / 3, E R_ab³ = 0, E R_ab⁴ = 1/5.
    flat = matrices.reshape(count, 9)
    np.testing.assert_allclose(flat.mean(axis=0), 0.0, atol=noise)
    np.testing.assert_allclose(flat.T @ flat / count, np.eye(9) / 3.0, atol=noise)
    np.testing.assert_allclose((flat**3).mean(axis=0), 0.0, atol=noise)
    np.testing.assert_allclose((flat**4).mean(axis=0), 0.2, atol=noise)
    # The angle of rotation has density (1 - cos θ) / π, so its distribution is (θ - sin θ) / π.
    theta = np.sort(angles(matrices))
    expected = (theta - np.sin(theta)) / math.pi
    # 1.95 / √n is the 0.1 % limit of the Kolmogorov-Smirnov statistic.
    assert np.abs(expected - (np.arange(count) + 0.5) / count).max() < 1.95 / math.sqrt(count)


def test_random_rotations_come_from_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    source = generator(3)
    first, state = random_rotations(2, source), source.get_state()
    second = random_rotations(2, source)
    assert not torch.equal(first, second)
    source.set_state(state)
    assert torch.equal(random_rotations(2, source), second)
    assert torch.equal(random_rotations(2, generator(3)), first)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 2, 4, 12, 24, 60])
def test_groups_are_closed_and_start_with_the_identity(count: int) -> None:
    matrices = fixed_rotations(count)
    assert matrices.shape == (count, 3, 3)
    assert_rotations(matrices)
    assert torch.equal(matrices[0], torch.eye(3, dtype=torch.float64))

    def distances(others: torch.Tensor) -> torch.Tensor:
        return (others[:, None] - matrices).abs().amax(dim=(-1, -2))

    gaps = distances(matrices) + 9.0 * torch.eye(count)
    assert gaps.min() > 0.1
    products = torch.einsum("aij,bjk->abik", matrices, matrices).flatten(0, 1)
    nearest = distances(products).min(dim=1)
    assert nearest.values.max() < 1e-14
    # Every element appears as often as every other.
    assert torch.bincount(nearest.indices).tolist() == [count] * count


@pytest.mark.parametrize(("count", "degree"), [(4, 1), (12, 2), (24, 3), (60, 5)])
def test_averages_over_groups_remove_low_angular_frequencies(count: int, degree: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(1, 5, 3)) @ fixed_rotations(count).numpy()
    axis = np.array([0.3, -0.5, 0.81])
    cosine = vectors @ axis / np.linalg.norm(vectors, axis=-1) / np.linalg.norm(axis)
    for order in range(1, degree + 1):
        legendre = np.polynomial.legendre.Legendre.basis(order)(cosine)
        np.testing.assert_allclose(legendre.mean(axis=0), 0.0, atol=1e-13)
    next_one = np.polynomial.legendre.Legendre.basis(degree + 1)(cosine)
    assert np.abs(next_one.mean(axis=0)).max() > 1e-3


def test_icosahedral_group_contains_the_tetrahedral_one() -> None:
    icosahedral = icosahedral_rotations().reshape(60, 9)
    for matrix in fixed_rotations(12).reshape(12, 9).numpy():
        assert np.abs(icosahedral - matrix).max(axis=1).min() < 1e-12
    turns, counts = np.unique(
        np.round(np.degrees(angles(icosahedral.reshape(60, 3, 3)))), return_counts=True
    )
    assert dict(zip(turns, counts, strict=True)) == {0: 1, 72: 12, 120: 20, 144: 12, 180: 15}


def largest_gap(matrices: np.ndarray, samples: int = 2000) -> float:
    """Largest angle from a random rotation to the nearest of the set, in degrees."""
    targets = random_rotations(samples, generator(5)).numpy()
    traces = np.einsum("aij,bij->ab", targets, matrices)
    nearest = np.arccos(np.clip((traces.max(axis=1) - 1.0) / 2.0, -1.0, 1.0))
    return math.degrees(nearest.max())


@pytest.mark.parametrize("count", [15, 30, 100, 500])
def test_spirals_cover_so3_better_than_chance(count: int) -> None:
    spiral = fixed_rotations(count)
    assert spiral.shape == (count, 3, 3)
    assert_rotations(spiral)
    assert torch.equal(fixed_rotations(count), spiral)
    chance = [largest_gap(random_rotations(count, generator(seed)).numpy()) for seed in range(5)]
    assert largest_gap(spiral.numpy()) < np.mean(chance)


def test_spirals_keep_their_rotations_apart() -> None:
    matrices = fixed_rotations(200).numpy()
    closest = min(angles((a @ b.T)[None])[0] for a, b in itertools.combinations(matrices[::4], 2))
    # 50 rotations drawn at random nearly always have a pair within 10 degrees.
    assert math.degrees(closest) > 15.0


def test_parameter_of_the_spiral_solves_its_equation() -> None:
    psi = rotations._SUPER_FIBONACCI
    assert psi**4 == pytest.approx(psi + 4.0, rel=1e-15)
