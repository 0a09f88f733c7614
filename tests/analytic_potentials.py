"""Analytic potentials as ASE calculators, for tests of dynamics."""

from collections.abc import Sequence

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from mlmd_calc.models.analytic import Harmonic


class PairPotential(Calculator):
    """Sum of a function of the distance over some pairs of atoms.

    Parameters
    ----------
    pairs
        Index pairs; None: all of them.
    """

    implemented_properties = ("energy", "free_energy", "forces")

    def __init__(self, pairs: Sequence[tuple[int, int]] | None = None) -> None:
        super().__init__()
        self.pairs = pairs

    def curve(self, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (eV) and its slope (eV/Å) at the given distances (Å)."""
        raise NotImplementedError

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        n = len(self.atoms)
        pairs = np.array(np.triu_indices(n, 1)).T if self.pairs is None else np.array(self.pairs)
        first, second = pairs.T
        difference = self.atoms.positions[first] - self.atoms.positions[second]
        distances = np.linalg.norm(difference, axis=1)
        energies, slopes = self.curve(distances)
        pulls = (slopes / distances)[:, None] * difference
        forces = np.zeros((n, 3))
        np.add.at(forces, first, -pulls)
        np.add.at(forces, second, pulls)
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


def water_springs():
    """Springs as a method that labels water."""
    return Springs(20.0, 1.0)


class Springs(PairPotential):
    """E = k (r - r0)² / 2 for each pair.

    Parameters
    ----------
    k, r0
        Force constant in eV/Å² and rest length in Å.
    pairs
        As in `PairPotential`.
    """

    def __init__(self, k: float, r0: float, pairs=None) -> None:
        super().__init__(pairs)
        self.k, self.r0 = k, r0

    def curve(self, distances):
        stretch = distances - self.r0
        return 0.5 * self.k * stretch**2, self.k * stretch


class Morse(PairPotential):
    """E = D (1 - exp(-a (r - r0)))² for each pair.

    Parameters
    ----------
    depth, a, r0
        Well depth in eV, inverse width in 1/Å, and rest length in Å.
    pairs
        As in `PairPotential`.
    """

    def __init__(self, depth: float, a: float, r0: float, pairs=None) -> None:
        super().__init__(pairs)
        self.depth, self.a, self.r0 = depth, a, r0

    def curve(self, distances):
        decay = np.exp(-self.a * (distances - self.r0))
        return self.depth * (1 - decay) ** 2, 2 * self.depth * self.a * decay * (1 - decay)


class HarmonicCalculator(Calculator):
    """A quadratic potential.

    Parameters
    ----------
    harmonic
        The potential.
    """

    implemented_properties = ("energy", "free_energy", "forces")

    def __init__(self, harmonic: Harmonic) -> None:
        super().__init__()
        self.harmonic = harmonic

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, list(properties), list(system_changes))
        energy, forces = self.harmonic.energy_and_forces(self.atoms.positions)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


class Tethers(HarmonicCalculator):
    """Every atom hangs on a spring of its own to a fixed point: 3 n independent oscillators.

    Parameters
    ----------
    k
        Force constant in eV/Å².
    anchors
        ``(n, 3)`` Å.
    """

    def __init__(self, k: float, anchors: np.ndarray) -> None:
        super().__init__(Harmonic.tethers(k, anchors))
