"""One `mlmd sample`: trajectories in a folder, from which a run that was killed goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from numpy.typing import NDArray

import mlmd_calc
from mlmd_calc.biomolecules import BondedStructure, MolecularSystem
from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.io.files import FolderLock, read_json, write_json
from mlmd_calc.io.restart import check_identity, read_restart, write_restart
from mlmd_calc.options import with_tuples
from mlmd_calc.sampling.drawing import Drawing, ForceMaker, named_potential
from mlmd_calc.sampling.job import SamplingJob
from mlmd_calc.sampling.quality import FrameQuality
from mlmd_calc.sampling.trajectory_file import TrajectoryFile, topology_of, write_start

RESTART_FILE: Final = "restart.npz"
IDENTITY_FILE: Final = "run.json"
START_FILE: Final = "start.pdb"
ENERGIES_FILE: Final = "energies.csv"
"""Potential energies of relaxed frames."""


class SamplingRun:
    """Trajectories that grow in a folder; made by :meth:`start` or :meth:`resume`.

    The folder holds the start as ``start.pdb``, a trajectory file for each replica, whose first
    frame is the start, a restart file, and what run it is. One process at a time can write to it.
    """

    _lock: FolderLock | None = None

    def __init__(
        self,
        folder: Path,
        job: SamplingJob,
        structure: BondedStructure,
        make_forces: ForceMaker,
    ) -> None:
        self.folder, self._structure = folder, structure
        self._drawing = drawing = Drawing(job, structure, make_forces)
        # With the models where they were found.
        self.job, self.system = drawing.job, drawing.system
        self.interval_ps = drawing.interval_ps
        self._written = _written_atoms(self.system, structure, job.hydrogens)
        topology = topology_of(structure, self._written)
        self._files = [
            TrajectoryFile(folder / f"trajectory-{k}.{job.format}", topology, self.interval_ps)
            for k in range(job.replicas)
        ]
        self.frame = 0
        hydrogens = job.relax is None
        self.quality = FrameQuality(self.system, structure, hydrogens=hydrogens)

    @property
    def paths(self) -> list[Path]:
        """Trajectory files."""
        return [file.path for file in self._files]

    @property
    def notes(self) -> list[str]:
        """Sentences on what was left out or assumed."""
        notes = list(self._drawing.notes)
        if self.job.hydrogens and not len(self.system.hydrogens.hydrogens):
            notes.append("The start has no hydrogens; heavy atoms are written.")
        return notes

    def summary(self) -> dict[str, Any]:
        """Return what was done so far as JSON-able values."""
        return {
            "version": mlmd_calc.__version__,
            "job": asdict(self.job),
            "sha256": self._drawing.checksums,
            "frame": self.frame,
            "interval_ps": self.interval_ps,
            "quality": self.quality.state_dict(),
            **self._drawing.summary(),
            "trajectories": [str(path) for path in self.paths],
            "notes": self.notes,
        }

    @classmethod
    def start(
        cls,
        folder: Path,
        job: SamplingJob,
        structure: BondedStructure,
        make_forces: ForceMaker = named_potential,
    ) -> SamplingRun:
        """Begin a run.

        Parameters
        ----------
        folder
            Folder of the run; it is made if it does not exist.
        job
            What to sample.
        structure
            First frame.
        make_forces
            Makes the force model that relaxes frames, from its name in the job and the first frame;
            by default an MD-ET model.

        Raises
        ------
        ConfigError
            If the folder holds a run, or options and models do not fit together.
        InputError
            If the models cannot be given the structure.
        """
        _refuse_run(folder)
        run = cls(folder, job, structure, make_forces)
        run._drawing.begin()
        folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(folder).kept() as run._lock:
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
    def resume(
        cls,
        folder: Path,
        frames: int | None = None,
        make_forces: ForceMaker = named_potential,
    ) -> SamplingRun:
        """Go on with the run in a folder, to the last bit on the same device.

        Parameters
        ----------
        folder
            Folder of the run.
        frames
            New number of frames; None keeps the old one.
        make_forces
            As of :meth:`start`.

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
        with FolderLock(folder).kept() as lock:
            run = cls._continued(folder, read_restart(path), frames, make_forces)
            run._lock = lock
        return run

    @classmethod
    def _continued(
        cls,
        folder: Path,
        stored: dict[str, Any],
        frames: int | None,
        make_forces: ForceMaker,
    ) -> SamplingRun:
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
        # Runs that were started before frames were steered go on without.
        job = SamplingJob(**{"steer": False, **stored["job"]})
        if frames is not None:
            job = replace(job, frames=frames)
        if job.frames < stored["frame"]:
            raise ConfigError(
                f"frames={job.frames}, but the run has {stored['frame']} already; ask for more"
            )
        structure = BondedStructure(**with_tuples(stored["structure"]))
        run = cls(folder, job, structure, make_forces)
        checksums = run._drawing.checksums
        if checksums != stored["checksums"]:
            raise ModelFileError(
                f"the models have sha256 {', '.join(checksums)}, but the run was started with "
                f"{', '.join(stored['checksums'])}; bring back the original models or start a new "
                "run"
            )
        run.frame = stored["frame"]
        run.quality.load_state_dict(stored["quality"])
        run._drawing.load_state_dict(stored)
        for file, size in zip(run._files, stored["sizes"], strict=True):
            file.cut(size)
        return run

    def _identity(self) -> dict[str, Any]:
        """Say what the run is, whatever its length and wherever its models lie; JSON-able."""
        passing = ("input", "model", "interpolator", "frames", "device")
        options = {name: value for name, value in asdict(self.job).items() if name not in passing}
        if not self.job.steer:
            # As in runs from before frames were steered.
            del options["steer"]
        positions = np.ascontiguousarray(self._structure.positions)
        return {
            "atoms": ase.Atoms(self._structure.numbers).get_chemical_formula(),
            "start": hashlib.sha256(positions.tobytes()).hexdigest(),
            "models": self._drawing.checksums,
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
                "checksums": self._drawing.checksums,
                "frame": self.frame,
                "quality": self.quality.state_dict(),
                "sizes": [file.size for file in self._files],
                **self._drawing.state_dict(),
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
        per_keyframe = self._drawing.frames_per_keyframe
        while self.frame < self.job.frames:
            if should_stop():
                return False
            left = (self.job.frames - self.frame) // per_keyframe
            self._add(min(left, self.job.keyframes_per_checkpoint))
            on_frames(self.frame)
        return True

    def _add(self, keyframes: int) -> None:
        """Draw and write new frames, then the restart file."""
        whole = self._drawing.draw(keyframes)
        if self.job.relax is not None:
            self._drawing.energies.write(self.folder / ENERGIES_FILE)
        for file, own in zip(self._files, whole, strict=True):
            self.quality.add(self.system.select(own))
            file.append(own[:, self._written], self.frame + 1)
        self.frame += whole.shape[1]
        self._save()


def _refuse_run(folder: Path) -> None:
    """Refuse a folder with a run that can be continued."""
    if (folder / RESTART_FILE).exists():
        raise ConfigError(
            f"{folder} holds a run already; continue it with --restart, or give another folder"
        )


def _written_atoms(
    system: MolecularSystem, structure: BondedStructure, hydrogens: bool
) -> NDArray[np.int64]:
    """Find what is written, in the order of the structure: no water, no ions."""
    inside = np.setdiff1d(np.arange(len(structure)), system.left_out)
    return inside if hydrogens else inside[structure.numbers[inside] > 1]
