"""Energies and forces of one molecule from a calculator or a force model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import ase
import numpy as np

from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.md.attached import AttachedCalculator, parts_of, state_of
from mlmd_calc.potential import Evaluation, Structure
from mlmd_calc.propagation.forces import ForceModel, load_model_state, model_state
from mlmd_calc.propagation.state import FloatArray

if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

Forces: TypeAlias = "ForceModel | BaseCalculator"
"""What gives forces: an ASE calculator, or a force model such as a :class:`mlmd_calc.Potential`."""


class ForceSource:
    """Energies and forces of one molecule at any positions.

    Parameters
    ----------
    atoms
        The molecule; element, masses, cell, charge and multiplicity are taken from it.
    forces
        An ASE calculator or a force model.
    partner
        Another one that is used for the same molecule; what both say of charge and multiplicity
        holds for models of isolated molecules.

    Attributes
    ----------
    name
        What it is called in messages.
    has_energy
        Whether energies can be asked for.
    info
        Charge and multiplicity, as they belong into ``atoms.info``; empty where only the calculator
        knows.

    Raises
    ------
    ConfigError
        If `forces` is neither.
    InputError
        If atoms and calculator disagree about charge or multiplicity.
    """

    def __init__(self, atoms: ase.Atoms, forces: Forces, partner: Any = None) -> None:
        self.name = type(forces).__name__
        self._forces = forces
        self.info: dict[str, int] = {}
        self._model: ForceModel
        potential = getattr(forces, "potential", None)
        if potential is not None or hasattr(forces, "evaluate"):
            self._model = forces if potential is None else potential  # type: ignore[assignment]
            both = SimpleNamespace(calcs=[item for item in (forces, partner) if item is not None])
            self._structure = state_of(atoms, both).structure
            self.info = {
                "charge": self._structure.charge,
                "multiplicity": self._structure.multiplicity,
            }
        elif hasattr(forces, "get_property"):
            own = atoms.copy()
            own.calc = forces
            self._model = AttachedCalculator(own)
            self._structure = Structure(atoms.numbers.astype(np.int64), atoms.get_positions())
        else:
            raise ConfigError(
                f"{forces!r} is not a source of forces; give an ASE calculator, or a force model "
                "such as mlmd_calc.Potential"
            )
        self.has_energy = bool(getattr(self._model, "has_energy", False))

    @property
    def random(self) -> bool:
        """Whether equal positions may be given different forces."""
        models = [getattr(part, "potential", part) for part in parts_of(self._forces)]
        return any(getattr(model, "rotation", None) == "random" for model in models)

    def identity(self) -> dict[str, Any]:
        """Return what decides the answers, JSON-able."""
        options = getattr(self._model, "options", None)
        if options is None:
            return {"forces": self.name}
        return {**options, "sha256": self._model.model.sha256}  # type: ignore[attr-defined]

    def evaluate(self, positions: FloatArray, properties: Sequence[str]) -> Evaluation:
        """Evaluate the molecule.

        Parameters
        ----------
        positions
            ``(n, 3)`` Å.
        properties
            "energy", "forces" or both.

        Raises
        ------
        InputError, PredictionError
            If the model refuses the positions, or the calculation fails, also if forces that were
            asked for are missing or not finite.
        """
        structure = replace(self._structure, positions=positions)
        found = self._model.evaluate([structure], properties)[0]
        if "forces" in properties and (found.forces is None or not np.isfinite(found.forces).all()):
            raise PredictionError(f"{self.name} gave no finite forces")
        return found

    def energy(self, positions: FloatArray) -> float:
        """Return the energy in eV; errors as :meth:`evaluate`."""
        energy = self.evaluate(positions, ("energy",)).energy
        if energy is None or not np.isfinite(energy):
            raise PredictionError(f"{self.name} gave the energy {energy}")
        return float(energy)

    def forces(self, positions: FloatArray) -> FloatArray:
        """Return the forces ``(n, 3)`` in eV/Å; errors as :meth:`evaluate`."""
        forces = self.evaluate(positions, ("forces",)).forces
        assert forces is not None
        return forces

    def state_dict(self) -> Mapping[str, Any] | None:
        """State of the model's random numbers and memory; None if it has none."""
        return model_state(self._model)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from :meth:`state_dict`."""
        load_model_state(self._model, state)
