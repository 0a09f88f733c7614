"""A measured number, how far it can be trusted, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.analysis.statistics import root_mean_square

PERCENT: Final = 100.0

_PASSES: Final = 2.0
"""Standard errors that a number must be below its limit to pass."""

_FAILS: Final = 3.0
"""Standard errors that it must be above its limit to fail."""


class Verdict(Enum):
    """What a measurement says about the subject of an audit."""

    PASS = "pass"
    FAIL = "fail"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Measurement:
    """A number with its limit.

    Attributes
    ----------
    name
        What is measured.
    value
        NaN if it could not be measured.
    standard_error
        Its statistical error, 0 for what is not sampled.
    limit
        Largest size, of either sign, that is allowed.
    unit
        Unit of the three numbers.
    note
        Why it could not be measured, or what the number means.
    """

    name: str
    value: float
    standard_error: float
    limit: float
    unit: str
    note: str = ""

    @classmethod
    def missing(cls, name: str, limit: float, unit: str, reason: str) -> Measurement:
        """Return the place of a number that could not be measured."""
        return cls(name, math.nan, math.nan, limit, unit, reason)

    @property
    def verdict(self) -> Verdict:
        """Compare value and limit, with a margin for the statistical error."""
        size, error = abs(self.value), self.standard_error
        if size + _PASSES * error <= self.limit:
            return Verdict.PASS
        if size - _FAILS * error > self.limit:
            return Verdict.FAIL
        return Verdict.CANNOT_TELL

    @property
    def text(self) -> str:
        """Value with its error, such as "1.3 ± 0.2"; empty if it could not be measured."""
        if math.isnan(self.value):
            return ""
        if self.standard_error == 0.0:
            return f"{self.value:.2g}"
        error = "?" if math.isnan(self.standard_error) else f"{self.standard_error:.1g}"
        return f"{self.value:.2g} ± {error}"

    @property
    def limit_text(self) -> str:
        """Limit with its unit."""
        return f"{self.limit:g} {self.unit}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values; JSON knows no numbers that are not finite."""

        def finite(number: float) -> float | None:
            return number if math.isfinite(number) else None

        return {
            "name": self.name,
            "value": finite(self.value),
            "standard_error": finite(self.standard_error),
            "limit": self.limit,
            "unit": self.unit,
            "verdict": self.verdict.value,
            "note": self.note,
        }


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float


def jackknife(
    estimator: Callable[..., float], *samples: NDArray[np.float64], factor: float = 1.0
) -> Estimate:
    """Apply an estimator to all samples, and to all but one of them for its standard error.

    Parameters
    ----------
    estimator
        From arrays of samples to a number.
    *samples
        Arrays whose first axes count independent samples, at least one.
    factor
        Both numbers are multiplied by it.
    """
    count = len(samples[0])
    whole = estimator(*samples)
    if count < 2:
        return Estimate(factor * whole, math.nan)
    parts = [estimator(*(np.delete(s, i, axis=0) for s in samples)) for i in range(count)]
    error = math.sqrt((count - 1) * float(np.var(parts)))
    return Estimate(factor * whole, abs(factor) * error)


def relative_size(errors: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """Root mean square of errors over that of what they are errors of; NaN if that is 0."""
    size = root_mean_square(sizes)
    return root_mean_square(errors) / size if size > 0.0 else math.nan


def common_size(series: NDArray[np.float64]) -> Estimate:
    """Root mean square of what replicas have in common, without what their noise adds to it.

    With c_r the numbers of replica r: the root of the mean of c_r · c_s over all pairs of different
    replicas, 0 if that is negative. Noise, independent among replicas, adds nothing to the mean.

    Parameters
    ----------
    series
        ``(r, m)``, at least three replicas.
    """

    def square(part: NDArray[np.float64]) -> float:
        count, size = part.shape
        together = np.square(part.sum(axis=0)).sum() - np.square(part).sum()
        return float(together / (count * (count - 1) * size))

    value, error = jackknife(square, series)
    root = float(np.sqrt(max(value, 0.0)))
    return Estimate(root, float(np.sqrt(max(value, 0.0) + error)) - root)
