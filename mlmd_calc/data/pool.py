"""Run tasks that each write one file, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Event
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.io.files import FolderLock

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class PoolTask(Protocol):
    """What can be run; it must be possible to pickle it."""

    @property
    def path(self) -> Path:
        """The file to write."""

    @property
    def label(self) -> str:
        """What to call it in messages."""

    @property
    def steps(self) -> int:
        """How many steps it reports."""

    @property
    def cost(self) -> float:
        """Relative time that one step takes."""

    def run(self, on_step: Callable[[], None]) -> None:
        """Do the work, and call ``on_step`` after every step."""

    def is_done(self) -> bool:
        """Tell whether the file is there; raise ConfigError if it holds something else."""


def run_tasks(
    tasks: Sequence[PoolTask], *, kind: str, workers: int, console: Console | None = None
) -> list[Path]:
    """Run those tasks that are not done yet. One that fails does not stop the others.

    Parameters
    ----------
    tasks
        What to run; the directories of their files must exist.
    kind
        What to call several of them, e.g. ``"molecules"``.
    workers
        Number of single-threaded processes.
    console
        Where to show progress, by default stderr.

    Returns
    -------
    list of Path
        The files of all tasks, in their order.

    Raises
    ------
    ConfigError
        If the number of workers is not positive, a file exists but holds something else, or another
        process writes to the same directory.
    PredictionError
        After all others are done, if some tasks failed; the message has the reasons.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; at least 1 is needed")
    with ExitStack() as locks:
        for folder in sorted({task.path.parent for task in tasks}):
            locks.callback(FolderLock(folder).release)
        pending = [task for task in tasks if not task.is_done()]
        failures = {}
        if pending:
            with progress_bar(console) as progress:
                failures = _run_all(pending, kind, workers, progress)
        refuse_failures(failures, len(tasks), kind)
    return [task.path for task in tasks]


def refuse_failures(failures: Mapping[str, str], total: int, kind: str) -> None:
    """Say which of some tasks failed, if any did.

    Raises
    ------
    PredictionError
        With the reasons.
    """
    if failures:
        raise PredictionError(
            f"{len(failures)} of {total} {kind} failed, the others are done:"
            + "".join(f"\n  {label}: {reason}" for label, reason in failures.items())
        )


def progress_bar(console: Console | None, bar_width: int = 40) -> Progress:
    """Return the progress bar of generators and runs; None: on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )


def _run_all(
    tasks: Sequence[PoolTask], kind: str, workers: int, progress: Progress
) -> dict[str, str]:
    """Run tasks in parallel; return the reasons of failures by label."""
    total = sum(task.cost * task.steps for task in tasks)
    bar = progress.add_task(f"0/{len(tasks)} {kind}", total=total)
    failures: dict[str, str] = {}
    running: set[subprocess.Popen[bytes]] = set()
    given_up = Event()
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {
            pool.submit(_run_process, task, partial(progress.advance, bar), running, given_up): task
            for task in tasks
        }
        for done, future in enumerate(as_completed(futures), start=1):
            reason = future.result()
            if reason is not None:
                failures[futures[future].label] = reason
            progress.update(bar, description=f"{done}/{len(tasks)} {kind}")
    finally:
        # After a signal no further task is begun, and those under way are given up.
        given_up.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.terminate()
        pool.shutdown()
    return failures


def _run_process(
    task: PoolTask,
    advance: Callable[[float], None],
    running: set[subprocess.Popen[bytes]],
    given_up: Event,
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
        if given_up.is_set():
            process.terminate()
        with process:
            seen = 0
            for _ in process.stdout or ():
                seen += 1
                advance(task.cost)
        if process.returncode > 0:
            # It failed (was not ended by us): its remaining steps will not come.
            advance(task.cost * (task.steps - seen))
        running.discard(process)
        if process.returncode == 0:
            return None
        stderr.seek(0)
        # The last line of a traceback, or the message of one of our own errors.
        lines = stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the process ended with status {process.returncode}"
