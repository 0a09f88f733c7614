"""Distances that no training data covered are refused, in one call and in the middle of a run."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from toy_models import toy_model

from mlmd_calc import MDETCalculator, Potential
from mlmd_calc.errors import InputError
from mlmd_calc.potential.coverage import Coverage, measure
from mlmd_calc.zoo import ModelCard


def moved(distance: float) -> ase.Atoms:
    """Methane with one hydrogen atom at a distance from carbon."""
    atoms = molecule("CH4")
    atoms.positions[1] *= distance / atoms.get_distance(0, 1)
    return atoms


def scaled(factor: float) -> ase.Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.positions *= factor
    return atoms


def pair(distance: float) -> ase.Atoms:
    """Two molecules whose nearest atoms are at a distance."""
    first, second = molecule("CH3CH2OH"), molecule("CH3CH2OH")
    second.positions[:, 0] += np.ptp(first.positions[:, 0]) + distance
    return first + second


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (moved(0.06), r"atoms 0 and 1 are 0\.06 Å apart.* C and H closer than 0\.\d\d Å.*unit"),
        (moved(3.0), r"two parts 3 Å apart \(atoms 0 and 1 are nearest\).* gaps of up to \d\.\d Å"),
        (moved(1e6), r"two parts 1e\+06 Å apart"),
        (moved(1e38), r"a coordinate is 5\.77e\+37 Å"),
        (moved(1e200), r"a coordinate is 5\.77e\+199 Å"),
        (pair(35.0), r"two parts 35.* Å apart.* one by one"),
        (scaled(10.0), "unit"),
        (scaled(0.1), "unit"),
        (scaled(1.89), "unit"),
        (scaled(0.53), "unit"),
    ],
    ids=["close", "far", "1e6", "1e38", "1e200", "two", "nm", "1/nm", "Bohr", "1/Bohr"],
)
def test_default_model_refuses(atoms: ase.Atoms, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Potential(device="cpu").evaluate([atoms])


def test_a_run_that_leaves_the_covered_range_stops() -> None:
    atoms = molecule("CH4")
    atoms.calc = MDETCalculator(device="cpu", forces="direct", seed=1)
    dynamics = VelocityVerlet(atoms, 10 * units.fs)
    with pytest.raises(InputError, match="restart from an earlier frame"):
        dynamics.run(300)


def test_models_that_state_nothing_have_wide_limits() -> None:
    potential = Potential(toy_model(), device="cpu")
    assert potential.coverage == Coverage()
    potential.evaluate([moved(5.0), moved(0.5)])
    with pytest.raises(InputError, match=r"6\.0 Å"):
        potential.evaluate([moved(7.0)])


def test_card_gives_the_limits() -> None:
    card = ModelCard(closest_contact=0.5, largest_gap_A=4.0)
    assert Coverage.of(card) == pytest.approx((0.45, 4.4))


def test_measured_distances_are_the_extremes_of_all_frames() -> None:
    dimer = pair(3.0)
    frames = np.stack([dimer.positions, dimer.positions])
    frames[1, 9:, 0] += 1.5
    water = molecule("H2O")
    water.positions[1] *= 0.9
    found = measure(
        [
            (dimer.numbers, frames),
            (water.numbers, water.positions[None]),
            (np.array([2]), np.zeros((3, 1, 3))),
        ]
    )
    assert found is not None
    closest, gap = found
    assert gap == pytest.approx(measure_gap(frames[1]))
    assert closest == pytest.approx(water.get_all_distances()[0, 1:].min() / 0.97)
    assert measure([(np.array([2]), np.zeros((3, 1, 3)))]) is None


def measure_gap(positions: np.ndarray) -> float:
    between = np.linalg.norm(positions[:9, None] - positions[None, 9:], axis=-1)
    return float(between.min())
