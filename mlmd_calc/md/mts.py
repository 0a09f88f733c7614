"""Multiple time stepping: cheap forces often, the difference to accurate ones seldom.

The reference system propagator algorithm (r-RESPA; M. Tuckerman, B. J. Berne, G. J. Martyna,
J. Chem. Phys. 97, 1990 (1992)). With the accurate forces F and the cheap forces f, one step Δt of M
inner steps δt = Δt / M is

====================================  ===================================================
p ← p + Δt/2 (F(x) − f(x))            correction
p ← p + δt/2 f(x), x ← x + δt p/m,    M times; with a thermostat the drift is done in two
p ← p + δt/2 f(x)                     halves, p ← c p + √((1 − c²) m k T) ξ in between
p ← p + Δt/2 (F(x) − f(x))            correction
====================================  ===================================================

where c = exp(−γ δt) with the friction γ. With M = 1 these are velocity Verlet and BAOAB
(B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34) with the accurate forces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ase
import numpy as np

from mlmd_calc.bonded import BondedForceField
from mlmd_calc.errors import ConfigError
from mlmd_calc.md.attached import AttachedCalculator
from mlmd_calc.md.canonical import refreshed
from mlmd_calc.md.force_source import Forces, ForceSource
from mlmd_calc.md.restartable import RestartableDynamics
from mlmd_calc.options import check_count, check_positive
from mlmd_calc.potential import Potential
from mlmd_calc.propagation.state import FloatArray


def direct_forces(calculator: Any) -> Potential:
    """Return the force head of a calculator's model, in single precision, as cheap forces.

    Parameters
    ----------
    calculator
        An :class:`mlmd_calc.MDETCalculator` with conservative forces.

    Raises
    ------
    ConfigError
        If it is not, or its model has no force head.
    """
    potential = getattr(calculator, "potential", None)
    if potential is None or not potential.conservative:
        raise ConfigError(
            f"{calculator!r} has no cheaper forces of its own; give a calculator or force model as "
            "fast"
        )
    # Whatever is wrong with them is corrected, and seldom: one fixed orientation is enough.
    return Potential(
        potential.model,
        device=str(potential.device),
        dtype="float32",
        forces="direct",
        rotation="none",
    )


class MTSVelocityVerlet(RestartableDynamics):
    """Velocity Verlet with multiple time steps, for constant energy.

    Takes the place of :class:`ase.md.verlet.VelocityVerlet`. Energies and forces that are written
    or logged are the accurate ones, those of ``atoms.calc``.

    Parameters
    ----------
    atoms
        Atoms with a calculator, which gives the accurate forces.
    timestep
        Length of a step in ASE time units, in which the accurate forces are evaluated once.
    fast
        Cheap forces: an ASE calculator, or a force model such as :class:`mlmd_calc.Potential`.
        None: the force head of the model of ``atoms.calc``, in single precision.
    inner_steps
        Evaluations of the cheap forces in a step.
    **options
        `trajectory`, `logfile`, `loginterval` and others of ASE's dynamics, and `restart`; see
        :class:`mlmd_calc.md.restartable.RestartableDynamics`.

    Raises
    ------
    ConfigError
        If an option has a value that is not allowed, or there are no cheap forces.
    InputError
        If the atoms carry constraints, or stand elsewhere than those that fitted cheap forces are
        of.

    Examples
    --------
    >>> from ase import units
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator
    >>> from mlmd_calc.md import MTSVelocityVerlet
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = MDETCalculator()
    >>> dyn = MTSVelocityVerlet(atoms, 2.0 * units.fs, inner_steps=4)
    >>> dyn.run(10)
    True
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        fast: Forces | None = None,
        *,
        inner_steps: int,
        **options: Any,
    ) -> None:
        if atoms.calc is None:
            raise ConfigError("the atoms have no calculator, which gives the accurate forces")
        self.inner_steps = inner_steps
        check_count(self, "inner_steps")
        cheap = direct_forces(atoms.calc) if fast is None else fast
        if isinstance(cheap, BondedForceField):
            cheap.check_start(atoms)
        self._fast = ForceSource(atoms, cheap, partner=atoms.calc)
        accurate = ForceSource(atoms, atoms.calc)
        self._check_forces(accurate, self._fast)
        self._names = {"accurate": accurate.identity(), "fast": self._fast.identity()}
        self._accurate = AttachedCalculator(atoms)
        self._known: tuple[FloatArray, FloatArray] | None = None
        super().__init__(atoms, timestep, **options)

    def _check_forces(self, accurate: ForceSource, fast: ForceSource) -> None:
        """Refuse forces that the method cannot do with."""

    def step(self) -> None:
        """Do one step."""
        atoms = self.atoms
        positions, momenta = atoms.get_positions(), self._corrected(atoms.get_momenta())
        for _ in range(self.inner_steps):
            positions, momenta = self._inner_step(positions, momenta)
        atoms.set_positions(positions)
        atoms.set_momenta(self._corrected(momenta))

    def _corrected(self, momenta: FloatArray) -> FloatArray:
        """Kick by the difference of accurate and cheap forces for half a step."""
        difference = self.atoms.get_forces(md=True) - self._fast_forces(self.atoms.positions)
        kicked: FloatArray = momenta + 0.5 * self.dt * difference
        return kicked

    def _inner_step(
        self, positions: FloatArray, momenta: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Move by the cheap forces."""
        time = self.dt / self.inner_steps
        momenta = momenta + 0.5 * time * self._fast_forces(positions)
        positions, momenta = self._drift(positions, momenta, time)
        return positions, momenta + 0.5 * time * self._fast_forces(positions)

    def _drift(
        self, positions: FloatArray, momenta: FloatArray, time: float
    ) -> tuple[FloatArray, FloatArray]:
        return positions + time * momenta / self.masses, momenta

    def _fast_forces(self, positions: FloatArray) -> FloatArray:
        """Cheap forces, from memory where they are known."""
        if self._known is None or not np.array_equal(self._known[0], positions):
            self._known = positions.copy(), self._fast.forces(positions)
        return self._known[1]

    def _identity(self) -> dict[str, Any]:
        return {"inner_steps": self.inner_steps, **self._names}

    def fast_state(self) -> dict[str, Any]:
        """State of the cheap forces, and what they were at the present positions."""
        return {"model": self._fast.state_dict(), "known": self._known}

    def load_fast_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`fast_state`."""
        self._fast.load_state_dict(state["model"])
        self._known = None if state["known"] is None else tuple(state["known"])

    def _state(self) -> dict[str, Any]:
        return {"accurate": self._accurate.state_dict(), "fast": self.fast_state()}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self._accurate.load_state_dict(state["accurate"])
        self.load_fast_state(state["fast"])


class ThermostattedMTS(MTSVelocityVerlet):
    """What :class:`MTSLangevin` and :class:`mlmd_calc.md.ExactMTS` have in common.

    Parameters
    ----------
    atoms, timestep, fast, inner_steps, temperature_K, friction, rng, **options
        See :class:`MTSLangevin`.

    Raises
    ------
    ConfigError, InputError
        As :class:`MTSVelocityVerlet`.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        fast: Forces | None = None,
        *,
        inner_steps: int,
        temperature_K: float,
        friction: float,
        rng: np.random.Generator | None = None,
        **options: Any,
    ) -> None:
        self.temperature_K, self.friction = temperature_K, friction
        check_positive(self, "temperature_K", "friction")
        self._rng = np.random.default_rng() if rng is None else rng
        super().__init__(atoms, timestep, fast, inner_steps=inner_steps, **options)

    def _refreshed(self, momenta: FloatArray, time: float) -> FloatArray:
        """Let the thermostat act on momenta for a time."""
        damping = self.friction * time
        return refreshed(momenta, self.masses, self.temperature_K, damping, self._rng)

    def _conditions(self) -> dict[str, float]:
        return {"temperature_K": self.temperature_K, "friction": self.friction}

    def todict(self) -> dict[str, Any]:
        """Return what trajectories store of the run."""
        return {**super().todict(), **self._conditions()}  # type: ignore[no-untyped-call]

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), **self._conditions()}

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "rng": dict(self._rng.bit_generator.state)}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        super()._load_state(state)
        self._rng.bit_generator.state = state["rng"]


class MTSLangevin(ThermostattedMTS):
    """Langevin dynamics with multiple time steps, for constant temperature.

    Takes the place of :class:`ase.md.langevin.Langevin`. All 3 n degrees of freedom are
    thermalised.

    Parameters
    ----------
    atoms, timestep, fast, inner_steps
        See :class:`MTSVelocityVerlet`.
    temperature_K
        Temperature in K.
    friction
        In inverse ASE time units, for instance ``0.001 / ase.units.fs``.
    rng
        Source of randomness; None draws a seed from the system.
    **options
        See :class:`MTSVelocityVerlet`.

    Raises
    ------
    ConfigError, InputError
        As :class:`MTSVelocityVerlet`.

    Examples
    --------
    >>> from ase import units
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator
    >>> from mlmd_calc.md import MTSLangevin
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = MDETCalculator()
    >>> options = {"temperature_K": 300, "friction": 0.001 / units.fs}
    >>> dyn = MTSLangevin(atoms, 2.0 * units.fs, inner_steps=4, **options)
    >>> dyn.run(10)
    True
    """

    def _drift(
        self, positions: FloatArray, momenta: FloatArray, time: float
    ) -> tuple[FloatArray, FloatArray]:
        positions, momenta = super()._drift(positions, momenta, 0.5 * time)
        return super()._drift(positions, self._refreshed(momenta, time), 0.5 * time)
