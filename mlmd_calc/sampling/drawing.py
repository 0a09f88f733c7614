"""Frames of a sampling job, drawn, judged and relaxed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.biomolecules import BondedStructure, MolecularSystem, build_system
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.potential import Potential
from mlmd_calc.propagation.atmos import check_molecule, trained_stride_ps
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.sampling.energies import EnergyRecord
from mlmd_calc.sampling.job import SamplingJob
from mlmd_calc.sampling.quality import FrameGuard
from mlmd_calc.sampling.relaxed import Relaxation, RelaxedTrajectories
from mlmd_calc.sampling.rollouts import make_rollout, stride_between
from mlmd_calc.sampling.trajectories import Trajectories
from mlmd_calc.zoo import ATMOSModel, load_atmos

_ROOM_TEMPERATURE_K: Final = 300.0
"""Of relaxations where the card of a model tells no temperature."""

ForceMaker: TypeAlias = Callable[[str, BondedStructure], ForceModel]
"""Makes a force model from a name and the structure that it is for."""


def named_potential(name: str, structure: BondedStructure) -> ForceModel:
    """Load the MD-ET model of a name or file, to relax frames of any structure."""
    return Potential(name)


class Drawing:
    """Draws the frames of a job.

    Parameters
    ----------
    job, structure, make_forces
        See :class:`~mlmd_calc.sampling.SamplingRun`.

    Attributes
    ----------
    job
        The job, with the models where they were found.
    system
        The molecule.
    checksums
        Of the networks.
    notes
        Sentences on what was left out or assumed.
    frames_per_keyframe
        Frames that a keyframe stands for.
    interval_ps
        Time between frames.
    relaxation
        Relaxes frames; None where they are left as they are drawn.
    energies
        Of relaxed frames.
    """

    def __init__(
        self, job: SamplingJob, structure: BondedStructure, make_forces: ForceMaker
    ) -> None:
        model = load_atmos(job.model, device=job.device, dtype=job.dtype)
        fine = None
        if job.interpolator is not None:
            fine = load_atmos(job.interpolator, device=job.device, dtype=job.dtype)
        # Where the run goes on, paths may begin elsewhere.
        job = replace(job, model=model.source, interpolator=None if fine is None else fine.source)
        self.job, self._structure = job, structure
        self.system = build_system(structure, job.ligands)
        self._guard = FrameGuard(self.system, structure, hydrogens=job.relax is None)
        models = [each for each in (model, fine) if each is not None]
        self.checksums = [each.sha256 for each in models]
        found = [
            note for each in models for note in _objections(each, self.system, job.beyond_training)
        ]
        self.notes = [*self.system.notes, *dict.fromkeys(found)]
        if job.relax is None:
            self.notes.append(
                "Energies of single frames are not those of molecular dynamics; relax them "
                "(--relax), or minimise before computing any."
            )
        stride_ps = trained_stride_ps(model, job.stride_ps)
        self.energies = EnergyRecord(job.replicas)
        self.relaxation: Relaxation | None = None
        if job.relax is not None:
            self.relaxation = Relaxation(
                make_forces(job.relax, structure),
                self.system,
                structure,
                self._guard,
                model.card.temperature_K or _ROOM_TEMPERATURE_K,
            )
            self.checksums += _checksums(self.relaxation.forces)
        self._trajectories = self._made(model, fine, stride_ps)
        count = self.frames_per_keyframe = self._trajectories.frames_per_keyframe
        if job.frames % count:
            below = job.frames // count * count
            raise ConfigError(
                f"frames={job.frames} is not a multiple of {count}, the frames of an interval "
                f"between keyframes; choose {f'{below} or ' if below else ''}{below + count}"
            )
        self.interval_ps = stride_ps / count

    def _made(
        self, model: ATMOSModel, fine: ATMOSModel | None, stride_ps: float
    ) -> Trajectories | RelaxedTrajectories:
        job = self.job

        def rollout(which: ATMOSModel, stride_ps: float, redraws: int) -> Rollout:
            options = job.sampler_options()
            return make_rollout(
                which, self.system, self._structure, stride_ps, options, self._guard, redraws
            )

        if self.relaxation is not None:
            # Frames are judged when they are relaxed.
            return RelaxedTrajectories(
                rollout(model, stride_ps, 0),
                self.relaxation,
                self._structure.positions,
                job.replicas,
                job.seed,
                redraws=job.redraws,
            )
        between = None
        if fine is not None:
            between = rollout(fine, stride_between(fine, stride_ps), job.redraws)
        return Trajectories(
            rollout(model, stride_ps, job.redraws),
            self.system.reference,
            job.replicas,
            job.seed,
            interpolator=between,
        )

    def begin(self) -> None:
        """Measure the energies of dynamics, if frames are to be relaxed."""
        if isinstance(self._trajectories, RelaxedTrajectories):
            self._trajectories.measure(self.job.reference_ps, self.job.seed)

    def draw(self, keyframes: int) -> NDArray[np.float64]:
        """Draw frames.

        Returns
        -------
        ndarray
            ``(replicas, f, n, 3)`` Å, with the atoms of the start.

        Raises
        ------
        PredictionError
            See :meth:`~mlmd_calc.sampling.SamplingRun.run`.
        """
        if isinstance(self._trajectories, RelaxedTrajectories):
            positions, energies = self._trajectories.advance(keyframes)
            self.energies.add(energies)
            return positions
        return self.system.restore(self._trajectories.advance(keyframes), self._structure.positions)

    def summary(self) -> dict[str, Any]:
        """Return what was refused, and energies of relaxed frames and of dynamics; JSON-able."""
        energy = None
        if self.relaxation is not None and self.relaxation.window is not None:
            energy = {
                **self.energies.summary(self.relaxation.window),
                "relaxed_again": self.relaxation.again,
                "refused": self.relaxation.refused,
            }
        return {**self._guard.state_dict(), "energy": energy}

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the trajectories go on."""
        return {
            "guard": self._guard.state_dict(),
            "energies": self.energies.state_dict(),
            "trajectories": self._trajectories.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, on the same device to the last bit."""
        self._guard.load_state_dict(state["guard"])
        self._trajectories.load_state_dict(state["trajectories"])
        if self.relaxation is not None:
            self.energies.load_state_dict(state["energies"])


def _checksums(forces: ForceModel) -> list[str]:
    """Checksum of the network behind a force model, if there is one."""
    checksum = getattr(getattr(forces, "model", None), "sha256", None)
    return [] if checksum is None else [checksum]


def _objections(model: ATMOSModel, system: MolecularSystem, beyond_training: bool) -> list[str]:
    """Sentences on what a model does not know of the molecule."""
    found = check_molecule(model, system, beyond_training)
    if model.card.domain is None:
        return [
            f"The card of {model.name!r} does not tell which molecules it "
            "was trained on; whether it knows this one is unknown."
        ]
    return [f"Beyond the training of the model: {objection}." for objection in found]
