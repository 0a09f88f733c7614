"""What a jump loop knows of each molecule, and its record of interventions."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import ase
import ase.io
import numpy as np

from mlmd_calc.errors import ConfigError
from mlmd_calc.propagation.balance import Balance
from mlmd_calc.propagation.events import Event, EventLog
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.guards import Check
from mlmd_calc.propagation.proposals import Finding, Rejected
from mlmd_calc.propagation.state import State


@dataclass
class Molecule:
    """What is known of one molecule of a run, besides its state.

    Attributes
    ----------
    index
        Which molecule.
    checks
        Its own copies of the checks.
    total
        Total energy in eV that a jump should keep; None if it has to be evaluated.
    fallbacks
        Jumps in a row that were replaced by force-based steps.
    warm
        Whether it has been as warm as the molecules of the training, at least once.
    before
        State before the last jump, while no energy has confirmed that jump.
    balance
        What gives its elements their share of the kinetic energy; None if nothing does.
    """

    index: int
    checks: tuple[Check, ...]
    total: float | None = None
    fallbacks: int = 0
    warm: bool = False
    before: State | None = None
    balance: Balance | None = None


@dataclass
class Logbook:
    """Record of all interventions.

    Attributes
    ----------
    frames_file
        Every rejected frame is appended to this file.
    events
        What was found and done.
    step
        Present step of the run.
    """

    frames_file: str | os.PathLike[str]
    events: EventLog = field(default_factory=EventLog)
    step: int = 0

    def record(self, molecule: int, before: State, rejected: Rejected, action: str) -> None:
        """Note an intervention, and write the frame that caused it."""
        event = self.note(molecule, before, rejected.finding, action)
        frame = before.positions if rejected.positions is None else rejected.positions
        # A frame with another number of atoms is written with unknown elements.
        numbers = before.numbers if len(frame) == len(before) else np.zeros(len(frame), dtype=int)
        atoms = ase.Atoms(numbers, frame, info=asdict(event))
        ase.io.write(Path(self.frames_file), atoms, format="extxyz", append=True)

    def note(self, molecule: int, before: State, finding: Finding, action: str) -> Event:
        """Note an intervention."""
        event = Event(
            step=self.step,
            time_fs=before.time,
            molecule=molecule,
            check=finding.check,
            value=finding.value,
            limit=finding.limit,
            reason=finding.reason,
            action=action,
        )
        self.events.append(event)
        return event


def with_energies(
    states: list[State], forces: ForceModel | None, *, and_forces: bool = False
) -> list[State]:
    """Evaluate the energies that are not known.

    Parameters
    ----------
    states
        Molecules.
    forces
        What knows energies.
    and_forces
        Whether to keep its forces, too, for a propagator that asks the same force model for them.

    Raises
    ------
    ConfigError
        If there is no force model, or it has no energy.
    """
    unknown = [state.structure for state in states if state.energy is None]
    if not unknown:
        return states
    if forces is None:
        raise ConfigError("there is no force model that knows energies; pass one to the loop")
    wanted = ("energy", "forces") if and_forces else ("energy",)
    results = forces.evaluate(unknown, wanted)
    found = iter([{name: getattr(result, name) for name in wanted} for result in results])
    states = [state.changed(**next(found)) if state.energy is None else state for state in states]
    if any(state.energy is None for state in states):
        raise ConfigError(
            f"{type(forces).__qualname__} has no energy; use a model with an energy, or leave out "
            "what needs one, such as energy rescaling and the energy check"
        )
    return states
