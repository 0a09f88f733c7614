"""MD-ET as an OpenMM-ML potential."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

import openmm
from openmmml.mlpotential import MLPotentialImpl

from mlmd_calc.errors import ConfigError
from mlmd_calc.options import one_of
from openmm_bridge.backends import choose_backend
from openmm_bridge.checks import check_system
from openmm_bridge.forces import make_force
from openmm_bridge.region import Region, check_one_molecule, region_from_topology

_PRECISIONS: Final = {"single": "float32", "double": "float64", "mixed": "mixed"}

_OPTIONS: Final = (
    "backend",
    "charge",
    "device",
    "forces",
    "max_spread",
    "multiplicity",
    "n_rotations",
    "on_spread",
    "precision",
    "remove_net_force",
    "remove_net_torque",
    "rotation",
    "seed",
    "setting",
)


class MDETPotential(MLPotentialImpl):  # type: ignore[misc]
    """MD-ET for OpenMM-ML's ``createSystem`` and ``createMixedSystem``.

    Their further options are ``charge`` and ``multiplicity`` of the ML atoms, ``precision``
    ("single", "double", "mixed"), ``setting``, ``device``, ``backend``, ``seed``, ``forces``,
    ``rotation``, ``n_rotations``, ``remove_net_force``, ``remove_net_torque``, ``max_spread`` and
    ``on_spread``; they mean what they mean in :func:`openmm_bridge.create_force`, whose defaults
    they have.

    Parameters
    ----------
    model
        As for :class:`mlmd_calc.Potential`.

    Examples
    --------
    >>> from openmmml import MLPotential
    >>> potential = MLPotential("mdet", model="mdet-ethanol")
    >>> mixed = potential.createMixedSystem(topology, mm_system, range(9))  # doctest: +SKIP
    """

    def __init__(self, model: Any = None) -> None:
        self.model = model

    def getMLLongRange(self) -> bool:  # noqa: N802
        """Return False: the model sees its own atoms only."""
        return False

    def addForces(  # noqa: N802
        self,
        topology: Any,
        system: Any,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **args: Any,
    ) -> None:
        """Add the force, and bonds of zero strength that tell OpenMM what belongs together.

        Without them a barostat would scale the positions of the ML atoms one by one, because
        OpenMM-ML takes the bonds of the force field away.

        Raises
        ------
        ConfigError
            If an option is unknown.
        InputError
            If the model cannot be applied to these atoms, or the System is at odds with it.
        """
        refuse_options(args, _OPTIONS, "createSystem and createMixedSystem of 'mdet'")
        options = dict(args)
        backend = choose_backend(options.pop("backend", "auto"))
        boxed = topology.getPeriodicBoxVectors() is not None
        region = region_from_topology(
            topology,
            atoms,
            charge=options.pop("charge", None),
            multiplicity=options.pop("multiplicity", 1),
            periodic=boxed or system.usesPeriodicBoundaryConditions(),
        )
        check_one_molecule(topology, region)
        force = make_force(
            self.model,
            region,
            backend=backend,
            dtype=_dtype(options),
            forceGroup=forceGroup,
            **options,
        )
        system.addForce(force)
        system.addForce(_zero_bonds(region, forceGroup))
        for other in system.getForces():
            # ML atoms may lie in different images, and the pairs that are excluded with them.
            if isinstance(other, openmm.NonbondedForce) and region.periodic:
                other.setExceptionsUsePeriodicBoundaryConditions(True)
        # For interpolation the forces are collected in a System without particles; they are checked
        # when they are first evaluated.
        if system.getNumParticles() > 0:
            check_system(system, force)


def _dtype(options: dict[str, Any]) -> str:
    return _PRECISIONS[one_of("precision", options.pop("precision", "double"), _PRECISIONS)]


def _zero_bonds(region: Region, force_group: int) -> Any:
    bonds = openmm.HarmonicBondForce()
    bonds.setName("ML molecule")
    bonds.setUsesPeriodicBoundaryConditions(region.periodic)
    bonds.setForceGroup(force_group)
    for atom, parent in enumerate(region.parents):
        if parent != atom:
            bonds.addBond(int(region.particles[atom]), int(region.particles[parent]), 0.1, 0.0)
    return bonds


def refuse_options(given: Collection[str], allowed: Collection[str], where: str) -> None:
    """Raise ConfigError for options that are not allowed; OpenMM-ML passes on anything."""
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise ConfigError(
            f"unknown option {', '.join(unknown)} for {where}; there are {', '.join(allowed)}"
        )
