"""Averages with errors, drifts, summaries and pictures of runs."""

import dataclasses

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from mlmd_calc import units
from mlmd_calc.analysis import block_average, fit_drift, summarise
from mlmd_calc.analysis.demo_picture import DemoFrames, DemoRun, plot_demo
from mlmd_calc.analysis.plots import plot_run
from mlmd_calc.analysis.statistics import Mean
from mlmd_calc.analysis.trajectory import misses_thermostat
from mlmd_calc.analysis.verdicts import as_temperature, judge
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import Bonds
from mlmd_calc.md import Ensemble, MDSettings, RunRecord
from mlmd_calc.md.frames import frame_dtype
from mlmd_calc.md.record import Description


def ar1(phi, length, rng):
    """A stationary first-order autoregressive process of unit variance."""
    noise = rng.standard_normal(length) * np.sqrt(1 - phi**2)
    series = np.empty(length)
    series[0] = rng.standard_normal()
    for index in range(1, length):
        series[index] = phi * series[index - 1] + noise[index]
    return series


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_block_average_of_a_correlated_process(phi):
    rng = np.random.default_rng(0)
    length = 8192
    means = [block_average(3.0 + ar1(phi, length, rng)) for _ in range(20)]
    # Variance of the mean of a long AR(1) process.
    exact = np.sqrt((1 + phi) / (1 - phi) / length)
    assert all(mean.resolved for mean in means)
    assert np.mean([mean.standard_error for mean in means]) == pytest.approx(exact, rel=0.15)
    assert np.std([mean.value for mean in means]) == pytest.approx(exact, rel=0.5)
    assert abs(np.mean([mean.value for mean in means]) - 3.0) < 4 * exact / np.sqrt(len(means))


def test_block_average_says_when_the_series_is_too_short():
    slow = np.cos(np.linspace(0, np.pi, 64))
    mean = block_average(slow)
    assert not mean.resolved
    assert mean.standard_error > np.std(slow) / np.sqrt(len(slow))


def test_block_average_of_a_constant():
    mean = block_average(np.full(50, 2.5))
    assert (mean.value, mean.standard_error, mean.resolved) == (2.5, 0.0, True)


def test_block_average_refuses_a_handful_of_values():
    with pytest.raises(InputError, match="5 values"):
        block_average(np.arange(5.0))


def test_drift_is_found_below_a_huge_offset():
    times = np.linspace(0.0, 10.0, 1001)
    wave = 0.3 * np.sin(2 * np.pi * times)
    drift = fit_drift(times, -4.0e6 + 0.02 * times + wave)
    assert drift.slope == pytest.approx(0.02, abs=0.02)
    line = fit_drift(times, 5.0 - 0.25 * times)
    assert line.slope == pytest.approx(-0.25, rel=1e-9)
    assert line.fluctuation == pytest.approx(0.0, abs=1e-9)
    assert drift.fluctuation == pytest.approx(np.std(wave), rel=0.02)


def test_drift_needs_two_values():
    with pytest.raises(InputError, match="1 values"):
        fit_drift(np.zeros(1), np.zeros(1))


def make_record(ensemble=Ensemble.NVE, frames=200, failed=False, energy=True, seed=0):
    """Two bonded atoms with made-up energies: 20 meV/ps of drift, and a bond that swings."""
    rng = np.random.default_rng(seed)
    settings = MDSettings(ensemble, timestep_fs=0.5, interval=10)
    description = Description(
        numbers=np.array([6, 8]),
        masses=np.array([12.0, 16.0]),
        bonds=Bonds(np.array([[0, 1]]), np.array([1.0])),
        settings=settings,
        degrees_of_freedom=1,
        info={},
    )
    records = np.zeros(frames, dtype=frame_dtype(2))
    records["step"] = settings.interval * np.arange(frames)
    times = records["step"] * settings.timestep_fs / units.FS_PER_PS
    kinetic = 0.5 * units.KB * 300.0 * (1 + 0.3 * rng.standard_normal(frames))
    records["kinetic"] = kinetic
    records["potential"] = -1000.0 + 0.020 * times - kinetic if energy else np.nan
    stretch = 0.6 * np.sin(2 * np.pi * times)
    records["positions"][:, 1, 0] = 1.0 + stretch
    records["bond_deviation"] = np.abs(stretch)
    return RunRecord(description, records, failed)


def test_summary_of_a_run():
    record = make_record()
    summary = summarise(record)
    assert summary.time_ps == pytest.approx(record.times_ps[-1])
    # Two atoms share the drift.
    assert summary.energy.slope == pytest.approx(10.0, rel=1e-6)
    assert summary.energy.fluctuation == pytest.approx(0.0, abs=1e-6)
    assert summary.temperature.value == pytest.approx(record.temperatures.mean())
    assert summary.bond == "C0-O1"
    assert summary.bond_deviation == record.frames["bond_deviation"].max()
    beyond = record.times_ps[record.frames["bond_deviation"] > 0.5]
    assert summary.broken_at_ps == beyond[0]


def test_temperature_leaves_out_the_warming_up_only_with_a_thermostat():
    for ensemble, skipped in ((Ensemble.LANGEVIN, 40), (Ensemble.NVE, 0)):
        record = make_record(ensemble)
        record.frames["kinetic"][:40] = 0.0
        expected = record.temperatures[skipped:].mean()
        assert summarise(record).temperature.value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "span_ps", "off"),
    [
        (305.0, 1000.0, False),
        (396.0, 1000.0, True),
        (204.0, 1000.0, True),
        (396.0, 2.0, False),
        # A molecule from a minimum, long before the thermostat has warmed it up.
        (120.0, 0.04, False),
    ],
)
def test_a_thermostat_that_is_not_obeyed_is_noticed(value, span_ps, off):
    # In 2 ps with 1/ps, chance alone explains 100 K in 27 degrees of freedom.
    mean = Mean(value, 1.0, True)
    assert misses_thermostat(mean, MDSettings(), 27, span_ps) is off
    assert not misses_thermostat(mean, MDSettings(Ensemble.NVE), 27, span_ps)


