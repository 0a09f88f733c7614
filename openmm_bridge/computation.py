"""The function behind OpenMM's Python forces: positions in, energy and forces out."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, MLMDError, ModelFileError
from mlmd_calc.potential import Potential
from mlmd_calc.potential.coverage import Coverage
from openmm_bridge.region import Region, make_whole

_LOG: Final = logging.getLogger(__name__)

FORCE_UNIT: Final = units.NM / units.KJ_PER_MOL
"""kJ/mol/nm per eV/Å."""


class MDETComputation:
    """Callable for ``openmm.PythonForce``.

    It is stored by reference: pickling, and with it the XML of a System, holds the name or path of
    the model, its checksum, the options and the state of the random orientations as it was when the
    force was made. The network is loaded again where the copy is made.

    Parameters
    ----------
    potential
        Evaluates the forces.
    region
        Atoms it is applied to.
    device
        What a stored copy asks for as its device.

    Attributes
    ----------
    last_error
        What the last failing call raised. OpenMM passes on only the message, as an
        ``OpenMMException``; the error with its traceback is also in the log ``openmm_bridge``.
    """

    def __init__(self, potential: Potential, region: Region, device: str = "auto") -> None:
        self.potential = potential
        self.region = region
        self.device = device
        self.last_error: Exception | None = None
        self._lineage = region.lineage()

    def __call__(self, state: Any) -> tuple[float, NDArray[np.float64]]:
        """Evaluate a State.

        Parameters
        ----------
        state
            ``openmm.State`` with positions and, in a periodic system, box vectors.

        Returns
        -------
        tuple
            Energy in kJ/mol (0 for a model without energy) and forces ``(system_size, 3)`` in
            kJ/mol/nm, zero outside the region.
        """
        # Values in OpenMM's own units; a conversion through Quantity costs more than the copy.
        return self.compute(state, state.getPositions(asNumpy=True)._value)

    def compute(
        self, state: Any, positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Evaluate ``(system_size, 3)`` nm with the rest of a State; see :meth:`__call__`."""
        box = state.getPeriodicBoxVectors(asNumpy=True)._value if self.region.periodic else None
        try:
            return self.evaluate(positions, box)
        except Exception as error:
            self.last_error = error
            _LOG.exception("force evaluation failed at step %d", state.getStepCount())
            raise self._explained(error, state.getStepCount()) from error

    def evaluate(
        self, positions: NDArray[np.float64], box: NDArray[np.float64] | None
    ) -> tuple[float, NDArray[np.float64]]:
        """Evaluate all particles' positions ``(system_size, 3)`` nm; see :meth:`__call__`.

        Raises
        ------
        InputError
            If the number of particles is not that of the topology or the geometry is impossible.
        PredictionError
            If the model returns non-finite or absurd numbers.
        """
        region = self.region
        if len(positions) != region.system_size:
            raise InputError(
                f"the System has {len(positions)} particles, but the topology the force was made "
                f"for has {region.system_size} atoms; make the force from the System's topology"
            )
        minimising = _minimising()
        if minimising and not self.potential.conservative:
            raise ConfigError(
                "energy minimisation needs forces that are the gradient of an energy, and direct "
                "forces are not; minimise with a force made with forces='conservative' (if the "
                "model has an energy) or with the force field, then run with this one"
            )
        own = positions[region.particles] if region.is_subset else positions
        if box is not None:
            own = make_whole(own, box, region.parents, self._lineage)
        # The first trial step of the minimiser is long, whatever the forces.
        coverage = Coverage(closest=0.05, gap=np.inf) if minimising else None
        structure = region.structure(own * units.NM)
        result = self.potential.evaluate([structure], coverage=coverage)[0]
        assert result.forces is not None  # evaluate was asked for them
        forces = result.forces * FORCE_UNIT
        if region.is_subset:
            everything = np.zeros((region.system_size, 3))
            everything[region.particles] = forces
            forces = everything
        return (0.0 if result.energy is None else result.energy / units.KJ_PER_MOL), forces

    def _explained(self, error: Exception, step: int) -> Exception:
        """Return the error with the step, which the potential cannot know."""
        text = str(error) if isinstance(error, MLMDError) else f"{type(error).__name__}: {error}"
        note = ""
        if self.region.is_subset:
            first, last = self.region.particles[[0, -1]]
            note = f" (atoms are counted among the ML atoms, particles {first} to {last})"
        return RuntimeError(f"MD-ET force at step {step}: {text}{note}")

    def _options(self) -> dict[str, Any]:
        potential = self.potential
        return {
            "model": potential.model.source,
            "device": self.device,
            **potential.options,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        model = self.potential.model
        if not model.source:
            raise ModelFileError(
                "a force is stored by the name of its model, and this model exists in memory only; "
                "write it with mlmd_calc.zoo.save_model and make the force from the file"
            )
        state = self.potential.state_dict() if self.potential.rotation == "random" else None
        return _restore, (self._options(), model.sha256, self.region, state)


class MissingComputation:
    """Stands for a computation whose model could not be loaded; every call says why.

    An exception while OpenMM reads a System would end the process, so it is logged there and raised
    when forces are asked for.

    Parameters
    ----------
    error
        Why it could not be loaded.
    reference
        What was stored.
    """

    def __init__(self, error: Exception, reference: tuple[Any, ...]) -> None:
        self.error = error
        self._reference = reference

    def __call__(self, state: Any) -> tuple[float, NDArray[np.float64]]:
        """Raise what went wrong."""
        raise self.error

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, self._reference


def _restore(*reference: Any) -> MDETComputation | MissingComputation:
    """Load the computation that a stored force refers to."""
    try:
        return _load(*reference)
    except Exception as error:
        _LOG.error("a stored MD-ET force cannot be used: %s", error)
        return MissingComputation(error, reference)


def _load(
    options: dict[str, Any], sha256: str, region: Region, state: Mapping[str, str] | None
) -> MDETComputation:
    potential = Potential(**options)
    found = potential.model.sha256
    if found != sha256:
        raise ModelFileError(
            f"model {options['model']!r} has sha256 {found}, but the force was stored with "
            f"{sha256}; bring back the original file or make a new force"
        )
    if state is not None:
        potential.load_state_dict(state)
    return MDETComputation(potential, region, options["device"])


class TensorComputation:
    """Callable for ``openmmtorch.PythonTorchForce``: the same computation on tensors.

    Parameters
    ----------
    computation
        What is computed.
    """

    def __init__(self, computation: MDETComputation) -> None:
        self.computation = computation

    def __call__(self, state: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate positions ``(system_size, 3)`` nm; energy kJ/mol and forces kJ/mol/nm."""
        energy, forces = self.computation.compute(state, positions.detach().double().cpu().numpy())
        return (
            torch.tensor(energy, dtype=positions.dtype, device=positions.device),
            torch.from_numpy(forces).to(positions),
        )


def _minimising() -> bool:
    """Whether OpenMM's minimiser is calling, which alone knows that it minimises.

    Where a platform calls back from a thread of its own this cannot be seen.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "minimize" and frame.f_globals["__name__"] == "openmm.openmm":
            return True
        frame = frame.f_back
    return False
