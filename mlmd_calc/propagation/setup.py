"""How the jumps of a loop are made, and which options fit together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final, get_args

import numpy as np
import torch

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.options import one_of, positive_number, shown, whole_number
from mlmd_calc.potential import Potential
from mlmd_calc.potential.options import serve
from mlmd_calc.propagation.bookkeeping import with_energies
from mlmd_calc.propagation.constraints import constraints_of
from mlmd_calc.propagation.corrections import Corrections
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.guards import Check, Guard, Temperature, default_checks
from mlmd_calc.propagation.other_forces import OtherForces, compare
from mlmd_calc.propagation.propagator import Propagator
from mlmd_calc.propagation.proposals import Times, halved
from mlmd_calc.propagation.relaxation import PotentialWindow
from mlmd_calc.propagation.state import State
from mlmd_calc.propagation.thermostats import Bussi, Langevin, Thermostat
from mlmd_calc.zoo import Model

_MOST_FRAMES: Final = 1000
"""More frames inside a jump are not told apart by any motion of atoms."""


@dataclass
class Setup:
    """How jumps are made.

    Attributes
    ----------
    propagator, stride_fs, thermostat, corrections, guard, forces, other_forces
        As in :class:`mlmd_calc.propagation.JumpLoop`. Stride, thermostat and forces may change.
    md_steps_per_jump, md_timestep_fs, frames_per_jump, rng
        As there.
    generator
        Source of random numbers of propagators and rotations.
    checks
        Checks of the guard, or the usual ones for these options.
    window
        Potential energies that jumps may lead to; None if they are not judged, or not known yet.
    needs_energy
        Whether a check or a correction needs the energy of every jump.

    Raises
    ------
    ConfigError
        If the options do not fit together.
    """

    propagator: Propagator
    stride_fs: float
    thermostat: Thermostat | None
    corrections: Corrections
    guard: Guard
    forces: ForceModel | None
    other_forces: OtherForces
    md_steps_per_jump: int
    md_timestep_fs: float
    frames_per_jump: int
    rng: np.random.Generator
    generator: torch.Generator = field(init=False)
    checks: tuple[Check, ...] = field(init=False)
    needs_energy: bool = field(init=False)
    window: PotentialWindow | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._check_kinds()
        one_of("other_forces", self.other_forces, get_args(OtherForces))
        if not self.propagator.gives_velocities:
            # Velocities that are drawn anew have no momentum to keep, nor tell where it leads.
            self.corrections = replace(
                self.corrections, centre_of_mass=False, momentum=False, angular_momentum=False
            )
        self._began_with = repr(self.thermostat), self.stride_fs
        self.generator = torch.Generator()
        self.generator.manual_seed(int(self.rng.integers(2**62)))
        if self.corrections.rescale_energy is None:
            self.corrections = replace(self.corrections, rescale_energy=self._should_rescale())
        if self.corrections.balance_elements is None:
            self.corrections = replace(self.corrections, balance_elements=self._should_balance())
        self.checks = self._usual_checks() if self.guard.checks is None else self.guard.checks
        self.needs_energy = self.corrections.rescale_energy or any(
            check.needs_energy for check in self.checks
        )
        self.check()

    def _check_kinds(self) -> None:
        """Refuse options that are not what they are called."""
        for name, kind in {"guard": Guard, "corrections": Corrections}.items():
            if not isinstance(value := getattr(self, name), kind):
                raise ConfigError(f"{name}={shown(value)}; it must be a {kind.__name__} or None")
        self.md_steps_per_jump = whole_number("md_steps_per_jump", self.md_steps_per_jump, 0)
        self.frames_per_jump = whole_number(
            "frames_per_jump", self.frames_per_jump, 1, _MOST_FRAMES
        )
        positive_number("md_timestep_fs", self.md_timestep_fs)

    def _should_rescale(self) -> bool:
        """Whether jumps under a thermostat conserve energy by rescaling: where it costs nothing."""
        return (
            self.thermostat is not None
            and self.guard.checks is None
            and self.other_forces == "refuse"
            and not self.propagator.conserves_energy
            and self._has_usable_energy
        )

    def _should_balance(self) -> bool:
        """Whether errors of jumps would move energy from one element to another."""
        return (
            isinstance(self.thermostat, Langevin)
            and self.propagator.gives_velocities
            and not self.propagator.conserves_energy
            and constraints_of(self.forces) is None
        )

    def _usual_checks(self) -> tuple[Check, ...]:
        usual = default_checks(energies=self._has_usable_energy)
        if not self.propagator.gives_velocities:
            # Drawn velocities have the temperature of the thermostat, but no memory to average.
            usual = tuple(check for check in usual if not isinstance(check, Temperature))
        return (*usual, *self.propagator.checks())

    @property
    def _has_usable_energy(self) -> bool:
        """Whether energies can tell good jumps from bad ones."""
        if self.corrections.rescale_energy:
            return True
        known = bool(getattr(self.forces, "has_energy", False))
        return known and self.propagator.gives_velocities and self.other_forces != "ignore"

    @property
    def shares_forces(self) -> bool:
        """Whether one call tells energies and what the propagator asks its potential for."""
        potential = self.propagator.potential
        engine = getattr(self.forces, "potential", self.forces)
        if engine is potential:
            return potential is not None
        return (
            isinstance(potential, Potential)
            and isinstance(engine, Potential)
            and _same(potential.model, engine.model)
            and serve(engine.options, potential.options)
        )

    def with_energies(self, states: list[State]) -> list[State]:
        """Evaluate the energies that are not known; see :func:`~.bookkeeping.with_energies`."""
        return with_energies(states, self.forces, and_forces=self.shares_forces)

    @property
    def random_rotation(self) -> bool:
        """Whether the propagator sees molecules in random orientations."""
        return self.corrections.random_rotation and self.propagator.orientation_error

    def check(self) -> None:
        """Refuse options that do not fit together."""
        self.check_stride(self.stride_fs)
        if self.thermostat is None and not self.propagator.gives_velocities:
            raise ConfigError(
                f"{self.propagator.identity} predicts no velocities, so constant energy has no "
                "meaning; run it with a thermostat"
            )
        self.check_frames()
        self.check_thermostat(self.thermostat)
        self.propagator.conditions.check_potential(self.propagator.potential)
        self.check_forces(self.forces)

    def check_forces(self, forces: ForceModel | None) -> None:
        """Refuse forces that do not serve what they are needed for."""
        if forces is None and (self.needs_energy or self.md_steps_per_jump):
            raise ConfigError(
                "energy rescaling, the energy check and force-based steps need forces; attach a "
                "calculator or pass a force model"
            )
        if self.other_forces == "kick" and (
            forces is None
            or self.propagator.potential is None
            or not self.propagator.gives_velocities
        ):
            raise ConfigError(
                f"other_forces='kick' needs forces of the engine and a propagator that tells its "
                f"potential and predicts velocities, which {self.propagator.identity} may not; "
                "attach a calculator or pass a force model, or leave other_forces out"
            )

    def settings(self) -> dict[str, Any]:
        """Return what a continued run must have in common, as it was at the start."""
        thermostat, stride_fs = self._began_with
        return {
            "propagator": self.propagator.identity,
            "stride_fs": stride_fs,
            "thermostat": thermostat,
            "other_forces": self.other_forces,
            "corrections": repr(self.corrections),
            "checks": [check.name for check in self.checks],
            "md_steps_per_jump": self.md_steps_per_jump,
            "md_timestep_fs": self.md_timestep_fs,
            "frames_per_jump": self.frames_per_jump,
            "random numbers": type(self.rng.bit_generator).__name__,
        }

    @property
    def jump_times_fs(self) -> Times:
        """Times of the frames of a jump, the last of which is its length."""
        count, stride = self.frames_per_jump, self.stride_fs
        return (*(k * stride / count for k in range(1, count)), stride)

    @property
    def md_times_fs(self) -> Times:
        """The same of the force-based steps after a jump; empty without them."""
        if not self.md_steps_per_jump:
            return ()
        duration = self.md_steps_per_jump * self.md_timestep_fs
        if self.frames_per_jump == 1:
            return (duration,)
        spacing = self.stride_fs / self.frames_per_jump
        return (*(k * spacing for k in range(1, round(duration / spacing))), duration)

    @property
    def frames_per_step(self) -> int:
        """Frames of a step, those inside it and its end."""
        if self.frames_per_jump == 1:
            return 1
        return len(self.jump_times_fs) + len(self.md_times_fs)

    def change_stride(self, stride_fs: float) -> None:
        """Set another length of jumps in fs, if that is possible."""
        if self.frames_per_jump > 1 and stride_fs != self.stride_fs:
            raise ConfigError(
                f"a stride of {stride_fs:g} fs after one of {self.stride_fs:g} fs with "
                f"frames_per_jump={self.frames_per_jump}: the frames would not be equally spaced; "
                "start a new run with it"
            )
        self.check_stride(stride_fs)
        self.stride_fs = stride_fs

    def measure_window(self, state: State) -> None:
        """Let the propagator measure which energies jumps may lead to, unless that is known."""
        if self.window is not None or self.guard.checks == ():
            return
        try:
            self.window = self.propagator.energy_window(
                state, self.forces, self.thermostat, self.rng
            )
        except (InputError, PredictionError) as error:
            raise PredictionError(
                f"dynamics from the start, which tells the energies to expect, fails: {error}; "
                "start from a better structure, or use forces that know the molecule"
            ) from error

    def compare_forces(self, state: State) -> None:
        """Refuse an engine with forces that jumps do not know, unless they were asked for."""
        potential = self.propagator.potential
        if self.other_forces == "refuse" and self.forces is not None and potential is not None:
            compare(self.forces, potential, state)

    def check_frames(self) -> None:
        """Refuse frames inside jumps that the propagator cannot predict."""
        count, stride = self.frames_per_jump, self.stride_fs
        if count == 1:
            return
        named = f"frames_per_jump={count} with a jump of {stride:g} fs"
        if not self.propagator.gives_velocities:
            raise ConfigError(
                f"{named}: {self.propagator.identity} predicts no velocities, and no frames "
                "inside its jumps; leave frames_per_jump out"
            )
        times = self.jump_times_fs
        parts = halved(times) if self.other_forces == "kick" else (times,)
        wrong = [time for part in parts for time in part if time not in self.propagator.strides]
        if wrong:
            halves = ", of two halves," if len(parts) > 1 else ""
            raise ConfigError(
                f"{named}{halves} asks for a frame {wrong[0]:g} fs after its start, but the "
                f"propagator was made for {self.propagator.strides}; choose another number"
            )
        duration, spacing = self.md_steps_per_jump * self.md_timestep_fs, stride / count
        if not np.isclose(duration, spacing * round(duration / spacing)):
            raise ConfigError(
                f"{named} gives frames {spacing:g} fs apart, which do not divide the "
                f"{duration:g} fs of force-based steps after each jump; choose another number "
                "of either"
            )

    def check_stride(self, stride_fs: float) -> None:
        """Refuse a jump that the propagator was not made for."""
        self.propagator.strides.check(stride_fs)
        if self.other_forces == "kick" and 0.5 * stride_fs not in self.propagator.strides:
            raise ConfigError(
                f"with other_forces='kick' a jump of {stride_fs:g} fs is two of "
                f"{0.5 * stride_fs:g} fs, but the propagator was made for "
                f"{self.propagator.strides}; choose another stride"
            )

    def check_thermostat(self, thermostat: Thermostat | None) -> None:
        """Refuse a thermostat that the propagator was not made for."""
        if self.corrections.balance_elements and not isinstance(thermostat, Langevin):
            raise ConfigError(
                f"balance_elements=True with the thermostat {thermostat}; only 'langevin' "
                "gives every element 3/2 k T per atom, translation and rotation included"
            )
        if thermostat is None:
            return
        made_for, temperature = self.propagator.temperature_K, thermostat.temperature_K
        if made_for not in (None, temperature):
            raise ConfigError(
                f"{self.propagator.identity} was made for {made_for:g} K, but the thermostat has "
                f"{temperature:g} K; set that to the former"
            )
        rescales = isinstance(thermostat, Bussi)
        friction = 0.0 if rescales else units.FS_PER_PS / thermostat.relaxation_fs
        self.propagator.conditions.check(temperature, friction)


def _same(one: Model, other: Model) -> bool:
    """Tell whether two models are one; those that exist in memory only have no checksum."""
    return one.network is other.network or (bool(one.sha256) and one.sha256 == other.sha256)
