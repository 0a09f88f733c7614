"""Options of a command that the user has given, defaults apart."""

from __future__ import annotations

import typer


def is_given(context: typer.Context, option: str) -> bool:
    """Whether an option, by the name of its parameter, was given on the command line."""
    source = context.get_parameter_source(option)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
