"""Labels of GFN2-xTB, the reference method, as implemented by tblite.

C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 2019, 15, 1652. Electronic temperature
300 K. Without spin polarisation the multiplicity decides the occupation of orbitals only, so that
it puts singlet dioxygen below the triplet: compare energies within one multiplicity.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

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
