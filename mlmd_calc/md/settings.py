"""What a molecular-dynamics run is made of, apart from the molecule and its forces."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from mlmd_calc import units
from mlmd_calc.errors import ConfigError
from mlmd_calc.geometry.bonds import BOND_LIMIT
from mlmd_calc.options import check_at_least, check_positive, make_plain, one_of

if TYPE_CHECKING:
    from mlmd_calc.propagation.other_forces import OtherForces


_FRICTION_PER_PS: Final = 1.0
"""Where nothing else is recommended."""

_EXACT_FRICTION_PER_PS: Final = 20.0
"""Of exact ensembles, as in :class:`mlmd_calc.md.ExactNVT`."""


class Engine(str, Enum):
    """The program that moves the atoms."""

    ASE = "ase"
    OPENMM = "openmm"


class Ensemble(str, Enum):
    """Equations of motion."""

    NVE = "nve"
    LANGEVIN = "langevin"
    BUSSI = "bussi"
    NOSE_HOOVER = "nose-hoover"


class InnerForces(str, Enum):
    """Cheap forces of multiple time stepping."""

    DIRECT = "direct"
    """The force head of the model."""
    BONDED = "bonded"
    """A :class:`mlmd_calc.bonded.BondedForceField` that is fitted to the molecule."""
    NETWORK = "network"
    """The same, with a network for what its polynomial leaves over."""

    @property
    def fitted(self) -> bool:
        """Whether they are fitted to the molecule."""
        return self is not InnerForces.DIRECT


@dataclass(frozen=True)
class JumpSettings:
    """Settings of a run whose steps are jumps of a propagator.

    Attributes
    ----------
    propagator
        What the user calls the propagator.
    stride_fs
        Length of a jump in fs.
    md_steps_per_jump
        Force-based steps after each jump, part of the same step of the run.
    replicas
        Copies of the molecule that advance together, each with velocities of its own.
    other_forces
        What is done with forces that the propagator does not know, see
        :class:`mlmd_calc.md.JumpNVT`.
    frames_per_jump
        Frames recorded of each jump at equal spacing, its end and those inside it.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    propagator: str
    stride_fs: float
    md_steps_per_jump: int = 0
    replicas: int = 1
    other_forces: OtherForces = "refuse"
    frames_per_jump: int = 1

    def __post_init__(self) -> None:
        check_positive(self, "stride_fs")
        check_at_least(self, 0, "md_steps_per_jump")
        check_at_least(self, 1, "replicas", "frames_per_jump")
        make_plain(self)


