"""Spectra of motions whose frequencies are known."""

import json
from dataclasses import replace

import ase.data
import ase.io
import numpy as np
import pytest
from analytic_potentials import Springs
from ase import Atoms
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from typer.testing import CliRunner

from mlmd_calc import units
from mlmd_calc.analysis.spectra import (
    harmonic_wavenumbers,
    joined_runs,
    velocity_autocorrelation,
    velocity_spectrum,
)
from mlmd_calc.cli import app
from mlmd_calc.data import MoleculeFrames
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.models.analytic import Harmonic

WATER = molecule("H2O")
MASSES = ase.data.atomic_masses[WATER.numbers]


def water_hessian():
    """Springs of different strength between the atoms at rest: three vibrations, all else free."""
    hessian = np.zeros((9, 9))
    for i, j, constant in ((0, 1, 50.0), (0, 2, 50.0), (1, 2, 6.0)):
        direction = WATER.positions[i] - WATER.positions[j]
        field = np.zeros((3, 3))
        field[i], field[j] = direction, -direction
        field /= np.linalg.norm(direction)
        hessian += constant * np.outer(field, field)
    return hessian


WAVENUMBERS = harmonic_wavenumbers(water_hessian(), WATER.numbers, WATER.positions)


def vibrating(frames=6000, dt_fs=1.0, runs=1, speed=0.002):
    """Exact vibrations of water from random velocities."""
    potential = Harmonic(water_hessian(), WATER.positions)
    rng = np.random.default_rng(4)
    times = dt_fs * np.arange(frames)
    parts = []
    for _ in range(runs):
        v = speed * rng.normal(size=(3, 3))
        # Only what vibrates: rigid motion of a harmonic molecule goes to infinity.
        inner = potential._modes(MASSES)[1][:, -3:]
        weighted = np.repeat(np.sqrt(MASSES), 3)
        v = ((inner @ (inner.T @ (weighted * v.ravel()))) / weighted).reshape(3, 3)
        parts.append(potential.evolve(WATER.positions, v, MASSES, times))
    return MoleculeFrames(
        name="water",
        numbers=WATER.numbers.astype(np.int64),
        positions=np.concatenate([x for x, _ in parts]),
        velocities=np.concatenate([v for _, v in parts]),
        dt_fs=dt_fs,
        segment=np.repeat(np.arange(runs), frames),
    )


