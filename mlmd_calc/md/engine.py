"""What a run asks of the engine that moves its atoms."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc.md.exact import ExactNVT
from mlmd_calc.md.record import Description
from mlmd_calc.md.settings import Engine
from mlmd_calc.propagation import JumpLoop, Propagator


class Measured(NamedTuple):
    """What an engine measures of a molecule.

    Attributes
    ----------
    potential
        Potential energy in eV; NaN if the model has none.
    forces
        ``(n, 3)`` eV/Å, or None where they are not known.
    """

    potential: float
    forces: NDArray[np.float64] | None = None


class DynamicsState(NamedTuple):
    """What only the dynamics knows: numbers, texts, arrays, lists and dictionaries.

    Attributes
    ----------
    results
        With ASE, what the calculator answered at these positions: with random orientations asking
        again would give another answer.
    thermostat
        Variables of the thermostat.
    """

    results: dict[str, Any]
    thermostat: dict[str, Any]


class Dynamics(Protocol):
    """Moves the molecules of a run, which are ASE atoms that it keeps up to date.

    Either :meth:`begin` or :meth:`load_state_dict` is called once, before everything else.
    """

    @property
    def loop(self) -> JumpLoop | None:
        """The loop that makes the jumps; None if steps are force-based."""

    @property
    def acceptance(self) -> float | None:
        """Fraction of steps accepted by a Metropolis test; None without one or before it."""

    @property
    def sampler(self) -> ExactNVT | None:
        """What samples an exact ensemble; None in every other run."""

    def begin(self) -> None:
        """Set out from the molecules as they are, whose forces the calculator has evaluated."""

    def step(self) -> None:
        """Do one step of all molecules."""

    def measure(self) -> list[Measured]:
        """Measure each molecule, and bring its velocities to the time of its positions."""

    def state_dict(self) -> DynamicsState:
        """Return what decides how the run goes on, besides the molecules."""

    def load_state_dict(self, state: DynamicsState) -> None:
        """Go on from :meth:`state_dict`, with the molecules as they were then."""


class RunEngine(Protocol):
    """An engine as it is chosen for a run; its methods raise MLMDError for what it cannot do."""

    @property
    def name(self) -> Engine:
        """What it is called."""

    def options(self, atoms: ase.Atoms) -> dict[str, str]:
        """Return the options of a run that starts with these atoms, with defaults filled in."""

    def make(
        self,
        molecules: list[ase.Atoms],
        description: Description,
        folder: Path,
        rng: np.random.Generator,
        propagator: Propagator | None,
    ) -> Dynamics:
        """Make the dynamics of a run.

        Parameters
        ----------
        molecules
            Replicas of one molecule; the first has a calculator.
        description
            What the run is, with the options of the engine.
        folder
            Folder of the run, which need not be there yet.
        rng
            Source of randomness.
        propagator
            Makes the jumps; None for force-based steps.
        """
