"""A quadratic potential and its exact motion: numbers to test integrators against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlmd_calc import units
from mlmd_calc.errors import ConfigError

_Modes: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]

_FREE: Final = 1e-10
"""Squared frequencies below this times the largest are those of free motion."""


class Harmonic:
    """Quadratic potential E = ½ (x − x₀)ᵀ H (x − x₀).

    Parameters
    ----------
    hessian
        H, ``(3 n, 3 n)`` eV/Å², symmetric; index 3·atom + axis.
    equilibrium
        x₀, ``(n, 3)`` Å.

    Raises
    ------
    ConfigError
        If the shapes do not fit together, or H is not symmetric or has a negative eigenvalue.
    """

    def __init__(self, hessian: ArrayLike, equilibrium: ArrayLike) -> None:
        self.hessian = np.array(hessian, dtype=np.float64)
        self.equilibrium = np.array(equilibrium, dtype=np.float64)
        size = self.equilibrium.size
        if self.equilibrium.shape != (size // 3, 3) or self.hessian.shape != (size, size):
            raise ConfigError(
                f"hessian has shape {self.hessian.shape} and equilibrium "
                f"{self.equilibrium.shape}; they must be (3 n, 3 n) and (n, 3)"
            )
        scale = np.abs(self.hessian).max()
        if not np.abs(self.hessian - self.hessian.T).max() <= _FREE * scale:
            raise ConfigError("hessian is not symmetric; pass (H + H.T) / 2")
        lowest = np.linalg.eigvalsh(self.hessian)[0]
        if lowest < -_FREE * scale:
            raise ConfigError(
                f"hessian has the negative eigenvalue {lowest:.3g} eV/Å²; all must be positive or "
                "zero"
            )
        self._known: tuple[NDArray[np.float64], _Modes] | None = None

    @classmethod
    def springs(cls, constants: ArrayLike) -> Harmonic:
        """Atoms coupled by springs of zero rest length, E = ½ Σᵢ﹤ⱼ kᵢⱼ |xᵢ − xⱼ|².

        No other quadratic potential is blind to translations and to finite rotations.

        Parameters
        ----------
        constants
            k, ``(n, n)`` eV/Å², symmetric.
        """
        k = np.array(constants, dtype=np.float64)
        laplacian = np.diag(k.sum(axis=1) - np.diag(k)) - (k - np.diag(np.diag(k)))
        return cls(np.kron(laplacian, np.eye(3)), np.zeros((len(k), 3)))

    @classmethod
    def tethers(cls, constant: float, anchors: ArrayLike) -> Harmonic:
        """Every atom on a spring of its own to a fixed point: 3 n independent oscillators.

        Parameters
        ----------
        constant
            eV/Å².
        anchors
            ``(n, 3)`` Å.
        """
        return cls(constant * np.eye(np.size(anchors)), anchors)

    def energy_and_forces(
        self, positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Energy in eV and forces ``(n, 3)`` eV/Å at positions ``(n, 3)`` Å."""
        displacement = (positions - self.equilibrium).ravel()
        slope = self.hessian @ displacement
        return 0.5 * float(displacement @ slope), -slope.reshape(-1, 3)

    def frequencies(self, masses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Angular frequencies ``(3 n,)`` in 1/fs, ascending, for masses ``(n,)`` amu."""
        return self._modes(masses)[0]

    def _modes(self, masses: NDArray[np.float64]) -> _Modes:
        """Frequencies in 1/fs and mass-weighted modes, those of the last masses from memory."""
        if self._known is None or not np.array_equal(self._known[0], masses):
            root = np.repeat(np.sqrt(masses), 3) / units.FS
            squares, modes = np.linalg.eigh(self.hessian / np.outer(root, root))
            squares[squares < _FREE * squares[-1]] = 0.0
            self._known = masses.copy(), (np.sqrt(squares), modes)
        return self._known[1]

    def evolve(
        self,
        positions: NDArray[np.float64],
        velocities: NDArray[np.float64],
        masses: NDArray[np.float64],
        times: Sequence[float],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Follow the exact motion, mode by mode.

        Parameters
        ----------
        positions, velocities
            ``(n, 3)`` Å and Å/fs, at time 0.
        masses
            ``(n,)`` amu.
        times
            fs.

        Returns
        -------
        tuple
            Positions and velocities ``(len(times), n, 3)`` at the times.
        """
        omega, modes = self._modes(masses)
        root = np.repeat(np.sqrt(masses), 3)
        q = (root * (positions - self.equilibrium).ravel()) @ modes
        p = (root * velocities.ravel()) @ modes
        time = np.asarray(times, dtype=np.float64)[:, None]
        cos, sin = np.cos(omega * time), np.sin(omega * time)
        # sin(ω t) / ω goes to t for free motion.
        sine = time * np.sinc(omega * time / np.pi)
        moved = (q * cos + p * sine) @ modes.T / root
        speed = (p * cos - q * omega * sin) @ modes.T / root
        shape = (len(time), *positions.shape)
        return moved.reshape(shape) + self.equilibrium, speed.reshape(shape)
