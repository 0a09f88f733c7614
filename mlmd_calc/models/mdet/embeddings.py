"""Input features of MD-ET: elements, charge and multiplicity, distances, directions.

Vectors between atoms are taken in the precision of the positions, features of them in a precision
of the caller's choice, and only the result is converted to the precision of the weights, just
before the first learned linear map. Double precision up to that point costs O(N²).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlmd_calc.models.mdet.config import MDETConfig
from mlmd_calc.models.mdet.electrons import electron_table

NUM_ELEMENTS: Final = 102
"""Rows of the element table; 0 is padding, 101 a token that is not an element."""

CHARGE_OFFSET: Final = 64
"""Row of the charge table that belongs to a neutral molecule."""

NUM_STATES: Final = 128
"""Rows of the charge and multiplicity tables."""

_NUM_EDGE_TYPES: Final = 128 * 128
_MAX_DEGREE: Final = 6


class PairGeometry(NamedTuple):
    """Vectors between atoms, constants where a pair is not real.

    Attributes
    ----------
    vector
        ``x_j - x_i``, ``(b, n, n, 3)`` Bohr; zero on the diagonal and for padding.
    length
        ``|x_j - x_i|``, ``(b, n, n)`` Bohr; zero on the diagonal and for padding.
    """

    vector: Tensor
    length: Tensor

    def to(self, dtype: torch.dtype) -> PairGeometry:
        """Round to another precision."""
        return PairGeometry(self.vector.to(dtype), self.length.to(dtype))


def pair_geometry(positions: Tensor, mask: Tensor | None) -> PairGeometry:
    """Vectors and distances between all atoms.

    The diagonal and padding are constants: differentiating ``v/|v|`` at ``v = 0`` would give two
    huge terms that cancel only in exact arithmetic.

    Parameters
    ----------
    positions
        ``(b, n, 3)`` Bohr.
    mask
        ``(b, n)`` bool, True for real atoms; None if there is no padding.
    """
    n = positions.shape[1]
    constant = torch.eye(n, dtype=torch.bool, device=positions.device)[None]
    if mask is not None:
        constant = constant | ~(mask[:, :, None] & mask[:, None, :])
    vector = positions[:, None, :, :] - positions[:, :, None, :]
    vector = vector.masked_fill(constant[..., None], 0.0)
    square = vector.square().sum(-1).masked_fill(constant, 1.0)
    return PairGeometry(vector, square.sqrt().masked_fill(constant, 0.0))


def envelope(length: Tensor, cutoff: float) -> Tensor:
    """``(1 - (r/c)²)³`` inside the cutoff c and 0 outside; its second derivative is continuous.

    Parameters
    ----------
    length
        Distances r, of any shape, in the unit of the cutoff.
    cutoff
        Distance c.
    """
    return (1.0 - (length / cutoff).square()).clamp(min=0.0) ** 3


class NuclearEmbedding(nn.Module):
    """Element table, optionally with the electron configuration added."""

    electron_config: Tensor

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_ELEMENTS, config.embd_dim)
        nn.init.zeros_(self.embedding.weight)
        self.electrons = config.electron_table
        if self.electrons:
            self.register_buffer("electron_config", electron_table().float())
            self.config_linear = nn.Linear(23, config.embd_dim)
            nn.init.zeros_(self.config_linear.weight)

    def forward(self, numbers: Tensor) -> Tensor:
        """Embed atomic numbers ``(b, n)`` as ``(b, n, E)``."""
        nodes: Tensor = self.embedding(numbers)
        if self.electrons:
            term = self.config_linear(self.electron_config[numbers])
            # The original drops the term for the first atom, with or without an extra token.
            first = torch.arange(numbers.shape[1], device=numbers.device) == 0
            nodes = nodes + term.masked_fill(first[None, :, None], 0.0)
        return nodes


class GaussianBasis(nn.Module):
    """Gaussians of an affine, optionally element-pair dependent, distance.

    They start evenly spaced over chemical distances. (The authors draw centres from U(0, 7) and
    widths from U(0, 3) Bohr, which leaves gaps and lets single narrow kernels dominate.)
    """

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        rows = _NUM_EDGE_TYPES if config.edge_types else 257
        self.means = nn.Embedding(1, config.num_3d_kernels)
        self.stds = nn.Embedding(1, config.num_3d_kernels)
        self.mul = nn.Embedding(rows, 1)
        self.bias = nn.Embedding(rows, 1)
        centres = torch.linspace(0.5, 10.0, config.num_3d_kernels)
        with torch.no_grad():
            self.means.weight.copy_(centres)
        nn.init.constant_(self.stds.weight, 12.0 / config.num_3d_kernels)
        nn.init.ones_(self.mul.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, distance: Tensor, edge_type: Tensor) -> Tensor:
        """Expand distances ``(b, n, n)`` into ``(b, n, n, K)`` Gaussian densities."""
        dtype = distance.dtype
        shifted = self.mul(edge_type).to(dtype) * distance[..., None] + self.bias(edge_type).to(
            dtype
        )
        sigma = self.stds.weight[0].to(dtype).abs() + 0.01
        z = (shifted - self.means.weight[0].to(dtype)) / sigma
        return torch.exp(-0.5 * z * z) / (math.sqrt(2.0 * math.pi) * sigma)


class GaussianProjection(nn.Module):
    """Two linear maps with GELU between them, K to K to E."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        self.layer1 = nn.Linear(config.num_3d_kernels, config.num_3d_kernels)
        self.layer2 = nn.Linear(config.num_3d_kernels, config.embd_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(..., K)`` to ``(..., E)``."""
        projected: Tensor = self.layer2(functional.gelu(self.layer1(features)))
        return projected


class GaussianDistances(nn.Module):
    """Gaussian distance features and their projection to the pair width."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        self.gbf = GaussianBasis(config)
        self.gbf_proj = GaussianProjection(config)

    def forward(self, distance: Tensor, edge_type: Tensor) -> Tensor:
        """Embed distances ``(b, n, n)`` as ``(b, n, n, E)``."""
        features = self.gbf(distance, edge_type)
        projected: Tensor = self.gbf_proj(features.to(self.gbf_proj.layer1.weight.dtype))
        return projected


class BesselDistances(nn.Module):
    """Bessel features ``sin(w r)/r`` and their projection to the pair width."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        k = config.num_3d_kernels
        self.freqs = nn.Embedding(_NUM_EDGE_TYPES, k)
        nn.init.uniform_(self.freqs.weight, 1.0, math.pi * k / 25.0)
        self.linear = nn.Linear(k, config.embd_dim)

    def forward(self, distance: Tensor, edge_type: Tensor) -> Tensor:
        """Embed distances ``(b, n, n)`` as ``(b, n, n, E)``."""
        r = distance[..., None]
        features = torch.sin(r * self.freqs(edge_type).to(r.dtype)) / r.clamp(min=1e-5)
        projected: Tensor = self.linear(features.to(self.linear.weight.dtype))
        return projected


def _unit_vectors(pairs: PairGeometry) -> Tensor:
    return pairs.vector / (pairs.length[..., None] + 1e-5)


class DirectDirections(nn.Module):
    """Cartesian components of the unit vector through a two-layer network.

    The weights start at PyTorch's defaults. The authors start at N(0, 0.001), which makes the
    directions so much smaller than the other features that bfloat16 rounds them away at first.
    """

    def __init__(self, config: MDETConfig, inputs: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * config.embd_dim)
        self.linear2 = nn.Linear(2 * config.embd_dim, config.embd_dim)

    def features(self, pairs: PairGeometry) -> Tensor:
        """Direction features ``(b, n, n, inputs)``."""
        return _unit_vectors(pairs)

    def forward(self, pairs: PairGeometry) -> Tensor:
        """Embed directions as ``(b, n, n, E)``; GELU follows the second map too."""
        hidden = functional.gelu(self.linear(self.features(pairs).to(self.linear.weight.dtype)))
        return functional.gelu(self.linear2(hidden))


class HarmonicDirections(DirectDirections):
    """Real spherical harmonics up to degree 6 through the same two-layer network."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__(config, inputs=(_MAX_DEGREE + 1) ** 2)

    def features(self, pairs: PairGeometry) -> Tensor:
        """Spherical harmonics ``(b, n, n, 49)`` of the directions."""
        length = pairs.length[..., None].clamp(min=1e-12)
        return real_spherical_harmonics(pairs.vector / length)


def real_spherical_harmonics(unit: Tensor) -> Tensor:
    """Orthonormal real spherical harmonics of degree 0 to 6 with y as polar axis.

    The functions are polynomials in (x, y, z), obtained by recursion from

    * ``A_m + i B_m = (z + i x)^m``  (azimuth measured from z towards x)
    * ``P_l^m``: associated Legendre functions of y divided by ``(1 - y²)^(m/2)``, no
      Condon-Shortley sign.

    Parameters
    ----------
    unit
        ``(..., 3)`` unit vectors; a zero vector gives zero for all degrees above 0.

    Returns
    -------
    Tensor
        ``(..., 49)``, degree ascending, order from −l to l.
    """
    x, y, z = unit.unbind(-1)
    cosine, sine = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(_MAX_DEGREE):
        a, b = cosine[-1], sine[-1]
        cosine.append(z * a - x * b)
        sine.append(z * b + x * a)
    legendre = _reduced_legendre(y)
    columns = []
    nonzero = (unit != 0).any(-1)
    for degree in range(_MAX_DEGREE + 1):
        for order in range(-degree, degree + 1):
            m = abs(order)
            norm = math.sqrt(
                (2 * degree + 1)
                / (4 * math.pi)
                * math.factorial(degree - m)
                / math.factorial(degree + m)
            )
            angular = cosine[m] if order >= 0 else sine[m]
            factor = norm * (math.sqrt(2.0) if m else 1.0)
            value = factor * legendre[degree, m] * angular
            columns.append(value if degree == 0 else value * nonzero)
    return torch.stack(columns, dim=-1)


def _reduced_legendre(y: Tensor) -> dict[tuple[int, int], Tensor]:
    """``P_l^m(y) / (1 - y²)^(m/2)`` for all degrees, by the standard upward recursion."""
    values: dict[tuple[int, int], Tensor] = {}
    diagonal = 1.0
    for m in range(_MAX_DEGREE + 1):
        values[m, m] = torch.full_like(y, diagonal)
        diagonal *= 2 * m + 1
        for degree in range(m + 1, _MAX_DEGREE + 1):
            value = (2 * degree - 1) * y * values[degree - 1, m]
            if degree > m + 1:
                value = value - (degree + m - 1) * values[degree - 2, m]
            values[degree, m] = value / (degree - m)
    return values


class FourierDirections(nn.Module):
    """Sines and cosines of azimuth and polar angle at log-spaced frequencies.

    With up to 31,416 rad⁻¹ the phases are meaningless in single precision, so this class is given
    the unrounded vectors whatever the other features are evaluated in.
    """

    angular_freqs_azimuthal: Tensor
    angular_freqs_polar: Tensor

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        half = config.num_3d_kernels // 2
        self.register_buffer("angular_freqs_azimuthal", _log_frequencies(half, 4.0 * math.pi))
        self.register_buffer("angular_freqs_polar", _log_frequencies(half, 2.0 * math.pi))
        self.proj = nn.Linear(2 * config.num_3d_kernels, config.embd_dim)

    def forward(self, pairs: PairGeometry) -> Tensor:
        """Embed directions as ``(b, n, n, E)``."""
        x, y, z = _unit_vectors(pairs).unbind(-1)
        x = torch.where(x.abs() < 1e-5, torch.full_like(x, 1e-5), x)
        azimuth = torch.atan2(y, x)[..., None] * self.angular_freqs_azimuthal.to(x.dtype)
        polar = torch.arccos(z).clamp(1e-6, math.pi - 1e-6)[..., None]
        polar = polar * self.angular_freqs_polar.to(x.dtype)
        features = torch.cat([azimuth.sin(), azimuth.cos(), polar.sin(), polar.cos()], dim=-1)
        projected: Tensor = self.proj(features.to(self.proj.weight.dtype))
        return projected


def _log_frequencies(count: int, longest: float) -> Tensor:
    wavelengths = torch.exp(torch.linspace(math.log(2e-4), math.log(longest), count))
    return 2.0 * math.pi / wavelengths


_DIRECTIONS = {
    "direct": DirectDirections,
    "fourier": FourierDirections,
    "spherical_harmonics": HarmonicDirections,
}


class Embedding(nn.Module):
    """Node features h and pair features e of MD-ET."""

    def __init__(self, config: MDETConfig) -> None:
        super().__init__()
        self.edge_types = config.edge_types
        self.fourier = config.directions == "fourier"
        self.bessel = config.distances == "bessel"
        self.nuclear_embedding = NuclearEmbedding(config)
        self.multiplicity_embed = nn.Embedding(NUM_STATES, config.embd_dim)
        self.charge_embed = nn.Embedding(NUM_STATES, config.embd_dim)
        nn.init.normal_(self.multiplicity_embed.weight, std=0.02)
        nn.init.normal_(self.charge_embed.weight, std=0.02)
        self.m3d_embed = BesselDistances(config) if self.bessel else GaussianDistances(config)
        self.directional_embed = (
            None if config.invariant else _DIRECTIONS[config.directions](config)
        )

    def nodes(self, numbers: Tensor, charge: Tensor, multiplicity: Tensor) -> Tensor:
        """Node features ``(b, n, E)``.

        Parameters
        ----------
        numbers
            ``(b, n)`` int64.
        charge, multiplicity
            ``(b,)`` int64.
        """
        state = self.multiplicity_embed(multiplicity) + self.charge_embed(charge + CHARGE_OFFSET)
        nodes: Tensor = self.nuclear_embedding(numbers) + state[:, None, :]
        return nodes

    def edges(self, exact: PairGeometry, numbers: Tensor, features: torch.dtype) -> Tensor:
        """Pair features ``(b, n, n, E)``.

        Distances and directions are evaluated in the precision ``features``.
        """
        pairs = exact.to(features)
        distance = torch.sqrt(pairs.length.square() + 1e-8)
        if self.edge_types:
            edge_type = numbers[:, :, None] + 128 * numbers[:, None, :]
        else:
            edge_type = torch.zeros_like(distance, dtype=torch.long)
        edges: Tensor = self.m3d_embed(distance, edge_type)
        if self.directional_embed is not None:
            edges = edges + self.directional_embed(exact if self.fourier else pairs)
        return edges
