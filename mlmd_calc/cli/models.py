"""`mlmd models`: look at models."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from mlmd_calc.cli.report import Json
from mlmd_calc.cli.tables import print_table
from mlmd_calc.io.files import json_text

ModelName = Annotated[
    str | None,
    typer.Argument(help="Shipped name, file or run directory; without it all shipped are listed."),
]


def models_command(model: ModelName = None, as_json: Json = False) -> None:
    """List the shipped models, or show the card of one model."""
    from mlmd_calc.zoo import KINDS, list_models, load_any_model

    console = Console()
    if model is not None:
        card = load_any_model(model, device="cpu").card
        if as_json:
            typer.echo(json_text(card.to_dict()))
        else:
            console.print(card)
        return
    cards = list_models()
    if as_json:
        typer.echo(json_text([card.to_dict() for card in cards]))
        return
    table = Table(
        Column("model", no_wrap=True),
        "kind",
        "what it knows",
        caption=f"{cards[0].name} is the default. mlmd models NAME shows all of a model: data, "
        "errors, recommended settings and the commands that made it.",
    )
    for card in sorted(cards, key=lambda card: list(KINDS).index(card.kind)):
        _article, title = KINDS[card.kind].title.split(" ", 1)
        table.add_row(card.name, title, card.what_it_knows)
    print_table(table)