def test_a_thermostat_leaves_no_drift_to_speak_of():
    assert summarise(make_record(Ensemble.LANGEVIN)).energy is None


def test_summary_of_hardly_any_frames():
    summary = summarise(make_record(frames=1))
    assert summary.temperature is None
    assert summary.energy is None
    assert summary.to_dict()["energy_drift_meV_per_atom_per_ps"] is None


def test_summary_without_energy_or_bonds():
    record = make_record(energy=False)
    bare = Bonds(np.zeros((0, 2), dtype=np.int64), np.zeros(0))
    object.__setattr__(record.description, "bonds", bare)
    summary = summarise(record)
    assert summary.energy is None
    assert summary.bond is None
    assert summary.bond_deviation is None


@pytest.mark.parametrize(
    "record",
    [
        make_record(),
        make_record(Ensemble.LANGEVIN),
        make_record(energy=False),
        make_record(frames=1),
    ],
    ids=["nve", "langevin", "no energy", "one frame"],
)
def test_pictures_of_single_runs(tmp_path, record):
    before = dict(matplotlib.rcParams)
    path = tmp_path / "run.png"
    plot_run(record, path, "a run")
    image = imread(path)
    # Three panels of data on white.
    assert image.shape[0] > image.shape[1]
    assert (image[..., :3].min(axis=-1) < 0.9).mean() > 0.01
    assert dict(matplotlib.rcParams) == before


def judged(ensemble, ps, kelvin=300.0, drift=0.0, swing=0.0, failed=False, deviation=0.1):
    """Judge a made-up run; drift in meV/atom/ps, swing of its energy in meV/atom."""
    record = make_record(ensemble, frames=round(ps / 0.005) + 1, failed=failed)
    times = record.times_ps
    record.frames["kinetic"] *= 27 * kelvin / 300.0
    energy = 2e-3 * (drift * times + swing * np.sin(2 * np.pi * times / 0.1))
    record.frames["potential"] = energy - record.frames["kinetic"]
    record.frames["bond_deviation"] = deviation
    settings = dataclasses.replace(record.description.settings, friction_per_ps=10.0)
    description = dataclasses.replace(record.description, settings=settings, degrees_of_freedom=27)
    return judge(RunRecord(description, record.frames, failed))


@pytest.mark.parametrize(
    ("ps", "kelvin", "sound", "words"),
    [
        (50.0, 300.0, True, "agrees with 300 K"),
        (50.0, 396.0, False, "K too hot, more than chance"),
        (50.0, 204.0, False, "K too cold, more than chance"),
        # In 1 ps chance alone explains a hundred kelvin.
        (1.0, 396.0, None, "too short to tell"),
        (1.0, 300.0, None, "too short to tell"),
        (0.02, 300.0, None, "too few frames"),
    ],
)
def test_verdict_on_a_temperature(ps, kelvin, sound, words):
    verdict = judged(Ensemble.LANGEVIN, ps, kelvin)
    assert verdict.sound is sound
    assert words in verdict.sentence


@pytest.mark.parametrize(
    ("ps", "drift", "swing", "sound", "words"),
    [
        (2.0, 0.001, 0.05, True, "keeps its energy: < 0.1 K per ps"),
        (2.0, 5.0, 0.5, False, "heats by 19 K per ps"),
        (2.0, -5.0, 0.5, False, "cools by 19 K per ps"),
        (1.0, 0.5, 3.0, False, "energy swings by ±8 K"),
        # A swing of less than a kelvin, in which 2 K/ps would hide.
        (0.6, 0.0, 0.3, None, "too short to tell"),
        (0.1, 5.0, 0.0, None, "too short to tell"),
    ],
)
def test_verdict_on_an_energy(ps, drift, swing, sound, words):
    verdict = judged(Ensemble.NVE, ps, drift=drift, swing=swing)
    assert verdict.sound is sound
    assert words in verdict.sentence


def test_verdict_on_runs_that_came_to_a_bad_end():
    assert judged(Ensemble.NVE, 2.0, failed=True).sentence == "failed after 2.00 ps"
    verdict = judged(Ensemble.LANGEVIN, 50.0, deviation=0.6)
    assert verdict.sound is False
    assert "bond C0-O1" in verdict.sentence


def test_heating_is_that_of_harmonic_vibrations():
    # 3 n vibrations of kT hold 3 kT per atom: 0.2585 meV/atom for a kelvin.
    assert as_temperature(3e3 * units.KB) == pytest.approx(1.0)


def test_demo_picture_marks_failed_runs_and_says_what_is_missing(tmp_path):
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (30, 2))

    def draw(failed, frames):
        path = tmp_path / f"{failed}{frames is None}.png"
        runs = [
            DemoRun("energy", make_record(), 0.1, 0),
            DemoRun("steps", make_record(Ensemble.LANGEVIN), 0.1, 1),
            DemoRun("failed", make_record(Ensemble.LANGEVIN, 5, failed, seed=1), None, 2),
        ]
        plot_demo(runs, frames, path, "overview")
        return imread(path)

    frames = DemoFrames(angles, "frames", "30 frames")
    before = dict(matplotlib.rcParams)
    pictures = [draw(True, frames), draw(False, frames), draw(True, None)]
    assert dict(matplotlib.rcParams) == before
    for other in pictures[1:]:
        assert not np.array_equal(pictures[0], other)
