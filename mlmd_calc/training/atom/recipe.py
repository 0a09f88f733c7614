"""Recipe of ATOM propagators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atom.config import INTEGRATOR, IntegratorConfig
from mlmd_calc.training.recipe import LossWeights, Recipe


@dataclass(frozen=True)
class ATOMLossWeights(LossWeights):
    """Weights of the loss terms of ATOM, means over jumps.

    Root mean square errors of a jump are averaged, not their squares, in which long jumps and hot
    molecules outweigh all others: an error of 16 fs is three times that of 8 fs.

    Attributes
    ----------
    positions
        Root mean square error of the positions of a molecule, in units of what force-free motion
        leaves unexplained for the element at that time (:class:`~.batches.ChangeScales`).
    velocities
        That of the velocities, likewise.
    """

    positions: float = 1.0
    velocities: float = 1.0


@dataclass(frozen=True)
class ATOMRecipe(Recipe):
    """Recipe of an ATOM integrator, trained on trajectories.

    Attributes
    ----------
    model
        Options of the blocks, and in the table ``integrator`` the others of
        :class:`mlmd_calc.models.IntegratorConfig`. Fine-tuning keeps those of the model, but for
        ``integrator.pair_hidden_dim``, with which it becomes wider
        (:meth:`mlmd_calc.models.ATOMIntegrator.widened`).
    loss
        Loss weights.
    atoms_per_batch
        Batches hold about this many atoms, each counted once per time.
    times
        Later times of each sample; a sample is a state, and the states at these times.
    shortest_horizon
        Shortest time in fs; times are log-uniform up to the network's ``max_horizon``.
    encoder
        Name or path of an MD-ET model whose features of pairs the network starts with
        (:meth:`mlmd_calc.models.ATOMIntegrator.with_encoder`), best that whose motion it learns;
        empty for none.
    """

    kind: ClassVar[str] = "atom"
    smallest: ClassVar[dict[str, int]] = {**Recipe.smallest, "atoms_per_batch": 1, "times": 1}
    used_with_forces: ClassVar[bool] = True
    grows_by: ClassVar[tuple[str, ...]] = (f"{INTEGRATOR}.pair_hidden_dim",)

    loss: ATOMLossWeights = field(default_factory=ATOMLossWeights)
    atoms_per_batch: int = 1600
    times: int = 2
    shortest_horizon: float = 2.0
    encoder: str = ""

    def check_model(self) -> None:
        """Refuse options that no integrator has, and times that it cannot jump over."""
        longest = self.network_config().max_horizon
        if not 0.0 < self.shortest_horizon <= longest:
            raise ConfigError(
                f"shortest_horizon={self.shortest_horizon} fs; it must be positive and at most the "
                f"network's max_horizon={longest} fs"
            )

    def network_config(self) -> IntegratorConfig:
        """Architecture of the network to train."""
        return IntegratorConfig.from_dict(self.model)
