"""Progress of a training run on the terminal."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mlmd_calc.training.module import TrainingModule


class TrainingProgress(pl.Callback):
    """A bar, and a line for every validation.

    The bar shows the steps or the time that are done, whichever is further. Where the output is no
    terminal, only the lines are shown.

    Parameters
    ----------
    final
        What to call the validation after the training.
    """

    def __init__(self, final: str) -> None:
        self._final = final
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("step {task.fields[step]:,}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar = self._progress.add_task("", total=None, step=0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Show the bar, at the step where the run begins or continues."""
        if trainer.is_global_zero:
            self._progress.reset(self._bar, total=1.0)
            self._show(trainer, module)
            self._progress.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *_arguments: Any
    ) -> None:
        """Advance the bar."""
        self._show(trainer, module)

    def _show(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        done = trainer.global_step / trainer.max_steps
        if isinstance(module, TrainingModule) and module.recipe.max_minutes:
            done = max(done, module.minutes / module.recipe.max_minutes)
        self._progress.update(self._bar, completed=min(1.0, done), step=trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Show the errors on the validation sets."""
        if trainer.is_global_zero and isinstance(module, TrainingModule):
            errors = (
                f"{name} {value:.4g} {module.unit(name)}".rstrip()
                for name, value in trainer.callback_metrics.items()
                if name.partition("/")[0] in module.validation_names
            )
            over = trainer.state.fn == "validate"
            label = self._final if over else f"step {trainer.global_step}"
            self._progress.console.print(f"{label}:", ", ".join(errors), soft_wrap=True)

    def on_train_end(self, _trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        self._progress.stop()

    def on_exception(self, _trainer: pl.Trainer, *_arguments: Any) -> None:
        """Leave the bar as it is, so that the message appears below it."""
        self._progress.stop()
