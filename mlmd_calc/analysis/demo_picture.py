"""The picture of `mlmd demo`: energy, temperature, speed and a Ramachandran plot on one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.plots import COLOURS, GUIDE
from mlmd_calc.io.figures import new_figure
from mlmd_calc.md.record import RunRecord

_WINDOW_PS: Final = 1.0
"""Running means of temperatures are taken over this time, in all runs the same."""

_ANGLES: Final = range(-180, 181, 90)


@dataclass(frozen=True)
class DemoRun:
    """A run to draw.

    Attributes
    ----------
    label
        What it is called.
    record
        Its frames.
    ps_per_second
        Its speed; None if it failed at once.
    colour
        Index in `COLOURS`, the same for all runs of one method.
    """

    label: str
    record: RunRecord
    ps_per_second: float | None
    colour: int


@dataclass(frozen=True)
class DemoFrames:
    """Frames of a peptide to draw.

    Attributes
    ----------
    angles
        ``(f, 2)`` φ and ψ in radians.
    title
        What they are.
    note
        What else is to be said of them.
    """

    angles: NDArray[np.float64]
    title: str
    note: str


def plot_demo(runs: list[DemoRun], frames: DemoFrames | None, path: Path, title: str) -> None:
    """Draw runs of one molecule, with and without a thermostat, and frames of a peptide.

    Parameters
    ----------
    runs
        In any order; a cross marks the end of one that failed.
    frames
        None leaves a note in the place of the panel.
    path
        PNG file to write.
    title
        Heading of the picture.
    """
    figure = new_figure(12.0, 8.4, dpi=120)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)
    figure.suptitle(title, fontsize="x-large")
    (energy, temperature), (speed, ramachandran) = figure.subplots(2, 2)
    steered = [run for run in runs if run.record.description.settings.thermostatted]
    _draw_energies(energy, [run for run in runs if run not in steered])
    _draw_temperatures(temperature, steered)
    _draw_speeds(speed, steered)
    _draw_ramachandran(ramachandran, frames)
    for axis in (energy, temperature, ramachandran):
        axis.grid(alpha=0.25)
    figure.savefig(path)


def _draw_energies(axis: Any, runs: list[DemoRun]) -> None:
    axis.set_title("Without a thermostat: is energy conserved?")
    for run in runs:
        record = run.record
        scale = len(record.description.numbers) * units.MEV
        energies = (record.total_energies - record.total_energies[0]) / scale
        _draw_series(axis, run, record.times_ps, energies, linewidth=1.3)
    axis.set_xlabel("time (ps)")
    axis.set_ylabel("total energy since start (meV/atom)")
    low, high = axis.get_ylim()
    # Room for the legend, which covers no data then.
    axis.set_ylim(low, high + 0.3 * (high - low))
    axis.legend(loc="upper left", frameon=False)


def _draw_temperatures(axis: Any, runs: list[DemoRun]) -> None:
    axis.set_title("With a thermostat: is it 300 K?")
    for run in runs:
        times, kelvin = _running_mean(run.record)
        _draw_series(axis, run, times, kelvin, linewidth=1.3)
    wanted = runs[0].record.description.settings.temperature_K
    axis.axhline(wanted, **GUIDE)
    low, high = axis.get_ylim()
    # Room for the legend here, too.
    axis.set_ylim(min(low, 0.6 * wanted), max(high, 1.3 * wanted) + 0.25 * wanted)
    axis.set_xlabel("time (ps)")
    axis.set_ylabel(f"kinetic temperature, mean over {_WINDOW_PS:g} ps (K)")
    axis.legend(loc="upper right", frameon=False)


def _draw_series(
    axis: Any,
    run: DemoRun,
    times: NDArray[np.float64],
    values: NDArray[np.float64],
    **line: Any,
) -> None:
    colour = COLOURS[run.colour]
    axis.plot(times, values, color=colour, label=run.label, **line)
    if run.record.failed:
        axis.plot(times[-1:], values[-1:], color=colour, marker="x", markersize=9, mew=2.5)


def _draw_speeds(axis: Any, runs: list[DemoRun]) -> None:
    axis.set_title("How far does a second of one core get?")
    measured = [run for run in runs if run.ps_per_second is not None]
    speeds = [run.ps_per_second for run in measured]
    bars = axis.barh(
        range(len(measured)), speeds, color=[COLOURS[run.colour] for run in measured], height=0.55
    )
    axis.bar_label(bars, labels=[f"{speed:#.2g} ps/s" for speed in speeds], padding=5)
    axis.set_yticks(range(len(measured)), [run.label.replace(", ", "\n") for run in measured])
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_xlabel("simulated time per second of processor time (ps/s)")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_ramachandran(axis: Any, frames: DemoFrames | None) -> None:
    axis.set_title("A peptide without forces" if frames is None else frames.title)
    axis.set_xlabel("φ (°)")
    axis.set_ylabel("ψ (°)")
    axis.set(xlim=(-180, 180), ylim=(-180, 180), xticks=_ANGLES, yticks=_ANGLES)
    if frames is None:
        axis.text(0.0, 0.0, "left out", ha="center")
        return
    phi, psi = np.degrees(frames.angles).T
    axis.scatter(phi, psi, s=16, color=COLOURS[3], alpha=0.6, linewidths=0)
    axis.text(0.97, 0.04, frames.note, transform=axis.transAxes, ha="right")


def _running_mean(record: RunRecord) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Temperatures averaged over a window, or over all of a run that is shorter than two."""
    times, kelvin = record.times_ps, record.temperatures
    spacing = times[1] - times[0] if len(times) > 1 else _WINDOW_PS
    window = max(1, min(round(_WINDOW_PS / spacing), len(times) // 2))
    weights = np.full(window, 1.0 / window)
    return np.convolve(times, weights, mode="valid"), np.convolve(kelvin, weights, mode="valid")
