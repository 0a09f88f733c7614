"""Electron configuration of the elements as an input table for MD-ET."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_ORBITALS: Final = (
    *("1s", "2s", "2p", "3s", "3p", "4s", "3d", "4p", "5s", "4d"),
    *("5p", "6s", "4f", "5d", "6p", "7s", "5f", "6d"),
)
_CAPACITY: Final = {"s": 2, "p": 6, "d": 10, "f": 14}
_NOBLE_GASES: Final = (2, 10, 18, 36, 54, 86)
_VALENCE: Final = ("s", "p", "d", "f")

# Ground states that do not follow the Madelung order.
_EXCEPTIONS: Final[dict[int, dict[str, int]]] = {
    24: {"4s": 1, "3d": 5},
    29: {"4s": 1, "3d": 10},
    41: {"5s": 1, "4d": 4},
    42: {"5s": 1, "4d": 5},
    44: {"5s": 1, "4d": 7},
    45: {"5s": 1, "4d": 8},
    46: {"5s": 0, "4d": 10},
    47: {"5s": 1, "4d": 10},
    57: {"4f": 0, "5d": 1},
    58: {"4f": 1, "5d": 1},
    64: {"4f": 7, "5d": 1},
    78: {"6s": 1, "5d": 9},
    79: {"6s": 1, "5d": 10},
    89: {"5f": 0, "6d": 1},
    90: {"5f": 0, "6d": 2},
    91: {"5f": 2, "6d": 1},
    92: {"5f": 3, "6d": 1},
    93: {"5f": 4, "6d": 1},
    96: {"5f": 7, "6d": 1},
}

_URANIUM: Final = 92
_EXTRA_TOKEN: Final = 101


def _occupations(number: int) -> dict[str, int]:
    left = number
    filled = {}
    for orbital in _ORBITALS:
        filled[orbital] = min(left, _CAPACITY[orbital[-1]])
        left -= filled[orbital]
    return {**filled, **_EXCEPTIONS.get(number, {})}


def _totals(number: int) -> list[int]:
    filled = _occupations(number)
    return [sum(n for orbital, n in filled.items() if orbital[-1] == kind) for kind in _VALENCE]


def electron_table() -> Tensor:
    """Normalised electron configurations of all elements.

    Returns
    -------
    Tensor
        ``(102, 23)`` float64: atomic number, 18 orbital occupations, valence s/p/d/f counts, each
        column divided by its maximum. Row 0 is padding, row 101 the extra token. Uranium's valence
        d and f counts are swapped, as in the tables published checkpoints were trained with.
    """
    table = torch.zeros(102, 23, dtype=torch.float64)
    for number in range(1, _EXTRA_TOKEN):
        filled = _occupations(number)
        core = max((gas for gas in _NOBLE_GASES if gas < number), default=0)
        inner = _totals(core) if core else [0, 0, 0, 0]
        valence = [a - b for a, b in zip(_totals(number), inner, strict=True)]
        if number == _URANIUM:
            valence[2], valence[3] = valence[3], valence[2]
        row = [number, *(filled[orbital] for orbital in _ORBITALS), *valence]
        table[number] = torch.tensor(row, dtype=torch.float64)
    table[_EXTRA_TOKEN, 0] = _EXTRA_TOKEN
    return table / table.max(dim=0).values
