"""Literal ATOM: the yardstick of the ATOM benchmark and of the network's tests.

The formulas are evaluated one after the other in the cost model of the ATOM authors' code: the
state is copied to every output slot, all slots of all atoms are tokens, every block projects the
copies of all three streams, materialises their token × token scores and builds its rotary tables
anew. Nothing here is meant to be fast and nothing in the package uses it.

:func:`literal_forward` is the published operator (arXiv 2510.05482), evaluated for a batch.
:func:`literal_propagate` is the integrator, evaluated for one molecule and one time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

import torch
from ase import units
from mdet_reference import ReferenceConfig, distance_features, literal_pairs, node_features
from torch import Tensor
from torch.nn import functional

from mlmd_calc.models import ATOMConfig, IntegratorConfig
from mlmd_calc.models.atom.config import BlockConfig

Weights: TypeAlias = Mapping[str, Tensor]

RMS_EPSILON: Final = 2.0**-23
LAYER_EPSILON: Final = 1e-5
HORIZON_PERIODS: Final = 8


def literal_forward(
    weights: Weights,
    config: ATOMConfig,
    x_0: Tensor,
    v_0: Tensor,
    concatenated_features: Tensor,
    padded_nodes_mask: Tensor | None = None,
    time_increments: Tensor | None = None,
) -> dict[str, Tensor]:
    """Evaluate the published operator.

    Parameters
    ----------
    weights
        State dict; its precision is the precision of the evaluation.
    config
        Options of the network.
    x_0, v_0, concatenated_features, padded_nodes_mask, time_increments
        ``(b, t, n, 4)``, ``(b, t, n, 4)``, ``(b, t, n, 9 + K)``, ``(b, t, n, 1)``, ``(b, t)``.

    Returns
    -------
    dict
        "pos" ``(b, t, n, 3)`` and, depending on the heads, "vel" ``(b, t, n, 3)`` and
        "energy" ``(b, t)``.
    """
    b, t, n, _ = x_0.shape
    context, mask = concatenated_features, None
    if padded_nodes_mask is not None:
        x_0, v_0, context = (tensor * padded_nodes_mask for tensor in (x_0, v_0, context))
        mask = padded_nodes_mask.reshape(b, t * n)
    frame = torch.eye(3, dtype=x_0.dtype).expand(b, 3, 3)
    origin = x_0.new_zeros(b, 3)
    inputs = x_0, v_0, context
    if config.lifting_type == "canonicalization":
        frame, origin = _frames(x_0, v_0, mask)
        layouts = ("vs", "vs", "vsvs")
        inputs = tuple(_turn(w, frame, how) for w, how in zip(inputs, layouts, strict=True))
    h_x, h_v, h_c = (w.reshape(b, t * n, -1) for w in _lift(weights, config, *inputs))
    if config.positional_encoding == "sinusoidal":
        h_c = h_c + _sinusoids(t, config.lifting_dim, h_c.dtype).repeat_interleave(n, dim=0)
    stream, first = h_x, h_x
    for i in range(config.num_layers):
        name = f"transformer_blocks.{i}"
        features = [
            _norm(weights, f"{name}.norms.{j}", config, h)
            for j, h in enumerate(_streams(config, stream, h_v, h_c))
        ]
        query = h_c if config.attention_type == "ghca" else features[0]
        attended = _attention(weights, name, config, query, features, mask, (t, n), time_increments)
        y = features[0] + attended
        change = _feed_forward(weights, f"{name}.ffn", config, y)
        z = y + (change if mask is None else mask[..., None] * change)
        stream = z if i == 0 else _blend(weights, name, config, z, first)
        first = z if i == 0 else first
    return _read_out(weights, config, stream, (b, t, n), mask, x_0, frame, origin)


def _streams(config: BlockConfig, x: Tensor, v: Tensor, c: Tensor) -> list[Tensor]:
    return [x, v, c] if config.attention_type == "ghca" else [x]


# ---- lifting --------------------------------------------------------------------------------


def _lift(
    weights: Weights, config: ATOMConfig, x_0: Tensor, v_0: Tensor, context: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of position, velocity and context, each ``(..., d)``."""
    name = "lifting_layer"
    d = config.lifting_dim
    if config.lifting_type == "non_equivariant":
        return (
            _linear(weights, f"{name}.x_0_linear", x_0),
            _linear(weights, f"{name}.v_0_linear", v_0),
            _linear(weights, f"{name}.concat_feats_linear", context),
        )
    h_x = _equivariant_linear(weights[f"{name}.x_0_linear.weight"], "vs", x_0, d)
    h_v = _equivariant_linear(weights[f"{name}.v_0_linear.weight"], "vs", v_0, d)
    extra = context.shape[-1] - 8
    layout = "vsvs" + "s" * extra
    weight = weights[f"{name}.concat_feats_linear.weight"]
    if config.lifting_type == "quasi_equivariant":
        return h_x, h_v, _equivariant_linear(weight, layout, context, d)
    factor, layout = context[..., 4:], layout[2:]
    if not config.tensor_product_rrwp:
        number = -1 if config.lifting_type == "canonicalization" else 8
        factor = torch.cat([context[..., 4:8], context[..., number, None]], dim=-1)
        layout = "vss"
    h_vz = _equivariant_linear(weights[f"{name}.vz_0_linear.weight"], layout, factor, d)
    return h_x, h_v, _tensor_product(weight, h_x, h_vz)


