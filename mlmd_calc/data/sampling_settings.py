"""How a molecule is sampled: the settings of the generator and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from mlmd_calc.errors import ConfigError
from mlmd_calc.options import check_at_least, check_positive, one_of, positive_number, whole_steps

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
        one_of("mode", mode, _DEFAULTS)
        given = {key: value for key, value in changes.items() if value is not None}
        return cls(mode=mode, **{**_DEFAULTS[mode], **given})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "frames", "conformers")
        check_at_least(self, 0, "seed")
        if not self.temperatures:
            raise ConfigError("temperatures=(); give one or more in K")
        for temperature in self.temperatures:
            positive_number("temperature", temperature)
        step = TIMESTEP_FS[self.mode]
        whole_steps("stride_fs", self.stride_fs, step)
        whole_steps("thermalise_fs", self.thermalise_fs, step, 0)
        for sigma in self.noise:
            positive_number("noise", sigma)
        if self.max_force is not None:
            check_positive(self, "max_force")
        for name, usual in (("noise", ()), ("max_force", None), ("reference", "gfn2")):
            if self.mode == "nve" and getattr(self, name) != usual:
                raise ConfigError(
                    f"{name}={getattr(self, name)} with mode='nve'; trajectories are equally "
                    f"spaced and follow the forces of GFN2-xTB: leave it at {usual!r}"
                )

    def steps(self, time_fs: float) -> int:
        """Return the number of integration steps in a time in fs."""
        return round(time_fs / TIMESTEP_FS[self.mode])

    def frames_of_runs(self) -> list[int]:
        """Return the number of frames of every run, conformer by conformer."""
        runs = self.conformers * len(self.temperatures)
        share, rest = divmod(self.frames, runs)
        return [share + (run < rest) for run in range(runs)]
