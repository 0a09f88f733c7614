"""Architecture options of the two ATOM networks: the published operator and the integrator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.mdet.config import MDETConfig
from mlmd_calc.options import (
    MOST_LAYERS,
    check_choices,
    check_count,
    check_fraction,
    check_positive,
    check_types,
    refuse_unknown,
    shown,
    with_lists,
)

_BLOCK_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "norm": ("rms", "layer"),
    "activation": ("swiglu", "silu", "gelu", "relu", "relu2", "leaky_relu"),
    "attention_type": ("ghca", "self"),
    "value_residual_type": ("learnable", "fixed", "none"),
}
_OPERATOR_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "lifting_type": (
        "quasi_equivariant_tp",
        "quasi_equivariant",
        "non_equivariant",
        "canonicalization",
    ),
    "positional_encoding": ("trope", "rope", "slot_rope", "sinusoidal", "none"),
    "output_mode": ("pos_only", "pos_vel", "full"),
}
_WITH_TENSOR_PRODUCT: Final = ("quasi_equivariant_tp", "canonicalization")

INTEGRATOR: Final = "integrator"
"""Table of an integrator's own options in files and recipes; the operator has none."""

PAIR_WIDTH: Final = 32
"""Width of an integrator's own features of a pair."""

_FORMER_OPTIONS: Final[dict[str, Any]] = {
    "pairs": True,
    "lifting_type": "quasi_equivariant",
    "positional_encoding": "trope",
    "rrwp_length": 0,
    "tensor_product_rrwp": False,
    "output_mode": "pos_vel",
    "delta_update": False,
}
"""Options that integrators once had, and the only values with which they can be built now."""

_FORMER_CONSTANTS: Final = ("rope_base", "rope_tau")
"""Options that integrators once had and that changed nothing."""


