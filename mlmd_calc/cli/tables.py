"""Tables on stdout in which no word is cut, and what stands in them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_UNLIMITED: Final = 1000
_LABEL: Final = 30
"""In a file columns up to this width are not wrapped."""


def print_table(table: Table) -> None:
    """Print a table whole.

    In a file it is as wide as its words and labels. In a terminal texts are wrapped between words;
    a table that is too wide nevertheless continues in further ones below it, which begin with the
    same column. Only a word that is longer than a line is folded.
    """
    console = Console()
    for column in table.columns:
        column.overflow = "fold"
    if not console.is_terminal:
        console = Console(width=max(console.width, _least_width(console, table, _LABEL)))
    parts = _parts(console, table)
    for i, part in enumerate(parts):
        part.title = table.title if i == 0 else None
        part.caption = table.caption if i == len(parts) - 1 else None
        _fit(console, part)
        console.print(part)


def _parts(console: Console, table: Table) -> list[Table]:
    """Deal the columns out to tables that are no wider than the terminal."""
    if not table.show_header:
        return [_with_columns(table, table.columns)]
    first, *others = table.columns
    parts: list[list[Column]] = [[first]]
    for column in others:
        wider = _with_columns(table, [*parts[-1], column])
        if len(parts[-1]) > 1 and _least_width(console, wider) > console.width:
            parts.append([first])
        parts[-1].append(column)
    return [_with_columns(table, columns) for columns in parts]


def _with_columns(table: Table, columns: list[Column]) -> Table:
    part = copy.copy(table)
    part.columns = [copy.copy(column) for column in columns]
    return part


def _least_width(console: Console, table: Table, unwrapped: int = 0) -> int:
    """Width of a table in which no word is cut, and no column of so few characters wrapped."""
    options = console.options.update(width=_UNLIMITED)
    limits = [_widths(console, column) for column in table.columns]
    cut = sum(high - max(low, min(high, unwrapped)) for low, high in limits)
    return Measurement.get(console, options, table).maximum - cut


def _widths(console: Console, column: Column) -> tuple[int, int]:
    """Widths of a column that is wrapped at every word, and of one that is not wrapped."""
    options = console.options.update(width=_UNLIMITED)
    cells = [column.header, *column.cells]
    found = [Measurement.get(console, options, cell) for cell in cells]
    widest = max(one.maximum for one in found)
    return widest if column.no_wrap else max(one.minimum for one in found), widest


def _fit(console: Console, table: Table) -> None:
    """Narrow the widest columns until the table fills the terminal at most, and cut no word."""
    limits = [_widths(console, column) for column in table.columns]
    excess = _least_width(console, table, _UNLIMITED) - console.width
    # Where a word is longer than a line, it is the longest that are folded: names, not numbers.
    folds = _least_width(console, table) > console.width
    least, widths = [1 if folds else low for low, _ in limits], [high for _, high in limits]
    while excess > 0 and widths != least:
        widest = max(width for width, low in zip(widths, least, strict=True) if width > low)
        i = next(i for i, w in enumerate(widths) if w == widest and w > least[i])
        widths[i] -= 1
        excess -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width, column.no_wrap = width, False


def details(title: str, rows: Mapping[str, str]) -> Table:
    """Lay out names and texts in two columns, without those whose text is empty."""
    table = Table(title=title, show_header=False)
    for name, text in rows.items():
        if text:
            table.add_row(name, Text(text))
    return table


def describe_temperature(mean: dict[str, Any] | None) -> str:
    """Mean temperature in K with its standard error, of ``temperature_K`` in a run's summary."""
    if mean is None:
        return "too few frames"
    at_least = "" if mean["resolved"] else "≥"
    return f"{mean['value']:.1f} ± {at_least}{mean['standard_error']:.1f}"
