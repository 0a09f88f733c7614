"""What a potential answers, and the refusal of answers that nobody should use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import PredictionError
from mlmd_calc.potential.spread import molecule_spread

_ABSURD_FORCE: Final = 1000.0
"""eV/Å; no bond survives a tenth of it."""


@dataclass(frozen=True)
class Evaluation:
    """Result for one structure.

    Attributes
    ----------
    energy
        eV, or None if the model has no energy or it was not asked for.
    forces
        ``(n, 3)`` eV/Å, or None if not asked for.
    forces_std
        ``(n, 3)`` eV/Å, standard deviation of each component over the orientations; None for a
        single orientation.
    energy_std
        eV, likewise.
    forces_spread
        ``(n,)`` eV/Å, how far the model's own answers about the force on each atom lie apart, as
        root mean square over components; None if ``on_spread`` did not ask for it. See
        `mlmd_calc.potential.spread`.
    """

    energy: float | None
    forces: NDArray[np.float64] | None
    forces_std: NDArray[np.float64] | None = None
    energy_std: float | None = None
    forces_spread: NDArray[np.float64] | None = None

    def named(self) -> dict[str, Any]:
        """Return what there is by its name, the spread included."""
        found = {**vars(self), "spread": self.spread}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def spread(self) -> float | None:
        """Root mean square of ``forces_spread`` over the atoms, eV/Å."""
        return None if self.forces_spread is None else molecule_spread(self.forces_spread)


@dataclass(frozen=True)
class Hessian:
    """Second derivatives of one structure.

    Attributes
    ----------
    matrix
        ``(3 n, 3 n)`` eV/Å², symmetrised; index 3·atom + axis.
    antisymmetry
        λ = ‖(J − Jᵀ)/2‖ / ‖J‖ of the raw Jacobian J of the forces: 0 for a gradient field, 1/√2 for
        a random matrix. 0 if J is zero, as for a single atom.
    """

    matrix: NDArray[np.float64]
    antisymmetry: float


def check_energies(energies: NDArray[np.float64]) -> None:
    """Refuse non-finite energies of the orientations of a molecule, ``(k,)`` eV.

    Raises
    ------
    PredictionError
        With the first offending value.
    """
    wrong = energies[~np.isfinite(energies)]
    if wrong.size:
        raise PredictionError(f"the model returned energy {wrong[0]} eV")


def check_forces(forces: NDArray[np.float64]) -> None:
    """Refuse non-finite or absurd forces in any orientation of a molecule, ``(k, n, 3)`` eV/Å.

    Raises
    ------
    PredictionError
        With the first offending atom.
    """
    # Largest components and not lengths, because a length may overflow. NaN compares false, so
    # test for what is allowed.
    wrong = ~(np.abs(forces).max(axis=-1) <= _ABSURD_FORCE)
    if wrong.any():
        orientation, atom = np.argwhere(wrong)[0]
        raise PredictionError(
            f"the model returned force {forces[orientation, atom].tolist()} eV/Å on atom {atom}; "
            f"components beyond {_ABSURD_FORCE:g} are absurd. The geometry is probably far from "
            "anything the model was trained on"
        )


def check_jacobian(jacobian: NDArray[np.float64]) -> None:
    """Refuse non-finite derivatives of the forces.

    Raises
    ------
    PredictionError
        If an entry is not finite.
    """
    if not np.isfinite(jacobian).all():
        raise PredictionError("the derivatives of the model's forces are not finite numbers")