@dataclass(frozen=True)
class BlockConfig:
    """Options of the transformer blocks, which both networks share.

    Attributes
    ----------
    lifting_dim
        Width d of all token features.
    num_layers
        Number of transformer blocks.
    num_heads
        Attention heads; ``lifting_dim / num_heads`` must be a whole, even number.
    norm
        ``"rms"`` or ``"layer"``.
    activation
        ``"swiglu"``, ``"silu"``, ``"gelu"``, ``"relu"``, ``"relu2"`` or ``"leaky_relu"``.
    attention_type
        ``"ghca"``, heterogeneous attention to positions, velocities and context, or ``"self"``, to
        the stream alone.
    value_residual_type
        Blend of every block's output with the first block's: ``"learnable"``, ``"fixed"`` (half
        and half) or ``"none"``.
    attention_dropout, ffn_dropout
        Dropout probabilities, used in training only.

    Raises
    ------
    ConfigError
        If a value or a combination of values is not allowed.
    """

    lifting_dim: int = 128
    num_layers: int = 5
    num_heads: int = 8
    norm: str = "rms"
    activation: str = "swiglu"
    attention_type: str = "ghca"
    value_residual_type: str = "learnable"
    attention_dropout: float = 0.2
    ffn_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_types(self)
        check_choices(self, _BLOCK_CHOICES)
        check_count(self, "num_layers", most=MOST_LAYERS)
        check_count(self, "lifting_dim", "num_heads")
        check_fraction(self, "attention_dropout", "ffn_dropout")
        if self.lifting_dim % self.num_heads or self.head_dim % 2:
            raise ConfigError(
                f"lifting_dim={self.lifting_dim} over num_heads={self.num_heads} must be a whole, "
                "even number"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.lifting_dim // self.num_heads


@dataclass(frozen=True)
class ATOMConfig(BlockConfig):
    """Architecture of the published operator (arXiv 2510.05482, later revision of its code).

    Names and strings are those of the public code where it has them; the defaults are the paper's
    single-molecule network. Features hold ``lifting_dim // 3`` vectors, then ``lifting_dim % 3``
    scalars. Options of the blocks are those of :class:`BlockConfig`.

    Attributes
    ----------
    lifting_type
        How inputs become features: ``"quasi_equivariant"`` (equivariant linear maps),
        ``"quasi_equivariant_tp"`` (with a tensor product of position and velocity features),
        ``"non_equivariant"`` (dense maps) or ``"canonicalization"`` (with tensor product, in a
        frame that turns with the molecule). If ``lifting_dim`` is a multiple of 3, features have no
        scalars: linear maps then lose atomic numbers, and the tensor product is not possible.
    positional_encoding
        ``"trope"`` (rotary, by physical time), ``"slot_rope"`` (rotary, by slot number, as in the
        first revision), ``"rope"`` (rotary, by token number; results then depend on the padding of
        the batch), ``"sinusoidal"`` (by slot number) or ``"none"``.
    rope_base
        Ratio of the fastest to the slowest rotary frequency, nearly.
    rope_tau
        Time, in the unit of the time increments, in which the fastest rotary pair turns by one
        radian.
    rrwp_length
        Number K of return probabilities of random walks per atom, see
        :func:`~.features.return_probabilities`.
    tensor_product_rrwp
        Feed them into the tensor product as well, as the first revision of the public code does.
    output_mode
        ``"pos_only"``, ``"pos_vel"`` or ``"full"`` (positions, velocities, energies).
    delta_update
        Predict displacements from the input positions instead of positions.

    Raises
    ------
    ConfigError
        If a value or a combination of values is not allowed.
    """

    lifting_type: str = "quasi_equivariant_tp"
    positional_encoding: str = "trope"
    rope_base: float = 1000.0
    rope_tau: float = 1000.0
    rrwp_length: int = 0
    tensor_product_rrwp: bool = False
    output_mode: str = "pos_only"
    delta_update: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, _OPERATOR_CHOICES)
        check_count(self, "rrwp_length", least=0)
        check_positive(self, "rope_base", "rope_tau")
        if self.num_scalars == 0:
            self._check_need_of_scalars()
        if self.delta_update and self.lifting_type == "canonicalization":
            raise ConfigError(
                "delta_update=True and lifting_type='canonicalization' both add an origin to the "
                "predicted positions; choose one"
            )

    def _check_need_of_scalars(self) -> None:
        needing = [
            f"{name}={getattr(self, name)!r}"
            for name, values in (("lifting_type", _WITH_TENSOR_PRODUCT), ("output_mode", ("full",)))
            if getattr(self, name) in values
        ]
        if needing:
            raise ConfigError(
                f"lifting_dim={self.lifting_dim} is a multiple of 3 and leaves no scalar features, "
                f"which {' and '.join(needing)} needs"
            )

    @property
    def num_vectors(self) -> int:
        """Vectors among the features of a token."""
        return self.lifting_dim // 3

    @property
    def num_scalars(self) -> int:
        """Scalars among the features of a token."""
        return self.lifting_dim % 3

    @property
    def context_layout(self) -> str:
        """Layout of the context features: ``v`` a vector, ``s`` a scalar.

        Position and velocity, each followed by its length, atomic number, return probabilities.
        """
        return "vsvss" + "s" * self.rrwp_length

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> ATOMConfig:
        """Build a configuration from :meth:`to_dict` output.

        Raises
        ------
        ConfigError
            If an option is unknown or wrong.
        """
        return cls(**refuse_unknown(cls, options, "ATOM options"))


