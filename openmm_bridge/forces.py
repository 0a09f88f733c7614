"""MD-ET as an OpenMM force."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Final

import openmm

from mlmd_calc.errors import InputError
from mlmd_calc.potential import Potential
from mlmd_calc.zoo import Model
from openmm_bridge.backends import choose_backend, openmmtorch_module
from openmm_bridge.computation import MDETComputation, TensorComputation
from openmm_bridge.region import Region, region_from_topology

FORCE_NAME: Final = "MD-ET"
"""What the force is called in the System and its XML."""

_BAROSTATS: Final = (
    openmm.MonteCarloBarostat,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.MonteCarloFlexibleBarostat,
    openmm.MonteCarloMembraneBarostat,
)


def create_force(
    topology: Any,
    model: str | Model | None = None,
    *,
    backend: str = "auto",
    atoms: Iterable[int] | None = None,
    charge: int = 0,
    multiplicity: int = 1,
    forces: str | None = None,
    rotation: str | None = None,
    n_rotations: int | None = None,
    seed: int | None = None,
    remove_net_force: bool | None = None,
    remove_net_torque: bool | None = None,
    dtype: str = "float64",
    device: str = "auto",
    forceGroup: int = 0,
) -> Any:
    """Make an OpenMM force from a model.

    The model sees the chosen atoms as one isolated molecule. In a periodic system, where only a
    part of the atoms can be chosen, it is handed over whole whichever images its atoms are in.
    Interactions with the rest, and the removal of the force field's terms within the molecule, are
    up to the System; the OpenMM-ML potential "mdet" does that part as well. :func:`check_system`
    finds what is at odds with the force in the System it was added to.

    Parameters
    ----------
    topology
        ``openmm.app.Topology`` of the System.
    model
        As for :class:`mlmd_calc.Potential`; None is the default shipped model.
    backend
        "python": ``openmm.PythonForce``. "pytorch": ``openmmtorch.PythonTorchForce``.
        "torchscript": ``openmmtorch.TorchForce``, which a program without Python can use. "auto":
        "pytorch" if there is one, else "python". See :func:`available_backends`.
    atoms
        Indices of the atoms the model is applied to; None for all.
    charge, multiplicity
        Total charge in e and spin multiplicity 2S + 1 of these atoms.
    forces, rotation, n_rotations, seed, remove_net_force, remove_net_torque, dtype, device
        As for :class:`mlmd_calc.Potential`; where the default is None the model card decides.
    forceGroup
        Force group of the force.

    Returns
    -------
    openmm.Force
        To be given to ``System.addForce``. Its attribute ``region`` holds the atoms; with the back
        end "python" the attribute ``computation`` gives access to the state of the random
        orientations (``force.computation.potential.state_dict()``).

    Raises
    ------
    ConfigError
        If an option is unknown or does not fit the model.
    InputError
        If the model cannot be applied to these atoms.
    MissingDependencyError
        If the back end does not work here.

    Examples
    --------
    >>> from openmm import System, app
    >>> from openmm_bridge import create_force
    >>> pdb = app.PDBFile("ethanol.pdb")  # doctest: +SKIP
    >>> system.addForce(create_force(pdb.topology))  # doctest: +SKIP
    """
    chosen = choose_backend(backend)
    region = region_from_topology(topology, atoms, charge=charge, multiplicity=multiplicity)
    return make_force(
        model,
        region,
        backend=chosen,
        forceGroup=forceGroup,
        device=device,
        dtype=dtype,
        forces=forces,
        rotation=rotation,
        n_rotations=n_rotations,
        seed=seed,
        remove_net_force=remove_net_force,
        remove_net_torque=remove_net_torque,
    )


def make_force(
    model: str | Model | None,
    region: Region,
    *,
    backend: str,
    forceGroup: int,
    device: str = "auto",
    **options: Any,
) -> Any:
    """Put a model on a region into one of the back ends; see :func:`create_force`."""
    potential = Potential(model, device=device, **options)
    region.check(potential.model.card.elements)
    if not potential.has_energy:
        warnings.warn(
            f"model {potential.model.card.name!r} predicts no energy; OpenMM will show a potential "
            "energy of zero for its atoms",
            stacklevel=3,
        )
    computation = MDETComputation(potential, region, device)
    force = wrap(computation, backend)
    if backend != "torchscript":
        force.computation = computation
    force.setUsesPeriodicBoundaryConditions(region.periodic)
    force.setForceGroup(forceGroup)
    force.setName(FORCE_NAME)
    force.region = region
    force.conservative = potential.conservative
    return force


def wrap(computation: MDETComputation, backend: str) -> Any:
    """Put a computation into a force of one of the back ends."""
    if backend == "python":
        return openmm.PythonForce(computation)
    if backend == "pytorch":
        return openmmtorch_module().PythonTorchForce(TensorComputation(computation))
    # Compiling is imported by those who use it.
    from openmm_bridge.export import torchscript_module

    module = torchscript_module(computation.potential, computation.region)
    force = openmmtorch_module().TorchForce(module)
    force.setOutputsForces(True)
    return force


def check_system(system: openmm.System, force: Any) -> None:
    """Refuse a System in which a force made by :func:`create_force` would give wrong results.

    Parameters
    ----------
    system
        System that the force was or will be added to.
    force
        The force, as returned by :func:`create_force`.

    Raises
    ------
    InputError
        If the number of particles does not fit; if ML atoms are virtual sites or are held by
        constraints among themselves; if the System is periodic and the force does not know it; if
        there is a barostat and the forces are not conservative, or the ML atoms are not tied
        together by bonds, so that the barostat would tear the molecule apart.
    """
    region: Region = force.region
    if system.getNumParticles() != region.system_size:
        raise InputError(
            f"the System has {system.getNumParticles()} particles, but the topology the force was "
            f"made for has {region.system_size} atoms; make both from the same topology"
        )
    own = {int(particle) for particle in region.particles}
    virtual = [particle for particle in sorted(own) if system.isVirtualSite(particle)]
    if virtual:
        raise InputError(
            f"particle {virtual[0]} is a virtual site; the model knows atoms only. Leave it out of "
            "atoms=[...]"
        )
    pairs = [
        tuple(system.getConstraintParameters(i)[:2]) for i in range(system.getNumConstraints())
    ]
    held = [pair for pair in pairs if own.issuperset(pair)]
    if held:
        raise InputError(
            f"ML atoms {held[0][0]} and {held[0][1]} are held at a fixed distance by a constraint "
            f"of the force field ({len(held)} such); remove the constraints among ML atoms, with "
            "System.removeConstraint or by OpenMM-ML's createMixedSystem"
        )
    if system.usesPeriodicBoundaryConditions() and not region.periodic:
        raise InputError(
            "the System is periodic, but the topology the force was made from has no box; set "
            "topology.setPeriodicBoxVectors(...) before create_force"
        )
    # OpenMM itself refuses a barostat without a box.
    if system.usesPeriodicBoundaryConditions() and any(
        isinstance(f, _BAROSTATS) for f in system.getForces()
    ):
        _check_barostat(system, force, own)


def _check_barostat(system: openmm.System, force: Any, own: set[int]) -> None:
    if not force.conservative:
        raise InputError(
            "a Monte Carlo barostat needs forces that are the gradient of an energy, and direct "
            "forces are not; make the force with forces='conservative' or remove the barostat"
        )
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    torn = [molecule for molecule in context.getMolecules() if own & set(molecule)]
    if len(torn) > 1:
        raise InputError(
            f"the barostat would move the ML atoms as {len(torn)} separate molecules, because no "
            "bonds of the System tie them together; add a HarmonicBondForce of zero strength along "
            "their bonds, as the OpenMM-ML potential 'mdet' does"
        )
