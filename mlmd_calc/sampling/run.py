"""One `mlmd sample`: trajectories in a folder, from which a run that was killed goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from numpy.typing import NDArray

import mlmd_calc
from mlmd_calc.biomolecules import BondedStructure, MolecularSystem, build_system
from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.io.files import FolderLock, read_json, write_json
from mlmd_calc.io.restart import check_identity, read_restart, write_restart
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.propagation.atmos import check_molecule, trained_stride_ps
from mlmd_calc.sampling.quality import FrameGuard, FrameQuality
from mlmd_calc.sampling.rollouts import (
    REDRAWS,
    SamplerOptions,
    check_redraws,
    make_rollout,
)
from mlmd_calc.sampling.trajectories import Trajectories
from mlmd_calc.sampling.trajectory_file import (
    TrajectoryFile,
    checked_format,
    topology_of,
    write_start,
)
from mlmd_calc.zoo import ATMOSModel, load_atmos

RESTART_FILE: Final = "restart.npz"
IDENTITY_FILE: Final = "run.json"
START_FILE: Final = "start.pdb"


@dataclass(frozen=True)
class SamplingJob:
    """What to sample.

    Attributes
    ----------
    input
        What the user called the molecule.
    model, interpolator
        Names or files of ATMOS models; without interpolator no frames between keyframes.
    frames
        Frames of each trajectory after the start; with an interpolator a multiple of its steps.
    replicas
        Number of trajectories.
    stride_ps
        Time between frames of ``model``, if it was trained on several.
    sampler
        "sde" or "ode"; None for that of the models.
    steps
        Denoiser calls per frame; None for those of the models.
    noise_scale, step_scale
        Factors on noise and steps of the sampler; None for those of the models.
    redraws
        How often a frame that a :class:`~mlmd_calc.sampling.quality.FrameGuard` refuses is drawn
        again before the run ends; 0 keeps every frame.
    seed
        Seed of all random numbers.
    format
        Suffix of the trajectory files.
    hydrogens
        Write hydrogens, as far as the start has them, and not only heavy atoms.
    keyframes_per_checkpoint
        Keyframes after which everything is written; the intervals between them are filled at once.
    device, dtype
        Of the networks.
    ligands
        SMILES by residue name.
    beyond_training
        Sample molecules, too, that are not like those the models were trained on.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    input: str
    model: str
    interpolator: str | None = None
    frames: int = 100
    replicas: int = 1
    stride_ps: float | None = None
    sampler: str | None = None
    steps: int | None = None
    noise_scale: float | None = None
    step_scale: float | None = None
    redraws: int = REDRAWS
    seed: int = 0
    format: str = "xtc"
    hydrogens: bool = True
    keyframes_per_checkpoint: int = 10
    device: str = "auto"
    dtype: str = "float32"
    ligands: dict[str, str] | None = None
    beyond_training: bool = False

    def __post_init__(self) -> None:
        checked_format(self.format)
        for name in ("frames", "replicas", "keyframes_per_checkpoint"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1")
        check_redraws(self.redraws)
        self.sampler_options()

    def sampler_options(self) -> SamplerOptions:
        """Return what of the samplers of the models is changed."""
        return SamplerOptions(self.sampler, self.steps, self.noise_scale, self.step_scale)


class SamplingRun:
    """Trajectories that grow in a folder; made by :meth:`start` or :meth:`resume`.

    The folder holds the start as ``start.pdb``, a trajectory file for each replica, whose first
    frame is the start, a restart file, and what run it is. One process at a time can write to it.
    """

    _lock: FolderLock | None = None

    def __init__(self, folder: Path, job: SamplingJob, structure: BondedStructure) -> None:
        model = load_atmos(job.model, device=job.device, dtype=job.dtype)
        fine = None
        if job.interpolator is not None:
            fine = load_atmos(job.interpolator, device=job.device, dtype=job.dtype)
        # Where the run goes on, paths may begin elsewhere.
        job = replace(job, model=model.source, interpolator=None if fine is None else fine.source)
        self.folder, self.job, self._structure = folder, job, structure
        self.system = build_system(structure, job.ligands)
        self._guard = FrameGuard(self.system, structure)
        models = [each for each in (model, fine) if each is not None]
        self.checksums = [each.sha256 for each in models]
        self._warnings = [
            note for each in models for note in _objections(each, self.system, job.beyond_training)
        ]
        stride_ps = trained_stride_ps(model, job.stride_ps)
        self._trajectories = Trajectories(
            self._rollout(model, stride_ps),
            self.system.reference,
            job.replicas,
            job.seed,
            interpolator=None if fine is None else self._interpolator(fine, stride_ps),
        )
        count = self._trajectories.frames_per_keyframe
        if job.frames % count:
            below = job.frames // count * count
            raise ConfigError(
                f"frames={job.frames} is no multiple of {count}, the frames of an interval between "
                f"keyframes; choose {f'{below} or ' if below else ''}{below + count}"
            )
        self.interval_ps = stride_ps / count
        self._written = _written_atoms(self.system, structure, job.hydrogens)
        topology = topology_of(structure, self._written)
        self._files = [
            TrajectoryFile(folder / f"trajectory-{k}.{job.format}", topology, self.interval_ps)
            for k in range(job.replicas)
        ]
        self.frame = 0
        self.quality = FrameQuality(self.system, structure)

    def _rollout(self, model: ATMOSModel, stride_ps: float) -> Rollout:
        sampler = self.job.sampler_options().of(model)
        return make_rollout(model, self.system, stride_ps, sampler, self._guard, self.job.redraws)

    def _interpolator(self, model: ATMOSModel, keyframe_stride_ps: float) -> Rollout:
        stride_ps = keyframe_stride_ps / max(model.network.config.max_remaining, 1)
        known = model.card.strides_ps
        if known and not np.isclose(stride_ps, known).any():
            raise ConfigError(
                f"the interpolator {model.card.name or model.source!r} was trained on a stride of "
                f"{', '.join(f'{each:g}' for each in known)} ps, but between keyframes "
                f"{keyframe_stride_ps:g} ps apart its steps would be {stride_ps:g} ps; use models "
                "that belong together"
            )
        return self._rollout(model, stride_ps)

    @property
    def paths(self) -> list[Path]:
        """Trajectory files."""
        return [file.path for file in self._files]

    @property
    def notes(self) -> list[str]:
        """Sentences on what was left out or assumed."""
        notes = [*self.system.notes, *dict.fromkeys(self._warnings)]
        if self.job.hydrogens and not len(self.system.hydrogens.hydrogens):
            notes.append("The start has no hydrogens; heavy atoms are written.")
        notes.append(
            "Energies of single frames lie far above those of molecular dynamics; minimise before "
            "computing any."
        )
        return notes

    def summary(self) -> dict[str, Any]:
        """Return what was done so far as JSON-able values."""
        return {
            "version": mlmd_calc.__version__,
            "job": asdict(self.job),
            "sha256": self.checksums,
            "frame": self.frame,
            "interval_ps": self.interval_ps,
            "quality": self.quality.state_dict(),
            **self._guard.state_dict(),
            "trajectories": [str(path) for path in self.paths],
            "notes": self.notes,
        }

    @classmethod
    def start(cls, folder: Path, job: SamplingJob, structure: BondedStructure) -> SamplingRun:
        """Begin a run.

        Parameters
        ----------
        folder
            Folder of the run; it is made if it does not exist.
        job
            What to sample.
        structure
            First frame.

        Raises
        ------
        ConfigError
            If the folder holds a run, or options and models do not fit together.
        InputError
            If the models cannot be given the structure.
        """
        _refuse_run(folder)
        run = cls(folder, job, structure)
        folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(folder) as run._lock:
            # Again, now that no other process can begin one.
            _refuse_run(folder)
            first = structure.positions[None, run._written]
            write_start(folder / START_FILE, run._files[0].topology, first[0])
            write_json(folder / IDENTITY_FILE, run._identity())
            for file in run._files:
                file.cut(0)
                file.append(first, 0)
            # From here on there is a run that can be continued.
            run._save()
        return run

    @classmethod
    def resume(cls, folder: Path, frames: int | None = None) -> SamplingRun:
        """Go on with the run in a folder, to the last bit on the same device.

        Parameters
        ----------
        folder
            Folder of the run.
        frames
            New number of frames; None keeps the old one.

        Raises
        ------
        ConfigError
            If there is no run, or it has more frames already.
        ModelFileError
            If a file of the run is damaged, or a model has changed.
        """
        path = folder / RESTART_FILE
        if not path.exists():
            raise ConfigError(
                f"{folder} holds no run to continue ({RESTART_FILE} is missing, so it was stopped "
                "before its first frame, if at all); give the --out of the run, or start one "
                "without --restart"
            )
        with FolderLock(folder) as lock:
            run = cls._continued(folder, read_restart(path), frames)
            run._lock = lock
        return run

    @classmethod
    def _continued(cls, folder: Path, stored: dict[str, Any], frames: int | None) -> SamplingRun:
        """Put a run together again as it was at a restart file."""
        try:
            known = read_json(folder / IDENTITY_FILE)
        except FileNotFoundError as error:
            raise ModelFileError(
                f"{folder / IDENTITY_FILE}, which says what the run is, is missing; bring it back, "
                "or start a new run"
            ) from error
        check_identity(
            folder / RESTART_FILE,
            stored.get("identity", {}),
            known,
            remedy="bring back the files of this run, or start a new one",
        )
        if "guard" not in stored:
            raise ModelFileError(
                f"the run in {folder} was started by an earlier version of mlmd, which judged "
                "frames otherwise; finish it with that one, or start a new run"
            )
        job = SamplingJob(**stored["job"])
        if frames is not None:
            job = replace(job, frames=frames)
        if job.frames < stored["frame"]:
            raise ConfigError(
                f"frames={job.frames}, but the run has {stored['frame']} already; ask for more"
            )
        run = cls(folder, job, _structure(stored["structure"]))
        if run.checksums != stored["checksums"]:
            raise ModelFileError(
                f"the models have sha256 {', '.join(run.checksums)}, but the run was started with "
                f"{', '.join(stored['checksums'])}; bring back the original models or start a new "
                "run"
            )
        run.frame = stored["frame"]
        run.quality.load_state_dict(stored["quality"])
        run._guard.load_state_dict(stored["guard"])
        run._trajectories.load_state_dict(stored["trajectories"])
        for file, size in zip(run._files, stored["sizes"], strict=True):
            file.cut(size)
        return run

    def _identity(self) -> dict[str, Any]:
        """Say what the run is, whatever its length and wherever its models lie; JSON-able."""
        passing = ("input", "model", "interpolator", "frames", "device")
        options = {name: value for name, value in asdict(self.job).items() if name not in passing}
        positions = np.ascontiguousarray(self._structure.positions)
        return {
            "atoms": ase.Atoms(self._structure.numbers).get_chemical_formula(),
            "start": hashlib.sha256(positions.tobytes()).hexdigest(),
            "models": self.checksums,
            **options,
        }

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            self._lock.release()

    def _save(self) -> None:
        write_restart(
            self.folder / RESTART_FILE,
            {
                "identity": self._identity(),
                "job": asdict(self.job),
                "structure": {
                    entry.name: getattr(self._structure, entry.name)
                    for entry in fields(BondedStructure)
                },
                "checksums": self.checksums,
                "frame": self.frame,
                "quality": self.quality.state_dict(),
                "guard": self._guard.state_dict(),
                "sizes": [file.size for file in self._files],
                "trajectories": self._trajectories.state_dict(),
            },
        )

    def run(
        self,
        on_frames: Callable[[int], None] = lambda frame: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Sample up to the number of frames that was asked for.

        Parameters
        ----------
        on_frames
            Called with the number of frames whenever some have been written.
        should_stop
            Asked before more are drawn.

        Returns
        -------
        bool
            False if it was stopped.

        Raises
        ------
        PredictionError
            If a network draws a frame that is not finite, or all draws of a frame are refused
            (RefusedFramesError). All frames before it, up to a checkpoint, are in the files.
        """
        per_keyframe = self._trajectories.frames_per_keyframe
        while self.frame < self.job.frames:
            if should_stop():
                return False
            left = (self.job.frames - self.frame) // per_keyframe
            self._add(self._trajectories.advance(min(left, self.job.keyframes_per_checkpoint)))
            on_frames(self.frame)
        return True

    def _add(self, frames: NDArray[np.float64]) -> None:
        """Write new frames ``(replicas, f, a, 3)``, then the restart file."""
        for file, own in zip(self._files, frames, strict=True):
            self.quality.add(own)
            full = self.system.restore(own, self._structure.positions)
            file.append(full[:, self._written], self.frame + 1)
        self.frame += frames.shape[1]
        self._save()


def _refuse_run(folder: Path) -> None:
    """Refuse a folder with a run that can be continued."""
    if (folder / RESTART_FILE).exists():
        raise ConfigError(
            f"{folder} holds a run already; continue it with --restart, or give another folder"
        )


def _objections(model: ATMOSModel, system: MolecularSystem, beyond_training: bool) -> list[str]:
    """Sentences on what a model does not know of the molecule."""
    found = check_molecule(model, system, beyond_training)
    if model.card.domain is None:
        return [
            f"The card of {model.card.name or model.source!r} does not tell which molecules it "
            "was trained on; whether it knows this one is unknown."
        ]
    return [f"Beyond the training of the model: {objection}." for objection in found]


def _written_atoms(
    system: MolecularSystem, structure: BondedStructure, hydrogens: bool
) -> NDArray[np.int64]:
    """Find what is written, in the order of the structure: no water, no ions."""
    inside = np.setdiff1d(np.arange(len(structure)), system.left_out)
    return inside if hydrogens else inside[structure.numbers[inside] > 1]


def _structure(stored: dict[str, Any]) -> BondedStructure:
    texts = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
    return BondedStructure(**{**stored, **texts})
