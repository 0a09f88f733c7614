"""Tell whether a file that a generator wrote is the one that is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlmd_calc.errors import ConfigError, MLMDError


def is_finished(
    path: Path, read_metadata: Callable[[Path], Mapping[str, str]], wanted: Mapping[str, Any]
) -> bool:
    """Tell whether a file exists, and make sure that it was generated as wanted.

    Parameters
    ----------
    path
        The file.
    read_metadata
        Returns the metadata of the file, whose entry ``provenance`` is a JSON object.
    wanted
        What the provenance must hold, with other entries or not.

    Raises
    ------
    ConfigError
        If the file holds something else.
    """
    if not path.exists():
        return False
    try:
        stored = json.loads(read_metadata(path)["provenance"])
    except (MLMDError, KeyError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"{path} exists but was not written by this generator ({error}); "
            "choose another directory or remove the file"
        ) from error
    require_same(path, stored, wanted)
    return True


def require_same(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a file that was generated with other settings.

    Raises
    ------
    ConfigError
        If an entry of ``wanted`` is missing from ``stored`` or different there.
    """
    different = [
        f"{key} is {stored.get(key)} instead of {value}"
        for key, value in wanted.items()
        if stored.get(key) != value
    ]
    if different:
        raise ConfigError(
            f"{path} exists but was generated differently: {'; '.join(different)}; "
            "choose another directory, remove the file, or repeat its settings"
        )
