"""Frames of XTC and DCD files, and what every run of another program is checked for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.geometry.bonds import bond_lengths
from mlmd_calc.io.files import refuse_huge_array
from mlmd_calc.optional import require
from mlmd_calc.wording import counted

FRAME_FILES: Final = (".xtc", ".dcd")
"""Endings of the files that :func:`read_frames` knows."""

_LONGEST_BOND: Final = 5.0
"""Å; a bond longer than this is one across a periodic cell."""
_SHORTEST_BOND: Final = 0.05
"""Å; atoms that are closer have no positions, as those that were no numbers before XTC rounded."""
_BOND: Final = (0.6, 1.5)
"""Lengths of bonds over the sum of covalent radii, which no vibration leaves."""
_TINY: Final = 1e-6
_EQUAL: Final = 0.01
"""Relative difference of intervals that means nothing."""
POSITION_BYTES: Final = 3 * 4
"""Of the position of an atom in single precision."""


def read_frames(
    path: Path, count: int, atoms: NDArray[np.int64], every: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read frames of some atoms.

    Parameters
    ----------
    path
        File that ends in .xtc or .dcd.
    count
        Atoms that it must have.
    atoms
        ``(a,)`` indices of those to read, in the order that is wanted.
    every
        Take the first of so many frames.

    Returns
    -------
    frames
        ``(f, a, 3)`` Å.
    times
        ``(f,)`` ps; empty where the format has none.

    Raises
    ------
    ModelFileError
        If the file cannot be read, or its frames do not fit into memory.
    InputError
        If it has another number of atoms, or no frame.
    """
    formats = require("mdtraj.formats", extra="dcd", why="read trajectories")
    has_times = path.suffix.lower() == ".xtc"
    kind = formats.XTCTrajectoryFile if has_times else formats.DCDTrajectoryFile
    try:
        with kind(str(path)) as file:
            first = file.read(1)[0]
            file.seek(0)
            # Compared before anything is read that follows from it.
            _check_count(path, first, count)
            refuse_huge_array(path, len(file) // every * len(atoms) * POSITION_BYTES)
            order = np.argsort(atoms)
            content = file.read(stride=every, atom_indices=atoms[order])
    except (OSError, RuntimeError) as error:
        raise ModelFileError(f"{path} cannot be read ({error}); copy it again") from error
    # In single precision as in the file: doubles would not fit where these do.
    frames = np.asarray(content[0][:, np.argsort(order)], dtype=np.float32)
    if not has_times:
        return frames, np.zeros(0)
    frames *= np.float32(units.NM)
    return frames, np.asarray(content[1], dtype=np.float64)


def _check_count(path: Path, first: NDArray[np.float32], count: int) -> None:
    if first.shape[0] == 0:
        raise InputError(f"{path} has no frame")
    if first.shape[1] != count:
        raise InputError(
            f"the frames of {path} have {counted(first.shape[1], 'atom')}, the topology has "
            f"{count}; give the topology of this very trajectory"
        )


def frame_interval(path: Path, times: NDArray[np.float64], interval_ps: float | None) -> float:
    """Time between frames: as given, which must agree with the file where that has times.

    Parameters
    ----------
    path
        The file, for messages.
    times
        ``(f,)`` ps, or none.
    interval_ps
        As given, if it is.

    Raises
    ------
    InputError
        If frames are not at equal spacing, nobody tells it, or the two contradict each other.
    """
    steps = np.diff(times)
    stated = float(steps.mean()) if len(steps) and steps.any() else None
    # Files have times in single precision, in which late ones are coarse.
    rounding = 2.0 * float(np.spacing(np.float32(np.abs(times).max(initial=0.0))))
    if stated is not None and steps.max() - steps.min() > _EQUAL * stated + rounding:
        raise InputError(f"the frames of {path} are {steps.min():g} to {steps.max():g} ps apart")
    if stated is None:
        if interval_ps is None:
            raise InputError(
                f"{path} does not tell the time between its frames; give --interval, in ps"
            )
        return interval_ps
    if interval_ps is None:
        return float(np.round(stated, 4))
    if abs(interval_ps - stated) > _EQUAL * stated + rounding / len(steps):
        raise InputError(
            f"an interval of {interval_ps:g} ps is given, but the frames of {path} are "
            f"{stated:g} ps apart; leave it out"
        )
    return interval_ps


def check_whole(
    path: Path,
    frames: NDArray[np.float32],
    bonds: NDArray[np.int64],
    numbers: NDArray[np.int64],
) -> None:
    """Refuse molecules that a periodic cell has cut, and atoms that are not those of the topology.

    Parameters
    ----------
    path
        The file, for messages.
    frames
        ``(f, a, 3)`` Å.
    bonds
        ``(b, 2)`` between these atoms.
    numbers
        ``(a,)`` atomic numbers.

    Raises
    ------
    InputError
        With the first frame in which a bond crosses a cell or has no length, or if every frame has
        bonds of impossible length. Single frames may, as those that a model has drawn.
    """
    usual = covalent_radii[numbers[bonds]].sum(axis=1)
    lengths = bond_lengths(frames, bonds)
    ratios = lengths / usual
    shortest, longest = _BOND
    torn = ((lengths > _LONGEST_BOND) | (lengths < _SHORTEST_BOND)).any(axis=1)
    foreign = ((ratios < shortest) | (ratios > longest)).any(axis=1)
    if torn.any() or foreign.all():
        frame = int(torn.argmax())
        # The one that is farthest off tells most.
        bond = int(np.abs(np.log(ratios[frame] + _TINY)).argmax())
        raise InputError(
            f"frame {frame} of {path} has a bond of {lengths[frame, bond]:.1f} Å, usual are "
            f"{usual[bond]:.1f}; make molecules whole first (gmx trjconv -pbc mol, or mdtraj's "
            "make_molecules_whole), and give the topology of this very trajectory"
        )
