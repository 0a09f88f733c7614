"""Forces of a model at the frames of a trajectory.

A propagator that is used with the accelerations of a force model does best if it has learnt from
those, not from the accelerations of the method that made the trajectory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import PredictionError
from mlmd_calc.potential import Structure
from mlmd_calc.propagation.forces import ForceModel

FRAMES_PER_CALL: Final = 64


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
