"""Options of ATMOS: architecture, sampler and loss weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from mlmd_calc.errors import ConfigError
from mlmd_calc.options import (
    MOST_LAYERS,
    check_choices,
    check_count,
    check_fraction,
    check_not_negative,
    check_positive,
    check_types,
    one_of,
    refuse_unknown,
)

_COUNTS: Final = (
    *("c_s", "c_z", "c_token", "c_atom", "c_atompair", "c_m", "c_triangle", "c_diffusion"),
    *("triangle_heads", "triangle_head_width", "single_heads", "pair_transition_factor"),
    *("atom_heads", "atom_queries", "atom_keys", "diffusion_heads", "max_steps"),
)
_BLOCKS: Final = (
    *("diffusion_blocks", "context_blocks", "context_cycles", "context_atom_blocks"),
    *("transition_blocks", "encoder_atom_blocks", "decoder_atom_blocks"),
)
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "coord_mode": ("local", "augment"),
    "encoder_state": ("context", "memory", "none"),
    "update": ("add", "concat"),
    "single_to_pair": ("separate", "shared", "none"),
    "tau": ("step", "lag"),
}
_DIVISIBLE: Final = (
    ("c_s", "single_heads"),
    ("c_atom", "atom_heads"),
    ("c_diffusion", "diffusion_heads"),
)

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "xs": {
        **{"c_s": 64, "c_z": 32, "c_token": 64, "c_atom": 32, "c_atompair": 8},
        **{"context_blocks": 1, "context_cycles": 1, "msa_blocks": 0, "transition_blocks": 2},
        **{"c_triangle": 32, "triangle_heads": 4, "triangle_head_width": 8, "single_heads": 4},
        **{"pair_transition_factor": 2, "context_atom_blocks": 1, "encoder_atom_blocks": 1},
        **{"decoder_atom_blocks": 1, "c_diffusion": 96, "diffusion_blocks": 2},
        **{"diffusion_heads": 4},
    },
    "s": {
        **{"c_s": 128, "c_z": 64, "c_token": 128, "c_atom": 64, "c_atompair": 16},
        **{"context_blocks": 2, "context_cycles": 1, "msa_blocks": 0},
        **{"c_triangle": 64, "triangle_heads": 4, "triangle_head_width": 16, "single_heads": 8},
        **{"pair_transition_factor": 2, "context_atom_blocks": 1, "encoder_atom_blocks": 1},
        **{"decoder_atom_blocks": 1, "c_diffusion": 192, "diffusion_blocks": 4},
        **{"diffusion_heads": 8},
    },
    "m": {
        **{"c_s": 192, "c_z": 96, "c_token": 192, "c_atom": 96, "c_atompair": 16},
        **{"context_blocks": 4, "context_cycles": 1, "msa_blocks": 0},
        **{"c_triangle": 96, "triangle_heads": 4, "triangle_head_width": 24, "single_heads": 8},
        **{"context_atom_blocks": 2, "encoder_atom_blocks": 2, "decoder_atom_blocks": 2},
        **{"c_diffusion": 384, "diffusion_blocks": 8, "diffusion_heads": 8},
    },
    "paper": {},
}
"""Options of the named sizes that differ from the defaults, which are the paper's."""


