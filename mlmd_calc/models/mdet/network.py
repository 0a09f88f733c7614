"""The MD-ET network. Module names are those of the published checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.larger import seeded_like, take_weights
from mlmd_calc.models.mdet.config import TARGET_DIMENSION, MDETConfig
from mlmd_calc.models.mdet.edge_attention import AttentionFunction, edge_attention, pair_bias
from mlmd_calc.models.mdet.embeddings import Embedding, PairGeometry, envelope, pair_geometry

ATOMWISE = frozenset({"forces"})
"""Targets predicted per atom; all others are means over the atoms of a molecule."""


def _activation(name: str) -> nn.Module:
    return nn.GELU() if name == "gelu" else nn.ReLU()


class EdgeAttention(nn.Module):
    """Bias-free projections around :func:`~.edge_attention.edge_attention`."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        width = config.embd_dim
        self.num_heads = config.num_heads
        self.qlin = nn.Linear(width, width, bias=False)
        self.klin = nn.Linear(width, width, bias=False)
        self.v1lin = nn.Linear(width, width, bias=False)
        self.v2lin = nn.Linear(width, width, bias=False)
        self.olin = nn.Linear(width, width, bias=False)

    def forward(self, pairs: Tensor, bias: Tensor | None, attention: AttentionFunction) -> Tensor:
        """Map pair features ``(b, n, n, E)`` to an update of the same shape."""
        split = (*pairs.shape[:3], self.num_heads, -1)
        attended = attention(
            self.qlin(pairs).view(split),
            self.klin(pairs).view(split),
            self.v1lin(pairs).view(split),
            self.v2lin(pairs).view(split),
            bias,
        )
        out: Tensor = self.olin(attended.reshape(pairs.shape))
        return out


class FeedForward(nn.Module):
    """Residual feed-forward block, normalised before and after."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        width, hidden = config.embd_dim, config.embd_dim * config.ffn_multiplier
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            _activation(config.activation),
            nn.Dropout(config.ffn_dropout),
            nn.Linear(hidden, width),
            nn.Dropout(config.ffn_dropout),
        )
        self.norm_aggregate = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, pairs: Tensor) -> Tensor:
        """Apply the block to ``(..., E)``; the residual is the already normalised input."""
        normalised = self.norm_aggregate(pairs)
        out: Tensor = self.norm(normalised + self.mlp(normalised))
        return out


class EdgeTransformerLayer(nn.Module):
    """One layer: attention with residual, then the feed-forward block."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        self.attention = EdgeAttention(config)
        if config.norm_first:
            self.norm = nn.LayerNorm(config.embd_dim)
        self.norm_first = config.norm_first
        self.dropout = nn.Dropout(config.attention_dropout)
        self.ffn = FeedForward(config)

    def forward(self, pairs: Tensor, bias: Tensor | None, attention: AttentionFunction) -> Tensor:
        """Update pair features ``(b, n, n, E)``."""
        inner = self.norm(pairs) if self.norm_first else pairs
        out: Tensor = self.ffn(pairs + self.dropout(self.attention(inner, bias, attention)))
        return out

    def pass_on(self, before: EdgeTransformerLayer) -> None:
        """Pass on what the layer before gives, and let the weights that follow learn to add to it.

        Both end with a normalisation. A normalised vector stays as it is when it is normalised
        again, so the scale and shift of the layer before move to this one.
        """
        for added in (self.attention.olin.weight, *self.ffn.mlp[3].parameters()):
            nn.init.zeros_(added)
        self.ffn.norm.load_state_dict(before.ffn.norm.state_dict())
        before.ffn.norm.reset_parameters()


