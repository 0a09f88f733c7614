"""Processes that run tasks."""

import os
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mlmd_calc.data.pool import run_tasks
from mlmd_calc.errors import InputError, PredictionError

QUIET = Console(file=StringIO())


@dataclass(frozen=True)
class Toy:
    """A task that writes which process ran it, or fails in one way or another."""

    path: Path
    how: str = "works"
    steps: int = 2
    cost: float = 1.0

    @property
    def label(self):
        return self.path.stem

    def is_done(self):
        return self.path.exists()

    def run(self, on_step):
        # As libraries do.
        print("a word", flush=True)
        on_step()
        if self.how == "refuses":
            raise InputError("two\nlines")
        if self.how == "has a fault":
            raise KeyError("unknown")
        if self.how == "dies":
            os._exit(3)
        on_step()
        self.path.write_text(str(os.getpid()))


def test_a_process_goes_on_until_it_dies(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["tests", os.environ.get("PYTHONPATH", "")]))
    hows = ["works", "refuses", "works", "has a fault", "works", "dies", "works"]
    tasks = [Toy(tmp_path / f"{number}.txt", how) for number, how in enumerate(hows)]
    with pytest.raises(PredictionError) as failure:
        run_tasks(tasks, kind="toys", workers=1, console=QUIET)
    assert str(failure.value).splitlines() == [
        "3 of 7 toys failed, the others are done:",
        "  1: two",
        "lines",
        "  3: KeyError: 'unknown'",
        "  5: the process ended with status 3",
    ]
    processes = [tasks[number].path.read_text() for number in (0, 2, 4, 6)]
    assert processes[0] == processes[1]
    assert len(set(processes)) == 3