def _equivariant_linear(weight: Tensor, layout: str, inputs: Tensor, d: int) -> Tensor:
    """Map blocks of one vector (``v``) or one scalar (``s``) to d // 3 vectors, d % 3 scalars."""
    nv, ns = d // 3, d % 3
    vectors = inputs.new_zeros(*inputs.shape[:-1], nv, 3)
    scalars = inputs.new_zeros(*inputs.shape[:-1], ns)
    channel, start = 0, 0
    for kind in layout:
        if kind == "v":
            row = weight[start : start + nv]
            vectors = vectors + row[:, None] * inputs[..., None, channel : channel + 3]
            channel, start = channel + 3, start + nv
        else:
            row = weight[start : start + ns]
            scalars = scalars + row * inputs[..., channel : channel + 1]
            channel, start = channel + 1, start + ns
    vectors = vectors / math.sqrt(layout.count("v"))
    scalars = scalars / math.sqrt(layout.count("s"))
    return torch.cat([vectors.flatten(-2), scalars], dim=-1)


def _tensor_product(weight: Tensor, h_x: Tensor, h_vz: Tensor) -> Tensor:
    d = h_x.shape[-1]
    nv, ns = d // 3, d % 3
    vector_x, scalar_x = h_x[..., : 3 * nv].unflatten(-1, (nv, 3)), h_x[..., 3 * nv :]
    vector_y, scalar_y = h_vz[..., : 3 * nv].unflatten(-1, (nv, 3)), h_vz[..., 3 * nv :]
    w1, w2, w3, w4 = weight.split([nv * nv * ns, nv * ns * nv, ns * nv * nv, ns * ns * ns])
    dots = torch.einsum("...ui,...vi->...uv", vector_x, vector_y) / math.sqrt(3.0)
    scalars = torch.einsum("...uv,uvw->...w", dots, w1.view(nv, nv, ns))
    products = torch.einsum("...u,...v->...uv", scalar_x, scalar_y)
    scalars = scalars + torch.einsum("...uv,uvw->...w", products, w4.view(ns, ns, ns))
    outer = torch.einsum("...ui,...v->...uvi", vector_x, scalar_y)
    vectors = torch.einsum("...uvi,uvw->...wi", outer, w2.view(nv, ns, nv))
    outer = torch.einsum("...u,...vi->...uvi", scalar_x, vector_y)
    vectors = vectors + torch.einsum("...uvi,uvw->...wi", outer, w3.view(ns, nv, nv))
    vectors = vectors / math.sqrt(2 * nv * ns)
    scalars = scalars / math.sqrt(nv * nv + ns * ns)
    return torch.cat([vectors.flatten(-2), scalars], dim=-1)


