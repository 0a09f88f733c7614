"""Roll-outs of loaded models with the sampler that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mlmd_calc.biomolecules import BondedStructure, MolecularSystem
from mlmd_calc.biomolecules.steering import Steering
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atmos import SamplerConfig
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.options import one_of
from mlmd_calc.sampling.quality import FrameGuard
from mlmd_calc.zoo import ATMOSModel

SAMPLERS: Final = ("sde", "ode")
REDRAWS: Final = 100
"""Times that a refused frame is drawn again unless something else is asked for."""
RELAXED_REDRAWS: Final = 10
"""The same of frames that are relaxed, which cost more."""


@dataclass(frozen=True)
class SamplerOptions:
    """What of the sampler of a model for a molecule is changed; None leaves it as it is.

    Attributes
    ----------
    name
        "sde" or "ode".
    steps
        Denoiser calls per frame.
    noise_scale
        Factor on the noise of the steps of "sde"; the higher, the faster structures change, and the
        more often a frame is refused.
    step_scale
        Factor on the steps.
    steer
        Put bonds, angles, hands and contacts right in what the network predicts on the way to a
        frame, see :class:`~mlmd_calc.biomolecules.steering.Steering`.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    name: str | None = None
    steps: int | None = None
    noise_scale: float | None = None
    step_scale: float | None = None
    steer: bool = True

    def __post_init__(self) -> None:
        if self.name is not None:
            one_of("sampler", self.name, SAMPLERS)

    def of(self, model: ATMOSModel, system: MolecularSystem) -> SamplerConfig:
        """Return the sampler of a model for a molecule with these changes.

        Raises
        ------
        ConfigError
            If a value is not allowed, or noise is wanted from a sampler that adds none.
        """
        config = model.sampler(len(system.alpha_carbons))
        if self.name == "sde" and config.gamma_0 == 0.0:
            raise ConfigError(
                f"the sampler of model {model.name!r} adds no noise (gamma_0=0); use sampler 'ode'"
            )
        if self.name == "ode":
            config = config.ode()
        if self.noise_scale is not None and config.gamma_0 == 0.0:
            raise ConfigError(
                f"noise_scale={self.noise_scale:g}, but the sampler 'ode' adds no noise; leave it "
                "out, or use sampler 'sde'"
            )
        given = {
            name: value
            for name in ("steps", "noise_scale", "step_scale")
            if (value := getattr(self, name)) is not None
        }
        return replace(config, **given)


def stride_between(model: ATMOSModel, keyframe_stride_ps: float) -> float:
    """Time in ps between the frames of an interpolator.

    Raises
    ------
    ConfigError
        If it was not trained on that.
    """
    stride_ps = keyframe_stride_ps / max(model.network.config.max_remaining, 1)
    known = model.card.strides_ps
    if known and not np.isclose(stride_ps, known).any():
        raise ConfigError(
            f"the interpolator {model.name!r} was trained on a stride of "
            f"{', '.join(f'{each:g}' for each in known)} ps, but between keyframes "
            f"{keyframe_stride_ps:g} ps apart its steps would be {stride_ps:g} ps; use models "
            "that belong together"
        )
    return stride_ps


def make_rollout(
    model: ATMOSModel,
    system: MolecularSystem,
    structure: BondedStructure,
    stride_ps: float,
    options: SamplerOptions,
    guard: FrameGuard,
    redraws: int,
) -> Rollout:
    """Make a roll-out of a model for a system.

    Parameters
    ----------
    model, system, structure
        The model, what it moves, and the structure that this was built from.
    stride_ps
        Time between frames.
    options
        What of the sampler of the model is changed.
    guard
        Judges the frames.
    redraws
        How often a frame that the guard refuses is drawn again.

    Raises
    ------
    ConfigError
        If the options do not fit the model.
    """
    return Rollout(
        model.network,
        system.features,
        sampler=options.of(model, system),
        lag_ps=stride_ps,
        steer=Steering(system, structure.positions) if options.steer else None,
        settle=system.exchange_arms,
        accept=guard,
        redraws=redraws,
    )
