"""A force field of one molecule that is fitted to another's forces.

Its energy is a polynomial in internal coordinates, as those of class II force fields (J. R. Maple
et al., J. Comput. Chem. 15, 162 (1994)), but linear in all parameters, so that they follow from a
few hundred structures by least squares within seconds. It is meant for the inner steps of multiple
time stepping, where errors are corrected, and costs a fraction of a millisecond.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import ase
import numpy as np
from ase import units as ase_units
from ase.data import atomic_masses
from ase.md.langevin import Langevin
from numpy.typing import NDArray

from mlmd_calc.bonded.coordinates import InternalCoordinates
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.io.restart import read_restart, write_restart
from mlmd_calc.potential import Evaluation, Structure
from mlmd_calc.propagation.corrections import thermal_speed

_DEGREE: Final = 4
"""Largest degree of the polynomial."""

_NEAR: Final = 3.0
"""Å; atoms that come nearer than this, further than two bonds apart, are a contact."""

_RIDGE: Final = 1e-6
"""Share of the identity in the equations of a fit, whose unknowns are scaled to one."""

LEFT_OUT: Final = 20
"""Structures at the beginning of the dynamics, which warm up and are not fitted to."""

_FITTED_FS: Final = 5.0
_TIMESTEP_FS: Final = 1.0
_FRICTION_PER_FS: Final = 0.02
"""Between structures to fit to, of the dynamics that makes them."""


class BondedForceField:
    """Energy and forces of one molecule near the structures that they were fitted to.

    A force model, as `fast` of :class:`mlmd_calc.md.MTSLangevin` and others takes.

    Parameters
    ----------
    atoms
        The molecule. Elements, and bonds as its positions have them.
    positions
        ``(f, n, 3)`` Å of structures with those bonds.
    forces
        ``(f, n, 3)`` eV/Å, there.

    Attributes
    ----------
    error
        eV/Å, root mean square of what is left of a component of the forces.

    Raises
    ------
    InputError
        If there are no bonds, or fewer forces than parameters.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator
    >>> from mlmd_calc.bonded import BondedForceField
    >>> atoms = molecule("CH3OH")
    >>> atoms.calc = MDETCalculator()
    >>> cheap = BondedForceField.fit(atoms, temperature_K=300, frames=40, seed=1)
    >>> cheap.error < 0.2
    True
    """

    has_energy = True

    def __init__(
        self, atoms: ase.Atoms, positions: NDArray[np.float64], forces: NDArray[np.float64]
    ) -> None:
        bonds = find_bonds(atoms).pairs
        if not len(bonds):
            raise InputError(
                f"{atoms.get_chemical_formula()} has no bonds, which springs could be fitted to"
            )
        self._build(atoms.numbers, bonds, _contacts(bonds, positions))
        shapes = [self._coordinates.values(own) for own in positions]
        self._reference = _reference(self._coordinates, [values for values, _ in shapes])
        if forces.size <= len(self._terms):
            raise InputError(
                f"{len(positions)} structures have {forces.size} forces for {len(self._terms)} "
                "parameters; give more structures, several times as many forces as parameters"
            )
        # Errors heat a molecule by the acceleration that they make.
        weights = np.repeat(1.0 / np.sqrt(atomic_masses[self.numbers]), 3)
        self.weights = np.zeros(len(self._terms))
        self._fit(shapes, forces, weights)
        left = [self.forces(x) - f for x, f in zip(positions, forces, strict=True)]
        self.error = float(np.sqrt(np.mean(np.square(left))))

    @classmethod
    def fit(
        cls,
        atoms: ase.Atoms,
        *,
        temperature_K: float = 300.0,
        frames: int = 200,
        seed: int | None = None,
        on_frame: Callable[[], None] = lambda: None,
    ) -> BondedForceField:
        """Fit to forces of the atoms' calculator along a short Langevin run from where they are.

        Parameters
        ----------
        atoms
            With a calculator. They are not moved.
        temperature_K
            Of the run that the force field is for; it is fitted at a fifth more.
        frames
            Structures to fit to, 5 fs apart; `LEFT_OUT` more at the beginning are left out.
        seed
            Of the run; None for another one every time.
        on_frame
            Called after every structure.

        Raises
        ------
        ConfigError
            If the atoms have no calculator.
        """
        if atoms.calc is None:
            raise ConfigError("the atoms have no calculator, whose forces could be fitted")
        rng = np.random.default_rng(seed)
        walker = atoms.copy()
        walker.calc = atoms.calc
        kelvin = 1.2 * temperature_K
        spread = thermal_speed(walker.get_masses(), kelvin)[:, None]
        walker.set_velocities(spread * rng.standard_normal(walker.positions.shape) / ase_units.fs)
        run = Langevin(
            walker,
            _TIMESTEP_FS * ase_units.fs,
            temperature_K=kelvin,
            friction=_FRICTION_PER_FS / ase_units.fs,
            fixcm=False,
            rng=rng,
        )
        found = []
        for _ in range(frames + LEFT_OUT):
            run.run(round(_FITTED_FS / _TIMESTEP_FS))
            found.append((walker.positions.copy(), walker.get_forces()))
            on_frame()
        positions, forces = (np.array(own[LEFT_OUT:]) for own in zip(*found, strict=True))
        return cls(atoms, positions, forces)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BondedForceField:
        """Read what :meth:`save` wrote, for instance to continue a run in another process.

        Raises
        ------
        ModelFileError
            If the file cannot be read, or is something else.
        """
        try:
            return cls.from_state(read_restart(path))
        except KeyError as error:
            raise ModelFileError(
                f"{path} is no force field that BondedForceField.save wrote: it has no {error}"
            ) from error

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BondedForceField:
        """Make the force field that :meth:`state_dict` is of.

        Raises
        ------
        KeyError
            If the state is of something else.
        """
        field = cls.__new__(cls)
        field._restore(state)
        return field

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file that :meth:`load` reads."""
        write_restart(path, self.state_dict())

    def _build(
        self, numbers: NDArray[np.int64], bonds: NDArray[np.int64], contacts: NDArray[np.int64]
    ) -> None:
        self.numbers, self._bonds, self._contacts = numbers.copy(), bonds, contacts
        self._coordinates = InternalCoordinates(len(numbers), bonds, contacts)
        self._terms = _terms(self._coordinates)

    def evaluate(
        self, structures: Sequence[Structure], properties: Sequence[str] = ("energy", "forces")
    ) -> list[Evaluation]:
        """Evaluate structures of the molecule.

        Energies, in eV, have a zero of their own.

        Raises
        ------
        InputError
            If a structure has other atoms.
        """
        results = []
        for structure in structures:
            if not np.array_equal(structure.numbers, self.numbers):
                raise InputError(
                    "the atoms are not those that the force field was fitted to, "
                    f"{ase.Atoms(self.numbers).get_chemical_formula()}; fit one for them"
                )
            results.append(Evaluation(*self.energy_and_forces(structure.positions)))
        return results

    def energy_and_forces(
        self, positions: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Return the energy in eV and the forces ``(n, 3)`` in eV/Å."""
        values, shape = self._coordinates.values(positions)
        factors = np.append(values - self._reference, 1.0)[self._terms]
        products = factors[:, 0] * factors[:, 1], factors[:, 2] * factors[:, 3]
        energy = float(self.weights @ (products[0] * products[1]))
        slopes = np.stack(
            [
                factors[:, 1] * products[1],
                factors[:, 0] * products[1],
                factors[:, 3] * products[0],
                factors[:, 2] * products[0],
            ],
            axis=1,
        )
        slopes *= self.weights[:, None]
        by_coordinate = np.bincount(
            self._terms.ravel(), slopes.ravel(), minlength=len(self._reference) + 1
        ).astype(np.float64)[:-1]
        return energy, -self._coordinates.pull_back(shape, by_coordinate[:, None])[:, :, 0]

    def forces(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the forces ``(n, 3)`` in eV/Å."""
        return self.energy_and_forces(positions)[1]

    def state_dict(self) -> Mapping[str, Any]:
        """Everything that was fitted, so that a run goes on with the same force field."""
        return {
            "numbers": self.numbers,
            "bonds": self._bonds,
            "contacts": self._contacts,
            "reference": self._reference,
            "weights": self.weights,
            "error": self.error,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what another fit to the same molecule found.

        Raises
        ------
        ConfigError
            If it is of other atoms.
        """
        if not np.array_equal(state["numbers"], self.numbers):
            raise ConfigError(
                "the stored run had a force field of other atoms, with other terms; fit it to the "
                "molecule of the run"
            )
        self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._build(*(np.array(state[name]) for name in ("numbers", "bonds", "contacts")))
        self._reference, self.weights = np.array(state["reference"]), np.array(state["weights"])
        self.error = state["error"]

    def _fit(
        self,
        shapes: Iterable[tuple[NDArray[np.float64], Any]],
        forces: NDArray[np.float64],
        importance: NDArray[np.float64],
    ) -> None:
        """Solve for the weights of the terms."""
        count = len(self._terms)
        normal, target = np.zeros((count, count)), np.zeros(count)
        identity = np.eye(len(self._coordinates))
        rows = np.arange(count)
        for (values, shape), force in zip(shapes, forces, strict=True):
            factors = np.append(values - self._reference, 1.0)[self._terms]
            by_coordinate = np.zeros((count, len(self._reference) + 1))
            for slot in range(_DEGREE):
                others = np.delete(factors, slot, axis=1).prod(axis=1)
                np.add.at(by_coordinate, (rows, self._terms[:, slot]), others)
            jacobian = self._coordinates.pull_back(shape, identity).reshape(force.size, -1)
            design = -(by_coordinate[:, :-1] @ jacobian.T) * importance
            normal += design @ design.T
            target += design @ (importance * force.ravel())
        scale = np.sqrt(np.diag(normal)) + np.finfo(np.float64).tiny
        scaled = normal / np.outer(scale, scale) + _RIDGE * np.eye(count)
        self.weights = np.linalg.solve(scaled, target / scale) / scale


def _contacts(bonds: NDArray[np.integer], positions: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pairs further than two bonds apart that come near in any of the structures."""
    count = positions.shape[1]
    linked = np.zeros((count, count), dtype=bool)
    linked[bonds[:, 0], bonds[:, 1]] = linked[bonds[:, 1], bonds[:, 0]] = True
    linked |= linked @ linked
    first, second = np.triu_indices(count, 1)
    distances = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    chosen = (distances.min(axis=0) < _NEAR) & ~linked[first, second]
    return np.stack([first[chosen], second[chosen]], axis=1)


def _reference(
    coordinates: InternalCoordinates, values: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Mean stretches and bends, about which the polynomial is; zero for the others."""
    reference = np.zeros(len(coordinates))
    for kind in (coordinates.stretches, coordinates.bends):
        reference[kind] = np.mean([own[kind] for own in values], axis=0)
    return reference


def _terms(coordinates: InternalCoordinates) -> NDArray[np.int64]:
    """Coordinates ``(terms, 4)`` whose product each term is; the number of all of them for 1."""
    bends = np.arange(coordinates.bends.start, coordinates.bends.stop)
    twists = np.arange(coordinates.twists.start, coordinates.twists.stop)
    turns = np.arange(coordinates.turns.start, coordinates.turns.stop)
    first_bend, second_bend = bends[coordinates.twist_bends].T
    at_same_atom = [
        pair
        for pair in combinations(range(len(bends)), 2)
        if len(set(coordinates.bend_atoms[list(pair)])) == 1
    ]
    one, two = bends[np.array(at_same_atom, dtype=np.int64).reshape(-1, 2)].T
    left, right = coordinates.bend_bonds.T
    terms: list[tuple[NDArray[np.int64], ...]] = [(left, right), (left, bends), (right, bends)]
    terms += [(one, two), (first_bend, second_bend), (twists, turns)]
    terms += [(twists, first_bend), (twists, second_bend), (twists, first_bend, second_bend)]
    terms += [(twists, bond) for bond in coordinates.twist_bonds.T]
    for kind, degree in (
        (coordinates.stretches, 4),
        (coordinates.bends, 3),
        (coordinates.twists, 3),
        (coordinates.turns, 1),
        (coordinates.pyramids, 2),
        (coordinates.contacts, 1),
    ):
        own = np.arange(kind.start, kind.stop)
        terms += [(own,) * power for power in range(1, degree + 1)]
    padded = []
    for factors in terms:
        one_each = np.full((len(factors[0]), _DEGREE), len(coordinates), dtype=np.int64)
        one_each[:, : len(factors)] = np.stack(factors, axis=1)
        padded.append(one_each)
    return np.concatenate(padded)
