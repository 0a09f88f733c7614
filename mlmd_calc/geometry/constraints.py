"""Constraints of ASE atoms that hold something."""

from __future__ import annotations

from typing import Any

import ase
import numpy as np


def acting_constraints(atoms: ase.Atoms) -> list[Any]:
    """List the constraints of atoms without those that act on no atom.

    Readers make the latter of the statement that nothing is fixed, and scripts of a selection that
    is empty.

    Parameters
    ----------
    atoms
        Atoms with ASE's constraints.
    """
    return [constraint for constraint in atoms.constraints if not _holds_nothing(constraint)]


def _holds_nothing(constraint: Any) -> bool:
    # Those that act on all atoms list none, and some that act on one atom give just its number.
    listed = getattr(constraint, "get_indices", None)
    return listed is not None and np.size(listed()) == 0
