"""What the trainings of all networks have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from mlmd_calc.errors import PredictionError
from mlmd_calc.training.optimizers import MuonAdamW
from mlmd_calc.training.recipe import Recipe
from mlmd_calc.training.resume import MINUTES_KEY, RUN_KEY
from mlmd_calc.zoo.training_run import MODEL_KEY


class TrainingModule(pl.LightningModule):
    """Optimiser, schedule and logging of a training run; a base class.

    Parameters
    ----------
    network
        Network to train, in single precision.
    recipe
        Hyper-parameters.

    Attributes
    ----------
    validation_names
        Names of the validation sets, in the order of their loaders.
    identity
        What the checkpoints say they belong to (:func:`~.resume.run_identity`).
    description
        All of the model but its weights (:func:`mlmd_calc.zoo.model_file.describe_model`).
    minutes
        How long the training has taken; counted where the recipe limits it.
    compiled
        Whether the layers are compiled.
    """

    network: nn.Module
    recipe: Recipe
    validation_names: tuple[str, ...] = ()
    identity: dict[str, Any] | None = None
    description: str = ""
    minutes: float = 0.0
    compiled: bool = False

    def __init__(self, network: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe

    def layers(self) -> Iterable[nn.Module]:
        """Parts of the network to compile."""
        raise NotImplementedError

    def loss_terms(self, batch: Any) -> dict[str, Tensor]:
        """Terms of the loss of one batch by their names in the recipe, not yet weighted."""
        raise NotImplementedError

    def measure(self, batch: Any, name: str) -> None:
        """Log the errors of one batch of the validation set of that name."""
        raise NotImplementedError

    def unit(self, metric: str) -> str:
        """Return the unit of a validation metric; "" for numbers without unit."""
        return ""

    def on_fit_start(self) -> None:
        """Compile the layers, if they are to be compiled."""
        if self.compiled:
            for layer in self.layers():
                layer.compile(dynamic=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint which run it belongs to, and which model it holds."""
        checkpoint[RUN_KEY] = self.identity
        checkpoint[MODEL_KEY] = self.description
        checkpoint[MINUTES_KEY] = self.minutes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the clock."""
        self.minutes = checkpoint.get(MINUTES_KEY, 0.0)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        """Weighted sum of the loss terms of one batch."""
        terms = self.loss_terms(batch)
        for name, term in terms.items():
            self.log(f"train/{name}", term.detach(), batch_size=1)
        weights = [getattr(self.recipe.loss, name) for name in terms]
        # Terms of weight zero stay in the sum: distributed training wants every parameter used.
        total = torch.stack([w * term for w, term in zip(weights, terms.values(), strict=True)])
        loss = total.sum()
        if not bool(torch.isfinite(loss)):
            values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
            raise PredictionError(
                f"the loss is not finite at step {self.trainer.global_step} ({values}); use a "
                "smaller learning_rate or a longer warm-up, and look for wrong labels"
            )
        return loss

    def validation_step(self, batch: Any, _index: int, dataloader_idx: int = 0) -> None:
        """Measure in full precision, not compiled: a few batches of many sizes."""
        with (
            torch.autocast(self.device.type, enabled=False),
            torch.compiler.set_stance("force_eager"),
        ):
            self.measure(batch, self.validation_names[dataloader_idx])

    def log_mean(self, name: str, value: Tensor, weight: int) -> None:
        """Log a validation metric, averaged over batches by weight."""
        self.log(
            name, value, batch_size=weight, on_epoch=True, sync_dist=True, add_dataloader_idx=False
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Set up the optimiser with linear warm-up and cosine decay."""
        recipe = self.recipe
        rate, decay = recipe.learning_rate, recipe.weight_decay
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "muon":
            optimizer = MuonAdamW(self.network, lr=rate, weight_decay=decay)
        else:
            parameters = self.network.parameters()
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(recipe, step, self.minutes) / rate
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def learning_rate(recipe: Recipe, step: int, minutes: float = 0.0) -> float:
    """Learning rate after a number of steps: linear warm-up, then cosine decay.

    Parameters
    ----------
    recipe, step
        Hyper-parameters, and steps that were done.
    minutes
        Time since the start, for recipes that limit it: the decay is that of the steps or of the
        time, whichever is further.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    if recipe.max_minutes:
        progress = max(progress, minutes / recipe.max_minutes)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    floor = recipe.final_learning_rate
    return floor + (recipe.learning_rate - floor) * cosine
