"""Recipe of MD-ET force fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.mdet.config import MDETConfig
from mlmd_calc.training.recipe import LossWeights, Recipe
from mlmd_calc.zoo import LoadedModel


@dataclass(frozen=True)
class MDETLossWeights(LossWeights):
    """Weights of the loss terms of MD-ET, all of them lengths or absolute values in eV and Å.

    Attributes
    ----------
    forces
        Direct forces: mean over atoms of the length of the force error, eV/Å.
    energy
        Mean over molecules of the absolute energy error per atom, eV.
    gradient
        Forces that are minus the gradient of the energy head: same form as ``forces``. Makes
        ``forces="conservative"`` a usable mode.
    consistency
        Mean length of the difference between direct forces and minus the energy gradient, eV/Å.
        Pulls the direct forces towards the gradient and leaves the energy head alone.
    """

    forces: float = 1.0
    energy: float = 0.0
    gradient: float = 0.0
    consistency: float = 0.0


@dataclass(frozen=True)
class MDETRecipe(Recipe):
    """Recipe of an MD-ET force field, trained on labelled structures.

    Attributes
    ----------
    model
        See :class:`mlmd_calc.models.MDETConfig`. Fine-tuning keeps the model's options, but for
        ``n_layers`` and ``ffn_multiplier``, with which it grows
        (:meth:`mlmd_calc.models.MDET.grown`).
    precision
        As in :class:`Recipe`. A loss with ``gradient`` or ``consistency`` needs "32-true": matrix
        products in bfloat16 would drown the small energy differences that it is made of.
    loss
        Loss weights.
    pairs_per_batch
        Batches hold about this many atom pairs, so that every batch costs the same memory.
    copies
        Independently rotated (and, with probability ½, reflected) copies of every structure.
    """

    kind: ClassVar[str] = "mdet"
    smallest: ClassVar[dict[str, int]] = {**Recipe.smallest, "pairs_per_batch": 1, "copies": 1}
    grows_by: ClassVar[tuple[str, ...]] = ("n_layers", "ffn_multiplier")

    loss: MDETLossWeights = field(default_factory=MDETLossWeights)
    pairs_per_batch: int = 10_000
    copies: int = 2

    def check_model(self) -> None:
        """Refuse options that no MD-ET network has."""
        MDETConfig.from_dict(self.model)

    def check_start(self, start: LoadedModel[Any]) -> None:
        """Refuse to train the forces alone of a model whose energy gradient is recommended."""
        if start.card.recommended.get("forces") != "conservative":
            return
        if not self.loss.energy and not self.loss.gradient:
            raise ConfigError(
                f"{start.name!r} is recommended with forces='conservative', minus the "
                "gradient of its energy, which loss.energy=0 and loss.gradient=0 leave untrained; "
                "use --set loss.gradient=1, or give other recommended settings in a card"
            )
