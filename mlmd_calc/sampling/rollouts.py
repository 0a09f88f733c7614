"""Roll-outs of loaded models with the sampler that was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mlmd_calc.biomolecules import MolecularSystem
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atmos import SamplerConfig
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.propagation.atmos import check_elements
from mlmd_calc.sampling.quality import FrameGuard
from mlmd_calc.zoo import ATMOSModel

SAMPLERS: Final = ("sde", "ode")
REDRAWS: Final = 20
"""Times that a refused frame is drawn again unless something else is asked for."""


def check_sampler(name: str | None) -> None:
    """Refuse an unknown sampler.

    Raises
    ------
    ConfigError
        If it is none of :data:`SAMPLERS`, nor None for that of the model.
    """
    if name not in (None, *SAMPLERS):
        raise ConfigError(f"sampler {name!r}; choose one of {', '.join(SAMPLERS)}, or leave it out")


def check_redraws(count: int) -> None:
    """Refuse a negative number.

    Raises
    ------
    ConfigError
        If it is one.
    """
    if count < 0:
        raise ConfigError(f"redraws={count}; it must not be negative, and 0 keeps every frame")


def chosen_sampler(model: ATMOSModel, name: str | None, steps: int | None) -> SamplerConfig:
    """Sampler of a model with the changes that were asked for.

    Parameters
    ----------
    model
        The model.
    name
        "sde" or "ode"; None for that of the model.
    steps
        Denoiser calls per frame; None for those of the model.

    Raises
    ------
    ConfigError
        If the name is unknown, or noise is wanted from a sampler that adds none.
    """
    check_sampler(name)
    config = model.network.config.sampler
    if steps is not None:
        config = replace(config, steps=steps)
    if name == "sde" and config.gamma_0 == 0.0:
        raise ConfigError(
            f"the sampler of model {model.card.name or model.source!r} adds no noise "
            "(gamma_0=0); use sampler 'ode'"
        )
    return config.ode() if name == "ode" else config


def make_rollout(
    model: ATMOSModel,
    system: MolecularSystem,
    stride_ps: float,
    sampler: SamplerConfig,
    guard: FrameGuard,
    redraws: int,
) -> Rollout:
    """Make a roll-out of a model for a system.

    Parameters
    ----------
    model, system
        The model and what it moves.
    stride_ps
        Time between frames.
    sampler
        Noise levels and step rule.
    guard
        Judges the frames.
    redraws
        How often a frame that the guard refuses is drawn again.

    Raises
    ------
    InputError
        If the model does not know an element.
    """
    check_elements(model, system)
    return Rollout(
        model.network,
        system.features,
        sampler=sampler,
        lag_ps=stride_ps,
        accept=guard,
        redraws=redraws,
    )
