"""Force models as the jump loop uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mlmd_calc.errors import ConfigError
from mlmd_calc.potential import Evaluation, Structure
from mlmd_calc.propagation.state import FloatArray


class ForceModel(Protocol):
    """Energies and forces of molecules, for instance a :class:`mlmd_calc.Potential`.

    A force model with random numbers of its own has ``state_dict`` and ``load_state_dict``. One
    whose energies can be used to check jumps says so by an attribute ``has_energy`` that is true.
    """

    def evaluate(
        self, structures: Sequence[Structure], properties: Sequence[str]
    ) -> list[Evaluation]:
        """Evaluate molecules; ``properties`` holds "energy", "forces" or both."""


class FunctionForces:
    """A plain function as force model.

    Parameters
    ----------
    function
        From positions ``(n, 3)`` Å to energy in eV and forces ``(n, 3)`` eV/Å.
    """

    has_energy = True

    def __init__(self, function: Callable[[FloatArray], tuple[float, FloatArray]]) -> None:
        self.function = function

    def evaluate(
        self, structures: Sequence[Structure], properties: Sequence[str] = ("energy", "forces")
    ) -> list[Evaluation]:
        """Evaluate molecules."""
        return [Evaluation(*self.function(structure.positions)) for structure in structures]


def has_energy(forces: ForceModel) -> bool:
    """Whether a force model gives energies; one that does not say so is taken to."""
    return bool(getattr(forces, "has_energy", True))


def model_state(forces: ForceModel | None) -> Mapping[str, Any] | None:
    """State of a force model; None if it has none."""
    save = getattr(forces, "state_dict", None)
    return None if save is None else save()


def load_model_state(forces: ForceModel | None, state: Mapping[str, Any] | None) -> None:
    """Let a force model go on from :func:`model_state`.

    Raises
    ------
    ConfigError
        If only one of force model and stored state has random numbers of its own.
    """
    load = getattr(forces, "load_state_dict", None)
    if (load is None) != (state is None):
        raise ConfigError(
            f"the stored run had another kind of force model than {type(forces).__qualname__}; "
            "continue with the force model of the run"
        )
    if load is not None:
        load(state)
