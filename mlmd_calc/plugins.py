"""Entry point of ASE's plugin system; imports nothing heavy."""

from __future__ import annotations

from typing import Any


def _plugins() -> list[Any]:
    try:
        from ase._4.plugins.plugin import CalculatorPlugin
    except ImportError:
        # ASE before 3.29 has no plugin system; importing mlmd_calc.calculator registers there.
        return []
    return [
        CalculatorPlugin(
            "mdet",
            citation="https://arxiv.org/abs/2503.01431",
            implementation="mlmd_calc.calculator.MDETCalculator",
        )
    ]


__ase_plugins__ = _plugins()
