"""Roll out ATMOS models from the starts of molecular dynamics runs, and compare the two."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.analysis.biomolecular import (
    EnsembleReport,
    EnsembleTarget,
    evaluate_ensembles,
    pocket,
)
from mlmd_calc.analysis.biomolecular_plots import (
    plot_backbone,
    plot_pca,
    plot_ramachandran,
    plot_rmsd,
    plot_rmsf,
)
from mlmd_calc.analysis.ensembles import Frames, rmsd, rmsf
from mlmd_calc.biomolecules import MolecularSystem
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.errors import InputError, PredictionError
from mlmd_calc.geometry.bonds import Bonds, bond_lengths
from mlmd_calc.geometry.stereochemistry import dihedrals
from mlmd_calc.geometry.superposition import superpose
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.options import steps_in
from mlmd_calc.sampling import Trajectories
from mlmd_calc.wording import counted

WHOLE: Final = 0.2
"""Å; a frame is whole if no bond is further than this from its mean length in the reference."""
BROKEN: Final = 1.5
"""A molecule has broken apart when a bond is longer than this times its mean length."""
_PROTEIN: Final = 20
"""From so many α-carbons on a molecule is judged by them alone."""
_INTERVALS: Final = 10
"""Intervals between keyframes that are filled at once."""
_FEWEST: Final = 4
"""Frames of a reference run, so that each of its halves is a trajectory."""


@dataclass(frozen=True)
class Reference:
    """Molecular dynamics of one molecule at one temperature.

    Attributes
    ----------
    name
        What to call it in tables.
    system
        The molecule, that of the first run.
    runs
        Uninterrupted runs.
    """

    name: str
    system: MolecularSystem
    runs: tuple[BiomolecularTrajectory, ...]

    def frames(self, interval_ps: float) -> list[Frames]:
        """Frames ``(f, a, 3)`` Å of every run, some time apart.

        Raises
        ------
        InputError
            If the interval is not a multiple of that of a run, or a run has fewer than four frames.
        """
        return [_spaced(run, interval_ps) for run in self.runs]


def _spaced(run: BiomolecularTrajectory, interval_ps: float) -> Frames:
    stride = steps_in(interval_ps, run.dt_ps)
    if not stride:
        raise InputError(
            f"the frames of trajectory {run.name!r} are {run.dt_ps:g} ps apart, but those of the "
            f"model {interval_ps:g} ps, which is not a multiple; give a trajectory with frames "
            "that often"
        )
    frames = run.positions[::stride].astype(np.float64)
    if len(frames) < _FEWEST:
        raise InputError(
            f"trajectory {run.name!r} has {counted(len(frames), 'frame')} {interval_ps:g} ps "
            f"apart; a comparison needs {_FEWEST} or more"
        )
    return frames


def group_runs(trajectories: Sequence[BiomolecularTrajectory]) -> list[Reference]:
    """Join the runs of each molecule and temperature, in the order of the trajectories."""
    runs: dict[tuple[str, float | None], list[BiomolecularTrajectory]] = {}
    for trajectory in trajectories:
        runs.setdefault((trajectory.name, trajectory.temperature_K), []).append(trajectory)
    names = [name for name, _ in runs]
    return [
        Reference(
            name if names.count(name) == 1 else f"{name}, {_temperature(temperature)}",
            own[0].system,
            tuple(own),
        )
        for (name, temperature), own in runs.items()
    ]


def _temperature(temperature_K: float | None) -> str:
    return "unknown temperature" if temperature_K is None else f"{temperature_K:g} K"


def moving_atoms(system: MolecularSystem) -> NDArray[np.int64]:
    """Atoms by whose motion a molecule is judged.

    The pocket of a complex, the α-carbons of a protein (20 or more), else all heavy atoms.
    """
    ligand = system.features.is_ligand.numpy()
    if ligand.any() and not ligand.all():
        return pocket(system)
    if len(system.alpha_carbons) >= _PROTEIN:
        return system.alpha_carbons
    return np.arange(len(system.atoms))


@dataclass(frozen=True)
class Generated:
    """Trajectories of a model from the start of one run.

    Attributes
    ----------
    frames
        ``(b, f, a, 3)`` Å: the start and what was drawn from it.
    stopped
        Why there are not as many frames as were asked for, or None.
    seconds
        Time that the drawing took.
    """

    frames: Frames
    stopped: str | None
    seconds: float


def roll_out(
    rollout: Rollout,
    start: NDArray[np.floating],
    frames: int,
    *,
    replicas: int,
    seed: int,
    interpolator: Rollout | None = None,
    on_frames: Callable[[int], None] = lambda count: None,
) -> Generated:
    """Draw trajectories from a structure; one that ends too early is no error.

    Parameters
    ----------
    rollout
        Draws the frames, or keyframes.
    start
        ``(a, 3)`` Å.
    frames
        Frames of ``rollout`` after the start.
    replicas
        Number of trajectories.
    seed
        Seed of their random numbers.
    interpolator
        Draws what lies between keyframes; None for nothing.
    on_frames
        Called with the number of frames of ``rollout`` whenever some have been drawn.

    Raises
    ------
    ConfigError
        If one of the networks has the place of the other.
    """
    first = np.asarray(start, dtype=np.float64)
    trajectories = Trajectories(rollout, first, replicas, seed, interpolator=interpolator)
    parts = [np.repeat(first[None, None], replicas, axis=0)]
    at_once = 1 if interpolator is None else _INTERVALS
    begin, left, stopped = time.perf_counter(), frames, None
    try:
        while left:
            count = min(left, at_once)
            parts.append(trajectories.advance(count))
            left -= count
            on_frames(count)
    except PredictionError as error:
        stopped = str(error)
    return Generated(np.concatenate(parts, axis=1), stopped, time.perf_counter() - begin)


class BondLengths:
    """Bonds of a molecule beside their mean lengths in molecular dynamics."""

    def __init__(self, system: MolecularSystem, reference: Sequence[Frames]) -> None:
        lengths = bond_lengths(np.concatenate(reference), system.bonds)
        self._bonds = Bonds(system.bonds, lengths.mean(axis=0))

    def whole_percent(self, frames: Frames) -> float:
        """Share of frames whose bonds are all within 0.2 Å of their mean."""
        deviations = np.abs(self._bonds.deviations(frames))
        return 100.0 * float((deviations.max(axis=1, initial=0.0) <= WHOLE).mean())

    def broken_at(self, frames: Frames) -> int | None:
        """First frame with a bond longer than 1.5 times its mean, or None."""
        lengths = bond_lengths(frames, self._bonds.pairs)
        broken = (lengths > BROKEN * self._bonds.lengths).any(axis=1)
        return int(np.argmax(broken)) if broken.any() else None


def compare_rollouts(
    references: Sequence[Reference],
    generated: Mapping[str, Mapping[str, Sequence[Frames]]],
    interval_ps: float,
    *,
    seed: int,
) -> EnsembleReport:
    """Compare trajectories of several models or samplers with molecular dynamics.

    Parameters
    ----------
    references
        Molecular dynamics.
    generated
        Name of the row, to the trajectories ``(f, a, 3)`` Å by name of the reference. Those of
        fewer than two frames are left out, and with them rows in which nothing is left.
    interval_ps
        Time between their frames.
    seed
        See :func:`evaluate_ensembles`.

    Returns
    -------
    EnsembleReport
        One row per entry of ``generated``, then the rows of :func:`evaluate_ensembles` that tell
        what they could at best and at worst be, for the entry with most frames. All have a column
        more, ``whole_frames_percent``.

    Raises
    ------
    InputError
        If a reference does not have frames at the interval.
    """
    true = {reference.name: reference.frames(interval_ps) for reference in references}

    def targets(made: Mapping[str, Sequence[Frames]]) -> list[EnsembleTarget]:
        return [
            EnsembleTarget(r.name, r.system, true[r.name], made[r.name], moving_atoms(r.system))
            for r in references
            if r.name in made
        ]

    kept = {
        row: {name: long for name, frames in made.items() if (long := _long_enough(frames))}
        for row, made in generated.items()
    }
    # Without any generated trajectory the other rows are still told.
    judged = {row: targets(made) for row, made in kept.items() if made} or {
        "": targets(dict.fromkeys(true, ()))
    }
    reports = {
        row: _with_whole_frames(evaluate_ensembles(own, seed=seed), own)
        for row, own in judged.items()
    }
    most = reports[max(judged, key=lambda row: _count(judged[row]))]
    return EnsembleReport(
        _joined({row: report.rows for row, report in reports.items()}, most.rows),
        _joined({row: report.targets for row, report in reports.items()}, most.targets),
    )


def _long_enough(trajectories: Sequence[Frames]) -> list[Frames]:
    return [frames for frames in trajectories if len(frames) > 1]


def _count(targets: Sequence[EnsembleTarget]) -> int:
    return sum(len(frames) for target in targets for frames in target.generated)


def _joined(
    reports: Mapping[str, Sequence[dict[str, Any]]], baselines: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of the generated trajectories, by their own names, and the baselines of one report."""
    rows = [
        {**entry, "row": row}
        for row, entries in reports.items()
        for entry in entries
        if entry["row"] == "generated"
    ]
    return [*rows, *(entry for entry in baselines if entry["row"] != "generated")]


