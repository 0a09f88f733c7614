"""MD-ET as an OpenMM force."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import openmm

from mlmd_calc.options import refuse_keywords, whole_number
from mlmd_calc.potential import Potential
from mlmd_calc.potential.options import ForceOptions
from mlmd_calc.zoo import Model
from openmm_bridge.backends import choose_backend, openmmtorch_module
from openmm_bridge.checks import FORCE_NAME
from openmm_bridge.computation import MDETComputation, TensorComputation
from openmm_bridge.orientations import CALLS
from openmm_bridge.region import Region, check_one_molecule, region_from_topology

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LAST_GROUP: Final = 31
"""Of the force groups that OpenMM has."""


def create_force(
    topology: Any,
    model: str | Model | None = None,
    *,
    backend: str = "auto",
    atoms: Iterable[int] | None = None,
    charge: int | None = None,
    multiplicity: int = 1,
    forceGroup: int = 0,
    **options: Unpack[ForceOptions],
) -> Any:
    """Make an OpenMM force from a model.

    The model sees the chosen atoms as one isolated molecule. In a periodic system, where only a
    part of the atoms can be chosen, it is handed over whole whichever images its atoms are in.
    Interactions with the rest, and the removal of the force field's terms within the molecule, are
    up to the System; the OpenMM-ML potential "mdet" does that part as well. What is at odds with
    the force in the System it was added to is refused at the first evaluation, with the back end
    "torchscript" by :func:`check_system` only.

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
        Total charge in e and spin multiplicity 2S + 1 of these atoms. A charge of None is 0; ions
        that bonds or, at the first evaluation, positions show are refused then.
    forceGroup
        Force group of the force.
    **options
        ``setting``, ``device``, ``dtype``, ``forces``, ``rotation``, ``n_rotations``, ``seed``,
        ``remove_net_force``, ``remove_net_torque`` and, not with the back end "torchscript",
        ``max_spread`` and ``on_spread`` of :class:`mlmd_calc.Potential`.

    Returns
    -------
    openmm.Force
        To be given to ``System.addForce``. Its attribute ``region`` holds the atoms; with the back
        end "python" the attribute ``computation`` gives access to the state of the random
        orientations (``force.computation.potential.state_dict()``); that of "torchscript" is kept
        and continued by :func:`store_orientations` and :func:`restore_orientations`.

    Raises
    ------
    ConfigError
        If an option is unknown or does not fit the model.
    InputError
        If the model cannot be applied to these atoms: unknown elements, an impossible charge or
        multiplicity, a part of a molecule or more than one by the topology's bonds.
    MissingDependencyError
        If the back end does not work here.

    Examples
    --------
    >>> from openmm import System, app
    >>> from openmm_bridge import create_force
    >>> pdb = app.PDBFile("ethanol.pdb")  # doctest: +SKIP
    >>> system.addForce(create_force(pdb.topology))  # doctest: +SKIP
    """
    refuse_keywords(options, ForceOptions.__annotations__, "create_force")
    chosen = choose_backend(backend)
    group = whole_number("forceGroup", forceGroup, 0, _LAST_GROUP)
    region = region_from_topology(topology, atoms, charge=charge, multiplicity=multiplicity)
    check_one_molecule(topology, region)
    return make_force(
        model,
        region,
        backend=chosen,
        forceGroup=group,
        **options,
    )


def make_force(
    model: str | Model | None,
    region: Region,
    *,
    backend: str,
    forceGroup: int,
    **options: Unpack[ForceOptions],
) -> Any:
    """Put a model on a region into one of the back ends; see :func:`create_force`."""
    potential = Potential(model, **options)
    region.check(potential.model.card)
    if not potential.has_energy:
        warnings.warn(
            f"model {potential.model.card.name!r} predicts no energy; OpenMM will show a potential "
            "energy of zero for its atoms",
            stacklevel=3,
        )
    computation = MDETComputation(potential, region, options.get("device", "auto"))
    force = wrap(computation, backend, forceGroup)
    if backend != "torchscript":
        force.computation = computation
        computation.address = int(force.this)
    force.setUsesPeriodicBoundaryConditions(region.periodic)
    force.setForceGroup(forceGroup)
    force.setName(FORCE_NAME)
    force.region = region
    force.conservative = potential.conservative
    return force


def wrap(computation: MDETComputation, backend: str, force_group: int = 0) -> Any:
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
    if computation.potential.rotation == "random":
        calls = computation.potential.orientations.calls
        force.addGlobalParameter(f"{CALLS}_{force_group}", calls)
    return force
