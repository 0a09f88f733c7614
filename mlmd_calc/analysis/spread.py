"""What the spread of the forces, which a potential knows by itself, tells of their error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mlmd_calc import units
from mlmd_calc.analysis.accuracy import spread_index, structures_of
from mlmd_calc.analysis.statistics import root_mean_square
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.potential import Potential
from mlmd_calc.potential.coverage import Coverage

BINS: Final = 10
_FEWEST: Final = 3 * BINS
"""Structures from which on a calibration curve says something."""

_FEWEST_OF_A_MOLECULE: Final = 10


@dataclass(frozen=True)
class SpreadsAndErrors:
    """Spreads and errors of frames of one molecule, as root mean square over components.

    Attributes
    ----------
    name
        Name of the molecule.
    spreads, errors
        ``(f, n)`` eV/Å.
    """

    name: str
    spreads: NDArray[np.float64]
    errors: NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationBin:
    """Structures of similar spread.

    Attributes
    ----------
    structures
        How many.
    spread, error
        Root mean squares over all force components, meV/Å.
    low, high
        A tenth of the structures have an error below, and a tenth above, meV/Å.
    """

    structures: int
    spread: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class SpreadCalibration:
    """How well spread tells error.

    Attributes
    ----------
    structures
        How many were compared.
    rank_correlation
        Spearman's coefficient of spread and error of structures.
    rank_correlation_within
        The same among frames of one molecule, mean over molecules; None if none has enough frames.
    rank_correlation_atoms
        The same of single atoms.
    error_by_spread
        Root mean square error over root mean square spread: 1 if the spread is the error.
    bins
        Calibration curve, from the smallest to the largest spread.
    max_spread
        Limit in eV/Å that the chosen share of the structures keeps.
    share_kept
        That share.
    error_within, error_beyond
        Root mean square errors of the structures within and beyond the limit, meV/Å.
    worst_found
        Share of the structures with the largest errors, as many as are beyond the limit, that are.
    """

    structures: int
    rank_correlation: float
    rank_correlation_within: float | None
    rank_correlation_atoms: float
    error_by_spread: float
    bins: tuple[CalibrationBin, ...]
    max_spread: float
    share_kept: float
    error_within: float
    error_beyond: float
    worst_found: float


def spreads_and_errors(
    potential: Potential, molecule: MoleculeFrames, most: int | None = None
) -> SpreadsAndErrors:
    """Compare forces with labels, for at most ``most`` frames of a molecule, evenly spread.

    Parameters
    ----------
    potential
        Knows the spread of its forces (``on_spread="measure"``).
    molecule
        Frames with forces.
    most
        Largest number of frames; None for all.

    Raises
    ------
    ConfigError
        If the potential knows no spread.
    InputError
        If the molecule has no forces.
    """
    if potential.spread_limit is None:
        raise ConfigError("the potential knows no spread; make it with on_spread='measure'")
    if molecule.forces is None:
        raise InputError(
            f"molecule {molecule.name!r} has no forces to compare with; "
            + molecule.where_labels_are("leave it out")
        )
    # How wrong a model is beyond its training data is worth measuring.
    results = potential.evaluate(structures_of(molecule, most), ["forces"], coverage=Coverage())
    forces = np.array([result.forces for result in results])
    errors = forces - molecule.forces[spread_index(len(molecule), most)]
    return SpreadsAndErrors(
        molecule.name,
        np.array([result.forces_spread for result in results]),
        np.sqrt(np.square(errors).mean(axis=-1)),
    )


def calibrate_spread(
    samples: Sequence[SpreadsAndErrors], share_kept: float = 0.95
) -> SpreadCalibration:
    """Say what spreads tell of errors.

    Parameters
    ----------
    samples
        Molecules.
    share_kept
        Share of the structures whose spread is within the limit to be chosen, between 0 and 1.

    Raises
    ------
    InputError
        If there are too few structures.
    ConfigError
        If the share is not between 0 and 1.
    """
    if not 0.0 < share_kept < 1.0:
        raise ConfigError(f"share_kept={share_kept:g}; it must be between 0 and 1, like 0.95")
    spreads = np.concatenate([_of_structures(sample.spreads) for sample in samples])
    errors = np.concatenate([_of_structures(sample.errors) for sample in samples])
    if len(spreads) < _FEWEST:
        raise InputError(
            f"{len(spreads)} structures are too few to calibrate with; give {_FEWEST} or more"
        )
    within = [
        _rank_correlation(_of_structures(sample.spreads), _of_structures(sample.errors))
        for sample in samples
        if len(sample.spreads) >= _FEWEST_OF_A_MOLECULE
    ]
    limit = float(np.quantile(spreads, share_kept))
    beyond = spreads > limit
    worst = np.argsort(errors)[-int(beyond.sum()) :]
    return SpreadCalibration(
        structures=len(spreads),
        rank_correlation=_rank_correlation(spreads, errors),
        rank_correlation_within=float(np.mean(within)) if within else None,
        rank_correlation_atoms=_rank_correlation(
            np.concatenate([sample.spreads.ravel() for sample in samples]),
            np.concatenate([sample.errors.ravel() for sample in samples]),
        ),
        error_by_spread=root_mean_square(errors) / root_mean_square(spreads),
        bins=tuple(
            _bin(spreads[part], errors[part]) for part in np.array_split(np.argsort(spreads), BINS)
        ),
        max_spread=limit,
        share_kept=share_kept,
        error_within=root_mean_square(errors[~beyond]) / units.MEV,
        error_beyond=root_mean_square(errors[beyond]) / units.MEV,
        worst_found=float(beyond[worst].mean()),
    )


def _of_structures(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square over the atoms, ``(f,)``."""
    roots: NDArray[np.float64] = np.sqrt(np.square(values).mean(axis=-1))
    return roots


def _rank_correlation(spreads: NDArray[np.float64], errors: NDArray[np.float64]) -> float:
    return float(spearmanr(spreads, errors).statistic)


def _bin(spreads: NDArray[np.float64], errors: NDArray[np.float64]) -> CalibrationBin:
    low, high = np.quantile(errors, (0.1, 0.9)) / units.MEV
    return CalibrationBin(
        structures=len(spreads),
        spread=root_mean_square(spreads) / units.MEV,
        error=root_mean_square(errors) / units.MEV,
        low=float(low),
        high=float(high),
    )
