"""Lightning module that trains an ATMOS network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from mlmd_calc.models.atmos import ATMOS, Context, Features, Memory
from mlmd_calc.models.atmos.geometry import Encoding
from mlmd_calc.models.atmos.losses import Prediction, training_loss
from mlmd_calc.models.atmos.primitives import BlockStack
from mlmd_calc.training.atmos.batches import WindowBatch
from mlmd_calc.training.atmos.recipe import ATMOSRecipe
from mlmd_calc.training.module import TrainingModule


class ATMOSTraining(TrainingModule):
    """Losses and metrics of one training run.

    Windows are teacher-forced: every true frame is read into the memory, and after each of them the
    next true frame is denoised. All frames of a window count, not only the last one: on the way to
    the last memory the others come for free.
    """

    network: ATMOS
    recipe: ATMOSRecipe

    def __init__(self, network: ATMOS, recipe: ATMOSRecipe) -> None:
        super().__init__(network, recipe)
        for module in network.modules():
            if isinstance(module, BlockStack):
                module.recompute = recipe.activation_checkpointing

    def layers(self) -> Iterable[nn.Module]:
        """Blocks of the network."""
        network = self.network
        return [*network.transition.blocks, network.geometric_encoder, network.diffusion_module]

    def predict(self, batch: WindowBatch) -> tuple[Prediction, Features]:
        """Denoise all targets of a batch, the frames of a window one after the other.

        Returns
        -------
        Prediction
            For ``b w`` frames.
        Features
            Features for as many.
        """
        network, features = self.network, batch.features
        context = network.context(features)
        memory = network.initial_memory(context)
        ahead = network.config.encoder_state != "memory"
        encoded = self._encoded(batch, context) if ahead else None
        memories = []
        for index, positions in enumerate(batch.frames.unbind(1)):
            remaining = None if batch.remaining is None else batch.remaining - index
            if encoded is None:
                memory = network.step(
                    memory,
                    positions,
                    features,
                    context,
                    lag=batch.lag,
                    end=batch.end,
                    remaining=remaining,
                )
            else:
                memory = network.advance(
                    memory,
                    encoded[index],
                    features,
                    lag=batch.lag,
                    end=None if batch.end is None else encoded[-1],
                    remaining=remaining,
                )
            memories.append(memory)
        window = len(memories)
        # All frames of all windows are denoised at once.
        memory = Memory(
            *(torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*memories, strict=True))
        )
        features = _repeated(features, window)
        context = Context(*(part.repeat_interleave(window, 0) for part in context))
        conditioning = network.conditioning(memory, features, context)
        denoised = network.diffusion_module(
            batch.noisy.flatten(0, 1), batch.sigma.flatten(0, 1), conditioning
        )
        return Prediction(denoised, network.distogram_head(memory.z)), features

    def _encoded(self, batch: WindowBatch, context: Context) -> list[Encoding]:
        """Encode the frames of all windows, and the ends behind them, in one call."""
        frames = batch.frames
        if batch.end is not None:
            frames = torch.cat([frames, batch.end[:, None]], dim=1)
        count = frames.shape[1]
        encoding = self.network.encode(
            frames.flatten(0, 1),
            _repeated(batch.features, count),
            Context(*(part.repeat_interleave(count, 0) for part in context)),
        )
        each = [part.unflatten(0, (-1, count)).unbind(1) for part in encoding]
        return [Encoding(*parts) for parts in zip(*each, strict=True)]

    def loss_terms(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Terms of the loss, dimensionless except for that of the bonds, in Å²."""
        prediction, features = self.predict(batch)
        window = batch.frames.shape[1]
        terms = training_loss(
            prediction,
            batch.targets.flatten(0, 1),
            batch.sigma.flatten(0, 1),
            features,
            self.network.config,
            self.recipe.loss,
            batch.bonds.repeat_interleave(window, 0),
            batch.bond_mask.repeat_interleave(window, 0),
        )
        del terms["loss"]
        return terms

    def measure(self, batch: WindowBatch, name: str) -> None:
        """Log the loss terms, averaged over windows."""
        for key, term in self.loss_terms(batch).items():
            self.log_mean(f"{name}/{key}", term, len(batch.frames))


def _repeated(features: Features, count: int) -> Features:
    """Repeat every system, so that copies are neighbours."""
    values = {entry.name: getattr(features, entry.name) for entry in fields(Features)}
    return replace(
        features,
        **{
            name: value.repeat_interleave(count, 0)
            for name, value in values.items()
            if value is not None
        },
    )
