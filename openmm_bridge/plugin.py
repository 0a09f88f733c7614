"""Entry point of OpenMM-ML, which loads it whenever it is itself imported.

So nothing heavy is imported here, and not OpenMM-ML either, which would be a circle.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from mlmd_calc.errors import ConfigError

if TYPE_CHECKING:
    from openmm_bridge.ml_potential import MDETPotential


class MDETPotentialFactory:
    """Make the potential for ``openmmml.MLPotential("mdet", model=...)``."""

    def createImpl(self, name: str, **args: Any) -> MDETPotential:  # noqa: N802
        """Make the potential; the only option is ``model``.

        Raises
        ------
        ConfigError
            If there are other options.
        """
        from openmm_bridge.ml_potential import MDETPotential

        refuse_unknown(args, ("model",), "MLPotential('mdet', ...)")
        return MDETPotential(args.get("model"))


def refuse_unknown(given: Collection[str], allowed: Collection[str], where: str) -> None:
    """Raise ConfigError for options that are not allowed; OpenMM-ML passes on anything."""
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise ConfigError(
            f"unknown option {', '.join(unknown)} for {where}; there are {', '.join(allowed)}"
        )
