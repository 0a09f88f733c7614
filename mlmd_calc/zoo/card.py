"""Model cards: what a model is, what it was trained on, and how well it was measured to work."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Final

import ase.data
from rich.table import Table
from rich.text import Text

from mlmd_calc.biomolecules.domain import Domain
from mlmd_calc.electrons import TrainedState
from mlmd_calc.errors import ConfigError
from mlmd_calc.options import (
    check_count,
    check_depth,
    check_types,
    refuse_unknown,
    shown,
    with_lists,
    with_tuples,
)

RECOMMENDED_SETTINGS: Final = (
    *("forces", "rotation", "n_rotations", "dtype", "max_spread"),
    *("potential", "stride_fs"),
    *("friction_per_ps", "lowest_friction_per_ps", "temperature_range_K"),
    "sampler_by_length",
)
"""Settings of :class:`mlmd_calc.Potential`, of jumps and of samplers that a card may recommend."""

_SAMPLER_SETTINGS: Final = ("noise_scale", "step_scale", "gamma_0")
_LONGEST_NAME: Final = 200
_MOST_PARAMETERS: Final = 10**12


@dataclass(frozen=True)
class ModelCard:
    """Description of a model.

    Attributes
    ----------
    name
        Name of the model.
    kind
        "mdet", a force field, or "atom" or "atmos", a propagator.
    description
        One or two sentences.
    elements
        Atomic numbers the model was trained on; None when unknown.
    electronic_states
        Charges and multiplicities the model was trained on; None when unknown.
    domain
        Biomolecules that an ATMOS model was trained on; None when unknown.
    recommended
        Settings for molecular dynamics, any of "forces", "rotation", "n_rotations" and "dtype", and
        the spread of the forces "max_spread" in eV/Å beyond which they are not to be trusted; for
        propagators the force field "potential", the time step "stride_fs" and a Langevin
        thermostat's "friction_per_ps"; also what was measured to go wrong, friction below
        "lowest_friction_per_ps", and to go well, "temperature_range_K" from lowest to highest; for
        ATMOS models "sampler_by_length", "noise_scale", "step_scale" and "gamma_0" of the sampler
        by the number of amino acids from which on they hold, e.g. ``{"1": {"noise_scale": 1.2},
        "4": {"noise_scale": 1.1, "step_scale": 1.0}}``, what is left out being that of the network;
        empty if nothing is recommended.
    strides_ps
        Times in ps between the frames the model was trained on, for models that know no others.
    temperature_K
        Temperature of the training data, for models that know no other.
    closest_contact
        Smallest distance of two atoms in the training data, as a fraction of the sum of their
        covalent radii.
    largest_gap_A
        Largest distance in Å in the training data from a part of a structure to the rest. Force
        fields refuse structures beyond both.
    level_of_theory
        Method that made the labels.
    training_data
        Data set.
    potential_sha256
        Checksum of the recommended "potential" that a propagator was trained with; empty if that is
        unknown.
    fine_tuned_from
        Name and checksum of the model that the training started from; empty if from random weights.
    units
        Units of what the model predicts.
    errors
        Measured errors by data set and quantity, e.g. ``{"held-out molecules": {"forces, meV/Å":
        40.0}}``.
    licence, citation
        Terms of use and what to cite.
    command
        The exact command that trained the model.
    parameters
        Number of trained parameters; 0 when unknown.
    sha256
        Checksum of the file the card was loaded from; empty for a card that was not loaded.
    recipe
        Hyper-parameters of the training.
    validation
        Metrics at the end of the training.

    Raises
    ------
    ConfigError
        If an entry has a value of another type or control characters, the name looks like a path,
        an element is not an atomic number from 1 to 100, or a recommended setting is unknown.
    """

    name: str = ""
    kind: str = "mdet"
    description: str = ""
    elements: tuple[int, ...] | None = None
    electronic_states: tuple[TrainedState, ...] | None = None
    domain: Domain | None = None
    recommended: dict[str, Any] = field(default_factory=dict)
    strides_ps: tuple[float, ...] = ()
    temperature_K: float | None = None  # noqa: N815
    closest_contact: float | None = None
    largest_gap_A: float | None = None  # noqa: N815
    level_of_theory: str = ""
    training_data: str = ""
    potential_sha256: str = ""
    fine_tuned_from: str = ""
    units: str = "energy eV, forces eV/Å"
    errors: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    command: str = ""
    parameters: int = 0
    sha256: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        for item in fields(self):
            check_depth(f"{item.name} of a model card", getattr(self, item.name))
            _check_printable(item.name, getattr(self, item.name))
        check_count(self, "parameters", least=0, most=_MOST_PARAMETERS)
        self._check_name()
        wrong = [z for z in self.elements or () if not 1 <= z <= 100]
        if wrong:
            raise ConfigError(
                f"elements {shown(wrong)} of a model card are not atomic numbers 1 to 100"
            )
        unknown = sorted(set(self.recommended) - set(RECOMMENDED_SETTINGS))
        if unknown:
            raise ConfigError(
                f"a model card cannot recommend {shown(unknown)}; known settings are "
                f"{', '.join(RECOMMENDED_SETTINGS)}"
            )
        _check_sampler(self.recommended.get("sampler_by_length", {}))

    def _check_name(self) -> None:
        """Refuse names that would be taken for a path or break a line."""
        parts = self.name.split("/")
        wrong = "\n" in self.name or "\\" in self.name or len(self.name) > _LONGEST_NAME
        # Models of repositories are called owner/repo/variant.
        if self.name and (wrong or {"", ".", ".."} & set(parts)):
            raise ConfigError(
                f"name={shown(self.name)} of a model card; it must be one line of at most "
                f"{_LONGEST_NAME} characters and no path"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON-able values."""
        values: dict[str, Any] = with_lists(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelCard:
        """Build a card from :meth:`to_dict` output; missing entries keep their defaults.

        Raises
        ------
        ConfigError
            If an entry is unknown or not allowed.
        """
        given = refuse_unknown(cls, values, "model card entries")
        values, states = with_tuples(given), given.get("electronic_states")
        if isinstance(states, list):
            values["electronic_states"] = tuple(_trained_state(state) for state in states)
        if values.get("domain") is not None and not isinstance(values["domain"], Domain):
            values["domain"] = Domain.from_dict(values["domain"])
        return cls(**values)

    def _rows(self) -> list[tuple[str, str]]:
        """Label and text of every entry that says something."""
        texts = {item.name: _text(getattr(self, item.name)) for item in fields(self)}
        texts["elements"] = "unknown" if self.elements is None else _symbols(self.elements)
        texts["electronic_states"] = "\n".join(map(str, self.electronic_states or ()))
        texts["domain"] = "" if self.domain is None else str(self.domain)
        texts["parameters"] = f"{self.parameters:,}" if self.parameters else ""
        texts["strides_ps"] = ", ".join(f"{stride:g} ps" for stride in self.strides_ps)
        texts["temperature_K"] = "" if self.temperature_K is None else f"{self.temperature_K:g} K"
        closest, gap = self.closest_contact, self.largest_gap_A
        texts["closest_contact"] = "" if closest is None else f"{closest:.2f} of the covalent radii"
        texts["largest_gap_A"] = "" if gap is None else f"{gap:.2f} Å"
        labels = {
            "electronic_states": "charges, spins",
            "domain": "molecules",
            "closest_contact": "closest atoms",
            "largest_gap_A": "largest gap",
            "level_of_theory": "level of theory",
            "training_data": "training data",
            "potential_sha256": "with potential",
            "fine_tuned_from": "fine-tuned from",
            "strides_ps": "strides",
            "temperature_K": "temperature",
        }
        return [(labels.get(name, name), text) for name, text in texts.items() if text]

    @property
    def what_it_knows(self) -> str:
        """The description without how the model was made, which follows a stop or a colon."""
        return re.split(r"[.:](?: |$)", self.description)[0]

    def __repr__(self) -> str:
        return f"<ModelCard {self.name}: {self.what_it_knows}>"

    def __str__(self) -> str:
        lines = []
        for label, text in self._rows():
            first, *rest = text.splitlines()
            lines += [f"{label:<16}{first}", *(f"{'':<16}{line}" for line in rest)]
        return "\n".join(lines)

    def __rich__(self) -> Table:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for label, text in self._rows():
            # The texts are data: brackets in them are not rich markup.
            table.add_row(label, Text(text))
        return table


def _check_printable(name: str, value: object) -> None:
    """Refuse texts that do more to a terminal than to fill it; line breaks are allowed."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_printable(name, key)
            _check_printable(name, entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _check_printable(name, entry)
    elif isinstance(value, str) and not value.replace("\n", "").isprintable():
        raise ConfigError(
            f"{name}={shown(value)} of a model card holds control characters; take them out"
        )


def _check_sampler(by_length: object) -> None:
    """Refuse what is not settings of the sampler by the least number of amino acids."""
    entries: dict[Any, Any] = dict(by_length) if isinstance(by_length, Mapping) else {"": by_length}
    for least, settings in entries.items():
        if not (str(least).isdecimal() and _are_factors(settings)):
            raise ConfigError(
                f"sampler_by_length={shown(by_length)} of a model card; it must be positive "
                f"factors {', '.join(_SAMPLER_SETTINGS)} by the least number of amino acids, "
                'like {"1": {"noise_scale": 1.2, "step_scale": 1.0}}'
            )


def _are_factors(settings: object) -> bool:
    if not isinstance(settings, Mapping) or set(settings) - set(_SAMPLER_SETTINGS):
        return False
    return all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 < value < math.inf
        for value in settings.values()
    )


def _trained_state(values: object) -> TrainedState:
    known = refuse_unknown(TrainedState, values, "entries of electronic_states")
    needed = [item.name for item in fields(TrainedState) if item.default is MISSING]
    missing = [name for name in needed if name not in known]
    if missing:
        raise ConfigError(f"electronic_states of a model card lack {', '.join(missing)}")
    return TrainedState(**known)


def _symbols(elements: tuple[int, ...]) -> str:
    return " ".join(ase.data.chemical_symbols[z] for z in elements)


def _text(value: Any) -> str:
    """One line per entry of a dictionary; nested dictionaries on the line of their key."""
    if not isinstance(value, dict):
        return str(value)
    return "\n".join(f"{key}: {_inline(entry)}" for key, entry in value.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(entry)}" for key, entry in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
