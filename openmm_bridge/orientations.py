"""The stream of random orientations of a TorchForce, kept in OpenMM's checkpoints and states.

The orientation of a call follows from the seed and the number of the call, and a TorchForce counts
its calls where nothing of OpenMM can read them. So the module has a parameter of the Context, which
checkpoints and states hold:

===============  =================================================================
parameter        what the module does
===============  =================================================================
n as before      evaluates and counts
another n        goes on as after n calls
-1 - n           likewise, but only answers with the number of calls as its energy
===============  =================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import openmm

from mlmd_calc.errors import InputError
from openmm_bridge.stored import as_torch_force

CALLS: Final = "mdet_calls"
"""The name of the parameter begins with this and ends with the force group."""


def store_orientations(context: openmm.Context) -> dict[str, int]:
    """Note how many orientations the TorchForces of a Context have drawn.

    Call it just before a checkpoint or state is written (a state with its parameters, as
    ``Simulation.saveState`` does), and `restore_orientations` after one is loaded. The run then
    goes on bit for bit as it does here, if the force is the same: made with the same seed, or read
    from the XML of the System.

    Parameters
    ----------
    context
        Context with positions.

    Returns
    -------
    dict
        Number of calls by the name of the parameter of the Context that now holds it.

    Raises
    ------
    InputError
        If there is no such force, or another one in its force group.

    Examples
    --------
    >>> from openmm_bridge import restore_orientations, store_orientations
    >>> store_orientations(simulation.context)  # doctest: +SKIP
    >>> simulation.saveCheckpoint("run.chk")  # doctest: +SKIP

    In the next process:

    >>> simulation.loadCheckpoint("run.chk")  # doctest: +SKIP
    >>> restore_orientations(simulation.context)  # doctest: +SKIP
    """
    calls = {}
    for name, group in _streams(context).items():
        energy = _ask(context, name, group, int(context.getParameter(name)))
        if not energy.is_integer():
            raise InputError(
                f"force group {group} holds other forces beside the one with random orientations; "
                "make it with a forceGroup of its own"
            )
        calls[name] = int(energy)
        context.setParameter(name, calls[name])
    return calls


def restore_orientations(context: openmm.Context, calls: Mapping[str, int] | None = None) -> None:
    """Go on after a number of calls.

    Parameters
    ----------
    context
        Context with positions.
    calls
        What `store_orientations` returned; None for what the Context's parameters say, which come
        with a checkpoint or state.

    Raises
    ------
    InputError
        As for `store_orientations`, or if the forces are others.
    """
    streams = _streams(context)
    if calls is None:
        calls = {name: int(context.getParameter(name)) for name in streams}
    if calls.keys() != streams.keys():
        raise InputError(
            f"the numbers of calls are those of {', '.join(calls)}, but the forces of the System "
            f"have {', '.join(streams)}; make the forces as they were, in the same force groups"
        )
    for name, group in streams.items():
        # Of two numbers one is another than that which the module was told last.
        for number in (calls[name] + 1, calls[name]):
            _ask(context, name, group, number)


def _streams(context: openmm.Context) -> dict[str, int]:
    """Find the parameters of TorchForces with random orientations, and their force groups."""
    found = []
    for force in map(as_torch_force, context.getSystem().getForces()):
        if force is not None:
            parameters = map(force.getGlobalParameterName, range(force.getNumGlobalParameters()))
            found += [(name, force.getForceGroup()) for name in parameters if CALLS in name]
    if not found:
        raise InputError(
            "no force of the System draws random orientations with the back end 'torchscript'; one "
            "with 'python' has its state in force.computation.potential.state_dict()"
        )
    for number in map(Counter, zip(*found, strict=True)):
        shared, times = number.most_common(1)[0]
        if times > 1:
            raise InputError(
                f"{times} forces with random orientations share {shared!r}; make each with a "
                "forceGroup of its own"
            )
    return dict(found)


def _ask(context: openmm.Context, name: str, group: int, number: int) -> float:
    """Set the parameter of a force and return the energy of its group, the number of calls."""
    context.setParameter(name, -1 - number)
    try:
        energy: float = context.getState(getEnergy=True, groups={group}).getPotentialEnergy()._value
    finally:
        context.setParameter(name, number)
    return energy