@dataclass(frozen=True)
class IntegratorConfig(BlockConfig):
    """Architecture of :class:`~.integrator.ATOMIntegrator`, a jump of an integrator.

    Options of the blocks are those of :class:`BlockConfig`; there is no dropout by default.

    Attributes
    ----------
    accelerations
        Take the accelerations at t = 0 as a vector input beside the velocities.
    vector_layers
        Exchanges of vectors between atoms before the read-out, see :mod:`.vectors`.
    vector_channels
        Vectors per atom in these exchanges.
    pair_hidden_dim
        Width inside the functions of pairs: of their features, of the exchanges and of the
        read-out.
    exact_limits
        Exact where motion is small: a molecule at rest without forces stays there, near a minimum a
        jump is linear, and for short times it is x + v t + a t²/2 and v + a t. Only with
        ``accelerations``.
    spring_steps
        Correct the motion of learnt springs between atoms, see :mod:`.springs`, followed in this
        many steps, instead of ballistic motion; 0 for none. Only with ``exact_limits``.
    encoder
        Architecture of a force field whose features of pairs are taken as well, see
        :meth:`.integrator.ATOMIntegrator.with_encoder`; it must not see directions. None for none.
    temperature
        Temperature in K whose thermal speed, sqrt(k_B T/m) per element, is the unit of velocities
        inside the network.
    time_scale
        Time in fs in which velocities change; the unit of time inside the network and the shortest
        period of the horizon's Fourier features.
    max_horizon
        Longest time in fs the network may be asked for; the longest period of the features.

    Raises
    ------
    ConfigError
        If a value or a combination of values is not allowed.
    """

    attention_dropout: float = 0.0
    ffn_dropout: float = 0.0
    accelerations: bool = False
    vector_layers: int = 0
    vector_channels: int = 16
    pair_hidden_dim: int = 64
    exact_limits: bool = False
    spring_steps: int = 0
    encoder: MDETConfig | None = None
    temperature: float = 300.0
    time_scale: float = 4.0
    max_horizon: float = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature", "time_scale", "max_horizon")
        check_count(self, "vector_channels", "pair_hidden_dim")
        check_count(self, "vector_layers", least=0, most=MOST_LAYERS)
        if self.exact_limits and not self.accelerations:
            raise ConfigError(
                f"exact_limits=True with accelerations={self.accelerations}; it needs them"
            )
        check_count(self, "spring_steps", least=0)
        if self.spring_steps and not self.exact_limits:
            raise ConfigError(
                f"spring_steps={self.spring_steps} with exact_limits=False; springs need "
                "exact_limits=True"
            )
        if self.encoder is not None and not self.encoder.invariant:
            raise ConfigError(
                f"the encoder has directions={self.encoder.directions!r}, and its features turn "
                "with the molecule; take a force field with directions='none', such as "
                "mdet-small-organics"
            )
        if self.max_horizon <= self.time_scale:
            raise ConfigError(
                f"max_horizon={self.max_horizon} fs must exceed time_scale={self.time_scale} fs"
            )

    @property
    def num_motions(self) -> int:
        """Vectors of motion per atom: velocity, and acceleration where there is one."""
        return 2 if self.accelerations else 1

    @property
    def pair_width(self) -> int:
        """Features of a pair: its own, and those of the encoder where there is one."""
        return PAIR_WIDTH + (0 if self.encoder is None else self.encoder.embd_dim)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-able values, those of the blocks above the others."""
        options = with_lists(asdict(self))
        shared = {field.name for field in fields(BlockConfig)}
        own = {name: options.pop(name) for name in list(options) if name not in shared}
        return {**options, INTEGRATOR: own}

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> IntegratorConfig:
        """Build a configuration from :meth:`to_dict` output, or from the table of a recipe.

        Options that integrators of earlier versions had are left out, or refused where they ask for
        a network that there is no more.

        Raises
        ------
        ConfigError
            If an option is unknown or wrong.
        """
        table = dict(options)
        own = table.pop(INTEGRATOR, {})
        if not isinstance(own, Mapping):
            raise ConfigError(f"{INTEGRATOR}={shown(own)}; it must be a table of names and values")
        shared = refuse_unknown(BlockConfig, _without_former(table), "ATOM options")
        known = refuse_unknown(cls, _without_former(own), "ATOM integrator options")
        if twice := sorted(set(known) & {field.name for field in fields(BlockConfig)}):
            raise ConfigError(f"{twice} are not options of the table {INTEGRATOR}; set them above")
        if isinstance(encoder := known.get("encoder"), Mapping):
            known = {**known, "encoder": MDETConfig.from_dict(encoder)}
        return cls(**shared, **known)


def _without_former(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out options of integrators of earlier versions, if nothing is lost."""
    for name, only in _FORMER_OPTIONS.items():
        if options.get(name, only) != only:
            raise ConfigError(
                f"{name}={shown(options[name])}; integrators are built with {name}={only!r} only, "
                "so leave it out and train the model again"
            )
    former = {*_FORMER_OPTIONS, *_FORMER_CONSTANTS}
    return {name: value for name, value in options.items() if name not in former}
