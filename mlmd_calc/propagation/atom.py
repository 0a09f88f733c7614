"""ATOM as a propagator."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from ase.data import atomic_masses, chemical_symbols

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.geometry.rotations import random_rotations
from mlmd_calc.models.atom import record
from mlmd_calc.options import one_of
from mlmd_calc.propagation.forces import ForceModel, load_model_state, model_state
from mlmd_calc.propagation.propagator import Conditions, Propagator, Strides
from mlmd_calc.propagation.state import FloatArray, Frames, State
from mlmd_calc.zoo import ATOMModel, load_atom

ROTATIONS: Final = ("none", "random")

_MASS_TOLERANCE: Final = 0.01
"""Part of a mass by which it may differ: tables of natural abundance do, isotopes do more."""


class ATOMPropagator(Propagator):
    """Jumps of an ATOM network.

    It can be pickled if its model has a name or a file, which the copy is loaded from. Threads that
    share one take turns.

    Parameters
    ----------
    model
        A loaded model, see :func:`mlmd_calc.zoo.load_atom`.
    potential
        Force model whose accelerations at the start of a jump the network takes; it must be given
        if the network takes them, and only then.
    rotation
        "none" (also None), or "random": every call sees the molecules in fresh random orientations,
        which for networks that rotate exactly with the molecule changes rounding only.

    Raises
    ------
    ConfigError
        If an option is unknown, or the potential is missing or superfluous.
    """

    def __init__(
        self,
        model: ATOMModel,
        *,
        potential: ForceModel | None = None,
        rotation: str | None = None,
    ) -> None:
        options = model.network.config
        name = model.name
        if options.accelerations and potential is None:
            raise ConfigError(
                f"model {name!r} takes accelerations; give the potential that provides them, for "
                "instance potential=mlmd_calc.Potential()"
            )
        if potential is not None and not options.accelerations:
            raise ConfigError(f"model {name!r} takes no accelerations; leave out the potential")
        if rotation is None:
            rotation = "none"
        one_of("rotation", rotation, ROTATIONS)
        self.model = model
        self._network = record(model.network)
        self.potential = potential
        self.rotation = rotation
        self.strides = _strides(model, options.max_horizon)
        self.conditions = Conditions.from_card(model.card)
        self.conditions.warn_of_other_weights(potential)
        self.stochastic = rotation == "random"
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        """Checksum of the model, and how it is used."""
        potential = type(self.potential).__qualname__
        return f"ATOMPropagator({self.model.sha256}, {potential}, {self.rotation})"

    def propagate(
        self, states: Sequence[State], times_fs: Sequence[float], generator: torch.Generator
    ) -> list[Frames]:
        """Predict frames in one call of the network; see :meth:`Propagator.propagate`.

        Raises
        ------
        InputError
            If a state is none that the model knows.
        """
        for time in times_fs:
            self.strides.check(time)
        for state in states:
            self.check(state)
        with self._lock:
            return self._propagate(states, times_fs, generator)

    def _propagate(
        self, states: Sequence[State], times_fs: Sequence[float], generator: torch.Generator
    ) -> list[Frames]:
        accelerations = None if self.potential is None else self._accelerations(states)
        rotations = np.broadcast_to(np.eye(3), (len(states), 3, 3))
        if self.rotation == "random":
            rotations = random_rotations(len(states), generator).numpy()
        size = max(len(state) for state in states)
        parameter = next(self._network.parameters())

        def padded(arrays: Sequence[FloatArray]) -> torch.Tensor:
            out = np.zeros((len(states), size, 3))
            for row, array in enumerate(arrays):
                out[row, : len(array)] = array @ rotations[row]
            return torch.from_numpy(out).to(parameter.device)

        numbers = torch.zeros(len(states), size, dtype=torch.int64, device="cpu")
        for row, state in enumerate(states):
            numbers[row, : len(state)] = torch.from_numpy(np.array(state.numbers))
        times = torch.tensor([list(times_fs)] * len(states), dtype=torch.float64, device="cpu")
        with torch.inference_mode():
            out = self._network.propagate(
                padded([state.positions - state.positions.mean(axis=0) for state in states]),
                padded([state.velocities for state in states]),
                numbers.to(parameter.device),
                times.to(parameter.device),
                (numbers != 0).to(parameter.device),
                None if accelerations is None else padded(accelerations),
            )
        back = rotations.transpose(0, 2, 1)[:, None]
        positions, velocities = (out[key].cpu().numpy() @ back for key in ("pos", "vel"))
        return [
            Frames(
                times=np.array(times_fs, dtype=np.float64),
                positions=x[:, : len(state)] + state.positions.mean(axis=0),
                velocities=v[:, : len(state)],
            )
            for state, x, v in zip(states, positions, velocities, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """State of the potential."""
        return {"potential": model_state(self.potential)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        load_model_state(self.potential, state["potential"])

    def __reduce__(self) -> tuple[Any, ...]:
        model, parameter = self.model, next(self.model.network.parameters())
        if not model.source:
            raise ModelFileError(
                "a propagator is pickled by the name of its model, and this model exists in memory "
                "only; write it with mlmd_calc.zoo.save_model and load the propagator from there"
            )
        options = {"device": parameter.device.type, "dtype": str(parameter.dtype).split(".")[1]}
        return _restore, (model.source, model.sha256, options, self.potential, self.rotation)

    def check(self, state: State) -> None:
        """Refuse charges, unpaired electrons, elements and masses that it was not trained on."""
        if state.charge != 0 or state.multiplicity != 1:
            raise InputError(
                f"the molecule has charge={state.charge} and multiplicity={state.multiplicity}; "
                "ATOM knows neutral molecules without unpaired electrons only; take time steps for "
                "others (leave out --propagator), or check the charge"
            )
        elements = self.model.card.elements
        if elements is not None and (unknown := set(state.numbers.tolist()) - set(elements)):
            raise InputError(
                f"the model does not know {', '.join(chemical_symbols[z] for z in sorted(unknown))}"
                f"; it was trained on {', '.join(chemical_symbols[z] for z in elements)}"
            )
        _check_masses(state)

    def _accelerations(self, states: Sequence[State]) -> list[FloatArray]:
        """Accelerations in Å/fs² at the states."""
        assert self.potential is not None
        unknown = [state.structure for state in states if state.forces is None]
        found = iter(self.potential.evaluate(unknown, ("forces",)) if unknown else ())
        accelerations = []
        for state in states:
            forces = next(found).forces if state.forces is None else state.forces
            if forces is None:
                raise PredictionError("the potential gave no forces")
            accelerations.append(forces / state.masses[:, None] * units.FS**2)
        return accelerations


def _strides(model: ATOMModel, longest: float) -> Strides:
    """Return the times that the model was trained on, if its card tells them."""
    known = [stride * units.FS_PER_PS for stride in model.card.strides_ps]
    return Strides.among(known) if known else Strides(longest=longest)


def _check_masses(state: State) -> None:
    usual = atomic_masses[state.numbers]
    wrong = np.abs(state.masses / usual - 1.0)
    atom = int(wrong.argmax())
    if wrong[atom] > _MASS_TOLERANCE:
        symbol = chemical_symbols[state.numbers[atom]]
        raise InputError(
            f"atom {atom}, {symbol}, has a mass of {state.masses[atom]:.5g} amu; the model was "
            f"trained on natural masses, {usual[atom]:.5g} amu for {symbol}, and would move others "
            "wrongly. Use these (no hydrogenMass, no isotopes), or force-based steps"
        )


def _restore(
    source: str,
    sha256: str,
    options: dict[str, str],
    potential: ForceModel | None,
    rotation: str,
) -> ATOMPropagator:
    """Rebuild a pickled propagator, which refers to its model by name and checksum."""
    model = load_atom(source, **options)
    model.check_unchanged(sha256, "the propagator was stored with", "load the propagator anew")
    return ATOMPropagator(model, potential=potential, rotation=rotation)
