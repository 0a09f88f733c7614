"""Proposed jumps are judged: by their motion, then by their energy, and corrected in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.propagation.bookkeeping import Logbook, Molecule
from mlmd_calc.propagation.other_forces import kicked, with_other_forces
from mlmd_calc.propagation.proposals import Finding, Proposal, Rejected
from mlmd_calc.propagation.setup import Setup
from mlmd_calc.propagation.state import State


class Judge:
    """Judges and corrects proposed jumps.

    Parameters
    ----------
    setup
        How jumps are made.
    log
        Where findings that change nothing are recorded.
    """

    def __init__(self, setup: Setup, log: Logbook) -> None:
        self._setup = setup
        self._log = log

    def judge(
        self, molecules: list[Molecule], proposals: list[Proposal | Rejected], *, kick: bool = False
    ) -> list[Proposal | Rejected]:
        """Judge jumps by their ends, correct those that pass, and give them the kick after them.

        Frames inside a jump are corrected like its end, except for the energy, which is not known.

        Parameters
        ----------
        molecules, proposals
            Whose jumps, and the jumps.
        kick
            Whether forces that the propagator does not know act on the end of the jumps.
        """
        results = [
            self._judge_motion(molecule, proposal) if isinstance(proposal, Proposal) else proposal
            for molecule, proposal in zip(molecules, proposals, strict=True)
        ]
        if kick:
            results = self._completed(molecules, results, self._kicked_after)
        if self._setup.needs_energy:
            results = self._completed(molecules, results, self._judged_by_energy)
        return results

    def with_other_forces(self, states: list[State]) -> list[State]:
        """Evaluate what acts besides the propagator's potential."""
        forces, potential = self._setup.forces, self._setup.propagator.potential
        assert forces is not None
        assert potential is not None
        return with_other_forces(states, forces, potential)

    def _judge_motion(self, molecule: Molecule, proposal: Proposal) -> Proposal | Rejected:
        after = proposal.after
        wrong = sum(
            int(np.count_nonzero(~np.isfinite([state.positions, state.velocities])))
            for state in (*proposal.inner, after)
        )
        if wrong:
            reason = f"{wrong} coordinates and velocities are not finite"
            return Rejected(Finding("finite", wrong, 0.0, reason), after.positions)
        rejected = self._run_checks(molecule, proposal, with_energy=False)
        if rejected is not None:
            return rejected
        correct = self._setup.corrections.apply
        return replace(
            proposal,
            after=correct(proposal.before, after),
            inner=tuple(correct(proposal.before, state) for state in proposal.inner),
        )

    def _run_checks(
        self, molecule: Molecule, proposal: Proposal, *, with_energy: bool
    ) -> Rejected | None:
        for check in molecule.checks:
            finding = check.judge(proposal) if check.needs_energy == with_energy else None
            if finding is None:
                continue
            rejected = Rejected(finding, proposal.after.positions)
            if finding.action != "accept":
                return rejected
            self._log.record(molecule.index, proposal.before, rejected, "accept")
        return None

    def _completed(
        self,
        molecules: list[Molecule],
        results: list[Proposal | Rejected],
        complete: Callable[[list[Molecule], list[Proposal]], list[Proposal | Rejected]],
    ) -> list[Proposal | Rejected]:
        """Do something that needs forces to the jumps that have passed so far."""
        passed = [
            (molecule, result)
            for molecule, result in zip(molecules, results, strict=True)
            if isinstance(result, Proposal)
        ]
        if not passed:
            return results
        try:
            jumps = [jump for _, jump in passed]
            done = iter(complete([molecule for molecule, _ in passed], jumps))
        except ConfigError:
            raise
        except Exception as error:
            if len(results) > 1:
                # One of them is to blame.
                return [
                    self._completed([molecule], [result], complete)[0]
                    for molecule, result in zip(molecules, results, strict=True)
                ]
            molecule, jump = passed[0]
            reason = f"energy or forces cannot be evaluated: {error}"
            rejected = Rejected(Finding("energy", np.nan, np.nan, reason), jump.after.positions)
            if isinstance(error, (InputError, PredictionError)):
                return [rejected]
            self._log.record(molecule.index, jump.before, rejected, "raise")
            raise
        return [next(done) if isinstance(result, Proposal) else result for result in results]

    def _kicked_after(
        self, molecules: list[Molecule], jumps: list[Proposal]
    ) -> list[Proposal | Rejected]:
        """Let what the propagator does not know act after the jumps, as it did before them."""
        afters = self.with_other_forces([jump.after for jump in jumps])
        return [
            replace(jump, after=kicked(after, 0.5 * jump.stride))
            for jump, after in zip(jumps, afters, strict=True)
        ]

    def _judged_by_energy(
        self, molecules: list[Molecule], jumps: list[Proposal]
    ) -> list[Proposal | Rejected]:
        """Evaluate, judge and correct the energies of jumps."""
        afters = self._setup.with_energies([jump.after for jump in jumps])
        return [
            self._judge_energy(molecule, replace(jump, after=after))
            for molecule, jump, after in zip(molecules, jumps, afters, strict=True)
        ]

    def _judge_energy(self, molecule: Molecule, proposal: Proposal) -> Proposal | Rejected:
        after, total, corrections = proposal.after, molecule.total, self._setup.corrections
        assert total is not None
        proposal = replace(proposal, energy_error=after.total_energy - total)
        rejected = self._run_checks(molecule, proposal, with_energy=True)
        if rejected is not None or not corrections.rescale_energy:
            return rejected or proposal
        scaled = corrections.rescale(after, total)
        if scaled is None and self._setup.thermostat is not None:
            # Near a turning point of a small molecule; the thermostat mends what little it is.
            return proposal
        if scaled is None:
            potential = float(after.energy or 0.0)
            reason = (
                f"the potential energy {potential:.6g} eV leaves no kinetic energy to internal "
                f"motion at a total energy of {total:.6g} eV"
            )
            return Rejected(Finding("energy", potential, total, reason), after.positions)
        return replace(proposal, after=scaled)
