"""How far a model's own answers about one structure lie apart, and what is done about it.

A model that was not shown anything like a structure has no reason to give the same answer twice.
Two pairs of answers cost next to nothing beside the one that is asked for:

* **conservative forces**: the gradient of the energy, and the force head of the same network. Both
  were trained on the same labels; spread is their difference.
* **direct forces**, in several orientations per call: spread is the standard deviation of the
  forces, turned back, over the orientations.

``mlmd validate spread`` measures how well either tells the error.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from ase.symbols import Symbols
from numpy.typing import NDArray

from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.options import one_of, shown

MEASURE, WARN, RAISE, AVERAGE = "measure", "warn", "raise", "average"

ACTIONS: Final = (MEASURE, WARN, RAISE, AVERAGE)
"""What can be asked of a potential that knows the spread of its forces."""


@dataclass
class SpreadLimit:
    """Largest spread that is accepted, and what happens beyond.

    Attributes
    ----------
    largest
        eV/Å; infinite where spreads are only measured.
    action
        One of `ACTIONS`.
    warned
        Compositions that were warned of.
    """

    largest: float
    action: str
    warned: set[bytes] = field(default_factory=set)

    def exceeded(self, forces_spread: NDArray[np.float64]) -> bool:
        """Whether the spread of a structure, ``(n,)`` eV/Å by atom, is too large."""
        return not molecule_spread(forces_spread) <= self.largest

    def object_to(
        self, forces_spread: NDArray[np.float64], numbers: NDArray[np.integer[Any]]
    ) -> None:
        """Refuse forces whose spread is too large, or warn of them once per composition.

        Parameters
        ----------
        forces_spread
            ``(n,)`` eV/Å.
        numbers
            Atomic numbers, ``(n,)``.

        Raises
        ------
        PredictionError
            If the action is to raise.
        """
        composition = numbers.tobytes()
        if self.action == WARN and composition in self.warned:
            return
        self.warned.add(composition)
        formula, atom = Symbols(numbers).get_chemical_formula(), int(forces_spread.argmax())
        text = (
            f"the model contradicts itself about {formula}: the spread of its forces is "
            f"{molecule_spread(forces_spread):.3g} eV/Å, more than max_spread={self.largest:.3g} "
            f"(largest on atom {atom}, {forces_spread[atom]:.3g}). The structure is probably "
            "unlike anything it was trained on, and the forces are wrong by about that or more"
        )
        if self.action == RAISE:
            raise PredictionError(f"{text}; restart from an earlier frame, or use another model")
        warnings.warn(f"{text}; said once per composition", stacklevel=3)


def head_spread(gradient: NDArray[np.float64], direct: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square over components of the difference of two forces ``(n, 3)``: ``(n,)``."""
    spread: NDArray[np.float64] = np.sqrt(np.square(gradient - direct).mean(axis=-1))
    return spread


def orientation_spread(forces_std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square over components of standard deviations ``(n, 3)``: ``(n,)``."""
    spread: NDArray[np.float64] = np.sqrt(np.square(forces_std).mean(axis=-1))
    return spread


def molecule_spread(forces_spread: NDArray[np.float64]) -> float:
    """Root mean square over atoms, eV/Å: what the error per force component is compared with."""
    return float(np.sqrt(np.square(forces_spread).mean()))


def check_spread(max_spread: float | None, on_spread: str | None) -> None:
    """Refuse values that are not allowed whatever the model.

    Raises
    ------
    ConfigError
        With the value and what is allowed.
    """
    if on_spread is not None:
        one_of("on_spread", on_spread, ACTIONS)
    if max_spread is not None and not (
        isinstance(max_spread, (int, float, np.floating)) and 0.0 < max_spread < np.inf
    ):
        raise ConfigError(
            f"max_spread={shown(max_spread)}; it is the largest spread of the forces in eV/Å, a "
            "positive number, usually a few times the error of the model"
        )
    if on_spread == MEASURE and max_spread is not None:
        raise ConfigError(
            f"max_spread={max_spread:g} with on_spread='measure', which objects to no spread; "
            "leave out max_spread, or choose on_spread='warn' or 'raise'"
        )


def check_answers(
    *, conservative: bool, force_head: bool, invariant: bool, n_rotations: int, action: str
) -> None:
    """Refuse to tell a spread where the model gives one answer only.

    Parameters
    ----------
    conservative
        Whether the forces are the gradient of the energy.
    force_head
        Whether the network has a force head beside the energy.
    invariant
        Whether the network sees no directions.
    n_rotations
        Orientations per call.
    action
        One of `ACTIONS`.

    Raises
    ------
    ConfigError
        With what to do instead.
    """
    if conservative and not force_head:
        raise ConfigError(
            f"on_spread={action!r} compares the gradient of the energy with the force head, which "
            "this model does not have; leave it out"
        )
    if conservative and action == AVERAGE:
        raise ConfigError(
            "on_spread='average' takes more orientations where direct forces disagree; a mean of "
            "conservative forces that changes on the way conserves no energy. Choose "
            "on_spread='warn' or 'raise'"
        )
    if not conservative and invariant:
        raise ConfigError(
            f"on_spread={action!r} with forces='direct': this network sees no directions, so its "
            "forces are the same in every orientation and have no spread; use forces='conservative'"
        )
    if not conservative and n_rotations == 1:
        raise ConfigError(
            f"on_spread={action!r} with forces='direct' is the spread over orientations, and there "
            "is one per call; give n_rotations=4 or more"
        )
