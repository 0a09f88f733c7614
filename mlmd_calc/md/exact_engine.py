"""Exact ensembles as recorded runs: each step a trajectory that the target accepts or rejects."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final

import ase
import numpy as np

from mlmd_calc import units
from mlmd_calc.md.engine import DynamicsState, Measured
from mlmd_calc.md.exact import ExactNVT
from mlmd_calc.md.force_source import Forces
from mlmd_calc.md.record import Description

FAR_FRAMES_FILE: Final = "far_frames.traj"
"""Where the proposal went wrong, labelled by the target."""


class ExactSteps:
    """Steps of a run that samples the exact ensemble of a target.

    Parameters
    ----------
    atoms
        Moves; its calculator makes the trajectories.
    description
        What the run is.
    folder
        Folder of the run, which need not be there yet.
    rng
        Source of randomness.
    target
        Whose ensemble is sampled.

    Attributes
    ----------
    sampler
        Does the steps.

    Raises
    ------
    ConfigError, InputError, PredictionError
        As :class:`mlmd_calc.md.ExactNVT`, or if the target cannot evaluate the start.
    """

    loop: ClassVar[None] = None

    def __init__(
        self,
        atoms: ase.Atoms,
        description: Description,
        folder: Path,
        rng: np.random.Generator,
        target: Forces,
    ) -> None:
        settings = description.settings
        assert settings.exact is not None
        self._atoms = atoms
        # The sampler shows the energies of the target on atoms of its own.
        own = atoms.copy()
        # Calculators of other people look for the multiplicity under this name.
        own.info = {**description.info, "spin": description.info["multiplicity"]}
        self.sampler = ExactNVT(
            own,
            settings.timestep_fs * units.FS,
            target,
            atoms.calc,
            temperature_K=settings.temperature_K,
            trajectory_steps=settings.exact.trajectory_steps,
            friction=settings.rate_per_ps / units.PS,
            warmup=settings.exact.warmup,
            rng=rng,
        )
        # Now that nothing is refused any more; the file is written when there is a frame for it.
        # Force models, which have no list of properties, all know forces.
        if "forces" in getattr(target, "implemented_properties", ("forces",)):
            self.sampler.frames_file = folder / FAR_FRAMES_FILE

    @property
    def acceptance(self) -> float | None:
        """Fraction of trajectories accepted after the warm-up; None before the first."""
        return self.sampler.acceptance if len(self.sampler.samples) else None

    def begin(self) -> None:
        """Have nothing to do: the sampler has read the atoms."""

    def step(self) -> None:
        """Propose a trajectory."""
        self.sampler.step()
        self._atoms.set_positions(self.sampler.atoms.positions)
        self._atoms.set_momenta(self.sampler.atoms.get_momenta())

    def measure(self) -> list[Measured]:
        """Return the energy of the target, which is known."""
        return [Measured(float(self.sampler.atoms.get_potential_energy()))]

    def state_dict(self) -> DynamicsState:
        """Return the state of the sampler."""
        return DynamicsState({}, self.sampler.state_dict())

    def load_state_dict(self, state: DynamicsState) -> None:
        """Go on from :meth:`state_dict`.

        Raises
        ------
        ModelFileError
            If the target gives another energy than it did then, or frames are missing.
        """
        self.sampler.load_state_dict(state.thermostat)
