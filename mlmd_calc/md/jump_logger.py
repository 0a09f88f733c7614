"""Log of dynamics made of jumps."""

from __future__ import annotations

from typing import IO, Any

import ase
from ase.md.logger import MDLogger
from ase.md.md import MolecularDynamics

from mlmd_calc import units


class JumpLogger(MDLogger):
    """Log of a jump run: never evaluates anything, and counts interventions.

    Energies are those that the run has evaluated anyway, else "-". For energies at every line
    attach :class:`ase.md.MDLogger`, which evaluates them.

    Parameters
    ----------
    dyn
        The dynamics, :class:`mlmd_calc.md.JumpNVE` or ``JumpNVT``.
    atoms
        Its atoms.
    logfile
        File name or open file, "-" for standard output.
    """

    def __init__(self, dyn: MolecularDynamics, atoms: ase.Atoms, logfile: IO[str] | str) -> None:
        super().__init__(dyn, atoms, logfile, header=False)
        self.logfile.write(
            f"{'Time[ps]':<10}{'Etot[eV]':>14}{'Epot[eV]':>14}{'Ekin[eV]':>12}{'T[K]':>9}"
            f"{'redrawn':>9}{'fallback':>9}\n"
        )

    def __call__(self) -> None:
        """Write a line."""
        atoms: ase.Atoms = self.atoms
        dyn: Any = self.dyn
        kinetic = atoms.get_kinetic_energy()
        potential = dyn.loop.states[0].energy
        energies = [f"{'-':>14}"] * 2
        if potential is not None:
            energies = [f"{potential + kinetic:>14.4f}", f"{potential:>14.4f}"]
        counts = dyn.events.counts()
        self.logfile.write(
            f"{dyn.get_time() / units.PS:<10.4f}{''.join(energies)}{kinetic:>12.4f}"
            f"{atoms.get_temperature():>9.1f}"
            f"{counts['redraw'] + counts['shorter']:>9d}{counts['fallback']:>9d}\n"
        )
        self.logfile.flush()
