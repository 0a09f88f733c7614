"""An audit as one page of HTML that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from mlmd_calc.analysis.audit.measurement import Measurement, Verdict
from mlmd_calc.analysis.audit.settings import AuditSettings

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; }
td, th { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; text-align: left; }
td.number { text-align: right; white-space: nowrap; }
.pass { color: #1b7f4b; } .fail { color: #b3261e; font-weight: bold; }
.cannot-tell { color: #946200; }
figure { display: inline-block; margin: 0.5em; } img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Section:
    """The audit of one molecule.

    Attributes
    ----------
    name
        Of the molecule.
    verdict
        Conclusion from all measurements.
    measurements
        Numbers.
    pictures
        PNG files by their titles.
    """

    name: str
    verdict: Verdict
    measurements: Sequence[Measurement]
    pictures: Mapping[str, bytes]

    def to_dict(self) -> dict[str, Any]:
        """Return verdict and numbers as JSON-able values."""
        return {
            "verdict": self.verdict.value,
            "measurements": [one.to_dict() for one in self.measurements],
        }


def write_page(
    path: Path, subject: str, settings: AuditSettings, sections: Sequence[Section]
) -> None:
    """Write the page.

    Parameters
    ----------
    path
        File to write.
    subject
        What was audited.
    settings
        How much was done.
    sections
        The molecules.
    """
    body = "".join(_section(section) for section in sections)
    path.write_text(
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>Audit of {escape(subject)}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>Audit of {escape(subject)}</h1>\n"
        f"<p>{settings.temperature_K:g} K, seed {settings.seed}. A number passes if it is below "
        "its limit by two standard errors, and fails if it is above by three.</p>\n"
        f"{body}</body></html>\n",
        encoding="utf-8",
    )


def _section(section: Section) -> str:
    rows = "".join(_row(one) for one in section.measurements)
    figures = "".join(
        f'<figure><img alt="{escape(title)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode("ascii")}"></figure>\n'
        for title, png in section.pictures.items()
    )
    return (
        f"<h2>{escape(section.name)}: {_marked(section.verdict)}</h2>\n<table><tr><th>test</th>"
        "<th>value</th><th>limit</th><th>verdict</th><th>note</th></tr>\n"
        f"{rows}</table>\n{figures}"
    )


def _row(one: Measurement) -> str:
    return (
        f'<tr><td>{escape(one.name)}</td><td class="number">{escape(one.text)}</td>'
        f'<td class="number">{escape(one.limit_text)}</td>'
        f"<td>{_marked(one.verdict)}</td><td>{escape(one.note)}</td></tr>\n"
    )


def _marked(verdict: Verdict) -> str:
    return f'<span class="{verdict.value.replace(" ", "-")}">{verdict.value}</span>'
