"""`mlmd run`: molecular dynamics of one molecule."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from mlmd_calc import units
from mlmd_calc.errors import ConfigError
from mlmd_calc.md.settings import Ensemble, MDSettings

if TYPE_CHECKING:
    from mlmd_calc.calculator import MDETCalculator
    from mlmd_calc.cli.job import Job
    from mlmd_calc.md import Simulation

_MODEL: Final = "Model: "
_DYNAMICS: Final = "Dynamics"
_OUTPUT: Final = "Output"
