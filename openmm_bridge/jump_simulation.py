"""One run made of jumps with OpenMM: recorded, watched, and restartable bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import ase
from openmm import app

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, MLMDError
from mlmd_calc.md.checkpoint import Checkpoint, load_rotation_state, rotation_state
from mlmd_calc.md.jump_simulation import LOOP, JumpRun
from mlmd_calc.md.record import Description
from mlmd_calc.potential import structure_from_ase
from mlmd_calc.propagation import JumpLoop, Propagator
from openmm_bridge.integrators import JumpIntegrator
from openmm_bridge.simulation import OpenMMSimulation


class OpenMMJumpSimulation(JumpRun, OpenMMSimulation):
    """A run made of jumps with OpenMM; make one with `start` or `resume`.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator, Potential
    >>> from mlmd_calc.md import JumpSettings, MDSettings
    >>> from mlmd_calc.propagation import VerletPropagator
    >>> from openmm_bridge.jump_simulation import OpenMMJumpSimulation
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = MDETCalculator()
    >>> propagator = VerletPropagator(Potential(), timestep_fs=0.5)
    >>> settings = MDSettings(jumps=JumpSettings("verlet", stride_fs=8.0))
    >>> with OpenMMJumpSimulation.start(atoms, "run", settings, propagator=propagator) as run:
    ...     run.run(100).verdict
    'completed'
    """

    _stored_as: ClassVar[str] = LOOP
    _integrator: JumpIntegrator

    def __init__(
        self,
        molecules: list[ase.Atoms],
        folder: Path,
        description: Description,
        checkpoint: Checkpoint,
        *,
        propagator: Propagator,
    ) -> None:
        if len(molecules) > 1:
            raise ConfigError(
                f"{len(molecules)} replicas in OpenMM, which moves one molecule; use engine 'ase'"
            )
        self._propagator = propagator
        super().__init__(molecules, folder, description, checkpoint)

    @property
    def loop(self) -> JumpLoop:
        """The loop that makes the jumps."""
        return self._integrator.loop

    def _make_integrator(self) -> JumpIntegrator:
        self._check_propagator(self._propagator)
        calculator = self.atoms.calc
        structure = structure_from_ase(self.atoms, calculator.charge, calculator.multiplicity)
        return JumpIntegrator(
            self._propagator,
            _topology(self.atoms),
            self.jumps.stride_fs / units.FS_PER_PS,
            self._thermostat(),
            charge=structure.charge,
            multiplicity=structure.multiplicity,
            corrections=self._corrections(),
            guard=self._guard(),
            other_forces=self.jumps.other_forces,
            md_steps_per_jump=self.jumps.md_steps_per_jump,
            md_timestep=self.settings.timestep_fs / units.FS_PER_PS,
            rng=self._rng,
        )

    def _begin(self, results: dict[str, Any]) -> None:
        super()._begin(results)
        # Options that do not fit together are refused before there is a folder.
        _ = self.loop

    def _load(self, results: dict[str, Any]) -> None:
        self._context.setPositions(self.atoms.positions / units.NM)
        # Making the loop compares forces, which draws orientations and makes the force forget its
        # last answer.
        orientations = rotation_state(self.atoms.calc)
        _ = self.loop
        load_rotation_state(self.atoms.calc, orientations)
        self._integrator.loadState(results[LOOP])
        self._remember(results)

    def _engine_results(self) -> dict[str, Any]:
        return {LOOP: self.loop.state_dict(), **self._remembered()}

    def _move(self) -> None:
        try:
            super()._move()
        finally:
            # The loop sees only that forces have failed and would try something else.
            raised = None if self._computation is None else self._computation.raised
            if raised is not None and not isinstance(raised, MLMDError):
                raise raised


def _topology(atoms: ase.Atoms) -> app.Topology:
    """One residue without bonds, which nothing asks for."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number in atoms.numbers:
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
    return topology
