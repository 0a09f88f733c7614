"""Lightning module that trains an ATOM integrator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mlmd_calc.models.atom import ATOM, ATOMIntegrator
from mlmd_calc.training.atom.batches import JumpBatch
from mlmd_calc.training.atom.recipe import ATOMRecipe
from mlmd_calc.training.module import TrainingModule


def layers_of(network: ATOMIntegrator | ATOM) -> list[nn.Module]:
    """Blocks, lifting and read-outs of a network of the ATOM family."""
    return [*network.transformer_blocks, network.lifting_layer, network.projection_layer]


class ATOMTraining(TrainingModule):
    """Losses and metrics of one training run."""

    network: ATOMIntegrator
    recipe: ATOMRecipe

    def __init__(self, network: ATOMIntegrator, recipe: ATOMRecipe) -> None:
        super().__init__(network, recipe)
        self._squares: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2))

    def layers(self) -> Iterable[nn.Module]:
        """Blocks, lifting and read-outs of the network."""
        return layers_of(self.network)

    def unit(self, metric: str) -> str:
        """Return the unit of an error, percent of the root mean square change."""
        return "%"

    def _propagate(self, batch: JumpBatch) -> dict[str, Tensor]:
        return self.network.propagate(
            batch.positions,
            batch.velocities,
            batch.numbers,
            batch.times,
            batch.mask,
            batch.accelerations,
        )

    def loss_terms(self, batch: JumpBatch) -> dict[str, Tensor]:
        """Mean root mean square errors, dimensionless (:class:`~.recipe.ATOMLossWeights`)."""
        out = self._propagate(batch)
        unit = batch.motion[:, None, None]
        # Padding has no error.
        atoms = (batch.numbers != 0).sum(dim=1)[:, None]

        def length(error: Tensor, scale: Tensor) -> Tensor:
            squares = (error.square().mean(dim=-1) / (unit * scale).square()).sum(dim=2) / atoms
            # The tiny constant keeps the derivative finite at zero error.
            return (squares + 1e-12).sqrt().mean().float()

        return {
            "positions": length(out["pos"] - batch.later_positions, batch.position_scale),
            "velocities": length(out["vel"] - batch.later_velocities, batch.velocity_scale),
        }

    def on_validation_epoch_start(self) -> None:
        """Forget earlier errors."""
        self._squares.clear()

    def measure(self, batch: JumpBatch, name: str) -> None:
        """Add up squares of errors and changes by time."""
        out = self._propagate(batch)
        for key, found, later, before in (
            ("position", out["pos"], batch.later_positions, batch.positions),
            ("velocity", out["vel"], batch.later_velocities, batch.velocities),
        ):
            squares = torch.stack([(found - later).square(), (before[:, None] - later).square()])
            for column, time in enumerate(batch.times[0].tolist()):
                label = f"{name}/{key}_error_{time:g}fs"
                self._squares[label] = (
                    self._squares[label] + squares[:, :, column].sum((1, 2, 3)).cpu()
                )

    def on_validation_epoch_end(self) -> None:
        """Root mean square errors by time, in percent of the root mean square change."""
        for label, (error, change) in self._squares.items():
            self.log(label, 100.0 * (error / change).sqrt().float(), sync_dist=True)
