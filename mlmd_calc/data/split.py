"""Splits into training and held-out frames that do not leak."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.wording import counted

if TYPE_CHECKING:
    from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory

M = TypeVar("M", bound="MoleculeFrames | BiomolecularTrajectory")


def split_by_molecule(
    frames: Sequence[M],
    holdout_names: Collection[str] | None = None,
    *,
    fraction: float | None = None,
    seed: int | None = None,
) -> tuple[list[M], list[M]]:
    """Hold out whole molecules.

    Give either the names or a fraction with a seed. Everything of one name goes to the same side.

    Parameters
    ----------
    frames
        Molecules; the same name may occur several times (labels and trajectories, say).
    holdout_names
        Names of the molecules to hold out.
    fraction, seed
        Fraction of the distinct names to hold out, in (0, 1), at least one; seed of the choice.

    Returns
    -------
    train, held_out
        Both in the order given.

    Raises
    ------
    ConfigError
        If not exactly one of names and fraction is given, a seed is missing, the fraction
        is out of range, a name does not occur, or one side would be empty.
    InputError
        If one molecule, known by its SMILES, would end up on both sides under different names.
    """
    names = sorted({molecule.name for molecule in frames})
    if (holdout_names is None) == (fraction is None):
        raise ConfigError("give either holdout_names or fraction, not both or neither")
    if holdout_names is not None:
        held = {holdout_names} if isinstance(holdout_names, str) else set(holdout_names)
        if unknown := sorted(held - set(names)):
            raise ConfigError(f"no molecule is called {unknown}; there are {names}")
    else:
        held = _draw(names, fraction, seed)
    train = [molecule for molecule in frames if molecule.name not in held]
    held_out = [molecule for molecule in frames if molecule.name in held]
    if not train or not held_out:
        raise ConfigError(
            f"holding out {sorted(held)} of {names} leaves one side of the split empty"
        )
    _refuse_shared_smiles(train, held_out)
    return train, held_out


def _draw(names: list[str], fraction: float | None, seed: int | None) -> set[str]:
    if fraction is None or not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction}; allowed is 0 < fraction < 1")
    if seed is None:
        raise ConfigError("a split by fraction needs a seed, so that it can be repeated")
    count = max(1, round(fraction * len(names)))
    return set(np.random.default_rng(seed).choice(names, size=count, replace=False).tolist())


def _refuse_shared_smiles(train: Sequence[M], held_out: Sequence[M]) -> None:
    def by_smiles(molecules: Sequence[M]) -> dict[str, str]:
        return {
            smiles: molecule.name
            for molecule in molecules
            if (smiles := molecule.metadata.get("smiles"))
        }

    trained, held = by_smiles(train), by_smiles(held_out)
    for smiles in trained.keys() & held.keys():
        raise InputError(
            f"{trained[smiles]!r} and {held[smiles]!r} are the same molecule ({smiles}) "
            "on both sides of the split; give them the same name or hold out both"
        )


def split_by_block(
    frames: Sequence[MoleculeFrames], fraction: float
) -> tuple[list[MoleculeFrames], list[MoleculeFrames]]:
    """Hold out the last part of every trajectory.

    Of every segment (of all frames, where a molecule has no segments) the last ``fraction`` of the
    frames, rounded down, is held out as one contiguous block: neighbouring frames are nearly the
    same, so an interleaved choice would test on what was trained on. Of a molecule with many
    trajectories the last ones are held out whole, where that makes one or more: the end of a short
    one would be too short to follow.

    Where every such block would be shorter than one frame, as in a collection of single
    structures, that fraction of all frames is held out one by one, at least one: the last frames
    of segments that are spread evenly over the data. The others keep all elements.

    Parameters
    ----------
    frames
        Molecules whose frames are in the order of time within each segment.
    fraction
        Fraction of the frames to hold out, in (0, 1).

    Returns
    -------
    train, held_out
        Molecules without any frame on one side are missing there.

    Raises
    ------
    ConfigError
        If the fraction is out of range, or no frame can be held out.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction}; allowed is 0 < fraction < 1")
    held = [_last_blocks(molecule, fraction) for molecule in frames]
    if not any(chosen.any() for chosen in held):
        held = _single_frames(frames, fraction)
    if not any(chosen.any() for chosen in held):
        raise ConfigError(
            f"none of the {counted(sum(map(len, frames)), 'frame')} of "
            f"{counted(len(frames), 'molecule')} can be held out: the others would lack an "
            "element, or there are none; add frames, or hold out nothing (held_out_fraction=0)"
        )
    pairs = list(zip(frames, held, strict=True))
    train = [m.select(np.flatnonzero(~chosen)) for m, chosen in pairs if not chosen.all()]
    return train, [m.select(np.flatnonzero(chosen)) for m, chosen in pairs if chosen.any()]


def _segments(molecule: MoleculeFrames) -> list[NDArray[np.intp]]:
    """Frames of each independent trajectory."""
    label = molecule.segment
    if label is None:
        return [np.arange(len(molecule))]
    return [np.flatnonzero(label == value) for value in np.unique(label)]


def _last_blocks(molecule: MoleculeFrames, fraction: float) -> NDArray[np.bool_]:
    """Mark the last trajectories, or of every segment the last part but never its first frame."""
    held = np.zeros(len(molecule), dtype=bool)
    segments = _segments(molecule)
    whole = 0 if molecule.dt_fs is None else math.floor(fraction * len(segments))
    if whole:
        held[np.concatenate(segments[-whole:])] = True
        return held
    for members in segments:
        held[members[len(members) - math.floor(fraction * len(members)) :]] = True
    return held


def _single_frames(frames: Sequence[MoleculeFrames], fraction: float) -> list[NDArray[np.bool_]]:
    """Mark the last frames of evenly spread segments; what is left keeps all elements."""
    held = [np.zeros(len(molecule), dtype=bool) for molecule in frames]
    ends = [(i, part[-1]) for i, m in enumerate(frames) for part in _segments(m) if len(part)]
    molecules_with = Counter(z for m in frames for z in set(m.numbers.tolist()))
    count = max(1, round(fraction * sum(map(len, frames))))
    for position in ((np.arange(count) + 0.5) * len(ends) / count).astype(int):
        index, last = ends[position]
        elements = set(frames[index].numbers.tolist())
        is_only_frame = (~held[index]).sum() == 1
        if is_only_frame and any(molecules_with[z] == 1 for z in elements):
            continue
        held[index][last] = True
        if is_only_frame:
            molecules_with.subtract(elements)
    return held
