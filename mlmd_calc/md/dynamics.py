"""ASE's equations of motion, set up for small isolated molecules.

What a trajectory conserves does not take part in the exchange of energy. Langevin dynamics
thermalises everything, 3 n degrees of freedom, so initial velocities are plain Maxwell-Boltzmann
and nothing is removed. The other ensembles conserve the total momentum, and the total angular
momentum if the forces are free of net torque: both are removed from the initial velocities, and
neither the thermostat nor the temperature counts them (3 n - 6 degrees of freedom, 3 n - 5 for two
atoms, 3 n - 3 with torque). ASE's own Bussi and Nosé-Hoover count 3 n, which would overheat a small
molecule.
"""

from __future__ import annotations

from typing import Any, Final

import ase
import numpy as np
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, MissingDependencyError
from mlmd_calc.md.settings import Ensemble, MDSettings
from mlmd_calc.propagation import State
from mlmd_calc.propagation.corrections import rigid_basis, rigid_velocities

_CHAIN: Final = 3
"""Length of the Nosé-Hoover chain."""


def degrees_of_freedom(n_atoms: int, ensemble: Ensemble, torque_free: bool) -> int:
    """Count the degrees of freedom that share the kinetic energy.

    Also a linear molecule of three and more atoms loses three rotations: bending makes it
    non-linear, and then its angular momentum has three components that stay zero.

    Parameters
    ----------
    n_atoms
        Number of atoms.
    ensemble
        Equations of motion.
    torque_free
        Whether the forces have no net torque.

    Raises
    ------
    ConfigError
        If there are none.
    """
    if ensemble is Ensemble.LANGEVIN:
        return 3 * n_atoms
    rotations = {1: 0, 2: 2}.get(n_atoms, 3) if torque_free else 0
    count = 3 * n_atoms - 3 - rotations
    if count < 1:
        raise ConfigError(
            f"ensemble {ensemble.value!r} with {n_atoms} atom: nothing moves once the total "
            "momentum is removed; use ensemble 'langevin'"
        )
    return count


def draw_momenta(atoms: ase.Atoms, temperature_K: float, rng: np.random.Generator) -> None:
    """Give atoms momenta from the Maxwell-Boltzmann distribution.

    Parameters
    ----------
    atoms
        Atoms to set in motion.
    temperature_K
        Temperature in K.
    rng
        Source of randomness.
    """
    widths = np.sqrt(atoms.get_masses() * units.KB * temperature_K)
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * widths[:, None])


def remove_rigid_motion(atoms: ase.Atoms, ensemble: Ensemble, torque_free: bool) -> None:
    """Take out of the velocities what the ensemble would conserve for ever.

    The projection of Maxwell-Boltzmann velocities leaves k T / 2 on average in every remaining
    degree of freedom, so nothing is rescaled.

    Parameters
    ----------
    atoms
        Atoms with momenta.
    ensemble
        Equations of motion.
    torque_free
        Whether the forces have no net torque.
    """
    if ensemble is Ensemble.LANGEVIN:
        return
    velocities = atoms.get_velocities() * units.FS
    state = State(atoms.positions, velocities, atoms.numbers, atoms.get_masses())
    rigid = rigid_velocities(state, rigid_basis(state, rotation=torque_free))
    atoms.set_velocities((velocities - rigid) / units.FS)


def make_dynamics(
    atoms: ase.Atoms, settings: MDSettings, degrees: int, rng: np.random.Generator
) -> MolecularDynamics:
    """Build ASE's dynamics object.

    Parameters
    ----------
    atoms
        Atoms with calculator and momenta.
    settings
        Settings of the run.
    degrees
        Degrees of freedom from :func:`degrees_of_freedom`.
    rng
        Source of randomness of the thermostat.

    Raises
    ------
    MissingDependencyError
        If the installed ASE lacks the thermostat.
    """
    timestep = settings.timestep_fs * units.FS
    temperature = settings.temperature_K
    relaxation = units.PS / settings.rate_per_ps
    if settings.ensemble is Ensemble.NVE:
        return VelocityVerlet(atoms, timestep)
    if settings.ensemble is Ensemble.LANGEVIN:
        # ASE's fixcm does not sample the canonical distribution of small molecules.
        return Langevin(
            atoms,
            timestep,
            temperature_K=temperature,
            friction=1.0 / relaxation,
            fixcm=False,
            rng=rng,
        )
    try:
        if settings.ensemble is Ensemble.BUSSI:
            return _bussi(atoms, timestep, temperature, relaxation, degrees, rng)
        return _nose_hoover(atoms, timestep, temperature, relaxation, degrees)
    except ImportError as error:
        raise MissingDependencyError(
            f"ASE {ase.__version__} has no {settings.ensemble.value} thermostat ({error}); upgrade "
            "it with: pip install -U ase"
        ) from error


def _bussi(
    atoms: ase.Atoms,
    timestep: float,
    temperature: float,
    relaxation: float,
    degrees: int,
    rng: np.random.Generator,
) -> MolecularDynamics:
    from ase.md.bussi import Bussi

    dynamics = Bussi(atoms, timestep, temperature, relaxation, rng=rng)
    dynamics.ndof = degrees
    dynamics.target_kinetic_energy = 0.5 * degrees * units.KB * temperature
    return dynamics


def _nose_hoover(
    atoms: ase.Atoms, timestep: float, temperature: float, relaxation: float, degrees: int
) -> MolecularDynamics:
    from ase.md.nose_hoover_chain import NoseHooverChainNVT, NoseHooverChainThermostat

    dynamics = NoseHooverChainNVT(atoms, timestep, temperature, relaxation, tchain=_CHAIN)
    # The thermostat multiplies the number of atoms by three, and uses it for nothing else.
    effective_atoms: Any = degrees / 3
    dynamics._thermostat = NoseHooverChainThermostat(
        effective_atoms, dynamics.masses, temperature, relaxation, tchain=_CHAIN
    )
    return dynamics


def thermostat_state(dynamics: Any) -> dict[str, Any]:
    """Variables of the thermostat besides its random numbers, JSON-able."""
    if hasattr(dynamics, "transferred_energy"):
        return {"transferred_energy": dynamics.transferred_energy}
    if hasattr(dynamics, "_thermostat"):
        chain = dynamics._thermostat
        return {"eta": chain._eta.tolist(), "p_eta": chain._p_eta.tolist()}
    return {}


def load_thermostat_state(dynamics: Any, state: dict[str, Any]) -> None:
    """Continue a thermostat from :func:`thermostat_state`."""
    if "transferred_energy" in state:
        dynamics.transferred_energy = state["transferred_energy"]
    if "eta" in state:
        dynamics._thermostat._eta = np.array(state["eta"])
        dynamics._thermostat._p_eta = np.array(state["p_eta"])
