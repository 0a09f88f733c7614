"""Start velocities and degrees of freedom of small isolated molecules.

What a trajectory conserves does not take part in the exchange of energy. Langevin dynamics
thermalises everything, 3 n degrees of freedom, so initial velocities are plain Maxwell-Boltzmann
and nothing is removed. The other ensembles conserve the total momentum, and the total angular
momentum if the forces are free of net torque: both are removed from the initial velocities, and
neither the thermostat nor the temperature counts them (3 n - 6 degrees of freedom, 3 n - 5 for two
atoms, 3 n - 3 with torque).
"""

from __future__ import annotations

import ase
import numpy as np

from mlmd_calc import units
from mlmd_calc.errors import ConfigError
from mlmd_calc.md.settings import Ensemble
from mlmd_calc.propagation import State
from mlmd_calc.propagation.corrections import rigid_basis, rigid_velocities


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
