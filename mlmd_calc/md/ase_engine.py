"""Runs with ASE: its dynamics for force-based steps, and jumps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import ase
import numpy as np
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from mlmd_calc import units
from mlmd_calc.bonded import BondedForceField
from mlmd_calc.errors import ConfigError, MissingDependencyError
from mlmd_calc.md.attached import AttachedCalculator
from mlmd_calc.md.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    calculator_results,
    restore_results,
)
from mlmd_calc.md.engine import Dynamics, DynamicsState, Measured
from mlmd_calc.md.exact_engine import ExactSteps
from mlmd_calc.md.exact_mts import ExactMTS
from mlmd_calc.md.force_source import Forces
from mlmd_calc.md.jump_engine import Jumps, run_options, run_thermostat
from mlmd_calc.md.mts import MTSLangevin, MTSVelocityVerlet
from mlmd_calc.md.record import Description
from mlmd_calc.md.settings import Engine, Ensemble, MDSettings
from mlmd_calc.propagation import Propagator

_CHAIN: Final = 3
"""Length of the Nosé-Hoover chain."""


@dataclass(frozen=True)
class ASEEngine:
    """ASE, with any ASE calculator.

    Replicas that jump advance in one call of the propagator, and in one call of the force model if
    the calculator is an :class:`mlmd_calc.MDETCalculator`.

    Parameters
    ----------
    inner_forces
        Cheap forces of a run whose settings have `inner_forces` "bonded" or "network", fitted to
        its molecule. A run that goes on finds them in its checkpoint.
    target
        Of a run whose settings have `exact`: the calculator or force model whose ensemble is
        sampled. A run that goes on needs it again.
    """

    inner_forces: BondedForceField | None = None
    target: Forces | None = None

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
        if (self.target is None) != (settings.exact is None):
            raise ConfigError(
                "settings of an exact ensemble, which ASEEngine(target=...) belongs to, with "
                f"target={self.target!r} and exact={settings.exact}; give both or none"
            )
        # Before all else, so that every kind of run refuses forces it has no use for.
        inner_forces = self._inner_forces(settings, folder)
        if self.target is not None:
            return ExactSteps(atoms, description, folder, rng, self.target)
        if propagator is None:
            return ASESteps(atoms, description, rng, inner_forces)
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

    def _inner_forces(self, settings: MDSettings, folder: Path) -> BondedForceField | None:
        """Return the fitted cheap forces of a run; None if it has others or none."""
        wanted = settings.inner_forces.fitted
        if self.inner_forces is not None and not wanted:
            raise ConfigError(
                "inner_forces were passed to ASEEngine, but these settings are of a run without "
                "them; leave them out, or set MDSettings(inner_forces=InnerForces.BONDED)"
            )
        if self.inner_forces is not None or not wanted:
            return self.inner_forces
        if not (folder / CHECKPOINT_FILE).exists():
            raise ConfigError(
                "these settings are of a run with fitted cheap forces; pass them as "
                "engine=ASEEngine(BondedForceField.fit(atoms))"
            )
        return BondedForceField.from_state(Checkpoint.read(folder).thermostat["fast"]["model"])


ASE: Final = ASEEngine()


class ASESteps:
    """Force-based steps of one molecule by ASE's dynamics.

    ASE's own Bussi and Nosé-Hoover count 3 n degrees of freedom, which would overheat a small
    molecule; here they are told those of :mod:`mlmd_calc.md.dynamics`.

    Parameters
    ----------
    atoms
        Moves; has a calculator and momenta.
    description
        What the run is.
    rng
        Source of randomness of the thermostat.
    inner_forces
        Cheap forces of multiple time stepping; None for the force head of the model.

    Raises
    ------
    MissingDependencyError
        If the installed ASE lacks the thermostat.
    """

    loop: ClassVar[None] = None
    sampler: ClassVar[None] = None

    def __init__(
        self,
        atoms: ase.Atoms,
        description: Description,
        rng: np.random.Generator,
        inner_forces: BondedForceField | None,
    ) -> None:
        self._atoms = atoms
        try:
            self._dynamics = _dynamics(atoms, description, rng, inner_forces)
        except ImportError as error:
            raise MissingDependencyError(
                f"ASE {ase.__version__} has no {description.settings.ensemble.value} thermostat "
                f"({error}); upgrade it with: pip install -U ase"
            ) from error

    @property
    def acceptance(self) -> float | None:
        """Fraction of steps accepted; None where none are rejected, or none was tried."""
        dynamics = self._dynamics
        return dynamics.acceptance if isinstance(dynamics, ExactMTS) and dynamics.trials else None

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
        thermostat: dict[str, Any] = {}
        if isinstance(self._dynamics, MTSVelocityVerlet):
            thermostat = {"fast": self._dynamics.fast_state()}
        elif hasattr(self._dynamics, "transferred_energy"):
            thermostat = {"transferred_energy": self._dynamics.transferred_energy}
        elif hasattr(self._dynamics, "_thermostat"):
            chain = self._dynamics._thermostat
            thermostat = {"eta": chain._eta.tolist(), "p_eta": chain._p_eta.tolist()}
        return DynamicsState(calculator_results(self._atoms.calc), thermostat)

    def load_state_dict(self, state: DynamicsState) -> None:
        """Go on from :meth:`state_dict`."""
        restore_results(self._atoms, state.results)
        thermostat = state.thermostat
        if "transferred_energy" in thermostat:
            self._dynamics.transferred_energy = thermostat["transferred_energy"]
        if "eta" in thermostat:
            self._dynamics._thermostat._eta = np.array(thermostat["eta"])
            self._dynamics._thermostat._p_eta = np.array(thermostat["p_eta"])
        if "fast" in thermostat:
            self._dynamics.load_fast_state(thermostat["fast"])


def _dynamics(
    atoms: ase.Atoms,
    description: Description,
    rng: np.random.Generator,
    inner_forces: BondedForceField | None,
) -> Any:
    """Build ASE's dynamics object; ImportError if ASE lacks it."""
    settings, degrees = description.settings, description.degrees_of_freedom
    timestep, temperature = settings.timestep_fs * units.FS, settings.temperature_K
    relaxation = units.PS / settings.rate_per_ps
    if settings.inner_steps > 1:
        return _mts(atoms, settings, rng, inner_forces)
    if settings.ensemble is Ensemble.NVE:
        return VelocityVerlet(atoms, timestep)
    if settings.ensemble is Ensemble.LANGEVIN:
        # ASE's fixcm does not sample the canonical distribution of small molecules.
        options: dict[str, Any] = {"friction": 1.0 / relaxation, "fixcm": False, "rng": rng}
        return Langevin(atoms, timestep, temperature_K=temperature, **options)
    dynamics: Any
    if settings.ensemble is Ensemble.BUSSI:
        from ase.md.bussi import Bussi

        dynamics = Bussi(atoms, timestep, temperature, relaxation, rng=rng)
        dynamics.ndof = degrees
        dynamics.target_kinetic_energy = 0.5 * degrees * units.KB * temperature
        return dynamics
    from ase.md.nose_hoover_chain import NoseHooverChainNVT, NoseHooverChainThermostat

    dynamics = NoseHooverChainNVT(atoms, timestep, temperature, relaxation, tchain=_CHAIN)
    # The thermostat multiplies the number of atoms by three, and uses it for nothing else.
    effective_atoms: Any = degrees / 3
    dynamics._thermostat = NoseHooverChainThermostat(
        effective_atoms, dynamics.masses, temperature, relaxation, tchain=_CHAIN
    )
    return dynamics


def _mts(
    atoms: ase.Atoms,
    settings: MDSettings,
    rng: np.random.Generator,
    fast: BondedForceField | None,
) -> MTSVelocityVerlet:
    """Build the dynamics with multiple time steps."""
    step = settings.step_fs * units.FS
    if settings.ensemble is Ensemble.NVE:
        return MTSVelocityVerlet(atoms, step, fast, inner_steps=settings.inner_steps)
    kind = ExactMTS if settings.metropolis else MTSLangevin
    return kind(
        atoms,
        step,
        fast,
        inner_steps=settings.inner_steps,
        temperature_K=settings.temperature_K,
        friction=settings.rate_per_ps / units.PS,
        rng=rng,
    )
