"""Generate a data set with GFN2-xTB: one process and one npz file per molecule.

Files appear complete or not at all and every molecule has random numbers of its own, so an
interrupted generation continues where it stopped, and its result does not depend on the number of
workers.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mlmd_calc.data.molecules import Molecule, atom_count
from mlmd_calc.data.sampling_settings import SamplingSettings
from mlmd_calc.data.task import Task
from mlmd_calc.data.teacher import teacher_version
from mlmd_calc.errors import ConfigError, PredictionError

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


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
        If the number of workers is not positive, or a file exists but holds something else.
    PredictionError
        After all others are done, if some molecules failed; the message has the reasons.
    MissingDependencyError
        If rdkit or tblite is not installed.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; at least 1 is needed")
    teacher_version()  # refuses at once where tblite is missing, not molecule by molecule
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tasks = [
        Task(molecule, settings, directory.resolve() / f"{molecule.name}.npz")
        for molecule in molecules
    ]
    pending = [task for task in tasks if not task.is_done()]
    if pending:
        with _progress(console) as progress:
            failures = _run_all(pending, workers, progress)
        if failures:
            raise PredictionError(
                f"{len(failures)} of {len(tasks)} molecules failed, the others are in {directory}:"
                + "".join(f"\n  {name}: {reason}" for name, reason in failures.items())
            )
    return [task.path for task in tasks]


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )


def _run_all(tasks: Sequence[Task], workers: int, progress: Progress) -> dict[str, str]:
    """Run tasks in parallel; return the reasons of failures by molecule."""
    # One step of dynamics costs about the square of the number of atoms.
    costs = [atom_count(task.molecule) ** 2 for task in tasks]
    total = sum(cost * task.settings.frames for cost, task in zip(costs, tasks, strict=True))
    bar = progress.add_task(f"0/{len(tasks)} molecules", total=total)
    failures: dict[str, str] = {}
    running: set[subprocess.Popen[bytes]] = set()
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {
            pool.submit(_run_process, task, partial(progress.advance, bar, cost), running): task
            for task, cost in zip(tasks, costs, strict=True)
        }
        for done, future in enumerate(as_completed(futures), start=1):
            reason = future.result()
            if reason is not None:
                failures[futures[future].molecule.name] = reason
            progress.update(bar, description=f"{done}/{len(tasks)} molecules")
    finally:
        # After Ctrl-C no further molecule is begun, and those under way are given up.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.terminate()
        pool.shutdown()
    return failures


def _run_process(
    task: Task, on_frame: Callable[[], None], running: set[subprocess.Popen[bytes]]
) -> str | None:
    """Run one task in a process of its own; return the reason if it fails."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
        pickle.dump(task, stdin)
        stdin.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "mlmd_calc.data.worker"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **_ONE_THREAD},
        )
        running.add(process)
        with process:
            seen = 0
            for _ in process.stdout or ():
                seen += 1
                on_frame()
        if process.returncode > 0:
            # It failed (was not ended by us): its remaining frames will not come.
            for _ in range(task.settings.frames - seen):
                on_frame()
        running.discard(process)
        if process.returncode == 0:
            return None
        stderr.seek(0)
        # The last line of a traceback, or the message of one of our own errors.
        lines = stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the process ended with status {process.returncode}"
