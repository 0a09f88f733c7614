"""What makes a model a propagator."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import torch
from scipy.special import gammaincinv

from mlmd_calc.errors import ConfigError
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.guards import Check
from mlmd_calc.propagation.relaxation import PotentialWindow
from mlmd_calc.propagation.state import Frames, State
from mlmd_calc.propagation.thermostats import Thermostat
from mlmd_calc.zoo import ModelCard

_ROUNDING: Final = 1e-6
"""Of numbers in single precision that were converted from other units."""

_BELOW: Final = 1.0 - _ROUNDING
"""A number less than a limit times this is below it, whatever units it came from."""

_CHANCE: Final = 1e-4
"""Probability with which a warm molecule may be taken for one at rest."""


@dataclass(frozen=True)
class Strides:
    """Times that a propagator can jump over, in fs.

    Attributes
    ----------
    shortest, longest
        Limits, included.
    unit
        Only multiples of this; None: any time between the limits.
    only
        Only these; None: any that the rest allows.
    """

    shortest: float = 0.0
    longest: float = math.inf
    unit: float | None = None
    only: tuple[float, ...] | None = None

    @classmethod
    def among(cls, times: Sequence[float]) -> Strides:
        """Just these times in fs, those that a model was trained on for instance."""
        return cls(shortest=min(times), longest=max(times), only=tuple(sorted(times)))

    def __contains__(self, time: float) -> bool:
        slack = _ROUNDING * time
        if self.only is not None:
            return any(abs(time - known) <= slack for known in self.only)
        within = time > 0.0 and self.shortest - slack <= time <= self.longest + slack
        if not within or self.unit is None:
            return within
        return abs(time - self.unit * round(time / self.unit)) <= slack

    def __str__(self) -> str:
        if self.shortest == self.longest:
            return f"{self.shortest:g} fs"
        if self.only is not None:
            return ", ".join(f"{time:g}" for time in self.only) + " fs"
        multiples = "" if self.unit is None else f"multiples of {self.unit:g} fs "
        if not math.isfinite(self.longest):
            return f"{multiples}from {self.shortest:g} fs on"
        return f"{multiples}from {self.shortest:g} to {self.longest:g} fs"

    def check(self, time: float) -> None:
        """Refuse a time that the propagator cannot jump over.

        Raises
        ------
        ConfigError
            With the times that are allowed.
        """
        if time not in self:
            raise ConfigError(
                f"a jump of {time:g} fs is not possible with this propagator, which was made for "
                f"{self}; set the time step accordingly"
            )


@dataclass(frozen=True)
class Conditions:
    """Where a propagator was measured to work; None where nobody has measured.

    Attributes
    ----------
    stride_fs
        Recommended length of a jump in fs.
    friction_per_ps
        Recommended friction of a Langevin thermostat in 1/ps.
    lowest_friction_per_ps
        Runs with less friction were seen to fail.
    temperature_range_K
        Lowest and highest temperature at which runs were seen to go well.
    potential, potential_sha256
        Name and checksum of the force field whose accelerations the propagator was trained with.
    """

    stride_fs: float | None = None
    friction_per_ps: float | None = None
    lowest_friction_per_ps: float | None = None
    temperature_range_K: tuple[float, float] | None = None  # noqa: N815
    potential: str | None = None
    potential_sha256: str | None = None

    @classmethod
    def from_card(cls, card: ModelCard) -> Conditions:
        """Take them out of what a model card recommends."""
        known = {item.name: card.recommended.get(item.name) for item in fields(cls)}
        known["potential_sha256"] = card.potential_sha256 or None
        if known["temperature_range_K"] is not None:
            lowest, highest = known["temperature_range_K"]
            known["temperature_range_K"] = (float(lowest), float(highest))
        return cls(**known)

    def coldest_K(self, n_atoms: int, *, warming: bool) -> float:  # noqa: N802
        """Kinetic temperature in K below which a molecule is too cold for jumps.

        Parameters
        ----------
        n_atoms
            Its number of atoms, of which all 3 n degrees of freedom are counted.
        warming
            Whether it can be warmed up first. If not, only what can be nothing but at rest is too
            cold: one small molecule is often much colder than the mean of many.
        """
        if self.temperature_range_K is None:
            return 0.0
        lowest = self.temperature_range_K[0]
        if warming:
            return 0.5 * lowest
        internal = max(1, 3 * n_atoms - 6)
        # The quantile of χ² without scipy.stats, which takes half a second to import.
        quantile = 2.0 * float(gammaincinv(0.5 * internal, _CHANCE))
        return lowest * quantile / (3 * n_atoms)

    def check(self, temperature_K: float, friction_per_ps: float) -> None:
        """Refuse a thermostat with which runs fail, and warn of one that nobody has tried.

        Parameters
        ----------
        temperature_K
            Temperature in K.
        friction_per_ps
            Friction in 1/ps, 0 for thermostats without.

        Raises
        ------
        ConfigError
            If the friction is too low.
        """
        least = self.lowest_friction_per_ps
        if least is not None and friction_per_ps < least * _BELOW:
            raise ConfigError(
                f"a friction of {friction_per_ps:g}/ps is too low for this propagator, whose "
                "errors then add up until a run fails (velocity rescaling has no friction at "
                f"all); use the thermostat 'langevin' with at least {least:g}/ps, best "
                f"{self.friction_per_ps or least:g}/ps, or fine-tune it to your molecule (mlmd "
                "data propagate, mlmd finetune); at any friction long steps with a Metropolis "
                "test go as far (mlmd_calc.md.ExactMTS, mlmd run --mts 16 --mts-forces network "
                "--metropolis)"
            )
        if self.temperature_range_K is None:
            return
        lowest, highest = self.temperature_range_K
        if not lowest <= temperature_K <= highest:
            warnings.warn(
                f"{temperature_K:g} K is outside {lowest:g} to {highest:g} K, where this "
                "propagator was tried; watch the run, or use force-based steps",
                stacklevel=2,
            )

    def check_potential(self, potential: object) -> None:
        """Refuse another force field than that of the training.

        Parameters
        ----------
        potential
            Force model of the propagator. Only models with a name can be told from each other.

        Raises
        ------
        ConfigError
            With both names.
        """
        card = getattr(getattr(potential, "model", None), "card", None)
        if self.potential is None or card is None or self.potential == card.name:
            return
        raise ConfigError(
            f"the propagator was trained with the forces of {self.potential!r}, but is to run with "
            f"those of {card.name!r}; leave the choice to its card (no potential=, no --model), or "
            "fine-tune it to the other force field (`mlmd data label`, then `mlmd finetune`)"
        )

    def warn_of_other_weights(self, potential: object) -> None:
        """Warn of the force field of the training with other weights than it had then."""
        model = getattr(potential, "model", None)
        # A model that exists in memory only has no checksum.
        if model is None or not model.sha256 or self.potential_sha256 in (None, model.sha256):
            return
        if self.potential == model.card.name:
            warnings.warn(
                f"the propagator was trained with other weights of {self.potential} (sha256 "
                f"{str(self.potential_sha256)[:8]}, these are {model.sha256[:8]}); with these its "
                "jumps are worse. Train it on with these (mlmd data propagate, mlmd finetune)",
                stacklevel=4,
            )


class Propagator(ABC):
    """Moves molecules over a time that is long for a force-based integrator.

    Derive from this class and write `propagate`; the rest has defaults.

    Attributes
    ----------
    strides
        Times it can jump over.
    stochastic
        Whether its answer depends on random numbers; then a rejected jump can be drawn again.
    gives_velocities
        Whether its frames have velocities. If not, they are drawn from the Maxwell-Boltzmann
        distribution of the thermostat, and the centre of mass stays where it is put.
    conserves_energy
        Whether its jumps conserve the energy of its potential, as force-based steps do.
    orientation_error
        Whether its answer depends on the orientation in which it sees a molecule, so that random
        ones (:class:`.Corrections`) average its errors.
    temperature_K
        The only temperature it was made for; None: any.
    conditions
        Where it was measured to work.
    potential
        Force model of the potential energy in which it moves molecules; None if it does not tell.
        It stands in for the forces of an engine that has none, and is compared with those of one
        that has.
    """

    strides: Strides = Strides()
    stochastic: bool = False
    gives_velocities: bool = True
    conserves_energy: bool = False
    orientation_error: bool = True
    temperature_K: float | None = None  # noqa: N815
    conditions: Conditions = Conditions()
    potential: ForceModel | None = None

    def check(self, state: State) -> None:  # noqa: B027
        """Refuse a molecule that it cannot move.

        Raises
        ------
        InputError
            With what is wrong.
        """

    def usual_stride_fs(self) -> float:
        """Return the recommended stride in fs, or else the shortest.

        Raises
        ------
        ConfigError
            If there is neither.
        """
        stride = self.conditions.stride_fs or self.strides.shortest
        if not stride:
            raise ConfigError(
                f"{self.identity} recommends no stride; give one (stepSize, mlmd run --jump, mlmd "
                f"audit and validate --stride), {self.strides}"
            )
        return stride

    def known_energy(self, state: State) -> float | None:
        """Potential energy in eV of a state if it has just evaluated it; None if not."""
        return None

    @abstractmethod
    def propagate(
        self, states: Sequence[State], times_fs: Sequence[float], generator: torch.Generator
    ) -> list[Frames]:
        """Predict frames of several molecules at given times.

        Positions and velocities may have changed since the last call (thermostat, corrections,
        force-based steps) although the memory has not; where that matters, compare them with what
        the memory says.

        Parameters
        ----------
        states
            Where to start from, molecules of any sizes.
        times_fs
            Times after the states in fs, increasing, the same for all states.
        generator
            The only source of random numbers.

        Returns
        -------
        list of Frames
            One for each state, with a frame for each time.

        Raises
        ------
        PredictionError
            If no frame can be given; another draw or force-based steps are tried instead. Any other
            exception ends the run.
        """

    @property
    def identity(self) -> str:
        """Tells propagators apart in restart files, so it should name the model."""
        return type(self).__qualname__

    def checks(self) -> tuple[Check, ...]:
        """Return checks of its own, which are made after the usual ones."""
        return ()

    def relax(
        self,
        state: State,
        forces: ForceModel | None,
        thermostat: Thermostat | None,
        rng: np.random.Generator,
    ) -> State:
        """Mend the end of a jump before it is judged.

        Parameters
        ----------
        state
            Where the jump has led.
        forces, thermostat
            Those of the run, if it has them.
        rng
            The only source of random numbers.

        Raises
        ------
        PredictionError
            If that is impossible; the jump is then rejected.
        """
        return state

    def energy_window(
        self,
        state: State,
        forces: ForceModel | None,
        thermostat: Thermostat | None,
        rng: np.random.Generator,
    ) -> PotentialWindow | None:
        """Measure which potential energies a jump may lead to.

        Asked once, at the start of a run. A jump that leads higher is relaxed again, and then
        rejected.

        Parameters
        ----------
        state
            Where the run starts.
        forces, thermostat, rng
            As of :meth:`relax`.

        Returns
        -------
        PotentialWindow or None
            None if the energy is not judged.
        """
        return None

    def state_dict(self) -> Mapping[str, Any]:
        """State besides the memory, of numbers, texts, arrays, lists and dictionaries."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from :meth:`state_dict`."""
