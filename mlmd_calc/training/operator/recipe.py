"""Recipe of the published ATOM operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atom import ATOMConfig
from mlmd_calc.training.recipe import LossWeights, Recipe


@dataclass(frozen=True)
class OperatorLossWeights(LossWeights):
    """Weights of the loss terms of the operator.

    Attributes
    ----------
    positions
        Mean square error of the positions in Å², over slots, atoms and directions.
    """

    positions: float = 1.0


@dataclass(frozen=True)
class OperatorRecipe(Recipe):
    """Recipe of the published ATOM operator, trained on trajectories.

    Start frames of training, validation and test are drawn at random from each trajectory, as
    published: they lie between each other. To measure on a part of the trajectory that was not seen
    hold it out with ``held_out_fraction``.

    Attributes
    ----------
    model
        See :class:`mlmd_calc.models.ATOMConfig`.
    loss
        Loss weights.
    samples_per_batch
        Start frames of a batch.
    horizon
        Frames from a start to its last target.
    slots
        Number T of targets: the frames start + ⌊horizon (p + 1) / T⌋.
    margin
        Frames at both ends of a trajectory that are not used.
    noise
        Standard deviation of the noise on all inputs but return probabilities, in their units,
        drawn for every slot; targets have none ("label noise" in the paper).
    train_starts, test_starts
        Start frames of training and test per molecule; those of validation are
        ``validation_structures`` per molecule.
    """

    kind: ClassVar[str] = "atom-operator"
    smallest: ClassVar[dict[str, int]] = {
        **Recipe.smallest,
        **{"samples_per_batch": 1, "slots": 2, "margin": 0, "noise": 0},
        **{"train_starts": 1, "test_starts": 0},
    }

    loss: OperatorLossWeights = field(default_factory=OperatorLossWeights)
    samples_per_batch: int = 100
    horizon: int = 3000
    slots: int = 8
    margin: int = 10_000
    noise: float = 0.1
    train_starts: int = 500
    test_starts: int = 2000

    def check_model(self) -> None:
        """Refuse options that no operator has, and a horizon that has fewer frames than slots."""
        ATOMConfig.from_dict(self.model)
        if self.horizon < self.slots:
            raise ConfigError(
                f"horizon={self.horizon} frames for slots={self.slots}; it must be at least "
                f"{self.slots}, so that targets are different frames"
            )
