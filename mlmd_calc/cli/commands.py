"""All commands under one roof."""

from __future__ import annotations

from typing import Annotated

import typer

import mlmd_calc
from mlmd_calc.cli import bench, data, evaluate, models, train, validate
from mlmd_calc.cli.audit import audit
from mlmd_calc.cli.demo import demo
from mlmd_calc.cli.doctor import doctor
from mlmd_calc.cli.export import export
from mlmd_calc.cli.interpolate import interpolate
from mlmd_calc.cli.run import run
from mlmd_calc.cli.sample import sample


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlmd {mlmd_calc.__version__}")
        raise typer.Exit


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def mlmd(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Learned molecular dynamics: train, run and inspect models."""


app.command("demo")(demo)
app.command("run")(run)
app.command("sample")(sample)
app.command("interpolate")(interpolate)
app.command("doctor")(doctor)
app.add_typer(data.app, name="data")
app.command("train")(train.train_command)
app.command("finetune")(train.finetune_command)
app.command("models")(models.models_command)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(validate.app, name="validate")
app.command("audit")(audit)
app.command("export")(export)
app.add_typer(bench.app, name="bench")
