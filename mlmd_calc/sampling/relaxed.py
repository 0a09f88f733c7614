"""Trajectories whose every frame is relaxed by forces before the next one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from ase.data import atomic_masses
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc import units
from mlmd_calc.biomolecules import BondedStructure, MolecularSystem
from mlmd_calc.biomolecules.charges import total_charge
from mlmd_calc.errors import ConfigError, InputError, PredictionError, RefusedFramesError
from mlmd_calc.geometry.superposition import align
from mlmd_calc.models.atmos.features import Memory
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.propagation.forces import ForceModel, load_model_state, model_state
from mlmd_calc.propagation.relaxation import (
    ROUNDS,
    TIMESTEP_FS,
    PotentialWindow,
    energies_of,
    equilibrated,
    minimised,
    reference_window,
)
from mlmd_calc.propagation.state import State
from mlmd_calc.sampling.quality import FrameGuard
from mlmd_calc.sampling.trajectories import generators_of, restored_course, stored_course
from mlmd_calc.wording import counted

MINIMISE_STEPS: Final = 100
DYNAMICS_STEPS: Final = 1000
"""Steps of a relaxation: at most so many of minimisation, and 0.5 ps of Langevin dynamics."""


class RelaxedFrames(NamedTuple):
    """New frames of all trajectories.

    Attributes
    ----------
    positions
        ``(count, f, n, 3)`` Å of the atoms of the engine, each superposed on the one before.
    energies
        ``(count, f)`` eV.
    """

    positions: NDArray[np.float64]
    energies: NDArray[np.float64]


class Relaxation:
    """Relaxes frames and judges them: by their structure, and by their potential energy.

    A frame is minimised and equilibrated by 0.5 ps of Langevin dynamics. If its energy is then
    higher than those of dynamics it is relaxed again, up to four times in all. Dynamics is a short
    run from the start of the trajectories.

    Parameters
    ----------
    forces
        Force model with energies.
    system, structure
        The molecule, which must be all that there is.
    guard
        Judges the structure after the relaxation.
    temperature_K
        Of the dynamics.

    Attributes
    ----------
    window
        What energies dynamics visits; None before :meth:`measure`.
    again
        Frames that were relaxed more than once so far.
    refused
        Frames refused for their energy or because they could not be relaxed.
    reason
        Why the last of all frames that were refused was.

    Raises
    ------
    InputError
        If there is water, ions, or nobody says what charge the molecule has.
    """

    def __init__(
        self,
        forces: ForceModel,
        system: MolecularSystem,
        structure: BondedStructure,
        guard: FrameGuard,
        temperature_K: float,
    ) -> None:
        if len(system.left_out):
            raise InputError(
                f"{len(system.left_out)} atoms are water or ions, which would stand still while "
                "the frames of the molecule are relaxed; take them away, the force fields here "
                "have implicit solvent or none"
            )
        charge = total_charge(structure)
        if charge is None:
            raise InputError("the structure does not state its charge, which forces need to know")
        self.forces, self.system, self.guard = forces, system, guard
        self.temperature_K = temperature_K
        self._start = State(
            positions=structure.positions,
            velocities=np.zeros_like(structure.positions),
            numbers=structure.numbers,
            masses=atomic_masses[structure.numbers],
            charge=charge,
        )
        self.window: PotentialWindow | None = None
        self.again = self.refused = 0
        self.reason = ""

    def measure(self, picoseconds: float, rng: np.random.Generator) -> None:
        """Run dynamics from the start, and note which energies it visits.

        Raises
        ------
        ConfigError
            If the run is shorter than a time step, or the force model knows no energies.
        InputError, PredictionError
            If the force model cannot evaluate the molecule.
        """
        steps = round(picoseconds * units.FS_PER_PS / TIMESTEP_FS)
        if steps < 1:
            raise ConfigError(
                f"a reference run of {picoseconds:g} ps is shorter than its time step of "
                f"{TIMESTEP_FS:g} fs; give a longer one"
            )
        self.window = reference_window(
            self.forces,
            self._start,
            self.temperature_K,
            rng,
            steps=steps,
            minimise_steps=MINIMISE_STEPS,
        )

    def __call__(
        self,
        positions: NDArray[np.float64],
        rngs: Sequence[np.random.Generator],
        *,
        judge: bool,
    ) -> list[State | None]:
        """Relax frames.

        Parameters
        ----------
        positions
            ``(b, n, 3)`` Å of the atoms of the engine.
        rngs
            Source of random numbers of each frame.
        judge
            Refuse frames. If not, all are kept after one relaxation.

        Returns
        -------
        list of State or None
            With the energy; None for frames that are refused.

        Raises
        ------
        PredictionError
            If a frame that is not to be judged cannot be relaxed.
        """
        assert self.window is not None
        found: list[State | None] = [self._start.moved_to(frame) for frame in positions]
        rows = list(range(len(found)))
        for turn in range(ROUNDS if judge else 1):
            states = [state for row in rows if (state := found[row]) is not None]
            relaxed = self._relaxed(states, [rngs[row] for row in rows], judge)
            for row, state in zip(rows, relaxed, strict=True):
                found[row] = state
            rows = [
                row for row in rows if (state := found[row]) is not None and self._too_high(state)
            ]
            if not rows or not judge:
                break
            self.again += len(rows) if turn == 0 else 0
        if not judge:
            return found
        for row in rows:
            found[row] = None
            self.refused += 1
        return [None if state is None else self._sound(state) for state in found]

    def _too_high(self, state: State) -> bool:
        assert self.window is not None
        assert state.energy is not None
        finding = self.window.judge(state.energy)
        if finding is None:
            return False
        self.reason = f"relaxed {ROUNDS} times, {finding.reason}"
        return True

    def _sound(self, state: State) -> State | None:
        """Return a state whose structure the guard accepts; else None."""
        heavy = torch.from_numpy(self.system.select(state.positions))[None]
        if bool(self.guard(heavy)[0]):
            return state
        self.reason = "after the relaxation a bond, an angle, a centre or a contact is wrong"
        return None

    def _relaxed(
        self, states: list[State], rngs: list[np.random.Generator], judge: bool
    ) -> list[State | None]:
        """Relax states once; None for those that forces make nothing of."""
        try:
            moved = minimised(self.forces, states, MINIMISE_STEPS)
            moved = equilibrated(self.forces, moved, DYNAMICS_STEPS, self.temperature_K, rngs)
            energies = energies_of(self.forces, moved)
        except (InputError, PredictionError) as error:
            if len(states) > 1:
                # One of them is to blame.
                single = [
                    self._relaxed([state], [rng], judge)
                    for state, rng in zip(states, rngs, strict=True)
                ]
                return [state for (state,) in single]
            if not judge:
                raise
            self.reason = f"it cannot be relaxed: {error}"
            self.refused += 1
            return [None]
        return [
            replace(state, energy=energy) for state, energy in zip(moved, energies, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how relaxations go on."""
        assert self.window is not None
        return {
            "window": asdict(self.window),
            "again": self.again,
            "refused": self.refused,
            "forces": model_state(self.forces),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.window = PotentialWindow(**state["window"])
        self.again, self.refused = state["again"], state["refused"]
        load_model_state(self.forces, state["forces"])


class RelaxedTrajectories:
    """Trajectories that grow together, each frame relaxed and fed back to the model.

    Memory, heavy atoms and hydrogens of the next frame follow from the relaxed one. Frames that are
    refused are drawn again from the same memory.

    Parameters
    ----------
    rollout
        Draws the frames and refuses none.
    relaxation
        Relaxes and judges them.
    start
        ``(n, 3)`` Å, the first frame of all trajectories.
    count
        Number of trajectories.
    seed
        Seed of all random numbers.
    redraws
        How often a refused frame is drawn again; 0 keeps every frame.
    """

    frames_per_keyframe = 1

    def __init__(
        self,
        rollout: Rollout,
        relaxation: Relaxation,
        start: NDArray[np.float64],
        count: int,
        seed: int,
        *,
        redraws: int,
    ) -> None:
        self.rollout, self.relaxation = rollout, relaxation
        self._redraws = redraws
        self._memory = rollout.start(count)
        self._whole = np.repeat(start[None].astype(np.float64), count, axis=0)
        self._generators = generators_of(seed, count)
        self._rngs = [np.random.default_rng(own) for own in _sources(seed, count)[1:]]
        self._energies = np.zeros(count)

    def measure(self, picoseconds: float, seed: int) -> None:
        """Make the reference run of the relaxation."""
        self.relaxation.measure(picoseconds, np.random.default_rng(_sources(seed, 0)[0]))

    def advance(self, keyframes: int) -> RelaxedFrames:
        """Draw and relax frames.

        Raises
        ------
        PredictionError
            If a network draws a frame that is not finite.
        RefusedFramesError
            If all draws of a frame were refused; the trajectories are then those before the call,
            except for their random numbers.
        """
        before = self._memory, self._whole, self._energies
        positions, energies = [], []
        try:
            for _ in range(keyframes):
                self._step()
                positions.append(self._whole)
                energies.append(self._energies)
        except PredictionError:
            self._memory, self._whole, self._energies = before
            raise
        return RelaxedFrames(np.stack(positions, axis=1), np.stack(energies, axis=1))

    def _step(self) -> None:
        """Advance all trajectories by a frame."""
        count = len(self._whole)
        memories: list[Memory | None] = [None] * count
        whole, energies = np.zeros_like(self._whole), np.zeros(count)
        rows = list(range(count))
        for _ in range(self._redraws + 1):
            memory, relaxed = self._draw(rows)
            refused = []
            for place, (row, state) in enumerate(zip(rows, relaxed, strict=True)):
                if state is None:
                    refused.append(row)
                    continue
                memories[row] = Memory(*(part[place : place + 1] for part in memory))
                whole[row], energies[row] = state.positions, state.energy
            rows = refused
            if not rows:
                break
        else:
            raise RefusedFramesError(
                f"a frame was drawn and relaxed {counted(self._redraws + 1, 'time')}, and refused "
                f"every time, the last because {self.relaxation.reason}"
            )
        known = [memory for memory in memories if memory is not None]
        self._memory = Memory(*(torch.cat(parts) for parts in zip(*known, strict=True)))
        self._whole, self._energies = self._superposed(whole), energies

    def _draw(self, rows: list[int]) -> tuple[Memory, list[State | None]]:
        """Draw and relax a frame of some trajectories."""
        system = self.relaxation.system
        heavy = torch.from_numpy(system.select(self._whole[rows]))
        memory, drawn = self.rollout.step(
            Memory(*(part[rows] for part in self._memory)),
            heavy,
            [self._generators[row] for row in rows],
        )
        relaxed = self.relaxation(
            system.restore(drawn.numpy(), self._whole[rows]),
            [self._rngs[row] for row in rows],
            judge=self._redraws > 0,
        )
        return memory, relaxed

    def _superposed(self, whole: NDArray[np.float64]) -> NDArray[np.float64]:
        """Superpose frames ``(count, n, 3)`` on those before by their heavy atoms."""
        weights = torch.zeros(whole.shape[:2], dtype=torch.float64)
        weights[:, self.relaxation.system.atoms] = 1.0
        moved: Tensor = align(torch.from_numpy(whole), torch.from_numpy(self._whole), weights)
        return moved.numpy()

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the trajectories go on: numbers and arrays."""
        return {
            **stored_course(self._memory, self._generators),
            "whole": self._whole,
            "energies": self._energies,
            "rngs": [own.bit_generator.state for own in self._rngs],
            "relaxation": self.relaxation.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, on the same device to the last bit."""
        self._memory = restored_course(state, self._memory, self._generators)
        self._whole, self._energies = np.array(state["whole"]), np.array(state["energies"])
        for rng, stored in zip(self._rngs, state["rngs"], strict=True):
            rng.bit_generator.state = stored
        self.relaxation.load_state_dict(state["relaxation"])


def _sources(seed: int, count: int) -> list[np.random.SeedSequence]:
    """Make sources of random numbers: of the reference run, and of each trajectory."""
    return np.random.SeedSequence([seed, 1]).spawn(count + 1)
