"""Forces of a model at the frames of a trajectory.

A propagator that is used with the accelerations of a force model does best if it has learnt from
those, not from the accelerations of the method that made the trajectory.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.data.npz import read_npz
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.potential import Structure
from mlmd_calc.propagation.forces import ForceModel

FRAMES_PER_CALL: Final = 64


def file_stems(molecules: Sequence[MoleculeFrames]) -> list[str]:
    """Name a file for each set of frames: the molecule's name, numbered where several share it."""
    stems: list[str] = []
    for molecule in molecules:
        # Names come from data files and may hold anything, folders of other people included.
        plain = re.sub(r"[^\w+\-().]", "_", molecule.name).lstrip(".") or "molecule"
        numbered = (f"{plain}_{n}" for n in itertools.count(2))
        stems.append(next(s for s in itertools.chain([plain], numbered) if s not in stems))
    return stems


def is_labelled(path: Path, molecule: MoleculeFrames, sha256: str) -> bool:
    """Tell whether a file with the labels of these frames exists.

    Parameters
    ----------
    path
        The file.
    molecule
        Its frames.
    sha256
        Checksum of the model that labels them.

    Raises
    ------
    ConfigError
        If the file holds other frames or labels of another model, or of other weights of it.
    ModelFileError
        If it cannot be read.
    """
    if not path.exists():
        return False
    found = read_npz(path)
    same_frames = (
        np.array_equal(found.numbers, molecule.numbers)
        and found.state == molecule.state
        and np.array_equal(found.positions, molecule.positions.astype(found.positions.dtype))
    )
    if not same_frames or found.metadata.get("teacher_sha256") != sha256:
        what = (
            "labels of another model or of other weights of it" if same_frames else "other frames"
        )
        raise ConfigError(f"{path} holds {what}; choose another directory or remove the file")
    return True


def label_forces(
    molecule: MoleculeFrames, potential: ForceModel, on_frames: Callable[[int], None] | None = None
) -> MoleculeFrames:
    """Replace the forces of all frames by those of a force model.

    Parameters
    ----------
    molecule
        Frames in any order.
    potential
        Force model, such as :class:`mlmd_calc.Potential`.
    on_frames
        Called with the number of frames that were just evaluated.

    Raises
    ------
    InputError
        If the force model refuses the molecule.
    PredictionError
        If the force model gives no forces.
    """
    forces = []
    for first in range(0, len(molecule), FRAMES_PER_CALL):
        structures = [
            Structure(
                molecule.numbers, x, charge=molecule.charge, multiplicity=molecule.multiplicity
            )
            for x in molecule.positions[first : first + FRAMES_PER_CALL].astype(np.float64)
        ]
        for result in potential.evaluate(structures, ("forces",)):
            if result.forces is None:
                raise PredictionError("the potential gave no forces")
            forces.append(result.forces)
        if on_frames is not None:
            on_frames(len(structures))
    return replace(molecule, forces=np.array(forces))
