"""Reporters for OpenMM scripts."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TextIO

import openmm
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mlmd_calc import units
from mlmd_calc.options import whole_number

_GAS_CONSTANT: Final = units.KB / units.KJ_PER_MOL
"""kJ/mol/K."""


class ProgressReporter:
    """Show a progress bar with speed, temperature, potential energy and the time that is left.

    On a terminal there is one bar; elsewhere, as in the log of a batch job, one line per report.
    As with OpenMM's ``StateDataReporter``, every report asks for the energy and with it for one
    more evaluation of the forces; with integrators of the leapfrog kind the temperature is that of
    half a step before.

    Parameters
    ----------
    reportInterval
        Steps between reports.
    totalSteps
        Step at which the simulation will end, counted like ``simulation.currentStep``.
    force
        A force made by :func:`openmm_bridge.create_force`, whose errors are to be shown; they
        matter where a script catches them and goes on.
    file
        Where to write; None is standard error.

    Raises
    ------
    ConfigError
        If one of the numbers is not positive.

    Examples
    --------
    >>> from openmm_bridge.reporters import ProgressReporter
    >>> simulation.reporters.append(ProgressReporter(1000, 100_000))  # doctest: +SKIP
    >>> simulation.step(100_000)  # doctest: +SKIP
    """

    def __init__(
        self,
        reportInterval: int,
        totalSteps: int,
        *,
        force: Any = None,
        file: TextIO | None = None,
    ) -> None:
        for name, value in (("reportInterval", reportInterval), ("totalSteps", totalSteps)):
            whole_number(name, value, 1)
        self._interval = reportInterval
        self._total = totalSteps
        self._computation = getattr(force, "computation", None)
        self._degrees: int | None = None
        self._begin = self._first_step = self._first_time = 0.0
        console = Console(file=file, stderr=file is None, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._progress = Progress(*columns, console=console)
        self._bar = self._progress.add_task("", total=totalSteps)
        self._stop: Callable[[], object] | None = None

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:  # noqa: N802
        """Tell OpenMM when the next report is due and what it needs."""
        if self._degrees is None:
            self._start(simulation)
        steps = self._interval - simulation.currentStep % self._interval
        return {"steps": steps, "periodic": None, "include": ["energy"]}

    def report(self, simulation: Any, state: Any) -> None:
        """Show the present state."""
        step = simulation.currentStep
        text = escape(self._describe(step, state))
        console = self._progress.console
        if console.is_terminal:
            self._progress.update(self._bar, completed=step, description=text)
        else:
            console.print(f"{step}/{self._total}  {text}", soft_wrap=True)
        if step >= self._total and self._stop is not None:
            self._stop()

    def _start(self, simulation: Any) -> None:
        self._degrees = _degrees_of_freedom(simulation.system)
        self._begin = time.perf_counter()
        self._first_step = simulation.currentStep
        self._first_time = simulation.context.getTime()._value
        if self._progress.console.is_terminal:
            self._progress.start()
            # Also when the script ends early: a bar that is not stopped hides the cursor.
            self._stop = weakref.finalize(self, self._progress.stop)

    def _describe(self, step: int, state: Any) -> str:
        seconds = time.perf_counter() - self._begin
        now = state.getTime()._value
        nanoseconds = (now - self._first_time) * units.FS_PER_PS / units.FS_PER_NS
        left = seconds * (self._total - step) / (step - self._first_step)
        kinetic = state.getKineticEnergy()._value
        temperature = 2.0 * kinetic / (self._degrees * _GAS_CONSTANT) if self._degrees else 0.0
        parts = [
            f"{now:.2f} ps",
            f"{temperature:.0f} K",
            f"{state.getPotentialEnergy()._value:.1f} kJ/mol",
            f"{nanoseconds / seconds * units.SECONDS_PER_DAY:.3g} ns/day",
            f"left {timedelta(seconds=max(0, round(left)))}",
        ]
        error = getattr(self._computation, "last_error", None)
        if error is not None:
            parts.append(f"last error: {error}")
        return "  ".join(parts)


def _degrees_of_freedom(system: openmm.System) -> int:
    """Count them as OpenMM's own reporter does."""
    masses = [system.getParticleMass(i)._value for i in range(system.getNumParticles())]
    mobile = [bool(mass > 0) for mass in masses]
    degrees = 3 * sum(mobile)
    for index in range(system.getNumConstraints()):
        first, second, _ = system.getConstraintParameters(index)
        degrees -= mobile[first] or mobile[second]
    if any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces()):
        degrees -= 3
    return degrees
