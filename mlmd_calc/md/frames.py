"""The file of a run's frames: one NumPy array that grows."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import ModelFileError
from mlmd_calc.io.files import naming
from mlmd_calc.wording import counted

FRAMES_FILE: Final = "frames.npy"


def frame_dtype(n_atoms: int, *, timed: bool = False) -> np.dtype[np.void]:
    """Layout of one recorded frame.

    ``step``; ``potential`` and ``kinetic`` energy in eV (potential NaN if the model has none);
    ``bond_deviation``, the largest deviation in Å of any bond at any step since the frame before;
    ``positions`` in Å and ``velocities`` in Å/fs; ``forces`` in eV/Å, NaN where the engine does not
    tell them; and where frames lie inside steps, too, ``time`` in fs.

    Parameters
    ----------
    n_atoms
        Number of atoms.
    timed
        Whether frames lie inside steps, too. These have no potential energy, and the number of the
        step before.
    """
    return np.dtype(
        [
            ("step", "<i8"),
            ("potential", "<f8"),
            ("kinetic", "<f8"),
            ("bond_deviation", "<f8"),
            ("positions", "<f8", (n_atoms, 3)),
            ("velocities", "<f8", (n_atoms, 3)),
            ("forces", "<f8", (n_atoms, 3)),
            *([("time", "<f8")] if timed else []),
        ]
    )


class FrameWriter:
    """Append frames to a ``.npy`` file that ``numpy.load`` can read at any time after a flush.

    Ours, because no library that is installed anyway can drop the frames that a checkpoint does not
    know: ASE's trajectories grow but cannot be cut, files of MDTraj and OpenMM hold positions in
    single precision, and NumPy writes whole arrays. A kill at any moment leaves a readable file.

    Parameters
    ----------
    path
        File to write.
    dtype
        Layout of a frame, see :func:`frame_dtype`.
    keep
        Number of frames of an existing file to keep; whatever follows is dropped. With 0 the file
        is made anew.

    Raises
    ------
    ModelFileError
        If there are fewer frames than are to be kept, or they do not fit the molecule.
    """

    def __init__(self, path: Path, dtype: np.dtype[np.void], keep: int = 0) -> None:
        self.count = keep
        self._path, self._dtype = path, dtype
        if keep:
            found = read_frames(path)
            if found.dtype != self._dtype or len(found) < keep:
                raise ModelFileError(
                    f"{path} holds {counted(len(found), 'frame')} of layout {found.dtype}, but the "
                    f"checkpoint beside it belongs to {counted(keep, 'frame')} of layout {dtype}; "
                    "bring back the original file or start a new run"
                )
            del found
        self._file = path.open("r+b" if keep else "w+b")
        # The header first: a kill in between must not leave one that promises more than there is.
        self.drop(keep)

    def _header(self) -> bytes:
        """Header of the file; NumPy pads it so that its size does not depend on the count."""
        buffer = io.BytesIO()
        description = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": description, "fortran_order": False, "shape": (self.count,)}
        )
        return buffer.getvalue()

    def append(self, frames: NDArray[np.void]) -> None:
        """Add frames, ``(f,)`` with the fields of :func:`frame_dtype`."""
        with naming(self._path):
            self._file.write(frames.tobytes())
        self.count += len(frames)

    def flush(self) -> None:
        """Make everything appended so far readable."""
        with naming(self._path):
            # The buffer is written first, so that the header stays true if the disk is full.
            self._file.flush()
            self._file.seek(0)
            self._file.write(self._header())
            self._file.seek(0, io.SEEK_END)
            self._file.flush()

    def sync(self) -> None:
        """Flush, and wait until all is on the disk."""
        self.flush()
        with naming(self._path):
            os.fsync(self._file.fileno())

    def drop(self, keep: int) -> None:
        """Drop all but a number of frames."""
        self.count = keep
        self.flush()
        self._file.truncate(len(self._header()) + keep * self._dtype.itemsize)
        self._file.seek(0, io.SEEK_END)

    def close(self) -> None:
        """Flush and close the file."""
        try:
            self.flush()
        finally:
            with naming(self._path):
                self._file.close()


def read_frames(path: Path) -> NDArray[np.void]:
    """Map the frames of a file into memory.

    Raises
    ------
    ModelFileError
        If the file is missing or damaged.
    """
    try:
        frames: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelFileError(
            f"{path} is not a readable file of frames: {error}; bring it back, or start a new run"
        ) from error
    return frames
