"""Load propagators by name."""

from __future__ import annotations

import os

from mlmd_calc.errors import ConfigError
from mlmd_calc.potential import Potential
from mlmd_calc.propagation.atom import ATOMPropagator
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.propagator import Propagator
from mlmd_calc.zoo import load_atom


def as_propagator(propagator: Propagator | str | os.PathLike[str]) -> Propagator:
    """Return a propagator, loaded if it is given by name or file; see :func:`load_propagator`."""
    return propagator if isinstance(propagator, Propagator) else load_propagator(propagator)


def load_propagator(
    name_or_path: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "float32",
    potential: ForceModel | str | os.PathLike[str] | None = None,
    rotation: str | None = None,
) -> Propagator:
    """Load a propagator.

    Parameters
    ----------
    name_or_path
        Name of a shipped model (see :func:`mlmd_calc.list_models`) or a ``.safetensors`` file.
    device
        "auto" (CUDA if there is one), or a torch device.
    dtype
        "float32" or "float64", precision of the network and of a potential given by name; motion
        without forces is always in double precision.
    potential
        Force model, or the name of one, for propagators that take the accelerations at the start of
        a jump. None: the one that the model card recommends.
    rotation
        See :class:`ATOMPropagator`.

    Raises
    ------
    ConfigError
        If there is no such model, it is no propagator, or an option is wrong.
    ModelFileError
        If the model is damaged or cannot be read.

    Examples
    --------
    >>> from mlmd_calc import load_propagator
    >>> propagator = load_propagator("atom-small-organics")  # doctest: +SKIP
    """
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"dtype={dtype!r}; choose one of float32, float64")
    model = load_atom(name_or_path, device=device, dtype=dtype)
    options = model.network.config.integrator
    if potential is None and options is not None and options.accelerations:
        potential = model.card.recommended.get("potential")
    if isinstance(potential, str | os.PathLike):
        potential = Potential(str(potential), device=device, dtype=dtype)
    return ATOMPropagator(model, potential=potential, rotation=rotation)
