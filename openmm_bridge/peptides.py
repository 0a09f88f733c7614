"""Generate trajectories of peptides with OpenMM, to train and test ATMOS.

Amber ff14SB (Maier et al., J. Chem. Theory Comput. 11, 3696 (2015)) in the implicit solvent OBC2
(Onufriev, Bashford and Case, Proteins 55, 383 (2004)), ``LangevinMiddleIntegrator`` with 2 fs and
1/ps, bonds to hydrogens constrained.

One process and one npz file per run. A run that is killed continues from where it was last saved,
and its file is then bit for bit what it would have been without the interruption.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit
from rich.console import Console

from mlmd_calc import units
from mlmd_calc.biomolecules import BondedStructure, build_system
from mlmd_calc.data.biomolecules.peptides import Peptide, build_peptide
from mlmd_calc.data.biomolecules.trajectories import (
    BiomolecularTrajectory,
    read_trajectories,
    write_biomolecular_trajectory,
)
from mlmd_calc.data.pool import run_tasks
from mlmd_calc.data.provenance import is_finished, require_same
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.geometry.stereochemistry import chirality_flips
from mlmd_calc.io.files import replacing
from mlmd_calc.optional import require
from mlmd_calc.options import positive_number, whole_number, whole_steps
from openmm_bridge.jump_context import ContextForces

_FORCE_FIELD: Final = "amber14/protein.ff14SB.xml"
_TIMESTEP_FS: Final = 2.0
_FRICTION_PER_PS: Final = 1.0
_METHOD: Final = {
    "force_field": _FORCE_FIELD,
    "implicit_solvent": "OBC2",
    "integrator": "LangevinMiddleIntegrator",
    "timestep_fs": _TIMESTEP_FS,
    "friction_per_ps": _FRICTION_PER_PS,
    "constraints": "HBonds",
}
_LARGEST_REFERENCE: Final = 70
"""Atoms up to which OpenMM's Reference platform is not slower than CPU with one thread."""

_SAVE_SECONDS: Final = 30.0
"""Time between two saved states."""

_OBC_OFFSET: Final = 0.009
"""nm, what OBC subtracts from the radii."""

_WATER: Final = 78.5
"""Relative permittivity."""


