"""Entry point of ASE's plugin system; imports nothing heavy."""

from __future__ import annotations

from typing import Any


def _plugins() -> list[Any]:
    try:
        from ase._4.plugins.plugin import CalculatorPlugin
    except ImportError:
        # ASE before 3.29 has no plugin system; importing mlmd_calc.calculator registers there.
        return []
    plugin = CalculatorPlugin(
        "mdet",
        citation="https://arxiv.org/abs/2503.01431",
        implementation="mlmd_calc.calculator.MDETCalculator",
    )
    # ASE takes the first part of the module's name for that of the distribution, and its listing
    # of all plugins fails if there is no such distribution.
    plugin.package = "mlmd"
    return [plugin]


__ase_plugins__ = _plugins()
