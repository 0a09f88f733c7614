"""Options of a force evaluation, which the engines' classes have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypedDict, cast

import numpy as np

from mlmd_calc.errors import ConfigError
from mlmd_calc.geometry.rotations import MOST_ROTATIONS
from mlmd_calc.options import one_of, shown, whole_number
from mlmd_calc.potential.prediction import energy_head, has_force_head
from mlmd_calc.potential.spread import MEASURE, WARN, SpreadLimit, check_answers, check_spread
from mlmd_calc.zoo import Model

PRECISIONS: Final = ("float64", "float32", "mixed")
FORCE_MODES: Final = ("direct", "conservative")
ROTATIONS: Final = ("random", "average", "none")

PAPER: Final[Mapping[str, Any]] = {
    "dtype": "float64",
    "forces": "direct",
    "rotation": "random",
    "n_rotations": 1,
    "remove_net_force": True,
    "remove_net_torque": True,
}
"""Setting in which the paper runs MD-ET."""

SETTINGS: Final = ("recommended", "paper")


class ForceOptions(TypedDict, total=False):
    """Keywords of :class:`mlmd_calc.Potential`, and of all classes and functions that make one."""

    setting: str | None
    device: str
    dtype: str
    forces: str | None
    rotation: str | None
    n_rotations: int | None
    seed: int | None
    remove_net_force: bool | None
    remove_net_torque: bool | None
    max_spread: float | None
    on_spread: str | None


@dataclass(frozen=True)
class ResolvedOptions:
    """Options without those of the machine and the run, all of them decided.

    Attributes
    ----------
    dtype, forces, rotation, n_rotations, remove_net_force, remove_net_torque, max_spread, on_spread
        See :class:`mlmd_calc.Potential`.
    """

    dtype: str
    forces: str
    rotation: str
    n_rotations: int
    remove_net_force: bool
    remove_net_torque: bool
    max_spread: float | None
    on_spread: str | None

    @property
    def conservative(self) -> bool:
        """Whether the forces are the gradient of an energy."""
        return self.forces == "conservative"

    @property
    def spread_limit(self) -> SpreadLimit | None:
        """What is done about the spread of the forces; None if it is not known."""
        if self.on_spread is None:
            return None
        largest = math.inf if self.max_spread is None else self.max_spread
        return SpreadLimit(largest, self.on_spread)


def resolve(model: Model, options: ForceOptions) -> ResolvedOptions:
    """Decide what is left open by what the model is made for, and check the combination.

    Raises
    ------
    ConfigError
        If an option is unknown or does not fit the model.
    """
    options = _in_setting(options)
    config, recommended = model.network.config, model.card.recommended
    usual = "conservative" if config.energy_conserving else "direct"
    forces = _choice("forces", options.get("forces"), recommended.get("forces", usual), FORCE_MODES)
    conservative = forces == "conservative"
    usual = "none" if conservative or config.invariant else "random"
    rotation = _choice(
        "rotation", options.get("rotation"), recommended.get("rotation", usual), ROTATIONS
    )
    n_rotations = options.get("n_rotations")
    if n_rotations is None and rotation == recommended.get("rotation"):
        # A recommended number belongs to the recommended kind of rotation.
        n_rotations = recommended.get("n_rotations")
    _check_rotation(rotation, n_rotations, conservative)
    _check_heads(model, conservative)
    n_rotations = (
        1 if n_rotations is None else whole_number("n_rotations", n_rotations, 1, MOST_ROTATIONS)
    )
    max_spread, on_spread = _spread(model, options, forces, n_rotations)
    net_force, net_torque = _flag(options, "remove_net_force"), _flag(options, "remove_net_torque")
    return ResolvedOptions(
        dtype=_choice("dtype", options.get("dtype"), "float64", PRECISIONS),
        forces=forces,
        rotation=rotation,
        n_rotations=n_rotations,
        remove_net_force=not conservative if net_force is None else net_force,
        remove_net_torque=not conservative if net_torque is None else net_torque,
        max_spread=max_spread,
        on_spread=on_spread,
    )


def serve(options: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether a network with some options gives what it gives with those that are wanted.

    Both are those of :attr:`Potential.options`; the first may be among others. Double precision
    serves a lower one, too; random orientations differ from call to call.
    """
    theirs = {name: options[name] for name in wanted}
    return (
        wanted["rotation"] != "random"
        and theirs["dtype"] in ("float64", wanted["dtype"])
        and theirs | {"dtype": wanted["dtype"]} == wanted
    )


def _in_setting(options: ForceOptions) -> ForceOptions:
    """Fill in what a setting says, which nothing else may contradict."""
    setting = _choice("setting", options.get("setting"), "recommended", SETTINGS)
    if setting != "paper":
        return options
    for name, value in PAPER.items():
        given = options.get(name)
        if given is not None and given != value:
            raise ConfigError(
                f"{name}={shown(given)} with setting='paper', which means {name}={value!r}; leave "
                "one of them out"
            )
    return cast(ForceOptions, {**options, **PAPER})


def _spread(
    model: Model, options: ForceOptions, forces: str, n_rotations: int
) -> tuple[float | None, str | None]:
    """Largest spread and what is done beyond it, if the spread is to be known at all."""
    largest, action = options.get("max_spread"), options.get("on_spread")
    check_spread(largest, action)
    if action is None:
        if largest is None:
            return None, None
        action = WARN
    config, recommended = model.network.config, model.card.recommended
    check_answers(
        conservative=forces == "conservative",
        force_head=has_force_head(config),
        invariant=config.invariant,
        n_rotations=n_rotations,
        action=action,
    )
    if largest is None and action != MEASURE:
        # A recommended limit belongs to the recommended kind of forces.
        largest = recommended.get("max_spread") if forces == recommended.get("forces") else None
        if largest is None:
            raise ConfigError(
                f"on_spread={action!r} needs a limit, and the card of {model.card.name!r} "
                f"recommends none for {forces} forces; give max_spread in eV/Å (mlmd validate "
                "spread measures one)"
            )
        check_spread(largest, action)
    return None if largest is None else float(largest), action


def _check_rotation(rotation: str, n_rotations: int | None, conservative: bool) -> None:
    if rotation == "none" and n_rotations not in (None, 1):
        raise ConfigError(f"n_rotations={n_rotations} with rotation='none'; use rotation='average'")
    if rotation == "average" and n_rotations is None:
        raise ConfigError(
            "rotation='average' needs the number of orientations, for example n_rotations=12"
        )
    if conservative and rotation == "random":
        raise ConfigError(
            "conservative forces conserve energy only for a fixed set of orientations; "
            "rotation='random' changes it at every call. Use rotation='none' or 'average'"
        )


def _check_heads(model: Model, conservative: bool) -> None:
    config = model.network.config
    if conservative and energy_head(config) is None:
        raise ConfigError(
            "forces='conservative' needs an energy head; the model has "
            f"{', '.join(config.target_heads)}"
        )
    if not conservative and not has_force_head(config):
        raise ConfigError(
            "forces='direct' needs a force head, which the model does not have; use "
            "forces='conservative'"
        )


def _flag(options: ForceOptions, name: str) -> bool | None:
    """Return an option that is True, False or left open."""
    value = cast(Mapping[str, Any], options).get(name)
    if value is not None and not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name}={shown(value)}; it must be True, False or None")
    return None if value is None else bool(value)


def _choice(name: str, value: str | None, default: str, allowed: tuple[str, ...]) -> str:
    """Check an option; None is the default, which the model card may have set."""
    return one_of(name, default if value is None else value, allowed)
