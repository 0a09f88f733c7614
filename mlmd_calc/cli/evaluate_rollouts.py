"""`mlmd evaluate rollouts`: trajectories of ATMOS models beside molecular dynamics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from rich.console import Console

from mlmd_calc.analysis.biomolecular import EnsembleReport
from mlmd_calc.analysis.ensembles import Frames
from mlmd_calc.analysis.rollouts import (
    BondLengths,
    Generated,
    Reference,
    compare_rollouts,
    group_runs,
    plot_rollouts,
    roll_out,
)
from mlmd_calc.biomolecules import MolecularSystem
from mlmd_calc.cli.evaluate_sampled import comparison
from mlmd_calc.cli.report import Report
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.io.progress import LoggedProgress
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.options import check_at_least
from mlmd_calc.propagation.atmos import check_elements, trained_stride_ps
from mlmd_calc.sampling.quality import FrameGuard
from mlmd_calc.sampling.rollouts import (
    REDRAWS,
    SAMPLERS,
    SamplerOptions,
    make_rollout,
    stride_between,
)
from mlmd_calc.wording import counted
from mlmd_calc.zoo import ATMOSModel

_SAME_K: Final = 1.0
"""Difference of temperatures in K that means nothing."""


@dataclass(frozen=True)
class RolloutOptions:
    """How trajectories are drawn for a comparison.

    Attributes
    ----------
    frames
        Frames after the start at most; as many as the reference has if these are fewer.
    replicas
        Trajectories from each start.
    stride_ps
        Time between frames, for models that know several.
    sampler
        What of the samplers of the models is changed.
    ablation
        Draw with both samplers.
    redraws
        How often a frame that a :class:`~mlmd_calc.sampling.quality.FrameGuard` refuses is drawn
        again before the trajectory ends; 0 keeps every frame.
    seed
        Seed of all random numbers.
    """

    frames: int = 100
    replicas: int = 1
    stride_ps: float | None = None
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    ablation: bool = False
    redraws: int = REDRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "redraws")
        if self.ablation and self.sampler.name is not None:
            raise ConfigError(
                f"--ablation draws with both samplers and --sampler {self.sampler.name} with one; "
                "leave out one of the options"
            )

    def of_sampler(self, name: str | None) -> SamplerOptions:
        """Return the options of one of the samplers; only "sde" has noise to scale."""
        noise_scale = None if self.ablation and name == "ode" else self.sampler.noise_scale
        return replace(self.sampler, name=name, noise_scale=noise_scale)

    def settings(self) -> dict[str, Any]:
        """Return what was asked for, in one dictionary."""
        of_sampler = vars(self.sampler)
        own = {name: value for name, value in vars(self).items() if name != "sampler"}
        return {**own, "sampler": of_sampler["name"], **of_sampler}


@dataclass(frozen=True)
class _Variant:
    """One way of drawing trajectories."""

    name: str
    sampler: str | None
    interpolator: ATMOSModel | None
    interval_ps: float


@dataclass(frozen=True)
class _Plan:
    """What is drawn in which ways, and the molecular dynamics beside it."""

    model: ATMOSModel
    interpolator: ATMOSModel | None
    options: RolloutOptions
    stride_ps: float
    references: list[Reference]
    variants: list[_Variant]
    guards: dict[str, dict[str, FrameGuard]]
    """By variant and reference."""


_Drawn: TypeAlias = dict[str, dict[str, list[Generated]]]
"""By variant and reference: of each run of the reference."""


def evaluate_rollouts(
    model: ATMOSModel,
    trajectories: Sequence[BiomolecularTrajectory],
    options: RolloutOptions,
    *,
    interpolator: ATMOSModel | None,
    plots: Path | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Roll out a model from the starts of trajectories, and print how the two compare.

    Parameters
    ----------
    model
        What to measure.
    trajectories
        Molecular dynamics; runs of one molecule and temperature are taken together.
    options
        How to draw trajectories.
    interpolator
        Draws frames between those of the model, as another variant.
    plots
        Folder for pictures, or None.
    as_json
        Print JSON.
    html
        File of a page, or None.

    Raises
    ------
    ConfigError
        If models or options do not fit together.
    InputError
        If the model does not know elements or the temperature of the data, or their frames are not
        at its strides.
    """
    plan = _plan(model, interpolator, trajectories, options)
    drawn = _draw(plan)
    numbers = _numbers(plan, drawn)
    page = Report(f"Trajectories by {model.card.name} beside molecular dynamics")
    _tell(page, numbers)
    if plots is not None or html is not None:
        with page.drawing(plots) as folder:
            for reference in plan.references:
                frames = {name: _split(own[reference.name]) for name, own in drawn.items()}
                plot_rollouts(reference, frames, plan.stride_ps, folder)
    for one in (model, *(() if interpolator is None else (interpolator,))):
        page.card(one.card)
    page.deliver(numbers, as_json, html)


