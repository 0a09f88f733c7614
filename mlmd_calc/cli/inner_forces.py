"""Cheap forces of multiple time stepping in `mlmd run`."""

from __future__ import annotations

from typing import Final

import ase
import typer
from rich.console import Console

from mlmd_calc import units
from mlmd_calc.bonded import BondedForceField
from mlmd_calc.bonded.force_field import LEFT_OUT, NETWORK_FRAMES, NETWORK_NEURONS
from mlmd_calc.errors import ConfigError
from mlmd_calc.io.progress import progress_bar
from mlmd_calc.md.settings import Engine, Ensemble, InnerForces, MDSettings
from mlmd_calc.wording import counted

_STRUCTURES: Final = {InnerForces.BONDED: 200, InnerForces.NETWORK: NETWORK_FRAMES}
"""How many are fitted to."""

_NEURONS: Final = NETWORK_NEURONS


def check_inner_options(context: typer.Context) -> None:
    """Refuse what multiple time stepping cannot do, before anything is fitted.

    Raises
    ------
    ConfigError
        If cheap forces or the test are named without inner steps, or OpenMM is to know them.
    """
    given = context.params
    metropolis, inner_forces, alone = given["metropolis"], given["mts_forces"], given["mts"] == 1
    engine = Engine(given["engine"])
    if metropolis and alone:
        raise ConfigError(
            "--metropolis accepts or rejects steps of multiple time stepping; give --mts with it, "
            "for instance --mts 16 --mts-forces network"
        )
    ensemble = Ensemble(given["ensemble"])
    if metropolis and ensemble is not Ensemble.LANGEVIN:
        raise ConfigError(
            f"--metropolis with --ensemble {ensemble.value}; it is for --ensemble langevin. At "
            "constant energy leave out --metropolis and take --mts 6 or less"
        )
    if metropolis and engine is Engine.OPENMM:
        raise ConfigError("--metropolis with --engine openmm, which has no such test; use ase")
    if inner_forces is None:
        return
    inner_forces = InnerForces(inner_forces)
    if alone:
        raise ConfigError(
            f"--mts-forces {inner_forces.value} is an option of multiple time stepping; give --mts "
            "with it, for instance --mts 6"
        )
    if engine is Engine.OPENMM and inner_forces.fitted:
        raise ConfigError(
            f"--mts-forces {inner_forces.value} with --engine openmm, which has no such forces; "
            "use --engine ase"
        )


def fit_inner_forces(
    atoms: ase.Atoms, settings: MDSettings, console: Console
) -> BondedForceField | None:
    """Fit the cheap forces of a run under a progress bar, and say how good they are.

    Returns
    -------
    BondedForceField or None
        None if the settings want no such forces.

    Raises
    ------
    InputError
        If there are too few forces, or nothing to fit.
    """
    kind = settings.inner_forces
    if not kind.fitted:
        return None
    structures = _STRUCTURES[kind]
    with progress_bar(console, bar_width=12) as progress:
        bar = progress.add_task("fitting cheap forces", total=structures + LEFT_OUT)

        def advance() -> None:
            progress.advance(bar)
            if progress.tasks[bar].finished and kind is InnerForces.NETWORK:
                progress.update(bar, description="training their network", total=None)

        fitted = BondedForceField.fit(
            atoms,
            temperature_K=settings.temperature_K,
            frames=structures,
            neurons=_NEURONS if kind is InnerForces.NETWORK else 0,
            seed=settings.seed,
            on_frame=advance,
        )
    console.print(
        f"Cheap forces fitted to {counted(structures, 'structure')}: "
        f"{fitted.error / units.MEV:.0f} meV/Å of them are left to correct (root mean square).",
        highlight=False,
    )
    return fitted
