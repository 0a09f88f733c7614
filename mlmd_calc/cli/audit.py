"""`mlmd audit`: measure what physics demands of a force field or a propagator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Column, Table

from mlmd_calc.cli.data_options import Seed
from mlmd_calc.cli.endings import raise_on_signal
from mlmd_calc.cli.report import Html, Json, Report
from mlmd_calc.io.progress import LoggedProgress

if TYPE_CHECKING:
    from mlmd_calc.analysis.audit.measurement import Measurement

_COLOURS: Final = {"pass": "green", "fail": "bold red", "cannot tell": "yellow"}


def audit(
    subject: Annotated[
        str,
        typer.Argument(
            help="Name or file of a force field or propagator, or package.module:name of an ASE "
            "calculator, a propagator, or what returns one of them."
        ),
    ],
    molecules: Annotated[
        list[str] | None, typer.Argument(help="Molecules, as for mlmd run. (ethanol)")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look in seconds, with large errors.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    potential: Annotated[
        str | None,
        typer.Option(
            help="Propagators: force field of the potential in which molecules move, named like "
            "the subject. Default: its own."
        ),
    ] = None,
    stride: Annotated[
        float | None, typer.Option(help="Propagators: length of a jump in fs. Default: the card's.")
    ] = None,
    friction: Annotated[
        float | None,
        typer.Option(help="Propagators: of the thermostat in 1/ps. Default: the card's, else 10."),
    ] = None,
    forces: Annotated[str | None, typer.Option(help="MD-ET: direct or conservative.")] = None,
    rotation: Annotated[str | None, typer.Option(help="MD-ET: none, random or average.")] = None,
    n_rotations: Annotated[int | None, typer.Option(help="MD-ET: orientations per call.")] = None,
    dtype: Annotated[str | None, typer.Option(help="MD-ET: float64, float32 or mixed.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Measure what physics demands of a force field or a propagator, yours or ours."""
    from mlmd_calc.analysis.audit.pictures import pictures
    from mlmd_calc.analysis.audit.settings import AuditSettings, measure_all, overall
    from mlmd_calc.cli.audit_subject import find_subject
    from mlmd_calc.cli.structure_input import load_structure

    options: dict[str, Any] = {
        "forces": forces,
        "rotation": rotation,
        "n_rotations": n_rotations,
        "dtype": dtype,
    }
    given = {name: value for name, value in options.items() if value is not None}
    found = find_subject(subject, potential, given, seed=seed)
    settings = (
        AuditSettings.quick(temperature_K=temperature, seed=seed)
        if quick
        else AuditSettings(temperature_K=temperature, seed=seed)
    )
    chosen = molecules or ["ethanol"]
    report = Report(f"Audit of {subject}")
    report.text(
        f"{temperature:g} K, seed {seed}. A number passes if it is below its limit by two standard "
        "errors, and fails if it is above by three."
    )
    for card in found.cards:
        report.card(card)
    molecules_json = {}
    console = Console(stderr=True)
    with raise_on_signal(), LoggedProgress(console=console, transient=True) as progress:
        for name in chosen:
            one = found.audit(load_structure(name, seed=seed), settings, stride, friction)
            parts = one.parts()
            bar = progress.add_task(name, total=len(parts))

            def show(part: str, name: str = name, bar: Any = bar) -> None:
                progress.update(bar, description=f"{name}, {part}")
                progress.advance(bar)

            measurements = measure_all(parts, show)
            verdict = overall(measurements).value
            molecules_json[name] = {
                "verdict": verdict,
                "measurements": [measured.to_dict() for measured in measurements],
            }
            _tell(report, f"{subject}, {name}: {verdict}", measurements)
            for title, png in (pictures(one) if html is not None else {}).items():
                report.picture(title, png)
    numbers = {"subject": subject, "temperature_K": temperature, "molecules": molecules_json}
    report.deliver(numbers, as_json, html)


def _tell(report: Report, title: str, measurements: Sequence[Measurement]) -> None:
    table = Table(
        "test",
        Column("value", no_wrap=True, justify="right"),
        Column("limit", justify="right"),
        Column("verdict", no_wrap=True),
        title=title,
    )
    for one in measurements:
        verdict = one.verdict.value
        marked = f"[{_COLOURS[verdict]}]{verdict}[/]"
        table.add_row(one.name, one.text, one.limit_text, marked)
    report.table(table)
    for one in measurements:
        if one.note:
            report.text(f"{one.name}: {one.note}")
