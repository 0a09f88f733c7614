"""Temperatures, internal coordinates and divergences of runs of small molecules."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from matplotlib.image import imread

from mlmd_calc import units
from mlmd_calc.analysis.jump_ensemble import (
    ALL_ATOMS,
    InternalCoordinates,
    Sample,
    divergences,
    mean_temperatures,
)
from mlmd_calc.errors import InputError
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation import Corrections, Guard, JumpLoop, Langevin, State
from mlmd_calc.propagation.harmonic import HarmonicPropagator

CO = Atoms("CO", [[0, 0, 0], [1.1, 0, 0]])
PEROXIDE = molecule("H2O2")


@pytest.fixture
def summary(benchmark):
    """What `mlmd bench jump` makes of samples."""
    return benchmark("jump_summary")


def sample_of(atoms, positions, velocities=None):
    """Frames ``(f, r, n, 3)`` of a molecule 2 fs apart."""
    positions = np.array(positions)
    return Sample(
        atoms.numbers,
        atoms.get_masses(),
        2.0 * np.arange(len(positions)),
        positions,
        np.zeros_like(positions) if velocities is None else velocities,
    )


def stretched(lengths):
    """Carbon monoxide with bonds of given lengths."""
    positions = np.zeros((len(lengths), 1, 2, 3))
    positions[:, 0, 1, 0] = lengths
    return sample_of(CO, positions)


def twisted(degrees):
    """Hydrogen peroxide with given torsions."""
    frames = []
    for angle in degrees:
        turned = PEROXIDE.copy()
        turned.set_dihedral(*PEROXIDE_TORSION, angle, indices=[PEROXIDE_TORSION[3]])
        frames.append(turned.positions[None])
    return sample_of(PEROXIDE, frames)


PEROXIDE_TORSION = (2, 0, 1, 3)
assert PEROXIDE.get_distance(2, 0) < 1.1


def test_harmonic_motion_at_a_known_temperature():
    harmonic = Harmonic.tethers(50.0, CO.positions)
    start = State(CO.positions, np.zeros((2, 3)), CO.numbers, CO.get_masses())
    loop = JumpLoop(
        [start] * 24,
        HarmonicPropagator(harmonic),
        8.0,
        thermostat=Langevin(300.0, 0.05),
        corrections=Corrections.none(),
        guard=Guard.off(),
        rng=np.random.default_rng(0),
    )
    frames = []
    for _ in range(200):
        loop.advance()
        frames.append(loop.states)
    sample = Sample(
        CO.numbers,
        CO.get_masses(),
        np.array([states[0].time for states in frames]),
        np.array([[state.positions for state in states] for states in frames]),
        np.array([[state.velocities for state in states] for states in frames]),
    ).without_first(0.2)
    for mean in mean_temperatures(sample).values():
        assert 0.0 < mean.standard_error < 15.0
        assert abs(mean.value - 300.0) < 4.0 * mean.standard_error
    lengths = InternalCoordinates.of(CO).bond_lengths(sample)["C-O"]
    assert len(lengths) == 160 * 24
    # Two atoms with a variance of k T / K each along the bond.
    assert lengths.std() == pytest.approx(np.sqrt(2.0 * units.KB * 300.0 / 50.0), rel=0.05)


def test_temperature_of_each_element():
    kelvin = np.array([300.0, 500.0])
    speeds = np.sqrt(3.0 * units.KB * kelvin / CO.get_masses()) * units.FS
    velocities = np.tile(speeds[:, None] * [0.6, 0.0, 0.8], (10, 1, 1, 1))
    sample = sample_of(CO, np.tile(CO.positions, (10, 1, 1, 1)), velocities)
    found = mean_temperatures(sample)
    assert {name: mean.value for name, mean in found.items()} == pytest.approx(
        {ALL_ATOMS: 400.0, "C": 300.0, "O": 500.0}
    )
    assert np.isnan(mean_temperatures(sample.part(slice(3)))["C"].standard_error)


def test_standard_error_of_replicas_is_their_scatter():
    velocities = np.random.default_rng(0).normal(size=(1, 64, 2, 3)) * 1e-3
    sample = sample_of(
        CO, np.tile(CO.positions, (20, 64, 1, 1)), np.tile(velocities, (20, 1, 1, 1))
    )
    mean = mean_temperatures(sample)["C"]
    squares = (velocities[0, :, 0] ** 2).sum(axis=-1)
    expected = squares.std(ddof=1) / np.sqrt(64) / squares.mean()
    assert mean.standard_error / mean.value == pytest.approx(expected)


def test_torsions_are_grouped_by_bond_and_elements_of_the_ends():
    ethanol = molecule("CH3CH2OH")
    coordinates = InternalCoordinates.of(ethanol)
    sample = sample_of(ethanol, ethanol.positions[None, None])
    assert {name: len(v) for name, v in coordinates.bond_lengths(sample).items()} == {
        "C-C": 1,
        "C-H": 5,
        "C-O": 1,
        "H-O": 1,
    }
    angles = {
        name: np.sort(np.abs(np.rad2deg(v)))
        for name, v in coordinates.torsion_angles(sample).items()
    }
    assert {name: len(v) for name, v in angles.items()} == {
        "H-C0-C1-O": 3,
        "H-C0-C1-H": 6,
        "C-C1-O2-H": 1,
        "H-C1-O2-H": 2,
    }
    np.testing.assert_allclose(angles["C-C1-O2-H"], 180.0, atol=0.1)
    np.testing.assert_allclose(angles["H-C0-C1-O"], [60, 60, 180], atol=2.0)


def test_torsions_about_straight_angles_are_left_out():
    assert InternalCoordinates.of(molecule("CH3CN")).torsions == {}
    assert InternalCoordinates.of(molecule("C2H2")).torsions == {}


def test_divergences_of_alike_and_disjoint_sets():
    rng = np.random.default_rng(0)
    bond = InternalCoordinates.of(CO)
    near, far = (stretched(length + 0.02 * rng.random(500)) for length in (1.1, 1.2))
    assert divergences(bond, near, near).bonds == {"C-O": 0.0}
    assert divergences(bond, near, far).bonds["C-O"] == pytest.approx(1.0)
    turn = InternalCoordinates.of(PEROXIDE)
    (name,) = turn.torsions
    left, right = (twisted(angle + 20.0 * rng.random(50)) for angle in (100.0, 220.0))
    assert divergences(turn, left, left).torsions == {name: 0.0}
    assert divergences(turn, left, right).torsions[name] == pytest.approx(1.0)


def test_divergence_is_in_bits():
    both = stretched(np.tile([1.0, 1.2], 50))
    one = stretched(np.full(100, 1.2))
    found = divergences(InternalCoordinates.of(CO), both, one).bonds["C-O"]
    # ½ (½ log₂ 2 + ½ log₂ ⅔) + ½ log₂ ⁴⁄₃
    assert found == pytest.approx(1.5 - 0.75 * np.log2(3.0))


def test_one_stray_frame_does_not_blur_the_bins():
    rng = np.random.default_rng(0)
    lengths = 1.1 + 0.03 * rng.normal(size=(2, 4000))
    lengths[1] += 0.05
    coordinates = InternalCoordinates.of(CO)
    reference = stretched(lengths[0])
    clean = divergences(coordinates, reference, stretched(lengths[1])).bonds["C-O"]
    lengths[1, 7] = 1e6
    stray = divergences(coordinates, reference, stretched(lengths[1])).bonds["C-O"]
    assert clean > 0.2
    assert stray == pytest.approx(clean, abs=1e-3)


def test_floor_is_what_chance_makes_of_one_distribution(summary):
    coordinates = InternalCoordinates.of(CO)
    lengths = 1.1 + 0.03 * np.random.default_rng(0).normal(size=4000)
    long, short = (
        summary.divergence_floor(coordinates, stretched(lengths[:n])) for n in (4000, 400)
    )
    assert 0.0 < long.bonds["C-O"] < short.bonds["C-O"] < 0.15
    with pytest.raises(InputError, match="a single frame has no halves"):
        summary.divergence_floor(coordinates, stretched([1.1]))


def test_summary(summary):
    lengths = np.full(20, 1.1)
    lengths[1] = 1.75
    sample = stretched(lengths)
    found = summary.summarise_ensemble(
        InternalCoordinates.of(CO), sample, sample.without_first(0.2), bond_limit=0.5
    )
    assert found["largest_bond_change_A"] == pytest.approx(0.65)
    assert found["bond"] == "C0-O1"
    assert found["broken_molecules"] == 1
    assert found["temperature_K"]["C"] == {
        "value": 0.0,
        "standard_error": 0.0,
        "resolved": True,
    }
    # The long bond is in the part left out.
    assert found["divergence_bits"] == {"bonds": {"C-O": 0.0}, "torsions": {}}


def test_frames_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"2 atoms with 2 masses at 3 times have.*\(3, 2, 3\)"):
        sample_of(CO, np.zeros((3, 2, 3)))


def test_pictures(summary, tmp_path):
    rng = np.random.default_rng(0)
    runs = {
        name: {kind: rng.normal(size=50) for kind in ("C-C", "C-H", "C-O", "H-O")}
        for name in ("force-based", "jump")
    }
    summary.plot_distributions(runs, tmp_path / "new" / "bonds.png", "ethanol", unit="Å")
    curves = {"jump": (np.arange(5.0), np.array([300.0, 400.0, 800.0, 1e5, 1e9]))}
    summary.plot_temperatures(curves, tmp_path / "new" / "t.png", "ethanol", temperature_K=300.0)
    for name in ("bonds", "t"):
        assert imread(tmp_path / "new" / f"{name}.png").std() > 0.0
