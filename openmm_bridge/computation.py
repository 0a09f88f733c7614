"""The function behind OpenMM's Python forces: positions in, energy and forces out."""

from __future__ import annotations

import json
import logging
import sys
import uuid
import weakref
from types import FrameType
from typing import Any, Final

import numpy as np
import openmm
import torch
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, MLMDError, ModelFileError, PredictionError
from mlmd_calc.potential import Evaluation, Potential, Structure
from mlmd_calc.potential.coverage import Coverage
from openmm_bridge.checks import check_contexts, check_images, extent
from openmm_bridge.region import Region, check_nanometres, check_order, make_whole

_LOG: Final = logging.getLogger(__name__)

FORCE_UNIT: Final = units.NM / units.KJ_PER_MOL
"""kJ/mol/nm per eV/Å."""

_WALL: Final = 1e12
"""kJ/mol, above the energy of anything, so that a minimiser takes a shorter step."""

_UNCOUNTED: Final = ("Reference", "CPU")

# OpenMM 8.5 reads what a Python force returns through numpy, which it loads only when it is first
# given a sequence. Where that is never done, as after loadCheckpoint or loadState in a new process,
# the first evaluation would end the process.
openmm.Continuous1DFunction([0.0, 1.0, 2.0], 0.0, 1.0)


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
    address
        Where the force is that was made with it; None if that was not here.
    identity
        What it has in common with its copies.
    """

    def __init__(self, potential: Potential, region: Region, device: str = "auto") -> None:
        self.potential = potential
        self.region = region
        self.device = device
        self.last_error: Exception | None = None
        self.address: int | None = None
        self.identity = uuid.uuid4().hex
        self._lineage = region.lineage()
        self._seen: Any = None
        self._systems: list[weakref.ref[openmm.System]] = []

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
            _check_counted()
            self._check_surroundings(state, positions, box)
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
        minimisation = _minimisation()
        if minimisation is not None and not self.potential.conservative:
            raise ConfigError(
                "energy minimisation needs forces that are the gradient of an energy, and direct "
                "forces are not; minimise with a force made with forces='conservative' (if the "
                "model has an energy) or with the force field, then run with this one"
            )
        own = self._molecule(positions, box)
        structure = region.structure(own * units.NM)
        if minimisation is None:
            result = self.potential.evaluate([structure])[0]
        elif (trial := self._trial(structure, minimisation)) is not None:
            result = trial
        else:
            return _WALL, np.zeros((region.system_size, 3))
        assert result.forces is not None  # evaluate was asked for them
        forces = result.forces * FORCE_UNIT
        if region.is_subset:
            everything = np.zeros((region.system_size, 3))
            everything[region.particles] = forces
            forces = everything
        return (0.0 if result.energy is None else result.energy / units.KJ_PER_MOL), forces

    def _trial(self, structure: Structure, minimisation: FrameType) -> Evaluation | None:
        """Evaluate for the minimiser; None where a trial step has left what the model knows.

        The first trial step of the minimiser is long whatever the forces are, and breaks most
        molecules; a step that leads uphill is halved. The start is evaluated or refused: atoms that
        are somewhat too close are accepted there, because a minimisation mends them.
        """
        # A note among the variables of the call ends with it.
        noted = minimisation.f_locals
        limits: Coverage | None = noted.get(self.identity)
        if limits is not None:
            try:
                return self.potential.evaluate([structure], coverage=limits)[0]
            except (InputError, PredictionError):
                return None
        limits = self.potential.coverage
        try:
            structure.check_geometry(limits)
        except InputError:
            limits = Coverage(closest=0.05, gap=np.inf)
        result = self.potential.evaluate([structure], coverage=limits)[0]
        noted[self.identity] = limits
        return result

    def _molecule(
        self, positions: NDArray[np.float64], box: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Whole molecule ``(n, 3)`` nm."""
        region = self.region
        own = positions[region.particles] if region.is_subset else positions
        return own if box is None else make_whole(own, box, region.parents, self._lineage)

    def _check_surroundings(
        self, state: Any, positions: NDArray[np.float64], box: NDArray[np.float64] | None
    ) -> None:
        """Check what is around the force at first, and when it seems to have changed.

        A barostat adds parameters. Those of a Context do not reach a force that is interpolated, so
        that for direct forces, which no barostat may move, a change of the box counts as well.
        """
        fixed = box is None or self.potential.conservative
        seen = [sorted(state.getParameters()), None if fixed else np.asarray(box).tolist()]
        if self._seen == [*seen, *self._extents()]:
            return
        self._systems = check_contexts(self)
        if len(positions) == self.region.system_size:
            molecule = self._molecule(positions, box)
            check_nanometres(molecule)
            check_order(self.region, molecule)
            if not np.array_equal(molecule, positions[self.region.particles]):
                for system in filter(None, (reference() for reference in self._systems)):
                    check_images(system, self.region)
        self._seen = [*seen, *self._extents()]

    def _extents(self) -> list[Any]:
        """Return what there is in the Systems that were checked, if they are still there."""
        systems = (reference() for reference in self._systems)
        return [None if system is None else extent(system) for system in systems]

    def _explained(self, error: Exception, step: int) -> Exception:
        """Return the error with the step, which the potential cannot know."""
        text = str(error) if isinstance(error, MLMDError) else f"{type(error).__name__}: {error}"
        note = ""
        if self.region.is_subset:
            first, last = self.region.particles[[0, -1]]
            note = f" (atoms are counted among the ML atoms, particles {first} to {last})"
        return RuntimeError(f"MD-ET force at step {step}: {text}{note}")

    @property
    def reference(self) -> str:
        """What a stored force holds: JSON of model, checksum, options, region and orientations.

        Raises
        ------
        ModelFileError
            If the model exists in memory only.
        """
        potential, model = self.potential, self.potential.model
        if not model.source:
            raise ModelFileError(
                "a force is stored by the name of its model, and this model exists in memory only; "
                "write it with mlmd_calc.zoo.save_model and make the force from the file"
            )
        return json.dumps(
            {
                "id": self.identity,
                "options": {
                    "model": model.source,
                    "device": self.device,
                    **potential.options,
                },
                "sha256": model.sha256,
                "region": self.region.to_dict(),
                "state": potential.state_dict() if potential.rotation == "random" else None,
            }
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A string and nothing else, so that a reader can tell it from foreign code.
        return _restore, (self.reference,)


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

    def __init__(self, error: Exception, *reference: Any) -> None:
        self.error = error
        self._reference = reference

    def __call__(self, state: Any) -> tuple[float, NDArray[np.float64]]:
        """Raise what went wrong."""
        raise self.error

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, self._reference


def _restore(*reference: Any) -> MDETComputation | MissingComputation:
    """Load the computation that a stored force refers to by `MDETComputation.reference`."""
    try:
        return _load(*reference)
    except Exception as error:
        _LOG.error("a stored MD-ET force cannot be used: %s", error)
        return MissingComputation(error, *reference)


def _load(*reference: Any) -> MDETComputation:
    if len(reference) != 1 or not isinstance(reference[0], str):
        raise ModelFileError(
            "the force was stored by another version of this package; make it anew with "
            "create_force"
        )
    stored = json.loads(reference[0])
    options = stored["options"]
    potential = Potential(**options)
    potential.model.check_unchanged(
        stored["sha256"], "the force was stored with", "make a new force"
    )
    if stored["state"] is not None:
        potential.load_state_dict(stored["state"])
    computation = MDETComputation(potential, Region.from_dict(stored["region"]), options["device"])
    computation.identity = stored["id"]
    return computation


class TensorComputation:
    """Callable for ``openmmtorch.PythonTorchForce``: the same computation on tensors."""

    def __init__(self, computation: MDETComputation) -> None:
        self.computation = computation

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorComputation, (self.computation,)

    def __call__(self, state: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Evaluate positions ``(system_size, 3)`` nm; energy kJ/mol and forces kJ/mol/nm."""
        energy, forces = self.computation.compute(state, positions.detach().double().cpu().numpy())
        return (
            torch.tensor(energy, dtype=positions.dtype, device=positions.device),
            torch.from_numpy(forces).to(positions),
        )


def _check_counted() -> None:
    """Refuse runs whose end OpenMM would never see.

    ``Simulation.step`` ends when the Context has counted the steps, and the kernels that these two
    platforms have for path integrals count none.
    """
    frame = _call_of("_simulate", "openmm.app.simulation")
    if frame is None:
        return
    simulation = frame.f_locals["self"]
    platform = simulation.context.getPlatform().getName()
    if isinstance(simulation.integrator, openmm.RPMDIntegrator) and platform in _UNCOUNTED:
        raise ConfigError(
            f"OpenMM does not count the steps of an RPMDIntegrator on the platform {platform}, so "
            "that Simulation.step would never end; call integrator.step(...) instead, or take the "
            "platform CUDA"
        )


def _minimisation() -> FrameType | None:
    """Call of OpenMM's minimiser that is under way, which alone knows that it minimises."""
    return _call_of("minimize", "openmm.openmm")


def _call_of(function: str, module: str) -> FrameType | None:
    """Call that is under way of a function in Python.

    Where a platform calls back from a thread of its own this cannot be seen.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals["__name__"] == module:
            break
        frame = frame.f_back
    return frame
