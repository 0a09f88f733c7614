"""What the dynamics of this package with force models have in common: restarts to the last bit."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import ase
from ase.io.trajectory import Trajectory
from ase.md.md import MolecularDynamics

from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.geometry.constraints import acting_constraints
from mlmd_calc.io.files import replacing
from mlmd_calc.io.restart import check_identity, read_restart, write_restart
from mlmd_calc.options import positive_number, whole_number
from mlmd_calc.wording import counted

LARGEST_INTERVAL: Final = 10**9
"""Steps between lines of a log."""

_NEW_FILE: Final = "pass trajectory=ase.io.Trajectory(NAME, 'w') for frames to come alone"


class StepLoop(MolecularDynamics):
    """ASE's dynamics without the evaluation of forces after every step."""

    @property
    def stopped(self) -> str | None:
        """Why the run stopped; None if it did not."""
        return None

    def step(self) -> None:
        """Do one step."""
        raise NotImplementedError

    def irun(self, steps: int = 50) -> Generator[bool, None, None]:
        """Run as a generator, which yields after every step whether the run is complete.

        ASE's own would evaluate forces after every step.
        """
        self.max_steps = self.nsteps + steps
        if self.nsteps == 0:
            self.call_observers()  # type: ignore[no-untyped-call]
        yield self.nsteps >= self.max_steps
        while self.nsteps < self.max_steps:
            self.step()
            if self.stopped is not None:
                return
            self.nsteps += 1
            self.call_observers()  # type: ignore[no-untyped-call]
            yield self.nsteps >= self.max_steps

    def run(self, steps: int = 50) -> bool:
        """Run for a number of steps.

        Returns
        -------
        bool
            Whether all of them were done.
        """
        for _ in self.irun(steps):
            pass
        return self.nsteps >= self.max_steps

    def _refresh_properties(self) -> None:
        """Leave the forces alone, which newer versions of ASE evaluate here."""


class RestartableDynamics(MolecularDynamics):
    """Dynamics that write restart files and go on from them to the last bit.

    Parameters
    ----------
    atoms
        Atoms without constraints.
    timestep
        In ASE time units.
    trajectory, logfile, loginterval
        As in ASE.
    restart
        Restart file to go on from; see :meth:`save_restart`. All other arguments must be those of
        the interrupted run. A trajectory given by its name is appended to, after frames that are
        newer than the restart file have been removed.
    **options
        Options of ASE's dynamics, such as `append_trajectory`.

    Raises
    ------
    InputError
        If the atoms carry constraints.
    ModelFileError
        If the restart file is missing or damaged or belongs to a run with other settings, or the
        trajectory lacks frames.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        *,
        trajectory: Any = None,
        logfile: IO[str] | str | None = None,
        loginterval: int = 1,
        restart: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        timestep = positive_number("timestep", timestep)
        loginterval = whole_number("loginterval", loginterval, 1, LARGEST_INTERVAL)
        self._refuse_constraints(atoms)
        if getattr(options.get("communicator"), "size", 1) > 1:
            raise ConfigError(f"{type(self).__name__} runs in one process; leave communicator out")
        content = None if restart is None else read_restart(restart)
        self._timestep_at_start = timestep
        if content is not None:
            self._go_on(atoms, content, Path(restart or ""))
        frames = None if content is None else 1 + content["steps"] // loginterval
        options |= trajectory_options(trajectory, frames, loginterval)
        super().__init__(atoms, timestep, logfile=logfile, loginterval=loginterval, **options)
        if content is not None:
            self.nsteps = content["steps"]
            self._load_state(content["state"])

    def irun(self, steps: int = 50) -> Generator[bool, None, None]:
        """Run as a generator, which yields after every step whether the run is complete."""
        self._refuse_constraints(self.atoms)
        yield from super().irun(steps)  # type: ignore[no-untyped-call]

    def run(self, steps: int = 50) -> bool:
        """Run for a number of steps; returns whether all of them were done."""
        self._refuse_constraints(self.atoms)
        done: bool = super().run(steps)  # type: ignore[no-untyped-call]
        return done

    def _refuse_constraints(self, atoms: ase.Atoms) -> None:
        if held := acting_constraints(atoms):
            raise InputError(
                f"the atoms carry the constraints {held}, which {type(self).__name__} does not "
                "know; remove them with atoms.set_constraint()"
            )

    def _go_on(self, atoms: ase.Atoms, content: Mapping[str, Any], path: Path) -> None:
        """Take atoms to where the run was interrupted."""
        if "identity" not in content or "momenta" not in content:
            raise ModelFileError(f"{path} is not a restart file of {type(self).__name__}")
        check_identity(
            path,
            content["identity"],
            self._whole_identity(atoms),
            remedy="continue with the settings and models of the run, or start a new one",
        )
        atoms.set_positions(content["positions"])
        atoms.set_momenta(content["momenta"])

    def save_restart(self, path: str | os.PathLike[str]) -> None:
        """Write a restart file, replacing an older one in one go.

        Attach it after everything else, for instance ``dyn.attach(dyn.save_restart, 100, path)``,
        so that what it stands for has been written before.
        """
        write_restart(
            path,
            {
                "identity": self._whole_identity(self.atoms),
                "steps": self.nsteps,
                "positions": self.atoms.get_positions(),
                "momenta": self.atoms.get_momenta(),
                "state": self._state(),
            },
        )

    def _whole_identity(self, atoms: ase.Atoms) -> dict[str, Any]:
        return {
            "dynamics": type(self).__name__,
            "timestep": self._timestep_at_start,
            "numbers": atoms.numbers.tolist(),
            "masses": atoms.get_masses().tolist(),
            **self._identity(),
        }

    def _identity(self) -> dict[str, Any]:
        """Return the settings that decide the course of the run, JSON-able."""
        raise NotImplementedError

    def _state(self) -> dict[str, Any]:
        """Return what decides how the run goes on, besides positions and momenta."""
        raise NotImplementedError

    def _load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`_state`."""
        raise NotImplementedError