def _plan(
    model: ATMOSModel,
    interpolator: ATMOSModel | None,
    trajectories: Sequence[BiomolecularTrajectory],
    options: RolloutOptions,
) -> _Plan:
    """Refuse what does not fit together before anything is drawn."""
    stride_ps = trained_stride_ps(model, options.stride_ps)
    for trajectory in trajectories:
        _check_temperature(model, trajectory)
    references = group_runs(trajectories)
    variants = _variants(model, interpolator, options, stride_ps, references[0].system)
    for reference in references:
        check_elements(model, reference.system)
        for variant in variants:
            reference.frames(variant.interval_ps)
    guards = {
        v.name: {r.name: FrameGuard(r.system, r.runs[0].structure) for r in references}
        for v in variants
    }
    return _Plan(model, interpolator, options, stride_ps, references, variants, guards)


def _numbers(plan: _Plan, drawn: _Drawn) -> dict[str, Any]:
    """Return settings and everything that is measured."""
    model, options, variants = plan.model, plan.options, plan.variants
    intervals = dict.fromkeys(variant.interval_ps for variant in variants)
    return {
        "settings": {
            "model": model.source,
            "interpolator": None if plan.interpolator is None else plan.interpolator.source,
            **options.settings(),
            "stride_ps": plan.stride_ps,
            "samplers": {
                variant.name: {
                    own.name: vars(options.of_sampler(variant.sampler).of(model, own.system))
                    for own in plan.references
                }
                for variant in variants
            },
        },
        "tables": [
            {"interval_ps": interval, **vars(_compare(plan, drawn, interval))}
            for interval in intervals
        ],
        "trajectories": [
            entry
            for variant in variants
            for reference in plan.references
            for entry in _trajectory_entries(
                variant, reference, drawn[variant.name][reference.name]
            )
        ],
        "beyond_training": _beyond_training(model, plan.references),
        "refused_frames": {
            row: {name: guard.refused for name, guard in own.items()}
            for row, own in plan.guards.items()
        },
        "seconds_per_frame": {v.name: _seconds_per_frame(drawn[v.name]) for v in variants},
    }


def _beyond_training(model: ATMOSModel, references: Sequence[Reference]) -> dict[str, list[str]]:
    """Say by target what the model was not trained on; measuring it is allowed."""
    domain = model.card.domain
    if domain is None:
        return {}
    found = {own.name: domain.objections(own.system.residues) for own in references}
    return {name: objections for name, objections in found.items() if objections}


def _check_temperature(model: ATMOSModel, trajectory: BiomolecularTrajectory) -> None:
    ours, theirs = model.card.temperature_K, trajectory.temperature_K
    if ours is not None and theirs is not None and abs(ours - theirs) > _SAME_K:
        raise InputError(
            f"trajectory {trajectory.name!r} is of {theirs:g} K, but the model knows {ours:g} K "
            "and nothing else; leave it out"
        )


def _variants(
    model: ATMOSModel,
    interpolator: ATMOSModel | None,
    options: RolloutOptions,
    stride_ps: float,
    system: MolecularSystem,
) -> list[_Variant]:
    """Ways to draw; ``system``, any of the molecules, shows whether options fit the models."""
    found = []
    for sampler in SAMPLERS if options.ablation else (options.sampler.name,):
        config = options.of_sampler(sampler).of(model, system)
        name = "sde" if config.gamma_0 else "ode"
        found.append(_Variant(name, sampler, None, stride_ps))
        if interpolator is not None:
            # Refused now rather than after the first roll-outs.
            options.of_sampler(sampler).of(interpolator, system)
            fine_ps = stride_between(interpolator, stride_ps)
            found.append(_Variant(f"{name}, bi-level", sampler, interpolator, fine_ps))
    return found


