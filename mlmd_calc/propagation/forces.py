"""Force models as the jump loop uses them, and jumps made of force-based steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.potential import Evaluation, Structure
from mlmd_calc.propagation.propagator import Propagator, Strides
from mlmd_calc.propagation.state import FloatArray, Frames, State


class ForceModel(Protocol):
    """Energies and forces of molecules, for instance a :class:`mlmd_calc.Potential`.

    A force model with random numbers of its own has ``state_dict`` and ``load_state_dict``. One
    whose energies can be used to check jumps says so by an attribute ``has_energy`` that is true.
    """

    def evaluate(
        self, structures: Sequence[Structure], properties: Sequence[str]
    ) -> list[Evaluation]:
        """Evaluate molecules; ``properties`` holds "energy", "forces" or both."""


class FunctionForces:
    """A plain function as force model.

    Parameters
    ----------
    function
        From positions ``(n, 3)`` Å to energy in eV and forces ``(n, 3)`` eV/Å.
    """

    has_energy = True

    def __init__(self, function: Callable[[FloatArray], tuple[float, FloatArray]]) -> None:
        self.function = function

    def evaluate(
        self, structures: Sequence[Structure], properties: Sequence[str] = ("energy", "forces")
    ) -> list[Evaluation]:
        """Evaluate molecules."""
        return [Evaluation(*self.function(structure.positions)) for structure in structures]


class VerletPropagator(Propagator):
    """Jumps made of velocity-Verlet steps: the reference for learned ones.

    Its memory holds the forces at the last frame, so that a jump of n steps costs n evaluations as
    long as nothing else moves the atoms.

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

    def __init__(self, forces: ForceModel, timestep_fs: float) -> None:
        if not 0.0 < timestep_fs < np.inf:
            raise ConfigError(f"timestep_fs={timestep_fs}; it must be a positive number")
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
        half = [0.5 * self.timestep_fs * units.FS**2 / state.masses[:, None] for state in states]
        molecules = range(len(states))
        kept: list[tuple[list[FloatArray], list[FloatArray]]] = []
        for step in range(1, wanted[-1] + 1):
            for i in molecules:
                v[i] = v[i] + half[i] * forces[i]
                x[i] = x[i] + self.timestep_fs * v[i]
            forces = self._evaluate_own(states, x)
            for i in molecules:
                v[i] = v[i] + half[i] * forces[i]
            kept += [(list(x), list(v))] * wanted.count(step)
        return [
            Frames(
                times=np.array(times_fs),
                positions=np.stack([positions[i] for positions, _ in kept]),
                velocities=np.stack([velocities[i] for _, velocities in kept]),
                memory={"positions": x[i], "forces": forces[i]},
            )
            for i in molecules
        ]

    def _first_forces(self, states: Sequence[State]) -> list[FloatArray]:
        def known(state: State) -> bool:
            remembered = state.memory.get("positions")
            return remembered is not None and np.array_equal(remembered, state.positions)

        others = [state for state in states if not known(state)]
        fresh = iter(self._evaluate(others, [state.positions for state in others]))
        return [state.memory["forces"] if known(state) else next(fresh) for state in states]

    def _evaluate_own(self, states: Sequence[State], x: Sequence[FloatArray]) -> list[FloatArray]:
        """Evaluate where the steps have led, for which the caller is not to blame."""
        try:
            return self._evaluate(states, x)
        except InputError as error:
            raise PredictionError(f"force-based steps have led astray: {error}") from error

    def _evaluate(self, states: Sequence[State], x: Sequence[FloatArray]) -> list[FloatArray]:
        if not states:
            return []
        structures = [
            Structure(state.numbers, positions, state.charge, state.multiplicity)
            for state, positions in zip(states, x, strict=True)
        ]
        results = self.forces.evaluate(structures, ("forces",))
        forces = [result.forces for result in results if result.forces is not None]
        if len(forces) != len(states):
            raise ConfigError(
                f"{type(self.forces).__qualname__} gave forces for {len(forces)} of {len(states)} "
                "molecules; force-based steps need a model with forces"
            )
        return forces

    def state_dict(self) -> dict[str, Any]:
        """State of the force model."""
        return {"forces": model_state(self.forces)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        load_model_state(self.forces, state["forces"])


def model_state(forces: ForceModel | None) -> Mapping[str, Any] | None:
    """State of a force model; None if it has none."""
    save = getattr(forces, "state_dict", None)
    return None if save is None else save()


def load_model_state(forces: ForceModel | None, state: Mapping[str, Any] | None) -> None:
    """Let a force model go on from :func:`model_state`.

    Raises
    ------
    ConfigError
        If only one of force model and stored state has random numbers of its own.
    """
    load = getattr(forces, "load_state_dict", None)
    if (load is None) != (state is None):
        raise ConfigError(
            f"the stored run had another kind of force model than {type(forces).__qualname__}; "
            "continue with the force model of the run"
        )
    if load is not None:
        load(state)
