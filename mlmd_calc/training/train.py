"""Run a training: data in, a model file with its card out."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mlmd_calc.errors import ConfigError
from mlmd_calc.io.files import FolderLock
from mlmd_calc.options import one_of, whole_number
from mlmd_calc.training.card import card_entries
from mlmd_calc.training.clock import Clock
from mlmd_calc.training.metrics_file import MetricsFile
from mlmd_calc.training.progress import TrainingProgress
from mlmd_calc.training.recipe import Recipe, TrainingData
from mlmd_calc.training.resume import (
    MINUTES_KEY,
    RAW_KEY,
    CheckpointFiles,
    read_checkpoint,
    run_identity,
)
from mlmd_calc.training.stop import StopWhenAsked
from mlmd_calc.training.task import Task, prepare
from mlmd_calc.zoo import LoadedModel, ModelCard, save_model
from mlmd_calc.zoo.model_file import describe_model
from mlmd_calc.zoo.training_run import (
    LAST_CHECKPOINT,
    MODEL_NAME,
    RAW_NAME,
    read_last_checkpoint,
)

_LOGS: Final = "logs"
_UNAVERAGED: Final = "Weights after the last step, not averaged."


class Batches(pl.LightningDataModule):
    """Training stream and validation sets of one run."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        """Stream of batches, continued at the trainer's step."""
        trainer = cast(pl.Trainer, self.trainer)
        batches = self.task.stream(
            seed=self.task.module.recipe.seed,
            start=trainer.global_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return _loader(batches)

    def val_dataloader(self) -> list[torch.utils.data.DataLoader[Any]]:
        """One loader per validation set; every process sees all of it."""
        return [_loader(batches) for batches in self.task.validation.values()]


def _loader(batches: Any) -> torch.utils.data.DataLoader[Any]:
    """Hand out batches as they are; the generator keeps the loader off the global one."""
    return torch.utils.data.DataLoader(batches, batch_size=None, generator=torch.Generator())


def train(
    frames: TrainingData,
    recipe: Recipe,
    folder: Path,
    *,
    start: LoadedModel[Any] | None = None,
    card: dict[str, Any] | None = None,
    devices: int = 1,
    accelerator: str = "auto",
    progress: bool = True,
    should_stop: Callable[[], bool] | None = None,
) -> Path:
    """Train a network, or continue the run that an earlier call left in the same folder.

    A continued run sees the batches it would have seen without the interruption and ends with the
    same weights, bit for bit if the machine computes reproducibly and the network has no dropout.

    Parameters
    ----------
    frames
        Labelled frames, or trajectories; the recipe's held-out part is split off.
    recipe
        Hyper-parameters.
    folder
        Receives ``last.ckpt`` and the checkpoint before it, ``logs/metrics.csv`` (and TensorBoard
        files where tensorboard is installed) and ``model.safetensors``. It can be given as a model
        from the first checkpoint on.
    start
        Model to fine-tune; None to train from random weights.
    card
        Entries of the written model card besides elements, size, recipe, validation errors and
        what :func:`~.card.card_entries` finds.
    devices
        Number of processes or GPUs; several train with DDP.
    accelerator
        "cpu", "gpu", or "auto": a CUDA device if there is one and else the CPU.
    progress
        Show a progress bar and the validation errors on stderr.
    should_stop
        Asked after every step; if it says so, a checkpoint is written and the run ends.

    Returns
    -------
    Path
        The model file, with averaged weights if the recipe averages. The validation errors of its
        card are of these weights. Where time was limited, the others lie beside it, as
        ``unaveraged.safetensors``.

    Raises
    ------
    ConfigError
        If data, model and recipe do not fit together, or the folder holds another run or is being
        written to by another process. With several devices also if layers cannot be compiled.
    InputError
        If labels are missing, or the model to fine-tune does not know an element.
    PredictionError
        If the training diverges.
    TrainingStopped
        If `should_stop` said so.
    OSError
        If a file cannot be written; checkpoints before that are kept.
    """
    whole_number("devices", devices, 1)
    _check_accelerator(accelerator)
    # Refuse a wrong card before the training rather than after it.
    ModelCard.from_dict(card or {})
    identity = run_identity(frames, recipe, start, devices)
    entries = card_entries(frames, recipe, start, card or {})
    make_trainer = functools.partial(
        _trainer, folder=folder, devices=devices, accelerator=accelerator, progress=progress
    )
    work = functools.partial(
        _run, frames, recipe, folder, start, identity, entries, make_trainer, should_stop
    )
    with _only_writer(folder), _quiet():
        if recipe.compile:
            try:
                with _compiler():
                    return work(compiled=True)
            except _CompilerError as error:
                why = f"layers cannot be compiled here ({error})"
                remedy = "install g++ and the headers of Python, or use --set compile=false"
                if devices > 1:
                    # The other processes ended with the trainer that failed.
                    raise ConfigError(f"{why}; {remedy}") from error
                warnings.warn(f"{why}, so the training is slower; {remedy}", stacklevel=2)
        return work(compiled=False)


def _run(
    frames: TrainingData,
    recipe: Recipe,
    folder: Path,
    start: LoadedModel[Any] | None,
    identity: dict[str, Any],
    entries: dict[str, Any],
    make_trainer: Callable[..., pl.Trainer],
    should_stop: Callable[[], bool] | None,
    *,
    compiled: bool,
) -> Path:
    """Train from the last checkpoint on, if there is one, and write the model."""
    found = read_checkpoint(folder, identity)
    over = found is not None and _is_over(found[1], recipe)
    done = 0 if found is None else int(found[1]["global_step"])
    task = prepare(frames, recipe, start)
    full = {
        "name": folder.resolve().name,
        "elements": task.elements,
        **task.card,
        **entries,
        "recipe": recipe.to_dict(),
    }
    module, data = task.module, Batches(task)
    module.compiled = compiled
    module.validation_names = tuple(task.validation)
    module.identity = identity
    module.description = describe_model(module.network, task.atomic_energies, full)
    loggers = [] if over else _loggers(folder, done)
    trainer = make_trainer(recipe, loggers=loggers, should_stop=should_stop)
    if not task.validation:
        # Lightning warns of empty loaders.
        trainer.limit_val_batches = 0
    if found is not None and over:
        # These are the averaged weights where the recipe averages.
        module.load_state_dict(found[1]["state_dict"])
    else:
        # At the end Lightning leaves the averaged weights in the module.
        last = None if found is None else found[0]
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
    path = folder / MODEL_NAME
    _write(path, trainer, data, full)
    if recipe.max_minutes and recipe.ema_decay:
        module.load_state_dict(read_last_checkpoint(folder)[1][RAW_KEY])
        # The other trainer would measure the average.
        plain = replace(recipe, ema_decay=0.0)
        trainer = make_trainer(plain, loggers=[], final="final, not averaged")
        description = f"{full.get('description', '')} {_UNAVERAGED}".strip()
        _write(folder / RAW_NAME, trainer, data, {**full, "description": description})
    return path


def _is_over(checkpoint: dict[str, Any], recipe: Recipe) -> bool:
    """Tell whether a checkpoint is the last one of its run."""
    steps, minutes = checkpoint["global_step"], checkpoint.get(MINUTES_KEY, 0.0)
    return bool(steps >= recipe.steps or 0.0 < recipe.max_minutes <= minutes)


def _write(path: Path, trainer: pl.Trainer, data: Batches, card: dict[str, Any]) -> None:
    """Measure the weights as they are on the validation sets, and write them with their card."""
    task = data.task
    results = trainer.validate(task.module, data, verbose=False) if task.validation else []
    if trainer.is_global_zero:
        errors = {name: round(value, 4) for result in results for name, value in result.items()}
        complete = {**card, "validation": errors}
        save_model(path, task.module.network.eval(), task.atomic_energies, complete)


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Make the folder and lock it; of a distributed training one process does."""
    folder.mkdir(parents=True, exist_ok=True)
    if getattr(rank_zero_only, "rank", 0):
        yield
        return
    with FolderLock(folder):
        yield


def _check_accelerator(accelerator: str) -> None:
    one_of("accelerator", accelerator, ("auto", "cpu", "gpu"))
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("accelerator='gpu', but torch finds no CUDA device; use 'auto' or 'cpu'")


def _trainer(
    recipe: Recipe,
    *,
    folder: Path,
    devices: int,
    accelerator: str,
    progress: bool,
    loggers: list[Logger],
    should_stop: Callable[[], bool] | None = None,
    final: str = "final",
) -> pl.Trainer:
    callbacks: list[pl.Callback] = [
        ModelCheckpoint(
            dirpath=folder,
            filename=LAST_CHECKPOINT.removesuffix(".ckpt"),
            every_n_train_steps=steps,
            enable_version_counter=False,
        )
        # The second one is for the very last step.
        for steps in sorted({recipe.validate_every, recipe.steps})
    ]
    if recipe.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema_decay))
    if recipe.max_minutes:
        # After the averaging, as below.
        callbacks.append(Clock(recipe.max_minutes, folder / LAST_CHECKPOINT))
    if should_stop:
        # After the averaging, so that the checkpoint has the average of the last step.
        callbacks.append(StopWhenAsked(should_stop, folder / LAST_CHECKPOINT))
    if progress:
        callbacks.append(TrainingProgress(final))
    if loggers:
        callbacks.append(LearningRateMonitor("step"))
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    return pl.Trainer(
        max_steps=recipe.steps,
        max_epochs=-1,
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        plugins=[CheckpointFiles()],
        precision=cast(Literal["32-true", "bf16-mixed"], recipe.precision),
        gradient_clip_val=recipe.gradient_clip,
        val_check_interval=recipe.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=loggers,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=min(50, recipe.validate_every),
        inference_mode=False,
    )


def _loggers(folder: Path, done: int) -> list[Logger]:
    """CSV, and TensorBoard where it is installed; both continue at step ``done``."""
    loggers: list[Logger] = [MetricsFile(folder / _LOGS / "metrics.csv", done)]
    if importlib.util.find_spec("tensorboard"):
        board = TensorBoardLogger(folder, name="", version=_LOGS, purge_step=done or None)
        loggers.append(board)
    return loggers


class _CompilerError(Exception):
    """Says why layers cannot be compiled."""


@contextlib.contextmanager
def _compiler() -> Iterator[None]:
    """Compiler settings while training.

    Raises
    ------
    _CompilerError
        If the compiler fails, as it does where there is none.
    """
    import torch._dynamo.config
    import torch._dynamo.exc
    import torch._inductor.config

    # Every size, precision and kind of gradient is a variant; beyond the limit layers are
    # silently not compiled.
    limits = {"recompile_limit": 256, "accumulated_recompile_limit": 4096}
    options: dict[str, Any] = {}
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and _torch_version() < (2, 13):
        # Backward kernels that torch 2.9 writes for AVX-512 overwrite the heap; 2.13 does not.
        options["cpp.simdlen"] = 256
    try:
        with torch._dynamo.config.patch(limits), torch._inductor.config.patch(options):
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        raise _CompilerError(str(error).splitlines()[0]) from error


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says about choices that are deliberate here, and TensorBoard's thread.

    What fails in that thread, such as a full disk, is raised again where the files are written to.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    thread_failed = threading.excepthook

    def tell(failure: threading.ExceptHookArgs) -> None:
        if type(failure.thread).__module__.partition(".")[0] != "tensorboard":
            thread_failed(failure)

    threading.excepthook = tell
    try:
        with warnings.catch_warnings():
            for message in _DELIBERATE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        threading.excepthook = thread_failed
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_DELIBERATE: Final = (
    # Batches are made in memory; worker processes would only cost time.
    ".*does not have many workers.*",
    # The folder is that of the run to continue.
    "Checkpoint directory .* exists and is not empty",
    # That folder may have been moved.
    "The dirpath has changed from",
    # torch's compiler looks at every attribute of a tensor.
    "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    # Lightning 2.6 uses a name that torch 2.13 calls old.
    ".*LeafSpec.* is deprecated",
)