def literal_frame(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Principal axes as columns, with signs from the angular momentum, and the mean position.

    Parameters
    ----------
    x, v
        ``(n, 3)`` positions and velocities of the real atoms of one molecule.
    """
    mean = x.mean(dim=0)
    arms = x - mean
    covariance = arms.T @ arms / len(x) + 1e-8 * torch.eye(3, dtype=x.dtype)
    _, axes = torch.linalg.eigh(covariance)
    momentum = torch.linalg.cross(arms, v).sum(dim=0)
    first = axes[:, 2]
    second = axes[:, 1] - (axes[:, 1] @ first) * first
    second = second / torch.linalg.vector_norm(second)
    if first @ momentum < 0:
        first = -first
    third = torch.linalg.cross(first, second)
    if third @ momentum < 0:
        second, third = -second, -third
    return torch.stack([first, second, third], dim=1), mean


def _frames(x_0: Tensor, v_0: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Frames ``(b, 3, 3)`` and origins ``(b, 3)`` from the first slot's real atoms."""
    b, _, n, _ = x_0.shape
    real = torch.ones(b, n, dtype=torch.bool) if mask is None else mask[:, :n]
    pairs = [
        literal_frame(x[0, atoms, :3], v[0, atoms, :3])
        for x, v, atoms in zip(x_0, v_0, real, strict=True)
    ]
    return torch.stack([frame for frame, _ in pairs]), torch.stack([mean for _, mean in pairs])


def _turn(features: Tensor, frame: Tensor, layout: str) -> Tensor:
    """Express the vectors among ``(b, t, n, ·)`` features in frames ``(b, 3, 3)``."""
    features = features.clone()
    channel = 0
    for kind in layout:
        if kind == "v":
            vector = features[..., channel : channel + 3]
            features[..., channel : channel + 3] = torch.einsum("btni,bij->btnj", vector, frame)
        channel += 3 if kind == "v" else 1
    return features


# ---- blocks ---------------------------------------------------------------------------------


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Weights, name: str, config: BlockConfig, x: Tensor) -> Tensor:
    scale = weights[f"{name}.weight"]
    if config.norm == "rms":
        return x * scale / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + RMS_EPSILON)
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * scale / torch.sqrt(variance + LAYER_EPSILON) + weights[f"{name}.bias"]


def _attention(
    weights: Weights,
    block: str,
    config: ATOMConfig,
    query: Tensor,
    features: list[Tensor],
    mask: Tensor | None,
    slots_and_atoms: tuple[int, int],
    time_increments: Tensor | None,
) -> Tensor:
    name = f"{block}.attention"

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (config.num_heads, -1))

    def rotated(x: Tensor) -> Tensor:
        times = _token_times(config, slots_and_atoms, time_increments, x.dtype)
        return heads(x) if times is None else _rotate(heads(x), times, config.rope_base)

    shares = _shares(weights, name, config)
    q = rotated(_linear(weights, f"{name}.query", query))
    total = torch.zeros_like(q)
    for share, feature in zip(shares, features, strict=True):
        k = rotated(_linear(weights, f"{name}.key", feature))
        v = heads(_linear(weights, f"{name}.value", feature))
        scores = torch.einsum("bshc,buhc->bhsu", q, k) / math.sqrt(config.head_dim)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
        attention = torch.softmax(scores, dim=-1)
        total = total + share * torch.einsum("bhsu,buhc->bshc", attention, v)
    return _linear(weights, f"{name}.out_proj", total.flatten(-2))


def _shares(weights: Weights, attention: str, config: BlockConfig) -> Tensor:
    if config.attention_type == "self":
        return torch.ones(1)
    return torch.softmax(weights[f"{attention}.feature_weights"], dim=0)


