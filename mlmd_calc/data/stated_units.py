"""Units that a file states beside its numbers: they are believed, not passed over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from mlmd_calc import units
from mlmd_calc.errors import InputError

Quantity: TypeAlias = Literal["length", "energy", "force"]

OURS: Final[dict[Quantity, float]] = {"length": 1.0, "energy": 1.0, "force": 1.0}
"""Å, eV and eV/Å, the units that numbers are kept in."""

_LENGTHS: Final = {
    units.BOHR: ("bohr", "bohrs", "a0", "au", "atomicunits"),
    1.0: ("a", "å", "ang", "angs", "angstrom", "angstroms", "ångström", "ångstrom"),
    units.NM: ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    0.01: ("pm", "picometer", "picometers", "picometre", "picometres"),
}
_ENERGIES: Final = {
    units.HARTREE: ("hartree", "hartrees", "ha", "eh", "au", "atomicunits"),
    1.0: ("ev", "electronvolt", "electronvolts"),
    units.MEV: ("mev",),
    units.KCAL_PER_MOL: ("kcal/mol", "kcal", "kilocalories/mole", "kilocalorie/mole"),
    units.KJ_PER_MOL: ("kj/mol", "kj", "kilojoules/mole", "kilojoule/mole"),
    0.5 * units.HARTREE: ("ry", "rydberg"),
}
_SYSTEMS: Final[dict[str, dict[Quantity, float]]] = {
    name: {"length": length, "energy": energy, "force": energy / length}
    for names, length, energy in (
        (("metal", "ase"), 1.0, 1.0),
        (("real",), 1.0, units.KCAL_PER_MOL),
        (("electron", "atomic", "au", "atomicunits"), units.BOHR, units.HARTREE),
        (("gromacs",), units.NM, units.KJ_PER_MOL),
    )
    for name in names
}
"""Of LAMMPS and others, by the name of which all units are stated at once."""

_SAME: Final = 1e-3
"""Relative difference of constants that are taken from different tables."""

_QUANTITIES: Final[dict[Quantity, re.Pattern[str]]] = {
    "force": re.compile(r"^(f|g)$|force|grad"),
    "energy": re.compile(r"^e$|ener"),
    "length": re.compile(r"^(r|x)$|length|dist|pos|coord|conform"),
}
"""What is left of a key without the word unit."""

_EXAMPLES: Final[dict[Quantity, str]] = {
    "length": "'Ang', 'Bohr' or 'nm'",
    "energy": "'eV', 'kcal/mol', 'kJ/mol' or 'Hartree'",
    "force": "'eV/Ang', 'kcal/mol/Ang' or 'Hartree/Bohr'",
}


def unit_of(quantity: Quantity, text: str) -> float | None:
    """Size of a unit in Å, eV or eV/Å; None where the text names none that is known here."""
    plain = _divided(text)
    if quantity == "length":
        return _size(_LENGTHS, plain)
    if quantity == "energy":
        return _size(_ENERGIES, plain)
    if plain in _SYSTEMS:
        return _SYSTEMS[plain]["force"]
    above, _, below = plain.rpartition("/")
    energy, length = _size(_ENERGIES, above), _size(_LENGTHS, below)
    return None if energy is None or length is None else energy / length


def check_stated(where: str, stated: Mapping[str, Any], expected: Mapping[Quantity, float]) -> None:
    """Refuse units that are stated under a key such as ``energy_unit``, and are others.

    Parameters
    ----------
    where
        The file, the beginning of the message.
    stated
        What stands beside the numbers; keys without the word unit do not matter.
    expected
        Units that the numbers are taken to be in, in Å, eV and eV/Å.

    Raises
    ------
    InputError
        If a unit is another one, or not known.
    """
    for key, value in stated.items():
        text = text_of(value)
        if not is_unit(key) or text is None:
            continue
        for quantity, size in _meant(where, key, text).items():
            if quantity in expected and abs(size / expected[quantity] - 1.0) > _SAME:
                raise InputError(
                    f"{where}: {key} is {text!r}, but {quantity} is read in "
                    f"{_name(quantity, expected[quantity])}; convert the numbers, and the unit "
                    "that is stated"
                )


def stated_sizes(
    where: str, stated: Mapping[str, Any], usual: Mapping[Quantity, float]
) -> dict[Quantity, float]:
    """Sizes of the units of numbers, in Å, eV and eV/Å: those that are stated, else the usual ones.

    Parameters
    ----------
    where, stated
        As of :func:`check_stated`.
    usual
        Units of length and energy where none are stated. Forces are in those of energy by length
        unless something else is stated.

    Raises
    ------
    InputError
        If a unit is stated of forces, but none of energies, which are not in the usual one then, or
        a unit is not known.
    """
    found: dict[Quantity, float] = {}
    for key, value in stated.items():
        text = text_of(value)
        if is_unit(key) and text is not None:
            found |= _meant(where, key, text)
    sizes = {**usual, **found}
    if "energy" not in found:
        check_stated(where, stated, {"force": sizes["energy"] / sizes["length"]})
    return {"force": sizes["energy"] / sizes["length"], **sizes}


def is_unit(key: str) -> bool:
    """Tell whether a key states a unit, or all of them."""
    return bool(re.search(r"(^|_|\W)units?($|_|\W)|units?$", str(key).lower()))


def _meant(where: str, key: str, text: str) -> dict[Quantity, float]:
    """Sizes of the units that a statement is about; one that is not known is refused."""
    subject = re.sub(r"units?|[_\W]", "", str(key).lower())
    for quantity, pattern in _QUANTITIES.items():
        if pattern.search(subject):
            size = unit_of(quantity, text)
            if size is None:
                raise InputError(
                    f"{where}: {key} is {text!r}, which is not a unit of {quantity} known here; "
                    f"write it as {_EXAMPLES[quantity]}, and convert the numbers if it is another"
                )
            return {quantity: size}
    if subject:
        return {}
    if text.strip().lower() in _SYSTEMS:
        return _SYSTEMS[text.strip().lower()]
    meant: dict[Quantity, float] = {}
    for part in re.split(r"[,;\s]+", text):
        for quantity in _QUANTITIES:
            size = unit_of(quantity, part)
            if size is not None:
                meant.setdefault(quantity, size)
    return meant


def text_of(value: Any) -> str | None:
    """Text that an archive or a comment holds, maybe as bytes or in an array of one; else None."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def _divided(text: str) -> str:
    """Write a unit in one way: kcal/mol/a for kcal mol^-1 Å^-1 and kcal/(mol A)."""
    plain = text.lower().replace("⁻¹", "-1").replace("^", "").replace("**", "")
    plain = re.sub(r"\(([^)]*)\)", lambda found: re.sub(r"[\s*·]+", "/", found[1].strip()), plain)
    words = re.split(r"[\s*·_]+", plain.replace("per", "/"))
    return "".join(f"/{word[:-2]}" if word.endswith("-1") else word for word in words)


def _size(known: Mapping[float, tuple[str, ...]], name: str) -> float | None:
    return next((size for size, names in known.items() if name in names), None)


def _name(quantity: Quantity, size: float) -> str:
    """Usual name of a unit."""
    names = (
        {1.0: "Å", units.BOHR: "Bohr"}
        if quantity == "length"
        else {1.0: "eV", units.KCAL_PER_MOL: "kcal/mol", units.HARTREE: "Hartree"}
    )
    per = ""
    if quantity == "force":
        per = "/Bohr" if abs(size * units.BOHR / units.HARTREE - 1.0) < _SAME else "/Å"
        size = units.HARTREE if per == "/Bohr" else size
    return next((n for s, n in names.items() if abs(s / size - 1.0) < _SAME), f"{size:g}") + per
