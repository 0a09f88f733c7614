"""Recipes: TOML files that hold every choice of a training run."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.mdet.config import MDETConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms, all of them lengths or absolute values in eV and Å.

    Attributes
    ----------
    forces
        Direct forces: mean over atoms of the length of the force error, eV/Å.
    energy
        Mean over molecules of the absolute energy error per atom, eV.
    gradient
        Forces that are minus the gradient of the energy head: same form as ``forces``. Makes
        ``forces="conservative"`` a usable mode.
    consistency
        Mean length of the difference between direct forces and minus the energy gradient, eV/Å.
    """

    forces: float = 1.0
    energy: float = 0.0
    gradient: float = 0.0
    consistency: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run except the data files.

    Attributes
    ----------
    model
        Architecture options (see :class:`mlmd_calc.models.MDETConfig`); ignored in fine-tuning.
    loss
        Loss weights.
    optimizer
        "adamw", or "muon" for :class:`~mlmd_calc.training.optimizers.MuonAdamW`.
    steps
        Optimiser steps.
    learning_rate, final_learning_rate
        Peak of the linear warm-up and end of the cosine decay.
    warmup_steps
        Length of the warm-up.
    weight_decay
        Decoupled weight decay.
    gradient_clip
        Largest global gradient norm.
    ema_decay
        Decay of the exponential moving average of the weights; 0 turns it off.
    pairs_per_batch
        Batches hold about this many atom pairs, so that every batch costs the same memory.
    copies
        Independently rotated (and, with probability ½, reflected) copies of every structure.
    size_step
        Molecules are padded to a multiple of this many atoms; 1 means no padding.
    held_out_molecules
        Names of molecules that are never trained on.
    held_out_fraction
        Fraction of each training molecule's frames, one block in time, that is never trained on.
    validate_every
        Steps between validations.
    validation_structures
        Structures of each validation set that are used, spread evenly.
    precision
        "32-true" or "bf16-mixed" (energy gradients always use 32 bit).
    compile
        Compile each layer; pays on long runs.
    seed
        Seed of initial weights, data order and augmentation.
    """

    model: dict[str, Any] = field(default_factory=dict)
    loss: LossWeights = field(default_factory=LossWeights)
    optimizer: str = "adamw"
    steps: int = 1000
    learning_rate: float = 5e-4
    final_learning_rate: float = 1e-9
    warmup_steps: int = 100
    weight_decay: float = 1e-7
    gradient_clip: float = 1.0
    ema_decay: float = 0.9997
    pairs_per_batch: int = 10_000
    copies: int = 2
    size_step: int = 1
    held_out_molecules: tuple[str, ...] = ()
    held_out_fraction: float = 0.05
    validate_every: int = 1000
    validation_structures: int = 500
    precision: str = "32-true"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ConfigError(f"precision={self.precision!r}; choose 32-true or bf16-mixed")
        if self.optimizer not in ("adamw", "muon"):
            raise ConfigError(f"optimizer={self.optimizer!r}; choose adamw or muon")
        if min(self.steps, self.copies, self.size_step, self.pairs_per_batch) < 1:
            raise ConfigError("steps, copies, size_step and pairs_per_batch must be at least 1")
        if not 0.0 <= self.held_out_fraction < 1.0:
            raise ConfigError(
                f"held_out_fraction={self.held_out_fraction}; it must be in the range [0, 1)"
            )
        MDETConfig.from_dict(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-able values."""
        values = asdict(self)
        values["held_out_molecules"] = list(self.held_out_molecules)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe from a (TOML) dictionary.

        Raises
        ------
        ConfigError
            If an entry is unknown or has a value that is not allowed.
        """
        values = dict(values)
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown recipe entries {unknown}; known are {sorted(known)}")
        loss = dict(values.get("loss", {}))
        unknown = sorted(set(loss) - {item.name for item in fields(LossWeights)})
        if unknown:
            raise ConfigError(f"unknown loss terms {unknown}")
        values["loss"] = LossWeights(**loss)
        values["held_out_molecules"] = tuple(values.get("held_out_molecules", ()))
        return cls(**values)


def list_recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("mlmd_calc.training") / "recipes"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith("toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If there is no such file, or it is not TOML.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe from a TOML file or by the name of one in the package.

    Parameters
    ----------
    name_or_path
        File, or a name from :func:`list_recipes`.
    overrides
        Entries that replace those of the file.

    Raises
    ------
    ConfigError
        If there is no such recipe, or an entry is wrong.
    """
    name = str(name_or_path)
    if name.endswith(".toml"):
        values = read_toml(Path(name_or_path))
    elif name in list_recipes():
        folder = resources.files("mlmd_calc.training") / "recipes"
        with resources.as_file(folder / f"{name}.toml") as path:
            values = read_toml(path)
    else:
        raise ConfigError(
            f"there is no recipe {name!r}; give a .toml file or one of {', '.join(list_recipes())}"
        )
    return Recipe.from_dict({**values, **(overrides or {})})
