"""Trajectories at constant energy that follow a force model, to train propagators on.

A propagator that is used with a force model does best if it has learnt exactly the motion that it
stands in for, from exactly the accelerations that it will be given. Many short runs of a molecule
advance together, from starts that cover more than equilibrium.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from rich.console import Console

from mlmd_calc import units
from mlmd_calc.data.frames import Float64Array, MoleculeFrames
from mlmd_calc.data.molecules import Molecule, atom_count
from mlmd_calc.data.npz import read_npz, write_trajectory
from mlmd_calc.data.parallel_runs import DRIFTED, ParallelRuns
from mlmd_calc.data.pool import refuse_failures
from mlmd_calc.data.provenance import is_finished
from mlmd_calc.data.sampling import conformers_of, generator_of, relax
from mlmd_calc.data.start_states import HOTTEST_K, THERMALISE_STEPS, StartStates
from mlmd_calc.electrons import ElectronicState
from mlmd_calc.errors import ConfigError, InputError, MLMDError, PredictionError
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.io.files import FolderLock
from mlmd_calc.io.progress import progress_bar
from mlmd_calc.md.attached import ForceModelCalculator
from mlmd_calc.options import check_at_least, check_positive, whole_steps
from mlmd_calc.potential import Potential, Structure
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.wording import counted
from mlmd_calc.zoo import Model

_FEWEST_FRAMES: Final = 3
"""Fewer tell no slope from noise."""


@dataclass(frozen=True)
class PropagationSettings:
    """How trajectories are made.

    Attributes
    ----------
    runs
        Starts of each molecule, one run each.
    frames
        Frames of each run, the start included.
    stride_fs
        Time between frames in fs, a multiple of the time step.
    timestep_fs
        Step of velocity Verlet in fs.
    max_drift
        meV/atom/ps; a run whose total energy drifts faster is dropped.
    conformers
        Minima that the runs start from in turn.
    hottest_K
        K that velocities start with at most; positions scale with it
        (:meth:`.start_states.StartStates.draw`), unless structures are given.
    seed
        Together with the name of a molecule it decides every random number.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    runs: int = 32
    frames: int = 40
    stride_fs: float = 2.0
    timestep_fs: float = 0.5
    max_drift: float = 2.0
    conformers: int = 4
    hottest_K: float = HOTTEST_K  # noqa: N815
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "runs", "conformers")
        check_at_least(self, _FEWEST_FRAMES, "frames")
        check_at_least(self, 0, "seed")
        check_positive(self, "timestep_fs", "max_drift", "hottest_K")
        whole_steps("stride_fs", self.stride_fs, self.timestep_fs)

    @property
    def steps_per_frame(self) -> int:
        """Time steps from one frame to the next."""
        return round(self.stride_fs / self.timestep_fs)

    @property
    def steps(self) -> int:
        """Steps of a molecule, those before the first frame included."""
        return THERMALISE_STEPS + (self.frames - 1) * self.steps_per_frame


def propagate(
    molecules: Sequence[Molecule],
    directory: str | os.PathLike[str],
    settings: PropagationSettings,
    model: Model,
    *,
    starts: Mapping[str, MoleculeFrames] | None = None,
    device: str = "auto",
    dtype: str = "float32",
    console: Console | None = None,
) -> list[Path]:
    """Make trajectories of molecules, one after the other, into ``directory/NAME.npz``.

    Finished files with the same settings are kept. A molecule that fails does not stop the others.
    How many runs were dropped is said at the end.

    Parameters
    ----------
    molecules, settings
        What to follow, and how.
    directory
        Created if it does not exist.
    model
        Force field to follow, with the forces and orientations that its card recommends.
    starts
        Structures with energies to start from, by name of the molecule, as
        :func:`molecules_of` takes; without them minima are sought and heated.
    device, dtype
        As in :class:`mlmd_calc.Potential`.
    console
        Where to show progress and what was dropped, by default stderr.

    Returns
    -------
    list of Path
        The files of all molecules, in their order.

    Raises
    ------
    ConfigError
        If the model has no energy, a file exists but holds something else, or another process
        writes to the same directory.
    PredictionError
        After all others are done, if some molecules failed; the message has the reasons.
    MissingDependencyError
        If rdkit is not installed.
    """
    console = console or Console(stderr=True)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    potential = partial(Potential, model, device=device, dtype=dtype)
    identity = _identity(potential(), settings)
    files = {molecule: directory / f"{molecule.name}.npz" for molecule in molecules}

    def described(molecule: Molecule) -> dict[str, Any]:
        own = _described(molecule) | identity
        return own if starts is None else own | {"starts_sha256": _digest(starts[molecule.name])}

    with FolderLock(directory):
        pending = [
            molecule
            for molecule, path in files.items()
            if not is_finished(path, _metadata, described(molecule))
        ]
        costs = [settings.steps * atom_count(molecule) ** 2 for molecule in pending]
        failures: dict[str, str] = {}
        with progress_bar(console) as progress:
            bar = progress.add_task("", total=sum(costs))
            for i, (molecule, cost) in enumerate(zip(pending, costs, strict=True)):
                description = f"{i}/{counted(len(pending), 'molecule')}"
                progress.update(bar, description=description, completed=sum(costs[:i]))
                rng = generator_of(molecule, settings.seed)
                # Random orientations, too, are those of the molecule.
                own = potential(seed=int(rng.integers(2**63)))
                advance = partial(progress.advance, bar, cost / settings.steps)
                begin = None if starts is None else starts[molecule.name]
                try:
                    frames, ended = follow(molecule, settings, own, rng, advance, begin)
                except MLMDError as error:
                    failures[molecule.name] = str(error)
                else:
                    provenance = {**_versions(), "device": own.device.type, "dropped": ended}
                    provenance |= described(molecule)
                    frames.metadata["forces"] = own.model.card.name
                    frames.metadata["provenance"] = json.dumps(provenance)
                    write_trajectory(files[molecule], frames)
            progress.update(bar, description=f"{len(pending)}/{counted(len(pending), 'molecule')}")
            progress.update(bar, completed=sum(costs))
        _report([path for path in files.values() if path.exists()], settings, console)
    refuse_failures(failures, len(files), "molecules")
    return list(files.values())


