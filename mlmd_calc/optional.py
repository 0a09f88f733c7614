"""Import optional packages, and objects of other people, with a helpful message."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from mlmd_calc.errors import ConfigError, MissingDependencyError


def require(module: str, *, extra: str, why: str) -> ModuleType:
    """Import an optional module or say how to install it.

    Parameters
    ----------
    module
        Name to import, e.g. ``"tblite.interface"``.
    extra
        The extra of this distribution that installs it.
    why
        What the module is needed for; ends the sentence "... is needed to".

    Raises
    ------
    MissingDependencyError
        If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".", maxsplit=1)[0]
        raise MissingDependencyError(
            f"{package} is needed to {why} but cannot be imported ({error}); "
            f"install it with: pip install 'mlmd[{extra}]'"
        ) from error


def import_object(path: str, what: str) -> Any:
    """Import an object by its path.

    Parameters
    ----------
    path
        ``package.module:name``.
    what
        What the object is to the user; begins the error message.

    Raises
    ------
    ConfigError
        If the path has no colon, or there is no such object.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator:
        raise ConfigError(f"{what} {path!r} is no import path; write package.module:name")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{what} {path!r} cannot be imported: {error}; a module of your own is found if its "
            "folder is in PYTHONPATH"
        ) from error
