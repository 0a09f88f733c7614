"""Runs with ASE: its dynamics for force-based steps, and jumps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import ase
import numpy as np

from mlmd_calc.md.attached import AttachedCalculator
from mlmd_calc.md.checkpoint import calculator_results, restore_results
from mlmd_calc.md.dynamics import load_thermostat_state, make_dynamics, thermostat_state
from mlmd_calc.md.engine import Dynamics, DynamicsState, Measured
from mlmd_calc.md.jump_engine import Jumps, run_options, run_thermostat
from mlmd_calc.md.record import Description
from mlmd_calc.md.settings import Engine
from mlmd_calc.propagation import Propagator


@dataclass(frozen=True)
class ASEEngine:
    """ASE, with any ASE calculator.

    Replicas that jump advance in one call of the propagator, and in one call of the force model if
    the calculator is an :class:`mlmd_calc.MDETCalculator`.
    """

    name: ClassVar[Engine] = Engine.ASE

    def options(self, atoms: ase.Atoms) -> dict[str, str]:
        """Return no options: there are none."""
        return {}

    def make(
        self,
        molecules: list[ase.Atoms],
        description: Description,
        folder: Path,
        rng: np.random.Generator,
        propagator: Propagator | None,
    ) -> Dynamics:
        """Make the dynamics of a run; see :class:`mlmd_calc.md.engine.RunEngine`."""
        atoms, settings = molecules[0], description.settings
        if propagator is None:
            return ASESteps(atoms, description, rng)
        assert settings.jumps is not None
        potential = getattr(atoms.calc, "potential", None)
        return Jumps(
            molecules,
            propagator,
            settings.jumps.stride_fs,
            run_thermostat(settings),
            # A potential works in batches.
            forces=AttachedCalculator(atoms) if potential is None else potential,
            md_timestep_fs=settings.timestep_fs,
            **run_options(settings, atoms.calc, propagator, folder, rng),
        )


ASE: Final = ASEEngine()


class ASESteps:
    """Force-based steps of one molecule by ASE's dynamics.

    Parameters
    ----------
    atoms
        Moves; has a calculator and momenta.
    description
        What the run is.
    rng
        Source of randomness of the thermostat.
    """

    loop: ClassVar[None] = None

    def __init__(
        self, atoms: ase.Atoms, description: Description, rng: np.random.Generator
    ) -> None:
        self._atoms = atoms
        self._dynamics: Any = make_dynamics(
            atoms, description.settings, description.degrees_of_freedom, rng
        )

    def begin(self) -> None:
        """Have nothing to do: ASE reads the atoms."""

    def step(self) -> None:
        """Do one step."""
        self._dynamics.step()

    def measure(self) -> list[Measured]:
        """Return energy and forces, which ASE has from the last step."""
        atoms = self._atoms
        has_energy = "energy" in atoms.calc.implemented_properties
        potential = float(atoms.get_potential_energy()) if has_energy else np.nan
        return [Measured(potential, atoms.get_forces())]

    def state_dict(self) -> DynamicsState:
        """Return what the calculator has answered, and the variables of the thermostat."""
        return DynamicsState(calculator_results(self._atoms.calc), thermostat_state(self._dynamics))

    def load_state_dict(self, state: DynamicsState) -> None:
        """Go on from :meth:`state_dict`."""
        restore_results(self._atoms, state.results)
        load_thermostat_state(self._dynamics, state.thermostat)
