"""Methods that label structures other than the one that sampled them.

Geometries come from GFN2-xTB, which is cheap and robust; energies and forces may come from anything
that ASE has a calculator for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any, Final

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlmd_calc.data.gfn2 import gfn2_calculator
from mlmd_calc.errors import ConfigError, InputError, MissingDependencyError, PredictionError
from mlmd_calc.optional import import_object, require

GFN2: Final = "gfn2"
SO3LR: Final = "so3lr"

_SO3LR_CUTOFF: Final = 1000.0
"""Å, beyond any molecule: long-range interactions in vacuum are not cut."""


@cache
def reference_program(name: str) -> str:
    """Return name and version of the package behind a reference method."""
    module = "so3krates_torch" if name == SO3LR else name.partition(":")[0].partition(".")[0]
    # Looks through all that is installed, which takes a good part of a second.
    package = next(iter(packages_distributions().get(module, [module])))
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return module


class Reference:
    """A method that labels structures.

    Parameters
    ----------
    name
        "gfn2", which labels with the calculator that the atoms carry; "so3lr"; or the import path
        of something that returns an ASE calculator, ``package.module:name``. It finds charge and
        multiplicity in ``atoms.info`` ("charge", "spin").
    charge, multiplicity
        Of the molecule.

    Attributes
    ----------
    calculator
        That of the method; None for "gfn2".

    Raises
    ------
    ConfigError
        If there is no such method.
    InputError
        If it does not know the multiplicity.
    MissingDependencyError
        If its package is not installed.
    """

    def __init__(self, name: str, charge: int = 0, multiplicity: int = 1) -> None:
        self.name = name
        self._info = {"charge": charge, "spin": multiplicity}
        if name == SO3LR and multiplicity != 1:
            raise InputError(
                f"multiplicity {multiplicity}; SO3LR knows closed shells only, label with {GFN2!r}"
            )
        self.calculator = None if name == GFN2 else make_calculator(name)

    def evaluate(self, atoms: Atoms) -> tuple[float, NDArray[np.float64]]:
        """Return energy (eV) and forces ``(n, 3)`` (eV/Å) of atoms that carry a GFN2 calculator.

        Raises
        ------
        PredictionError
            If the calculation fails or its result is not finite.
        """
        if self.calculator is not None:
            atoms = Atoms(atoms.numbers, atoms.positions, info=dict(self._info))
            atoms.calc = self.calculator
        try:
            energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces())
        except Exception as error:  # calculators of other people raise whatever they stumble over
            raise PredictionError(
                f"{self.name} failed for {atoms.symbols}: {error}; check the geometry"
            ) from error
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise PredictionError(f"{self.name} gave a non-finite result for {atoms.symbols}")
        return energy, forces.astype(np.float64)


def reference_calculator(name: str, charge: int, multiplicity: int) -> Any:
    """Make the ASE calculator of a reference method for one molecule.

    Raises
    ------
    ConfigError, InputError, MissingDependencyError
        As :class:`Reference`.
    """
    if name == GFN2:
        return gfn2_calculator(charge, multiplicity)
    return Reference(name, charge, multiplicity).calculator


def make_calculator(name: str) -> Any:
    """Make an ASE calculator.

    Parameters
    ----------
    name
        "so3lr", or the import path ``package.module:name`` of something that returns one.

    Raises
    ------
    ConfigError
        If there is no such calculator.
    MissingDependencyError
        If its package is not installed.
    """
    factory = _factory(name)
    try:
        return factory()
    except MissingDependencyError:
        raise
    except Exception as error:  # of other people's code
        raise ConfigError(
            f"reference {name!r} makes no calculator when it is called without arguments: {error}"
        ) from error


def _so3lr() -> Any:
    module = require("so3krates_torch.calculator.so3", extra="so3lr", why="label with SO3LR")
    with warnings.catch_warnings():
        # The package reads its weights with a function of Python that is going away.
        warnings.simplefilter("ignore", DeprecationWarning)
        return module.SO3LRCalculator(r_max_lr=_SO3LR_CUTOFF, default_dtype="float32", device="cpu")


def _factory(name: str) -> Callable[[], Any]:
    """Find what makes the calculator."""
    if name == SO3LR:
        return _so3lr
    made = import_object(name, "reference") if ":" in name else None
    if not callable(made):
        raise ConfigError(
            f"reference {name!r}; choose {GFN2}, {SO3LR} or package.module:name of something that "
            "returns an ASE calculator when it is called"
        )
    result: Callable[[], Any] = made
    return result
