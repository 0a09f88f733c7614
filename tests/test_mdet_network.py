"""The MD-ET network: forms of attention, padding, symmetries, memory, configuration."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy_models import CONFIGS, SMALL, random_network

from mlmd_calc.errors import ConfigError
from mlmd_calc.models import MDET, MDETConfig
from mlmd_calc.models.mdet import streamed_product
from mlmd_calc.models.mdet.edge_attention import (
    AttentionFunction,
    edge_attention,
    edge_attention_reference,
    edge_attention_streamed,
    pair_bias,
)
from mlmd_calc.models.mdet.embeddings import real_spherical_harmonics

Attention = tuple[torch.Tensor, ...]


def attention_inputs(
    dtype: torch.dtype = torch.float64, b: int = 2, n: int = 5, h: int = 3, c: int = 4
) -> Attention:
    generator = torch.Generator().manual_seed(0)
    shape = (4, b, n, n, h, c)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).unbind(0))


@pytest.fixture(params=["compiled", "torch"])
def loops(request, monkeypatch) -> str:
    """Both kinds of loops, whatever the tensors."""
    monkeypatch.setattr(streamed_product, "known", lambda tensor: request.param == "compiled")
    return request.param


MASK = torch.tensor([[True, True, True, False, False], [True] * 5])


def fading(b: int = 2, n: int = 5) -> torch.Tensor:
    return pair_bias(None, torch.rand(b, n, n, generator=torch.Generator().manual_seed(2)).double())


def attention_by_hand(
    q: torch.Tensor, k: torch.Tensor, v1: torch.Tensor, v2: torch.Tensor, bias: torch.Tensor
):
    """The equations in loops, for one molecule ``(n, n, h, c)``."""
    n, _, h, c = q.shape
    out = torch.zeros_like(q)
    for i, j, head in itertools.product(range(n), range(n), range(h)):
        scores = torch.stack([q[i, m, head] @ k[m, j, head] for m in range(n)]) / math.sqrt(c)
        weights = torch.softmax(scores + bias[i] + bias[:, j], 0)
        for m in range(n):
            out[i, j, head] += weights[m] * v1[i, m, head] * v2[m, j, head]
    return out


@pytest.mark.parametrize("form", [edge_attention_reference, edge_attention_streamed])
def test_attention_follows_its_equations(form: AttentionFunction) -> None:
    inputs = attention_inputs()
    bias = fading()
    out, plain = form(*inputs, bias), form(*inputs, None)
    for b in range(2):
        by_hand = attention_by_hand(*(tensor[b] for tensor in inputs), bias[b])
        torch.testing.assert_close(out[b], by_hand, rtol=1e-12, atol=1e-12)
        by_hand = attention_by_hand(*(tensor[b] for tensor in inputs), torch.zeros_like(bias[b]))
        torch.testing.assert_close(plain[b], by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", [edge_attention_reference, edge_attention_streamed])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_masked_attention_equals_attention_without_the_padding(
    form: AttentionFunction, dtype: torch.dtype
) -> None:
    inputs = attention_inputs(dtype)
    padded = form(*inputs, pair_bias(MASK, None))
    assert torch.isfinite(padded).all()
    cut = form(*(tensor[:1, :3, :3] for tensor in inputs), None)
    torch.testing.assert_close(padded[:1, :3, :3], cut)
    torch.testing.assert_close(padded[1:], form(*(t[1:] for t in inputs), None))


@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "padded"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forms_of_attention_agree_in_value_and_gradient(
    dtype: torch.dtype, mask: torch.Tensor | None, loops: str
) -> None:
    weight = torch.randn(2, 5, 5, 3, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    if mask is not None:
        # What comes out for pairs with padding is meaningless.
        weight = weight * (mask[:, :, None] & mask[:, None, :])[..., None, None]
    results = []
    for form in (edge_attention_reference, edge_attention_streamed, edge_attention):
        inputs = [tensor.clone().requires_grad_() for tensor in attention_inputs(dtype)]
        total = (form(*inputs, pair_bias(mask, None)) * weight).sum()
        results.append([total, *torch.autograd.grad(total, inputs)])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_huge_scores_do_not_overflow() -> None:
    query, key, value1, value2 = attention_inputs(torch.float32)
    inputs = (1e4 * query, 1e4 * key, value1, value2)
    reference = edge_attention_reference(*inputs, None)
    assert torch.isfinite(reference).all()
    torch.testing.assert_close(edge_attention_streamed(*inputs, None), reference)


@pytest.mark.parametrize("mask", [None, MASK[:, 2:]], ids=["full", "padded"])
def test_first_derivatives_of_the_streamed_form(mask: torch.Tensor | None, loops: str) -> None:
    inputs = [t.requires_grad_() for t in attention_inputs(b=2, n=3, h=1, c=2)]
    envelope = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(2)).double() + 0.1
    envelope.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *tensors: edge_attention_streamed(*tensors[:4], pair_bias(mask, tensors[4])),
        [*inputs, envelope],
    )


def test_what_is_not_finite_stays_so(loops: str) -> None:
    for bad in (math.nan, math.inf):
        query, key, value1, value2 = (tensor.requires_grad_() for tensor in attention_inputs())
        spoilt = value1.detach().clone()
        spoilt[0, 1, 2, 0, 3] = bad
        out = edge_attention_streamed(query, key, spoilt, value2, None)
        assert not out[0, 1, :, 0, 3].isfinite().any()
        assert out[1].isfinite().all()
        assert not torch.autograd.grad(out.sum(), query)[0][0, 1, 2, 0].isfinite().any()


def test_bfloat16_is_summed_in_single_precision() -> None:
    inputs = attention_inputs(torch.bfloat16)
    torch.testing.assert_close(
        edge_attention_streamed(*inputs, None),
        edge_attention_reference(*(tensor.float() for tensor in inputs), None).bfloat16(),
        rtol=0.1,
        atol=0.05,
    )


def test_second_derivatives_of_the_streamed_form_are_refused() -> None:
    inputs = [tensor.requires_grad_() for tensor in attention_inputs()]
    total = edge_attention_streamed(*inputs, None).square().sum()
    with pytest.raises(RuntimeError, match="first derivative only"):
        torch.autograd.grad(total, inputs[0], create_graph=True)
    total = edge_attention_streamed(*inputs, None).square().sum()
    with pytest.raises(RuntimeError, match="first derivative only"):
        total.backward(create_graph=True)


def test_second_derivatives_of_the_reference_form() -> None:
    inputs = [t.requires_grad_() for t in attention_inputs(b=1, n=2, h=1, c=2)]
    assert torch.autograd.gradgradcheck(
        lambda *tensors: edge_attention_reference(*tensors, None), inputs
    )


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def largest_tensor(run: Callable[[], object]) -> int:
    with LargestTensor() as record:
        run()
    return record.numbers


def test_inference_and_its_gradient_hold_no_tensor_of_n_cubed_times_width() -> None:
    n, width = 24, SMALL.embd_dim
    network = random_network(dataclasses.replace(SMALL, target_heads=("formation_energy",)))
    positions = 3.0 * torch.randn(1, n, 3, generator=torch.Generator().manual_seed(0))
    numbers = torch.full((1, n), 6)

    def energy(attention: AttentionFunction) -> torch.Tensor:
        leaf = positions.clone().requires_grad_()
        out = network(leaf, numbers, attention=attention)["formation_energy"].sum()
        return torch.autograd.grad(out, leaf)[0]

    scores = n**3 * SMALL.num_heads
    assert largest_tensor(lambda: energy(edge_attention)) <= scores < n**3 * width
    # The record does see what it is meant to see.
    assert largest_tensor(lambda: energy(edge_attention_reference)) >= n**3 * width
    with torch.inference_mode():
        assert largest_tensor(lambda: network(positions, numbers)) <= scores


def test_without_gradient_nothing_is_kept_between_layers() -> None:
    network = random_network(dataclasses.replace(SMALL, n_layers=4))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        with torch.no_grad():
            network(torch.randn(1, 6, 3), torch.full((1, 6), 6))
        assert not kept


# ---- the whole network ----------------------------------------------------------------------


SIZES = (4, 1, 6, 2)


def padded_batch(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    largest = max(SIZES)
    mask = torch.arange(largest) < torch.tensor(SIZES)[:, None]
    positions = 2.0 * torch.randn(len(SIZES), largest, 3, generator=generator).double()
    numbers = torch.randint(1, 10, (len(SIZES), largest), generator=generator)
    charge = torch.tensor([0, 1, -2, 0])
    multiplicity = torch.tensor([1, 2, 1, 3])
    return positions * mask[..., None], numbers * mask, mask, charge, multiplicity


def output_names(network: MDET) -> set[str]:
    with torch.no_grad():
        return set(network(torch.zeros(1, 1, 3), torch.ones(1, 1, dtype=torch.long))) - {"embd"}


@pytest.mark.parametrize("filler", ["zeros", "rubbish"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_padding_changes_nothing(config: MDETConfig, filler: str) -> None:
    network = random_network(config).double()
    positions, numbers, mask, charge, multiplicity = padded_batch()
    if filler == "rubbish":
        rubbish = torch.randn(positions.shape, generator=torch.Generator().manual_seed(9)) * 50
        positions = torch.where(mask[..., None], positions, rubbish.double())
        numbers = torch.where(mask, numbers, 7)
    with torch.no_grad():
        batch = network(positions, numbers, mask, charge, multiplicity)
        for b, size in enumerate(SIZES):
            alone = network(
                positions[b : b + 1, :size],
                numbers[b : b + 1, :size],
                None,
                charge[b : b + 1],
                multiplicity[b : b + 1],
            )
            assert alone.keys() == batch.keys()
            for name, expected in alone.items():
                found = batch[name][b]
                if found.ndim == 2:
                    found = found[:size]
                torch.testing.assert_close(found, expected[0], rtol=1e-11, atol=1e-12)
    if "forces" in batch:
        assert not batch["forces"][~mask].any()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_gradients_reach_no_padding_and_are_finite(config: MDETConfig) -> None:
    network = random_network(dataclasses.replace(config, energy_conserving=True)).double()
    positions, numbers, mask, charge, multiplicity = padded_batch()
    leaf = positions.clone().requires_grad_()
    potential = network(leaf, numbers, mask, charge, multiplicity)["potential"]
    (slope,) = torch.autograd.grad(potential.sum(), leaf)
    assert torch.isfinite(slope).all()
    assert slope[mask].any()
    assert not slope[~mask].any()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_translations_do_not_matter_and_rotations_only_with_directions(config: MDETConfig) -> None:
    network = random_network(config).double()
    positions, *rest = padded_batch()
    turn = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]).double()
    (name,) = output_names(network) & {"forces", "potential"}
    with torch.no_grad():
        here = network(positions, *rest)[name]
        there = network(positions + torch.tensor([1.0, -2.0, 0.5]), *rest)[name]
        # Fourier features magnify the rounding of angles up to 31,416 times.
        torch.testing.assert_close(there, here, rtol=1e-7, atol=1e-9)
        turned = network(positions @ turn, *rest)[name]
    equivariant = here @ turn if name == "forces" else here
    if config.invariant:
        torch.testing.assert_close(turned, equivariant, rtol=1e-10, atol=1e-12)
    else:
        assert (turned - equivariant).abs().max() > 1e-4


def test_central_forces_have_neither_net_force_nor_net_torque() -> None:
    network = random_network(CONFIGS["distances-only"]).double()
    positions, *rest = padded_batch()
    with torch.no_grad():
        forces = network(positions, *rest)["forces"]
    assert forces.abs().max() > 1e-3
    assert forces.sum(1).abs().max() < 1e-13
    assert torch.linalg.cross(positions, forces).sum(1).abs().max() < 1e-12


def test_molecules_beyond_the_cutoff_do_not_know_of_each_other() -> None:
    network = random_network(CONFIGS["distances-only"]).double()
    one = 2.0 * torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    two = 2.0 * torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    numbers = torch.tensor([[8, 1, 6, 1, 7, 1, 1]])

    def energy_and_forces(distance: float) -> tuple[torch.Tensor, torch.Tensor]:
        apart = torch.cat([one, two + torch.tensor([distance, 0.0, 0.0])], dim=1)
        out = network(apart, numbers)
        return out["formation_energy"], out["forces"]

    with torch.no_grad():
        energy, forces = energy_and_forces(40.0)
        alone = [network(one, numbers[:, :4]), network(two, numbers[:, 4:])]
        total = sum(out["formation_energy"] for out in alone)
        torch.testing.assert_close(energy, total, rtol=0, atol=1e-7)
        separate = torch.cat([out["forces"] for out in alone], dim=1)
        torch.testing.assert_close(forces, separate, rtol=0, atol=1e-7)
        assert (energy_and_forces(6.0)[0] - total).abs() > 1e-3


def test_nothing_jumps_where_a_pair_fades() -> None:
    network = random_network(CONFIGS["distances-only"]).double()
    numbers = torch.tensor([[8, 6]])

    def slope(distance: float) -> float:
        leaf = torch.tensor([[[0.0, 0, 0], [distance, 0, 0]]]).double().requires_grad_()
        energy = network(leaf, numbers)["formation_energy"]
        return float(torch.autograd.grad(energy, leaf)[0][0, 1, 0])

    inside = [slope(9.0 - step) for step in (0.1, 0.01, 1e-3)]
    assert abs(inside[0]) > 1e-7
    assert abs(slope(9.001)) < 1e-12
    # The slope of (1 - (r/c)^2)^3 falls with the square of the distance to the cutoff.
    assert abs(inside[2]) < 1e-3 * abs(inside[0])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_order_of_atoms_matters_only_with_the_electron_table(config: MDETConfig) -> None:
    network = random_network(config).double()
    positions = 2.0 * torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(3)).double()
    numbers = torch.tensor([[8, 1, 6, 1, 7]])

    def difference(order: list[int]) -> float:
        with torch.no_grad():
            plain = network(positions, numbers)["embd"][:, order]
            permuted = network(positions[:, order], numbers[:, order])["embd"]
        return float((plain - permuted).abs().max())

    assert difference([0, 4, 1, 3, 2]) < 1e-10
    if config.electron_table:
        assert difference([4, 0, 1, 3, 2]) > 1e-3
    else:
        assert difference([4, 0, 1, 3, 2]) < 1e-10


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_charge_multiplicity_and_elements_matter(config: MDETConfig) -> None:
    network = random_network(config).double()
    positions = 2.0 * torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(3)).double()

    def embd(
        numbers: tuple[int, ...] = (8, 1, 6), charge: int = 0, multiplicity: int = 1
    ) -> torch.Tensor:
        with torch.no_grad():
            return network(
                positions,
                torch.tensor([numbers]),
                None,
                torch.tensor([charge]),
                torch.tensor([multiplicity]),
            )["embd"]

    plain = embd()
    for other in (embd((8, 1, 7)), embd(charge=1), embd(charge=-64), embd(multiplicity=127)):
        assert (other - plain).abs().max() > 1e-3
    with torch.no_grad():
        default = network(positions, torch.tensor([[8, 1, 6]]))["embd"]
    assert torch.equal(default, plain)


@pytest.mark.parametrize("targets", [("forces",), ("formation_energy",), ()])
def test_only_the_wanted_heads_are_evaluated(targets: tuple[str, ...]) -> None:
    network = random_network()
    called = []
    for name, head in network.heads.items():
        head.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        out = network(torch.randn(1, 3, 3), torch.tensor([[8, 1, 1]]), targets=targets)
    assert called == list(targets)
    assert set(out) == {"embd", *targets}


def test_extensive_heads_sum_and_others_read_out_the_mean() -> None:
    for extensive in (False, True):
        head = random_network(dataclasses.replace(SMALL, extensive=extensive)).heads[
            "formation_energy"
        ]
        atoms = torch.randn(1, 4, SMALL.embd_dim, generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[True, True, True, False]])
        with torch.no_grad():
            features = head.final_ln_node(atoms)[:, :3]
            by_hand = head.mlp(features).sum(dim=1) if extensive else head.mlp(features.mean(dim=1))
            torch.testing.assert_close(head(atoms, mask), by_hand)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_weights_in_single_precision_accept_positions_in_double(config: MDETConfig) -> None:
    network = random_network(config)
    exact = random_network(config).double()
    positions, *rest = padded_batch()
    (name,) = output_names(network) & {"forces", "potential"}
    with torch.no_grad():
        expected = exact(positions, *rest)[name]
        scale = float(expected.abs().max())
        for features in (None, torch.float64, torch.float32):
            out = network(positions, *rest, features=features)[name]
            assert out.dtype == torch.float32
            torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-5 * scale)


# ---- spherical harmonics --------------------------------------------------------------------


def unit_vectors(count: int = 200) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_harmonics_are_those_of_scipy_with_y_as_the_polar_axis() -> None:
    x, y, z = unit_vectors().T
    ours = real_spherical_harmonics(torch.from_numpy(unit_vectors())).numpy()
    polar, azimuth = np.arccos(y), np.arctan2(x, z)
    columns = [(degree, order) for degree in range(7) for order in range(-degree, degree + 1)]
    for column, (degree, order) in enumerate(columns):
        value = scipy.special.sph_harm_y(degree, abs(order), polar, azimuth)
        sign = (-1) ** order  # without the Condon-Shortley phase
        expected = {
            -1: math.sqrt(2) * sign * value.imag,
            0: value.real,
            1: math.sqrt(2) * sign * value.real,
        }[int(np.sign(order))]
        np.testing.assert_allclose(ours[:, column], expected, rtol=0, atol=1e-13)


def test_each_degree_of_the_harmonics_turns_within_itself() -> None:
    vectors = unit_vectors()
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    before = real_spherical_harmonics(torch.from_numpy(vectors)).numpy()
    after = real_spherical_harmonics(torch.from_numpy(vectors @ turn)).numpy()
    root = math.sqrt(3 / (4 * math.pi))
    np.testing.assert_allclose(before[:, 1:4], root * vectors, rtol=0, atol=1e-14)
    for degree in range(7):
        block = slice(degree**2, (degree + 1) ** 2)
        matrix, *_ = np.linalg.lstsq(before[:, block], after[:, block], rcond=None)
        np.testing.assert_allclose(before[:, block] @ matrix, after[:, block], atol=1e-12)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(2 * degree + 1), atol=1e-12)


def test_harmonics_of_the_zero_vector_and_of_the_poles() -> None:
    vectors = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]).double()
    values = real_spherical_harmonics(vectors)
    assert torch.isfinite(values).all()
    assert values[0, 0] == pytest.approx(1 / math.sqrt(4 * math.pi))
    assert not values[0, 1:].any()


# ---- configuration --------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MDETConfig(), *CONFIGS.values()])
def test_configuration_round_trip(config: MDETConfig) -> None:
    assert MDETConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, "activation='tanh'.*gelu, relu"),
        ({"directions": "cartesian"}, "directions='cartesian'.*direct, fourier"),
        ({"distances": "rbf"}, "distances='rbf'"),
        ({"decomposer": "mean"}, "decomposer='mean'"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"embd_dim": -4}, "embd_dim=-4"),
        ({"embd_dim": 18, "num_heads": 4}, "embd_dim=18 is not a multiple of num_heads=4"),
        ({"embd_dim": 2, "num_heads": 1}, "embd_dim=2 .*head_project_down"),
        ({"embd_dim": 16.0}, "embd_dim=16.0"),
        ({"num_heads": True}, "num_heads=True"),
        ({"directions": "fourier", "num_3d_kernels": 9}, "num_3d_kernels=9 must be even"),
        ({"distances": "bessel", "num_3d_kernels": 7}, "num_3d_kernels=7 must be at least 8"),
        ({"target_heads": ()}, r"target_heads=\(\)"),
        ({"target_heads": ("charges",)}, "charges"),
        ({"energy_conserving": True, "target_heads": ("forces",)}, "formation_energy"),
        ({"attention_dropout": 1.5}, "attention_dropout=1.5"),
        ({"head_dropout": -0.1}, "head_dropout=-0.1"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MDETConfig(**{"embd_dim": 16, "num_heads": 4, **options})


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="'cls_token'"):
        MDETConfig.from_dict({"cls_token": True})


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_every_parameter_takes_part(config: MDETConfig) -> None:
    network = random_network(config)
    positions, *rest = padded_batch()
    out = network(positions.float(), *rest)
    # Squares, because the last layer norm makes plain sums of features constant.
    sum(tensor.square().sum() for tensor in out.values()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@pytest.mark.parametrize(
    ("config", "size"),
    [
        *((config, {"n_layers": 3, "ffn_multiplier": 5}) for config in CONFIGS.values()),
        *((SMALL, size) for size in ({"n_layers": 3}, {"n_layers": 7}, {"ffn_multiplier": 5})),
    ],
)
def test_a_grown_network_changes_nothing_until_it_is_trained(
    config: MDETConfig, size: dict[str, int]
) -> None:
    network = random_network(config).double()
    larger = network.grown(**size)
    assert larger.config == dataclasses.replace(config, **size)
    positions, *rest = padded_batch()
    expected = network(positions, *rest)
    # A normalised vector is normalised again, up to the epsilon of the normalisation.
    for name, value in larger(positions, *rest).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)
    # A step of training that reaches the new part brings all of it to life.
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    sum(tensor.square().sum() for tensor in larger(positions, *rest).values()).backward()
    assert all(parameter.grad.any() for parameter in larger.parameters())


def test_a_trained_network_does_not_shrink() -> None:
    network = random_network()
    with pytest.raises(ConfigError, match="n_layers=1 is less than the network's 2"):
        network.grown(n_layers=1)
    with pytest.raises(ConfigError, match="ffn_multiplier=1 is less than the network's 2"):
        network.grown(ffn_multiplier=1)
