"""An OpenMM Context of one isolated molecule under the forces of its MD-ET calculator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import ase
import numpy as np
import openmm
from numpy.typing import NDArray

from mlmd_calc import MDETCalculator, units
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.potential import structure_from_ase
from openmm_bridge.computation import FORCE_UNIT, MDETComputation
from openmm_bridge.forces import wrap
from openmm_bridge.region import region_from_structure

VELOCITY_UNIT: Final = units.NM / units.PS
"""ASE's unit of velocity per nm/ps."""

_ANSWER: Final = ("openmm_positions", "openmm_energy", "openmm_forces")
"""Entries of a run's results: what the force answered last, and where."""


class MoleculeContext:
    """A molecule in OpenMM; its force is not evaluated twice at the same positions.

    Parameters
    ----------
    atoms
        The molecule, with an :class:`mlmd_calc.MDETCalculator`.
    integrator
        Moves it.
    options
        Names of the ``platform`` and the ``backend``.

    Attributes
    ----------
    context
        The Context.
    computation
        What the force calls; None if that is compiled.
    """

    def __init__(self, atoms: ase.Atoms, integrator: Any, options: Mapping[str, str]) -> None:
        self.atoms = atoms
        calculator: MDETCalculator = atoms.calc
        structure = structure_from_ase(atoms, calculator.charge, calculator.multiplicity)
        computation = _Remembering(calculator.potential, region_from_structure(structure))
        compiled = options["backend"] == "torchscript"
        self.computation = None if compiled else computation
        self._resumable = not compiled or calculator.potential.rotation != "random"
        system = openmm.System()
        for mass in atoms.get_masses():
            system.addParticle(mass)
        system.addForce(wrap(computation, options["backend"]))
        self.context = openmm.Context(system, integrator, *find_platform(options["platform"]))

    @property
    def has_energy(self) -> bool:
        """Whether the model has an energy."""
        return "energy" in self.atoms.calc.implemented_properties

    def place(self) -> None:
        """Put the atoms where they are, and remember what the calculator has answered there."""
        positions = self.atoms.positions / units.NM
        self.context.setPositions(positions)
        if self.computation is not None:
            results = self.atoms.calc.results
            energy = float(results.get("energy", 0.0)) / units.KJ_PER_MOL
            self.computation.remember(positions, energy, results["forces"] * FORCE_UNIT)

    def read(self, **what: bool) -> openmm.State:
        """Read a State; raises as :meth:`errors`."""
        with self.errors():
            return self.context.getState(**what)

    def follow(self) -> None:
        """Bring the atoms to the positions and velocities of the Context."""
        state = self.read(getPositions=True, getVelocities=True)
        self.atoms.positions = state.getPositions(asNumpy=True)._value * units.NM
        self.atoms.set_velocities(state.getVelocities(asNumpy=True)._value * VELOCITY_UNIT)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise what the model raised instead of OpenMM's repetition of its message."""
        try:
            yield
        except openmm.OpenMMException as error:
            if self.computation is not None and self.computation.raised is not None:
                raise self.computation.raised from None
            # TorchScript shows its source before the message.
            raise PredictionError(str(error).strip().split("\n")[-1]) from error

    def state_dict(self) -> dict[str, Any]:
        """Return what the force has answered last; nothing if it is compiled."""
        if self.computation is None:
            return {}
        return dict(zip(_ANSWER, self.computation.last(), strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the force answer again as in :meth:`state_dict`."""
        if self.computation is not None:
            positions, energy, forces = (state[name] for name in _ANSWER)
            self.computation.remember(positions, float(energy), forces)

    def check_resumable(self) -> None:
        """Refuse to go on where the state of the random orientations is not known.

        Raises
        ------
        ConfigError
            If they are drawn inside OpenMM.
        """
        if not self._resumable:
            raise ConfigError(
                "the random orientations of backend='torchscript' are inside OpenMM and cannot be "
                "continued; start a new run, with the back end 'python' if it is to be resumed"
            )


class _Remembering(MDETComputation):
    """A computation that is not repeated at the same positions, as in an ASE calculator.

    The energy of a recorded frame then costs nothing and belongs to the forces that move the atoms,
    and what is recorded does not change the sequence of random orientations.
    """

    _last: tuple[NDArray[np.float64], float, NDArray[np.float64]]
    raised: BaseException | None = None
    """What ended the last evaluation, Ctrl-C included: OpenMM repeats at most its message."""

    def remember(
        self, positions: NDArray[np.float64], energy: float, forces: NDArray[np.float64]
    ) -> None:
        """Answer with this, in OpenMM's units, as long as the positions are the same."""
        self._last = positions, energy, forces

    def last(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return positions, energy and forces of the last evaluation, in OpenMM's units."""
        positions, energy, forces = self._last
        return positions, np.array(energy), forces

    def compute(
        self, state: Any, positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Evaluate positions unless they are those of the last evaluation."""
        if not np.array_equal(positions, self._last[0]):
            try:
                self.remember(positions.copy(), *self.evaluate(positions, None))
            except BaseException as error:
                self.raised = error
                raise
        return self._last[1:]


def find_platform(name: str) -> tuple[openmm.Platform, dict[str, str]]:
    """Find a platform, and its properties for one molecule in full precision.

    Raises
    ------
    ConfigError
        If OpenMM does not offer it here.
    """
    names = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    if name not in names:
        raise ConfigError(
            f"platform={name!r}; OpenMM offers {', '.join(names)} here. `mlmd doctor` says why "
            "others cannot be loaded"
        )
    platform = openmm.Platform.getPlatformByName(name)
    properties = {"Precision": "double", "Threads": "1"}
    known = platform.getPropertyNames()
    return platform, {key: value for key, value in properties.items() if key in known}
