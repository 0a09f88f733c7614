"""The step length of Hamiltonian Monte Carlo, found during a warm-up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from mlmd_calc.options import LARGEST_COUNT, positive_number, whole_number

ACCEPTANCE: Final = 0.8
"""Wanted mean probability of acceptance."""

# As recommended in the paper.
_GAMMA: Final = 0.05
_T0: Final = 10.0
_KAPPA: Final = 0.75


class StepLength:
    """Adapts a step length by dual averaging, and keeps it from the end of the warm-up on.

    M. D. Hoffman, A. Gelman, J. Mach. Learn. Res. 15, 1593 (2014), section 3.2, with the step
    length of the start as the one that it is drawn to.

    Parameters
    ----------
    start
        Step length to begin with.
    steps
        Number of steps of the warm-up; 0 keeps `start`.

    Attributes
    ----------
    value
        The present step length.

    Raises
    ------
    ConfigError
        If `start` is not positive or `steps` is no count.
    """

    def __init__(self, start: float, steps: int) -> None:
        start = positive_number("timestep", start)
        self.value = start
        self.steps = whole_number("warmup", steps, 0, LARGEST_COUNT)
        self._start = start
        self._done = 0
        self._error = 0.0
        self._mean_log = math.log(start)

    @property
    def adapting(self) -> bool:
        """Whether the warm-up goes on."""
        return self._done < self.steps

    def update(self, probability: float) -> None:
        """Adapt to the probability of acceptance of a proposal."""
        self._done += 1
        share = 1.0 / (self._done + _T0)
        self._error += share * (ACCEPTANCE - probability - self._error)
        log = math.log(self._start) - math.sqrt(self._done) / _GAMMA * self._error
        share = self._done**-_KAPPA
        self._mean_log += share * (log - self._mean_log)
        self.value = math.exp(log if self.adapting else self._mean_log)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes, JSON-able."""
        return {name: getattr(self, name) for name in ("value", "_done", "_error", "_mean_log")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)
