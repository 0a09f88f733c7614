"""What a propagator moves, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.errors import InputError
from mlmd_calc.potential import Structure, structure_from_ase

FloatArray: TypeAlias = NDArray[np.float64]
Memory: TypeAlias = Mapping[str, NDArray[Any]]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class State:
    """A molecule at one instant. Its arrays cannot be written to.

    Attributes
    ----------
    positions, velocities
        ``(n, 3)`` Å and Å/fs.
    numbers
        Atomic numbers, ``(n,)``.
    masses
        ``(n,)`` amu, positive.
    time
        fs.
    memory
        What the propagator wants to be given back with the next call, arrays by name; empty at the
        start.
    charge, multiplicity
        Total charge in e and spin multiplicity 2S + 1.
    energy
        Potential energy in eV at these positions, or None if it is not known.
    forces
        ``(n, 3)`` eV/Å, forces of the propagator's potential at these positions, or None if they
        are not known.
    other_forces
        ``(n, 3)`` eV/Å, forces at these positions that the propagator does not know of, or None if
        they are not known.

    Raises
    ------
    InputError
        If shapes do not fit together or a mass is not positive.
    """

    positions: FloatArray
    velocities: FloatArray
    numbers: NDArray[np.int64]
    masses: FloatArray
    time: float = 0.0
    memory: Memory = field(default_factory=dict)
    charge: int = 0
    multiplicity: int = 1
    energy: float | None = None
    forces: FloatArray | None = None
    other_forces: FloatArray | None = None

    def __post_init__(self) -> None:
        n = len(self.numbers)
        for name in ("positions", "velocities", "numbers", "masses"):
            dtype = np.int64 if name == "numbers" else np.float64
            array = np.asarray(getattr(self, name), dtype=dtype)
            shape = (n, 3) if name in ("positions", "velocities") else (n,)
            if array.shape != shape or n == 0:
                raise InputError(
                    f"{name} has shape {array.shape}; for {n} atomic numbers it must be {shape}, "
                    "with at least one atom"
                )
            if array.flags.writeable:
                array = array.copy()
                array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not ((self.masses > 0.0) & np.isfinite(self.masses)).all():
            raise InputError(
                f"masses are {self.masses.tolist()} amu; all must be positive and finite. To hold "
                "an atom in place use a constraint with force-based steps"
            )
        memory = {name: np.asarray(value).view() for name, value in self.memory.items()}
        for view in memory.values():
            view.flags.writeable = False
        object.__setattr__(self, "memory", memory)
        object.__setattr__(self, "_found", {})

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def kinetic_energy(self) -> float:
        """Kinetic energy in eV."""
        speed = self.velocities / units.FS
        return 0.5 * float(self.masses @ (speed * speed).sum(axis=1))

    @property
    def total_energy(self) -> float:
        """Kinetic and potential energy in eV; the latter must be known."""
        assert self.energy is not None
        return self.energy + self.kinetic_energy

    @property
    def kinetic_temperature(self) -> float:
        """Temperature in K of all 3 n degrees of freedom."""
        return 2.0 * self.kinetic_energy / (3 * len(self) * units.KB)

    @property
    def structure(self) -> Structure:
        """The molecule as force models see it."""
        return Structure(self.numbers, self.positions, self.charge, self.multiplicity)

    def once(self, function: Callable[[State], T]) -> T:
        """Return what a function makes of positions and masses alone; it is called once."""
        found: dict[Callable[[State], T], T] = self.__dict__["_found"]
        if function not in found:
            found[function] = function(self)
        return found[function]

    def changed(self, **others: Any) -> State:
        """Return the state with other values of anything but positions and masses.

        What :meth:`once` has found in these is known to both states.
        """
        new = replace(self, **others)
        object.__setattr__(new, "_found", self.__dict__["_found"])
        return new

    def moved_to(self, positions: FloatArray, **others: Any) -> State:
        """Return the state at other positions, where energy and forces are not known."""
        unknown: dict[str, Any] = dict.fromkeys(("energy", "forces", "other_forces"))
        return replace(self, positions=positions, **unknown, **others)

    def to_atoms(self) -> ase.Atoms:
        """Return ASE atoms with momenta; charge and multiplicity are in ``atoms.info``."""
        atoms = ase.Atoms(self.numbers, self.positions, masses=self.masses)
        atoms.set_velocities(self.velocities / units.FS)
        atoms.info.update(charge=self.charge, multiplicity=self.multiplicity)
        return atoms


def state_from_ase(atoms: ase.Atoms) -> State:
    """Read a state from ASE atoms, charge and multiplicity as :func:`structure_from_ase` does.

    Raises
    ------
    InputError
        If the atoms are periodic, or charge or multiplicity are not integers or disagree.
    """
    structure = structure_from_ase(atoms)
    return State(
        positions=structure.positions,
        velocities=atoms.get_velocities() * units.FS,
        numbers=structure.numbers,
        masses=atoms.get_masses(),
        charge=structure.charge,
        multiplicity=structure.multiplicity,
    )


@dataclass(frozen=True, eq=False)
class Frames:
    """What a propagator answers for one molecule.

    Attributes
    ----------
    times
        ``(p,)`` fs since the state it was given, as it was asked for.
    positions
        ``(p, n, 3)`` Å.
    velocities
        ``(p, n, 3)`` Å/fs, or None if the propagator does not predict them.
    memory
        For the call that starts from the last frame.
    """

    times: FloatArray
    positions: FloatArray
    velocities: FloatArray | None
    memory: Memory = field(default_factory=dict)
