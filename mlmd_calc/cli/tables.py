"""Tables on stdout in which no word is cut, and what stands in them."""

from __future__ import annotations

import copy
from typing import Any, Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

_UNLIMITED: Final = 1000


def print_table(table: Table) -> None:
    """Print a table whole.

    In a file it is as wide as its words. In a terminal texts are wrapped between words; a table
    that is too wide nevertheless continues in further ones below it, which begin with the same
    column. Only a word that is longer than a line is folded.
    """
    console = Console()
    for column in table.columns:
        column.overflow = "fold"
    if not console.is_terminal:
        console = Console(width=max(console.width, _least_width(console, table)))
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


def _least_width(console: Console, table: Table) -> int:
    """Width of a table in which no word is cut."""
    options = console.options.update(width=_UNLIMITED)
    cut = sum(high - low for column in table.columns for low, high in [_widths(console, column)])
    whole = Measurement.get(console, options, table).maximum
    return whole - cut


def _widths(console: Console, column: Column) -> tuple[int, int]:
    """Widths of a column that is wrapped at every word, and of one that is not wrapped."""
    options = console.options.update(width=_UNLIMITED)
    cells = [column.header, *column.cells]
    found = [Measurement.get(console, options, cell) for cell in cells]
    widest = max(one.maximum for one in found)
    return widest if column.no_wrap else max(one.minimum for one in found), widest


def _fit(console: Console, table: Table) -> None:
    """Set the widths of columns such that they fill the terminal at most, and cut no word."""
    limits = [_widths(console, column) for column in table.columns]
    widths, most = [low for low, _ in limits], [high for _, high in limits]
    spare = console.width - _least_width(console, table)
    # The narrowest columns that could be wider grow first, so texts share what numbers leave.
    while spare > 0 and widths != most:
        level = min(width for width, high in zip(widths, most, strict=True) if width < high)
        widths[next(i for i, w in enumerate(widths) if w == level < most[i])] += 1
        spare -= 1
    # The longest words are folded first: names and paths rather than numbers.
    while spare < 0 and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
        spare += 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width, column.no_wrap = width, False


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