def follow(
    molecule: Molecule,
    settings: PropagationSettings,
    force_model: ForceModel,
    rng: np.random.Generator,
    on_step: Callable[[], None] = lambda: None,
    begin: MoleculeFrames | None = None,
) -> tuple[MoleculeFrames, dict[int, str]]:
    """Follow all runs of one molecule.

    Parameters
    ----------
    molecule, settings
        What to follow, and how.
    force_model
        With energies and forces.
    rng
        Source of randomness.
    on_step
        Called after every step.
    begin
        Structures with energies that the runs start from, all of them before one comes twice.
        Without them minima are sought and heated.

    Returns
    -------
    frames, ended
        Frames of the runs that are kept, whose ``segment`` is the number of their start; and why
        others were dropped, by number.

    Raises
    ------
    InputError
        If the molecule cannot be built, or the force model does not know it.
    PredictionError
        If no minimum is found, bonds break on the way to it, or no run is left.
    """
    if begin is None:
        runs = _at_minima(molecule, settings, force_model, rng)
    else:
        runs = _at_structures(begin, settings, force_model, rng)
    starts = StartStates.draw(len(runs), len(runs.kind), rng, settings.hottest_K)
    if begin is not None:
        starts = starts.without_heating()
    starts.prepare(runs, rng, on_step)
    frames = _Frames()
    frames.add(runs)
    conserved = []
    for _ in range(settings.frames - 1):
        for _ in range(settings.steps_per_frame):
            runs.step(settings.timestep_fs)
            conserved.append(runs.conserved_energies.copy())
            on_step()
        runs.end_broken()
        frames.add(runs)
    drifts = _slopes(np.array(conserved), settings.timestep_fs) / len(runs.kind)
    for run in runs.running[np.abs(drifts[runs.running]) > settings.max_drift]:
        runs.end(int(run), DRIFTED)
    if not len(runs.running):
        raise PredictionError(
            f"none of {counted(settings.runs, 'run')} can be kept "
            f"({_counted(runs.ended.values())}); use a shorter time step, or a model that knows "
            "this molecule"
        )
    found = frames.molecule(molecule, runs.kind.numbers, runs.running, settings.stride_fs)
    found.metadata["starts"] = json.dumps(
        {k: np.asarray(v).tolist() for k, v in vars(starts).items()}
    )
    return found, runs.ended


def molecules_of(structures: Iterable[MoleculeFrames]) -> list[Molecule]:
    """Molecules of labelled structures.

    Raises
    ------
    InputError
        If a set of structures has no energies, or does not say its SMILES.
    """
    molecules = []
    for frames in structures:
        smiles = frames.metadata.get("smiles")
        if smiles is None or frames.energies is None:
            missing = "SMILES" if smiles is None else "energies"
            raise InputError(
                f"structures of {frames.name!r} have no {missing}, which runs that start from them "
                "need; use files of mlmd data generate"
            )
        molecules.append(Molecule(frames.name, smiles, frames.charge, frames.multiplicity))
    return molecules


def _at_minima(
    molecule: Molecule,
    settings: PropagationSettings,
    force_model: ForceModel,
    rng: np.random.Generator,
) -> ParallelRuns:
    """Make runs that rest at minima of the force model."""
    start = conformers_of(molecule, min(settings.conformers, settings.runs), rng)
    state = ElectronicState(molecule.charge, molecule.multiplicity)
    minima = []
    for positions in start.positions:
        atoms = Atoms(start.numbers, positions, info=state._asdict())
        atoms.calc = ForceModelCalculator(force_model)
        relax(molecule, atoms, start)
        minima.append(atoms.positions)
    in_turn = np.arange(settings.runs) % len(minima)
    kind = Structure(start.numbers, start.positions[0], *state)
    return ParallelRuns(force_model, kind, np.array(minima)[in_turn], start.bonds)