def turning(frames, period_fs):
    """The same motion seen from an axis that turns once in a period."""
    angles = 2.0 * np.pi * frames.dt_fs * np.arange(len(frames)) / period_fs
    turn = np.zeros((len(frames), 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angles)
    turn[:, 0, 1], turn[:, 1, 0] = np.sin(angles), -np.sin(angles)
    turn[:, 2, 2] = 1.0
    x = frames.positions @ turn
    rate = np.array([0.0, 0.0, 2.0 * np.pi / period_fs])
    return MoleculeFrames(
        name="water",
        numbers=frames.numbers,
        positions=x + np.array([100.0, 0.0, 0.0]) + 0.01 * np.arange(len(frames))[:, None, None],
        velocities=frames.velocities @ turn + np.cross(rate, x) + 0.01 / frames.dt_fs,
        dt_fs=frames.dt_fs,
        segment=frames.segment,
    )


def test_wavenumbers_of_a_hessian_are_the_analytic_ones():
    known = Harmonic(water_hessian(), WATER.positions).frequencies(MASSES)[-3:]
    np.testing.assert_allclose(WAVENUMBERS, known / (2.0 * np.pi) * units.PER_CM, rtol=1e-9)
    # A diatomic molecule: nu = sqrt(k / mu) / 2 pi c.
    along = np.zeros((2, 2))
    along[:] = [[1.0, -1.0], [-1.0, 1.0]]
    hessian = np.zeros((2, 3, 2, 3))
    hessian[:, 2, :, 2] = 35.0 * along
    nitrogen = molecule("N2")
    (found,) = harmonic_wavenumbers(hessian.reshape(6, 6), nitrogen.numbers, nitrogen.positions)
    reduced = ase.data.atomic_masses[7] / 2.0
    assert found == pytest.approx(1302.79 * np.sqrt(35.0 / 6.241509074 / reduced), rel=1e-4)


def test_a_saddle_has_an_imaginary_wavenumber():
    found = harmonic_wavenumbers(-water_hessian(), WATER.numbers, WATER.positions)
    np.testing.assert_allclose(found, -WAVENUMBERS[::-1], rtol=1e-9)


@pytest.mark.parametrize("runs", [1, 3])
def test_peaks_are_the_harmonic_frequencies(runs):
    spectrum = velocity_spectrum(vibrating(runs=runs), resolution=10.0)
    peaks = spectrum.peaks()
    assert len(peaks) == 3
    np.testing.assert_allclose(peaks, WAVENUMBERS, atol=0.2)
    assert spectrum.density.sum() * spectrum.wavenumbers[1] == pytest.approx(1.0, rel=1e-3)
    assert spectrum.windows == pytest.approx(2 * runs, abs=runs)


def test_density_is_the_kinetic_energy_of_each_vibration():
    frames = vibrating()
    modes = Harmonic(water_hessian(), WATER.positions)._modes(MASSES)[1][:, -3:]
    weighted = np.repeat(np.sqrt(MASSES), 3) * frames.velocities.reshape(len(frames), -1)
    energies = np.square(weighted @ modes).mean(axis=0)
    spectrum = velocity_spectrum(frames, resolution=10.0)
    for wave, share in zip(WAVENUMBERS, energies / energies.sum(), strict=True):
        near = np.abs(spectrum.wavenumbers - wave) < 50.0
        found = spectrum.density[near].sum() * spectrum.wavenumbers[1]
        assert found == pytest.approx(share, rel=0.02)


def test_drift_and_rotation_do_not_part_or_move_lines():
    frames = vibrating()
    still, moving = (velocity_spectrum(one, 10.0) for one in (frames, turning(frames, 700.0)))
    np.testing.assert_allclose(moving.peaks(), still.peaks(), atol=0.5)
    assert len(moving.peaks()) == 3


def test_autocorrelation_is_that_of_the_vibrations():
    frames = vibrating(frames=20000, dt_fs=0.5)
    found = velocity_autocorrelation(frames, 100.0)
    assert len(found) == 201
    modes = Harmonic(water_hessian(), WATER.positions)._modes(MASSES)[1][:, -3:]
    weighted = np.repeat(np.sqrt(MASSES), 3) * frames.velocities.reshape(len(frames), -1)
    shares = np.square(weighted @ modes).mean(axis=0)
    times = 0.5 * np.arange(201)
    angular = 2.0 * np.pi * WAVENUMBERS / units.PER_CM
    expected = (shares * np.cos(angular * times[:, None])).sum(axis=1) / shares.sum()
    np.testing.assert_allclose(found, expected, atol=0.02)
    with pytest.raises(InputError, match="no run of frames is as long as 20000 fs"):
        velocity_autocorrelation(frames, 20000.0)


def test_what_makes_no_spectrum_is_refused():
    frames = vibrating(frames=100)
    with pytest.raises(InputError, match=r"needs windows of 3,336 frames; the longest run has 100"):
        velocity_spectrum(frames, 10.0)
    with pytest.raises(ConfigError, match="resolution=0"):
        velocity_spectrum(frames, 0.0)
    bare = MoleculeFrames("water", frames.numbers, frames.positions)
    with pytest.raises(InputError, match="--frame-spacing"):
        velocity_spectrum(bare)
    still = MoleculeFrames(
        "water", frames.numbers, frames.positions, velocities=np.ones((100, 3, 3)), dt_fs=10.0
    )
    with pytest.raises(InputError, match="nothing moves within"):
        velocity_spectrum(still, 100.0)


def test_command_reads_a_trajectory_and_compares_with_a_hessian(tmp_path):
    """Nitrogen on a spring, moved by ASE: the peak is that of the discrete motion."""
    step, stiffness = 1.0, 140.0
    atoms = molecule("N2")
    atoms.calc = Springs(stiffness, atoms.get_distance(0, 1))
    atoms.set_velocities([[0.0, 0.0, 0.02], [0.0, 0.0, -0.02]])
    frames = []
    dynamics = VelocityVerlet(atoms, step * units.FS)
    for index in range(600):
        frame = Atoms(atoms.numbers, atoms.positions, momenta=atoms.get_momenta())
        frame.info["time_fs"] = step * index
        frames.append(frame)
        dynamics.run(1)
    ase.io.write(tmp_path / "nitrogen.extxyz", frames)
    arguments = ["evaluate", "spectrum", str(tmp_path / "nitrogen.extxyz"), "--resolution", "60"]
    pictures = tmp_path / "pictures"
    done = CliRunner().invoke(app, [*arguments, "--plots", str(pictures), "--json"])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    angular = np.sqrt(2.0 * stiffness / atoms.get_masses()[0]) * units.FS
    discrete = 2.0 / step * np.arcsin(0.5 * angular * step)
    (peak,) = found["peaks_per_cm"]
    assert peak == pytest.approx(discrete / (2.0 * np.pi) * units.PER_CM, abs=0.5)
    assert found["autocorrelation"][0] == 1.0
    assert (pictures / "nitrogen-spectrum.png").read_bytes().startswith(b"\x89PNG")
    # The model has its own opinion on nitrogen.
    shown = CliRunner().invoke(app, [*arguments, "--model", "mdet-small-organics-gfn2"])
    row = [float(word) for word in shown.stdout.split("│")[1:4]]
    assert 2200.0 < row[0] < 2700.0
    assert row[1] == pytest.approx(peak, abs=0.06)
    assert row[2] == pytest.approx(peak - row[0], abs=0.11)


def test_trajectories_of_one_molecule_are_averaged_over():
    both = vibrating(runs=2)
    first, second = (both.select(both.segment == run) for run in range(2))
    alone = replace(second, segment=None)
    (joined,) = joined_runs([first, alone])
    assert joined.segment.tolist() == both.segment.tolist()
    one, other = (velocity_spectrum(frames, 20.0) for frames in (joined, both))
    assert one.windows == other.windows
    np.testing.assert_array_equal(one.density, other.density)
    # What is another molecule, or sampled otherwise, stays by itself.
    others = [replace(alone, name="other"), replace(alone, dt_fs=2.0), replace(alone, charge=1)]
    assert len(joined_runs([first, alone, *others])) == 4
    assert joined_runs([alone])[0] is alone


def write_vibrating(path, dt_fs):
    """A file of exact vibrations."""
    frames = vibrating(frames=1200, dt_fs=dt_fs)
    written = []
    for index in range(len(frames)):
        atoms = Atoms(WATER.numbers, frames.positions[index])
        atoms.set_velocities(frames.velocities[index] / units.FS)
        atoms.info["time_fs"] = dt_fs * index
        written.append(atoms)
    ase.io.write(path, written)


def test_command_compares_with_other_dynamics_and_says_what_is_folded_back(tmp_path):
    for folder, dt_fs in (("often", 2.0), ("seldom", 8.0)):
        (tmp_path / folder).mkdir()
        write_vibrating(tmp_path / folder / "water.extxyz", dt_fs)

    def spectrum(folder, *options):
        path = tmp_path / folder / "water.extxyz"
        arguments = ["evaluate", "spectrum", str(path), "--resolution", "40", *options]
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    often = spectrum("often", "--json")
    reference = tmp_path / "often.json"
    reference.write_text(often.stdout)
    assert "folded back" not in often.stderr
    seldom = spectrum("seldom", "--reference", str(reference))
    assert "frames 8 fs apart tell wavenumbers up to 2085/cm" in seldom.stderr
    assert "folded back" in seldom.stderr
    same = spectrum("often", "--reference", str(reference)).stdout
    rows = [line.split("│")[1:4] for line in same.splitlines() if line.startswith("│")]
    peaks = json.loads(often.stdout)[0]["peaks_per_cm"]
    assert [float(row[0]) for row in rows] == pytest.approx(peaks, abs=0.06)
    assert {row[2].strip() for row in rows} == {"+0.0"}
    rows = [line.split("│")[1:4] for line in seldom.stdout.splitlines() if line.startswith("│")]
    too_fast = [row for row in rows if float(row[0]) > 2085.0]
    assert too_fast
    assert all(row[1].strip() == "–" for row in too_fast)
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(InputError, match="the reference has nothing, but not water"):
        spectrum("often", "--reference", str(tmp_path / "empty.json"))
    with pytest.raises(ModelFileError, match="is not a spectrum"):
        spectrum("often", "--reference", str(tmp_path / "often" / "water.extxyz"))