def _token_times(
    config: ATOMConfig,
    slots_and_atoms: tuple[int, int],
    time_increments: Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """Rotation angle of the fastest pair for every token, ``(b or 1, s)``."""
    t, n = slots_and_atoms
    if config.positional_encoding == "rope":
        return torch.arange(t * n, dtype=dtype)[None]
    if config.positional_encoding not in ("trope", "slot_rope"):
        return None
    times = torch.arange(t, dtype=dtype)[None]
    if time_increments is not None and config.positional_encoding == "trope":
        # A slot carries the time at which its interval begins.
        times = time_increments.to(dtype).cumsum(dim=1).roll(1, dims=1)
        times[:, 0] = 0.0
    return (times / config.rope_tau).repeat_interleave(n, dim=1)


def _rotate(x: Tensor, angles: Tensor, base: float) -> Tensor:
    """Turn adjacent channels of ``(b, s, h, c)`` by multiples of the token's angle ``(b, s)``."""
    c = x.shape[-1]
    frequencies = 1.0 / base ** (torch.arange(0, c, 2, dtype=torch.float32) / c)
    theta = angles[:, :, None, None] * frequencies.to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (
        even * torch.cos(theta) - odd * torch.sin(theta),
        even * torch.sin(theta) + odd * torch.cos(theta),
    )
    return torch.stack(turned, dim=-1).flatten(-2)


def _sinusoids(slots: int, d: int, dtype: torch.dtype) -> Tensor:
    table = torch.zeros(slots, d, dtype=dtype)
    for slot in range(slots):
        for channel in range(d):
            angle = slot / 10000.0 ** ((channel - channel % 2) / d)
            table[slot, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
    return table


def _feed_forward(weights: Weights, name: str, config: BlockConfig, y: Tensor) -> Tensor:
    for index in (0, 2):
        u = _linear(weights, f"{name}.layers.{index}", y)
        y = _activation(weights, f"{name}.layers.1", config, u)
    return _linear(weights, f"{name}.layers.5", y)


def _activation(weights: Weights, name: str, config: BlockConfig, u: Tensor) -> Tensor:
    if config.activation == "swiglu":
        gate = _linear(weights, f"{name}.linear_gate", u)
        return functional.silu(gate) * _linear(weights, f"{name}.linear_value", u)
    if config.activation == "relu2":
        return functional.relu(u).square()
    return getattr(functional, config.activation)(u)


def _blend(weights: Weights, block: str, config: BlockConfig, z: Tensor, first: Tensor) -> Tensor:
    if config.value_residual_type == "none":
        return z
    share = torch.tensor(0.5, dtype=z.dtype)
    if config.value_residual_type == "learnable":
        share = torch.sigmoid(weights[f"{block}.lambda_v_residual"])
    return share * z + (1.0 - share) * first


# ---- read-out -------------------------------------------------------------------------------


def _read_out(
    weights: Weights,
    config: ATOMConfig,
    stream: Tensor,
    shape: tuple[int, int, int],
    mask: Tensor | None,
    x_0: Tensor,
    frame: Tensor,
    origin: Tensor,
) -> dict[str, Tensor]:
    b, t, n = shape
    stream = stream.reshape(b, t, n, -1)
    atoms = stream.new_ones(b, t, n, 1) if mask is None else mask.view(b, t, n, 1)
    pos = _vector(weights["projection_layer.linear_pos.weight"], stream)
    pos = torch.einsum("btni,bji->btnj", pos, frame) + origin[:, None, None, :]
    if config.delta_update:
        pos = pos + x_0[..., :3]
    out = {"pos": pos * atoms}
    if config.output_mode != "pos_only":
        vel = _vector(weights["projection_layer.linear_vel.weight"], stream)
        out["vel"] = torch.einsum("btni,bji->btnj", vel, frame) * atoms
    if config.output_mode == "full":
        weight = weights["projection_layer.linear_energy.weight"]
        scalars = stream[..., 3 * config.num_vectors :]
        per_atom = (scalars * weight).sum(dim=-1) / math.sqrt(config.num_scalars)
        out["energy"] = (per_atom * atoms[..., 0]).sum(dim=2)
    return out


def _vector(weight: Tensor, stream: Tensor) -> Tensor:
    vectors = stream[..., : 3 * len(weight)].unflatten(-1, (len(weight), 3))
    return (weight[:, None] * vectors).sum(dim=-2) / math.sqrt(len(weight))


# ---- integrator -----------------------------------------------------------------------------


def literal_propagate(
    weights: Weights,
    config: IntegratorConfig,
    positions: Tensor,
    velocities: Tensor,
    numbers: Tensor,
    time: float,
    accelerations: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Evaluate the integrator for one molecule and one time.

    Parameters
    ----------
    weights
        State dict; its precision is the precision of the evaluation.
    config
        Options of the network.
    positions, velocities, accelerations
        ``(n, 3)`` in Å, Å/fs and Å/fs².
    numbers
        ``(n,)`` atomic numbers.
    time
        Horizon in fs.

    Returns
    -------
    positions, velocities
        ``(n, 3)`` Å and Å/fs.
    """
    masses = weights["physical_units.masses"][numbers][:, None]
    unit = torch.sqrt(units.kB * config.temperature / masses) * units.fs
    change_x, change_v, *springs = _changes(
        weights, config, positions, velocities, numbers, time, accelerations
    )
    growth = time / (time + config.time_scale)
    if springs:
        assert accelerations is not None
        state = (positions, velocities, accelerations, numbers, masses)
        positions, moving = _spring_motion(*state, springs[0], time, config.spring_steps)
        change_x, change_v = growth * change_x, growth * change_v
        return positions + unit * time * growth * change_x, moving + unit * growth * change_v
    positions, moving = positions + velocities * time, velocities
    if config.exact_limits:
        assert accelerations is not None
        gain = accelerations * time / (1.0 + (time / config.time_scale) ** 2)
        positions, moving = positions + 0.5 * time * gain, moving + gain
        change_x, change_v = growth * change_x, growth * change_v
    return positions + unit * time * growth * change_x, moving + unit * growth * change_v


def _spring_motion(
    positions: Tensor,
    velocities: Tensor,
    accelerations: Tensor,
    numbers: Tensor,
    masses: Tensor,
    coefficients: Tensor,
    time: float,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Velocity Verlet with the springs of coefficients ``(n, n, 4)``."""
    decay = {(0, 0): 1.0, (0, 1): 0.3949, (1, 1): 0.28}
    reference = {(0, 0): 1.35, (0, 1): 2.10, (1, 1): 2.87}
    n = len(numbers)
    rows = [0 if z <= 2 else 1 for z in numbers.tolist()]
    stretch = 0.45 * units.Hartree / units.Bohr**2
    springs = {}
    for i in range(n):
        for j in range(n):
            if i != j:
                direction, r = _direction(positions, i, j)
                rows_of_both = (min(rows[i], rows[j]), max(rows[i], rows[j]))
                tension, factor, correction, softening = coefficients[i, j] + coefficients[j, i]
                square = reference[rows_of_both] ** 2 - (r / units.Bohr) ** 2
                k = stretch * torch.exp(decay[rows_of_both] * square) * (1.0 + factor)
                k = k + 10.0 * correction / r
                springs[i, j] = (
                    direction,
                    r,
                    3.0 * tension / r,
                    k,
                    3.0 * torch.exp(torch.tanh(softening)),
                )

    def change(x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for (i, j), (before, start, tension, k, beta) in springs.items():
            direction, r = _direction(x, i, j)
            exponent = (-beta * (r - start)).clamp(max=4.0)
            force = tension + k * (1.0 - torch.exp(exponent)) / beta
            total[i] += force * direction - tension * before
        return total / masses * units.fs**2

    x, v, a, step = positions, velocities, accelerations, time / steps
    for _ in range(steps):
        v = v + 0.5 * step * a
        x = x + step * v
        a = accelerations + change(x)
        v = v + 0.5 * step * a
    return x, v


def _changes(
    weights: Weights,
    config: IntegratorConfig,
    positions: Tensor,
    velocities: Tensor,
    numbers: Tensor,
    time: float,
    accelerations: Tensor | None,
) -> tuple[Tensor, ...]:
    n = len(numbers)
    unit = math.sqrt(units.kB * config.temperature / 12.0) * units.fs
    masses = weights["physical_units.masses"][numbers][:, None]
    motions = [(velocities - (masses * velocities).sum(dim=0) / masses.sum()) / unit]
    if accelerations is not None:
        motions.append(accelerations * config.time_scale / unit)
    pairs = [
        [_pair(weights, positions, motions, numbers, i, j) for j in range(n)] for i in range(n)
    ]
    pair_features = torch.stack([torch.stack(row) for row in pairs])
    known = _encoded(weights, config, positions, numbers)
    pair_features = torch.cat([pair_features, known], dim=-1)
    bias = _linear(weights, "lifting_layer.bias", pair_features)
    bias = bias.view(n, n, config.num_layers, config.num_heads)
    invariants = [(a * b).sum(dim=-1) for k, a in enumerate(motions) for b in motions[: k + 1]]
    lifted = (
        torch.zeros(n, config.lifting_dim, dtype=positions.dtype),
        _linear(weights, "lifting_layer.v_0_linear", torch.stack(invariants[:1], dim=-1)),
        _linear(weights, "lifting_layer.concat_feats_linear", torch.stack(invariants, dim=-1)),
    )
    if config.encoder is not None:
        own = known[torch.arange(n), torch.arange(n)]
        lifted[2].add_(own @ weights["lifting_layer.from_encoder.weight"].T)
    elements = weights["element_embedding.weight"][numbers].chunk(3, dim=-1)
    h_x, h_v, h_c = (h + e for h, e in zip(lifted, elements, strict=True))
    stream = first = h_x + h_v + h_c
    for layer in range(config.num_layers):
        name = f"transformer_blocks.{layer}"
        features = [
            _norm(weights, f"{name}.norms.{j}", config, h)
            for j, h in enumerate(_streams(config, stream, h_v, h_c))
        ]
        query = h_c if config.attention_type == "ghca" else features[0]
        attended = _biased_attention(weights, name, config, query, features, bias[:, :, layer])
        y = features[0] + attended
        z = y + _feed_forward(weights, f"{name}.ffn", config, y)
        stream = z if layer == 0 else _blend(weights, name, config, z, first)
        first = z if layer == 0 else first
    vectors = motions
    for layer in range(config.vector_layers):
        name = f"projection_layer.vector_layers.{layer}"
        stream, vectors = _exchange(
            weights, name, stream, pair_features, vectors, positions, config.exact_limits
        )
    if config.vector_layers:
        vectors = [*motions, *vectors]
    horizon = _horizon(weights, config, time, positions.dtype)
    agitating = motions if config.exact_limits else None
    return _pair_read_out(weights, stream, pair_features, vectors, positions, horizon, agitating)


def _encoded(
    weights: Weights, config: IntegratorConfig, positions: Tensor, numbers: Tensor
) -> Tensor:
    """Return what the encoder knows of pairs, ``(n, n, E)``; nothing without one."""
    if config.encoder is None:
        return torch.zeros(len(numbers), len(numbers), 0, dtype=positions.dtype)
    prefix = "lifting_layer.encoder."
    own = {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
    options = ReferenceConfig(n_layers=config.encoder.n_layers, num_heads=config.encoder.num_heads)
    edges = distance_features(own, (positions - positions.mean(dim=0)) / units.Bohr)
    return literal_pairs(own, options, node_features(own, options, numbers, 0, 1), edges)


def _pair(
    weights: Weights,
    positions: Tensor,
    motions: list[Tensor],
    numbers: Tensor,
    i: int,
    j: int,
) -> Tensor:
    """Features of a pair."""
    centres = torch.linspace(0.7, 6.0, 24, dtype=positions.dtype)
    direction, distance = _direction(positions, i, j)
    near = torch.exp(-(((distance - centres) / 0.25) ** 2)) * float(i != j)
    radial = torch.stack([(w[j] - w[i]) @ direction for w in motions])
    table = weights["lifting_layer.element_embedding.weight"]
    features = torch.cat([near, table[numbers[i]], table[numbers[j]], radial])
    hidden = functional.silu(_linear(weights, "lifting_layer.layers.0", features))
    return _linear(weights, "lifting_layer.layers.2", hidden)


def _direction(positions: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
    """Return the unit vector from i to j and the distance; 0 and 1 if they are the same."""
    if i == j:
        return torch.zeros_like(positions[i]), torch.ones_like(positions[i, 0])
    distance = torch.linalg.vector_norm(positions[j] - positions[i])
    return (positions[j] - positions[i]) / distance, distance


def _offered(
    positions: Tensor, vectors: list[Tensor], i: int, j: int, agitating: list[Tensor] | None
) -> Tensor:
    """Stack what a pair offers its first atom: direction, differences, and those along it."""
    direction, distance = _direction(positions, i, j)
    offered = direction
    if agitating is not None:
        mean = sum(((w[j] - w[i]) @ (w[j] - w[i]) for w in agitating), 0.0 * distance)
        offered = direction * torch.log1p(mean / len(agitating))
    relative = [w[j] - w[i] for w in vectors]
    parallel = [(w @ direction) * direction for w in relative]
    return torch.stack([offered, *relative, *parallel]) / distance


def _hidden_of_pair(
    weights: Weights, name: str, h: Tensor, pairs: Tensor, i: int, j: int
) -> Tensor:
    u = _linear(weights, f"{name}.from_receiver", h[i])
    u = u + weights[f"{name}.from_sender.weight"] @ h[j]
    return u + weights[f"{name}.from_pair.weight"] @ pairs[i, j]


def _exchange(
    weights: Weights,
    name: str,
    stream: Tensor,
    pairs: Tensor,
    vectors: list[Tensor],
    positions: Tensor,
    exact_limits: bool,
) -> tuple[Tensor, list[Tensor]]:
    """One exchange of vectors between atoms."""
    h = _rms_norm(weights, name, stream)
    n = len(h)
    mixed = list(torch.einsum("kc,cix->kix", weights[f"{name}.mix.weight"], torch.stack(vectors)))
    new, around = torch.stack(mixed).transpose(0, 1).clone(), []
    for i in range(n):
        total = torch.zeros_like(weights[f"{name}.inner.bias"])
        for j in range(n):
            if i == j:
                continue
            direction, distance = _direction(positions, i, j)
            radial = torch.stack([(w[j] - w[i]) @ direction for w in mixed])
            u = _hidden_of_pair(weights, name, h, pairs, i, j)
            u = u + weights[f"{name}.from_radial.weight"] @ torch.asinh(radial)
            u = functional.silu(_linear(weights, f"{name}.inner", functional.silu(u)))
            total = total + u / distance
            c = _linear(weights, f"{name}.vector_coefficients", u).view(3, -1)
            offered = _offered(positions, mixed, i, j, mixed if exact_limits else None)
            relative, parallel = offered[1:].chunk(2)
            message = c[0, :, None] * offered[0] + c[1, :, None] * relative
            new[i] += 0.1 * (message + c[2, :, None] * parallel)
        around.append(_linear(weights, f"{name}.from_neighbours", 0.3 * total))
    left = torch.einsum("kc,icx->ikx", weights[f"{name}.left.weight"], new)
    right = torch.einsum("kc,icx->ikx", weights[f"{name}.right.weight"], new)
    products = [(left * right).sum(dim=-1), (new * new).sum(dim=-1)]
    features = torch.cat([h, torch.asinh(torch.cat(products, dim=-1)), torch.stack(around)], dim=-1)
    change = functional.silu(_linear(weights, f"{name}.update", features))
    stream = stream + _linear(weights, f"{name}.update_coefficients", change)
    return stream, list(new.transpose(0, 1))


def _rms_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    rms = torch.sqrt(x.square().mean(dim=-1, keepdim=True) + RMS_EPSILON)
    return x * weights[f"{name}.norm.weight"] / rms


def _biased_attention(
    weights: Weights,
    block: str,
    config: IntegratorConfig,
    query: Tensor,
    features: list[Tensor],
    bias: Tensor,
) -> Tensor:
    name = f"{block}.attention"
    shares = _shares(weights, name, config)
    q = _linear(weights, f"{name}.query", query).unflatten(-1, (config.num_heads, -1))
    total = torch.zeros_like(q)
    for share, feature in zip(shares, features, strict=True):
        k = _linear(weights, f"{name}.key", feature).unflatten(-1, (config.num_heads, -1))
        v = _linear(weights, f"{name}.value", feature).unflatten(-1, (config.num_heads, -1))
        scores = torch.einsum("ihc,jhc->ijh", q, k) / math.sqrt(config.head_dim) + bias
        total = total + share * torch.einsum("ijh,jhc->ihc", torch.softmax(scores, dim=1), v)
    return _linear(weights, f"{name}.out_proj", total.flatten(-2))


def _pair_read_out(
    weights: Weights,
    stream: Tensor,
    pairs: Tensor,
    vectors: list[Tensor],
    positions: Tensor,
    horizon: Tensor,
    agitating: list[Tensor] | None,
) -> tuple[Tensor, ...]:
    name = "projection_layer"
    has_springs = f"{name}.spring_coefficients.weight" in weights
    springs = torch.zeros(len(stream), len(stream), 4, dtype=stream.dtype)
    h = _rms_norm(weights, name, stream)
    pair_scale, pair_shift = _linear(weights, f"{name}.pair_film", horizon).chunk(2)
    atom_scale, atom_shift = _linear(weights, f"{name}.atom_film", horizon).chunk(2)
    changes = []
    for i in range(len(h)):
        u = _linear(weights, f"{name}.from_atom", h[i]) * (1.0 + atom_scale) + atom_shift
        c = _linear(weights, f"{name}.atom_coefficients", functional.silu(u)).view(2, -1)
        change = c @ torch.stack([w[i] for w in vectors])
        for j in range(len(h)):
            if i == j:
                continue
            u = _hidden_of_pair(weights, name, h, pairs, i, j)
            u = functional.silu(u * (1.0 + pair_scale) + pair_shift)
            u = functional.silu(_linear(weights, f"{name}.inner", u))
            if has_springs:
                springs[i, j] = _linear(weights, f"{name}.spring_coefficients", u)
            c = _linear(weights, f"{name}.pair_coefficients", u).view(2, -1)
            change = change + c @ _offered(positions, vectors, i, j, agitating)
        changes.append(change)
    both = torch.stack(changes)
    return both[:, 0], both[:, 1], *([springs] if has_springs else [])


def _horizon(weights: Weights, config: IntegratorConfig, time: float, dtype: torch.dtype) -> Tensor:
    ratio = config.max_horizon / config.time_scale
    features = [math.log1p(time / config.time_scale)]
    for wave in (math.sin, math.cos):
        for k in range(HORIZON_PERIODS):
            period = config.time_scale * ratio ** (k / (HORIZON_PERIODS - 1))
            features.append(wave(2.0 * math.pi * time / period))
    hidden = _linear(weights, "horizon.layers.0", torch.tensor(features, dtype=dtype))
    return _linear(weights, "horizon.layers.2", functional.silu(hidden))
