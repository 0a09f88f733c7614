"""Recipes: TOML files that hold every choice of a training run."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Final

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atmos.config import ATMOSConfig, LossConfig, SamplerConfig
from mlmd_calc.models.atom.config import IntegratorConfig
from mlmd_calc.models.mdet.config import MDETConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "optimizer": ("adamw", "muon"),
    "precision": ("32-true", "bf16-mixed"),
}
_SMALLEST: Final[dict[str, int]] = {
    "steps": 1,
    "copies": 1,
    "size_step": 1,
    "pairs_per_batch": 1,
    "atoms_per_batch": 1,
    "times": 1,
    "window": 1,
    "systems": 1,
    "subsequences": 1,
    "noise_samples": 1,
    "crop_tokens": 1,
    "frame_noise": 0,
    "validate_every": 1,
    "validation_structures": 1,
    "final_learning_rate": 0,
    "warmup_steps": 0,
    "weight_decay": 0,
    "gradient_clip": 0,
    "seed": 0,
}
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "bool": (bool,),
    "dict[str, Any]": (dict,),
    "float": (float, int),
    "int": (int,),
    "str": (str,),
}


def _check_types(
    settings: MDETLossWeights | ATOMLossWeights | ATMOSLossWeights | Recipe, prefix: str = ""
) -> None:
    """Refuse values of another type than annotated, and numbers that are not finite."""
    for item in fields(settings):
        value, kind = getattr(settings, item.name), str(item.type)
        right = isinstance(value, _TYPES.get(kind, (object,)))
        # To Python, True is an int.
        if not right or (isinstance(value, bool) and kind != "bool"):
            raise ConfigError(f"{prefix}{item.name}={value!r}; it must be of type {kind}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{prefix}{item.name}={value!r}; it must be a finite number")


def _check_weights(weights: MDETLossWeights | ATOMLossWeights) -> None:
    _check_types(weights, "loss.")
    values = asdict(weights)
    if min(values.values()) < 0 or not any(values.values()):
        raise ConfigError(
            f"the loss weights are {values}; none may be negative and at least one must be positive"
        )


@dataclass(frozen=True)
class MDETLossWeights:
    """Weights of the loss terms of MD-ET, all of them lengths or absolute values in eV and Å.

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
        Pulls the direct forces towards the gradient and leaves the energy head alone.

    Raises
    ------
    ConfigError
        If a weight is not a number, is negative, or all are zero.
    """

    forces: float = 1.0
    energy: float = 0.0
    gradient: float = 0.0
    consistency: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(self)


@dataclass(frozen=True)
class ATOMLossWeights:
    """Weights of the loss terms of ATOM.

    Attributes
    ----------
    positions
        Mean square error of the positions, in units of what force-free motion leaves unexplained
        for the element at that time (:class:`~.trajectory_batches.ChangeScales`).
    velocities
        Mean square error of the velocities, likewise.

    Raises
    ------
    ConfigError
        If a weight is not a number, is negative, or all are zero.
    """

    positions: float = 1.0
    velocities: float = 1.0

    def __post_init__(self) -> None:
        _check_weights(self)


@dataclass(frozen=True)
class ATMOSLossWeights(LossConfig):
    """Weights of the loss terms of ATMOS, see :class:`LossConfig`.

    Raises
    ------
    ConfigError
        If a weight is not a number or is negative, or if that of the diffusion or the distogram is
        zero: parts of the network would learn nothing.
    """

    def __post_init__(self) -> None:
        _check_types(self, "loss.")
        super().__post_init__()
        for name in ("diffusion", "distogram"):
            if not getattr(self, name):
                raise ConfigError(
                    f"loss.{name}=0, so that a part of the network would learn nothing; give it a "
                    "positive weight"
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
        Compile each layer; pays on long runs.
    seed
        Seed of initial weights, data order and augmentation.

    Raises
    ------
    ConfigError
        If an entry has a wrong type or a value that is not allowed.
    """

    kind: ClassVar[str]

    loss: MDETLossWeights | ATOMLossWeights | ATMOSLossWeights
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    steps: int = 1000
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
        _check_types(self)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}; choose one of {', '.join(allowed)}"
                )
        for name in (item.name for item in fields(self) if item.name in _SMALLEST):
            if getattr(self, name) < _SMALLEST[name]:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; it must be at least {_SMALLEST[name]}"
                )
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate={self.learning_rate}; it must be positive")
        for name in ("held_out_fraction", "ema_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be in the range [0, 1)")
        try:
            self._check_model()
        except TypeError as error:
            raise ConfigError(f"model={self.model!r} is not an architecture: {error}") from error

    def _check_model(self) -> None:
        """Refuse architecture options that no network can be built from."""

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-able values."""
        return {"kind": self.kind, **_with_lists(asdict(self))}

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
        if kind not in _KINDS:
            raise ConfigError(f"kind={kind!r}; choose one of {', '.join(_KINDS)}")
        recipe, weights = _KINDS[kind]
        _refuse_unknown("recipe entries", values, recipe)
        loss = values.pop("loss", {})
        if not isinstance(loss, dict):
            raise ConfigError(f"loss={loss!r}; it must be a table of weights")
        _refuse_unknown("loss terms", loss, weights)
        held_out = values.pop("held_out_molecules", ())
        if isinstance(held_out, str) or not all(isinstance(name, str) for name in held_out):
            raise ConfigError(f"held_out_molecules={held_out!r}; it must be a list of names")
        values["held_out_molecules"] = tuple(held_out)
        if isinstance(values.get("strides_ps"), list):
            values["strides_ps"] = tuple(values["strides_ps"])
        built: Recipe = recipe(**values, loss=weights(**loss))
        return built


@dataclass(frozen=True)
class MDETRecipe(Recipe):
    """Recipe of an MD-ET force field, trained on labelled structures.

    Attributes
    ----------
    model
        See :class:`mlmd_calc.models.MDETConfig`.
    precision
        As in :class:`Recipe`; energy gradients always use 32 bit.
    loss
        Loss weights.
    pairs_per_batch
        Batches hold about this many atom pairs, so that every batch costs the same memory.
    copies
        Independently rotated (and, with probability ½, reflected) copies of every structure.
    """

    kind: ClassVar[str] = "mdet"

    loss: MDETLossWeights = field(default_factory=MDETLossWeights)
    pairs_per_batch: int = 10_000
    copies: int = 2

    def _check_model(self) -> None:
        MDETConfig.from_dict(self.model)


@dataclass(frozen=True)
class ATOMRecipe(Recipe):
    """Recipe of an ATOM integrator, trained on trajectories.

    Attributes
    ----------
    model
        Options of the blocks, and in the table ``integrator`` the others of
        :class:`mlmd_calc.models.IntegratorConfig`.
    loss
        Loss weights.
    atoms_per_batch
        Batches hold about this many atoms, each counted once per time.
    times
        Later times of each sample; a sample is a state, and the states at these times.
    shortest_horizon
        Shortest time in fs; times are log-uniform up to the network's ``max_horizon``.
    """

    kind: ClassVar[str] = "atom"

    loss: ATOMLossWeights = field(default_factory=ATOMLossWeights)
    atoms_per_batch: int = 1600
    times: int = 2
    shortest_horizon: float = 2.0

    def _check_model(self) -> None:
        longest = self.network_config().max_horizon
        if not 0.0 < self.shortest_horizon <= longest:
            raise ConfigError(
                f"shortest_horizon={self.shortest_horizon} fs; it must be positive and at most the "
                f"network's max_horizon={longest} fs"
            )

    def network_config(self) -> IntegratorConfig:
        """Architecture of the network to train."""
        return IntegratorConfig.from_dict(self.model)


@dataclass(frozen=True)
class ATMOSRecipe(Recipe):
    """Recipe of an ATMOS network, trained on trajectories of biomolecules.

    A batch holds windows of consecutive frames: several of each of several systems, and of every
    frame to predict several noisy copies.

    Attributes
    ----------
    model
        Options of :class:`mlmd_calc.models.ATMOSConfig`, and ``preset`` for a named size to begin
        with. Without ``sigma_data`` the root mean square of the training coordinates is taken.
        ``max_remaining`` makes an interpolator.
    loss
        Loss weights.
    strides_ps
        Times between the frames of a window in ps; more than one needs ``tau="lag"``.
    window
        Frames that are read; after each of them the next one is predicted. An interpolator reads
        all frames of an interval but the last two, ``max_remaining - 1``.
    systems
        About this many trajectories per batch.
    subsequences
        Windows of each.
    noise_samples
        Noisy copies of each frame to predict.
    crop_tokens
        Larger systems are cut to this many tokens.
    frame_noise
        Standard deviation in Å of noise on the frames that are read, so that the network can read
        its own, imperfect frames.
    """

    kind: ClassVar[str] = "atmos"

    loss: ATMOSLossWeights = field(default_factory=ATMOSLossWeights)
    strides_ps: tuple[float, ...] = (10.0,)
    window: int = 4
    systems: int = 4
    subsequences: int = 2
    noise_samples: int = 8
    crop_tokens: int = 256
    frame_noise: float = 0.0

    def _check_model(self) -> None:
        strides = self.strides_ps
        numbers = isinstance(strides, tuple) and all(type(s) in (int, float) for s in strides)
        if not (numbers and strides and min(strides) > 0 and math.isfinite(max(strides))):
            raise ConfigError(
                f"strides_ps={strides!r}; it must be a list of one or more positive times in ps"
            )
        self.check_network(self.network_config(1.0))

    def check_network(self, config: ATMOSConfig) -> None:
        """Refuse a network that cannot be trained on the windows of the recipe.

        Raises
        ------
        ConfigError
            If strides or window do not suit the network.
        """
        if config.tau == "step" and len(self.strides_ps) > 1:
            raise ConfigError(
                f"strides_ps={list(self.strides_ps)}, but a network with tau='step' has a single "
                "stride; give one, or set tau='lag' in the table model"
            )
        if config.tau == "step" and config.max_steps != self.window:
            raise ConfigError(
                f"max_steps={config.max_steps} of the network differs from window={self.window}, "
                "so that steps would go untrained or look alike; make them equal"
            )
        if config.max_remaining and self.window != config.max_remaining - 1:
            raise ConfigError(
                f"window={self.window}, but an interpolator with "
                f"max_remaining={config.max_remaining} reads max_remaining - 1 frames; set window="
                f"{config.max_remaining - 1}"
            )

    def network_config(self, sigma_data: float) -> ATMOSConfig:
        """Architecture of the network to train.

        The published sizes of random translations and of the smallest level to which noise is added
        hold for ``sigma_data=16`` and are scaled.

        Parameters
        ----------
        sigma_data
            Root mean square of the centred coordinates in Å, used unless the recipe has one.
        """
        options = {"max_steps": self.window, "sigma_data": sigma_data, **self.model}
        preset = options.pop("preset", "paper")
        scale = options["sigma_data"] / ATMOSConfig.sigma_data
        sampler = {"gamma_min": scale * SamplerConfig.gamma_min, **options.get("sampler", {})}
        translation = scale * ATMOSConfig.pose_translation
        options = {"pose_translation": translation, **options, "sampler": sampler}
        return ATMOSConfig.preset(preset, **options)


_KINDS: Final[dict[str, tuple[Any, Any]]] = {
    "mdet": (MDETRecipe, MDETLossWeights),
    "atom": (ATOMRecipe, ATOMLossWeights),
    "atmos": (ATMOSRecipe, ATMOSLossWeights),
}


def _with_lists(value: Any) -> Any:
    """Turn tuples into lists, as JSON and TOML have them."""
    if isinstance(value, dict):
        return {key: _with_lists(entry) for key, entry in value.items()}
    return [_with_lists(entry) for entry in value] if isinstance(value, list | tuple) else value


def _refuse_unknown(what: str, values: dict[str, Any], settings: type[Any]) -> None:
    known = {item.name for item in fields(settings)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"unknown {what} {unknown}; known are {sorted(known)}")


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
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return values


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe from a TOML file or by the name of one in the package.

    Parameters
    ----------
    name_or_path
        File, or a name from :func:`list_recipes`.
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
        values = read_toml(Path(name_or_path))
    elif name in list_recipes():
        folder = resources.files("mlmd_calc.training") / "recipes"
        with resources.as_file(folder / f"{name}.toml") as path:
            values = read_toml(path)
    else:
        raise ConfigError(
            f"there is no recipe {name!r}; give a .toml file or one of {', '.join(list_recipes())}"
        )
    for key, value in (overrides or {}).items():
        _set(values, key, value)
    return Recipe.from_dict(values)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Set an entry; dots in the key lead into tables."""
    *tables, last = key.split(".")
    for depth, name in enumerate(tables):
        entry = values.setdefault(name, {})
        if not isinstance(entry, dict):
            raise ConfigError(
                f"{key!r} is no recipe entry: {'.'.join(tables[: depth + 1])} is {entry!r}, not a "
                "table"
            )
        values = entry
    values[last] = value