@dataclass(frozen=True)
class SamplerConfig:
    """Noise levels and step rule of the diffusion sampler.

    The defaults are those of AlphaFold 3 for its stochastic sampler, with fewer steps. Karras et
    al. (NeurIPS 2022) explain the symbols.

    Attributes
    ----------
    steps
        Denoiser calls per frame.
    s_max, s_min, rho
        Largest and smallest noise level in units of ``sigma_data``, and the exponent between them.
    gamma_0
        Noise added before a step, as a fraction of the level; 0 makes the sampler deterministic.
    gamma_min
        No noise is added in steps that end at or below this level (Å). It suits ``sigma_data=16``;
        a model with a smaller one wants it smaller in proportion.
    noise_scale
        Factor λ on the added noise. Above 1 the samples become more diverse.
    step_scale
        Factor η on each step.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    steps: int = 20
    s_max: float = 160.0
    s_min: float = 4e-4
    rho: float = 7.0
    gamma_0: float = 0.8
    gamma_min: float = 1.0
    noise_scale: float = 1.003
    step_scale: float = 1.5

    def __post_init__(self) -> None:
        check_types(self)
        check_count(self, "steps")
        check_positive(self, "s_min", "rho", "step_scale")
        check_not_negative(self, "gamma_0", "gamma_min", "noise_scale")
        if not self.s_max > self.s_min:
            raise ConfigError(f"s_max={self.s_max!r} must exceed s_min={self.s_min!r}")

    def ode(self) -> SamplerConfig:
        """Return the probability-flow variant: no added noise and full steps."""
        return replace(self, gamma_0=0.0, step_scale=1.0)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the training loss.

    Attributes
    ----------
    diffusion, distogram, smooth_lddt, bond
        Weights of the terms. A term of weight 0 is not computed.
    ligand_atom, protein_atom
        Weights of atoms in alignment and diffusion loss.

    Raises
    ------
    ConfigError
        If a weight is negative, or if no term has one.
    """

    diffusion: float = 4.0
    distogram: float = 0.03
    smooth_lddt: float = 0.0
    bond: float = 0.0
    ligand_atom: float = 11.0
    protein_atom: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        check_not_negative(self, *(entry.name for entry in fields(self)))
        if not (self.diffusion or self.distogram or self.smooth_lddt or self.bond):
            raise ConfigError("all terms of the loss have weight 0; give one of them a weight")


