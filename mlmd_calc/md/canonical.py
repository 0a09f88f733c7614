"""What dynamics in the canonical ensemble are made of: fresh momenta and the Metropolis test."""

from __future__ import annotations

import math

import numpy as np

from mlmd_calc import units
from mlmd_calc.propagation.state import FloatArray


def refreshed(
    momenta: FloatArray,
    masses: FloatArray,
    temperature_K: float,
    damping: float,
    rng: np.random.Generator,
) -> FloatArray:
    """Replace a part of momenta by Maxwell-Boltzmann ones: p ← c p + √((1 − c²) m k T) ξ.

    Parameters
    ----------
    momenta, masses
        ``(n, 3)`` and ``(n, 1)`` in ASE units.
    temperature_K
        Temperature in K.
    damping
        Friction times time γ t, of which the fraction c = exp(−γ t) is kept; infinity draws all
        anew.
    rng
        Source of randomness.
    """
    kept = math.exp(-damping)
    noise = rng.standard_normal(momenta.shape)
    fresh: FloatArray = np.sqrt((1.0 - kept * kept) * masses * units.KB * temperature_K) * noise
    return kept * momenta + fresh


def acceptance_probability(change: float, temperature_K: float) -> float:
    """Probability min(1, exp(−ΔH / k T)) with which a Metropolis test accepts.

    Parameters
    ----------
    change
        Change ΔH of the total energy in eV, which may be infinite.
    temperature_K
        Temperature in K.
    """
    return math.exp(min(0.0, -change / (units.KB * temperature_K)))