def trajectory_options(trajectory: Any, frames: int | None, interval: int) -> dict[str, Any]:
    """Return options of ASE's dynamics for a trajectory that a run begins, or goes on with.

    Parameters
    ----------
    trajectory
        Name, ASE's object, or None.
    frames
        Frames of the file that a run goes on from; others are removed. None: a run that begins.
    interval
        Steps from one frame to the next.

    Raises
    ------
    ModelFileError
        If there are fewer frames, the file is missing, or it was begun with another interval.
    """
    if isinstance(trajectory, os.PathLike):
        # Old versions of ASE know names as text only.
        trajectory = os.fspath(trajectory)
    if frames is None or not isinstance(trajectory, str):
        return {"trajectory": trajectory}
    _check_interval(trajectory, interval)
    truncate_trajectory(trajectory, frames)
    return {"trajectory": trajectory, "append_trajectory": True}


def _check_interval(path: str, interval: int) -> None:
    """Refuse a trajectory of another interval, of which frames that belong to it would be lost."""
    if not Path(path).is_file():
        raise ModelFileError(
            f"{path}, which the run wrote before its restart file, is not there; bring it back, or "
            f"{_NEW_FILE}"
        )
    with Trajectory(path) as old:
        begun = (old.description or {}).get("interval", interval)
    if begun != interval:
        raise ModelFileError(
            f"{path} has a frame every {begun} steps, but this run has loginterval={interval}; set "
            f"it to {begun}, or {_NEW_FILE}"
        )


def truncate_trajectory(path: str | os.PathLike[str], frames: int) -> None:
    """Keep the first frames of an ASE trajectory file.

    Raises
    ------
    ModelFileError
        If there are fewer.
    """
    path = Path(path)
    with Trajectory(path) as old:
        if len(old) < frames:
            raise ModelFileError(
                f"{path} holds {counted(len(old), 'frame')}, but {frames} were written before the "
                f"restart file; bring back the original file, or {_NEW_FILE}"
            )
        if len(old) == frames:
            return
        with replacing(path) as temporary, Trajectory(temporary, "w") as new:
            new.set_description(old.description or {})
            for index in range(frames):
                new.write(old[index])
