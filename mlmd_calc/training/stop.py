"""Stop a training between two steps, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from mlmd_calc.errors import MLMDError
from mlmd_calc.wording import counted


class TrainingStopped(MLMDError):  # noqa: N818 - nothing went wrong
    """A training was asked to stop, and its checkpoint is written.

    Parameters
    ----------
    step
        Optimiser steps that are done and kept.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped as asked after {counted(step, 'step')}")
        self.step = step


class StopWhenAsked(pl.Callback):
    """Ask after every step whether to go on; if not, write a checkpoint and raise.

    In a distributed training all processes stop as soon as one of them is asked to.
    """

    def __init__(self, should_stop: Callable[[], bool], checkpoint: Path) -> None:
        self._should_stop = should_stop
        self._checkpoint = checkpoint
        # Lightning's own handler ends a run with exit status 0 and without a checkpoint.
        self._on_sigterm = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, *_arguments: Any) -> None:
        """Leave signals to who called."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def on_train_batch_end(self, trainer: pl.Trainer, *_arguments: Any) -> None:
        """Stop after the step that was just done."""
        if self._asked(trainer):
            trainer.save_checkpoint(self._checkpoint)
            raise TrainingStopped(trainer.global_step)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_arguments: Any) -> None:
        """Stop amid a validation, before which a checkpoint was written."""
        if self._asked(trainer):
            raise TrainingStopped(trainer.global_step)

    def _asked(self, trainer: pl.Trainer) -> bool:
        asked = self._should_stop()
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        return asked
