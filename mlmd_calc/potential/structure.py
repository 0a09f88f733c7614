"""Molecules as the core sees them, checked once at the door."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlmd_calc.errors import InputError
from mlmd_calc.models.mdet.embeddings import CHARGE_OFFSET, NUM_ELEMENTS, NUM_STATES
from mlmd_calc.potential.coverage import Coverage


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
    """

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    charge: int = 0
    multiplicity: int = 1

    def __len__(self) -> int:
        return len(self.numbers)

    def check(
        self, elements: Collection[int] | None = None, coverage: Coverage | None = None
    ) -> None:
        """Refuse what a model of isolated molecules cannot answer.

        Parameters
        ----------
        elements
            Atomic numbers the model was trained on; None if unknown.
        coverage
            Distances the model may be asked about; None if unknown.

        Raises
        ------
        InputError
            With the offending value and the remedy.
        """
        self.check_composition(elements)
        self.check_geometry(coverage or Coverage())

    def check_composition(self, elements: Collection[int] | None = None) -> None:
        """Refuse elements, charges and multiplicities that are unknown or impossible."""
        if len(self) == 0:
            raise InputError("the structure has no atoms; give at least one")
        allowed = range(1, NUM_ELEMENTS - 1) if elements is None else sorted(elements)
        for index, number in enumerate(self.numbers):
            if int(number) not in allowed:
                known = ", ".join(chemical_symbols[z] for z in allowed) if elements else "Z = 1-100"
                name = chemical_symbols[number] if 0 <= number < len(chemical_symbols) else "?"
                raise InputError(
                    f"atom {index} is {name} (Z = {number}), which this model does not know; it "
                    f"knows {known}. Remove the atom or use a model trained on this element"
                )
        self._check_electrons()

    def _check_electrons(self) -> None:
        lowest, highest = -CHARGE_OFFSET, NUM_STATES - CHARGE_OFFSET - 1
        if not lowest <= self.charge <= highest:
            raise InputError(f"charge={self.charge} is outside {lowest}..{highest}")
        electrons = int(self.numbers.sum()) - self.charge
        unpaired = self.multiplicity - 1
        if not 1 <= self.multiplicity < NUM_STATES:
            raise InputError(
                f"multiplicity={self.multiplicity} is outside 1..{NUM_STATES - 1}; it is 2S + 1, "
                "that is 1 for closed shells and 2 for one unpaired electron"
            )
        if electrons < 0:
            raise InputError(
                f"charge={self.charge} is more than all {int(self.numbers.sum())} electrons; "
                "pass the charge in units of e"
            )
        if electrons < unpaired or (electrons - unpaired) % 2:
            possible = range(1 + electrons % 2, electrons + 2, 2)
            shown = ", ".join(str(m) for m in possible[:3]) + (", ..." if possible[3:] else "")
            raise InputError(
                f"charge={self.charge} leaves {electrons} electrons, which cannot have "
                f"multiplicity={self.multiplicity}; pass charge=... or multiplicity=... "
                f"(multiplicities possible at this charge: {shown})"
            )

    def check_geometry(self, coverage: Coverage) -> None:
        """Refuse positions that are not finite and distances beyond what the model knows."""
        bad = ~np.isfinite(self.positions).all(axis=1)
        if bad.any():
            index = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"atom {index} has position {self.positions[index].tolist()}; all coordinates must "
                "be finite numbers in Å. In a running simulation this means that it has exploded: "
                "restart from an earlier frame with a shorter time step"
            )
        coverage.check(self.numbers, self.positions)


def structure_from_ase(
    atoms: ase.Atoms, charge: int | None = None, multiplicity: int | None = None
) -> Structure:
    """Read a structure from ASE atoms.

    Charge and multiplicity come from the arguments or from ``atoms.info`` ("charge"; "multiplicity"
    or "spin", both meaning 2S + 1), and are 0 and 1 where neither gives them.

    Parameters
    ----------
    atoms
        Atoms without periodic boundary conditions.
    charge, multiplicity
        Values that hold for every structure; must agree with ``atoms.info`` where both are given.

    Raises
    ------
    InputError
        If the atoms are periodic, or the values are not integers or disagree.
    """
    if atoms.pbc.any():
        raise InputError(
            f"the atoms are periodic (pbc={atoms.pbc.tolist()}), but the model knows isolated "
            "molecules only; set atoms.pbc = False if the molecule is whole and alone"
        )
    info = {
        key: (f"atoms.info[{key!r}]", atoms.info.get(key))
        for key in ("charge", "multiplicity", "spin")
    }
    charge = _agreed(("charge", charge), info["charge"])
    multiplicity = _agreed(("multiplicity", multiplicity), info["multiplicity"], info["spin"])
    return Structure(
        numbers=atoms.numbers.astype(np.int64),
        positions=np.asarray(atoms.positions, dtype=np.float64),
        charge=0 if charge is None else charge,
        multiplicity=1 if multiplicity is None else multiplicity,
    )


def _agreed(*named: tuple[str, Any]) -> int | None:
    """Return the value on which all sources that have one agree."""
    given = {name: n for name, value in named if (n := as_integer(name, value)) is not None}
    if len(set(given.values())) > 1:
        said = " and ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(f"{said} disagree; keep only one of them")
    return next(iter(given.values()), None)


def as_integer(name: str, value: Any) -> int | None:
    """Return an integer value as int, None as None.

    Raises
    ------
    InputError
        If the value is not a whole number.
    """
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise InputError(f"{name}={value!r} is not an integer")
    if not np.isfinite(value) or value != int(value):
        raise InputError(f"{name}={value!r} is not an integer")
    return int(value)
