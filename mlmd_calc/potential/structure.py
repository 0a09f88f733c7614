"""Molecules as the core sees them, checked once at the door."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

import ase
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from mlmd_calc.electrons import (
    ElectronicState,
    charge_question,
    check_parity,
    check_trained,
    implied_ion,
    state_as_stated,
)
from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import APART, find_bonds, fragments_of
from mlmd_calc.geometry.lewis import charge_of_bonds
from mlmd_calc.models.mdet.embeddings import CHARGE_OFFSET, NUM_ELEMENTS, NUM_STATES
from mlmd_calc.options import shown
from mlmd_calc.potential.coverage import Coverage
from mlmd_calc.zoo import ModelCard, list_models

FARTHEST: Final = 1e9
"""Å; there, double precision has steps of 1e-7 Å."""


@dataclass(frozen=True)
class Structure:
    """One isolated molecule.

    Attributes
    ----------
    numbers
        Atomic numbers, ``(n,)``.
    positions
        ``(n, 3)`` Å, float64.
    charge
        Total charge in e.
    multiplicity
        Spin multiplicity 2S + 1.
    charge_is_stated
        Whether somebody said so; False where a charge of 0 is only taken for granted.
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    charge: int = 0
    multiplicity: int = 1
    charge_is_stated: bool = True

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def state(self) -> ElectronicState:
        """Charge and multiplicity."""
        return ElectronicState(self.charge, self.multiplicity)

    def check(self, card: ModelCard | None = None, coverage: Coverage | None = None) -> None:
        """Refuse what a model of isolated molecules cannot answer.

        Parameters
        ----------
        card
            Says what the model was trained on; None if unknown.
        coverage
            Distances the model may be asked about; None if unknown.

        Raises
        ------
        InputError
            With the offending value and the remedy.
        """
        self.check_composition(card)
        self.check_geometry(coverage or Coverage())

    def check_composition(self, card: ModelCard | None = None) -> None:
        """Refuse elements, charges and multiplicities that are unknown or impossible."""
        elements = None if card is None else card.elements
        if len(self) == 0:
            raise InputError("the structure has no atoms; give at least one")
        allowed = range(1, NUM_ELEMENTS - 1) if elements is None else sorted(elements)
        for index, number in enumerate(self.numbers):
            if int(number) not in allowed:
                known = ", ".join(chemical_symbols[z] for z in allowed) if elements else "Z = 1-100"
                name = chemical_symbols[number] if 0 <= number < len(chemical_symbols) else "?"
                raise InputError(
                    f"atom {index} is {name} (Z = {number}), which this model does not know; it "
                    f"knows {known}. {self._remedy()}"
                )
        self._check_electrons()
        if card is not None:
            check_trained(self.state, len(self), card.electronic_states, self._remedy)

    def _check_electrons(self) -> None:
        lowest, highest = -CHARGE_OFFSET, NUM_STATES - CHARGE_OFFSET - 1
        if not lowest <= self.charge <= highest:
            raise InputError(
                f"charge={self.charge} is outside {lowest}..{highest}; give the total charge in e"
            )
        if not 1 <= self.multiplicity < NUM_STATES:
            raise InputError(
                f"multiplicity={self.multiplicity} is outside 1..{NUM_STATES - 1}; it is 2S + 1, "
                "that is 1 for closed shells and 2 for one unpaired electron"
            )
        check_parity("", int(self.numbers.sum()), self.state, self._how_to_state)

    def _how_to_state(self) -> str:
        """Say how the charge of an ion is stated, if nothing does."""
        if self.charge_is_stated:
            return ""
        # Positions may be unknown yet, or broken, which is for others to refuse.
        shape = self.positions.shape == (len(self), 3)
        known = shape and self.positions.any() and np.isfinite(self.positions).all()
        ion = implied_ion(self._implied_charge() if known else 0)
        return (
            ". Nothing states the charge, and ase.io.read leaves out those of PDB and SDF files: "
            f"for an ion set atoms.info['charge'], or charge= of the calculator{ion}"
        )

    def _remedy(self) -> str:
        """Which shipped force fields know the elements, charge and multiplicity."""
        names = [
            card.name
            for card in list_models()
            if card.kind == "mdet"
            and set(self.numbers.tolist()) <= set(card.elements or ())
            and any((s.charge, s.multiplicity) == self.state for s in card.electronic_states or ())
            # A model of one molecule is no remedy for another one.
            and sum(s.molecules for s in card.electronic_states or ()) > 1
        ]
        if not names:
            return "No shipped model knows it: take another method, such as xtb"
        return f"Take {' or '.join(names)}, which was trained on such molecules"

    def check_charge(self) -> None:
        """Refuse ions whose charge nothing states, see :func:`~.electrons.charge_question`."""
        if self.charge_is_stated:
            return
        implied = self._implied_charge()
        if question := charge_question("the molecule", self.state, implied, "charge="):
            raise InputError(f"{question}. ASE's atoms state it by atoms.info['charge'], too")

    def _implied_charge(self) -> int:
        return charge_of_bonds(ase.Atoms(self.numbers, self.positions))

    def check_one_molecule(self) -> None:
        """Warn of several molecules beside each other, whose interactions models seldom learn."""
        bonds = find_bonds(ase.Atoms(self.numbers, self.positions), APART)
        parts = fragments_of(len(self), bonds.pairs.tolist())
        groups = [np.flatnonzero(parts == part) for part in range(int(parts.max(initial=-1)) + 1)]
        # A hydrogen by itself has left its molecule.
        molecules = [atoms for atoms in groups if len(atoms) > 1 or self.numbers[atoms[0]] > 1]
        if len(molecules) > 1:
            first, rest = molecules[0], np.concatenate(molecules[1:])
            between = cdist(self.positions[first], self.positions[rest])
            i, j = np.unravel_index(int(between.argmin()), between.shape)
            warnings.warn(
                f"the atoms are {len(molecules)} molecules (atoms {first[i]} and {rest[j]}, "
                f"{between[i, j]:.2f} Å apart, are nearest); a model that was trained on single "
                "molecules, as those in the box were, only guesses what acts between two. "
                "Evaluate them one by one, or take a method that knows interactions of molecules",
                stacklevel=2,
            )

    def check_geometry(self, coverage: Coverage) -> None:
        """Refuse positions that are not finite and distances beyond what the model knows."""
        if self.positions.shape != (len(self), 3):
            raise InputError(
                f"positions have the shape {self.positions.shape} and there are {len(self)} atoms; "
                "give three coordinates of each"
            )
        bad = ~np.isfinite(self.positions).all(axis=1)
        if bad.any():
            index = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"atom {index} has position {self.positions[index].tolist()}; all coordinates must "
                "be finite numbers in Å. In a running simulation this means that it has exploded: "
                "restart from an earlier frame with a shorter time step"
            )
        farthest = float(np.abs(self.positions).max(initial=0.0))
        if farthest > FARTHEST:
            raise InputError(
                f"a coordinate is {farthest:.3g} Å, and beyond {FARTHEST:g} Å distances between "
                "atoms are rounded; move the molecule to the origin (atoms.center(about=(0, 0, 0)))"
            )
        coverage.check(self.numbers, self.positions)


def structure_from_ase(
    atoms: ase.Atoms, charge: int | None = None, multiplicity: int | None = None
) -> Structure:
    """Read a structure from ASE atoms.

    Charge and multiplicity follow :func:`mlmd_calc.electrons.electronic_state`.

    Parameters
    ----------
    atoms
        Atoms without periodic boundary conditions.
    charge, multiplicity
        Values that hold for every structure; must agree with what the atoms say.

    Raises
    ------
    InputError
        If the atoms are periodic, or the values are not integers or disagree.
    """
    if not isinstance(atoms, ase.Atoms):
        raise InputError(f"{shown(atoms)} is not a molecule; pass ase.Atoms")
    if atoms.pbc.any():
        raise InputError(
            f"the atoms are periodic (pbc={atoms.pbc.tolist()}), but the model knows isolated "
            "molecules only; set atoms.pbc = False if the molecule is whole and alone"
        )
    state, charge_is_stated = state_as_stated(atoms, charge, multiplicity)
    return Structure(
        numbers=atoms.numbers.astype(np.int64),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        charge=state.charge,
        multiplicity=state.multiplicity,
        charge_is_stated=charge_is_stated,
    )
