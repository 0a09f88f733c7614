"""Jumps of ASE atoms: what :class:`mlmd_calc.md.JumpNVE`, ``JumpNVT`` and recorded runs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ase
import numpy as np

from mlmd_calc import units
from mlmd_calc.errors import ConfigError
from mlmd_calc.md.attached import AttachedCalculator, check_charge, state_of
from mlmd_calc.md.engine import DynamicsState, Measured
from mlmd_calc.md.settings import Ensemble, MDSettings
from mlmd_calc.propagation import (
    Corrections,
    ForceModel,
    Guard,
    JumpLoop,
    Propagator,
    State,
    Thermostat,
    make_thermostat,
)
from mlmd_calc.propagation.loop_options import LoopOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

EVENTS_FILE: Final = "events.jsonl"
"""What the guard found and did, a line of JSON for each event."""

REJECTED_FILE: Final = "rejected_frames.extxyz"
LOOP: Final = "loop"
"""Entry of a run's results: the state of the loop."""


class Jumps:
    """ASE atoms that a jump loop moves.

    Parameters
    ----------
    molecules
        What moves, replicas of one molecule; the calculator of the first tells the charge of all.
    propagator
        Makes the jumps.
    stride_fs
        Length of a jump in fs.
    thermostat
        None for constant energy.
    forces
        Force model of the loop; None for that of the propagator.
    md_timestep_fs
        Time step of force-based steps in fs.
    **options
        See :class:`mlmd_calc.propagation.loop_options.LoopOptions`.

    Attributes
    ----------
    loop
        The loop that makes the jumps.
    """

    def __init__(
        self,
        molecules: Sequence[ase.Atoms],
        propagator: Propagator,
        stride_fs: float,
        thermostat: Thermostat | None,
        *,
        forces: ForceModel | None,
        md_timestep_fs: float,
        **options: Unpack[LoopOptions],
    ) -> None:
        self.sampler = self.acceptance = None
        self._molecules = list(molecules)
        self._calc: Any = self._molecules[0].calc
        for atoms in self._molecules:
            check_charge(atoms, self._calc)
        self.loop = JumpLoop(
            [state_of(atoms, self._calc) for atoms in self._molecules],
            propagator,
            stride_fs,
            thermostat=thermostat,
            forces=forces,
            md_timestep_fs=md_timestep_fs,
            **options,
        )
        self._remember()

    def begin(self) -> None:
        """Have nothing to do: the loop has read the atoms."""

    def step(self) -> None:
        """Do one step of all molecules, unless the guard has stopped the run."""
        if self.loop.advance():
            self.show()

    def measure(self) -> list[Measured]:
        """Return energies, which are evaluated where the loop has not done so."""
        if "energy" not in self._calc.implemented_properties:
            return [Measured(np.nan)] * len(self._molecules)
        return [Measured(energy) for energy in self.loop.energies()]

    def state_dict(self) -> DynamicsState:
        """Return the state of the loop."""
        return DynamicsState({LOOP: self.loop.state_dict()}, {})

    def load_state_dict(self, state: DynamicsState) -> None:
        """Go on from :meth:`state_dict`, with the atoms as they were then."""
        self.loop.load_state_dict(state.results[LOOP])
        self._remember()

    def look(self) -> None:
        """Take over what others have done to the atoms since the last step."""
        calc = self._molecules[0].calc
        states, moved = list(self.loop.states), False
        for i, atoms in enumerate(self._molecules):
            old = states[i]
            new = replace(state_of(atoms, calc), time=old.time, memory=old.memory)
            positions, momenta = self._shown[i]
            if not (
                np.array_equal(atoms.positions, positions)
                and np.array_equal(atoms.get_momenta(), momenta)
                and np.array_equal(new.masses, old.masses)
                and np.array_equal(new.numbers, old.numbers)
                and (new.charge, new.multiplicity) == (old.charge, old.multiplicity)
            ):
                states[i] = new
                moved = True
        if moved:
            self.loop.states = states
            self._remember()
        if calc is not self._calc:
            self.loop.forces = None if calc is None else AttachedCalculator(self._molecules[0])
            self._calc = calc

    def show(self) -> None:
        """Give the atoms the positions and momenta of the loop."""
        for atoms, state in zip(self._molecules, self.loop.states, strict=True):
            show(state, atoms)
        self._remember()

    def _remember(self) -> None:
        self._shown = [(atoms.get_positions(), atoms.get_momenta()) for atoms in self._molecules]


def show(state: State, atoms: ase.Atoms) -> None:
    """Give atoms the positions and momenta of a state."""
    momenta = state.masses[:, None] * (state.velocities / units.FS)
    atoms.set_positions(state.positions, apply_constraint=False)
    atoms.set_momenta(momenta, apply_constraint=False)


@dataclass(frozen=True)
class JumpCounts:
    """Jumps of a run, of all molecules together.

    Attributes
    ----------
    accepted
        Steps that ended with a jump.
    redrawn
        Jumps that were drawn again on the way, some of them halved.
    fallback
        Steps with force-based steps in the place of the jump.
    """

    accepted: int
    redrawn: int
    fallback: int


def count_jumps(loop: JumpLoop) -> JumpCounts:
    """Count the jumps of a loop."""
    replaced = sum(e.action == "fallback" and e.step < loop.step for e in loop.events)
    actions = loop.events.counts()
    return JumpCounts(
        accepted=loop.step * len(loop.states) - replaced,
        redrawn=actions["redraw"] + actions["shorter"],
        fallback=replaced,
    )


def run_thermostat(settings: MDSettings) -> Thermostat | None:
    """Thermostat of a run made of jumps; None at constant energy."""
    if not settings.thermostatted:
        return None
    rate = settings.rate_per_ps / units.FS_PER_PS
    return make_thermostat(settings.ensemble.value, settings.temperature_K, rate)


def run_options(
    settings: MDSettings,
    calculator: Any,
    propagator: Propagator,
    folder: Path,
    rng: np.random.Generator,
) -> LoopOptions:
    """Options of the loop of a run in a folder, the same in every engine.

    The total energy is kept by scaling velocities if the calculator has one: at constant energy
    that of the start, with a thermostat that of each jump.

    Raises
    ------
    ConfigError
        If the propagator cannot be used with the thermostat.
    """
    assert settings.jumps is not None
    if settings.ensemble is Ensemble.BUSSI and not propagator.gives_velocities:
        raise ConfigError(
            f"{propagator.identity} predicts no velocities, so there are none that 'bussi' "
            "could scale; use ensemble 'langevin'"
        )
    has_energy = "energy" in calculator.implemented_properties
    return LoopOptions(
        corrections=Corrections(rescale_energy=None if settings.thermostatted else has_energy),
        guard=Guard(frames_file=folder / REJECTED_FILE),
        other_forces=settings.jumps.other_forces,
        md_steps_per_jump=settings.jumps.md_steps_per_jump,
        frames_per_jump=settings.frames_per_jump,
        rng=rng,
    )
