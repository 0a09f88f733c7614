"""What a run begins with: its description, its velocities, and what is refused before it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import ase
import numpy as np

from mlmd_calc.electrons import electronic_state
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.geometry.bonds import Bonds, find_bonds
from mlmd_calc.geometry.constraints import acting_constraints
from mlmd_calc.md.checkpoint import CHECKPOINT_FILE
from mlmd_calc.md.dynamics import degrees_of_freedom, draw_momenta, remove_rigid_motion
from mlmd_calc.md.engine import RunEngine
from mlmd_calc.md.frames import FRAMES_FILE, read_frames
from mlmd_calc.md.record import Description
from mlmd_calc.md.settings import MDSettings
from mlmd_calc.propagation import Propagator


def check_engine(description: Description, engine: RunEngine) -> None:
    """Refuse another engine than the one a run was started with."""
    if description.engine is not engine.name:
        raise ConfigError(
            f"the run was made with engine {description.engine.value!r} and cannot go on with "
            f"{engine.name.value!r}; continue it with the engine it was started with"
        )


def check_propagator(settings: MDSettings, propagator: Propagator | None) -> None:
    """Refuse jumps without a propagator, and a propagator without jumps."""
    if settings.jumps is not None and propagator is None:
        raise ConfigError(
            f"these settings are of a run made of jumps by {settings.jumps.propagator!r}; pass "
            "that propagator"
        )
    if settings.jumps is None and propagator is not None:
        raise ConfigError(
            f"{propagator.identity} was passed, but these settings are of a run made of "
            "force-based steps; leave it out, or set MDSettings(jumps=JumpSettings(...))"
        )


def check_start(
    atoms: ase.Atoms, folder: Path, settings: MDSettings, keep_velocities: bool
) -> None:
    """Refuse a start that makes no sense, or a folder with a run in it."""
    refuse_run(folder)
    if held := acting_constraints(atoms):
        raise InputError(
            f"the atoms carry the constraints {held}, which would change the number "
            "of degrees of freedom; remove them with atoms.set_constraint(), or the column "
            "move_mask of the file"
        )
    masses = atoms.get_masses()
    if not (np.isfinite(masses) & (masses > 0.0)).all():
        raise InputError(
            f"masses are {masses.tolist()} amu; all must be positive and finite, so correct those "
            "of the file or atoms, or leave them out"
        )
    if keep_velocities and not atoms.has("momenta"):
        raise ConfigError("the atoms have no velocities to keep; let them be drawn")
    if keep_velocities and not np.isfinite(atoms.get_momenta()).all():
        raise InputError("the velocities are not finite; correct them, or let them be drawn")
    if keep_velocities and settings.replicas > 1 and not settings.thermostatted:
        raise ConfigError(
            f"{settings.replicas} replicas with the same velocities would all do the same at "
            "constant energy; let velocities be drawn, or use a thermostat"
        )


def describe(
    atoms: ase.Atoms,
    settings: MDSettings,
    bonds: Bonds | None,
    torque_free: bool,
    engine: RunEngine,
) -> Description:
    """Say what a run that starts is; raises as :meth:`mlmd_calc.md.Run.start`."""
    given = (getattr(atoms.calc, name, None) for name in ("charge", "multiplicity"))
    return Description(
        engine=engine.name,
        engine_options=engine.options(atoms),
        numbers=atoms.numbers.astype(np.int64),
        masses=atoms.get_masses(),
        bonds=find_bonds(atoms) if bonds is None else bonds,
        settings=settings,
        degrees_of_freedom=degrees_of_freedom(len(atoms), settings.ensemble, torque_free),
        info=electronic_state(atoms, *given)._asdict(),
    )


def start_molecules(
    atoms: ase.Atoms,
    settings: MDSettings,
    keep_velocities: bool,
    torque_free: bool,
    rng: np.random.Generator,
) -> list[ase.Atoms]:
    """Copy the atoms for each replica, with velocities; the first gets the calculator."""
    molecules = [atoms.copy() for _ in range(settings.replicas)]
    for molecule in molecules:
        if not keep_velocities:
            draw_momenta(molecule, settings.temperature_K, rng)
        remove_rigid_motion(molecule, settings.ensemble, torque_free)
    molecules[0].calc = atoms.calc
    return molecules


def refuse_run(folder: Path) -> None:
    """Refuse a folder with a run that can be continued, or of which there is more than the start.

    One that was killed before its first checkpoint is no run yet.
    """
    begun = (folder / CHECKPOINT_FILE).exists()
    for path in [folder / FRAMES_FILE, *folder.glob(f"replica-*/{FRAMES_FILE}")]:
        with contextlib.suppress(ModelFileError):
            begun = begun or len(read_frames(path)) > 1
    if begun:
        raise ConfigError(
            f"{folder} holds a run already; continue it (mlmd run --restart --out {folder}, or "
            "Run.resume in a script), remove that folder, or choose another"
        )


def has_no_net_torque(calculator: Any) -> bool:
    """Whether forces have no net torque: always, save for an MD-ET model left unprojected."""
    potential = getattr(calculator, "potential", None)
    return True if potential is None else bool(potential.remove_net_torque)
