"""What ASE does not say of XYZ files."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from ase.io.formats import open_with_compression

from mlmd_calc.errors import ModelFileError


def refuse_frames_behind_blank_lines(path: Path) -> None:
    """Refuse an XYZ file of which ASE would read a part, because it takes a blank line for the end.

    Raises
    ------
    ModelFileError
        If frames follow a blank line.
    """
    with open_with_compression(str(path), "r") as file:
        for frame in count():
            head = file.readline()
            if not head.strip():
                if any(line.strip() for line in file):
                    raise ModelFileError(
                        f"{path} has a blank line behind {frame} of its frames, which ends an XYZ "
                        "file; remove blank lines between frames"
                    )
                return
            if not head.strip().isdecimal():
                return  # ASE refuses it, and says why.
            for _ in range(int(head) + 1):
                file.readline()
