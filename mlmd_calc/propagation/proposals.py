"""Proposed jumps, and what checks find wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isclose
from typing import Literal, TypeAlias

from mlmd_calc.propagation.state import FloatArray, State

Action: TypeAlias = Literal["accept", "redraw", "fallback", "raise", "stop"]

Times: TypeAlias = tuple[float, ...]
"""fs after the start of a jump, increasing: of frames inside it, and last its length."""


def halved(times_fs: Times) -> tuple[Times, Times]:
    """Split a jump into two: the times of both halves, each from its own start."""
    middle = 0.5 * times_fs[-1]
    apart = [time for time in times_fs if not isclose(time, middle)]
    first = (*(time for time in apart if time < middle), middle)
    return first, tuple(time - middle for time in apart if time > middle)


@dataclass(frozen=True)
class Proposal:
    """A jump, which counts once it is accepted.

    Attributes
    ----------
    before, after
        States before and after it.
    energy_error
        Total energy in eV minus what it should be; None where energies are not evaluated.
    inner
        Frames inside the jump that were asked for, in the order of time.
    """

    before: State
    after: State
    energy_error: float | None = None
    inner: tuple[State, ...] = ()

    @property
    def stride(self) -> float:
        """Length of the jump in fs."""
        return self.after.time - self.before.time

    def then(self, second: Proposal, times_fs: Times) -> Proposal:
        """Join the halves of a jump with frames at some times, the last of which is its end."""
        wanted = any(isclose(time, 0.5 * times_fs[-1]) for time in times_fs)
        middle = (self.after,) if wanted else ()
        return replace(second, before=self.before, inner=(*self.inner, *middle, *second.inner))


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
