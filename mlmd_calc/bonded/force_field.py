"""A force field of one molecule that is fitted to another's forces.

Its energy is a polynomial in internal coordinates, as those of class II force fields (J. R. Maple
et al., J. Comput. Chem. 15, 162 (1994)), but linear in all parameters, so that they follow from a
few hundred structures by least squares within seconds; where wanted, a small network of the same
coordinates learns what the polynomial leaves over. Methyl groups and their like may turn
(:mod:`mlmd_calc.bonded.rotors`). It is meant for the inner steps of multiple time stepping, where
errors are corrected, and costs some ten microseconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import ase
import numpy as np
from ase.data import atomic_masses
from numpy.typing import NDArray

from mlmd_calc.bonded.arrangement import check_arrangement, senses_of
from mlmd_calc.bonded.coordinates import InternalCoordinates
from mlmd_calc.bonded.kernels import add_polynomial, add_pulled_back
from mlmd_calc.bonded.network import ResidualNetwork
from mlmd_calc.bonded.polynomial import fit_weights, reference_of, terms_of
from mlmd_calc.bonded.rotors import Rotors
from mlmd_calc.bonded.sampling import Frame, stride, walk
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.geometry.constraints import acting_constraints
from mlmd_calc.io.restart import read_restart, write_restart
from mlmd_calc.options import positive_number, whole_number
from mlmd_calc.potential import Evaluation, Structure

_NEAR: Final = 3.0
"""Å; atoms that come nearer than this, further than two bonds apart, are a contact."""

LEFT_OUT: Final = 20
"""Structures at the beginning of the dynamics, which warm up and are not fitted to."""

_FIRST: Final = 200
"""Structures after which a polynomial alone takes over the small steps of the dynamics."""

NETWORK_FRAMES: Final = 1600
NETWORK_NEURONS: Final = 128
"""Structures and neurons of a fit whose long steps are mostly accepted."""

_WARMER: Final = 1.2
_HOTTER: Final = 2.0
"""Temperatures that structures are taken from, over that of the run they are for."""


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
    neurons
        Of each of the two layers of a network of the same coordinates, which is fitted to what the
        polynomial leaves over; 0 for none.
    seed
        Of the network's training.

    Attributes
    ----------
    error
        eV/Å, root mean square of what is left of a component of the forces.

    Raises
    ------
    ConfigError
        If the number of neurons is negative.
    InputError
        If there are no bonds, fewer forces than parameters, or arrays do not fit the atoms or are
        not finite.

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
        self,
        atoms: ase.Atoms,
        positions: NDArray[np.float64],
        forces: NDArray[np.float64],
        *,
        neurons: int = 0,
        seed: int = 0,
    ) -> None:
        whole_number("neurons", neurons, 0)
        bonds = _bonds(atoms)
        _check_structures(len(atoms), positions, forces)
        self._rotors = Rotors.find(atoms.numbers, bonds, positions)
        positions, forces = self._rotors.fold(positions, forces)
        self._build(atoms.numbers, bonds, _contacts(bonds, positions))
        self._senses = senses_of(len(atoms), bonds, positions)
        if forces.size <= len(self._terms):
            raise InputError(
                f"{len(positions)} structures have {forces.size} forces for {len(self._terms)} "
                "parameters; give more structures, several times as many forces as parameters"
            )
        # Errors heat a molecule by the acceleration that they make.
        importance = np.repeat(1.0 / np.sqrt(atomic_masses[self.numbers]), 3)
        shapes = zip(*map(self._coordinates.linearised, positions), strict=True)
        values, derivatives = (np.stack(own) for own in shapes)
        self._reference = reference_of(self._coordinates, values)
        self._network: ResidualNetwork | None = None
        factors = [np.append(own - self._reference, 1.0) for own in values]
        self.weights = fit_weights(self._terms, np.array(factors), derivatives, forces, importance)
        if neurons:
            left = forces - self._all_forces(positions)
            self._network = ResidualNetwork.fit(
                values, derivatives, left, importance, neurons, seed
            )
        left = forces - self._all_forces(positions)
        self.error = float(np.sqrt(np.mean(np.square(left))))

    @classmethod
    def fit(
        cls,
        atoms: ase.Atoms,
        *,
        temperature_K: float = 300.0,
        frames: int = 200,
        neurons: int = 0,
        seed: int | None = None,
        on_frame: Callable[[], None] = lambda: None,
    ) -> BondedForceField:
        """Fit to forces of the atoms' calculator along a short Langevin run from where they are.

        Parameters
        ----------
        atoms
            With a calculator. They are not moved.
        temperature_K
            Of the run that the force field is for. Structures are taken at a fifth more; of those
            after the first 200 of a fit with a network, half are taken at twice as much.
        frames
            Structures to fit to, 5 fs apart, 12 fs after the first 200 of a fit with a network;
            `LEFT_OUT` more at the beginning are left out.
        neurons
            Of each of the two layers of the network, 0 for none. It wants 1,000 and more frames.
        seed
            Of the run and of the network; None for another run every time.
        on_frame
            Called after every structure.

        Raises
        ------
        ConfigError
            If the atoms have no calculator, or a number is not allowed.
        InputError
            As for the class, and if the atoms carry constraints.
        """
        if atoms.calc is None:
            raise ConfigError("the atoms have no calculator, whose forces could be fitted")
        positive_number("temperature_K", temperature_K)
        whole_number("frames", frames, 1)
        _check_free(atoms)
        rng = np.random.default_rng(seed)
        walker = atoms.copy()
        walker.calc = atoms.calc

        def collect(source: Iterator[Frame], count: int) -> list[Frame]:
            found = []
            for frame in islice(source, count):
                found.append(frame)
                on_frame()
            return found

        kelvin = _WARMER * temperature_K
        first = min(frames, _FIRST) if neurons else frames
        found = collect(walk(walker, kelvin, rng), first + LEFT_OUT)[LEFT_OUT:]
        rest = frames - first
        if rest:
            cheap = cls(atoms, *_stacked(found)).forces
            found += collect(stride(walker, cheap, kelvin, rng), rest // 2)
            hot = stride(walker, cheap, _HOTTER * temperature_K, rng)
            found += collect(hot, rest - rest // 2)
        return cls(atoms, *_stacked(found), neurons=neurons, seed=0 if seed is None else seed)

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
                f"{path} is not a force field that BondedForceField.save wrote: it has no {error}"
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
        self._terms = terms_of(self._coordinates)

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
        positions = np.ascontiguousarray(positions, dtype=np.float64)
        order = self._rotors.order(positions)
        if order is not None:
            positions = positions[order]
        values, units = self._coordinates.values(positions)
        factors = np.append(values - self._reference, 1.0)
        slopes = np.zeros_like(factors)
        energy = add_polynomial(self._terms, self.weights, factors, slopes)
        if self._network is not None:
            energy += self._network.add_slopes(values, slopes)
        gradient = np.zeros_like(positions)
        add_pulled_back(self._coordinates.topology, positions, values, units, slopes, gradient)
        if order is not None:
            gradient[order] = gradient.copy()
        return energy, -gradient

    def forces(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the forces ``(n, 3)`` in eV/Å."""
        return self.energy_and_forces(positions)[1]

    def check_start(self, atoms: ase.Atoms) -> None:
        """Refuse to begin a run with atoms that stand elsewhere than those of the fit.

        Raises
        ------
        InputError
            If they are in another order, or two of them have each other's place.
        """
        # Other elements are refused wherever forces are asked for.
        if np.array_equal(atoms.numbers, self.numbers):
            check_arrangement(self.numbers, self._bonds, self._senses, atoms.positions)

    def _all_forces(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([self.forces(own) for own in positions])

    def state_dict(self) -> Mapping[str, Any]:
        """Everything that was fitted, so that a run goes on with the same force field."""
        return {
            "numbers": self.numbers,
            "bonds": self._bonds,
            "contacts": self._contacts,
            "senses": self._senses,
            "rotors": self._rotors.atoms,
            "middles": self._rotors.middles,
            "reference": self._reference,
            "weights": self.weights,
            "error": self.error,
            "network": None if self._network is None else self._network.weights,
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
        # Runs of earlier versions have none.
        self._senses = np.array(state.get("senses", np.zeros((0, 5))), dtype=np.int64)
        self._rotors = Rotors(*(np.array(state[name]) for name in ("rotors", "middles")))
        self._reference, self.weights = np.array(state["reference"]), np.array(state["weights"])
        self.error = state["error"]
        network = state.get("network")
        self._network = None if network is None else ResidualNetwork(network)


def _stacked(frames: Sequence[Frame]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    positions, forces = (np.array(own) for own in zip(*frames, strict=True))
    return positions, forces


def _bonds(atoms: ase.Atoms) -> NDArray[np.int64]:
    bonds = find_bonds(atoms).pairs
    if not len(bonds):
        raise InputError(
            f"{atoms.get_chemical_formula()} has no bonds, which springs could be fitted to"
        )
    return bonds


def _check_free(atoms: ase.Atoms) -> None:
    """Refuse, before a run is made, what has no bonds, and atoms that are held."""
    _bonds(atoms)
    if held := acting_constraints(atoms):
        raise InputError(
            f"the atoms carry the constraints {held}, and what holds them would be "
            "fitted as if it were forces; remove them with atoms.set_constraint()"
        )


def _check_structures(
    count: int, positions: NDArray[np.float64], forces: NDArray[np.float64]
) -> None:
    """Refuse structures of other atoms, and what is not a number."""
    if positions.ndim != 3 or positions.shape[1:] != (count, 3) or forces.shape != positions.shape:
        raise InputError(
            f"positions have shape {positions.shape} and forces {forces.shape}; both must be "
            f"(structures, {count}, 3)"
        )
    if not (np.isfinite(positions).all() and np.isfinite(forces).all()):
        raise InputError("positions or forces are not finite; leave those structures out")


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