@dataclass(frozen=True)
class ExactSettings:
    """Settings of a run that samples the exact ensemble of a target.

    A step of the run is a trajectory by the calculator of the atoms, which the target accepts or
    rejects; see :class:`mlmd_calc.md.ExactNVT`.

    Attributes
    ----------
    target
        What the user calls the method whose ensemble is sampled.
    trajectory_steps
        Time steps of a trajectory.
    warmup
        Steps of the run at its beginning in which the time step is adapted. They are no samples.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    target: str
    trajectory_steps: int = 80
    warmup: int = 200

    def __post_init__(self) -> None:
        check_at_least(self, 1, "trajectory_steps")
        check_at_least(self, 0, "warmup")
        make_plain(self)


@dataclass(frozen=True)
class MDSettings:
    """Settings of one run.

    Attributes
    ----------
    ensemble
        ``nve`` (velocity Verlet), ``langevin``, ``bussi`` (stochastic velocity rescaling) or
        ``nose-hoover`` (chain of three).
    temperature_K
        Of the thermostat and of the initial velocities.
    timestep_fs
        Time step in fs; in a run made of jumps, that of force-based steps; of an exact ensemble,
        that with which the warm-up begins.
    friction_per_ps
        Langevin friction in 1/ps; its inverse is the relaxation time of the other thermostats. Of
        an exact ensemble, how fast momenta are forgotten between trajectories. None: what is
        recommended for the propagator of a run made of jumps, 20 for an exact ensemble, else 1.
    seed
        Seed of initial velocities and thermostat.
    interval
        Steps between recorded frames.
    checkpoint_interval
        Steps between checkpoints.
    bond_limit
        A bond further than this (Å) from its reference length is reported as broken.
    bond_stop
        A bond further than this (Å) from its reference length stops the run.
    jumps
        For runs made of jumps.
    inner_steps
        Time steps by cheap forces in one step of the run, which the forces of the calculator
        correct; see :class:`mlmd_calc.md.MTSVelocityVerlet`. 1: no multiple time stepping.
    inner_forces
        Which cheap forces these are.
    metropolis
        Whether every step of multiple time stepping is accepted or rejected; see
        :class:`mlmd_calc.md.ExactMTS`.
    exact
        For runs that sample an exact ensemble.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    ensemble: Ensemble = Ensemble.LANGEVIN
    temperature_K: float = 300.0  # noqa: N815
    timestep_fs: float = 0.5
    friction_per_ps: float | None = None
    seed: int = 0
    interval: int = 10
    checkpoint_interval: int = 1000
    bond_limit: float = BOND_LIMIT
    bond_stop: float = 1.0
    jumps: JumpSettings | None = None
    inner_steps: int = 1
    inner_forces: InnerForces = InnerForces.DIRECT
    metropolis: bool = False
    exact: ExactSettings | None = None

    def __post_init__(self) -> None:
        for name, kind in (("ensemble", Ensemble), ("inner_forces", InnerForces)):
            word = one_of(name, getattr(self, name), [choice.value for choice in kind])
            object.__setattr__(self, name, kind(word))
        if self.friction_per_ps is None and self.jumps is None:
            usual = _FRICTION_PER_PS if self.exact is None else _EXACT_FRICTION_PER_PS
            object.__setattr__(self, "friction_per_ps", usual)
        check_positive(self, "timestep_fs", "bond_limit", "bond_stop")
        if self.friction_per_ps is not None:
            check_positive(self, "friction_per_ps")
        check_at_least(self, 0, "temperature_K", "seed")
        check_at_least(self, 1, "interval", "checkpoint_interval", "inner_steps")
        make_plain(self)
        if self.temperature_K == 0 and self.thermostatted:
            raise ConfigError(
                f"temperature_K=0 with ensemble {self.ensemble.value!r}; a thermostat needs a "
                "positive temperature"
            )
        if self.jumps is not None and self.ensemble is Ensemble.NOSE_HOOVER:
            raise ConfigError(
                "ensemble 'nose-hoover' has no jumps; use 'langevin', 'bussi' or 'nve' with a "
                "propagator"
            )
        if self.frames_per_jump > 1 and self.interval != 1:
            raise ConfigError(
                f"frames_per_jump={self.frames_per_jump} with interval={self.interval}; frames "
                "inside jumps are recorded of every jump, so that all are equally spaced: set "
                "interval to 1"
            )
        self._check_friction()
        self._check_inner_steps()
        self._check_exact()

    def _check_friction(self) -> None:
        """Refuse a friction at which thermostats, which expand in it, heat or explode."""
        expanded = self.ensemble in (Ensemble.LANGEVIN, Ensemble.NOSE_HOOVER)
        if not expanded or self.jumps or self.exact or self.inner_steps > 1:
            return
        highest = units.FS_PER_PS / self.timestep_fs
        if self.rate_per_ps > highest:
            raise ConfigError(
                f"friction_per_ps={self.friction_per_ps:g} with timestep_fs={self.timestep_fs:g} "
                "makes velocities forgotten within a step, which the thermostat cannot do; take at "
                f"most {highest:g}/ps (usual are 1 to 10/ps), or a shorter time step"
            )

    def _check_inner_steps(self) -> None:
        fitted, named = self.inner_forces.fitted, f"inner_forces={self.inner_forces.value!r}"
        if fitted and self.inner_steps == 1:
            raise ConfigError(
                f"{named} with inner_steps=1; only multiple time stepping has cheap "
                "forces, set inner_steps to 2 or more"
            )
        if fitted and self.temperature_K == 0:
            raise ConfigError(
                f"{named} with temperature_K=0; they are fitted to structures at the "
                "temperature of the run, which must be positive"
            )
        if self.metropolis and (self.inner_steps == 1 or self.ensemble is not Ensemble.LANGEVIN):
            raise ConfigError(
                f"metropolis with inner_steps={self.inner_steps} and ensemble "
                f"{self.ensemble.value!r}; it accepts or rejects steps of multiple time stepping, "
                "inner_steps of 2 or more, in the ensemble 'langevin'"
            )
        if self.inner_steps == 1:
            return
        if self.jumps is not None:
            raise ConfigError(
                f"inner_steps={self.inner_steps} with jumps; multiple time stepping is for "
                "force-based steps alone"
            )
        if self.ensemble not in (Ensemble.NVE, Ensemble.LANGEVIN):
            raise ConfigError(
                f"inner_steps={self.inner_steps} with ensemble {self.ensemble.value!r}; multiple "
                "time stepping has 'nve' and 'langevin'"
            )

    def _check_exact(self) -> None:
        if self.exact is None:
            return
        if self.jumps is not None or self.inner_steps > 1:
            other = "jumps" if self.jumps is not None else f"inner_steps={self.inner_steps}"
            raise ConfigError(
                f"{other} with an exact ensemble, whose steps are trajectories of force-based steps"
            )
        if self.ensemble is not Ensemble.LANGEVIN:
            raise ConfigError(
                f"ensemble {self.ensemble.value!r} of an exact ensemble, which is the canonical "
                "one and refreshes momenta as 'langevin' does; leave it at that"
            )

    def with_friction(self, recommended: float | None) -> MDSettings:
        """Fill in the friction in 1/ps that is recommended for the propagator, if none was set."""
        if self.friction_per_ps is not None:
            return self
        return replace(self, friction_per_ps=recommended or _FRICTION_PER_PS)

    @property
    def rate_per_ps(self) -> float:
        """The friction, once it is known."""
        assert self.friction_per_ps is not None
        return self.friction_per_ps

    @property
    def step_fs(self) -> float:
        """Time in fs that passes in one step of the run.

        Raises
        ------
        ConfigError
            If none does, in an exact ensemble.
        """
        if self.exact is not None:
            raise ConfigError(
                f"the frames are samples of the exact ensemble of {self.exact.target!r}, between "
                "which no physical time passes; what depends on time needs a run of dynamics"
            )
        if self.jumps is None:
            return self.timestep_fs * self.inner_steps
        return self.jumps.stride_fs + self.jumps.md_steps_per_jump * self.timestep_fs

    @property
    def replicas(self) -> int:
        """Copies of the molecule that the run moves."""
        return 1 if self.jumps is None else self.jumps.replicas

    @property
    def frames_per_jump(self) -> int:
        """Frames recorded of each jump; 1 without jumps."""
        return 1 if self.jumps is None else self.jumps.frames_per_jump

    @property
    def thermostatted(self) -> bool:
        """Whether a thermostat acts on the molecule."""
        return self.ensemble is not Ensemble.NVE

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-able values."""
        values = {
            **asdict(self),
            "ensemble": self.ensemble.value,
            "inner_forces": self.inner_forces.value,
        }
        # As runs that do without them have always been written.
        usual_values: dict[str, Any] = {
            "inner_steps": 1,
            "inner_forces": InnerForces.DIRECT.value,
            "metropolis": False,
            "exact": None,
        }
        for name, usual in usual_values.items():
            if values[name] == usual:
                del values[name]
        if self.jumps is not None and self.frames_per_jump == 1:
            del values["jumps"]["frames_per_jump"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MDSettings:
        """Build settings from :meth:`to_dict` output."""
        jumps, exact = values.get("jumps"), values.get("exact")
        return cls(
            **{
                **values,
                "jumps": None if jumps is None else JumpSettings(**jumps),
                "exact": None if exact is None else ExactSettings(**exact),
            }
        )
