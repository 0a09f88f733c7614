"""Tables on stdout in which no word is cut, and what stands in them."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_UNLIMITED: Final = 1000


def print_table(table: Table) -> None:
    """Print a table; in a terminal long words are folded, in a file the table is wide enough."""
    console = Console()
    if not console.is_terminal:
        options = console.options.update(width=_UNLIMITED)
        needed = Measurement.get(console, options, table).minimum
        console = Console(width=max(console.width, needed))
    for column in table.columns:
        column.overflow = "fold"
    console.print(table)


def describe_temperature(mean: dict[str, Any] | None, digits: int = 1) -> str:
    """Mean temperature in K with its standard error.

    Parameters
    ----------
    mean
        Entry ``temperature_K`` of a run's summary.
    digits
        Digits after the point.
    """
    if mean is None:
        return "too few frames"
    at_least = "" if mean["resolved"] else "≥"
    return f"{mean['value']:.{digits}f} ± {at_least}{mean['standard_error']:.{digits}f}"
