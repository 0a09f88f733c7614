"""Runs of one molecule from many starts that advance together: one force call per time step."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from ase.data import atomic_masses
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.frames import Float64Array
from mlmd_calc.errors import InputError, PredictionError
from mlmd_calc.geometry.bonds import BOND_LIMIT, bond_lengths
from mlmd_calc.potential import Evaluation, Structure
from mlmd_calc.propagation.corrections import thermal_speed
from mlmd_calc.propagation.forces import ForceModel, has_energy

BROKEN: Final = "broken"
REFUSED: Final = "refused"
DRIFTED: Final = "drifted"
"""Why runs end: a bond broke, the force model refused a structure, the energy drifted."""


class ParallelRuns:
    """Molecules of one kind in motion, ``r`` of them; one that ends does not disturb the others.

    Those that have ended stay where they were and are not evaluated any more.

    Parameters
    ----------
    force_model
        Energies and forces.
    kind
        The molecule: atomic numbers, charge and multiplicity. Its positions are not used.
    positions
        ``(r, n, 3)`` Å; the runs begin at rest.
    bonds
        ``(b, 2)`` indices of bonded atoms. Their lengths at ``positions`` are those that they must
        keep within ``BOND_LIMIT`` of `mlmd_calc.geometry.bonds`.

    Attributes
    ----------
    positions, velocities
        ``(r, n, 3)`` Å and Å/fs.
    forces
        ``(r, n, 3)`` eV/Å at the positions; zero before the first :meth:`evaluate`.
    energies
        ``(r,)`` eV, potential energy at the positions; NaN for a force model without.
    conserved_energies
        ``(r,)`` eV, what velocity Verlet conserves, amid the last step: the total energy swings
        with every vibration, by more than it drifts in a short run. This is its value without that,
        H + Δt² (v H″ v / 12 − F²/m / 24) + O(Δt⁴), with H″ v from the change of the forces.
    ended
        Why runs have ended, by their number.
    """

    def __init__(
        self,
        force_model: ForceModel,
        kind: Structure,
        positions: Float64Array,
        bonds: NDArray[np.int64],
    ) -> None:
        self.force_model = force_model
        self.kind = kind
        self.masses: Float64Array = atomic_masses[kind.numbers]
        self.positions = positions.copy()
        self.velocities = np.zeros_like(positions)
        self.forces = np.zeros_like(positions)
        self.energies = np.zeros(len(positions))
        self.conserved_energies = np.zeros(len(positions))
        self.ended: dict[int, str] = {}
        self._bonds = bonds
        self._usual_lengths = bond_lengths(positions, bonds)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def running(self) -> NDArray[np.int64]:
        """Numbers of the runs that have not ended."""
        return np.array([run for run in range(len(self)) if run not in self.ended], dtype=np.int64)

    @property
    def total_energies(self) -> Float64Array:
        """Potential and kinetic energy, ``(r,)`` eV."""
        speeds = self.velocities / units.FS
        kinetic: Float64Array = 0.5 * np.einsum("n,rnx,rnx->r", self.masses, speeds, speeds)
        return self.energies + kinetic

    def end(self, run: int, reason: str) -> None:
        """End a run: it stops where it is, for the first reason that was given."""
        self.ended.setdefault(run, reason)
        self.velocities[run] = 0.0
        self.forces[run] = 0.0

    def evaluate(self, runs: NDArray[np.int64] | None = None) -> None:
        """Ask for energies and forces, of all runs or of some; those that are refused end."""
        runs = self.running if runs is None else runs
        structures = [
            Structure(self.kind.numbers, x, self.kind.charge, self.kind.multiplicity)
            for x in self.positions[runs]
        ]
        for run, answer in zip(runs.tolist(), _answers(self.force_model, structures), strict=True):
            if answer is None:
                self.end(run, REFUSED)
            else:
                self.energies[run] = math.nan if answer.energy is None else answer.energy
                self.forces[run] = answer.forces

    def step(self, timestep_fs: float, runs: NDArray[np.int64] | None = None) -> None:
        """Take one step of velocity Verlet, with all runs or with some.

        The forces must be those at the positions; afterwards they are again.
        """
        runs = self.running if runs is None else np.intersect1d(runs, self.running)
        half = 0.5 * timestep_fs * units.FS**2 / self.masses[:, None]
        old_forces, old_energies = self.forces[runs], self._shadow_energies(timestep_fs)[runs]
        midway = self.velocities[runs] + half * old_forces
        self.positions[runs] += timestep_fs * midway
        self.evaluate(runs)
        # Those that were refused have no forces any more, and are at rest.
        going = np.isin(runs, self.running)
        runs, midway, old_forces = runs[going], midway[going], old_forces[going]
        self.velocities[runs] = midway + half * self.forces[runs]
        energies = 0.5 * (old_energies[going] + self._shadow_energies(timestep_fs)[runs])
        change = np.einsum("rnx,rnx->r", midway, self.forces[runs] - old_forces)
        self.conserved_energies[runs] = energies - timestep_fs / 12.0 * change

    def _shadow_energies(self, timestep_fs: float) -> Float64Array:
        """Total energies less Δt² Σ F²/(24 m), ``(r,)`` eV."""
        square = np.einsum("rnx,rnx,n->r", self.forces, self.forces, 1.0 / self.masses)
        part: Float64Array = (timestep_fs * units.FS) ** 2 / 24.0 * square
        return self.total_energies - part

    def thermalise(
        self,
        temperatures_K: Float64Array,
        friction_per_fs: float,
        timestep_fs: float,
        rng: np.random.Generator,
    ) -> None:
        """Take one step of Langevin dynamics, each run with a temperature of its own.

        A step of velocity Verlet, and the exact solution of friction and noise over the same time.
        Runs at 0 K are left as they are.

        Parameters
        ----------
        temperatures_K
            ``(r,)`` K.
        friction_per_fs
            1/fs.
        timestep_fs
            fs.
        rng
            Its noise is drawn for all runs, so that none depends on which others have ended.
        """
        self.step(timestep_fs, np.flatnonzero(temperatures_K > 0.0))
        damping = math.exp(-friction_per_fs * timestep_fs)
        noise = math.sqrt(1.0 - damping**2) * self.thermal(temperatures_K, rng)
        runs = self.running
        self.velocities[runs] = damping * self.velocities[runs] + noise[runs]

    def thermal(self, temperatures_K: Float64Array, rng: np.random.Generator) -> Float64Array:
        """Draw Maxwell-Boltzmann velocities ``(r, n, 3)`` Å/fs for temperatures ``(r,)`` in K."""
        widths = np.sqrt(temperatures_K)[:, None] * thermal_speed(self.masses, 1.0)
        drawn: Float64Array = widths[..., None] * rng.standard_normal(self.positions.shape)
        return drawn

    def centre(self) -> None:
        """Bring the centres of mass to rest at the origin."""
        for vectors in (self.positions, self.velocities):
            vectors -= np.average(vectors, axis=1, weights=self.masses)[:, None]

    def end_broken(self) -> None:
        """End the runs in which a bond has become too long or too short."""
        changes = np.abs(bond_lengths(self.positions, self._bonds) - self._usual_lengths)
        for run in np.flatnonzero((changes > BOND_LIMIT).any(axis=1)).tolist():
            self.end(run, BROKEN)


def _answers(force_model: ForceModel, structures: list[Structure]) -> list[Evaluation | None]:
    """Evaluate structures in one call; None for those that the model refuses."""
    if not structures:
        return []
    properties = ("energy", "forces") if has_energy(force_model) else ("forces",)
    try:
        return list(force_model.evaluate(structures, properties))
    except (InputError, PredictionError):
        # The error names one at most. Halves find all of them in a few calls.
        if len(structures) == 1:
            return [None]
        middle = len(structures) // 2
        return _answers(force_model, structures[:middle]) + _answers(
            force_model, structures[middle:]
        )