@dataclass(frozen=True)
class PeptideSettings:
    """How to sample peptides.

    Attributes
    ----------
    frames
        Frames of a run.
    interval_ps
        Time between frames, a multiple of the time step of 2 fs.
    equilibration_ps
        Time before the first interval, left out.
    seed
        Of all random numbers; every run has its own, whatever else is generated.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    frames: int = 1000
    interval_ps: float = 2.0
    equilibration_ps: float = 50.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole_number("frames", self.frames, 1)
        whole_number("seed", self.seed, 0, 2**31 - 1)
        step_ps = _TIMESTEP_FS / units.FS_PER_PS
        whole_steps("interval_ps", self.interval_ps, step_ps)
        whole_steps("equilibration_ps", self.equilibration_ps, step_ps, 0)


@dataclass(frozen=True)
class PeptideRun:
    """One run of one peptide: a task of `mlmd_calc.data.pool`.

    Attributes
    ----------
    sequence
        As of `Peptide.parse`.
    temperature_K, replica
        Temperature in K and number of the run.
    settings
        How to sample.
    path
        The npz file to write; while the run is under way, its state is kept in a hidden file
        beside it.
    """

    sequence: str
    temperature_K: float  # noqa: N815
    replica: int
    settings: PeptideSettings
    path: Path

    @property
    def label(self) -> str:
        """What to call the run, e.g. ``"Ace-A-Nme_300K_r0"``."""
        return self.path.stem

    @property
    def steps(self) -> int:
        """Number of frames."""
        return self.settings.frames

    @property
    def cost(self) -> float:
        """About the square of the number of atoms."""
        return float((len(self._peptide.letters) + 1) ** 2)

    @property
    def _peptide(self) -> Peptide:
        return Peptide.parse(self.sequence)

    def run(self, on_step: Callable[[], None] = lambda: None) -> None:
        """Simulate, or continue, and write the file.

        Parameters
        ----------
        on_step
            Called for every frame, at once for those of an earlier process.

        Raises
        ------
        ConfigError
            If the state was saved with other settings or another version of OpenMM.
        ModelFileError
            If the saved state is damaged.
        PredictionError
            If the simulation becomes unstable.
        """
        seeds = np.random.SeedSequence([self.settings.seed, *self.label.encode()])
        # Not 0, which OpenMM takes for "choose one".
        conformer, velocity, thermostat = (int(word >> 1) | 1 for word in seeds.generate_state(3))
        built = build_peptide(self._peptide, conformer)
        context = peptide_context(built, self.temperature_K, thermostat)
        identity = self._identity() | _program(context)
        saved = self._load(identity)
        try:
            if saved is None:
                start, frames = self._equilibrate(context, velocity), []
            else:
                start, frames = saved["start"], list(saved["x"])
                context.loadCheckpoint(saved["checkpoint"].tobytes())
            self._sample(context, built, start, frames, identity, on_step)
        except openmm.OpenMMException as error:
            raise PredictionError(f"{self.label}: OpenMM stopped: {error}") from error
        self._write(replace(built, positions=start), np.array(frames), identity)
        self._state_path.unlink(missing_ok=True)

    def _equilibrate(self, context: openmm.Context, seed: int) -> NDArray[np.float64]:
        """Return the minimised structure in Å."""
        openmm.LocalEnergyMinimizer.minimize(context)
        start = _positions(context)
        context.setVelocitiesToTemperature(self.temperature_K, seed)
        context.getIntegrator().step(_steps(self.settings.equilibration_ps))
        return start

    def _sample(
        self,
        context: openmm.Context,
        built: BondedStructure,
        start: NDArray[np.float64],
        frames: list[NDArray[np.float32]],
        identity: dict[str, Any],
        on_step: Callable[[], None],
    ) -> None:
        """Append the frames that are missing."""
        system = build_system(built)
        for _ in frames:
            on_step()
        saved_at = time.monotonic()
        while len(frames) < self.settings.frames:
            context.getIntegrator().step(_steps(self.settings.interval_ps))
            heavy = system.select(_positions(context))
            # The handedness of the structure RDKit built, which has L-amino acids only.
            flips = chirality_flips(heavy[None], system.reference, system.chirality_centres)
            if not np.isfinite(heavy).all() or flips.any():
                raise PredictionError(
                    f"{self.label}: frame {len(frames)} has positions that are not finite or a "
                    "centre of the other handedness; lower the temperature"
                )
            frames.append((heavy - heavy.mean(axis=0)).astype(np.float32))
            if time.monotonic() - saved_at >= _SAVE_SECONDS:
                self._save(context, start, frames, identity)
                saved_at = time.monotonic()
            on_step()

    def _write(
        self,
        structure: BondedStructure,
        frames: NDArray[np.float32],
        identity: dict[str, Any],
    ) -> None:
        provenance = {"code": f"mlmd {version('mlmd')}", "rdkit": version("rdkit"), **identity}
        trajectory = BiomolecularTrajectory(
            name=self._peptide.name,
            structure=structure,
            system=build_system(structure),
            positions=frames,
            dt_ps=self.settings.interval_ps,
            temperature_K=self.temperature_K,
            replica=self.replica,
            metadata={"provenance": json.dumps(provenance)},
        )
        write_biomolecular_trajectory(self.path, trajectory)

    def is_done(self) -> bool:
        """Tell whether the file exists already.

        Raises
        ------
        ConfigError
            If it exists but holds something else.
        """
        done = is_finished(
            self.path, lambda path: read_trajectories(path)[0].metadata, self._identity()
        )
        if done:
            # A kill may have come in between.
            self._state_path.unlink(missing_ok=True)
        return done

    def _identity(self) -> dict[str, Any]:
        """Everything that must agree for a finished file to be the one asked for."""
        return {
            "sequence": str(self._peptide),
            "temperature_K": self.temperature_K,
            "replica": self.replica,
            **asdict(self.settings),
            **_METHOD,
        }

    @property
    def _state_path(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.state")

    def _save(
        self,
        context: openmm.Context,
        start: NDArray[np.float64],
        frames: list[NDArray[np.float32]],
        identity: dict[str, Any],
    ) -> None:
        with replacing(self._state_path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                identity=np.str_(json.dumps(identity)),
                start=start,
                x=np.array(frames),
                checkpoint=np.frombuffer(context.createCheckpoint(), dtype=np.uint8),
            )

    def _load(self, identity: dict[str, Any]) -> dict[str, NDArray[Any]] | None:
        path = self._state_path
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                saved = dict(archive)
            stored = json.loads(str(saved["identity"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ModelFileError(
                f"the state {path} cannot be read ({error}); remove it to begin anew"
            ) from error
        require_same(path, stored, identity)
        return saved


def generate_peptides(
    sequences: Sequence[str],
    directory: str | os.PathLike[str],
    settings: PeptideSettings,
    *,
    temperatures_K: Sequence[float] = (300.0,),
    replicas: int = 1,
    workers: int = 1,
    console: Console | None = None,
) -> list[Path]:
    """Simulate peptides, several at a time, into ``directory/Ace-X-Nme_TK_rR.npz`` and the like.

    Finished files with the same settings are kept, and runs under way continued.

    Parameters
    ----------
    sequences
        In one-letter codes, e.g. ``"A"`` and ``"AGSV"`` with caps, ``"H-AGSV-OH"`` with free ends.
    directory
        Created if it does not exist.
    settings
        How to sample.
    temperatures_K
        Of the runs, e.g. 300, 400 and 500 K: conformers such as left-handed helices that 300 K
        does not reach in nanoseconds are found when it is hotter.
    replicas
        Runs of every peptide at every temperature, from different conformers.
    workers
        Number of single-threaded processes.
    console
        Where to show progress, by default stderr.

    Returns
    -------
    list of Path
        The files, by sequence, then temperature, then replica.

    Raises
    ------
    InputError
        If a sequence is not valid.
    ConfigError
        If a number is out of range, something is given twice, or a file exists but holds something
        else.
    PredictionError
        After all others are done, if some runs failed; the message has the reasons.
    MissingDependencyError
        If rdkit is not installed.
    """
    whole_number("replicas", replicas, 1)
    for temperature in temperatures_K:
        positive_number("temperature", temperature)
    directory = Path(directory).resolve()
    runs = [
        PeptideRun(
            str(peptide),
            float(temperature),
            replica,
            settings,
            directory / f"{peptide.name}_{temperature:g}K_r{replica}.npz",
        )
        for peptide in map(Peptide.parse, sequences)
        for temperature in temperatures_K
        for replica in range(replicas)
    ]
    if len({run.path for run in runs}) < len(runs):
        raise ConfigError("a sequence or a temperature is given twice; use replicas for more runs")
    require("rdkit", extra="data", why="build peptides")
    directory.mkdir(parents=True, exist_ok=True)
    return run_tasks(runs, kind="runs", workers=workers, console=console)


def peptide_topology(structure: BondedStructure) -> app.Topology:
    """Hand chains, residues, atoms and bonds of a structure to OpenMM."""
    topology = app.Topology()
    chains = [topology.addChain(name) for name in structure.chain_names]
    residues = [
        topology.addResidue(name, chains[chain])
        for name, chain in zip(structure.residue_names, structure.chains.tolist(), strict=True)
    ]
    atoms = [
        topology.addAtom(name, app.Element.getByAtomicNumber(number), residues[residue])
        for name, number, residue in zip(
            structure.names, structure.numbers.tolist(), structure.residues.tolist(), strict=True
        )
    ]
    for first, second in structure.bonds.tolist():
        topology.addBond(atoms[first], atoms[second])
    return topology


def peptide_system(structure: BondedStructure, constraints: Any = app.HBonds) -> openmm.System:
    """Make the System of peptides: Amber ff14SB and OBC2.

    ``implicit/obc2.xml`` makes a ``CustomGBForce``. ``GBSAOBCForce`` with the same parameters is
    the same but for a constant that differs in the seventh digit, and much faster.

    Parameters
    ----------
    structure
        Amino acids and caps with all their hydrogens, for instance from
        `mlmd_calc.data.biomolecules.peptides.build_peptide`.
    constraints
        As of ``ForceField.createSystem``.

    Raises
    ------
    InputError
        If the force field does not know a residue.
    """
    force_field = app.ForceField(_FORCE_FIELD, "implicit/obc2.xml")
    try:
        system = force_field.createSystem(peptide_topology(structure), constraints=constraints)
    except ValueError as error:
        # Of the missing template it says enough in the first sentence.
        reason = str(error).split(". ", maxsplit=1)[0]
        raise InputError(
            f"Amber ff14SB does not know the molecule ({reason}); it knows amino acids and caps "
            "with all their hydrogens, but no single amino acid with both ends free"
        ) from error
    (index,) = [
        i for i, force in enumerate(system.getForces()) if isinstance(force, openmm.CustomGBForce)
    ]
    custom, force = system.getForce(index), openmm.GBSAOBCForce()
    force.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
    force.setSolventDielectric(_WATER)
    for particle in range(custom.getNumParticles()):
        charge, radius, scaled_radius = custom.getParticleParameters(particle)
        force.addParticle(charge, radius + _OBC_OFFSET, scaled_radius / radius)
    system.removeForce(index)
    system.addForce(force)
    return system


class AmberForces(ContextForces):
    """Amber ff14SB and OBC2 without constraints as force model of frames that are relaxed.

    Raises
    ------
    InputError
        If the force field does not know a residue.
    """

    def __init__(self, structure: BondedStructure) -> None:
        system = peptide_system(structure, constraints=None)
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), *_platform(structure))
        super().__init__(context)


def peptide_context(structure: BondedStructure, temperature: float, seed: int) -> openmm.Context:
    """Make the Context that training data are simulated in, K and positions as given."""
    integrator = openmm.LangevinMiddleIntegrator(
        temperature * unit.kelvin,
        _FRICTION_PER_PS / unit.picosecond,
        _TIMESTEP_FS * unit.femtosecond,
    )
    integrator.setRandomNumberSeed(seed)
    context = openmm.Context(peptide_system(structure), integrator, *_platform(structure))
    context.setPositions(structure.positions / units.NM)
    return context


def _platform(structure: BondedStructure) -> tuple[openmm.Platform, dict[str, str]]:
    """Platform for one molecule, the same numbers in every run."""
    small = len(structure) <= _LARGEST_REFERENCE
    return (
        openmm.Platform.getPlatformByName("Reference" if small else "CPU"),
        {} if small else {"Threads": "1", "DeterministicForces": "true"},
    )


def _program(context: openmm.Context) -> dict[str, str]:
    """Record what must agree for a checkpoint to be continued."""
    return {
        "openmm": openmm.Platform.getOpenMMVersion(),
        "platform": context.getPlatform().getName(),
    }


def _positions(context: openmm.Context) -> NDArray[np.float64]:
    positions = context.getState(getPositions=True).getPositions(asNumpy=True)
    result: NDArray[np.float64] = positions.value_in_unit(unit.nanometer) * units.NM
    return result


def _steps(picoseconds: float) -> int:
    return round(picoseconds * units.FS_PER_PS / _TIMESTEP_FS)
