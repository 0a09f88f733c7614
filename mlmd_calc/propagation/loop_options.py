"""Options that every engine hands on to the jump loop."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from mlmd_calc.propagation.corrections import Corrections
from mlmd_calc.propagation.guards import Guard
from mlmd_calc.propagation.other_forces import OtherForces


class LoopOptions(TypedDict, total=False):
    """Keyword arguments that mean the same in every engine; each may be left out.

    Attributes
    ----------
    corrections
        Corrections of a jump; None for the usual ones.
    guard
        Checks of a jump; None for the usual ones, ``Guard.off()`` for none.
    other_forces
        What is done with forces of the engine that are not those of the propagator's potential, a
        bias for instance: "refuse" the run, let them "kick" the molecule before and after each of
        two jumps over half the stride, or "ignore" them in jumps.
    md_steps_per_jump
        Force-based steps after each jump, part of the same step; the time advances by them too.
    frames_per_jump
        Frames of a jump at equal spacing: its end and, if there are more, frames inside it, from
        the same call of the propagator. Where force-based steps are made, after a jump or in its
        place, these give frames at that spacing. Frames inside a step are corrected like its end,
        except that velocities are not scaled to an energy; the guard judges ends alone.
    rng
        ``numpy.random.Generator``, the source of all randomness; None draws a seed.
    """

    corrections: Corrections | None
    guard: Guard | None
    other_forces: OtherForces
    md_steps_per_jump: int
    frames_per_jump: int
    rng: np.random.Generator | None
