"""End a training after a time."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import lightning.pytorch as pl

from mlmd_calc.training.module import TrainingModule


class Clock(pl.Callback):
    """Count the minutes of a training, and end it with a checkpoint when they are over.

    Validations count, and so does what was done before an interruption. In a distributed training
    the clock of the first process counts, so that all have the same learning rate.
    """

    def __init__(self, minutes: float, checkpoint: Path) -> None:
        self._limit = minutes
        self._checkpoint = checkpoint
        self._began = 0.0

    def on_train_start(self, _trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Go on where the checkpoint left off."""
        assert isinstance(module, TrainingModule)
        self._began = monotonic() - 60.0 * module.minutes

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *_arguments: Any
    ) -> None:
        """Tell the module the time, and stop if it is over."""
        assert isinstance(module, TrainingModule)
        module.minutes = trainer.strategy.broadcast((monotonic() - self._began) / 60.0)
        if module.minutes >= self._limit:
            trainer.save_checkpoint(self._checkpoint)
            trainer.should_stop = True
