"""The `mlmd` command."""

from __future__ import annotations

import sys

import typer

from mlmd_calc.cli import bench, data, models, train
from mlmd_calc.cli.demo import demo
from mlmd_calc.cli.doctor import doctor
from mlmd_calc.cli.export import export
from mlmd_calc.cli.run import run
from mlmd_calc.cli.sample import sample
from mlmd_calc.errors import MLMDError

app = typer.Typer(
    help="Learned molecular dynamics: train, run and inspect models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo)
app.command("run")(run)
app.command("sample")(sample)
app.command("doctor")(doctor)
app.add_typer(data.app, name="data")
app.command("train")(train.train_command)
app.command("finetune")(train.finetune_command)
app.command("models")(models.models_command)
app.command("evaluate")(models.evaluate_command)
app.command("export")(export)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line; our own errors become one sentence and exit status 1."""
    try:
        app()
    except MLMDError as error:
        typer.echo(f"mlmd: {error}", err=True)
        sys.exit(1)
