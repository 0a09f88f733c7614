"""What the card of a trained model says of its data and of the model it started from."""

from __future__ import annotations

import json
from typing import Any, Final

from mlmd_calc.training.recipe import Recipe, TrainingData
from mlmd_calc.wording import counted
from mlmd_calc.zoo import KINDS, LoadedModel, list_models

_NAMED: Final = 12
"""Molecules of the training data that are named."""

_OF_WEIGHTS: Final = ("max_spread", "lowest_friction_per_ps")
"""Recommended limits that were measured with the very weights."""


def card_entries(
    data: TrainingData, recipe: Recipe, start: LoadedModel[Any] | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Entries of the model card that follow from the data and from the model to fine-tune.

    A fine-tuned model keeps the recommended settings, licence and citation of the one it started
    from, and names it. Level of theory, data and commands are those of both. Measured errors are
    not kept: they are of other weights.

    Parameters
    ----------
    data
        What is trained on.
    recipe
        Hyper-parameters.
    start
        Model to fine-tune, if any.
    given
        Entries that the user gives; they come before all others.

    Raises
    ------
    ConfigError
        If the recipe does not train what the model to fine-tune is recommended for.
    """
    own: dict[str, Any] = {
        "training_data": data_summary(data),
        "level_of_theory": ", ".join(_stated(data, "teacher")),
        "units": KINDS[recipe.kind].units,
    }
    forces = _stated(data, "forces")
    if start is None:
        if recipe.used_with_forces and len(forces) == 1 and _is_shipped(forces[0]):
            own["recommended"] = {"potential": forces[0]}
            own["potential_sha256"] = _checksum(data)
        return {**own, **given}
    if "recommended" not in given:
        recipe.check_start(start)
    parent = start.card
    names = ", ".join(sorted({molecule.name for molecule in data})[:_NAMED])
    inherited: dict[str, Any] = {
        "description": f"{parent.name}, fine-tuned on {names}.",
        "recommended": {k: v for k, v in parent.recommended.items() if k not in _OF_WEIGHTS},
        "licence": parent.licence,
        "citation": parent.citation,
        "units": parent.units,
        "fine_tuned_from": f"{parent.name} (sha256 {start.sha256})",
        "level_of_theory": _both_levels(own["level_of_theory"], parent.level_of_theory),
        "training_data": own["training_data"],
    }
    if parent.training_data:
        inherited["training_data"] += f"; before that, of {parent.name}: {parent.training_data}"
    if "potential" in parent.recommended:
        inherited["potential_sha256"] = _checksum(data) if forces else parent.potential_sha256
        if forces and forces != [parent.recommended["potential"]]:
            _change_potential(inherited, forces)
    entries = {**inherited, **given}
    if parent.command:
        entries["command"] = "\n".join([parent.command, *filter(None, [given.get("command")])])
    return entries


def _change_potential(entries: dict[str, Any], forces: list[str]) -> None:
    """Recommend the force field whose accelerations were trained on, or at least name it."""
    if len(forces) == 1 and _is_shipped(forces[0]):
        entries["recommended"]["potential"] = forces[0]
    else:
        del entries["recommended"]["potential"], entries["potential_sha256"]
        entries["description"] += f" Trained on accelerations of {', '.join(forces)}."


def _is_shipped(name: str) -> bool:
    return name in [card.name for card in list_models()]


def _checksum(data: TrainingData) -> str:
    """Checksum of the force field that the data follow, if all of them say the same."""
    found = _stated(data, "teacher_sha256")
    return found[0] if len(found) == 1 else ""


def _both_levels(own: str, parent: str) -> str:
    if not parent or not own:
        return own or (f"{parent}; that of the fine-tuning is not stated" if parent else "")
    return parent if own in parent else f"{own}; before fine-tuning {parent}"


def data_summary(data: TrainingData) -> str:
    """Say how many frames there are, and of which molecules."""
    names = sorted({molecule.name for molecule in data})
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    frames = sum(len(molecule) for molecule in data)
    return f"{counted(frames, 'frame')} of {', '.join(names[:_NAMED])}{more}"


def _stated(data: TrainingData, key: str) -> list[str]:
    """Return what the metadata, or the provenance in them, say under a key."""
    found = set()
    for molecule in data:
        try:
            provenance = json.loads(molecule.metadata.get("provenance", "{}"))
        except json.JSONDecodeError:
            provenance = {}
        entries = {**(provenance if isinstance(provenance, dict) else {}), **molecule.metadata}
        found.add(str(entries.get(key, "")))
    # Where some of the data do not say, nothing is known of all of them.
    return [] if "" in found else sorted(found)
