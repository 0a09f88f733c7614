"""What a jump loop stores so that it continues to the last bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, TypeGuard

import numpy as np
import torch

from mlmd_calc.errors import ModelFileError
from mlmd_calc.propagation.bookkeeping import Molecule
from mlmd_calc.propagation.forces import load_model_state, model_state
from mlmd_calc.propagation.relaxation import PotentialWindow
from mlmd_calc.propagation.setup import Setup
from mlmd_calc.propagation.state import State
from mlmd_calc.propagation.thermostats import Bussi, Langevin, Thermostat


def stored_setup(setup: Setup) -> dict[str, Any]:
    """Return what changes in a setup while a run goes on: thermostat, random numbers, models."""
    thermostat = setup.thermostat
    return {
        "present stride_fs": setup.stride_fs,
        "present thermostat": asdict(thermostat) if _can_be_stored(thermostat) else None,
        "rng": setup.rng.bit_generator.state,
        "generator": setup.generator.get_state().numpy(),
        "propagator": setup.propagator.state_dict(),
        "forces": model_state(setup.forces),
        "window": None if setup.window is None else asdict(setup.window),
    }


def restore_setup(setup: Setup, content: Mapping[str, Any]) -> None:
    """Bring a setup back to :func:`stored_setup`."""
    setup.stride_fs = content["present stride_fs"]
    if _can_be_stored(setup.thermostat):
        setup.thermostat = replace(setup.thermostat, **content["present thermostat"])
    setup.rng.bit_generator.state = content["rng"]
    setup.generator.set_state(torch.from_numpy(np.array(content["generator"])))
    setup.propagator.load_state_dict(content["propagator"])
    load_model_state(setup.forces, content["forces"])
    # Runs of earlier versions have none.
    window = content.get("window")
    setup.window = None if window is None else PotentialWindow(**window)


def stored_molecules(molecules: Sequence[Molecule], states: Sequence[State]) -> dict[str, Any]:
    """Return what is known of the molecules of a run."""
    return {
        "states": [_stored(state) for state in states],
        "totals": [molecule.total for molecule in molecules],
        "fallbacks": [molecule.fallbacks for molecule in molecules],
        "warm": [molecule.warm for molecule in molecules],
        "balances": [
            None if molecule.balance is None else molecule.balance.frictions
            for molecule in molecules
        ],
        "befores": [
            None if molecule.before is None else _stored(molecule.before) for molecule in molecules
        ],
        "checks": [[check.state_dict() for check in molecule.checks] for molecule in molecules],
    }


def restore_molecules(molecules: Sequence[Molecule], content: Mapping[str, Any]) -> list[State]:
    """Bring molecules back to :func:`stored_molecules`, and return their states."""
    for molecule in molecules:
        i = molecule.index
        before = content["befores"][i]
        molecule.total = content["totals"][i]
        molecule.fallbacks = content["fallbacks"][i]
        molecule.warm = content["warm"][i]
        molecule.before = None if before is None else State(**before)
        if molecule.balance is not None:
            molecule.balance.frictions = np.array(content["balances"][i])
        for check, stored in zip(molecule.checks, content["checks"][i], strict=True):
            check.load_state_dict(stored)
    return [State(**stored) for stored in content["states"]]


def check_settings(stored: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse the restart of a run with other settings.

    Raises
    ------
    ModelFileError
        If a setting differs.
    """
    for name, value in stored.items():
        if value != present[name]:
            raise ModelFileError(
                f"the restart was written with {name} = {value}, but this run has "
                f"{present[name]}; set up the run as it was, or start a new one from its last frame"
            )


def _can_be_stored(thermostat: Thermostat | None) -> TypeGuard[Langevin | Bussi]:
    """Tell a thermostat whose settings are known from one of a user."""
    return isinstance(thermostat, Langevin | Bussi)


def _stored(state: State) -> dict[str, Any]:
    return {item.name: getattr(state, item.name) for item in fields(State)}
