"""Generate a data set: one process and one npz file per molecule.

Files appear complete or not at all and every molecule has random numbers of its own, so an
interrupted generation continues where it stopped, and its result does not depend on the number of
workers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlmd_calc.data.gfn2 import gfn2_version
from mlmd_calc.data.molecules import Molecule
from mlmd_calc.data.pool import run_tasks
from mlmd_calc.data.reference import Reference
from mlmd_calc.data.sampling_settings import SamplingSettings
from mlmd_calc.data.task import Task


def generate(
    molecules: Sequence[Molecule],
    directory: str | os.PathLike[str],
    settings: SamplingSettings,
    *,
    workers: int = 1,
    console: Console | None = None,
) -> list[Path]:
    """Sample and label molecules, several at a time, into ``directory/NAME.npz``.

    Finished files with the same settings are kept. A molecule that fails does not stop the others.

    Parameters
    ----------
    molecules, settings
        What to sample, and how.
    directory
        Created if it does not exist.
    workers
        Number of single-threaded processes.
    console
        Where to show progress, by default stderr.

    Returns
    -------
    list of Path
        The files of all molecules, in their order.

    Raises
    ------
    ConfigError
        If the number of workers is not positive, a file exists but holds something else, or there
        is no such reference method.
    PredictionError
        After all others are done, if some molecules failed; the message has the reasons.
    MissingDependencyError
        If rdkit, tblite or the package of the reference method is not installed.
    """
    # Refuse missing packages at once, not molecule by molecule.
    gfn2_version()
    Reference(settings.reference)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tasks = [
        Task(molecule, settings, directory.resolve() / f"{molecule.name}.npz")
        for molecule in molecules
    ]
    return run_tasks(tasks, kind="molecules", workers=workers, console=console)
