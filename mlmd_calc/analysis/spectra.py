"""Vibrational spectra of trajectories, and the frequencies of a Hessian to compare them with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import ase.data
import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.linalg import null_space
from scipy.signal import find_peaks

from mlmd_calc import units
from mlmd_calc.data.frames import Float64Array, MoleculeFrames
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.propagation import State
from mlmd_calc.propagation.corrections import rigid_basis
from mlmd_calc.wording import counted

_FEWEST: Final = 16
"""Frames of a window."""

_PROMINENCE: Final = 0.01
"""Of a peak above what is around it, as a fraction of the highest peak."""


@dataclass(frozen=True)
class Spectrum:
    """Power spectrum of the velocities within a molecule.

    Attributes
    ----------
    wavenumbers
        ``(k,)`` 1/cm, equally spaced from 0 to what the time between frames can tell.
    density
        ``(k,)`` share of the kinetic energy per 1/cm; its integral is 1.
    resolution
        Spacing of the wavenumbers before interpolation, 1/cm: two lines that are closer than twice
        this are one.
    windows
        Parts of the trajectory that were averaged over.
    """

    wavenumbers: Float64Array
    density: Float64Array
    resolution: float
    windows: int

    def peaks(self) -> Float64Array:
        """Wavenumbers of the maxima that stand out by a hundredth of the highest, ascending."""
        least = _PROMINENCE * float(self.density.max())
        index, _ = find_peaks(self.density, prominence=least)
        # A parabola through the logarithms of three points, which for a Gaussian line is exact.
        left, top, right = (
            np.log(np.maximum(self.density[index + shift], 1e-300)) for shift in (-1, 0, 1)
        )
        bend = left - 2.0 * top + right
        shift = np.where(bend < 0.0, 0.5 * (left - right) / np.where(bend < 0.0, bend, 1.0), 0.0)
        spacing = self.wavenumbers[1] - self.wavenumbers[0]
        found: Float64Array = self.wavenumbers[index] + shift * spacing
        return found


def velocity_spectrum(molecule: MoleculeFrames, resolution: float = 10.0) -> Spectrum:
    """Power spectrum of mass-weighted velocities, in the frame that moves with the molecule.

    Velocities of the centre of mass and of the rotation are taken out, and the others are turned
    into the frame in which the first frame of each run lies, so that lines are not parted by the
    rotation. The spectrum is the mean over half-overlapping windows (Hann's) of the trajectory and
    over atoms and directions,

        S(ν) ∝ Σ m |∫ w(t) v(t) exp(−2πi ν t) dt|²

    which is the Fourier transform of the velocity autocorrelation.

    Parameters
    ----------
    molecule
        Frames with velocities at equal spacing.
    resolution
        1/cm. Windows are as long as it asks for, 33.4 ps over the resolution.

    Raises
    ------
    ConfigError
        If the resolution is not positive.
    InputError
        If there are no velocities or frame spacing, or no run of frames is as long as a window.
    """
    if not resolution > 0.0:
        raise ConfigError(f"resolution={resolution:g} 1/cm; it must be above 0")
    runs, dt_fs = _internal_runs(molecule)
    length = round(units.PER_CM / (resolution * dt_fs))
    longest = max(len(run) for run in runs)
    if not _FEWEST <= length <= longest:
        best = units.PER_CM / (longest * dt_fs)
        raise InputError(
            f"molecule {molecule.name!r}: a resolution of {resolution:g} 1/cm needs windows of "
            f"{counted(length, 'frame')}; the longest run has {longest}, and {_FEWEST} are the "
            f"fewest. Choose a resolution of {best:.2g} 1/cm or more, or sample more often or "
            "longer"
        )
    taper = np.hanning(length + 1)[:-1, None]
    # Zeros at the end interpolate between the wavenumbers that the window tells apart.
    padded = 4 * length
    power, windows = np.zeros(padded // 2 + 1), 0
    for run in runs:
        for start in range(0, len(run) - length + 1, max(1, length // 2)):
            amplitudes = np.fft.rfft(taper * run[start : start + length], padded, axis=0)
            power += np.square(np.abs(amplitudes)).sum(axis=1)
            windows += 1
    wavenumbers: Float64Array = np.fft.rfftfreq(padded, dt_fs).astype(float) * units.PER_CM
    area = float(trapezoid(power, wavenumbers))
    if not area > 0.0:
        raise InputError(f"molecule {molecule.name!r}: nothing moves within the molecule")
    return Spectrum(wavenumbers, power / area, units.PER_CM / (length * dt_fs), windows)


def joined_runs(molecules: Sequence[MoleculeFrames]) -> list[MoleculeFrames]:
    """Join the trajectories of each molecule, such as those of replicas, as runs of one.

    Trajectories belong together if name, atoms, charge, multiplicity and frame spacing are the
    same. Of frames positions, velocities and their runs are kept.
    """
    together: dict[tuple[object, ...], list[MoleculeFrames]] = defaultdict(list)
    for one in molecules:
        moving = one.velocities is not None
        together[one.name, one.numbers.tobytes(), one.state, one.dt_fs, moving].append(one)
    return [_joined(parts) for parts in together.values()]


def _joined(parts: list[MoleculeFrames]) -> MoleculeFrames:
    if len(parts) == 1:
        return parts[0]
    velocities = [part.velocities for part in parts if part.velocities is not None]
    segments, first = [], 0
    for part in parts:
        own = np.zeros(len(part), dtype=np.int64) if part.segment is None else part.segment
        segments.append(first + own)
        first = int(segments[-1].max()) + 1
    return replace(
        parts[0],
        positions=np.concatenate([part.positions for part in parts]),
        velocities=np.concatenate(velocities) if velocities else None,
        forces=None,
        energies=None,
        segment=np.concatenate(segments),
    )


def velocity_autocorrelation(molecule: MoleculeFrames, most_fs: float) -> Float64Array:
    """Autocorrelation of the velocities within a molecule, weighted by mass, 1 at the start.

    Returns
    -------
    ndarray
        ``(k,)`` at 0, 1, ... times the frame spacing up to ``most_fs``.

    Raises
    ------
    InputError
        If there are no velocities or frame spacing, or no run of frames is longer than the time.
    """
    runs, dt_fs = _internal_runs(molecule)
    lags = int(most_fs / dt_fs) + 1
    runs = [run for run in runs if len(run) >= lags]
    if not runs:
        raise InputError(
            f"molecule {molecule.name!r}: no run of frames is as long as {most_fs:g} fs; ask for a "
            "shorter time"
        )
    sums = np.zeros(lags)
    counts = np.zeros(lags)
    for run in runs:
        # Twice as long, or the end would be correlated with the beginning.
        amplitudes = np.fft.rfft(run, 2 * len(run), axis=0)
        products = np.fft.irfft(np.square(np.abs(amplitudes)).sum(axis=1), 2 * len(run))
        sums += products[:lags]
        counts += len(run) - np.arange(lags)
    means: Float64Array = sums / counts
    scaled: Float64Array = means / means[0]
    return scaled


def _internal_runs(molecule: MoleculeFrames) -> tuple[list[Float64Array], float]:
    """Mass-weighted internal velocities ``(f, 3 n)`` of each run, and the frame spacing in fs."""
    if molecule.velocities is None or molecule.dt_fs is None:
        raise InputError(
            f"molecule {molecule.name!r} has no velocities or no frame spacing; spectra are of "
            "trajectories, such as mlmd run writes. For other files give --velocity-unit and "
            "--frame-spacing"
        )
    segment = np.zeros(len(molecule)) if molecule.segment is None else molecule.segment
    cuts = 1 + np.flatnonzero(np.diff(segment) != 0)
    masses = ase.data.atomic_masses[molecule.numbers]
    parts = zip(
        np.split(molecule.positions.astype(np.float64), cuts),
        np.split(molecule.velocities.astype(np.float64), cuts),
        strict=True,
    )
    return [_internal(x, v, masses) for x, v in parts], molecule.dt_fs


def _internal(x: Float64Array, v: Float64Array, masses: Float64Array) -> Float64Array:
    """Mass-weighted velocities ``(f, 3 n)`` in the frame that moves with the molecule."""
    x = x - np.average(x, axis=1, weights=masses)[:, None]
    v = v - np.average(v, axis=1, weights=masses)[:, None]
    momentum = np.einsum("a,fai->fi", masses, np.cross(x, v))
    squares = np.einsum("a,fai,faj->fij", masses, x, x)
    inertia = np.trace(squares, axis1=1, axis2=2)[:, None, None] * np.eye(3) - squares
    # About the axis of a linear molecule there is no rotation.
    omega = np.einsum("fij,fj->fi", np.linalg.pinv(inertia, rcond=1e-8, hermitian=True), momentum)
    v = v - np.cross(omega[:, None], x)
    u, _, vh = np.linalg.svd(np.einsum("a,fai,aj->fij", masses, x, x[0]))
    sign = np.sign(np.linalg.det(u @ vh))
    u[:, :, 2] *= sign[:, None]
    turned: Float64Array = (v @ (u @ vh)) * np.sqrt(masses)[:, None]
    return turned.reshape(len(x), -1)


def harmonic_wavenumbers(
    hessian: Float64Array, numbers: NDArray[np.integer], positions: Float64Array
) -> Float64Array:
    """Wavenumbers of the vibrations of a minimum, ascending.

    Parameters
    ----------
    hessian
        ``(3 n, 3 n)`` eV/Å².
    numbers
        Atomic numbers, ``(n,)``.
    positions
        ``(n, 3)`` Å, of the minimum.

    Returns
    -------
    ndarray
        1/cm, ``(3 n - 6,)``, of a linear molecule ``(3 n - 5,)``; negative for imaginary ones.
    """
    masses = ase.data.atomic_masses[numbers]
    root = np.repeat(np.sqrt(masses), 3)
    weighted = hessian / np.outer(root, root)
    at_rest = State(positions, np.zeros_like(positions), numbers.astype(np.int64), masses)
    inner = null_space(rigid_basis(at_rest).T)
    squares = np.linalg.eigvalsh(inner.T @ weighted @ inner)
    per_fs = np.sign(squares) * np.sqrt(np.abs(squares)) * units.FS / (2.0 * np.pi)
    found: Float64Array = per_fs * units.PER_CM
    return found
