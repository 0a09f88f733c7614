"""Removal of net force and torque, up to the limit of linear molecules."""

from fractions import Fraction

import numpy as np
import pytest
from ase.build import molecule
from scipy.spatial.transform import Rotation

from mlmd_calc.potential.projections import remove_net_force, remove_net_torque

NAMES = ["H2O", "CH3CH2OH", "C6H6", "CO2", "C2H2", "O2"]
LINEAR = {"CO2", "C2H2", "O2"}


def turned(name: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random forces and positions of a molecule in a random orientation, off centre."""
    rng = np.random.default_rng(seed)
    positions = molecule(name).positions @ Rotation.random(random_state=seed).as_matrix()
    return rng.normal(size=positions.shape), positions + rng.normal(size=3)


def project(forces: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return remove_net_torque(remove_net_force(forces), positions)


def net_torque(forces: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.cross(positions - positions.mean(axis=0), forces).sum(axis=0)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_net_is_left_and_nothing_happens_twice(name: str) -> None:
    forces, positions = turned(name)
    projected = project(forces, positions)
    np.testing.assert_allclose(projected.sum(axis=0), 0.0, atol=1e-13)
    np.testing.assert_allclose(net_torque(projected, positions), 0.0, atol=1e-13)
    np.testing.assert_allclose(project(projected, positions), projected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_the_change_is_the_smallest_possible(name: str) -> None:
    forces, positions = turned(name)
    n = len(forces)
    r = positions - positions.mean(axis=0)
    net = np.concatenate([np.kron(np.ones((1, n)), np.eye(3)), np.zeros((3, 3 * n))])
    for atom in range(n):
        net[3:, 3 * atom : 3 * atom + 3] = np.cross(r[atom], np.eye(3)).T
    smallest = -np.linalg.lstsq(net, net @ forces.ravel(), rcond=1e-10)[0]
    change = project(forces, positions) - forces
    np.testing.assert_allclose(change.ravel(), smallest, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_rotation_and_translation_of_the_molecule_go_along(name: str) -> None:
    forces, positions = turned(name)
    turn = Rotation.random(random_state=7).as_matrix()
    expected = project(forces, positions) @ turn
    found = project(forces @ turn, positions @ turn + 5.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_bending_forces_on_linear_molecules_survive(name: str) -> None:
    _, positions = turned(name)
    axis = positions[0] - positions[1]
    across = np.cross(axis, [0.1, 0.2, 0.3])
    # A force field without net force and torque: every second atom moves across, balanced.
    along = (positions - positions.mean(axis=0)) @ axis
    pattern = np.cos(3.0 * along)
    basis = np.stack([np.ones_like(along), along], axis=1)
    pattern -= basis @ np.linalg.lstsq(basis, pattern, rcond=None)[0]
    forces = pattern[:, None] * across
    np.testing.assert_allclose(project(forces, positions), forces, rtol=0, atol=1e-13)


def exact_projection(forces: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The normal equations ``(s·1 − S) μ = τ`` in rational arithmetic, without any rounding."""
    n = len(forces)
    f = [[Fraction(float(value)) for value in row] for row in forces]
    x = [[Fraction(float(value)) for value in row] for row in positions]
    centre = [sum(row[k] for row in x) / n for k in range(3)]
    r = [[row[k] - centre[k] for k in range(3)] for row in x]

    def cross(a: list, b: list) -> list:
        return [a[k - 2] * b[k - 1] - a[k - 1] * b[k - 2] for k in range(3)]

    def determinant(m: list) -> Fraction:
        return sum(m[0][k] * cross(m[1], m[2])[k] for k in range(3))

    torque = [sum(cross(r[i], f[i])[k] for i in range(n)) for k in range(3)]
    square = sum(value * value for row in r for value in row)
    inertia = [
        [(square if a == b else 0) - sum(row[a] * row[b] for row in r) for b in range(3)]
        for a in range(3)
    ]
    mu = [
        determinant([[torque[a] if b == k else inertia[a][b] for b in range(3)] for a in range(3)])
        / determinant(inertia)
        for k in range(3)
    ]
    return np.array([[float(f[i][k] + cross(r[i], mu)[k]) for k in range(3)] for i in range(n)])


BENDS = [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7]


@pytest.mark.parametrize(
    ("bend", "offset"),
    [*((bend, 0.0) for bend in (*BENDS, 1e-8, 1e-9)), *((bend, 1e6) for bend in BENDS)],
)
def test_nearly_linear_molecules_lose_no_accuracy(bend: float, offset: float) -> None:
    for seed in range(3):
        straight = np.array([[-1.2, 0, 0], [0, bend, 0], [1.1, 0, 0.3 * bend], [2.4, 0, 0]])
        positions = straight @ Rotation.random(random_state=seed).as_matrix() + offset
        forces = remove_net_force(np.random.default_rng(seed).normal(size=(4, 3)))
        found = remove_net_torque(forces, positions)
        # The problem itself magnifies the rounding of its input by length over bend.
        tolerance = 100 * np.finfo(float).eps / bend
        expected = exact_projection(forces, positions)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.sum(axis=0), 0.0, atol=tolerance)


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_linear_molecules_far_away_are_still_linear(offset: float) -> None:
    """Rounding of large coordinates is no bend: it must not decide which force is a torque."""
    forces, positions = turned("CO2")
    here = project(forces, positions)
    np.testing.assert_allclose(project(forces, positions + offset), here, rtol=0, atol=1e-8)


def test_single_atom_and_pairs() -> None:
    force = np.array([[1.0, -2.0, 3.0]])
    for position in (np.zeros((1, 3)), np.full((1, 3), 7.0)):
        assert not remove_net_force(force).any()
        np.testing.assert_array_equal(remove_net_torque(force, position), force)
    positions = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    forces = np.array([[0.0, 0.0, 0.0], [3.0, 1.0, 5.0]])
    # What is left of any forces on a pair is stretching.
    expected = np.array([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]])
    np.testing.assert_allclose(project(forces, positions), expected, rtol=0, atol=1e-15)


def test_arguments_are_left_alone() -> None:
    forces, positions = turned("H2O")
    copies = forces.copy(), positions.copy()
    project(forces, positions)
    np.testing.assert_array_equal(forces, copies[0])
    np.testing.assert_array_equal(positions, copies[1])
