"""Metrics of a run as a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from mlmd_calc.io.files import replacing


class MetricsFile(Logger):
    """CSV file with one row per logged step, which a resumed run continues.

    (Lightning's own CSV logger deletes the file of the run that it resumes.)

    Parameters
    ----------
    path
        The file.
    first_step
        Number of optimiser steps done before. Rows from there on are dropped: they are of steps
        that were lost and will be repeated.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        super().__init__()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._rows: dict[int, dict[str, Any]] = {}
        if first_step and path.exists():
            with path.open(newline="") as file:
                rows = {int(row["step"]): row for row in csv.DictReader(file)}
            self._rows = {step: row for step, row in rows.items() if step < first_step}

    @property
    def name(self) -> str:
        """Nothing: there is one file."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: there is one file."""
        return ""

    def log_hyperparams(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing: the recipe is in the checkpoint."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step, 0 if None."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        row = self._rows.setdefault(step or 0, {"step": step or 0})
        row.update(values)

    @rank_zero_only
    def save(self) -> None:
        """Write all rows; the file is complete at any time."""
        names = sorted({name for row in self._rows.values() for name in row} - {"step"})
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *names])
            writer.writeheader()
            writer.writerows(self._rows.values())
