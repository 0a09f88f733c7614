"""Runs of jumps at several frictions and at constant energy, beside force-based runs.

What a user wants to know before a long run: from which friction on does a propagator keep the
temperature, in all and of each element, does it sample the right potential energies, and how often
does its guard have to help.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.accuracy import spread_index
from mlmd_calc.analysis.distances import (
    Counts,
    distance_counts,
    distance_difference,
    half_difference,
)
from mlmd_calc.analysis.jump_ensemble import (
    Divergences,
    InternalCoordinates,
    Sample,
    divergences,
    mean_temperatures,
)
from mlmd_calc.analysis.jump_map import MapErrors, measure_map
from mlmd_calc.analysis.statistics import Mean
from mlmd_calc.analysis.trajectory import EQUILIBRATION
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.options import check_at_least, check_positive
from mlmd_calc.propagation import (
    Conditions,
    Corrections,
    ForceModel,
    Guard,
    JumpLoop,
    Langevin,
    Propagator,
    State,
    Thermostat,
    VerletPropagator,
)
from mlmd_calc.propagation.bookkeeping import with_energies
from mlmd_calc.propagation.thermostats import draw_velocities

TIMESTEP_FS: Final = 0.5
"""Of force-based runs."""

REFERENCE_FRICTION_PER_PS: Final = 10.0
"""Of the force-based run that potential energies and distributions are compared with."""

_MAP_STATES: Final = 24


@dataclass(frozen=True)
class FidelitySettings:
    """What is run.

    Attributes
    ----------
    stride_fs
        Length of a jump.
    temperature_K
        Temperature of the thermostat, and of the velocities at the start.
    frictions_per_ps
        Langevin frictions; 0 is constant energy.
    duration_ps
        Length of each run of jumps.
    reference_ps
        Length of each force-based run, which costs most; None for ``duration_ps``.
    replicas
        Molecules that move side by side.
    seed
        Seed of all runs.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    stride_fs: float
    temperature_K: float = 300.0  # noqa: N815
    frictions_per_ps: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 0.0)
    duration_ps: float = 5.0
    reference_ps: float | None = None
    replicas: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "stride_fs", "temperature_K")
        check_at_least(self, 1, "replicas")
        one_jump = self.stride_fs / units.FS_PER_PS
        check_at_least(self, one_jump, "duration_ps")
        if self.reference_ps is not None:
            check_at_least(self, one_jump, "reference_ps")
        if min(self.frictions_per_ps, default=0.0) < 0.0:
            raise ConfigError(
                f"frictions_per_ps={self.frictions_per_ps}; none may be negative, 0 is constant "
                "energy"
            )

    def jumps(self, duration_ps: float) -> int:
        """Return the number of jumps of a run."""
        return round(duration_ps * units.FS_PER_PS / self.stride_fs)

    def thermostat(self, friction_per_ps: float) -> Thermostat | None:
        """Return the thermostat; None for a friction of 0, constant energy."""
        if friction_per_ps == 0.0:
            return None
        return Langevin(self.temperature_K, friction_per_ps / units.FS_PER_PS)


