"""What a molecular-dynamics run is made of, apart from the molecule and its forces."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from mlmd_calc.errors import ConfigError


class Engine(str, Enum):
    """The program that moves the atoms."""

    ASE = "ase"
    OPENMM = "openmm"


class Ensemble(str, Enum):
    """Equations of motion."""

    NVE = "nve"
    LANGEVIN = "langevin"
    BUSSI = "bussi"
    NOSE_HOOVER = "nose-hoover"


@dataclass(frozen=True)
class MDSettings:
    """Settings of one run.

    Attributes
    ----------
    ensemble
        ``nve`` (velocity Verlet), ``langevin``, ``bussi`` (stochastic velocity rescaling) or
        ``nose-hoover`` (chain of three).
    temperature_K
        Of the thermostat and of the initial velocities.
    timestep_fs
        Time step in fs.
    friction_per_ps
        Langevin friction in 1/ps; its inverse is the relaxation time of the other thermostats.
    seed
        Seed of initial velocities and thermostat.
    interval
        Steps between recorded frames.
    checkpoint_interval
        Steps between checkpoints.
    bond_limit
        A bond further than this (Å) from its reference length is reported as broken.
    bond_stop
        A bond further than this (Å) from its reference length stops the run.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    ensemble: Ensemble = Ensemble.LANGEVIN
    temperature_K: float = 300.0  # noqa: N815
    timestep_fs: float = 0.5
    friction_per_ps: float = 1.0
    seed: int = 0
    interval: int = 10
    checkpoint_interval: int = 1000
    bond_limit: float = 0.5
    bond_stop: float = 1.0

    def __post_init__(self) -> None:
        for name in ("timestep_fs", "friction_per_ps", "bond_limit", "bond_stop"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value}; it must be a positive number")
        if not (math.isfinite(self.temperature_K) and self.temperature_K >= 0):
            raise ConfigError(f"temperature_K={self.temperature_K}; it must not be negative")
        if self.temperature_K == 0 and self.thermostatted:
            raise ConfigError(
                f"temperature_K=0 with ensemble {self.ensemble.value!r}; a thermostat needs a "
                "positive temperature"
            )
        for name in ("interval", "checkpoint_interval"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}; it must not be negative")

    @property
    def thermostatted(self) -> bool:
        """Whether a thermostat acts on the molecule."""
        return self.ensemble is not Ensemble.NVE

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        return {**asdict(self), "ensemble": self.ensemble.value}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MDSettings:
        """Build settings from :meth:`to_dict` output."""
        return cls(**{**values, "ensemble": Ensemble(values["ensemble"])})