@dataclass(frozen=True)
class ATMOSConfig:
    """Architecture of an ATMOS network (arXiv 2603.17633). The defaults are the paper's sizes.

    The paper leaves several details open; each of them is an option here, and its default is our
    reading of the paper.

    Attributes
    ----------
    c_s, c_z
        Widths of the latent state: tokens and token pairs.
    c_token
        Width of the token features from the atoms' chemistry.
    c_atom, c_atompair
        Widths of atoms and atom pairs in the atom transformers.
    c_m
        Width of the alignment rows.
    c_triangle
        Width of the triangle multiplications.
    triangle_heads, triangle_head_width
        Heads of the triangle attention and width of each.
    single_heads
        Heads of the attention among tokens in Pairformer blocks; must divide ``c_s``.
    pair_transition_factor
        Hidden width of the pair transitions in units of ``c_z``.
    pair_dropout
        Dropout of whole rows or columns of pair updates, used in training only.
    atom_heads, atom_queries, atom_keys
        Heads of the atom transformers, and the window of atoms that attends and is attended to.
    context_blocks, context_cycles, context_atom_blocks
        Pairformer blocks, cycles through them, and atom blocks of the context embedder.
    msa_blocks
        Blocks of the alignment module, which sees the sequence alone; 0 builds none. It is there
        for weights that were trained with it.
    encoder_atom_blocks
        Atom blocks of the geometric encoder.
    coord_mode
        Coordinates the encoder shows to its atom transformer: ``"local"`` ones in the frame of the
        token, which makes the latent state independent of the pose, or ``"augment"`` for centred
        laboratory coordinates, to be trained on randomly rotated frames.
    encoder_state
        Token and pair embeddings the encoder's atom transformer sees: those of the ``"context"``,
        of the ``"memory"``, or ``"none"``.
    distance_bins, distance_min, distance_max
        Bins of the encoder's distance histogram; first and last edge in Å, outer bins are open.
    transition_blocks
        Blocks of the state transition.
    update
        How the encoded frame enters the memory: ``"add"`` or a linear map of both (``"concat"``).
    single_to_pair
        Token features that every transition block adds to the pairs: ``"separate"`` maps of first
        and second token, one ``"shared"`` map, or ``"none"``.
    tau
        Time embedding: a learned table over the index of the ``"step"`` in the window, or a
        function of the ``"lag"`` between frames.
    max_steps
        Rows of the step table; later steps use the last one.
    state_norm
        Normalise the memory before the update, for rollouts much longer than the training windows.
    max_remaining
        Fine steps per interval of an interpolator, which is conditioned on the end frame and the
        remaining steps; 0 builds a model without that conditioning.
    c_diffusion, diffusion_blocks, diffusion_heads
        Width, blocks and heads of the decoder's token transformer.
    decoder_atom_blocks
        Atom blocks before and after that transformer.
    sigma_data
        Expected root mean square of centred coordinates (Å).
    noise_mean, noise_std
        Normal distribution of ln(σ / sigma_data) in training.
    pose_translation
        Standard deviation of random translations in training and sampling (Å).
    distogram_bins, distogram_min, distogram_max
        Bins of the predicted distances; first and last edge in Å, outer bins are open.
    sampler
        Default sampler.

    Raises
    ------
    ConfigError
        If a value or a combination of values is not allowed.

    Examples
    --------
    >>> from mlmd_calc.models import ATMOSConfig
    >>> ATMOSConfig.preset("xs", sigma_data=2.0).c_s
    64
    """

    c_s: int = 384
    c_z: int = 128
    c_token: int = 384
    c_atom: int = 128
    c_atompair: int = 16
    c_m: int = 64
    c_triangle: int = 128
    triangle_heads: int = 4
    triangle_head_width: int = 32
    single_heads: int = 16
    pair_transition_factor: int = 4
    pair_dropout: float = 0.25
    atom_heads: int = 4
    atom_queries: int = 32
    atom_keys: int = 128
    context_blocks: int = 48
    context_cycles: int = 10
    context_atom_blocks: int = 3
    msa_blocks: int = 4
    encoder_atom_blocks: int = 3
    coord_mode: str = "local"
    encoder_state: str = "context"
    distance_bins: int = 64
    distance_min: float = 2.3125
    distance_max: float = 21.6875
    transition_blocks: int = 4
    update: str = "add"
    single_to_pair: str = "separate"
    tau: str = "step"
    max_steps: int = 20
    state_norm: bool = False
    max_remaining: int = 0
    c_diffusion: int = 768
    diffusion_blocks: int = 24
    diffusion_heads: int = 16
    decoder_atom_blocks: int = 3
    sigma_data: float = 16.0
    noise_mean: float = -1.2
    noise_std: float = 1.5
    pose_translation: float = 1.0
    distogram_bins: int = 64
    distogram_min: float = 2.3125
    distogram_max: float = 21.6875
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        check_types(self)
        check_count(self, *_COUNTS)
        check_count(self, *_BLOCKS, most=MOST_LAYERS)
        check_count(self, "msa_blocks", least=0, most=MOST_LAYERS)
        check_count(self, "max_remaining", least=0)
        check_positive(self, "sigma_data", "noise_std")
        check_choices(self, _CHOICES)
        for width, heads in _DIVISIBLE:
            if getattr(self, width) % getattr(self, heads):
                raise ConfigError(
                    f"{width}={getattr(self, width)} is not a multiple of "
                    f"{heads}={getattr(self, heads)}"
                )
        check_fraction(self, "pair_dropout")
        check_not_negative(self, "pose_translation")
        if self.atom_keys < self.atom_queries or (self.atom_keys - self.atom_queries) % 2:
            raise ConfigError(
                f"atom_keys={self.atom_keys} must exceed atom_queries={self.atom_queries} by an "
                "even number, so that the window of keys is centred on that of the queries"
            )
        self._check_bins("distance")
        self._check_bins("distogram")

    def _check_bins(self, kind: str) -> None:
        """Check one set of distance bins."""
        check_count(self, f"{kind}_bins", least=3)
        low, high = getattr(self, f"{kind}_min"), getattr(self, f"{kind}_max")
        if not 0.0 < low < high:
            raise ConfigError(
                f"{kind}_min={low!r} and {kind}_max={high!r}; both must be positive and the first "
                "the smaller one"
            )

    @property
    def c_s_inputs(self) -> int:
        """Width of the input features: atoms' chemistry, residue class, profile, deletions."""
        return self.c_token + 65

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ATMOSConfig:
        """Build a named size, with some options changed.

        Parameters
        ----------
        name
            ``"xs"`` (trains on a laptop), ``"s"``, ``"m"`` (one GPU) or ``"paper"``.
        **changes
            Options that replace those of the preset.

        Raises
        ------
        ConfigError
            If the name or an option is unknown.
        """
        return cls.from_dict({**PRESETS[one_of("preset", name, PRESETS)], **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> ATMOSConfig:
        """Build a configuration from :meth:`to_dict` output.

        Raises
        ------
        ConfigError
            If an option is unknown.
        """
        values = dict(refuse_unknown(cls, options, "ATMOS options"))
        if not isinstance(values.get("sampler", SamplerConfig()), SamplerConfig):
            inner = refuse_unknown(SamplerConfig, values["sampler"], "ATMOS sampler options")
            values["sampler"] = SamplerConfig(**inner)
        return cls(**values)