class Composer(nn.Module):
    """Add the features of both atoms to every pair."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        self.node_proj = nn.Sequential(nn.Linear(2 * config.embd_dim, config.embd_dim))

    def forward(self, edges: Tensor, nodes: Tensor) -> Tensor:
        """Return ``e_ij + W [h_i; h_j] + b`` with W split so that no N²·2E tensor is made."""
        linear = cast(nn.Linear, self.node_proj[0])
        first, second = linear.weight.chunk(2, dim=1)
        left = nn.functional.linear(nodes, first, linear.bias)
        right = nn.functional.linear(nodes, second)
        return edges + left[:, :, None, :] + right[:, None, :, :]


def _decomposer_mlp(inputs: int, outputs: int, activation: str) -> nn.Sequential:
    # Index 3 is a dropout that no known configuration uses; checkpoints number the maps 0, 1, 4.
    return nn.Sequential(
        nn.LayerNorm(inputs),
        nn.Linear(inputs, outputs),
        _activation(activation),
        nn.Identity(),
        nn.Linear(outputs, outputs),
    )


class Decomposer(nn.Module):
    """Pairs to atoms, by pooling over partners or by reading the diagonal."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        width = config.embd_dim
        self.pooling = config.decomposer == "pooling"
        activation = config.decomposer_activation
        self.out_proj = _decomposer_mlp(width, 2 * width if self.pooling else width, activation)
        self.node_mlp = _decomposer_mlp(width, width, activation)

    def forward(self, pairs: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """Map ``(b, n, n, E)`` to ``(b, n, E)``; pairs may have weights ``(b, n, n)``.

        Padded partners are left out of the pooling sum, so that a molecule's result does not depend
        on the batch it is in. (The original sums over them.)
        """
        if self.pooling:
            out, into = self.out_proj(pairs).chunk(2, dim=-1)
            both = out + into.transpose(1, 2)
            if mask is not None:
                both = both * mask[:, None, :, None]
            if weights is not None:
                both = both * weights[..., None].to(both.dtype)
            pooled = both.sum(dim=2)
        else:
            pooled = self.out_proj(pairs.diagonal(dim1=1, dim2=2).transpose(1, 2))
        atoms: Tensor = self.node_mlp(pooled)
        return atoms


class Head(nn.Module):
    """Three-layer read-out of one target."""

    def __init__(self, config: MDETConfig, dimension: int, *, atomwise: bool) -> None:
        super().__init__()
        width = config.embd_dim
        first, second = (width // 2, width // 4) if config.head_project_down else (width, width)
        self.atomwise = atomwise
        self.extensive = config.extensive
        self.final_ln_node = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, first),
            _activation(config.activation),
            nn.Dropout(config.head_dropout),
            nn.Linear(first, second),
            _activation(config.activation),
            nn.Dropout(config.head_dropout),
            nn.Linear(second, dimension, bias=False),
        )
        # Start near zero: forces are some hundredths of an atomic unit.
        nn.init.normal_(cast(nn.Linear, self.mlp[-1]).weight, std=0.005)

    def forward(self, atoms: Tensor, mask: Tensor) -> Tensor:
        """Read out ``(b, n, dim)`` per atom or ``(b, dim)`` per molecule.

        Per molecule that is the read-out of the mean over atoms or, if the configuration says
        ``extensive``, the sum of the read-outs.
        """
        weight = mask.to(atoms.dtype)[..., None]
        features = self.final_ln_node(atoms) * weight
        if self.atomwise:
            per_atom: Tensor = self.mlp(features) * weight
            return per_atom
        if self.extensive:
            total: Tensor = (self.mlp(features) * weight).sum(dim=1)
            return total
        mean: Tensor = self.mlp(features.sum(dim=1) / (weight.sum(dim=1) + 1e-9))
        return mean

    def pairwise(self, pairs: Tensor) -> Tensor:
        """Read one number out of every pair: ``(b, n, n)``."""
        values: Tensor = self.mlp(self.final_ln_node(pairs))
        return values[..., 0]