def _at_structures(
    begin: MoleculeFrames,
    settings: PropagationSettings,
    force_model: ForceModel,
    rng: np.random.Generator,
) -> ParallelRuns:
    """Make runs that rest at given structures, drawn without repetition while there are enough."""
    assert begin.energies is not None
    positions = begin.positions.astype(np.float64)
    lowest = positions[np.argmin(begin.energies)]
    kind = Structure(begin.numbers, lowest, begin.charge, begin.multiplicity)
    # Lengths of bonds are told by the lowest structure: the others may be far from theirs.
    bonds = find_bonds(Atoms(begin.numbers, lowest)).pairs
    at_lowest = np.repeat(lowest[None], settings.runs, axis=0)
    runs = ParallelRuns(force_model, kind, at_lowest, bonds)
    rounds = -(-settings.runs // len(positions))
    drawn = np.concatenate([rng.permutation(len(positions)) for _ in range(rounds)])
    runs.positions[:] = positions[drawn[: settings.runs]]
    return runs


@dataclass
class _Frames:
    """Frames of all runs, those that end included."""

    positions: list[Float64Array] = field(default_factory=list)
    velocities: list[Float64Array] = field(default_factory=list)
    forces: list[Float64Array] = field(default_factory=list)
    energies: list[Float64Array] = field(default_factory=list)

    def add(self, runs: ParallelRuns) -> None:
        """Add a frame of each run."""
        self.positions.append(runs.positions.copy())
        self.velocities.append(runs.velocities.copy())
        self.forces.append(runs.forces.copy())
        self.energies.append(runs.energies.copy())

    def molecule(
        self,
        molecule: Molecule,
        numbers: NDArray[np.int64],
        kept: NDArray[np.int64],
        stride_fs: float,
    ) -> MoleculeFrames:
        """Return the frames of some runs, one run after the other."""

        def in_order(frames: list[Float64Array]) -> Float64Array:
            return np.concatenate(np.array(frames)[:, kept].swapaxes(0, 1))

        return MoleculeFrames(
            name=molecule.name,
            numbers=numbers,
            positions=in_order(self.positions),
            velocities=in_order(self.velocities),
            forces=in_order(self.forces),
            energies=in_order(self.energies),
            charge=molecule.charge,
            multiplicity=molecule.multiplicity,
            dt_fs=stride_fs,
            segment=np.repeat(kept, len(self.positions)),
            metadata={"smiles": molecule.smiles},
        )


def _slopes(energies: Float64Array, timestep_fs: float) -> Float64Array:
    """Slopes ``(r,)`` in meV/ps of energies ``(steps, r)`` in eV, by least squares."""
    time = np.arange(len(energies)) * timestep_fs / units.FS_PER_PS
    time -= time.mean()
    slopes: Float64Array = time @ energies / (time @ time) / units.MEV
    return slopes


def _digest(structures: MoleculeFrames) -> str:
    """Checksum of what runs that start from structures depend on."""
    digest = hashlib.sha256(structures.positions.astype("<f8").tobytes())
    digest.update(np.asarray(structures.energies, dtype="<f8").tobytes())
    return digest.hexdigest()


def _described(molecule: Molecule) -> dict[str, Any]:
    return {
        "smiles": molecule.smiles,
        "charge": molecule.charge,
        "multiplicity": molecule.multiplicity,
    }


def _identity(potential: Potential, settings: PropagationSettings) -> dict[str, Any]:
    """Everything that must agree for a finished file to be the one asked for."""
    if not potential.has_energy:
        raise ConfigError(
            f"model {potential.model.card.name!r} predicts no energy, by which the drift of runs "
            "is told; choose a model with an energy"
        )
    return {
        "mode": "propagate",
        "teacher": potential.model.card.name,
        "teacher_sha256": potential.model.sha256,
        "teacher_options": potential.options,
        **asdict(settings),
    }


def _versions() -> dict[str, str]:
    return {
        "code": f"mlmd {version('mlmd')}",
        **{package: version(package) for package in ("rdkit", "ase", "torch", "numpy")},
    }


def _metadata(path: Path) -> dict[str, str]:
    return read_npz(path).metadata


def _report(paths: Sequence[Path], settings: PropagationSettings, console: Console) -> None:
    """Say how many runs were dropped, by reason and by molecule."""
    dropped = {path.stem: json.loads(_metadata(path)["provenance"])["dropped"] for path in paths}
    total = settings.runs * len(paths)
    reasons = [reason for ended in dropped.values() for reason in ended.values()]
    console.print(f"{total - len(reasons)} of {counted(total, 'run')} kept", highlight=False)
    if reasons:
        console.print(
            f"dropped: {_counted(reasons)} (limit of the drift {settings.max_drift:g} "
            "meV/atom/ps); " + ", ".join(f"{name} {len(e)}" for name, e in dropped.items() if e),
            highlight=False,
            markup=False,
        )


def _counted(reasons: Iterable[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(reasons).items()))
