"""Literal MD-ET force call: the yardstick of the MD-ET benchmark.

The formulas are evaluated one after the other in the cost model of the MD-ET authors' calculator:
every attention layer materialises its N³·E products and rebuilds the N³ mask, positions are
rounded to the network's precision before they are centred, and the autograd graph of the
positions is kept for the whole call. Nothing here is meant to be fast and nothing in the package
uses it.

Only the positions require gradients, not the parameters: that is the cheaper reading of the
authors' calculator, so speed-ups measured against this form are not flattered.

Supported: Gaussian distances without edge types, direct or Fourier directions, with or without
the electron table, pooling, pre-norm, GELU, heads "forces" and "formation_energy"
(Eissler et al., arXiv:2503.01431).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mlmd_calc.errors import ConfigError
from mlmd_calc.units import MDET_BOHR, MDET_FORCE, MDET_HARTREE

Weights: TypeAlias = Mapping[str, Tensor]

CHARGE_OFFSET: Final = 64
HEAD_SIZES: Final = {"forces": 3, "formation_energy": 1}

_FIXED_OPTIONS: Final[dict[str, object]] = {
    "cls_token": False,
    "activation": "gelu",
    "norm_first": True,
    "norm": "layer",
    "decomposer_type": "pooling",
    "target_heads": list(HEAD_SIZES),
    "head_project_down": True,
    "energy_conserving": False,
    "distance_embed_type": "gaussian",
    "embed_edge_types": False,
}


@dataclass(frozen=True)
class ReferenceConfig:
    """Options of a network this module can evaluate; defaults: the 12-layer model.

    Attributes
    ----------
    n_layers, embd_dim, num_heads, num_3d_kernels, ffn_multiplier
        Number of layers, E, H, K and the feed-forward expansion m.
    directional_embed_type
        ``"direct"`` or ``"fourier"``.
    use_electronic_embeddings
        Whether the electron-configuration table is added to the element embedding.
    """

    n_layers: int = 12
    embd_dim: int = 192
    num_heads: int = 12
    num_3d_kernels: int = 128
    ffn_multiplier: int = 2
    directional_embed_type: str = "direct"
    use_electronic_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.directional_embed_type not in ("direct", "fourier"):
            raise ConfigError(
                f"directional_embed_type={self.directional_embed_type!r} is not part of the "
                "reference form; use 'direct' or 'fourier'"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ReferenceConfig:
        """Take the constructor arguments of the authors' network, refusing unsupported ones.

        Parameters
        ----------
        options
            The ``train.model`` mapping of a run directory's ``config.yaml``.

        Raises
        ------
        ConfigError
            If an option has a value that this module does not implement.
        """
        for key, value in _FIXED_OPTIONS.items():
            if options[key] != value:
                raise ConfigError(f"the reference form needs {key}={value!r}, not {options[key]!r}")
        return cls(**{field.name: options[field.name] for field in fields(cls)})


def random_state_dict(config: ReferenceConfig, seed: int) -> dict[str, Tensor]:
    """Draw random float32 weights with the scales of an untrained network.

    Linear layers are drawn as PyTorch does by default, tables from a narrow normal distribution.
    An untrained network has a zero element table and almost zero direction maps; here they are
    drawn like the rest, so that the result depends on elements and directions.

    Parameters
    ----------
    config
        Size of the network; direct directions without electron table only.
    seed
        Seed of the generator that draws all weights.

    Raises
    ------
    ConfigError
        If `config` asks for Fourier directions or the electron table.
    """
    if config.directional_embed_type != "direct" or config.use_electronic_embeddings:
        raise ConfigError(f"no random weights for fourier directions or electron table: {config}")
    E, K, m = config.embd_dim, config.num_3d_kernels, config.ffn_multiplier
    draw = _RandomWeights(seed)
    draw.normal("embedding.nuclear_embedding.embedding.weight", (102, E), 0.02)
    draw.normal("embedding.multiplicity_embed.weight", (128, E), 0.02)
    draw.normal("embedding.charge_embed.weight", (128, E), 0.02)
    draw.uniform("embedding.m3d_embed.gbf.means.weight", (1, K), 0.0, 7.0)
    draw.uniform("embedding.m3d_embed.gbf.stds.weight", (1, K), 0.0, 3.0)
    draw.weights["embedding.m3d_embed.gbf.mul.weight"] = torch.ones(257, 1)
    draw.weights["embedding.m3d_embed.gbf.bias.weight"] = torch.zeros(257, 1)
    draw.linear("embedding.m3d_embed.gbf_proj.layer1", K, K)
    draw.linear("embedding.m3d_embed.gbf_proj.layer2", K, E)
    draw.linear("embedding.directional_embed.linear", 3, 2 * E)
    draw.linear("embedding.directional_embed.linear2", 2 * E, E)
    draw.linear("composer.node_proj.0", 2 * E, E)
    for i in range(config.n_layers):
        for name in ("qlin", "klin", "v1lin", "v2lin", "olin"):
            draw.linear(f"layers.{i}.attention.{name}", E, E, bias=False)
        draw.linear(f"layers.{i}.ffn.mlp.0", E, m * E)
        draw.linear(f"layers.{i}.ffn.mlp.3", m * E, E)
        for name in ("norm", "ffn.norm_aggregate", "ffn.norm"):
            draw.norm(f"layers.{i}.{name}", E)
    for name, out in (("out_proj", 2 * E), ("node_mlp", E)):
        draw.norm(f"decomposer.{name}.0", E)
        draw.linear(f"decomposer.{name}.1", E, out)
        draw.linear(f"decomposer.{name}.4", out, out)
    for head, size in HEAD_SIZES.items():
        draw.norm(f"heads.{head}.final_ln_node", E)
        draw.linear(f"heads.{head}.mlp.0", E, E // 2)
        draw.linear(f"heads.{head}.mlp.3", E // 2, E // 4)
        draw.linear(f"heads.{head}.mlp.6", E // 4, size, bias=False)
    return draw.weights


class _RandomWeights:
    """Weights drawn one after the other from one seeded generator."""

    def __init__(self, seed: int) -> None:
        self.weights: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, name: str, shape: tuple[int, ...], std: float) -> None:
        values = torch.randn(shape, generator=self._generator, dtype=torch.float32)
        self.weights[name] = std * values

    def uniform(self, name: str, shape: tuple[int, ...], low: float, high: float) -> None:
        values = torch.rand(shape, generator=self._generator, dtype=torch.float32)
        self.weights[name] = low + (high - low) * values

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        bound = inputs**-0.5
        self.uniform(f"{name}.weight", (outputs, inputs), -bound, bound)
        if bias:
            self.uniform(f"{name}.bias", (outputs,), -bound, bound)

    def norm(self, name: str, size: int) -> None:
        self.weights[f"{name}.weight"] = torch.ones(size)
        self.weights[f"{name}.bias"] = torch.zeros(size)


def literal_calculate(
    state_dict: Weights,
    config: ReferenceConfig,
    positions: NDArray[np.floating],
    numbers: NDArray[np.integer],
    charge: int = 0,
    multiplicity: int = 1,
    *,
    filter_forces: bool = True,
) -> tuple[float, NDArray[np.floating]]:
    """Return energy and forces of one molecule as the authors' calculator computes them.

    Parameters
    ----------
    state_dict
        Weights; their precision is the precision of the whole evaluation.
    config
        Options of the network.
    positions
        ``(n, 3)`` Å.
    numbers
        ``(n,)`` atomic numbers.
    charge, multiplicity
        Total charge in e and spin multiplicity.
    filter_forces
        Remove net force and net torque.

    Returns
    -------
    energy, forces
        eV, and ``(n, 3)`` eV/Å.
    """
    dtype = state_dict["composer.node_proj.0.weight"].dtype
    bohr = torch.as_tensor(positions / MDET_BOHR).to(dtype)
    bohr = (bohr - bohr.mean(dim=0)).requires_grad_()
    atoms = torch.as_tensor(numbers, dtype=torch.int64)
    output = literal_forward(state_dict, config, bohr, atoms, charge, multiplicity)
    # `output` keeps the graph, and with it the memory of all layers, alive until the end.
    energy = output["formation_energy"].detach() * MDET_HARTREE
    forces = output["forces"].detach()
    if filter_forces:
        forces = remove_net_force_and_torque(forces, bohr.detach())
    return float(energy), (forces * MDET_FORCE).numpy()


def literal_forward(
    state_dict: Weights,
    config: ReferenceConfig,
    positions_bohr: Tensor,
    numbers: Tensor,
    charge: int,
    multiplicity: int,
) -> dict[str, Tensor]:
    """Evaluate the network for one molecule.

    Parameters
    ----------
    state_dict
        Weights under the authors' names.
    config
        Options of the network.
    positions_bohr
        ``(n, 3)`` centred positions in Bohr, in the precision of the weights.
    numbers
        ``(n,)`` atomic numbers, int64.
    charge, multiplicity
        As in :func:`literal_calculate`.

    Returns
    -------
    dict
        ``"forces"`` ``(n, 3)`` Hartree/Bohr, ``"formation_energy"`` ``()`` Hartree and
        ``"embd"`` ``(n, E)``.
    """
    mask = torch.ones(len(numbers), dtype=torch.bool)
    nodes = node_features(state_dict, config, numbers, charge, multiplicity)
    edges = distance_features(state_dict, positions_bohr)
    edges = edges + _direction_features(state_dict, config, positions_bohr)
    pairs = literal_pairs(state_dict, config, nodes, edges)
    embedding = _pool_pairs(state_dict, pairs)
    weight = mask.to(embedding.dtype)[:, None]
    normed = {
        head: _norm(state_dict, f"heads.{head}.final_ln_node", embedding) * weight
        for head in HEAD_SIZES
    }
    mean = normed["formation_energy"].sum(dim=0) / (weight.sum() + 1e-9)
    return {
        "forces": _head(state_dict, "forces", normed["forces"]),
        "formation_energy": _head(state_dict, "formation_energy", mean).squeeze(-1),
        "embd": embedding,
    }


def literal_pairs(
    state_dict: Weights, config: ReferenceConfig, nodes: Tensor, edges: Tensor
) -> Tensor:
    """Features of pairs ``(n, n, E)`` after all layers, from those of atoms and of distances."""
    n = len(nodes)
    both = torch.cat([nodes[:, None].expand(n, n, -1), nodes[None].expand(n, n, -1)], dim=-1)
    pairs = edges + _linear(state_dict, "composer.node_proj.0", both)
    mask = torch.ones(n, dtype=torch.bool)
    for i in range(config.n_layers):
        pairs = _edge_layer(state_dict, f"layers.{i}", config.num_heads, pairs, mask)
    return pairs


def remove_net_force_and_torque(forces: Tensor, positions: Tensor) -> Tensor:
    """Make the smallest change (least squares) that removes net force and net torque.

    Parameters
    ----------
    forces, positions
        ``(n, 3)`` in any units.

    Returns
    -------
    Tensor
        ``(n, 3)`` forces in the unit of `forces`.
    """
    arms = positions - positions.mean(dim=0)
    forces = forces - forces.mean(dim=0)
    torque = torch.linalg.cross(arms, forces).sum(dim=0)
    moments = arms.T @ arms
    matrix = moments - torch.trace(moments) * torch.eye(3, dtype=moments.dtype)
    mu, info = torch.linalg.solve_ex(matrix, -torque)
    if info != 0:
        mu = torch.linalg.pinv(matrix) @ -torque
    filtered: Tensor = forces + torch.linalg.cross(arms, mu.expand_as(arms))
    return filtered


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return functional.layer_norm(x, x.shape[-1:], scale, shift)


def node_features(
    weights: Weights, config: ReferenceConfig, numbers: Tensor, charge: int, multiplicity: int
) -> Tensor:
    """Features of atoms ``(n, E)``."""
    nodes = weights["embedding.nuclear_embedding.embedding.weight"][numbers]
    if config.use_electronic_embeddings:
        table = weights["embedding.nuclear_embedding.electron_config"]
        shells = _linear(weights, "embedding.nuclear_embedding.config_linear", table[numbers])
        # The authors' network leaves the first atom of every molecule without this term.
        nodes = torch.cat([nodes[:1], nodes[1:] + shells[1:]])
    nodes = nodes + weights["embedding.multiplicity_embed.weight"][multiplicity]
    return nodes + weights["embedding.charge_embed.weight"][charge + CHARGE_OFFSET]


def _pair_vectors(positions: Tensor) -> Tensor:
    """Vectors from the first to the second atom of a pair, ``(n, n, 3)``."""
    return positions[None, :, :] - positions[:, None, :]


def distance_features(weights: Weights, positions: Tensor) -> Tensor:
    """Features of distances ``(n, n, E)``, positions in Bohr."""
    prefix = "embedding.m3d_embed"
    distances = torch.sqrt(_pair_vectors(positions).square().sum(dim=-1, keepdim=True) + 1e-8)
    edge_type = torch.zeros(distances.shape[:2], dtype=torch.int64)
    scaled = weights[f"{prefix}.gbf.mul.weight"][edge_type] * distances
    scaled = scaled + weights[f"{prefix}.gbf.bias.weight"][edge_type]
    mean = weights[f"{prefix}.gbf.means.weight"].view(-1)
    sigma = weights[f"{prefix}.gbf.stds.weight"].view(-1).abs() + 0.01
    gaussians = torch.exp(-0.5 * ((scaled - mean) / sigma) ** 2) / (math.sqrt(2 * math.pi) * sigma)
    hidden = functional.gelu(_linear(weights, f"{prefix}.gbf_proj.layer1", gaussians))
    return _linear(weights, f"{prefix}.gbf_proj.layer2", hidden)


def _direction_features(weights: Weights, config: ReferenceConfig, positions: Tensor) -> Tensor:
    prefix = "embedding.directional_embed"
    vectors = _pair_vectors(positions)
    unit = vectors / (torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) + 1e-5)
    if config.directional_embed_type == "direct":
        hidden = functional.gelu(_linear(weights, f"{prefix}.linear", unit))
        return functional.gelu(_linear(weights, f"{prefix}.linear2", hidden))
    x = torch.where(unit[..., 0].abs() < 1e-5, 1e-5, unit[..., 0])
    azimuth = torch.atan2(unit[..., 1], x)[..., None]
    polar = torch.arccos(unit[..., 2]).clamp(1e-6, math.pi - 1e-6)[..., None]
    azimuth = azimuth * weights[f"{prefix}.angular_freqs_azimuthal"]
    polar = polar * weights[f"{prefix}.angular_freqs_polar"]
    waves = [torch.sin(azimuth), torch.cos(azimuth), torch.sin(polar), torch.cos(polar)]
    return _linear(weights, f"{prefix}.proj", torch.cat(waves, dim=-1))


def _edge_layer(weights: Weights, name: str, num_heads: int, x: Tensor, mask: Tensor) -> Tensor:
    update = _edge_attention(
        weights, f"{name}.attention", num_heads, _norm(weights, f"{name}.norm", x), mask
    )
    z = _norm(weights, f"{name}.ffn.norm_aggregate", x + update)
    hidden = functional.gelu(_linear(weights, f"{name}.ffn.mlp.0", z))
    return _norm(weights, f"{name}.ffn.norm", z + _linear(weights, f"{name}.ffn.mlp.3", hidden))


def _edge_attention(weights: Weights, name: str, num_heads: int, x: Tensor, mask: Tensor) -> Tensor:
    """Attend over the shared atom l of the pairs (i, l) and (l, j); axes are (i, l, j, h, c)."""
    n = len(x)
    q, k, v1, v2 = (
        _linear(weights, f"{name}.{part}", x).view(n, n, num_heads, -1)
        for part in ("qlin", "klin", "v1lin", "v2lin")
    )
    q = q / math.sqrt(q.shape[-1])
    scores = (q[:, :, None] * k[None]).sum(dim=-1)
    real = mask[:, None, None] & mask[None, :, None] & mask[None, None, :]
    scores = scores.masked_fill(~real[..., None], -1e9)
    scores = scores - scores.detach().amax(dim=1, keepdim=True)
    attention = torch.softmax(scores, dim=1)
    values = v1[:, :, None] * v2[None]
    pooled = (attention[..., None] * values).sum(dim=1)
    return _linear(weights, f"{name}.olin", pooled.reshape(n, n, -1))


def _pool_pairs(weights: Weights, pairs: Tensor) -> Tensor:
    y1, y2 = _relu_mlp(weights, "decomposer.out_proj", pairs).chunk(2, dim=-1)
    return _relu_mlp(weights, "decomposer.node_mlp", (y1 + y2.transpose(0, 1)).sum(dim=1))


def _relu_mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    hidden = _linear(weights, f"{name}.1", _norm(weights, f"{name}.0", x))
    return _linear(weights, f"{name}.4", functional.relu(hidden))


def _head(weights: Weights, target: str, x: Tensor) -> Tensor:
    for index in (0, 3):
        x = functional.gelu(_linear(weights, f"heads.{target}.mlp.{index}", x))
    return _linear(weights, f"heads.{target}.mlp.6", x)
