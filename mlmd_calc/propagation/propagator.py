"""What makes a model a propagator."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mlmd_calc.errors import ConfigError
from mlmd_calc.propagation.state import FloatArray, Frames, State

if TYPE_CHECKING:
    from mlmd_calc.propagation.forces import ForceModel
    from mlmd_calc.propagation.guards import Check
    from mlmd_calc.propagation.thermostats import Thermostat

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Strides:
    """Times that a propagator can jump over, in fs.

    Attributes
    ----------
    shortest, longest
        Limits, included.
    unit
        Only multiples of this; None: any time between the limits.
    """

    shortest: float = 0.0
    longest: float = math.inf
    unit: float | None = None

    def __contains__(self, time: float) -> bool:
        slack = _ROUNDING * time
        within = time > 0.0 and self.shortest - slack <= time <= self.longest + slack
        if not within or self.unit is None:
            return within
        return abs(time - self.unit * round(time / self.unit)) <= slack

    def __str__(self) -> str:
        if self.shortest == self.longest:
            return f"{self.shortest:g} fs"
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
    temperature_K
        The only temperature it was made for; None: any.
    """

    strides: Strides = Strides()
    stochastic: bool = False
    gives_velocities: bool = True
    temperature_K: float | None = None  # noqa: N815

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

    def displacement_scale(self, state: State, time_fs: float) -> FloatArray | None:
        """Root mean square displacement ``(n,)`` Å that the model expects; None if unknown."""
        return None

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

    def state_dict(self) -> Mapping[str, Any]:
        """State besides the memory, of numbers, texts, arrays, lists and dictionaries."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from :meth:`state_dict`."""
