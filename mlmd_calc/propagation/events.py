"""The record of every intervention in a run."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mlmd_calc import units
from mlmd_calc.errors import ModelFileError
from mlmd_calc.io.figures import new_figure
from mlmd_calc.io.files import replacing


@dataclass(frozen=True)
class Event:
    """One intervention.

    Attributes
    ----------
    step
        Step in which it happened, counted from 0.
    time_fs
        Time in fs before the jump.
    molecule
        Which of the molecules of the run.
    check
        Name of the check, e.g. "displacement".
    value, limit
        What was found, and what is allowed.
    reason
        The same in words.
    action
        What was done: "accept", "redraw", "shorter", "fallback", "raise" or "stop".
    """

    step: int
    time_fs: float
    molecule: int
    check: str
    value: float
    limit: float
    reason: str
    action: str


class EventLog:
    """Events of a run in their order; iterate over it or index it.

    Examples
    --------
    >>> log = EventLog()
    >>> log.append(Event(3, 24.0, 0, "contact", 0.4, 0.6, "atoms 0 and 1 are too close", "redraw"))
    >>> log.counts()
    Counter({'redraw': 1})
    """

    def __init__(self) -> None:
        self._events: list[Event] = []

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def __getitem__(self, index: int) -> Event:
        return self._events[index]

    def append(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)

    def counts(self, key: str = "action") -> Counter[str]:
        """Count events by an attribute, "action" or "check" for instance."""
        return Counter(str(getattr(event, key)) for event in self)

    def to_json(self) -> str:
        """One line of JSON for each event."""
        return "".join(json.dumps(asdict(event)) + "\n" for event in self)

    @classmethod
    def from_json(cls, text: str) -> EventLog:
        """Read back :meth:`to_json`."""
        log = cls()
        for line in text.splitlines():
            log.append(Event(**json.loads(line)))
        return log

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file with one line of JSON for each event."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EventLog:
        """Read what :meth:`save` has written.

        Raises
        ------
        ModelFileError
            If the file is missing or damaged.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise ModelFileError(f"{path} is not a readable log of events: {error}") from error

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw which check intervened when, and what was done, as a PNG file."""
        figure = new_figure(8.0, 3.5)
        axis = figure.subplots()
        for action, count in self.counts().items():
            chosen = [event for event in self if event.action == action]
            axis.plot(
                [event.time_fs / units.FS_PER_PS for event in chosen],
                [event.check for event in chosen],
                linestyle="none",
                marker="|",
                markersize=12,
                label=f"{action} ({count})",
            )
        axis.set_xlabel("time (ps)")
        if len(self):
            axis.legend()
        figure.savefig(Path(path), format="png")
