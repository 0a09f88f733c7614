"""Lightning module that trains an MD-ET network."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.func import functional_call

from mlmd_calc import units
from mlmd_calc.models.mdet import MDET
from mlmd_calc.training.batches import Batch
from mlmd_calc.training.losses import energy_loss, force_loss, gradient_surrogate
from mlmd_calc.training.optimizers import MuonAdamW
from mlmd_calc.training.recipe import Recipe


class MDETTraining(pl.LightningModule):  # type: ignore[misc]
    """Losses, optimiser and metrics of one training run.

    Parameters
    ----------
    network
        Network to train.
    recipe
        Hyper-parameters.
    validation_names
        Names of the validation sets, in the order of their loaders.
    """

    def __init__(self, network: MDET, recipe: Recipe, validation_names: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.validation_names = validation_names

    def on_fit_start(self) -> None:
        """Compile the layers where the recipe asks for it."""
        if self.recipe.compile:
            for layer in self.network.layers:
                layer.compile(dynamic=False)

    def _evaluate(
        self, batch: Batch, positions: Tensor, *, repeats: int = 1, frozen: bool = False
    ) -> dict[str, Tensor]:
        def repeat(tensor: Tensor) -> Tensor:
            return tensor.repeat(repeats, *[1] * (tensor.ndim - 1))

        inputs = (
            positions,
            repeat(batch.numbers),
            None if batch.mask is None else repeat(batch.mask),
            repeat(batch.charge),
            repeat(batch.multiplicity),
        )
        if frozen:
            # Without parameter gradients the backward pass to the positions is a third cheaper.
            weights = {name: p.detach() for name, p in self.network.named_parameters()}
            out: dict[str, Tensor] = functional_call(
                self.network, weights, (*inputs, ("formation_energy",))
            )
        else:
            out = self.network(*inputs)
        return out

    def _energy_forces(self, batch: Batch, positions: Tensor) -> Tensor:
        """Minus the gradient of the energy head, Hartree/Bohr, without a graph."""
        leaf = positions.detach().requires_grad_()
        with torch.enable_grad():
            out = self._evaluate(batch, leaf, frozen=True)
            (gradient,) = torch.autograd.grad(out["formation_energy"].sum(), leaf)
        return -gradient

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Weighted sum of the loss terms of one batch."""
        weight = self.recipe.loss
        positions = (batch.positions / units.MDET_BOHR).float()
        target = batch.forces.float()
        terms: dict[str, Tensor] = {}
        if weight.gradient or weight.consistency:
            with torch.autocast(self.device.type, enabled=False):
                out = self._gradient_terms(batch, positions, target, terms)
        else:
            out = self._evaluate(batch, positions)
        repeats = len(out["forces"]) // len(positions)
        atoms = (batch.numbers != 0).sum(1)
        terms["forces"] = force_loss(
            out["forces"].float() * units.MDET_FORCE,
            target.repeat(repeats, 1, 1),
            None if batch.mask is None else batch.mask.repeat(repeats, 1),
        )
        terms["energy"] = energy_loss(
            out["formation_energy"][:, 0].float() * units.MDET_HARTREE,
            batch.energies.float().repeat(repeats),
            atoms.repeat(repeats),
        )
        total = sum((getattr(weight, name) * term for name, term in terms.items()), start=0.0)
        for name, term in terms.items():
            self.log(f"train/{name}", term.detach(), batch_size=1)
        assert isinstance(total, Tensor)
        return total

    def _gradient_terms(
        self, batch: Batch, positions: Tensor, target: Tensor, terms: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Add the terms of the energy gradient; returns the outputs of the displaced structures.

        Their displacements are so small that the other terms can be evaluated on them as well.
        """
        weight = self.recipe.loss
        forces = self._energy_forces(batch, positions)
        out: dict[str, Tensor] = {}

        def energy(displaced: Tensor) -> Tensor:
            out.update(self._evaluate(batch, displaced, repeats=2))
            return out["formation_energy"][:, 0]

        def loss(value: Tensor) -> Tensor:
            return force_loss(value * units.MDET_FORCE, target, batch.mask)

        terms["gradient"], _ = gradient_surrogate(positions, forces, loss, energy)
        if weight.consistency:
            mean = 0.5 * sum(out["forces"].chunk(2)) * units.MDET_FORCE
            # Only the direct head is pulled: the energy gradient is the physical side.
            terms["consistency"] = force_loss(mean, forces * units.MDET_FORCE, batch.mask)
        return out

    def validation_step(self, batch: Batch, _index: int, dataloader_idx: int = 0) -> None:
        """Mean absolute errors per force component (meV/Å) and of the energy per atom (meV)."""
        name = self.validation_names[dataloader_idx]
        positions = (batch.positions / units.MDET_BOHR).float()
        real = batch.numbers != 0
        with (
            torch.autocast(self.device.type, enabled=False),
            torch.compiler.set_stance("force_eager"),
        ):
            out = self._evaluate(batch, positions)
            errors = {
                "forces_mae": out["forces"] * units.MDET_FORCE - batch.forces,
                "gradient_mae": None,
            }
            if self.recipe.loss.gradient:
                gradient = self._energy_forces(batch, positions)
                errors["gradient_mae"] = gradient * units.MDET_FORCE - batch.forces
        for key, error in errors.items():
            if error is not None:
                mae = error[real].abs().mean() / units.MEV
                self._log_mean(f"{name}/{key}", mae, int(real.sum()))
        energy = out["formation_energy"][:, 0] * units.MDET_HARTREE
        per_atom = ((energy - batch.energies).abs() / real.sum(1)).mean() / units.MEV
        self._log_mean(f"{name}/energy_mae", per_atom, len(energy))

    def _log_mean(self, name: str, value: Tensor, weight: int) -> None:
        self.log(
            name,
            value,
            batch_size=weight,
            on_epoch=True,
            sync_dist=True,
            add_dataloader_idx=False,
            prog_bar=name.endswith("forces_mae"),
        )

    def configure_optimizers(self) -> dict[str, Any]:
        """The recipe's optimiser with linear warm-up and cosine decay."""
        recipe = self.recipe
        options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "muon":
            optimizer = MuonAdamW(self.network, **options)
        else:
            optimizer = torch.optim.AdamW(self.network.parameters(), **options)
        floor = recipe.final_learning_rate / recipe.learning_rate

        def factor(step: int) -> float:
            if step < recipe.warmup_steps:
                return (step + 1) / recipe.warmup_steps
            progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
