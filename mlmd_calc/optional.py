"""Import optional packages with a helpful message."""

from __future__ import annotations

import importlib
from types import ModuleType

from mlmd_calc.errors import MissingDependencyError


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
