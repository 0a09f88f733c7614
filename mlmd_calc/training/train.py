"""Run a training: data in, a model file with its card out."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger

from mlmd_calc.data import MoleculeFrames, split_by_block, split_by_molecule
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.mdet import MDET, MDETConfig
from mlmd_calc.training.batches import StructureTable, TrainingBatches, fit_atomic_energies
from mlmd_calc.training.mdet_module import MDETTraining
from mlmd_calc.training.recipe import Recipe
from mlmd_calc.zoo import Model, ModelCard, save_model

LAST_CHECKPOINT = "last.ckpt"
MODEL_NAME = "model.safetensors"


class TrainingData(pl.LightningDataModule):  # type: ignore[misc]
    """Training stream and validation sets of one run.

    Parameters
    ----------
    train
        Structures to train on.
    validation
        Name to structures that are never trained on.
    recipe
        Hyper-parameters.
    """

    def __init__(
        self, train: StructureTable, validation: dict[str, StructureTable], recipe: Recipe
    ) -> None:
        super().__init__()
        self.train_table = train
        self.validation = validation
        self.recipe = recipe

    def train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """Stream of batches, continued at the trainer's step."""
        batches = TrainingBatches(
            self.train_table,
            pairs_per_batch=self.recipe.pairs_per_batch,
            copies=self.recipe.copies,
            seed=self.recipe.seed,
            start=self.trainer.global_step,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return torch.utils.data.DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> list[torch.utils.data.DataLoader[Any]]:
        """One loader per validation set."""
        return [
            torch.utils.data.DataLoader(
                list(table.spread(self.recipe.validation_structures)),  # type: ignore[arg-type]
                batch_size=None,
            )
            for table in self.validation.values()
        ]


def split(
    frames: Sequence[MoleculeFrames], recipe: Recipe
) -> tuple[list[MoleculeFrames], dict[str, list[MoleculeFrames]]]:
    """Split frames into training data and validation sets as the recipe says.

    Returns
    -------
    tuple
        Training frames, and by name "molecules" (molecules never trained on) and "frames" (held-out
        time blocks of training molecules) as far as they are not empty.
    """
    validation: dict[str, list[MoleculeFrames]] = {}
    train = list(frames)
    if recipe.held_out_molecules:
        train, validation["molecules"] = split_by_molecule(train, list(recipe.held_out_molecules))
    if recipe.held_out_fraction:
        train, validation["frames"] = split_by_block(train, recipe.held_out_fraction)
    return train, validation


def train(
    frames: Sequence[MoleculeFrames],
    recipe: Recipe,
    folder: Path,
    *,
    start: Model | None = None,
    card: dict[str, Any] | None = None,
    devices: int = 1,
    accelerator: str = "auto",
    progress: bool = True,
) -> Path:
    """Train a network, or continue the run that an earlier call left in the same folder.

    Parameters
    ----------
    frames
        Labelled frames; the recipe's held-out part is split off.
    recipe
        Hyper-parameters.
    folder
        Receives checkpoints, ``metrics.csv`` and the model file.
    start
        Model to fine-tune; None to train from random weights.
    card
        Entries of the written model card besides elements, size, recipe and metrics.
    devices, accelerator
        As in Lightning; several devices train with DDP.
    progress
        Show a progress bar.

    Returns
    -------
    Path
        The model file, with averaged weights if the recipe averages.

    Raises
    ------
    ConfigError
        If nothing is left to train on.
    """
    written = ModelCard.from_dict(card or {})
    train_frames, validation_frames = split(frames, recipe)
    if not train_frames:
        raise ConfigError("no molecule is left for training after the held-out ones")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = (
            copy.deepcopy(start.network) if start else MDET(MDETConfig.from_dict(recipe.model))
        )
    references = start.atomic_energies if start else fit_atomic_energies(train_frames)
    missing = {int(z) for m in frames for z in m.numbers} - set(references)
    if missing:
        raise ConfigError(f"the model to fine-tune has no reference energy for Z in {missing}")
    tables = {
        name: StructureTable(part, references, recipe.size_step)
        for name, part in validation_frames.items()
    }
    data = TrainingData(
        StructureTable(train_frames, references, recipe.size_step), tables, recipe
    )
    module = MDETTraining(network.train(), recipe, tuple(tables))
    trainer = _trainer(recipe, folder, devices, accelerator, progress)
    last = folder / LAST_CHECKPOINT
    with _quiet(), torch._dynamo.config.patch(recompile_limit=256):
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None)
    path = folder / MODEL_NAME
    if trainer.is_global_zero:
        full = replace(
            written,
            elements=tuple(sorted(references)),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            recipe=recipe.to_dict(),
            validation={
                name: round(float(value), 4) for name, value in trainer.callback_metrics.items()
            },
        )
        save_model(path, network.eval(), references, full.to_dict())
    return path


def _trainer(
    recipe: Recipe, folder: Path, devices: int, accelerator: str, progress: bool
) -> pl.Trainer:
    callbacks: list[pl.Callback] = [
        ModelCheckpoint(
            dirpath=folder,
            filename=LAST_CHECKPOINT.removesuffix(".ckpt"),
            every_n_train_steps=recipe.validate_every,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
    ]
    if recipe.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema_decay))
    if progress:
        callbacks.append(RichProgressBar())
    return pl.Trainer(
        max_steps=recipe.steps,
        max_epochs=-1,
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=recipe.precision,
        gradient_clip_val=recipe.gradient_clip,
        val_check_interval=recipe.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=CSVLogger(folder, name="", version="logs"),
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=50,
        inference_mode=False,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Batches are made in memory; worker processes would only cost time.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*train_dataloader.*does not have.*")
        yield
