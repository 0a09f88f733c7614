"""Runs made of jumps: recorded, watched, and restartable bit for bit.

The equations are those of :class:`mlmd_calc.md.JumpNVE` and :class:`mlmd_calc.md.JumpNVT` with the
usual guard and corrections. At constant energy the total energy is kept by scaling velocities if
the force model has an energy.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import ase
import numpy as np

from mlmd_calc import units
from mlmd_calc.bonds import Bonds
from mlmd_calc.errors import ConfigError
from mlmd_calc.md.checkpoint import Checkpoint
from mlmd_calc.md.jumps import AttachedCalculator, state_of
from mlmd_calc.md.record import Description
from mlmd_calc.md.recorded_run import RecordedRun
from mlmd_calc.md.replica import Measured
from mlmd_calc.md.settings import Engine, Ensemble, JumpSettings, MDSettings
from mlmd_calc.propagation import (
    Corrections,
    ForceModel,
    Guard,
    JumpLoop,
    Propagator,
    Thermostat,
    make_thermostat,
)

EVENTS_FILE: Final = "events.jsonl"
"""What the guard found and did, a line of JSON for each event."""

REJECTED_FILE: Final = "rejected_frames.extxyz"
LOOP: Final = "loop"
"""Entry of ``Checkpoint.results``: the state of the loop."""


_Run = TypeVar("_Run", bound="JumpRun")


class JumpRun(RecordedRun):
    """What runs made of jumps have in common, whatever the engine."""

    made_of_jumps: ClassVar[bool] = True

    @classmethod
    def _start(
        cls: type[_Run],
        atoms: ase.Atoms,
        folder: str | os.PathLike[str],
        settings: MDSettings,
        bonds: Bonds | None,
        keep_velocities: bool,
        engine_options: dict[str, str],
        job: Mapping[str, Any] | None,
        **parts: Any,
    ) -> _Run:
        conditions = parts["propagator"].conditions
        settings = settings.with_friction(conditions.friction_per_ps)
        return super()._start(
            atoms, folder, settings, bonds, keep_velocities, engine_options, job, **parts
        )

    @property
    @abstractmethod
    def loop(self) -> JumpLoop:
        """The loop that makes the jumps."""

    @property
    def jumps(self) -> JumpSettings:
        """Settings of the jumps."""
        assert self.settings.jumps is not None
        return self.settings.jumps

    @property
    def counts(self) -> dict[str, int]:
        """Count jumps of all replicas.

        "accepted" ended with a jump, "fallback" with force-based steps in its place; on the way to
        either, jumps were "redrawn", some of them halved.
        """
        loop = self.loop
        replaced = sum(e.action == "fallback" and e.step < loop.step for e in loop.events)
        actions = loop.events.counts()
        return {
            "accepted": loop.step * self.settings.replicas - replaced,
            "redrawn": actions["redraw"] + actions["shorter"],
            "fallback": replaced,
        }

    def tripped(self) -> Counter[str]:
        """Count events by the check that tripped."""
        return self.loop.events.counts("check")

    def checkpoint(self) -> None:
        """Write a checkpoint, and the events so far."""
        super().checkpoint()
        self.loop.events.save(self.folder / EVENTS_FILE)

    def close(self) -> None:
        """Write the events, and close the files of frames."""
        try:
            self.loop.events.save(self.folder / EVENTS_FILE)
        finally:
            super().close()

    def _thermostat(self) -> Thermostat | None:
        if not self.settings.thermostatted:
            return None
        rate = self.settings.rate_per_ps / units.FS_PER_PS
        return make_thermostat(self.settings.ensemble.value, self.settings.temperature_K, rate)

    def _corrections(self) -> Corrections:
        conserved = not self.settings.thermostatted and self._has_energy
        return Corrections.of(None, rescale_energy=conserved)

    def _guard(self) -> Guard:
        return Guard(frames_file=self.folder / REJECTED_FILE)

    def _check_propagator(self, propagator: Propagator) -> None:
        if self.settings.ensemble is Ensemble.BUSSI and not propagator.gives_velocities:
            raise ConfigError(
                f"{propagator.identity} predicts no velocities, so there are none that 'bussi' "
                "could scale; use ensemble 'langevin'"
            )


class JumpSimulation(JumpRun):
    """A run made of jumps without another engine; make one with `start` or `resume`.

    All replicas advance in one call of the propagator, and in one call of the force model if the
    calculator is an :class:`mlmd_calc.MDETCalculator`.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator, Potential
    >>> from mlmd_calc.md import JumpSettings, JumpSimulation, MDSettings
    >>> from mlmd_calc.propagation import VerletPropagator
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = MDETCalculator()
    >>> propagator = VerletPropagator(Potential(), timestep_fs=0.5)
    >>> settings = MDSettings(jumps=JumpSettings("verlet", stride_fs=8.0, replicas=4))
    >>> with JumpSimulation.start(atoms, "ethanol", settings, propagator=propagator) as simulation:
    ...     simulation.run(100).verdict
    'completed'
    """

    engine: ClassVar[Engine] = Engine.ASE

    def __init__(
        self,
        molecules: list[ase.Atoms],
        folder: Path,
        description: Description,
        checkpoint: Checkpoint,
        *,
        propagator: Propagator,
    ) -> None:
        super().__init__(molecules, folder, description, checkpoint)
        self._check_propagator(propagator)
        self._loop = JumpLoop(
            [state_of(molecule, self.atoms.calc) for molecule in molecules],
            propagator,
            self.jumps.stride_fs,
            thermostat=self._thermostat(),
            corrections=self._corrections(),
            guard=self._guard(),
            forces=_force_model(self.atoms),
            other_forces=self.jumps.other_forces,
            md_steps_per_jump=self.jumps.md_steps_per_jump,
            md_timestep_fs=self.settings.timestep_fs,
            rng=self._rng,
        )
        if LOOP in checkpoint.results:
            self._loop.load_state_dict(checkpoint.results[LOOP])

    @property
    def loop(self) -> JumpLoop:
        """The loop that makes the jumps."""
        return self._loop

    @classmethod
    def start(
        cls,
        atoms: ase.Atoms,
        folder: str | os.PathLike[str],
        settings: MDSettings,
        *,
        propagator: Propagator,
        bonds: Bonds | None = None,
        keep_velocities: bool = False,
        job: Mapping[str, Any] | None = None,
    ) -> JumpSimulation:
        """Begin a run.

        Parameters
        ----------
        atoms, folder, bonds, keep_velocities, job
            As for :meth:`mlmd_calc.md.Simulation.start`.
        settings
            Settings of the run, with `jumps`.
        propagator
            Makes the jumps.

        Raises
        ------
        ConfigError
            If the folder holds a run already, there are no velocities to keep, or settings and
            propagator do not fit together.
        InputError
            If the atoms carry constraints, or calculator or propagator refuse them.
        """
        return cls._start(
            atoms, folder, settings, bonds, keep_velocities, {}, job, propagator=propagator
        )

    def _move(self) -> None:
        self._loop.advance()
        for replica, state in zip(self.replicas, self._loop.states, strict=True):
            replica.atoms.positions = state.positions
            replica.atoms.set_velocities(state.velocities / units.FS)

    def _measure(self) -> list[Measured]:
        known = self._loop.energies() if self._has_energy else [np.nan] * len(self.replicas)
        return [Measured(potential) for potential in known]

    def _engine_results(self) -> dict[str, Any]:
        return {LOOP: self._loop.state_dict()}


def _force_model(atoms: ase.Atoms) -> ForceModel:
    """Force model of a calculator, which works in batches where it can."""
    potential: ForceModel | None = getattr(atoms.calc, "potential", None)
    return AttachedCalculator(atoms) if potential is None else potential
