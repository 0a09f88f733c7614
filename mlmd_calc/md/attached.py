"""Atoms with a calculator as the jump loop sees them: states and a force model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import ase
import numpy as np
from ase.calculators.calculator import (
    Calculator,
    CalculatorError,
    PropertyNotImplementedError,
    all_changes,
)

from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.md.checkpoint import (
    calculator_results,
    load_rotation_state,
    restore_results,
    rotation_state,
)
from mlmd_calc.potential import Evaluation, Structure, structure_from_ase
from mlmd_calc.propagation import ForceModel, State, state_from_ase
from mlmd_calc.propagation.forces import has_energy


def state_of(atoms: ase.Atoms, calculator: Any) -> State:
    """State of atoms, with the charge and multiplicity that their calculator takes them to have.

    Parameters
    ----------
    atoms
        An isolated molecule.
    calculator
        Its calculator, a sum of calculators, or None.

    Raises
    ------
    InputError
        If atoms and calculators disagree, or as :func:`state_from_ase`.
    """
    found = [
        structure_from_ase(atoms, *(_parameter(part, name) for name in ("charge", "multiplicity")))
        for part in parts_of(calculator)
        if any(_parameter(part, name) is not None for name in ("charge", "multiplicity"))
    ]
    states = {(structure.charge, structure.multiplicity) for structure in found}
    if len(states) > 1:
        raise InputError(
            f"the calculators take the molecule to have charge and multiplicity {sorted(states)}; "
            "give all of them the same"
        )
    state = state_from_ase(atoms)
    for charge, multiplicity in states:
        state = replace(state, charge=charge, multiplicity=multiplicity)
    return state


def parts_of(calculator: Any) -> list[Any]:
    """List the calculators of a sum of calculators, or the one that is none."""
    sum_of = getattr(getattr(calculator, "mixer", calculator), "calcs", None)
    return [calculator] if sum_of is None else [part for calc in sum_of for part in parts_of(calc)]


def _parameter(calculator: Any, name: str) -> Any:
    return (getattr(calculator, "parameters", None) or {}).get(name)


class AttachedCalculator:
    """The calculator of atoms as force model of the jump loop.

    Parameters
    ----------
    atoms
        Atoms with a calculator; cell and ``atoms.info`` are theirs.
    """

    def __init__(self, atoms: ase.Atoms) -> None:
        self.atoms = atoms

    @property
    def potential(self) -> Any:
        """Potential that the calculator asks, if it has one."""
        return getattr(self.atoms.calc, "potential", None)

    @property
    def model(self) -> Any:
        """Network of the calculator, if it has one."""
        return getattr(self.potential, "model", None)

    @property
    def has_energy(self) -> bool:
        """Whether the calculator knows energies."""
        return "energy" in getattr(self.atoms.calc, "implemented_properties", ())

    def evaluate(
        self, structures: Sequence[Structure], properties: Sequence[str] = ("energy", "forces")
    ) -> list[Evaluation]:
        """Ask the calculator, which answers from memory where it can.

        Raises
        ------
        PredictionError
            If the calculation fails.
        """
        return [self._evaluate(structure, properties) for structure in structures]

    def _evaluate(self, structure: Structure, properties: Sequence[str]) -> Evaluation:
        moved = self.atoms.copy()
        moved.set_positions(structure.positions, apply_constraint=False)
        found: dict[str, Any] = {"energy": None, "forces": None}
        try:
            for name in properties:
                found[name] = self.atoms.calc.get_property(name, moved)
        except PropertyNotImplementedError as error:
            raise ConfigError(
                f"{type(self.atoms.calc).__name__} does not know {error}, which this run needs; "
                "attach a calculator that does"
            ) from error
        except CalculatorError as error:
            raise PredictionError(f"{type(self.atoms.calc).__name__}: {error}") from error
        return Evaluation(found["energy"], found["forces"])

    def state_dict(self) -> dict[str, Any]:
        """Random orientations of the calculator, and what it has in memory.

        With random orientations asking again would give another answer.
        """
        calc = self.atoms.calc
        last = getattr(calc, "atoms", None)
        return {
            "rotations": rotation_state(calc),
            "positions": None if last is None else last.get_positions(),
            "results": None if last is None else calculator_results(calc),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        calc = self.atoms.calc
        load_rotation_state(calc, state["rotations"])
        if state["results"] is not None:
            last = self.atoms.copy()
            last.set_positions(state["positions"], apply_constraint=False)
            last.calc = calc
            restore_results(last, state["results"])


def check_charge(atoms: ase.Atoms, calculator: Any) -> None:
    """Refuse ions of which neither atoms nor calculators say that they are any."""
    if all(_parameter(part, "charge") is None for part in parts_of(calculator)):
        structure_from_ase(atoms).check_charge()


class ForceModelCalculator(Calculator):
    """A force model as ASE's optimisers see it."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]  # type: ignore[misc]

    def __init__(self, force_model: ForceModel) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.force_model = force_model

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy", "forces"),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate the force model; ASE calls this."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        assert atoms is not None
        wanted = ("energy", "forces") if has_energy(self.force_model) else ("forces",)
        (answer,) = self.force_model.evaluate([structure_from_ase(atoms)], wanted)
        # Optimisers of ASE ask for the energy only to write it down.
        energy = np.nan if answer.energy is None else answer.energy
        self.results = {"energy": energy, "forces": answer.forces}
