"""Entry point of OpenMM-ML, which loads it whenever it is itself imported.

So nothing heavy is imported here, and not OpenMM-ML either, which would be a circle.
"""

from __future__ import annotations

from typing import Any


class MDETPotentialFactory:
    """Make the potential for ``openmmml.MLPotential("mdet", model=...)``."""

    def createImpl(self, name: str, **args: Any) -> Any:  # noqa: N802
        """Make an :class:`openmm_bridge.ml_potential.MDETPotential`; the only option is ``model``.

        Raises
        ------
        ConfigError
            If there are other options.
        """
        from openmm_bridge.ml_potential import MDETPotential, refuse_options

        refuse_options(args, ("model",), "MLPotential('mdet', ...)")
        return MDETPotential(args.get("model"))
