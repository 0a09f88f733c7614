"""What a command has found, shown in the terminal or written as one page of HTML."""

from __future__ import annotations

import base64
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

import typer
from rich.table import Table
from rich.text import Text

import mlmd_calc
from mlmd_calc.cli.tables import print_table
from mlmd_calc.errors import ConfigError
from mlmd_calc.io.files import json_text, replacing

if TYPE_CHECKING:
    from mlmd_calc.zoo import ModelCard


def _page_file(path: Path | None) -> Path | None:
    """Refuse a page in the place of a file of another kind, which it would replace."""
    if path is not None and (path.suffix.lower() not in (".html", ".htm") or path.is_dir()):
        raise ConfigError(
            f"--html {path}; give a file that ends in .html, which is replaced if it is there"
        )
    return path


Html: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--html",
        help="Write a page with tables, pictures and cards that needs no other file.",
        callback=_page_file,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")]

SUMMARY_FILE: Final = "summary.json"

_PACKAGES: Final = ("torch", "ase", "numpy", "openmm")
"""Whose versions a page tells, where they are installed."""

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
caption { text-align: left; font-weight: bold; padding: 0.3em 0; }
td, th { padding: 0.25em 0.8em; border-bottom: 1px solid #8886; text-align: left; }
td { vertical-align: top; white-space: pre-line; }
td:not(:first-child) { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
td.number, th.number { text-align: right; white-space: nowrap; }
.rule td { border-bottom: 2px solid #888; }
.green { color: #1b7f4b; } .red { color: #c5372c; } .yellow { color: #946200; }
.bold { font-weight: bold; }
figure { display: inline-block; margin: 0.5em; } img { max-width: 100%; background: white; }
code { overflow-wrap: anywhere; }
"""


class _Picture(NamedTuple):
    title: str
    png: bytes


class Report:
    """Tables, sentences and pictures in the order in which they are to be read."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._items: list[Table | str | _Picture] = []
        self._cards: list[ModelCard] = []

    def table(self, table: Table) -> None:
        """Add a table."""
        self._items.append(table)

    def text(self, text: str) -> None:
        """Add a sentence."""
        self._items.append(text)

    def picture(self, title: str, png: bytes) -> None:
        """Add a picture, which only the page shows."""
        self._items.append(_Picture(title, png))

    def card(self, card: ModelCard) -> None:
        """Add the card of a model that took part, which only the page shows, at its end."""
        if card not in self._cards:
            self._cards.append(card)

    @contextmanager
    def drawing(self, folder: Path | None) -> Iterator[Path]:
        """Take up the pictures that are drawn in this block.

        Parameters
        ----------
        folder
            Where they are kept besides; None for nowhere.

        Yields
        ------
        Path
            Folder to draw in.
        """
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
            for path in sorted(Path(temporary).glob("*.png")):
                self.picture(path.stem, path.read_bytes())
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, folder / path.name)

    def deliver(self, numbers: Any, as_json: bool, html: Path | None) -> None:
        """Write the page if one is wanted, and print.

        Parameters
        ----------
        numbers
            What was found, JSON-able.
        as_json
            Print this in place of tables and sentences.
        html
            File of the page; None for none.
        """
        if html is not None:
            self.write(html)
            typer.echo(f"Page in {html}", err=True)
        if as_json:
            typer.echo(json_text(numbers))
            return
        for item in self._items:
            if isinstance(item, Table):
                print_table(item)
            elif isinstance(item, str):
                typer.echo(item)

    def write(self, path: Path) -> None:
        """Write the page: all that was added, the command, versions and cards.

        Parameters
        ----------
        path
            File to write; its folder is made if need be.
        """
        body = "".join(_item(item) for item in self._items)
        cards = "".join(
            f"<h2>Model card of {escape(card.name)}</h2>\n{_table(card.__rich__())}"
            for card in self._cards
        )
        versions = ", ".join(f"{name} {version}" for name, version in _versions())
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(
                '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
                f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body>\n"
                f"<h1>{escape(self.title)}</h1>\n{body}"
                f"<h2>How it was made</h2>\n<p><code>{escape(command)}</code></p>\n"
                f"<p>{escape(versions)}</p>\n{cards}</body></html>\n",
                encoding="utf-8",
            )


def _versions() -> Iterator[tuple[str, str]]:
    yield "mlmd", mlmd_calc.__version__
    yield "Python", platform.python_version()
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _item(item: Table | str | _Picture) -> str:
    if isinstance(item, Table):
        return _table(item)
    if isinstance(item, str):
        return f"<p>{escape(item)}</p>\n"
    data = base64.b64encode(item.png).decode("ascii")
    title = escape(item.title)
    return (
        f'<figure><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{title}</figcaption></figure>\n"
    )


def _table(table: Table) -> str:
    classes = [' class="number"' if column.justify == "right" else "" for column in table.columns]
    parts = [f"<caption>{_cell(table.title)}</caption>\n"] if table.title else []
    if table.show_header:
        parts.append(_row("th", classes, (column.header for column in table.columns)))
    cells = zip(*(column.cells for column in table.columns), strict=True)
    for row, values in zip(table.rows, cells, strict=True):
        parts.append(_row("td", classes, values, ' class="rule"' if row.end_section else ""))
    note = f"<p>{_cell(table.caption)}</p>\n" if table.caption else ""
    return f'<div class="wide"><table>{"".join(parts)}</table></div>\n{note}'


def _row(tag: str, classes: list[str], values: Iterable[Any], rule: str = "") -> str:
    cells = (
        f"<{tag}{which}>{_cell(value)}</{tag}>"
        for which, value in zip(classes, values, strict=True)
    )
    return f"<tr{rule}>{''.join(cells)}</tr>\n"


def _cell(value: Any) -> str:
    """Text of a cell with the colour it has in the terminal."""
    text = Text.from_markup(value) if isinstance(value, str) else value
    words = escape(text.plain)
    styles = " ".join(str(span.style) for span in text.spans)
    return f'<span class="{escape(styles)}">{words}</span>' if styles else words
