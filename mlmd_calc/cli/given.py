"""Options of a command that the user has given, defaults apart."""

from __future__ import annotations

from collections.abc import Collection

import typer

from mlmd_calc.errors import ConfigError


def is_given(context: typer.Context, option: str) -> bool:
    """Whether an option, by the name of its parameter, was given on the command line."""
    source = context.get_parameter_source(option)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def refuse_with_restart(context: typer.Context, allowed: Collection[str], changeable: str) -> None:
    """Refuse options that a run which is continued cannot take.

    Parameters
    ----------
    context
        Of the command.
    allowed
        Names of the parameters that may be given.
    changeable
        The options among them that change the run, for the message.

    Raises
    ------
    ConfigError
        If others are given.
    """
    wrong = [
        param.metavar or max(param.opts, key=len)
        for param in context.command.params
        if param.name not in allowed and is_given(context, str(param.name))
    ]
    if wrong:
        raise ConfigError(
            f"{', '.join(sorted(wrong))} cannot be given with --restart: the run goes on with what "
            f"it was started with; only {changeable} may be changed"
        )
