"""Proposed jumps, and what checks find wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from mlmd_calc.propagation.state import FloatArray, State

Action: TypeAlias = Literal["accept", "redraw", "fallback", "raise", "stop"]


@dataclass(frozen=True)
class Proposal:
    """A jump that is not accepted yet.

    Attributes
    ----------
    before, after
        States before and after it.
    energy_error
        Total energy in eV minus what it should be; None where energies are not evaluated.
    """

    before: State
    after: State
    energy_error: float | None = None

    @property
    def stride(self) -> float:
        """Length of the jump in fs."""
        return self.after.time - self.before.time


@dataclass(frozen=True)
class Finding:
    """What is wrong with a jump.

    Attributes
    ----------
    check
        Name of the check.
    value, limit
        What was found, and what is allowed.
    reason
        The same in words.
    action
        What is to be done; None leaves it to the guard.
    """

    check: str
    value: float
    limit: float
    reason: str
    action: Action | None = None


@dataclass(frozen=True)
class Rejected:
    """A jump that cannot be accepted, with its positions if there are any."""

    finding: Finding
    positions: FloatArray | None = None