@dataclass(frozen=True)
class RunFidelity:
    """What became of the replicas of one run.

    Attributes
    ----------
    died
        How many could not go on, and were left out from then on.
    interventions_percent
        Share of the jumps that the guard did not accept at once.
    temperatures
        Of all atoms and of each element, K, after equilibration; empty if none survived.
    configurational_percent
        Mean potential energy above the minimum, in percent of that of the reference; None without.
    divergences
        Of bonds and torsions from the reference; None without.
    distance_difference
        Of all interatomic distances from the reference, see
        :func:`~.distances.distance_difference`; None without.
    element_frictions
        Mean friction in 1/ps that keeps each element at its share of the kinetic energy, positive
        where jumps heat it; empty for runs without. See ``balance_elements`` of
        :class:`~mlmd_calc.propagation.Corrections`.
    """

    died: int
    interventions_percent: float
    temperatures: dict[str, Mean]
    configurational_percent: float | None
    divergences: Divergences | None
    distance_difference: float | None
    element_frictions: dict[str, float] = field(default_factory=dict)

    @property
    def largest_divergence(self) -> float | None:
        """Largest divergence in bits of a bond or torsion; None without."""
        if self.divergences is None:
            return None
        return max({**self.divergences.bonds, **self.divergences.torsions}.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values."""
        return {
            "died": self.died,
            "interventions_percent": self.interventions_percent,
            "temperature_K": {name: mean.value for name, mean in self.temperatures.items()},
            "configurational_percent": self.configurational_percent,
            "largest_divergence_bits": self.largest_divergence,
            "distance_difference": self.distance_difference,
            "element_friction_per_ps": self.element_frictions,
        }


@dataclass(frozen=True)
class Fidelity:
    """All measurements of one molecule.

    Attributes
    ----------
    map
        Errors of one jump.
    runs
        Runs of jumps by friction in 1/ps; 0 is constant energy.
    references
        Force-based runs: by :data:`REFERENCE_FRICTION_PER_PS`, and by 0 if there is a run of jumps
        at constant energy.
    reference_halves
        Difference of distances between the halves of the first of these; None if it is one jump.
    """

    map: MapErrors
    runs: dict[float, RunFidelity]
    references: dict[float, RunFidelity]
    reference_halves: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values."""

        def written(runs: dict[float, RunFidelity]) -> dict[str, Any]:
            return {f"{friction:g}": run.to_dict() for friction, run in runs.items()}

        return {
            "jump": asdict(self.map),
            "friction_per_ps": written(self.runs),
            "force_based": written(self.references),
            "distance_difference_of_reference_halves": self.reference_halves,
        }


def measure_fidelity(
    propagator: Propagator,
    forces: ForceModel,
    minimum: State,
    settings: FidelitySettings,
    on_run: Callable[[str], None] = lambda name: None,
) -> Fidelity:
    """Run one molecule with forces and with jumps.

    All runs begin at the frames at which the force-based run ends.

    Parameters
    ----------
    propagator
        Makes the jumps.
    forces
        Force model of the propagator, with energies.
    minimum
        The molecule at a minimum of its potential energy.
    settings
        What is run.
    on_run
        Called with the name of each run before it begins.

    Raises
    ------
    ConfigError
        If the propagator cannot make such jumps.
    """
    propagator = copy.copy(propagator)
    # The conditions that the card forbids are measured, too.
    propagator.conditions = Conditions(potential=propagator.conditions.potential)
    (minimum,) = with_energies([minimum], forces)
    rng = np.random.default_rng(settings.seed)
    starts = [
        replace(
            minimum,
            # Half of the kinetic energy of vibrations becomes potential energy.
            velocities=np.sqrt(2.0) * draw_velocities(minimum, settings.temperature_K, rng),
        )
        for _ in range(settings.replicas)
    ]
    verlet = VerletPropagator(forces, TIMESTEP_FS)
    on_run("force-based")
    reference = run_jumps(verlet, forces, starts, settings, REFERENCE_FRICTION_PER_PS)
    settled = [replace(state, memory={}, time=0.0) for state in reference.frames[-1]]
    compared = _Compared.to(reference, minimum)
    references = {REFERENCE_FRICTION_PER_PS: compared.summary(reference)}
    on_run("single jumps")
    chosen = spread_index(len(reference.frames), _MAP_STATES)
    states = [state for frame in chosen for state in reference.frames[frame]]
    errors = measure_map(
        propagator,
        forces,
        [replace(state, memory={}) for state in states],
        settings.stride_fs,
        settings.temperature_K,
        minimum=minimum,
        seed=settings.seed,
    )
    runs = {}
    for friction in settings.frictions_per_ps:
        on_run(f"{friction:g}/ps" if friction else "constant energy")
        runs[friction] = compared.summary(
            run_jumps(propagator, forces, settled, settings, friction)
        )
    if 0.0 in runs:
        on_run("constant energy, force-based")
        references[0.0] = compared.summary(run_jumps(verlet, forces, settled, settings, 0.0))
    frames = compared.sample.positions
    halves = half_difference(frames) if len(frames) > 1 else None
    return Fidelity(errors, runs, references, halves)


@dataclass(frozen=True)
class JumpRun:
    """Frames of the replicas that went through a run, and what happened to the others.

    Attributes
    ----------
    frames
        States after each jump of the replicas that came through.
    replicas, died
        How many began, and how many could not go on.
    jumps, interventions
        Jumps of all replicas, and how often the guard did not accept one at once.
    element_frictions
        After each jump, in 1/ps by element, mean of the replicas; empty for runs without.
    """

    frames: list[list[State]]
    replicas: int
    died: int
    jumps: int
    interventions: int
    element_frictions: list[dict[str, float]]

    def sample(self) -> Sample:
        """Frames after equilibration."""
        return Sample.from_states(self.frames).without_first(EQUILIBRATION)

    def potentials(self) -> NDArray[np.float64]:
        """Potential energies ``(f, r)`` in eV after equilibration."""
        energies = np.array([[s.energy for s in states] for states in self.frames])
        return energies[int(EQUILIBRATION * len(energies)) :].astype(np.float64)

    def mean_element_frictions(self) -> dict[str, float]:
        """Mean of ``element_frictions`` after equilibration."""
        frictions = self.element_frictions
        return _mean_by_key(frictions[int(EQUILIBRATION * len(frictions)) :])


def run_jumps(
    propagator: Propagator,
    forces: ForceModel,
    states: Sequence[State],
    settings: FidelitySettings,
    friction_per_ps: float,
    *,
    bare: bool = False,
) -> JumpRun:
    """Move molecules; those whose jumps fail for good are left out from then on.

    Parameters
    ----------
    propagator, forces, settings
        As in :func:`measure_fidelity`.
    states
        Where the replicas start.
    friction_per_ps
        Of the thermostat; 0 for constant energy.
    bare
        Without guard and corrections, as force-based steps are always run.
    """
    rng = np.random.default_rng([settings.seed, round(1000.0 * friction_per_ps)])
    thermostat = settings.thermostat(friction_per_ps)
    by_forces = isinstance(propagator, VerletPropagator)
    bare = bare or by_forces
    with tempfile.TemporaryDirectory() as folder:
        rejected = Path(folder) / "rejected.extxyz"
        guard = Guard.off() if bare else Guard(last="stop")
        corrections = Corrections.none() if bare else Corrections()
        if thermostat is None and not bare:
            corrections = replace(corrections, rescale_energy=True)

        def loop_of(states: Sequence[State]) -> JumpLoop:
            return JumpLoop(
                states,
                propagator,
                settings.stride_fs,
                thermostat=thermostat,
                corrections=corrections,
                guard=replace(guard, frames_file=rejected),
                forces=forces,
                rng=rng,
            )

        duration = settings.duration_ps
        if by_forces and settings.reference_ps is not None:
            duration = settings.reference_ps
        alive = list(range(len(states)))
        frames: list[dict[int, State]] = []
        frictions: list[dict[str, float]] = []
        jumps = interventions = 0
        loop = loop_of(states)
        while len(frames) < settings.jumps(duration) and alive:
            if _advance(loop):
                jumps += len(alive)
                loop.energies()
                frames.append(dict(zip(alive, loop.states, strict=True)))
                frictions.append(_mean_by_key(loop.element_frictions))
                continue
            dead = loop.events[-1].molecule if len(loop.events) else 0
            interventions += len(loop.events)
            rest = [state for i, state in enumerate(loop.states) if i != dead]
            del alive[dead]
            if alive:
                loop = loop_of(rest)
        if alive:
            interventions += len(loop.events)
    whole = [[states[i] for i in alive] for states in frames]
    died = len(states) - len(alive)
    return JumpRun(whole, len(states), died, jumps, interventions, frictions)


def _advance(loop: JumpLoop) -> bool:
    try:
        return loop.advance()
    except PredictionError:
        return False


def _mean_by_key(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


@dataclass(frozen=True)
class _Compared:
    """Reference of the runs of a molecule."""

    coordinates: InternalCoordinates
    sample: Sample
    distances: Counts
    minimum_eV: float  # noqa: N815
    above_minimum_eV: float  # noqa: N815

    @classmethod
    def to(cls, reference: JumpRun, minimum: State) -> _Compared:
        assert minimum.energy is not None
        sample = reference.sample()
        return cls(
            InternalCoordinates.of(ase.Atoms(minimum.numbers, minimum.positions)),
            sample,
            distance_counts(sample.positions),
            minimum.energy,
            float(reference.potentials().mean()) - minimum.energy,
        )

    def summary(self, run: JumpRun) -> RunFidelity:
        share = 100.0 * run.interventions / max(run.jumps, 1)
        if run.died == run.replicas:
            return RunFidelity(run.died, share, {}, None, None, None)
        sample = run.sample()
        above = float(run.potentials().mean()) - self.minimum_eV
        return RunFidelity(
            run.died,
            share,
            mean_temperatures(sample),
            100.0 * above / self.above_minimum_eV,
            divergences(self.coordinates, self.sample, sample),
            distance_difference(self.distances, distance_counts(sample.positions)),
            run.mean_element_frictions(),
        )
