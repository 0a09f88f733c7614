"""Lightning module that trains the published ATOM operator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from torch import Tensor, nn

from mlmd_calc.models.atom import ATOM
from mlmd_calc.training.atom.module import layers_of
from mlmd_calc.training.module import TrainingModule
from mlmd_calc.training.operator.batches import OperatorBatch
from mlmd_calc.training.operator.recipe import OperatorRecipe

_HUNDREDTHS: Final = 100.0


class OperatorTraining(TrainingModule):
    """Loss and metrics of one training run."""

    network: ATOM
    recipe: OperatorRecipe

    def __init__(self, network: ATOM, recipe: OperatorRecipe) -> None:
        super().__init__(network, recipe)
        for name, head in network.projection_layer.named_children():
            # As published, heads of velocities and energies have no loss.
            head.requires_grad_(name == "linear_pos")

    def layers(self) -> Iterable[nn.Module]:
        """Blocks, lifting and read-outs of the network."""
        return layers_of(self.network)

    def unit(self, metric: str) -> str:
        """Return the unit of the published tables."""
        return "10⁻² Å²"

    def _squares(self, batch: OperatorBatch) -> Tensor:
        """Square errors ``(b, t, n, 3)`` in Å²."""
        found: Tensor = self.network(*batch.inputs, time_increments=batch.increments)["pos"]
        return (found - batch.later).square()

    def loss_terms(self, batch: OperatorBatch) -> dict[str, Tensor]:
        """Mean square error of the positions in Å²."""
        return {"positions": self._squares(batch).mean()}

    def measure(self, batch: OperatorBatch, name: str) -> None:
        """Errors of all slots (S2T) and of the last one (S2S)."""
        per_slot = _HUNDREDTHS * self._squares(batch).mean(dim=(0, 2, 3))
        self.log_mean(f"{name}/s2t", per_slot.mean(), len(batch.later))
        self.log_mean(f"{name}/s2s", per_slot[-1], len(batch.later))
