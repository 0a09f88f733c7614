"""Jumps made of force-based steps: the reference for learned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.options import positive_number
from mlmd_calc.potential import Structure
from mlmd_calc.propagation.constraints import constraints_of, drifted
from mlmd_calc.propagation.forces import ForceModel, load_model_state, model_state
from mlmd_calc.propagation.propagator import Propagator, Strides
from mlmd_calc.propagation.state import FloatArray, Frames, Memory, State


class VerletPropagator(Propagator):
    """Jumps made of velocity-Verlet steps: the reference for learned ones.

    Its memory holds forces and energy at the last frame, so that a jump of n steps costs n
    evaluations as long as nothing else moves the atoms; so does one from a state that tells its
    forces. Molecules are not turned: it is the force model that knows how to average over
    orientations.

    Parameters
    ----------
    forces
        Force model.
    timestep_fs
        Length of a step in fs; jumps are multiples of it.

    Raises
    ------
    ConfigError
        If the time step is not positive.
    """

    conserves_energy = True
    orientation_error = False

    def __init__(self, forces: ForceModel, timestep_fs: float) -> None:
        timestep_fs = positive_number("timestep_fs", timestep_fs)
        self.forces = self.potential = forces
        self.timestep_fs = timestep_fs
        self.strides = Strides(shortest=timestep_fs, unit=timestep_fs)

    @property
    def identity(self) -> str:
        """Name, force model and time step."""
        return f"VerletPropagator({type(self.forces).__qualname__}, {self.timestep_fs:g} fs)"

    def propagate(
        self, states: Sequence[State], times_fs: Sequence[float], generator: torch.Generator
    ) -> list[Frames]:
        """Step all molecules together; see :meth:`Propagator.propagate`."""
        for time in times_fs:
            self.strides.check(time)
        wanted = [round(time / self.timestep_fs) for time in times_fs]
        x = [np.array(state.positions) for state in states]
        v = [np.array(state.velocities) for state in states]
        forces = self._first_forces(states)
        energies: list[float | None] = []
        half = [0.5 * self.timestep_fs * units.FS**2 / state.masses[:, None] for state in states]
        molecules = range(len(states))
        constraints = constraints_of(self.forces)
        kept: list[tuple[list[FloatArray], list[FloatArray]]] = []
        for step in range(1, wanted[-1] + 1):
            for i in molecules:
                v[i] = v[i] + half[i] * forces[i]
                x[i], v[i] = drifted(x[i], v[i], self.timestep_fs, constraints)
            energies, forces = self._evaluate_own(states, x, last=step == wanted[-1])
            for i in molecules:
                v[i] = v[i] + half[i] * forces[i]
                if constraints is not None:
                    v[i] = constraints.velocities(x[i], v[i])
            kept += [(list(x), list(v))] * wanted.count(step)
        return [
            Frames(
                times=np.array(times_fs),
                positions=np.stack([positions[i] for positions, _ in kept]),
                velocities=np.stack([velocities[i] for _, velocities in kept]),
                memory=_memory(states[i], x[i], forces[i], energies[i]),
            )
            for i in molecules
        ]

    def _first_forces(self, states: Sequence[State]) -> list[FloatArray]:
        known = [self.known_forces(state) for state in states]
        others = [state for state, own in zip(states, known, strict=True) if own is None]
        fresh = iter(self._evaluate(others, [state.positions for state in others], ("forces",))[1])
        return [next(fresh) if own is None else own for own in known]

    def _evaluate_own(
        self, states: Sequence[State], x: Sequence[FloatArray], *, last: bool
    ) -> tuple[list[float | None], list[FloatArray]]:
        """Evaluate where the steps have led, for which the caller is not to blame."""
        with_energy = last and bool(getattr(self.forces, "has_energy", False))
        try:
            return self._evaluate(states, x, ("energy", "forces") if with_energy else ("forces",))
        except InputError as error:
            raise PredictionError(f"force-based steps have led astray: {error}") from error

    def _evaluate(
        self, states: Sequence[State], x: Sequence[FloatArray], properties: tuple[str, ...]
    ) -> tuple[list[float | None], list[FloatArray]]:
        """Evaluate energies in eV, None where they are not asked for, and forces in eV/Å."""
        if not states:
            return [], []
        structures = [
            Structure(state.numbers, positions, state.charge, state.multiplicity)
            for state, positions in zip(states, x, strict=True)
        ]
        results = self.forces.evaluate(structures, properties)
        forces = [result.forces for result in results if result.forces is not None]
        if len(forces) != len(states):
            raise ConfigError(
                f"{type(self.forces).__qualname__} gave forces for {len(forces)} of {len(states)} "
                "molecules; force-based steps need a model with forces"
            )
        return [result.energy for result in results], forces

    def known_energy(self, state: State) -> float | None:
        """Energy at the end of a jump; see :meth:`Propagator.known_energy`."""
        known = _remembered(state) and "energy" in state.memory
        return float(state.memory["energy"]) if known else None

    def known_forces(self, state: State) -> FloatArray | None:
        """Return forces ``(n, 3)`` eV/Å that have just been evaluated, or that the state tells."""
        return state.memory["forces"] if _remembered(state) else state.forces

    def state_dict(self) -> dict[str, Any]:
        """State of the force model."""
        return {"forces": model_state(self.forces)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        load_model_state(self.forces, state["forces"])


def _memory(
    state: State, positions: FloatArray, forces: FloatArray, energy: float | None
) -> Memory:
    memory = {"positions": positions, "forces": forces, "electrons": _electrons(state)}
    return memory if energy is None else {**memory, "energy": np.array(energy)}


def _remembered(state: State) -> bool:
    """Whether the memory of a state is of its positions, charge and multiplicity."""
    known = {"positions": state.positions, "electrons": _electrons(state)}
    return all(
        name in state.memory and np.array_equal(state.memory[name], value)
        for name, value in known.items()
    )


def _electrons(state: State) -> NDArray[np.int64]:
    return np.array([state.charge, state.multiplicity])
