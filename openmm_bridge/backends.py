"""Which ways of putting a model into OpenMM work here."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

import openmm
import torch  # noqa: F401  (openmmtorch finds the torch libraries only once torch has loaded them)

from mlmd_calc.errors import ConfigError, MissingDependencyError

BACKENDS: Final = ("pytorch", "python", "torchscript")
"""In the order in which "auto" tries them, save that TorchScript is used on request only."""


class Backends(list[str]):
    """Names of the back ends that work here.

    Attributes
    ----------
    unavailable
        Why each of the others does not, and what to do.
    """

    def __init__(self, available: list[str], unavailable: Mapping[str, str]) -> None:
        super().__init__(available)
        self.unavailable = dict(unavailable)

    def __repr__(self) -> str:
        missing = "".join(f"\n  not {name}: {why}" for name, why in self.unavailable.items())
        return super().__repr__() + missing


def available_backends() -> Backends:
    """Find the back ends that work here.

    Returns
    -------
    Backends
        A list of names, with a dictionary ``unavailable`` of reasons.

    Examples
    --------
    >>> from openmm_bridge import available_backends
    >>> "python" in available_backends()
    True
    """
    reasons = {name: _CHECKS[name]() for name in BACKENDS}
    return Backends(
        [name for name, reason in reasons.items() if not reason],
        {name: reason for name, reason in reasons.items() if reason},
    )


def choose_backend(wanted: str) -> str:
    """Return the back end for a name or "auto".

    Raises
    ------
    ConfigError
        If there is no such back end.
    MissingDependencyError
        If it does not work here.
    """
    if wanted not in ("auto", *BACKENDS):
        raise ConfigError(f"backend={wanted!r}; choose one of auto, {', '.join(BACKENDS)}")
    backends = available_backends()
    if wanted == "auto":
        wanted = "pytorch" if "pytorch" in backends else "python"
    if wanted in backends.unavailable:
        raise MissingDependencyError(
            f"backend={wanted!r} does not work here: {backends.unavailable[wanted]}"
        )
    return wanted


def openmmtorch_module() -> ModuleType:
    """Import openmmtorch, and make OpenMM load what it could not without torch."""
    root = logging.getLogger()
    # It logs a deprecation warning about its own import.
    root.addFilter(_not_about_simtk)
    try:
        module = importlib.import_module("openmmtorch")
    finally:
        root.removeFilter(_not_about_simtk)
    _load_plugins()
    return module


def _load_plugins() -> None:
    """Load openmmtorch's platforms: OpenMM does it at its import, in vain if torch comes later."""
    folder = Path(openmm.version.openmm_library_path) / "plugins"
    failures = "\n".join(openmm.Platform.getPluginLoadFailures())
    for path in sorted(folder.glob("*OpenMMTorch*")):
        if path.name in failures:
            # Those for platforms that this machine lacks still fail.
            with contextlib.suppress(openmm.OpenMMException):
                openmm.Platform.loadPluginLibrary(str(path))


def _not_about_simtk(record: logging.LogRecord) -> bool:
    return "simtk" not in record.getMessage()


def openmm_version() -> tuple[int, int]:
    """Major and minor version of OpenMM."""
    major, minor = openmm.version.short_version.split(".")[:2]
    return int(major), int(minor)


def _python() -> str:
    if hasattr(openmm, "PythonForce"):
        return ""
    return (
        f"OpenMM {openmm.version.short_version} has no PythonForce; install openmm 8.5 or newer "
        "(pip install 'openmm>=8.5')"
    )


def _openmmtorch() -> str:
    try:
        openmmtorch_module()
    except ImportError as error:
        return (
            f"openmmtorch cannot be imported ({error}); pip install 'mlmd[openmm]' installs the "
            "versions that fit together. backend='python' works without it"
        )
    return ""


def _pytorch() -> str:
    reason = _openmmtorch()
    if reason or hasattr(openmmtorch_module(), "PythonTorchForce"):
        return reason
    return (
        "the installed openmmtorch has no PythonTorchForce (no released version has); "
        "backend='python' does the same"
    )


def _torchscript() -> str:
    if openmm_version() >= (8, 6):
        return (
            f"copying or loading a System with a TorchForce crashes the process with OpenMM "
            f"{openmm.version.short_version}; install openmm 8.5.2 or use backend='python'"
        )
    return _openmmtorch()


_CHECKS: Final = {"pytorch": _pytorch, "python": _python, "torchscript": _torchscript}
