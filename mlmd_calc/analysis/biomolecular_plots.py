"""Pictures of ensembles of biomolecules, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.analysis.ensembles import Frames, project
from mlmd_calc.analysis.plots import COLOURS
from mlmd_calc.geometry.stereochemistry import angle_histogram
from mlmd_calc.io.figures import new_figure

_BINS = 72
"""Of each angle in a Ramachandran plot: 5° wide."""


def plot_rmsf(fluctuations: Mapping[str, NDArray[np.float64]], path: Path, title: str) -> None:
    """Draw fluctuations along the molecule.

    Parameters
    ----------
    fluctuations
        Name of each ensemble, to the RMSF of its atoms ``(a,)`` in Å.
    path
        PNG file to write.
    title
        Heading of the picture.
    """
    figure, axes = _figure(1, title)
    for (name, values), colour in zip(fluctuations.items(), COLOURS, strict=False):
        places = np.arange(1, len(values) + 1)
        axes[0].plot(places, values, color=colour, marker=".", linewidth=1.1, label=name)
    axes[0].set(xlabel="atom", ylabel="RMSF (Å)", ylim=(0.0, None))
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(**_LEGEND)
    figure.savefig(path)


def plot_rmsd(distances: Mapping[str, NDArray[np.float64]], interval_ps: float, path: Path) -> None:
    """Draw distances from the start against time.

    Parameters
    ----------
    distances
        Name of each trajectory, to the RMSD of its frames ``(f,)`` Å.
    interval_ps
        Time between frames.
    path
        PNG file to write.
    """
    figure, (axis,) = _figure(1, "")
    for name, own in distances.items():
        axis.plot(interval_ps * np.arange(len(own)), own, linewidth=1.0, label=name)
    axis.set(xlabel="time (ps)", ylabel="RMSD from the start (Å)")
    if len(distances) <= _FEW:
        axis.legend(**_LEGEND)
    figure.savefig(path)


def plot_pca(ensembles: Mapping[str, Frames], path: Path, title: str) -> None:
    """Draw ensembles side by side on the first two principal components of the first one.

    Parameters
    ----------
    ensembles
        Name of each ensemble, to its superposed frames ``(f, a, 3)`` in Å.
    path
        PNG file to write.
    title
        Heading of the picture.
    """
    figure, axes = _figure(len(ensembles), title)
    basis = next(iter(ensembles.values()))
    for axis, (name, frames), colour in zip(axes, ensembles.items(), COLOURS, strict=False):
        points = project(frames, basis)
        axis.plot(*points.T, color=colour, marker=".", markersize=2.5, alpha=0.4, linestyle="")
        axis.set(title=name, xlabel="first component (Å)")
    axes[0].set_ylabel("second component (Å)")
    figure.savefig(path)


def plot_ramachandran(angles: Mapping[str, NDArray[np.float64]], path: Path, title: str) -> None:
    """Draw the density of (φ, ψ) of ensembles side by side, as free energy in units of kT.

    Parameters
    ----------
    angles
        Name of each ensemble, to φ and ψ ``(f, r, 2)`` in radians; residues are taken together.
    path
        PNG file to write.
    title
        Heading of the picture.
    """
    figure, axes = _figure(len(angles), title)
    counts = [angle_histogram(values.reshape(-1, 2), _BINS) for values in angles.values()]
    energies = [np.log(count.max() / np.where(count > 0, count, np.nan)) for count in counts]
    highest = max(np.nanmax(energy) for energy in energies)
    for axis, name, energy in zip(axes, angles, energies, strict=True):
        image = axis.imshow(
            energy.T,
            origin="lower",
            extent=(-180, 180, -180, 180),
            aspect="auto",
            vmin=0.0,
            vmax=highest,
        )
        axis.set(title=name, xlabel="φ (°)", xticks=_TICKS, yticks=_TICKS)
    axes[0].set_ylabel("ψ (°)")
    figure.colorbar(image, ax=list(axes), label="free energy (kT)", shrink=0.9)
    figure.savefig(path)


def plot_backbone(angles: NDArray[np.float64], path: Path) -> None:
    """Draw (φ, ψ) of every frame as a point, in one colour for each residue.

    Parameters
    ----------
    angles
        φ and ψ ``(f, r, 2)`` in radians.
    path
        PNG file to write.
    """
    figure, (axis,) = _figure(1, "")
    figure.set_size_inches(5.5, 5.0)
    for residue in range(angles.shape[1]):
        phi, psi = np.degrees(angles[:, residue]).T
        axis.plot(phi, psi, ".", markersize=4, alpha=0.6, label=f"residue {residue + 1}")
    axis.set(xlim=(-180, 180), ylim=(-180, 180))
    axis.set_aspect("equal")
    axis.set(xlabel="φ (°)", ylabel="ψ (°)", xticks=_TICKS, yticks=_TICKS)
    if angles.shape[1] <= _FEW:
        axis.legend(**_LEGEND)
    figure.savefig(path)


_FEW = 8
"""Lines that a legend can tell apart."""
_TICKS = range(-120, 121, 60)
_LEGEND: dict[str, Any] = {
    # Above the panel, where it covers no data.
    "loc": "lower left",
    "bbox_to_anchor": (0.0, 1.0),
    "ncols": 4,
    "frameon": False,
    "fontsize": "small",
    "borderaxespad": 0.2,
}


def _figure(columns: int, title: str) -> tuple[Any, Any]:
    """Figure with one row of panels that share their axes."""
    figure = new_figure(8.0 if columns == 1 else 1.5 + 4.0 * columns, 4.5, title=title)
    axes = figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.25)
    return figure, axes
