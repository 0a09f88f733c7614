"""Which multiplicities a number of electrons allows."""

from __future__ import annotations

from mlmd_calc.errors import InputError


def check_spin(name: str, protons: int, charge: int, multiplicity: int) -> None:
    """Refuse a multiplicity that the number of electrons cannot have.

    Parameters
    ----------
    name
        Of the molecule, for the message.
    protons
        Sum of the atomic numbers.
    charge, multiplicity
        Total charge in e, and 2S + 1.

    Raises
    ------
    InputError
        If 2S exceeds the number of electrons or has the wrong parity.
    """
    electrons = protons - charge
    unpaired = multiplicity - 1
    if unpaired < 0 or unpaired > electrons or (electrons - unpaired) % 2:
        raise InputError(
            f"molecule {name!r}: charge {charge} leaves {electrons} electrons, which cannot have "
            f"multiplicity {multiplicity}; correct the charge or the multiplicity"
        )