def _with_whole_frames(report: EnsembleReport, targets: Sequence[EnsembleTarget]) -> EnsembleReport:
    found: dict[str, dict[str, float]] = {}
    for target in targets:
        bonds = BondLengths(target.system, target.reference)
        reference = bonds.whole_percent(np.concatenate(target.reference))
        found[target.name] = {
            "reference": reference,
            "shuffled": reference,
            "static": bonds.whole_percent(target.system.reference[None]),
        }
        if target.generated:
            # The starts are not the model's.
            drawn = np.concatenate([frames[1:] for frames in target.generated])
            found[target.name]["generated"] = bonds.whole_percent(drawn)
    key = "whole_frames_percent"
    return EnsembleReport(
        [
            {**row, key: float(np.mean([own[row["row"]] for own in found.values()]))}
            for row in report.rows
        ],
        [{**row, key: found[row["target"]][row["row"]]} for row in report.targets],
    )


def plot_rollouts(
    reference: Reference,
    generated: Mapping[str, Sequence[Frames]],
    interval_ps: float,
    folder: Path,
) -> None:
    """Draw fluctuations, principal components and, if there is a backbone, (φ, ψ).

    Parameters
    ----------
    reference
        Molecular dynamics.
    generated
        Trajectories ``(f, a, 3)`` Å of the molecule by what made them.
    interval_ps
        Time between the frames of the reference to draw.
    folder
        Folder for the PNG files; it is made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in reference.name)
    system, atoms = reference.system, moving_atoms(reference.system)
    joined = {"reference": np.concatenate(reference.frames(interval_ps))}
    joined |= {row: np.concatenate(frames) for row, frames in generated.items() if len(frames)}
    moving = {
        row: superpose(frames[:, atoms], system.reference[atoms]) for row, frames in joined.items()
    }
    plot_rmsf(
        {row: rmsf(frames) for row, frames in moving.items()},
        folder / f"{name}-rmsf.png",
        reference.name,
    )
    plot_pca(moving, folder / f"{name}-pca.png", reference.name)
    if len(system.phi_psi):
        angles = {row: dihedrals(frames, system.phi_psi) for row, frames in joined.items()}
        plot_ramachandran(angles, folder / f"{name}-ramachandran.png", reference.name)


def plot_sampled(trajectories: Sequence[BiomolecularTrajectory], folder: Path) -> None:
    """Draw distances from the start and, if there is a backbone, (φ, ψ).

    Parameters
    ----------
    trajectories
        Of one molecule, from one start.
    folder
        Folder for the PNG files.
    """
    system = trajectories[0].system
    atoms = moving_atoms(system)
    distances = {}
    for index, own in enumerate(trajectories):
        frames = own.positions[:, atoms].astype(np.float64)
        distances[f"trajectory {index}"] = rmsd(frames, frames[0])
    plot_rmsd(distances, trajectories[0].dt_ps, folder / "distance from the start.png")
    if len(system.phi_psi):
        frames = np.concatenate([own.positions.astype(np.float64) for own in trajectories])
        plot_backbone(dihedrals(frames, system.phi_psi), folder / "φ and ψ.png")
