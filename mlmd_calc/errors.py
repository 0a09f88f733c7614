"""Exceptions raised by this package.

Where an engine has a fitting exception type, ours derives from it, so that scripts which already
catch the engine's errors keep working.
"""

from __future__ import annotations


class MLMDError(Exception):
    """Base class of all errors raised by this package."""


class ConfigError(MLMDError, ValueError):
    """An option has a value, or a combination of values, that is not allowed."""


class InputError(MLMDError, ValueError):
    """A structure cannot be handed to the model (element, charge, geometry, cell)."""


class ModelFileError(MLMDError, ValueError):
    """A model or data file is missing, damaged, or not what it claims to be."""


class PredictionError(MLMDError, RuntimeError):
    """The model returned numbers that no simulation should continue with."""


class RefusedFramesError(PredictionError):
    """Every draw of a frame was refused; nothing sound can be drawn from here."""


class MissingDependencyError(MLMDError, ImportError):
    """An optional package is needed for this feature."""
