"""The `mlmd` command.

Modules that need torch or ASE's dynamics are imported in functions: `mlmd --help` need not wait for
them.
"""

from __future__ import annotations

from typing import Any

from mlmd_calc.cli.endings import run_command


def main() -> None:
    """Run the command line; whatever ends it, it ends as `mlmd_calc.cli.endings` describes."""
    run_command(_run)


def _run() -> None:
    # Imports take a second, in which a signal must end the command as it does later.
    from mlmd_calc.cli.commands import app

    app()


def __getattr__(name: str) -> Any:
    if name == "app":
        from mlmd_calc.cli.commands import app

        return app
    raise AttributeError(f"module 'mlmd_calc.cli' has no attribute {name!r}")
