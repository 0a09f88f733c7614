"""Recipes: TOML files that hold every choice of a training run."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import ConfigError
from mlmd_calc.io import toml
from mlmd_calc.options import (
    check_at_least,
    check_choices,
    check_fraction,
    check_positive,
    check_types,
    one_of,
    refuse_unknown,
    shown,
    with_lists,
    with_tuples,
)
from mlmd_calc.zoo import KINDS, LoadedModel

TrainingData: TypeAlias = Sequence[MoleculeFrames | BiomolecularTrajectory]

_SHIPPED: Final = resources.files("mlmd_calc.training") / "recipes"

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "optimizer": ("adamw", "muon"),
    "precision": ("32-true", "bf16-mixed"),
}


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of a loss, one field for each; a base class.

    Raises
    ------
    ConfigError
        If a weight is not a number, is negative, or all are zero.
    """

    def __post_init__(self) -> None:
        check_types(self, "loss.")
        values = asdict(self)
        if min(values.values()) < 0 or not any(values.values()):
            raise ConfigError(
                f"the loss weights are {values}; none may be negative and at least one must be "
                "positive"
            )


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run except the data files.

    These are the entries that all models share; :meth:`from_dict` builds the recipe of the model
    that the entry ``kind`` names.

    Attributes
    ----------
    loss
        Weights of the loss terms.
    model
        Architecture options; ignored in fine-tuning.
    optimizer
        "adamw", or "muon" for :class:`~mlmd_calc.training.optimizers.MuonAdamW`.
    steps
        Optimiser steps.
    max_minutes
        The training ends after this time if the steps are not done by then, and the learning rate
        decays so that it is low by then. How many steps that makes depends on the machine, so no
        other run has the same weights. Weights that are not averaged are written, too, because the
        average of few steps may hold what the first ones did. 0 for no limit.
    learning_rate, final_learning_rate
        Peak of the linear warm-up, and what the cosine decay reaches after the last step.
    warmup_steps
        Length of the warm-up; its first step uses ``learning_rate / warmup_steps``.
    weight_decay
        Decoupled weight decay.
    gradient_clip
        Largest norm of the gradient of all parameters together; 0 turns clipping off.
    ema_decay
        Decay of the exponential moving average of the weights; 0 turns it off.
    size_step
        Molecules are batched by number of atoms, rounded up to a multiple of this; 1 means no
        padding.
    held_out_molecules
        Names of molecules that are never trained on.
    held_out_fraction
        Fraction of each training molecule's frames, one block in time, that is never trained on.
    validate_every
        Steps between validations.
    validation_structures
        Structures of each validation set that are used, spread evenly.
    precision
        "32-true" or "bf16-mixed".
    compile
        Compile each layer; pays on long runs. Where that fails the training goes on without.
    seed
        Seed of initial weights, data order and augmentation.

    Raises
    ------
    ConfigError
        If an entry has a wrong type or a value that is not allowed.
    """

    kind: ClassVar[str]
    """Name of the kind of networks, see :data:`mlmd_calc.zoo.KINDS`."""
    data: ClassVar[type[MoleculeFrames] | type[BiomolecularTrajectory]] = MoleculeFrames
    """What is trained on."""
    used_with_forces: ClassVar[bool] = False
    """Whether a model is used with the force field that made its training data."""
    without_effect: ClassVar[tuple[str, ...]] = ()
    """Entries that leave the weights the same, so that a run may go on with others."""
    grows_by: ClassVar[tuple[str, ...]] = ()
    """Entries of ``model`` by which a network that is fine-tuned can grow; others it keeps."""
    smallest: ClassVar[dict[str, int]] = {
        **{"steps": 1, "size_step": 1, "validate_every": 1, "validation_structures": 1},
        **{"warmup_steps": 0, "final_learning_rate": 0, "weight_decay": 0},
        **{"gradient_clip": 0, "seed": 0, "max_minutes": 0},
    }
    """Smallest allowed value of entries."""

    loss: Any
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    steps: int = 1000
    max_minutes: float = 0.0
    learning_rate: float = 5e-4
    final_learning_rate: float = 1e-9
    warmup_steps: int = 100
    weight_decay: float = 1e-7
    gradient_clip: float = 1.0
    ema_decay: float = 0.9997
    size_step: int = 1
    held_out_molecules: tuple[str, ...] = ()
    held_out_fraction: float = 0.05
    validate_every: int = 1000
    validation_structures: int = 500
    precision: str = "32-true"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_choices(self, _CHOICES)
        for name, smallest in self.smallest.items():
            check_at_least(self, smallest, name)
        check_positive(self, "learning_rate")
        check_fraction(self, "held_out_fraction", "ema_decay")
        try:
            self.check_model()
        except TypeError as error:
            raise ConfigError(f"model={self.model!r} is not an architecture: {error}") from error

    def wanted_size(self) -> dict[str, Any]:
        """Return what is asked for of :attr:`grows_by`, without the names of tables."""
        found = {}
        for entry in self.grows_by:
            *tables, name = entry.split(".")
            options = self.model
            for table in tables:
                options = options.get(table, {})
            if name in options:
                found[name] = options[name]
        return found

    def check_model(self) -> None:
        """Refuse architecture options that no network can be built from."""

    def check_start(self, start: LoadedModel[Any]) -> None:
        """Refuse to fine-tune a model so that what its card recommends would go untrained."""

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-able values."""
        return {"kind": self.kind, **with_lists(asdict(self))}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Recipe:
        """Build the recipe of a (TOML) dictionary, whose ``kind`` is "mdet" if it has none.

        Raises
        ------
        ConfigError
            If an entry is unknown or has a value that is not allowed.
        """
        values = dict(values)
        kind = values.pop("kind", "mdet")
        recipes = {name: known.recipe for name, known in KINDS.items() if known.recipe}
        recipe: type[Recipe] = pkgutil.resolve_name(recipes[one_of("kind", kind, recipes)])
        refuse_unknown(recipe, values, "recipe entries")
        # The default of `loss` is an instance of the class that holds the weights.
        weights: Any = {item.name: item.default_factory for item in fields(recipe)}["loss"]
        loss = weights(**refuse_unknown(weights, values.pop("loss", {}), "loss terms"))
        return recipe(**with_tuples(values), loss=loss)


