"""How a molecule is sampled: the settings of the generator and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from mlmd_calc.errors import ConfigError

Mode: TypeAlias = Literal["langevin", "nve"]

TIMESTEP_FS: Final[Mapping[Mode, float]] = MappingProxyType({"langevin": 1.0, "nve": 0.5})
"""Integration step of each mode."""

_DEFAULTS: Final[Mapping[Mode, dict[str, Any]]] = MappingProxyType(
    {
        "langevin": {
            "frames": 198,
            "temperatures": (300.0, 500.0, 900.0),
            "conformers": 3,
            "stride_fs": 10.0,
            "thermalise_fs": 200.0,
            "noise": (0.02, 0.04, 0.07, 0.12),
            "max_force": 30.0,
        },
        "nve": {
            "frames": 1200,
            "temperatures": (300.0,),
            "conformers": 2,
            "stride_fs": 2.0,
            "thermalise_fs": 500.0,
        },
    }
)


def require_setting(settings: object, name: str, holds: bool, allowed: str) -> None:
    """Refuse the value of a setting, by name, unless what it has to fulfil holds.

    Raises
    ------
    ConfigError
        With the value, and what is allowed in words.
    """
    if not holds:
        raise ConfigError(f"{name} is {getattr(settings, name)}; allowed: {allowed}")


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample a molecule; `SamplingSettings.for_mode` has the defaults of a mode.

    Attributes
    ----------
    mode
        ``"langevin"`` for labels or ``"nve"`` for trajectories.
    frames
        Frames of dynamics per molecule, spread evenly over the runs, one run per conformer and
        temperature. Minima and distorted copies come on top.
    temperatures
        K.
    conformers
        Start structures per molecule.
    stride_fs
        Time between frames, a multiple of the mode's `TIMESTEP_FS`.
    thermalise_fs
        Langevin dynamics before the first frame of a run, a multiple of the mode's time step.
    noise
        Å; standard deviations per coordinate, one for each distorted copy of a frame.
    max_force
        eV/Å; labels with a larger force on any atom are dropped.
    seed
        Together with the name of a molecule it decides every random number.
    reference
        Method of the labels, see :class:`mlmd_calc.data.reference.Reference`; the geometries are
        those of GFN2-xTB in any case.

    Raises
    ------
    ConfigError
        If a value is not allowed, or ``noise`` or ``max_force`` is set in mode ``nve``, where
        frames must stay equally spaced in time, or ``reference``, because trajectories follow the
        forces of the method that made them.
    """

    mode: Mode
    frames: int
    temperatures: tuple[float, ...]
    conformers: int
    stride_fs: float
    thermalise_fs: float
    noise: tuple[float, ...] = ()
    max_force: float | None = None
    seed: int = 0
    reference: str = "gfn2"

    @classmethod
    def for_mode(cls, mode: Mode, **changes: Any) -> SamplingSettings:
        """Return the defaults of a mode with some settings changed; None changes nothing.

        Raises
        ------
        ConfigError
            If the mode does not exist or a value is not allowed.
        """
        if mode not in _DEFAULTS:
            raise ConfigError(f"mode is {mode!r}; allowed are {', '.join(_DEFAULTS)}")
        given = {key: value for key, value in changes.items() if value is not None}
        return cls(mode=mode, **{**_DEFAULTS[mode], **given})

    def __post_init__(self) -> None:
        step = TIMESTEP_FS[self.mode]
        require_setting(self, "frames", self.frames >= 1, "at least 1")
        require_setting(
            self,
            "temperatures",
            len(self.temperatures) > 0
            and all(0 < value < float("inf") for value in self.temperatures),
            "one or more positive temperatures in K",
        )
        require_setting(self, "conformers", self.conformers >= 1, "at least 1")
        for name, minimum in (("stride_fs", step), ("thermalise_fs", 0.0)):
            value = getattr(self, name)
            require_setting(
                self,
                name,
                value >= minimum and (value / step).is_integer(),
                f"a multiple of {step} fs, at least {minimum}",
            )
        require_setting(self, "seed", self.seed >= 0, "zero or positive")
        nve = self.mode == "nve"
        require_setting(
            self,
            "noise",
            not (nve and self.noise) and all(sigma > 0 for sigma in self.noise),
            "no noise in mode nve" if nve else "positive lengths in Å",
        )
        require_setting(
            self,
            "max_force",
            self.max_force is None or (self.max_force > 0 and not nve),
            "no limit in mode nve" if nve else "a positive force in eV/Å",
        )
        require_setting(
            self,
            "reference",
            not nve or self.reference == "gfn2",
            "gfn2, whose forces the trajectories of mode nve follow",
        )

    def steps(self, time_fs: float) -> int:
        """Return the number of integration steps in a time in fs."""
        return round(time_fs / TIMESTEP_FS[self.mode])

    def frames_of_runs(self) -> list[int]:
        """Return the number of frames of every run, conformer by conformer."""
        runs = self.conformers * len(self.temperatures)
        share, rest = divmod(self.frames, runs)
        return [share + (run < rest) for run in range(runs)]