def _draw(plan: _Plan) -> _Drawn:
    options = plan.options
    lengths = {
        reference.name: [
            min(options.frames, len(frames) - 1) for frames in reference.frames(plan.stride_ps)
        ]
        for reference in plan.references
    }
    drawn: _Drawn = {variant.name: {} for variant in plan.variants}
    with LoggedProgress(console=Console(stderr=True), transient=True) as progress:
        total = len(plan.variants) * sum(sum(counts) for counts in lengths.values())
        bar = progress.add_task("rolling out", total=total)
        for variant in plan.variants:
            for index, reference in enumerate(plan.references):
                rollout, fine = _rollouts(plan, variant, reference)
                drawn[variant.name][reference.name] = [
                    roll_out(
                        rollout,
                        run.positions[0],
                        count,
                        replicas=options.replicas,
                        # The same random numbers for all variants.
                        seed=_seed(options.seed, index, which),
                        interpolator=fine,
                        on_frames=lambda frames: progress.advance(bar, frames),
                    )
                    for which, (run, count) in enumerate(
                        zip(reference.runs, lengths[reference.name], strict=True)
                    )
                ]
    return drawn


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _rollouts(
    plan: _Plan, variant: _Variant, reference: Reference
) -> tuple[Rollout, Rollout | None]:
    def make(network: ATMOSModel, lag_ps: float) -> Rollout:
        return make_rollout(
            network,
            reference.system,
            reference.runs[0].structure,
            lag_ps,
            plan.options.of_sampler(variant.sampler),
            plan.guards[variant.name][reference.name],
            plan.options.redraws,
        )

    fine = None
    if variant.interpolator is not None:
        fine = make(variant.interpolator, variant.interval_ps)
    return make(plan.model, plan.stride_ps), fine


def _split(drawn: Sequence[Generated]) -> list[Frames]:
    """Trajectories ``(f, a, 3)`` one by one."""
    return [frames for own in drawn for frames in own.frames]


def _compare(plan: _Plan, drawn: _Drawn, interval_ps: float) -> EnsembleReport:
    generated = {
        variant.name: {name: _split(own) for name, own in drawn[variant.name].items()}
        for variant in plan.variants
        if variant.interval_ps == interval_ps
    }
    return compare_rollouts(plan.references, generated, interval_ps, seed=plan.options.seed)


def _trajectory_entries(
    variant: _Variant, reference: Reference, drawn: Sequence[Generated]
) -> list[dict[str, Any]]:
    """Say of every trajectory how far it came and whether it held together."""
    bonds = BondLengths(reference.system, reference.frames(variant.interval_ps))
    entries = []
    for run, own in zip(reference.runs, drawn, strict=True):
        for copy, frames in enumerate(own.frames):
            broken = bonds.broken_at(frames)
            entries.append(
                {
                    "row": variant.name,
                    "target": reference.name,
                    "run": run.replica,
                    "copy": copy,
                    "frames": len(frames) - 1,
                    "whole_frames_percent": (
                        bonds.whole_percent(frames[1:]) if len(frames) > 1 else None
                    ),
                    "broken_at_ps": None if broken is None else broken * variant.interval_ps,
                    "stopped": own.stopped,
                }
            )
    return entries


def _seconds_per_frame(drawn: Mapping[str, Sequence[Generated]]) -> float | None:
    made = [own for runs in drawn.values() for own in runs]
    count = sum(own.frames.shape[0] * (own.frames.shape[1] - 1) for own in made)
    return sum(own.seconds for own in made) / count if count else None


def _tell(page: Report, report: Mapping[str, Any]) -> None:
    for table in report["tables"]:
        page.table(comparison(table))
    for name, seconds in report["seconds_per_frame"].items():
        if seconds is not None:
            page.text(f"{name}: {seconds:.3g} s per frame")
    for name, refused in report["refused_frames"].items():
        page.text(f"{name}: {counted(sum(refused.values()), 'frame')} rejected")
    for name, objections in report["beyond_training"].items():
        page.text(f"{name} is beyond the training of the model: {'; '.join(objections)}")
    for entry in report["trajectories"]:
        for reason in _complaints(entry):
            text = f"{entry['row']}, {entry['target']}, run {entry['run']}, copy {entry['copy']}"
            page.text(f"{text}: {reason}")


def _complaints(entry: Mapping[str, Any]) -> list[str]:
    found = []
    if entry["broken_at_ps"] is not None:
        found.append(f"broke apart at {entry['broken_at_ps']:g} ps")
    if entry["stopped"] is not None:
        found.append(f"stopped after {counted(entry['frames'], 'frame')}: {entry['stopped']}")
    return found
