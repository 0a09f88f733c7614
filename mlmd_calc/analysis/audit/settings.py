"""How much an audit does, and what it concludes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from mlmd_calc.analysis.audit.measurement import Estimate, Measurement, Verdict
from mlmd_calc.errors import MLMDError
from mlmd_calc.options import check_at_least

Parts: TypeAlias = Mapping[str, Callable[[], Iterator[Measurement]]]
"""Parts of an audit by name, in their order."""

FEWEST_REPLICAS: Final = 3
"""Fewer do not tell what replicas have in common from noise."""


@dataclass(frozen=True)
class AuditSettings:
    """How much is done.

    Attributes
    ----------
    temperature_K
        Of all thermal motion.
    replicas
        Molecules that move side by side in the force-based run under a thermostat.
    thermal_fs
        Length of this run in the audit of a force field.
    structures
        Structures at which forces are looked at one by one.
    drift_replicas, drift_fs
        Runs at constant energy for each time step, and their length.
    timesteps_fs
        Time steps of these.
    states
        States from which a propagator jumps once.
    jump_replicas, jumps_ps
        Molecules in the run of jumps under a thermostat, and its length; None: twenty relaxation
        times of the thermostat.
    seed
        Seed of all random numbers.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    temperature_K: float = 300.0  # noqa: N815
    replicas: int = 8
    thermal_fs: float = 500.0
    structures: int = 16
    drift_replicas: int = 12
    drift_fs: float = 30.0
    timesteps_fs: tuple[float, ...] = (0.25, 0.35, 0.5)
    states: int = 256
    jump_replicas: int = 16
    jumps_ps: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("temperature_K", 1.0),
            ("replicas", FEWEST_REPLICAS),
            ("thermal_fs", 10.0),
            ("structures", 2),
            ("drift_replicas", 2),
            ("drift_fs", 5.0),
            ("jump_replicas", FEWEST_REPLICAS),
            ("states", FEWEST_REPLICAS),
        ):
            check_at_least(self, least, name)

    @classmethod
    def quick(cls, temperature_K: float = 300.0, seed: int = 0) -> AuditSettings:
        """Return settings for a first look, with large statistical errors."""
        return cls(
            temperature_K=temperature_K,
            replicas=4,
            thermal_fs=20.0,
            structures=2,
            drift_replicas=3,
            drift_fs=10.0,
            timesteps_fs=(0.35, 0.5),
            states=8,
            jump_replicas=4,
            jumps_ps=0.05,
            seed=seed,
        )


def measured(name: str, limit: float, unit: str, estimate: Callable[[], Estimate]) -> Measurement:
    """Measure something, or say why that is impossible."""
    try:
        found = estimate()
    except MLMDError as error:
        return Measurement.missing(name, limit, unit, str(error))
    return Measurement(name, found.value, found.standard_error, limit, unit)


def measure_all(parts: Parts, on_part: Callable[[str], None]) -> list[Measurement]:
    """Measure everything, part by part; ``on_part`` is called with the name of each beforehand."""
    found: list[Measurement] = []
    for name, part in parts.items():
        on_part(name)
        found += part()
    return found


def overall(measurements: Sequence[Measurement]) -> Verdict:
    """Conclude from all measurements: one that fails decides, then one that cannot tell."""
    found = {measurement.verdict for measurement in measurements}
    for verdict in (Verdict.FAIL, Verdict.CANNOT_TELL):
        if verdict in found:
            return verdict
    return Verdict.PASS
