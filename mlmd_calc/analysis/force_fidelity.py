"""What the MD-ET paper asks of forces that no symmetry is built into.

Errors of orientation over the 600-cell, the antisymmetric part of the derivatives, work around
closed loops, how long a molecule holds together, and how its distances are distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.analysis.audit import field
from mlmd_calc.analysis.audit.measurement import Estimate
from mlmd_calc.analysis.audit.motion import Survival, survival
from mlmd_calc.analysis.distances import DistanceFaithfulness
from mlmd_calc.analysis.trajectory import EQUILIBRATION
from mlmd_calc.options import check_positive
from mlmd_calc.potential import Potential, Structure

_STRUCTURES: Final = 8
_DERIVED: Final = 2
"""Structures that are turned, and at which forces are differentiated."""


@dataclass(frozen=True)
class OrientationSpread:
    """How forces depend on orientation, means over atoms and structures.

    With f_r the force on an atom of a structure turned by rotation r of the 600-cell, turned back,
    and f̄ its mean over the 60 rotations:

    Attributes
    ----------
    error_meV_per_A
        |f_r − f̄|.
    magnitude_meV_per_A
        Standard deviation of |f_r|.
    angle_degrees
        Angle between f_r and f̄.
    """

    error_meV_per_A: float  # noqa: N815
    magnitude_meV_per_A: float  # noqa: N815
    angle_degrees: float


@dataclass(frozen=True)
class ForceFidelity:
    """All measurements of one molecule in one precision.

    Attributes
    ----------
    orientation
        Dependence on orientation.
    antisymmetry
        λ of the derivatives of the forces as they are used, see
        :func:`mlmd_calc.analysis.audit.field.antisymmetry`.
    loop_percent
        Work around closed loops, see :class:`mlmd_calc.analysis.audit.field.LoopWork`.
    survival
        How long replicas held together.
    distances
        Of these replicas beside those of a reference; None without one, or if none held together
        for long enough.
    """

    orientation: OrientationSpread
    antisymmetry: Estimate
    loop_percent: Estimate
    survival: Survival
    distances: DistanceFaithfulness | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by their names."""
        return {
            **asdict(self.orientation),
            "antisymmetry": self.antisymmetry.value,
            "loop_work_percent": self.loop_percent.value,
            "replicas": self.survival.replicas,
            "broken": len(self.survival.failures_ps),
            "first_failure_ps": min(self.survival.failures_ps, default=None),
            "duration_ps": self.survival.duration_ps,
            "distance_difference": None if self.distances is None else self.distances.difference,
            "distance_difference_of_reference_halves": None
            if self.distances is None
            else self.distances.reference_halves,
        }


@dataclass(frozen=True)
class ForceFidelitySettings:
    """What is run.

    Attributes
    ----------
    temperature_K
        Of all motion.
    duration_ps, replicas
        Length and number of the runs that may break.
    seed
        Seed of all random numbers.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    temperature_K: float = 500.0  # noqa: N815
    duration_ps: float = 1.0
    replicas: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "temperature_K", "duration_ps", "replicas")


def measure_force_fidelity(
    potentials: Mapping[str, Potential],
    minimum: Structure,
    settings: ForceFidelitySettings,
    on_part: Callable[[str], None],
    reference: NDArray[np.floating] | None,
) -> dict[str, ForceFidelity]:
    """Measure one molecule in several precisions, at the same structures.

    Parameters
    ----------
    potentials
        Force field by the name of its precision.
    minimum
        The molecule at a minimum of the energy; single structures have its atoms moved at random by
        0.05 Å.
    settings
        What is run.
    on_part
        Called with the name of each part before it begins.
    reference
        ``(f, n, 3)`` Å, at least two frames of reference dynamics at the same temperature, in the
        order of time, to compare distances with.
    """
    structures = field.displaced(minimum, _STRUCTURES, np.random.default_rng([settings.seed, 0]))
    found = {}
    for name, potential in potentials.items():
        on_part(f"{name}, single structures")
        orientation = orientation_spread(potential, structures[:_DERIVED])
        antisymmetry = field.antisymmetry(potential, structures[:_DERIVED])
        loops = field.loop_work(potential, structures, np.random.default_rng([settings.seed, 1]))
        on_part(f"{name}, time to failure")
        frames: list[NDArray[np.float64]] = []
        held = survival(
            potential,
            minimum,
            temperature_K=settings.temperature_K,
            replicas=settings.replicas,
            duration_ps=settings.duration_ps,
            rng=np.random.default_rng([settings.seed, 2]),
            on_frame=frames.append,
        )
        # While the molecule warms up it does not visit what it should.
        settled = frames[int(EQUILIBRATION * len(frames)) :]
        distances = None
        if reference is not None and settled:
            distances = DistanceFaithfulness.of(np.concatenate(settled), reference)
        found[name] = ForceFidelity(orientation, antisymmetry, loops.share_percent, held, distances)
    return found


def orientation_spread(potential: Potential, structures: Sequence[Structure]) -> OrientationSpread:
    """Turn structures by the 600-cell; see :class:`OrientationSpread`.

    Parameters
    ----------
    potential
        What to measure, in its own rotation setting.
    structures
        Molecules, at least one.
    """
    errors, magnitudes, angles = [], [], []
    for forces in field.turned(potential, structures, energies=False).forces:
        mean = forces.mean(axis=0)
        lengths = np.linalg.norm(forces, axis=-1)
        # The arc tangent keeps small angles, which the arc cosine rounds away.
        across = np.linalg.norm(np.cross(forces, mean), axis=-1)
        along = (forces * mean).sum(axis=-1)
        errors.append(np.linalg.norm(forces - mean, axis=-1).mean())
        magnitudes.append(lengths.std(axis=0).mean())
        angles.append(np.arctan2(across, along).mean())
    return OrientationSpread(
        float(np.mean(errors)) / units.MEV,
        float(np.mean(magnitudes)) / units.MEV,
        float(np.degrees(np.mean(angles))),
    )
