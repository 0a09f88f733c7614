"""Names for training, validation and tests; everything of one name goes to the same side."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from mlmd_calc.errors import ConfigError


class Split(NamedTuple):
    """Names of molecules, each tuple sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_names(
    names: Iterable[str],
    *,
    test: int | Collection[str],
    validation: int,
    train: int | None = None,
    seed: int,
) -> Split:
    """Split names of molecules at random.

    The sizes published for ATMOS are ``test=64, validation=50, train=1000`` for mdCATH, and
    ``test=1289, validation=1278`` for MISATO, with 100 of the former evaluated (`MISATO_TEST` of
    `mlmd_calc.data.biomolecules.misato`).

    Parameters
    ----------
    names
        Names of `BiomolecularTrajectory`; repeated ones count once.
    test
        How many names, or which.
    validation
        How many names.
    train
        How many names, or None for all that are left.
    seed
        Of the choice, which depends on nothing but it, the numbers and the set of names.

    Raises
    ------
    ConfigError
        If there are too few names, a number is negative, or a name for tests does not occur.
    """
    pool = sorted(set(names))
    if isinstance(test, int):
        chosen, count = [], test
    else:
        chosen, count = sorted(set(test)), 0
    if unknown := sorted(set(chosen) - set(pool)):
        raise ConfigError(
            f"{len(unknown)} names for tests do not occur in the data, the first is {unknown[0]!r}"
        )
    left = [name for name in pool if name not in chosen]
    needed = (count, validation, 1 if train is None else train)
    if min(needed) < 0 or sum(needed) > len(left):
        raise ConfigError(
            f"test {count}, validation {validation} and train {train} names are asked for, and "
            f"there are {len(left)}; ask for fewer, none negative"
        )
    order = np.random.default_rng(seed).permutation(left).tolist()
    ends = np.cumsum([count, validation, len(left) if train is None else train])
    drawn, validated, trained = (sorted(part) for part in np.split(order, ends)[:3])
    return Split(tuple(map(str, trained)), tuple(map(str, validated)), (*chosen, *map(str, drawn)))