def list_recipes() -> list[str]:
    """Names of the recipes in the package."""
    names = (path.name for path in _SHIPPED.iterdir())
    return sorted(n.removesuffix(".toml") for n in names if n.endswith("toml") and n[0] != "_")


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
        values: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return values


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe from a TOML file or by the name of one in the package.

    Parameters
    ----------
    name_or_path
        File, or a name from :func:`list_recipes`. An entry ``base`` of a file names a recipe of the
        package that it changes: its entries, also those of tables, replace those of the base.
    overrides
        Entries that replace those of the file, in this order. A table (``loss``, ``model``)
        replaces the whole table; ``loss.energy`` is one entry of it.

    Raises
    ------
    ConfigError
        If there is no such recipe, or an entry is wrong.
    """
    name = str(name_or_path)
    if name.endswith(".toml"):
        values = _with_base(read_toml(Path(name_or_path)))
    elif name in list_recipes():
        values = _with_base({"base": name})
    else:
        raise ConfigError(
            f"there is no recipe {name!r}; give a .toml file or one of {', '.join(list_recipes())}"
        )
    for key, value in (overrides or {}).items():
        _set(values, key, value)
    return Recipe.from_dict(values)


def _with_base(values: dict[str, Any]) -> dict[str, Any]:
    """Put a recipe on top of the one of the package that it names as its base, if it does."""
    if "base" not in values:
        return values
    base = values.pop("base")
    if base not in [path.name.removesuffix(".toml") for path in _SHIPPED.iterdir()]:
        raise ConfigError(
            f"base={shown(base)}; it must be a recipe of the package: {', '.join(list_recipes())}"
        )
    with resources.as_file(_SHIPPED / f"{base}.toml") as path:
        return _merged(_with_base(read_toml(path)), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Replace entries, and in tables those of the table."""
    tables = {
        key: _merged(base[key], value)
        for key, value in values.items()
        if isinstance(value, dict) and key in base
    }
    return base | values | tables


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Set an entry; dots in the key lead into tables."""
    *tables, last = key.split(".")
    for depth, name in enumerate(tables):
        entry = values.setdefault(name, {})
        if not isinstance(entry, dict):
            raise ConfigError(
                f"{key!r} is not a recipe entry: {'.'.join(tables[: depth + 1])} is {entry!r}, not "
                "a table"
            )
        values = entry
    values[last] = value
