"""Recipe of ATMOS propagators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atmos.config import ATMOSConfig, LossConfig, SamplerConfig
from mlmd_calc.options import check_types
from mlmd_calc.training.recipe import Recipe


@dataclass(frozen=True)
class ATMOSLossWeights(LossConfig):
    """Weights of the loss terms of ATMOS, see :class:`LossConfig`.

    Raises
    ------
    ConfigError
        If a weight is not a number or is negative, or if that of the diffusion or the distogram is
        zero: parts of the network would learn nothing.
    """

    def __post_init__(self) -> None:
        check_types(self, "loss.")
        super().__post_init__()
        for name in ("diffusion", "distogram"):
            if not getattr(self, name):
                raise ConfigError(
                    f"loss.{name}=0, so that a part of the network would learn nothing; give it a "
                    "positive weight"
                )


@dataclass(frozen=True)
class ATMOSRecipe(Recipe):
    """Recipe of an ATMOS network, trained on trajectories of biomolecules.

    A batch holds windows of consecutive frames: several of each of several systems, and of every
    frame to predict several noisy copies.

    Attributes
    ----------
    model
        Options of :class:`mlmd_calc.models.ATMOSConfig`, and ``preset`` for a named size to begin
        with. Without ``sigma_data`` the root mean square of the training coordinates is taken.
        ``max_remaining`` makes an interpolator.
    loss
        Loss weights.
    strides_ps
        Times between the frames of a window in ps; more than one needs ``tau="lag"``.
    window
        Frames that are read; after each of them the next one is predicted. An interpolator reads
        all frames of an interval but the last two, ``max_remaining - 1``.
    systems
        About this many trajectories per batch.
    subsequences
        Windows of each.
    noise_samples
        Noisy copies of each frame to predict.
    crop_tokens
        Larger systems are cut to this many tokens.
    frame_noise
        Standard deviation in Å of noise on the frames that are read, so that the network can read
        its own, imperfect frames.
    activation_checkpointing
        Keep only what goes into each block of the network for the gradient and compute the rest
        once more: less memory, more time, and the same bits.
    """

    kind: ClassVar[str] = "atmos"
    data: ClassVar[type[BiomolecularTrajectory]] = BiomolecularTrajectory
    without_effect: ClassVar[tuple[str, ...]] = ("activation_checkpointing",)
    smallest: ClassVar[dict[str, int]] = {
        **Recipe.smallest,
        **{"window": 1, "systems": 1, "subsequences": 1, "noise_samples": 1},
        **{"crop_tokens": 1, "frame_noise": 0},
    }

    loss: ATMOSLossWeights = field(default_factory=ATMOSLossWeights)
    strides_ps: tuple[float, ...] = (10.0,)
    window: int = 4
    systems: int = 4
    subsequences: int = 2
    noise_samples: int = 8
    crop_tokens: int = 256
    frame_noise: float = 0.0
    activation_checkpointing: bool = False

    def check_model(self) -> None:
        """Refuse options that no network has, and windows that do not suit it."""
        if not self.strides_ps or min(self.strides_ps) <= 0:
            raise ConfigError(
                f"strides_ps={list(self.strides_ps)}; it must be a list of one or more positive "
                "times in ps"
            )
        self.check_network(self.network_config(1.0))

    def check_network(self, config: ATMOSConfig) -> None:
        """Refuse a network that cannot be trained on the windows of the recipe.

        Raises
        ------
        ConfigError
            If strides or window do not suit the network.
        """
        if config.tau == "step" and len(self.strides_ps) > 1:
            raise ConfigError(
                f"strides_ps={list(self.strides_ps)}, but a network with tau='step' has a single "
                "stride; give one, or set tau='lag' in the table model"
            )
        if config.tau == "step" and config.max_steps != self.window:
            raise ConfigError(
                f"max_steps={config.max_steps} of the network differs from window={self.window}, "
                "so that steps would go untrained or look alike; make them equal"
            )
        if config.max_remaining and self.window != config.max_remaining - 1:
            raise ConfigError(
                f"window={self.window}, but an interpolator with "
                f"max_remaining={config.max_remaining} reads max_remaining - 1 frames; set window="
                f"{config.max_remaining - 1}"
            )

    def network_config(self, sigma_data: float) -> ATMOSConfig:
        """Architecture of the network to train.

        The published sizes of random translations and of the smallest level to which noise is added
        hold for ``sigma_data=16`` and are scaled.

        Parameters
        ----------
        sigma_data
            Root mean square of the centred coordinates in Å, used unless the recipe has one.
        """
        options = {"max_steps": self.window, "sigma_data": sigma_data, **self.model}
        preset = options.pop("preset", "paper")
        scale = options["sigma_data"] / ATMOSConfig.sigma_data
        sampler = {"gamma_min": scale * SamplerConfig.gamma_min, **options.get("sampler", {})}
        translation = scale * ATMOSConfig.pose_translation
        options = {"pose_translation": translation, **options, "sampler": sampler}
        return ATMOSConfig.preset(preset, **options)
