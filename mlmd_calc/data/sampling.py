"""Sample geometries of one molecule with GFN2-xTB, and label them.

In mode ``langevin`` every conformer contributes its minimum and Langevin dynamics at several
temperatures. Every frame is accompanied by copies distorted by Gaussian noise, which show a model
what thermal motion rarely visits. In mode ``nve`` every conformer and temperature gives one
microcanonical trajectory with its true velocities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorError
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.data.gfn2 import gfn2_calculator
from mlmd_calc.data.molecules import Molecule, StartStructures, start_structures
from mlmd_calc.data.reference import Reference
from mlmd_calc.data.sampling_settings import TIMESTEP_FS, SamplingSettings
from mlmd_calc.errors import InputError, PredictionError

MINIMUM: Final = 0
SAMPLED: Final = 1
DISTORTED: Final = 2
"""Values of ``kind`` in label files."""

_FRICTION_PER_FS: Final = 0.02
"""Strong enough to forget the start within the default thermalisation."""

_BROKEN_BOND: Final = 1.3
"""A bond longer than this times the sum of covalent radii counts as broken."""


@dataclass(frozen=True)
class Samples:
    """Frames of one molecule with what the label layout says about each.

    Attributes
    ----------
    frames
        Labelled frames; ``segment`` numbers the runs, one per conformer and temperature.
    temperatures
        ``(f,)`` K of the run, 0 for minima.
    kind
        ``(f,)`` `MINIMUM`, `SAMPLED` or `DISTORTED`.
    dropped
        Number of structures left out because of ``max_force`` or because a calculation failed.
    """

    frames: MoleculeFrames
    temperatures: NDArray[np.float64]
    kind: NDArray[np.int64]
    dropped: int


def sample(
    molecule: Molecule, settings: SamplingSettings, on_frame: Callable[[], None] = lambda: None
) -> Samples:
    """Sample and label one molecule.

    The result depends on molecule, settings and the versions of the programs, on nothing else.

    Raises
    ------
    InputError
        If the molecule cannot be built, or has isotopes.
    PredictionError
        If a calculation fails, no minimum is found, or bonds break on the way to it.
    MissingDependencyError
        If rdkit or tblite is not installed.
    """
    rng = generator_of(molecule, settings.seed)
    start = conformers_of(molecule, settings.conformers, rng)
    reference = Reference(settings.reference, molecule.charge, molecule.multiplicity)
    record = _Record(settings.max_force, reference)
    segment = 0
    for positions in start.positions:
        atoms = Atoms(start.numbers, positions)
        atoms.calc = gfn2_calculator(molecule.charge, molecule.multiplicity)
        distorted = atoms.copy()
        distorted.calc = gfn2_calculator(molecule.charge, molecule.multiplicity)
        relax(molecule, atoms, start)
        minimum = atoms.positions.copy()
        if settings.mode == "langevin":
            record.add(atoms, MINIMUM, 0.0, segment)
        for temperature in settings.temperatures:
            atoms.positions = minimum
            for _ in _dynamics(atoms, settings, temperature, segment, rng):
                record.add(atoms, SAMPLED, temperature, segment)
                for sigma in settings.noise:
                    noise = rng.normal(scale=sigma, size=atoms.positions.shape)
                    distorted.positions = atoms.positions + noise
                    record.add(distorted, DISTORTED, temperature, segment)
                on_frame()
            segment += 1
    return record.samples(molecule, start.numbers, settings)


def generator_of(molecule: Molecule, seed: int) -> np.random.Generator:
    """Random numbers of one molecule, whatever is sampled before or beside it."""
    words = np.frombuffer(hashlib.sha256(molecule.name.encode()).digest(), dtype="<u4")
    return np.random.default_rng([seed, *words.tolist()])


def conformers_of(molecule: Molecule, conformers: int, rng: np.random.Generator) -> StartStructures:
    """Build conformers to sample from, as :func:`mlmd_calc.data.molecules.start_structures` does.

    Raises
    ------
    InputError
        If the molecule cannot be built, or has isotopes.
    MissingDependencyError
        If rdkit is not installed.
    """
    start = start_structures(molecule, conformers, int(rng.integers(2**31)))
    if start.has_isotopes:
        raise InputError(
            f"molecule {molecule.name!r}: {molecule.smiles!r} names isotopes, but data files "
            "hold no masses; leave them out, energies and forces are the same"
        )
    return start


def relax(molecule: Molecule, atoms: Atoms, start: StartStructures) -> None:
    """Move atoms that carry a calculator to its nearest minimum.

    Raises
    ------
    PredictionError
        If the calculation fails, no minimum is found, or bonds break on the way to it.
    """
    try:
        converged = BFGS(atoms, logfile=None).run(fmax=0.01, steps=1000)
    except CalculatorError as error:
        raise PredictionError(f"molecule {molecule.name!r} cannot be relaxed: {error}") from error
    if not converged:
        raise PredictionError(
            f"molecule {molecule.name!r}: no minimum found within 1000 steps; check the SMILES"
        )
    first, second = start.bonds.T
    lengths = np.linalg.norm(atoms.positions[first] - atoms.positions[second], axis=1)
    radii = covalent_radii[start.numbers]
    broken = start.bonds[lengths > _BROKEN_BOND * (radii[first] + radii[second])]
    if len(broken):
        raise PredictionError(
            f"molecule {molecule.name!r} ({molecule.smiles}): the bonds {broken.tolist()} break on "
            "the way to the minimum of GFN2-xTB; choose another tautomer or protonation"
        )


def _dynamics(
    atoms: Atoms,
    settings: SamplingSettings,
    temperature: float,
    segment: int,
    rng: np.random.Generator,
) -> Iterator[None]:
    """Thermalise the atoms, then pause at every frame of the run."""
    frames = settings.frames_of_runs()[segment]
    if frames == 0:
        return
    step = TIMESTEP_FS[settings.mode] * units.FS
    masses = atoms.get_masses()[:, None]
    thermal = np.sqrt(masses * units.KB * temperature)
    atoms.set_momenta(thermal * rng.standard_normal((len(atoms), 3)))
    dynamics: MolecularDynamics = Langevin(
        atoms,
        step,
        temperature_K=temperature,
        friction=_FRICTION_PER_FS / units.FS,
        # ASE's fixcm does not sample the canonical distribution of small molecules.
        fixcm=False,
        rng=rng,
    )
    dynamics.run(settings.steps(settings.thermalise_fs))
    if settings.mode == "nve":
        atoms.set_velocities(
            atoms.get_velocities() - atoms.get_momenta().sum(axis=0) / masses.sum()
        )
        atoms.positions -= atoms.get_center_of_mass()
        dynamics = VelocityVerlet(atoms, step)
    for _ in range(frames):
        dynamics.run(settings.steps(settings.stride_fs))
        yield


@dataclass
class _Record:
    """Labels structures and collects them."""

    max_force: float | None
    reference: Reference
    positions: list[NDArray[np.float64]] = field(default_factory=list)
    forces: list[NDArray[np.float64]] = field(default_factory=list)
    velocities: list[NDArray[np.float64]] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    dropped: int = 0

    def add(self, atoms: Atoms, kind: int, temperature: float, segment: int) -> None:
        """Keep a structure unless it is too strained."""
        try:
            energy, forces = self.reference.evaluate(atoms)
        except PredictionError:
            # Noise may push atoms into each other; dynamics must not.
            if kind != DISTORTED:
                raise
            self.dropped += 1
            return
        if self.max_force is not None and np.linalg.norm(forces, axis=1).max() > self.max_force:
            self.dropped += 1
            return
        self.positions.append(atoms.positions.copy())
        self.forces.append(forces)
        self.velocities.append(atoms.get_velocities() * units.FS)
        self.energies.append(energy)
        self.temperatures.append(temperature)
        self.kind.append(kind)
        self.segment.append(segment)

    def samples(
        self, molecule: Molecule, numbers: NDArray[np.int64], settings: SamplingSettings
    ) -> Samples:
        """Return what was collected."""
        nve = settings.mode == "nve"
        positions = np.array(self.positions)
        frames = MoleculeFrames(
            name=molecule.name,
            numbers=numbers,
            # Trajectories have their centre of mass at rest at the origin already.
            positions=positions if nve else positions - positions.mean(axis=1, keepdims=True),
            forces=np.array(self.forces),
            energies=np.array(self.energies),
            velocities=np.array(self.velocities) if nve else None,
            charge=molecule.charge,
            multiplicity=molecule.multiplicity,
            dt_fs=settings.stride_fs if nve else None,
            segment=np.array(self.segment),
            metadata={"smiles": molecule.smiles},
        )
        return Samples(frames, np.array(self.temperatures), np.array(self.kind), self.dropped)
