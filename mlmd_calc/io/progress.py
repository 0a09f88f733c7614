"""Progress of what takes long, on a terminal and in the log of a batch system."""

from __future__ import annotations

import time
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_PER_LINE: Final = 60.0


class LoggedProgress(Progress):
    """A bar on a terminal, and a line every minute in a log, where rich shows the end alone.

    Parameters are those of :class:`rich.progress.Progress`.
    """

    def __init__(self, *columns: Any, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._logged_at = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task, and show it if that is due."""
        super().update(task_id, **changes)
        self._log()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task, and show it if that is due."""
        super().advance(task_id, advance)
        self._log()

    def _log(self) -> None:
        drawn = self.console.is_terminal or self.console.is_jupyter
        if drawn or time.monotonic() - self._logged_at < _SECONDS_PER_LINE:
            return
        self._logged_at = time.monotonic()
        self.console.print(self.make_tasks_table(self.tasks))


def progress_bar(console: Console | None, bar_width: int = 40) -> LoggedProgress:
    """Return the progress bar of generators and runs; None: on stderr."""
    return LoggedProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )
