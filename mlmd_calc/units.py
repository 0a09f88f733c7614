"""Units and physical constants: the only place where a conversion factor is written.

The package works in ASE units (Å, eV, amu). Networks work in the units they were trained in;
MD-ET in atomic units. ``MDET_*`` are the constants of the MD-ET authors' calculator, which differ
from CODATA in the ninth digit; using them reproduces published models exactly.
"""

from __future__ import annotations

from typing import Final

import ase.units

MDET_BOHR: Final = 0.529177249
"""Å per Bohr in the MD-ET reference calculator."""

MDET_HARTREE: Final = 27.211386245988
"""eV per Hartree in the MD-ET reference calculator."""

MDET_FORCE: Final = MDET_HARTREE / MDET_BOHR
"""eV/Å per Hartree/Bohr."""

MDET_HESSIAN: Final = MDET_HARTREE / MDET_BOHR**2
"""eV/Å² per Hartree/Bohr²."""

FS: Final[float] = ase.units.fs
"""One femtosecond in ASE time units."""

PS: Final = 1e3 * FS
"""One picosecond in ASE time units."""

FS_PER_PS: Final = 1e3
"""Femtoseconds per picosecond."""

FS_PER_NS: Final = 1e6
"""Femtoseconds per nanosecond."""

SECONDS_PER_DAY: Final = 86400.0
"""Seconds per day."""

SECONDS_PER_HOUR: Final = 3600.0
"""Seconds per hour."""

KB: Final[float] = ase.units.kB
"""Boltzmann constant, eV/K."""

KCAL_PER_MOL: Final[float] = ase.units.kcal / ase.units.mol
"""One kcal/mol in eV."""

HARTREE: Final[float] = ase.units.Hartree
"""One Hartree in eV (CODATA, from ASE)."""

BOHR: Final[float] = ase.units.Bohr
"""One Bohr in Å (CODATA, from ASE)."""

MEV: Final = 1e-3
"""One meV in eV."""

PER_CM: Final[float] = 1e15 / (100.0 * ase.units._c)
"""Wavenumber in 1/cm of one oscillation per femtosecond."""

NM: Final[float] = ase.units.nm
"""One nanometre in Å."""

KJ_PER_MOL: Final = ase.units.kJ / ase.units.mol
"""One kJ/mol in eV."""
