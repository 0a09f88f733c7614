"""Run tasks that each write one file, several at a time, in processes of their own."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Final, Protocol

from rich.console import Console
from rich.progress import Progress

from mlmd_calc.errors import PredictionError
from mlmd_calc.io.files import FolderLock
from mlmd_calc.io.progress import progress_bar
from mlmd_calc.options import whole_number

STEP: Final = b"\n"
"""Line that a worker writes after every step; that after a task is its failure in JSON, or null."""

_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


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
    tasks: Sequence[PoolTask], *, kind: str, workers: int, console: Console | None
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
    whole_number("workers", workers, 1)
    with ExitStack() as locks:
        for folder in sorted({task.path.parent for task in tasks}):
            locks.enter_context(FolderLock(folder))
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


def _run_all(
    tasks: Sequence[PoolTask], kind: str, workers: int, progress: Progress
) -> dict[str, str]:
    """Run tasks in parallel; return the reasons of failures by label."""
    total = sum(task.cost * task.steps for task in tasks)
    bar = progress.add_task(f"0/{len(tasks)} {kind}", total=total)
    failures: dict[str, str] = {}
    idle: SimpleQueue[_Worker] = SimpleQueue()
    with ExitStack() as files:
        crew = [
            _Worker(files.enter_context(tempfile.TemporaryFile()))
            for _ in range(min(workers, len(tasks)))
        ]
        for worker in crew:
            idle.put(worker)
        pool = ThreadPoolExecutor(len(crew))
        try:
            futures = {
                pool.submit(_run_one, task, partial(progress.advance, bar), idle): task
                for task in tasks
            }
            for done, future in enumerate(as_completed(futures), start=1):
                reason = future.result()
                if reason is not None:
                    failures[futures[future].label] = reason
                progress.update(bar, description=f"{done}/{len(tasks)} {kind}")
        finally:
            # After a signal no further task is begun, and those under way are given up.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in crew:
                worker.end()
            pool.shutdown()
            for worker in crew:
                worker.close()
    return failures


def _run_one(
    task: PoolTask, advance: Callable[[float], None], idle: SimpleQueue[_Worker]
) -> str | None:
    """Run a task by the next worker that has nothing to do; return the reason if it fails."""
    worker = idle.get()
    try:
        return worker.run(task, advance)
    finally:
        idle.put(worker)


class _Worker:
    """A process that runs one task after another; one that has died is replaced.

    What a task imports takes seconds, which the next one need not wait for.

    Parameters
    ----------
    errors
        File for its stderr.
    """

    def __init__(self, errors: IO[bytes]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = errors
        self._ended = False

    def run(self, task: PoolTask, advance: Callable[[float], None]) -> str | None:
        """Run one task; return the reason if it fails."""
        process = self._process = self._process or self._begin()
        if self._ended:
            process.terminate()
        assert process.stdin is not None
        assert process.stdout is not None
        # Warnings of earlier tasks do not explain this failure. The process shares the position.
        self._errors.seek(0)
        self._errors.truncate()
        # One that has died says so by the end of its output.
        with suppress(BrokenPipeError):
            pickle.dump(task, process.stdin)
            process.stdin.flush()
        seen = 0
        while (line := process.stdout.readline()) == STEP:
            seen += 1
            advance(task.cost)
        if line.endswith(b"\n"):
            reason: str | None = json.loads(line)
        else:
            reason = self._last_words(process)
            self._process = None
        if reason is not None:
            # Its remaining steps will not come.
            advance(task.cost * (task.steps - seen))
        return reason

    def end(self) -> None:
        """End the process, whatever it does, and any that begins after it."""
        self._ended = True
        if self._process is not None:
            self._process.terminate()

    def close(self) -> None:
        """Wait for the process to end."""
        if self._process is not None:
            with self._process:
                pass

    def _begin(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "mlmd_calc.data.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **_ONE_THREAD},
        )

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        """Return why a process died: the last line of its traceback."""
        with process:
            # Closes the pipes, and waits.
            pass
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the process ended with status {process.returncode}"
