"""Architecture options of MD-ET."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from mlmd_calc.errors import ConfigError
from mlmd_calc.options import (
    MOST_LAYERS,
    check_choices,
    check_count,
    check_fraction,
    check_positive,
    check_types,
    refuse_unknown,
    with_lists,
    with_tuples,
)

TARGET_DIMENSION: Final[dict[str, int]] = {
    "forces": 3,
    "energy": 1,
    "formation_energy": 1,
    "dipole": 3,
}
"""Output size of each head MD-ET can have."""

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "activation": ("gelu", "relu"),
    "directions": ("direct", "fourier", "spherical_harmonics", "none"),
    "distances": ("gaussian", "bessel"),
    "decomposer": ("pooling", "diagonal"),
    "decomposer_activation": ("relu", "gelu"),
}


@dataclass(frozen=True)
class MDETConfig:
    """Architecture of an MD-ET network (arXiv 2503.01431 and its public code).

    Attributes
    ----------
    n_layers
        Number of edge-transformer layers.
    embd_dim
        Width E of the pair representation.
    num_heads
        Attention heads; must divide ``embd_dim``.
    num_3d_kernels
        Distance features K.
    ffn_multiplier
        Feed-forward width as a multiple of ``embd_dim``.
    activation
        ``"gelu"`` (exact) or ``"relu"``, in feed-forward blocks and heads.
    norm_first
        Normalise before attention as well as around the feed-forward block.
    decomposer
        Pairs to atoms: ``"pooling"`` over partners or the ``"diagonal"``.
    decomposer_activation
        ``"relu"`` as in all published checkpoints, whatever ``activation`` says, or ``"gelu"``.
        ReLU puts kinks into the energy, which conservative dynamics pays for with energy drift.
    distances
        ``"gaussian"`` or ``"bessel"`` radial features.
    edge_types
        Give every ordered pair of elements its own radial parameters.
    directions
        ``"direct"``, ``"fourier"`` or ``"spherical_harmonics"``; or ``"none"``: the network sees
        distances only, so that its energy does not depend on how the molecule lies, and the head
        "forces" sums forces along the lines between atoms
        (:class:`~mlmd_calc.models.mdet.network.CentralForces`). No published checkpoint does this.
    cutoff
        Distance in Bohr at which a pair of atoms has faded from attention and pooling, so that
        molecules farther apart do not know of each other; None: all pairs count, as in all
        published checkpoints.
    electron_table
        Add a linear map of the element's electron configuration to the element embedding. As in the
        original this term is absent for the first atom of a molecule, so such models depend on the
        order of the atoms.
    target_heads
        Heads to build, any of "forces", "energy", "formation_energy", "dipole".
    head_project_down
        Heads narrow to E/2 and E/4 instead of staying at E.
    energy_conserving
        Forces are the gradient of a molecule-wise head instead of a head of their own.
    extensive
        Molecule-wise heads sum read-outs of the atoms instead of reading out the mean over atoms.
        No published checkpoint does this; models trained here do, because an energy that grows
        with the molecule is then a sum of local terms instead of a function of their average.
    attention_dropout, ffn_dropout, head_dropout
        Dropout probabilities, used in training only.

    Raises
    ------
    ConfigError
        If a value or a combination of values is not allowed.
    """

    n_layers: int = 12
    embd_dim: int = 192
    num_heads: int = 12
    num_3d_kernels: int = 128
    ffn_multiplier: int = 2
    activation: str = "gelu"
    norm_first: bool = True
    decomposer: str = "pooling"
    decomposer_activation: str = "relu"
    distances: str = "gaussian"
    edge_types: bool = False
    directions: str = "direct"
    cutoff: float | None = None
    electron_table: bool = False
    target_heads: tuple[str, ...] = ("forces", "formation_energy")
    head_project_down: bool = True
    energy_conserving: bool = False
    extensive: bool = False
    attention_dropout: float = 0.0
    ffn_dropout: float = 0.0
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_choices(self, _CHOICES)
        check_count(self, "n_layers", most=MOST_LAYERS)
        check_count(self, "embd_dim", "num_heads", "num_3d_kernels", "ffn_multiplier")
        check_fraction(self, "attention_dropout", "ffn_dropout", "head_dropout")
        if self.embd_dim % self.num_heads:
            raise ConfigError(
                f"embd_dim={self.embd_dim} is not a multiple of num_heads={self.num_heads}"
            )
        if self.head_project_down and self.embd_dim < 4:
            raise ConfigError(
                f"embd_dim={self.embd_dim} must be at least 4 with head_project_down=True"
            )
        if self.directions == "fourier" and self.num_3d_kernels % 2:
            raise ConfigError(
                f"num_3d_kernels={self.num_3d_kernels} must be even with fourier directions"
            )
        if self.cutoff is not None:
            check_positive(self, "cutoff")
        if self.directions == "none" and "dipole" in self.target_heads:
            raise ConfigError(
                "directions='none' cannot predict a dipole, which turns with the molecule; "
                "leave 'dipole' out of target_heads"
            )
        if self.distances == "bessel" and self.num_3d_kernels < 8:
            raise ConfigError(
                f"num_3d_kernels={self.num_3d_kernels} must be at least 8 with bessel distances"
            )
        unknown = sorted(set(self.target_heads) - set(TARGET_DIMENSION))
        if unknown or not self.target_heads:
            raise ConfigError(
                f"target_heads={self.target_heads}; choose from {', '.join(TARGET_DIMENSION)}"
            )
        if self.energy_conserving and not {"forces", "formation_energy"} <= set(self.target_heads):
            raise ConfigError(
                "energy_conserving=True needs the heads 'forces' and 'formation_energy', "
                f"got {self.target_heads}"
            )

    @property
    def invariant(self) -> bool:
        """Whether energies do not depend on how the molecule lies."""
        return self.directions == "none"

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-able values."""
        options: dict[str, Any] = with_lists(asdict(self))
        return options

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> MDETConfig:
        """Build a configuration from :meth:`to_dict` output.

        Raises
        ------
        ConfigError
            If an option is unknown.
        """
        return cls(**with_tuples(refuse_unknown(cls, options, "MD-ET options")))
