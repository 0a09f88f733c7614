"""Labels of GFN2-xTB, the reference method, as implemented by tblite.

C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 2019, 15, 1652. Electronic temperature
300 K. Without spin polarisation the multiplicity decides the occupation of orbitals only, so that
it puts singlet dioxygen below the triplet: compare energies within one multiplicity.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorError
from numpy.typing import NDArray

from mlmd_calc.electrons import ElectronicState, check_parity
from mlmd_calc.errors import InputError, PredictionError
from mlmd_calc.optional import require

METHOD: Final = "GFN2-xTB"
"""Level of theory."""

ACCURACY: Final = 0.1
"""tblite's ``accuracy``: ten times tighter thresholds than its default, so that the energy of
microcanonical trajectories is conserved to well below 1 meV/atom."""


def gfn2_version() -> str:
    """Return name and version of the program that labels.

    Raises
    ------
    MissingDependencyError
        If tblite is not installed.
    """
    require("tblite.interface", extra="data", why="label structures with GFN2-xTB")
    return f"tblite {version('tblite')}"


def gfn2_calculator(charge: int, multiplicity: int) -> Any:
    """Return an ASE calculator of GFN2-xTB.

    Every call starts from the same guess of the density, so that a label depends on the structure
    only and not on what was calculated before it. Threads are those of the process
    (``OMP_NUM_THREADS``).

    Parameters
    ----------
    charge, multiplicity
        Total charge in e and 2S + 1.

    Raises
    ------
    MissingDependencyError
        If tblite is not installed.
    """
    tblite = require("tblite.ase", extra="data", why="label structures with GFN2-xTB")
    return tblite.TBLite(
        method=METHOD,
        charge=charge,
        multiplicity=multiplicity,
        accuracy=ACCURACY,
        cache_api=False,
        verbosity=0,
    )


def evaluate(atoms: Atoms) -> tuple[float, NDArray[np.float64]]:
    """Return energy (eV) and forces ``(n, 3)`` (eV/Å) of atoms that carry its calculator.

    Raises
    ------
    PredictionError
        If the self-consistent field does not converge or the result is not finite.
    """
    try:
        energy = float(atoms.get_potential_energy())
        forces = np.array(atoms.get_forces())
    except CalculatorError as error:
        raise PredictionError(
            f"{METHOD} failed for {atoms.symbols}: {error}; check the geometry"
        ) from error
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise PredictionError(f"{METHOD} gave a non-finite result for {atoms.symbols}")
    return energy, forces


def label(
    numbers: Sequence[int] | NDArray[np.integer],
    positions: NDArray[np.floating],
    charge: int = 0,
    multiplicity: int = 1,
) -> tuple[float, NDArray[np.float64]]:
    """Label one structure.

    Parameters
    ----------
    numbers
        Atomic numbers, ``(n,)``.
    positions
        ``(n, 3)`` Å.
    charge, multiplicity
        Total charge in e and 2S + 1.

    Returns
    -------
    energy, forces
        Total energy in eV, and forces ``(n, 3)`` in eV/Å.

    Raises
    ------
    InputError
        If shapes do not fit, a position is not finite, or the multiplicity is impossible.
    PredictionError
        If the calculation fails.
    MissingDependencyError
        If tblite is not installed.
    """
    numbers = np.asarray(numbers)
    if numbers.ndim != 1 or len(numbers) == 0 or positions.shape != (len(numbers), 3):
        raise InputError(
            f"numbers {numbers.shape} and positions {positions.shape} do not fit; expected (n,) "
            "and (n, 3) with n > 0"
        )
    if not np.isfinite(positions).all():
        raise InputError("positions are not finite")
    atoms = Atoms(numbers, positions)
    state = ElectronicState(charge, multiplicity)
    check_parity(f"{atoms.symbols}: ", int(numbers.sum()), state)
    atoms.calc = gfn2_calculator(charge, multiplicity)
    return evaluate(atoms)