class CentralForces(nn.Module):
    """Forces along the lines between atoms, for networks that see no directions.

    ``F_i = sum over j of c_ij (x_i - x_j) / r_ij`` with ``c_ij = c_ji`` read from the pair: forces
    that turn with the molecule and have neither a net force nor a net torque, whatever the weights
    are. For four or more atoms in general position every force field with these properties has this
    form, because the lines between the atoms hold the shape rigid.
    """

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        self.read_out = Head(config, 1, atomwise=True)

    def forward(self, pairs: Tensor, geometry: PairGeometry, weights: Tensor | None) -> Tensor:
        """Read out ``(b, n, 3)`` from pairs ``(b, n, n, E)``."""
        strength = self.read_out.pairwise(pairs)
        strength = strength + strength.transpose(1, 2)
        if weights is not None:
            strength = strength * weights.to(strength.dtype)
        # Vectors from i to j are zero where a pair is not real.
        along = strength / geometry.length.clamp(min=1e-5).to(strength.dtype)
        return -torch.einsum("bij,bijx->bix", along, geometry.vector.to(along.dtype))


class ConservativeHead(nn.Module):
    """Holder of the molecule-wise head whose gradient is the force."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        self.energy_head = Head(config, 1, atomwise=False)

    def forward(self, atoms: Tensor, mask: Tensor) -> Tensor:
        """Read out the potential ``(b, 1)`` whose *positive* gradient is the force."""
        out: Tensor = self.energy_head(atoms, mask)
        return out


class Encoding(NamedTuple):
    """What a :class:`PairEncoder` knows of molecules.

    Attributes
    ----------
    pairs
        ``(b, n, n, E)`` features of pairs of atoms.
    geometry
        Vectors and distances between atoms.
    weights
        ``(b, n, n)`` weights of the pairs, which fade at the cutoff; None without one.
    """

    pairs: Tensor
    geometry: PairGeometry
    weights: Tensor | None


class PairEncoder(nn.Module):
    """Features of the pairs of atoms of a molecule: :class:`MDET` without its read-outs.

    Parameters
    ----------
    config
        Architecture; options of read-outs do not matter.
    """

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.composer = Composer(config)
        self.layers = nn.ModuleList(EdgeTransformerLayer(config) for _ in range(config.n_layers))

    def encode(
        self,
        positions: Tensor,
        numbers: Tensor,
        mask: Tensor | None = None,
        charge: Tensor | None = None,
        multiplicity: Tensor | None = None,
        attention: AttentionFunction = edge_attention,
        features: torch.dtype | None = None,
    ) -> Encoding:
        """Features of pairs; parameters are those of :meth:`MDET.forward`."""
        batch = len(positions)
        if charge is None:
            charge = torch.zeros(batch, dtype=torch.long, device=numbers.device)
        if multiplicity is None:
            multiplicity = torch.ones(batch, dtype=torch.long, device=numbers.device)
        geometry = pair_geometry(positions, mask)
        cutoff = self.config.cutoff
        weights = None if cutoff is None else envelope(geometry.length, cutoff)
        pairs = self.composer(
            self.embedding.edges(geometry, numbers, features or positions.dtype),
            self.embedding.nodes(numbers, charge, multiplicity),
        )
        bias = pair_bias(mask, weights)
        for layer in self.layers:
            pairs = layer(pairs, bias, attention)
        return Encoding(pairs, geometry, weights)


class MDET(PairEncoder):
    """Unconstrained edge-transformer force field (arXiv 2503.01431).

    A pure function of tensors: positions in Bohr, outputs in atomic units. Random rotations,
    centring, unit conversion and the removal of net force and torque belong to
    :class:`mlmd_calc.Potential`.

    Parameters
    ----------
    config
        Architecture.

    Examples
    --------
    >>> import torch
    >>> from mlmd_calc.models import MDET, MDETConfig
    >>> net = MDET(MDETConfig(n_layers=1, embd_dim=16, num_heads=2, num_3d_kernels=8))
    >>> out = net(torch.randn(1, 3, 3), torch.tensor([[8, 1, 1]]))
    >>> out["forces"].shape
    torch.Size([1, 3, 3])
    """

    def __init__(self, config: MDETConfig) -> None:
        super().__init__(config)
        self.decomposer = Decomposer(config)
        self.heads = nn.ModuleDict()
        if config.energy_conserving:
            self.heads["forces"] = ConservativeHead(config)
        else:
            for target in config.target_heads:
                self.heads[target] = (
                    CentralForces(config)
                    if target == "forces" and config.invariant
                    else Head(config, TARGET_DIMENSION[target], atomwise=target in ATOMWISE)
                )

    def grown(
        self, n_layers: int | None = None, ffn_multiplier: int | None = None, seed: int = 0
    ) -> MDET:
        """Copy the network, with more layers or wider feed-forward blocks.

        The copy predicts the same, but for rounding, until it is trained further, and learns what
        is too much for the network as it is. New layers lie evenly between the old ones.

        Parameters
        ----------
        n_layers, ffn_multiplier
            As in :class:`MDETConfig`, at least the network's; None for the network's.
        seed
            Seed of the new weights.

        Raises
        ------
        ConfigError
            If that is smaller than the network.
        """
        old = self.config
        config = replace(
            old,
            n_layers=old.n_layers if n_layers is None else n_layers,
            ffn_multiplier=old.ffn_multiplier if ffn_multiplier is None else ffn_multiplier,
        )
        for option in ("n_layers", "ffn_multiplier"):
            wanted, present = getattr(config, option), getattr(old, option)
            if wanted < present:
                raise ConfigError(
                    f"{option}={wanted} is less than the network's {present}; a trained network "
                    "can only grow"
                )
        larger = seeded_like(self, lambda: MDET(config), seed)
        around = {k: v for k, v in self.state_dict().items() if not k.startswith("layers.")}
        larger.load_state_dict(around, strict=False)
        layers = iter(cast("list[EdgeTransformerLayer]", larger.layers))
        added = config.n_layers - old.n_layers
        for place, layer in enumerate(cast("list[EdgeTransformerLayer]", self.layers), start=1):
            last = next(layers)
            take_weights(last, layer)
            for _ in range(added * (place - 1) // old.n_layers, added * place // old.n_layers):
                new = next(layers)
                new.pass_on(last)
                last = new
        return larger

    def forward(
        self,
        positions: Tensor,
        numbers: Tensor,
        mask: Tensor | None = None,
        charge: Tensor | None = None,
        multiplicity: Tensor | None = None,
        targets: tuple[str, ...] | None = None,
        attention: AttentionFunction = edge_attention,
        features: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Evaluate the network.

        Parameters
        ----------
        positions
            ``(b, n, 3)`` Bohr, in single or double precision whatever the weights are. The network
            is invariant to translations only up to rounding: centre them.
        numbers
            ``(b, n)`` int64 atomic numbers, 0 for padding.
        mask
            ``(b, n)`` bool, True for real atoms; None if there is no padding.
        charge, multiplicity
            ``(b,)`` int64; None for neutral singlets.
        targets
            Heads to evaluate; None for all.
        attention
            Form of the triangular attention; all give the same numbers.
        features
            Precision of distance and direction features; None for that of the positions.

        Returns
        -------
        dict of Tensor
            "forces" ``(b, n, 3)`` Hartree/Bohr (zero for padding), molecule-wise heads
            ``(b, dim)``, and "embd" ``(b, n, E)``. For a conservative model "forces" is absent and
            "potential" ``(b, 1)`` is the function whose positive gradient is the force.
        """
        pairs, geometry, weights = self.encode(
            positions, numbers, mask, charge, multiplicity, attention, features
        )
        atoms_mask = torch.ones_like(numbers, dtype=torch.bool) if mask is None else mask
        atoms = self.decomposer(pairs, mask, weights)
        out = {"embd": atoms}
        if self.config.energy_conserving:
            out["potential"] = self.heads["forces"](atoms, atoms_mask)
            return out
        for target, head in self.heads.items():
            if targets is not None and target not in targets:
                continue
            if isinstance(head, CentralForces):
                out[target] = head(pairs, geometry, weights)
            else:
                out[target] = head(atoms, atoms_mask)
        return out
