"""The ATOM networks: the literal form of their formulas, padding, symmetries, checkpoints."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.models import (
    ATOM,
    MDET,
    ATOMConfig,
    ATOMIntegrator,
    IntegratorConfig,
    MDETConfig,
)
from mlmd_calc.models.atom import input_features, merge_weights, record, return_probabilities
from mlmd_calc.models.atom.lifting import EquivariantLinear, TensorProduct
from mlmd_calc.models.atom.slots import RelativeTimes, RotaryTables
from mlmd_calc.models.recorder import RECORD_AFTER

ROOT = Path(__file__).resolve().parent.parent

SMALL = ATOMConfig(lifting_dim=16, num_layers=2, num_heads=2, rope_tau=1.0)

CONFIGS = {
    "paper": SMALL,
    "first-revision": dataclasses.replace(
        SMALL, positional_encoding="slot_rope", rrwp_length=3, tensor_product_rrwp=True
    ),
    "later-revision": dataclasses.replace(
        SMALL, lifting_type="quasi_equivariant", rrwp_length=3, output_mode="full"
    ),
    "canonical": dataclasses.replace(
        SMALL,
        lifting_type="canonicalization",
        output_mode="full",
        norm="layer",
        activation="silu",
        value_residual_type="fixed",
        positional_encoding="rope",
        rope_base=50.0,
    ),
    "dense": dataclasses.replace(
        SMALL,
        lifting_type="non_equivariant",
        rrwp_length=1,
        activation="gelu",
        delta_update=True,
        value_residual_type="none",
    ),
    "tensor-product-without-rrwp": dataclasses.replace(
        SMALL,
        rrwp_length=2,
        output_mode="pos_vel",
        activation="leaky_relu",
        positional_encoding="sinusoidal",
    ),
    "no-scalars": dataclasses.replace(
        SMALL,
        lifting_type="quasi_equivariant",
        lifting_dim=12,
        norm="layer",
        activation="relu2",
        positional_encoding="none",
    ),
    "relu": dataclasses.replace(
        SMALL, activation="relu", attention_type="self", positional_encoding="slot_rope"
    ),
}
"""What published checkpoints use, and every other option once, with others."""

JUMP = IntegratorConfig(lifting_dim=16, num_layers=2, num_heads=2)
JUMPS = {
    "without-accelerations": dataclasses.replace(JUMP, vector_layers=1, vector_channels=3),
    "shipped": dataclasses.replace(JUMP, accelerations=True, vector_layers=2, vector_channels=5),
    "recipe": dataclasses.replace(
        JUMP, accelerations=True, vector_layers=2, vector_channels=5, exact_limits=True
    ),
    "other-blocks": dataclasses.replace(
        JUMP,
        accelerations=True,
        norm="layer",
        activation="gelu",
        attention_type="self",
        value_residual_type="fixed",
        max_horizon=64.0,
        temperature=500.0,
        time_scale=2.0,
    ),
}

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
JUMPS["springs"] = dataclasses.replace(JUMPS["recipe"], spring_steps=64)
ENCODER = MDETConfig(
    n_layers=2, embd_dim=8, num_heads=2, num_3d_kernels=8, directions="none", extensive=True
)
JUMPS["encoder"] = dataclasses.replace(JUMPS["recipe"], encoder=ENCODER)

EXACT = ("recipe", "springs", "encoder")
"""Those with exact limits."""

each_jump = pytest.mark.parametrize("config", JUMPS.values(), ids=JUMPS.keys())


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("atom_reference")


Network = ATOM | ATOMIntegrator


def random_network(config: ATOMConfig | IntegratorConfig, seed: int = 0) -> Network:
    """Network whose every parameter is random, in double precision."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        kind = ATOM if isinstance(config, ATOMConfig) else ATOMIntegrator
        network = kind(config).double()
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network.eval()


SIZES = (4, 3, 5)
SLOTS = 4


def molecules(config: ATOMConfig, noise: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Published inputs of molecules of mixed sizes, copied to all slots, and their mask."""
    generator = torch.Generator().manual_seed(0)
    b, n = len(SIZES), max(SIZES)
    x, v = torch.randn(2, b, n, 3, generator=generator, dtype=torch.float64)
    numbers = torch.randint(1, 10, (b, n), generator=generator)
    walks = torch.rand(b, n, config.rrwp_length, generator=generator, dtype=torch.float64)
    inputs = input_features(2.0 * x, 0.3 * v, numbers, walks if config.rrwp_length else None)
    copies = [tensor.repeat(1, SLOTS, 1, 1) for tensor in inputs]
    noisy = [w + noise * torch.randn(w.shape, generator=generator).double() for w in copies]
    mask = torch.arange(n) < torch.tensor(SIZES)[:, None]
    return (*noisy, mask[:, None, :, None].repeat(1, SLOTS, 1, 1))


EVEN = torch.tensor([[0.7], [0.1], [3.0]], dtype=torch.float64).repeat(1, SLOTS)
UNEVEN = EVEN * torch.tensor([1.0, 0.3, 2.5, 1.7])


def assert_same(found: dict, expected: dict, atol: float = 1e-11) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=atol)


# ---- the published operator and its formulas -------------------------------------------------


@pytest.mark.parametrize(
    ("increments", "noise"),
    [(EVEN, 0.0), (UNEVEN, 0.0), (None, 0.1)],
    ids=["even", "uneven", "noise"],
)
@each_config
def test_network_follows_its_formulas(
    reference: ModuleType, config: ATOMConfig, increments: torch.Tensor | None, noise: float
) -> None:
    network = random_network(config)
    *inputs, mask = molecules(config, noise)
    with torch.no_grad():
        for padding in (None, mask):
            args = (*inputs, padding, increments)
            expected = reference.literal_forward(network.state_dict(), config, *args)
            assert_same(network(*args), expected)
            assert_same(merge_weights(network)(*args), expected)


@each_config
def test_one_slot_stands_for_its_copies(config: ATOMConfig) -> None:
    network = random_network(config)
    *copies, mask = molecules(config)
    with torch.no_grad():
        expected = network(*copies, mask, UNEVEN)
        found = network(*(w[:, :1] for w in copies), mask[:, :1], UNEVEN)
    assert_same(found, expected, atol=0)


@each_config
def test_copies_are_evaluated_once(config: ATOMConfig) -> None:
    network = random_network(config)
    *copies, mask = molecules(config)
    slots = []
    for linear in (network.lifting_layer.concat_feats_linear, network.lifting_layer.v_0_linear):
        linear.register_forward_hook(lambda _module, _args, out: slots.append(out.shape[1]))
    if config.attention_type == "ghca" and config.positional_encoding != "sinusoidal":
        for block in network.transformer_blocks:
            block.attention.query.register_forward_hook(
                lambda _module, _args, out: slots.append(out.shape[1])
            )
    with torch.no_grad():
        network(*copies, mask, UNEVEN)
    assert slots
    assert set(slots) == {1}


def test_first_derivatives_with_respect_to_the_slots(reference: ModuleType) -> None:
    network = random_network(SMALL)
    *copies, mask = molecules(SMALL)
    gradients = []
    for evaluate in (
        network,
        lambda *args: reference.literal_forward(network.state_dict(), SMALL, *args),
    ):
        leaves = [w.clone().requires_grad_() for w in copies]
        evaluate(*leaves, mask, EVEN)["pos"].square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    assert not torch.equal(gradients[0][0][:, 0], gradients[0][0][:, 1])


@each_config
def test_gradients_of_weights_are_those_of_the_formulas(
    reference: ModuleType, config: ATOMConfig
) -> None:
    network = random_network(config)
    *copies, mask = molecules(config)
    parameters = dict(network.named_parameters())
    totals = [
        sum(w.square().sum() for w in out.values())
        for out in (
            network(*copies, mask, EVEN),
            reference.literal_forward(parameters, config, *copies, mask, EVEN),
        )
    ]
    found, expected = (
        torch.autograd.grad(total, parameters.values(), materialize_grads=True, allow_unused=True)
        for total in totals
    )
    largest = max(float(w.detach().abs().max()) for w in expected)
    for name, mine, other in zip(parameters, found, expected, strict=True):
        assert torch.isfinite(mine).all(), name
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-12 * largest, msg=name)
    idle = {name for name, mine in zip(parameters, found, strict=True) if not mine.any()}
    # Self-attention sees positions only.
    blind = config.attention_type == "self"
    parts = ("v_0_linear", "vz_0_linear", "concat_feats_linear") if blind else ()
    assert idle == {f"lifting_layer.{part}.weight" for part in parts}


@pytest.mark.parametrize(("loudness", "precise"), [(1.0, True), (300.0, False)])
def test_weights_too_small_to_be_told_from_zero(loudness: float, precise: bool) -> None:
    """Weights that a slot sees may underflow beside those at differences it does not see."""
    config = dataclasses.replace(SMALL, num_layers=1, num_heads=1, rope_base=1.001)
    network = random_network(config)
    with torch.no_grad():
        network.transformer_blocks[0].attention.query.weight.mul_(loudness)
        *inputs, mask = (w[:1] for w in molecules(config))
        exact = network(*inputs, mask, EVEN[:1])
        network.float()
        inputs, times = [w[:, :1].float() for w in inputs], EVEN[:1].float()
        tables = RotaryTables(config, network._slot_times(SLOTS, times, inputs[0]), max(SIZES))
        assert tables.evenly_spaced
        atoms = mask[:, 0, :, 0]
        _, norm = network._predict(*inputs, atoms, tables.factors, SLOTS, True)
        assert RelativeTimes.suffice(norm) == precise
        found = network(*inputs, mask[:, :1], times)
        plain, _ = network._predict(*inputs, atoms, tables.factors, SLOTS, False)
        largest = float(exact["pos"].abs().max())
        torch.testing.assert_close(found["pos"].double(), exact["pos"], rtol=0, atol=1e-4 * largest)
        if not precise:
            assert_same(found, plain, atol=0)


def test_single_precision_agrees_with_double() -> None:
    network = random_network(SMALL)
    *copies, mask = molecules(SMALL)
    with torch.no_grad():
        exact = network(*copies, mask, EVEN)["pos"]
        found = network.float()(*(w.float() for w in copies), mask, EVEN.float())["pos"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5 * float(exact.abs().max()))


def test_dropout_acts_in_training_only() -> None:
    network = random_network(dataclasses.replace(SMALL, ffn_dropout=0.0, attention_dropout=0.5))
    inputs = molecules(SMALL)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        calm = [network(*inputs)["pos"] for _ in range(2)]
        network.train()
        shaken = [network(*inputs)["pos"] for _ in range(2)]
    assert torch.equal(*calm)
    assert not torch.equal(*shaken)


# ---- padding, permutations, times ------------------------------------------------------------


@pytest.mark.parametrize("fill", [0.0, 50.0, float("nan")])
@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"canonical"}))
def test_padding_changes_nothing(name: str, fill: float) -> None:
    config = CONFIGS[name]
    network = random_network(config)
    *inputs, mask = molecules(config)
    padded = [w.masked_fill(~mask, fill) for w in inputs]
    with torch.no_grad():
        batch = network(*padded, mask, UNEVEN)
        for b, size in enumerate(SIZES):
            alone = network(*(w[b : b + 1, :, :size] for w in inputs), None, UNEVEN[b : b + 1])
            found = {
                name: w[b : b + 1] if name == "energy" else w[b : b + 1, :, :size]
                for name, w in batch.items()
            }
            assert_same(found, alone)
    assert not batch["pos"][~mask[..., 0]].any()


def test_numbers_of_tokens_count_padding() -> None:
    network = random_network(CONFIGS["canonical"])
    *inputs, mask = molecules(SMALL)
    with torch.no_grad():
        padded = network(*inputs, mask)["pos"][0, :, : SIZES[0]]
        alone = network(*(w[:1, :, : SIZES[0]] for w in inputs))["pos"][0]
    assert (padded - alone).abs().max() > 1e-3


@each_config
def test_order_of_atoms_does_not_matter(config: ATOMConfig) -> None:
    network = random_network(config)
    *inputs, mask = molecules(config)
    order = [3, 0, 4, 2, 1]
    with torch.no_grad():
        plain = network(*inputs, mask, UNEVEN)["pos"][:, :, order]
        permuted = network(*(w[:, :, order] for w in inputs), mask[:, :, order], UNEVEN)["pos"]
    if config.positional_encoding == "rope":
        assert (plain - permuted).abs().max() > 1e-3
    else:
        torch.testing.assert_close(permuted, plain, rtol=1e-10, atol=1e-11)


def test_only_increments_between_slots_matter() -> None:
    network = random_network(SMALL)
    inputs = molecules(SMALL)
    later = UNEVEN.clone()
    later[:, -1] += 5.0
    sooner = UNEVEN.clone()
    sooner[:, 0] += 0.5
    with torch.no_grad():
        plain, last, first = (network(*inputs, w)["pos"] for w in (UNEVEN, later, sooner))
    assert torch.equal(plain, last)
    assert (plain - first).abs().max() > 1e-3


def test_number_of_slots_is_free() -> None:
    network = random_network(SMALL)
    *inputs, mask = molecules(SMALL)
    one = [w[:, :1] for w in inputs]
    with torch.no_grad():
        for count in (1, 3, 9):
            increments = torch.ones(len(SIZES), count, dtype=torch.float64)
            out = network(*one, mask[:, :1], increments)
            assert out["pos"].shape == (len(SIZES), count, max(SIZES), 3)
        assert network(*one)["pos"].shape[1] == 1


# ---- lifting ---------------------------------------------------------------------------------


def rotation(seed: int = 1, reflect: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return turn * torch.linalg.det(turn).sign() * (-1.0 if reflect else 1.0)


def turned(features: torch.Tensor, turn: torch.Tensor, vectors: int) -> torch.Tensor:
    """Turn the leading vectors of features, leave the rest."""
    moved = features[..., : 3 * vectors].unflatten(-1, (vectors, 3)) @ turn
    return torch.cat([moved.flatten(-2), features[..., 3 * vectors :]], dim=-1)


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
@pytest.mark.parametrize("width", [12, 16, 20])
def test_linear_lifting_is_equivariant(width: int, reflect: bool) -> None:
    config = dataclasses.replace(SMALL, lifting_type="quasi_equivariant", lifting_dim=width)
    turn = rotation(reflect=reflect)
    linear = EquivariantLinear("svs", config).double()
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).double()
    moved = features.clone()
    moved[:, 1:4] = features[:, 1:4] @ turn
    expected = turned(linear(features), turn, config.num_vectors)
    torch.testing.assert_close(linear(moved), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
def test_tensor_product_is_equivariant(reflect: bool) -> None:
    product = TensorProduct(SMALL).double()
    left, right = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0)).double()
    turn, vectors = rotation(reflect=reflect), SMALL.num_vectors
    found = product(turned(left, turn, vectors), turned(right, turn, vectors))
    expected = turned(product(left, right), turn, vectors)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def turned_inputs(inputs: list[torch.Tensor], turn: torch.Tensor) -> list[torch.Tensor]:
    x, v, c = (w.clone() for w in inputs)
    x[..., :3], v[..., :3] = x[..., :3] @ turn, v[..., :3] @ turn
    c[..., :3], c[..., 4:7] = c[..., :3] @ turn, c[..., 4:7] @ turn
    return [x, v, c]


def rotation_defect(network: ATOM, config: ATOMConfig) -> float:
    *inputs, mask = molecules(config)
    turn = rotation()
    with torch.no_grad():
        plain = network(*inputs, mask, UNEVEN)
        moved = network(*turned_inputs(inputs, turn), mask, UNEVEN)
    return float((moved["pos"] - plain["pos"] @ turn).abs().max())


def test_only_canonical_frames_make_the_network_equivariant() -> None:
    for name in ("paper", "later-revision", "dense"):
        assert rotation_defect(random_network(CONFIGS[name]), CONFIGS[name]) > 0.1
    assert rotation_defect(random_network(CONFIGS["canonical"]), CONFIGS["canonical"]) < 1e-9


# ---- input features --------------------------------------------------------------------------


def test_return_probabilities_of_a_chain() -> None:
    chain = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [3.0, 0.0, 0.0]]).double()
    walks = return_probabilities(chain, 4)
    ends, middle = [0.0, 0.5, 0.0, 0.5], [0.0, 1.0, 0.0, 1.0]
    expected = torch.tensor([ends, middle, ends]).double()
    torch.testing.assert_close(walks, expected, rtol=0, atol=1e-15)
    assert return_probabilities(chain, 0).shape == (3, 0)


def test_bond_length_grows_until_there_is_a_bond() -> None:
    apart = torch.tensor([[0.0, 0.0, 0.0], [2.3, 0.0, 0.0], [7.0, 0.0, 0.0]])
    assert return_probabilities(apart, 2)[:, 1].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("distance", [None, 10.1])
def test_atoms_without_any_bond_are_refused(distance: float | None) -> None:
    atoms = torch.zeros(1 if distance is None else 2, 3)
    if distance is not None:
        atoms[1, 2] = distance
    with pytest.raises(InputError, match=r"atoms are within 10 Å.*rrwp_length=0"):
        return_probabilities(atoms, 3)


# ---- wrong inputs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": torch.zeros(3, 4, 5, 3)}, r"x_0 has shape \(3, 4, 5, 3\).*\(3, 4 or 1, 5, 4\)"),
        ({"v_0": torch.zeros(3, 2, 5, 4)}, r"v_0 has shape \(3, 2, 5, 4\)"),
        ({"concatenated_features": torch.zeros(3, 4, 5, 10)}, r"\(3, 4 or 1, 5, 9\)"),
        ({"x_0": torch.zeros(4, 5, 4)}, "x_0 has shape"),
        ({"time_increments": torch.ones(3)}, r"time_increments has shape \(3,\)"),
        ({"time_increments": torch.ones(3, 2)}, r"\(3, 2 or 1, 5, 4\)"),
        ({"padded_nodes_mask": torch.ones(3, 5, dtype=torch.bool)}, "padded_nodes_mask has shape"),
        ({"padded_nodes_mask": torch.zeros(3, 4, 5, 1, dtype=torch.bool)}, "without atoms"),
        (
            {"padded_nodes_mask": torch.ones(3, 4, 5, 1)},
            r"type torch\.float32.*torch\.bool",
        ),
        (
            {"padded_nodes_mask": torch.arange(4).view(1, 4, 1, 1).expand(3, 4, 5, 1) < 2},
            "differs between slots",
        ),
    ],
    ids=str,
)
def test_wrong_inputs_are_refused(change: dict, message: str) -> None:
    network = random_network(SMALL)
    x_0, v_0, context, mask = molecules(SMALL)
    inputs = {"x_0": x_0, "v_0": v_0, "concatenated_features": context, "padded_nodes_mask": mask}
    with pytest.raises(InputError, match=message):
        network(**{**inputs, **change})


# ---- configuration and checkpoints -----------------------------------------------------------


@pytest.mark.parametrize("config", [ATOMConfig(), CONFIGS["dense"], *JUMPS.values()])
def test_configuration_round_trip(config: ATOMConfig | IntegratorConfig) -> None:
    assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "norm='batch'.*rms, layer"),
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"lifting_type": "tp"}, "lifting_type='tp'"),
        ({"attention_type": "linear"}, "attention_type='linear'"),
        ({"value_residual_type": True}, "value_residual_type=True"),
        ({"positional_encoding": "alibi"}, "positional_encoding='alibi'"),
        ({"output_mode": "energy"}, "output_mode='energy'"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"lifting_dim": 16.0}, "lifting_dim=16.0"),
        ({"lifting_dim": 20, "num_heads": 3}, "lifting_dim=20 over num_heads=3"),
        ({"lifting_dim": 10, "num_heads": 2}, "whole, even number"),
        ({"rrwp_length": -1}, "rrwp_length=-1"),
        ({"rope_tau": 0.0}, "rope_tau=0.0"),
        ({"rope_base": float("nan")}, "rope_base=nan"),
        ({"attention_dropout": 1.0}, "attention_dropout=1.0"),
        ({"lifting_dim": 24}, "lifting_dim=24 is a multiple of 3.*lifting_type"),
        (
            {"lifting_dim": 24, "lifting_type": "quasi_equivariant", "output_mode": "full"},
            "output_mode='full'",
        ),
        ({"lifting_type": "canonicalization", "delta_update": True}, "choose one"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ATOMConfig(**{"lifting_dim": 16, "num_heads": 2, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"time_scale": float("inf")}, "time_scale=inf"),
        ({"max_horizon": 3.0}, "max_horizon=3.0 fs must exceed time_scale=4.0 fs"),
        ({"vector_layers": -1}, "vector_layers=-1"),
        ({"vector_channels": 0}, "vector_channels=0"),
        ({"spring_steps": 8}, "spring_steps=8 with exact_limits=False"),
        ({"exact_limits": True}, "exact_limits=True with accelerations=False"),
        ({"num_heads": 3}, "over num_heads=3"),
    ],
    ids=str,
)
def test_impossible_integrator_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IntegratorConfig(**options)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="'cutoff'"):
        ATOMConfig.from_dict({"cutoff": 5.0})
    with pytest.raises(ConfigError, match="'cutoff'"):
        IntegratorConfig.from_dict({"cutoff": 5.0})
    with pytest.raises(ConfigError, match="'friction'"):
        IntegratorConfig.from_dict({"integrator": {"friction": 0.1}})
    with pytest.raises(ConfigError, match=r"\['num_layers'\].*set them above"):
        IntegratorConfig.from_dict({"integrator": {"num_layers": 3}})
    with pytest.raises(ConfigError, match=r"integrator=\[1\]; it must be a table"):
        IntegratorConfig.from_dict({"integrator": [1]})


FORMER = {
    "lifting_dim": 96,
    "num_layers": 2,
    "norm": "rms",
    "lifting_type": "quasi_equivariant",
    "positional_encoding": "trope",
    "rope_base": 1000.0,
    "rope_tau": 1.0,
    "rrwp_length": 0,
    "tensor_product_rrwp": False,
    "output_mode": "pos_vel",
    "delta_update": False,
    "attention_dropout": 0.0,
    "ffn_dropout": 0.0,
}
"""What integrators were written with when they shared their options with the operator."""


def test_integrators_of_earlier_versions_are_read() -> None:
    own = {"accelerations": True, "vector_layers": 3, "exact_limits": True}
    found = IntegratorConfig.from_dict({**FORMER, "integrator": {"pairs": True, **own}})
    assert found == IntegratorConfig(lifting_dim=96, num_layers=2, **own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"integrator": {"pairs": False}}, "pairs=False; integrators are built with pairs=True"),
        ({"lifting_type": "canonicalization"}, "lifting_type='canonicalization'; integrators"),
        ({"rrwp_length": 8}, "rrwp_length=8; integrators are built with rrwp_length=0"),
    ],
    ids=str,
)
def test_integrators_that_cannot_be_built_any_more(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IntegratorConfig.from_dict({**FORMER, **options})


def official_options(config: ATOMConfig) -> dict:
    names = (
        "lifting_dim num_layers num_heads norm activation lifting_type attention_type "
        "value_residual_type positional_encoding rope_base rope_tau rrwp_length output_mode "
        "delta_update"
    )
    return {"num_timesteps": 8, **{name: getattr(config, name) for name in names.split()}}


def official_state(network: ATOM) -> dict[str, torch.Tensor]:
    """State dict as the public code writes it when the model is compiled."""
    state = {}
    for name, tensor in network.state_dict().items():
        state[name] = tensor
        state[name.replace(".ffn.layers.1.", ".ffn.layers.3.")] = tensor
    state["transformer_blocks.0.lambda_v_residual"] = torch.tensor(0.5)
    for name in list(state):
        if name.startswith("lifting_layer") and name.endswith(".weight"):
            state[name.replace("weight", "bias")] = torch.zeros(0)
            state[name.replace("weight", "output_mask")] = torch.ones(3)
    return {f"_orig_mod.{name}": tensor for name, tensor in state.items()}


def test_official_checkpoints_are_read() -> None:
    network = random_network(SMALL)
    state = official_state(network)
    before = torch.random.get_rng_state()
    found = ATOM.from_official(official_options(SMALL), state)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.config == SMALL
    assert not found.training
    inputs = molecules(SMALL)
    with torch.no_grad():
        assert_same(found(*inputs), network(*inputs), atol=0)
        # The caller's tensors are not shared.
        found.transformer_blocks[0].ffn.layers["0"].weight.zero_()
    assert state["_orig_mod.transformer_blocks.0.ffn.layers.0.weight"].any()


def test_unused_modules_of_canonical_checkpoints_are_left_out() -> None:
    config = dataclasses.replace(SMALL, lifting_type="canonicalization")
    state = official_state(random_network(config))
    state["_orig_mod.lifting_layer.canonical_matrix_maker.weight"] = torch.ones(6)
    state["_orig_mod.lifting_layer.test_linear.weight"] = torch.ones(13)
    assert ATOM.from_official(official_options(config), state).config == config


def test_fused_keys_and_values_of_self_attention_are_split() -> None:
    config = CONFIGS["relu"]
    network = random_network(config)
    state = network.state_dict()
    for name in list(state):
        if ".attention.key." in name:
            fused = torch.cat([state.pop(name), state.pop(name.replace(".key.", ".value."))])
            state[name.replace(".key.", ".kv_projs.")] = fused
        if ".norms.0." in name:
            state[name.replace(".norms.0.", ".norms.1.")] = state[name]
    inputs = molecules(config)
    found = ATOM.from_official(official_options(config), state)
    with torch.no_grad():
        assert_same(found(*inputs), network(*inputs), atol=0)


def test_first_revision_with_learnt_divisors() -> None:
    """Scores q·k/D of the first revision are those of the later one with queries scaled."""
    config = dataclasses.replace(SMALL, positional_encoding="slot_rope", tensor_product_rrwp=True)
    network = random_network(config)
    divisor = torch.tensor([2.0, 5.0]).double()
    renames = {
        "lifting_layer.concat_feats_linear": "lifting_layers.concatenated_features",
        "lifting_layer.x_0_linear": "lifting_layers.x_0",
        "lifting_layer.vz_0_linear": "lifting_layers.vz_0",
        "lifting_layer.v_0_linear": "lifting_layers.v_0",
        "projection_layer.linear_pos": "projection_layer",
        ".norms.0.": ".pre_norm.",
    }
    state = {}
    with torch.no_grad():
        for block in network.transformer_blocks:
            for norm in block.norms[1:]:
                norm.weight.copy_(block.norms[0].weight)
        for name, tensor in network.state_dict().items():
            if ".norms.1." in name or ".norms.2." in name:
                continue
            if ".attention.query." in name:
                factor = (divisor / 8**0.5).repeat_interleave(8)
                tensor = tensor * (factor[:, None] if tensor.ndim == 2 else factor)
                state[name.split("query")[0] + "attention_denom"] = divisor
            for ours, theirs in renames.items():
                name = name.replace(ours, theirs)
            state[name] = tensor
    shared = ("lifting_dim", "num_layers", "num_heads", "norm", "activation", "rrwp_length")
    options = {name: getattr(config, name) for name in shared} | {
        "use_equivariant_lifting": "equivariant",
        "learnable_attention_denom": True,
        "value_residual_type": "learnable",
        "output_heads": 1,
        "use_rope": True,
        "use_spherical_harmonics": False,
    }
    found = ATOM.from_official(options, state)
    inputs = molecules(config)
    with torch.no_grad():
        # Time increments count slots and are not used otherwise.
        assert_same(found(*inputs, UNEVEN), network(*inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff": 5.0}, "unknown ATOM arguments.*cutoff"),
        ({"lifting_type": "mystery"}, "lifting_type='mystery'"),
        ({"use_equivariant_lifting": "equivariant"}, "unknown ATOM arguments.*lifting_type"),
    ],
    ids=str,
)
def test_official_arguments_that_are_not_supported(change: dict, message: str) -> None:
    state = official_state(random_network(SMALL))
    with pytest.raises(ConfigError, match=message):
        ATOM.from_official({**official_options(SMALL), **change}, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_equivariant_lifting": "equivariant", "output_heads": 8}, "output_heads=8"),
        (
            {"use_equivariant_lifting": "equivariant", "use_spherical_harmonics": True},
            "use_spherical_harmonics=True",
        ),
        ({"use_equivariant_lifting": "some"}, "equivariant, no_tensor_product, none"),
    ],
    ids=str,
)
def test_first_revision_arguments_that_are_not_supported(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ATOM.from_official(options, {})


def test_damaged_checkpoints_are_refused() -> None:
    options, state = official_options(SMALL), official_state(random_network(SMALL))
    second = "_orig_mod.transformer_blocks.0.ffn.layers.3.linear_gate.weight"
    with pytest.raises(ModelFileError, match=r"layers\.3\.linear_gate\.weight differs"):
        ATOM.from_official(options, {**state, second: state[second] + 1.0})
    query = "_orig_mod.transformer_blocks.1.attention.query.weight"
    with pytest.raises(ModelFileError, match=r"Missing key.*attention.query.weight"):
        ATOM.from_official(options, {n: w for n, w in state.items() if n != query})
    with pytest.raises(ModelFileError, match="size mismatch"):
        ATOM.from_official(options, {**state, query: torch.zeros(3, 3)})
    with pytest.raises(ModelFileError, match=r"Unexpected key.*extra"):
        ATOM.from_official(options, {**state, "extra": torch.zeros(3)})


def test_merged_copy_leaves_the_network_alone() -> None:
    network = random_network(SMALL).train()
    merged = merge_weights(network)
    assert not merged.training
    assert network.training
    assert not any(p.requires_grad for p in merged.parameters())
    assert all(p.requires_grad for p in network.parameters())
    shared = {p.data_ptr() for p in network.parameters()}
    assert not shared & {p.data_ptr() for p in merged.parameters()}


def recordings(network: Network, method: str) -> int:
    recorder = getattr(network, method)
    return len(recorder._by_shapes.recordings) + len(recorder._by_values.recordings)


@each_config
def test_recordings_repeat_every_bit(config: ATOMConfig) -> None:
    network = random_network(config).float()
    merged, recorded = merge_weights(network), record(network)
    *inputs, mask = molecules(config)
    inputs = [w.float() for w in inputs]
    with torch.inference_mode():
        for _ in range(RECORD_AFTER + 1):
            recorded(*inputs, mask, EVEN)
        made = recordings(recorded, "_predict")
        assert made
        # Other numbers of the same shapes, and slots that are no copies, which are another shape.
        for increments, noise in ((0.5 * EVEN, 0.0), (UNEVEN, 0.0), (EVEN, 0.1)):
            given = [w + noise * torch.randn_like(w) for w in inputs]
            assert_same(recorded(*given, mask, increments), merged(*given, mask, increments), 0)
        assert recordings(recorded, "_predict") == made


def test_recordings_fall_back_on_precise_weights() -> None:
    network = random_network(dataclasses.replace(SMALL, num_heads=1, rope_base=1.001)).float()
    *inputs, _ = (w.float() for w in molecules(SMALL))
    with torch.no_grad():
        for block in network.transformer_blocks:
            block.attention.query.weight.mul_(300.0)
    loud, recorded = merge_weights(network), record(network)
    with torch.inference_mode():
        for _ in range(RECORD_AFTER + 2):
            found = recorded(*inputs, None, EVEN)
        assert recordings(recorded, "_predict") == 2
        assert_same(found, loud(*inputs, None, EVEN), 0)


# ---- jumps of an integrator ------------------------------------------------------------------


def state(config: IntegratorConfig) -> dict[str, torch.Tensor]:
    """Molecules of mixed sizes in Å and fs, none centred or at rest."""
    generator = torch.Generator().manual_seed(5)
    b, n = len(SIZES), max(SIZES)
    x, v, a = torch.randn(3, b, n, 3, generator=generator, dtype=torch.float64)
    mask = torch.arange(n) < torch.tensor(SIZES)[:, None]
    numbers = torch.randint(1, 10, (b, n), generator=generator) * mask
    found = {
        "positions": 2.0 * x + 3.0,
        "velocities": 0.02 * v + 0.01,
        "numbers": numbers,
        "mask": mask,
    }
    if config.accelerations:
        found["accelerations"] = 0.005 * a
    return found


TIMES = torch.tensor([[0.5, 8.0, 2.0], [4.0, 0.0, 31.9], [1.0, 1.5, 16.0]]).double()


@each_jump
def test_jumps_follow_their_formulas(reference: ModuleType, config: IntegratorConfig) -> None:
    network = random_network(config)
    molecule = state(config)
    with torch.no_grad():
        for net in (network, merge_weights(network)):
            out = net.propagate(times=TIMES, **molecule)
            for b, size in enumerate(SIZES):
                alone = {name: w[b, :size] for name, w in molecule.items() if name != "mask"}
                for t, time in enumerate(TIMES[b].tolist()):
                    pos, vel = reference.literal_propagate(
                        network.state_dict(), config, time=time, **alone
                    )
                    torch.testing.assert_close(out["pos"][b, t, :size], pos, rtol=0, atol=1e-9)
                    torch.testing.assert_close(out["vel"][b, t, :size], vel, rtol=0, atol=1e-10)
                assert not out["pos"][b, :, size:].any()
                assert not out["vel"][b, :, size:].any()


@each_jump
def test_jumps_are_the_same_where_gradients_are_wanted(config: IntegratorConfig) -> None:
    network = random_network(config)
    molecule = state(config)
    with torch.no_grad():
        expected = network.propagate(times=TIMES, **molecule)
    found = network.propagate(times=TIMES, **molecule)
    assert found["pos"].requires_grad
    for name in ("pos", "vel"):
        torch.testing.assert_close(found[name].detach(), expected[name], rtol=0, atol=1e-12)


@each_jump
def test_recorded_jumps_repeat_every_bit(config: IntegratorConfig) -> None:
    network = random_network(config).float()
    merged, recorded = merge_weights(network), record(network)
    molecule = state(config)
    with torch.inference_mode():
        for _ in range(RECORD_AFTER + 1):
            recorded.propagate(times=TIMES, **molecule)
        assert recordings(recorded, "_jump") == 1
        moved = {**molecule, "positions": 1.1 * molecule["positions"]}
        others = {**moved, "numbers": 2 * molecule["numbers"]}
        for times in (TIMES, 0.7 * TIMES, TIMES[:, :1]):
            for given in (moved, others):
                expected = merged.propagate(times=times, **given)
                assert_same(recorded.propagate(times=times, **given), expected, 0)
        with pytest.raises(InputError, match="max_horizon"):
            recorded.propagate(times=100.0 * TIMES, **molecule)
    # For these times of these molecules, and for any of their shapes.
    assert recordings(recorded, "_jump") == 2


@pytest.mark.parametrize("name", sorted(JUMPS.keys() - {"springs"}))
def test_untrained_jumps_are_ballistic(name: str) -> None:
    config = JUMPS[name]
    network = ATOMIntegrator(config)
    molecule = state(config)
    if config.exact_limits:
        molecule["accelerations"] = torch.zeros_like(molecule["positions"])
    x, v, mask = molecule["positions"], molecule["velocities"], molecule["mask"]
    out = network.propagate(times=TIMES, **molecule)
    straight = x[:, None] + v[:, None] * TIMES[:, :, None, None]
    real = mask[:, None, :, None]
    assert torch.equal(out["pos"], straight * real)
    assert torch.equal(out["vel"], v[:, None].expand_as(straight) * real)


@pytest.mark.parametrize("config", [JUMPS[name] for name in EXACT], ids=EXACT)
class TestExactLimits:
    """What a random network with this option does where motion vanishes."""

    def jump(
        self, config: IntegratorConfig, scale: float, times: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Change from ballistic motion, with velocities and accelerations times a number."""
        molecule = state(config)
        for name in ("velocities", "accelerations"):
            centre = molecule[name].masked_fill(~molecule["mask"][..., None], 0.0)
            molecule[name] = scale * centre
        with torch.no_grad():
            out = random_network(config).propagate(times=times, **molecule)
        real = molecule["mask"][:, None, :, None]
        x, v = (molecule[name][:, None] * real for name in ("positions", "velocities"))
        return {"pos": out["pos"] - x, "vel": out["vel"] - v, "acc": molecule["accelerations"]}

    def test_a_molecule_at_rest_without_forces_stays(self, config: IntegratorConfig) -> None:
        out = self.jump(config, 0.0, TIMES)
        assert not out["pos"].any()
        assert not out["vel"].any()

    def test_small_motion_is_linear(self, config: IntegratorConfig) -> None:
        small, half = self.jump(config, 1e-7, TIMES), self.jump(config, 5e-8, TIMES)
        for name in ("pos", "vel"):
            torch.testing.assert_close(small[name], 2.0 * half[name], rtol=1e-3, atol=1e-13)
        large = self.jump(config, 1.0, TIMES)
        assert (large["pos"] - 1e7 * small["pos"]).abs().max() > 1e-2

    def test_short_times_are_verlet(self, config: IntegratorConfig) -> None:
        """What is left falls with t³ for positions and t² for velocities."""
        left = []
        for time in (2e-3, 1e-3):
            times = torch.full((len(SIZES), 1), time, dtype=torch.float64)
            out = self.jump(config, 1.0, times)
            molecule = state(config)
            v = molecule["velocities"].masked_fill(~molecule["mask"][..., None], 0.0)
            pos = out["pos"][:, 0] - v * time - 0.5 * out["acc"] * time**2
            left.append((pos.abs().max(), (out["vel"][:, 0] - out["acc"] * time).abs().max()))
        assert left[0][0] / left[1][0] == pytest.approx(8.0, rel=0.02)
        assert left[0][1] / left[1][1] == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize("name", sorted(JUMPS.keys() - {*EXACT}))
def test_changes_grow_from_zero_as_those_of_a_force(name: str) -> None:
    config = JUMPS[name]
    network = random_network(config)
    molecule = state(config)
    real = molecule["mask"][:, None, :, None]
    times = torch.tensor([[0.0, 1e-4, 2e-4]] * len(SIZES)).double()
    with torch.no_grad():
        out = network.propagate(times=times, **molecule)
    x, v = (molecule[name][:, None] * real for name in ("positions", "velocities"))
    assert torch.equal(out["pos"][:, :1], x)
    assert torch.equal(out["vel"][:, :1], v)
    moved, faster = out["pos"] - (x + v * times[:, :, None, None]), out["vel"] - v
    for change, power in ((moved, 2), (faster, 1)):
        once, twice = change[:, 1], change[:, 2]
        size = float(once.abs().max())
        torch.testing.assert_close(twice, 2**power * once, rtol=0, atol=1e-2 * size)


@each_jump
def test_times_do_not_see_each_other(config: IntegratorConfig) -> None:
    network = random_network(config)
    molecule = state(config)
    with torch.no_grad():
        together = network.propagate(times=TIMES, **molecule)
        for t in range(TIMES.shape[1]):
            alone = network.propagate(times=TIMES[:, t : t + 1], **molecule)
            for name, found in together.items():
                torch.testing.assert_close(found[:, t], alone[name][:, 0], rtol=1e-12, atol=1e-12)


@each_jump
def test_every_input_of_a_jump_matters(config: IntegratorConfig) -> None:
    network = random_network(config)
    molecule = state(config)

    def change(molecule: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            out = network.propagate(times=TIMES, **molecule)
        straight = molecule["velocities"][:, None] * TIMES[:, :, None, None]
        straight = molecule["positions"][:, None] + straight
        return out["pos"] - straight * molecule["mask"][:, None, :, None]

    plain = change(molecule)
    mask = molecule["mask"]
    for name in set(molecule) - {"mask"}:
        other = dict(molecule)
        other[name] = molecule[name].clone()
        other[name][:, 0] += 1 if name == "numbers" else 0.1 * molecule[name].abs().max()
        difference = (change(other) - plain).abs().amax(dim=(1, 3))
        # The atom itself and the other atoms of its molecule.
        assert (difference[mask] > 1e-9).all(), name


@each_jump
def test_translations_and_common_velocities_carry_over(config: IntegratorConfig) -> None:
    network = random_network(config)
    molecule = state(config)
    real = molecule["mask"][:, None, :, None]
    shift, drift = torch.tensor([10.0, -3.0, 7.0]).double(), torch.tensor([0.1, 0.2, -0.1]).double()
    with torch.no_grad():
        plain = network.propagate(times=TIMES, **molecule)
        moved = network.propagate(
            times=TIMES,
            **{
                **molecule,
                "positions": molecule["positions"] + shift,
                "velocities": molecule["velocities"] + drift,
            },
        )
    expected = plain["pos"] + (shift + drift * TIMES[:, :, None, None]) * real
    torch.testing.assert_close(moved["pos"], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(moved["vel"], plain["vel"] + drift * real, rtol=0, atol=1e-10)


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "reflection"])
@each_jump
def test_jumps_that_turn_with_the_molecule(config: IntegratorConfig, reflect: bool) -> None:
    network = random_network(config)
    molecule = state(config)
    turn = rotation(reflect=reflect)
    vectors = ("positions", "velocities", "accelerations")
    moved = {name: w @ turn if name in vectors else w for name, w in molecule.items()}
    with torch.no_grad():
        plain = network.propagate(times=TIMES, **molecule)
        out = network.propagate(times=TIMES, **moved)
    straight = molecule["velocities"][:, None] * TIMES[:, :, None, None]
    size = (
        (plain["pos"] - molecule["positions"][:, None] - straight)[
            molecule["mask"][:, None].expand(-1, TIMES.shape[1], -1)
        ]
        .abs()
        .max()
    )
    defect = (out["pos"] - plain["pos"] @ turn).abs().max() / size
    assert defect < 1e-9


@each_jump
def test_padding_of_a_jump_may_hold_anything(config: IntegratorConfig) -> None:
    network = random_network(config)
    clean = state(config)
    padding = ~clean["mask"]
    rubbish = {
        name: w
        if name == "mask"
        else w.masked_fill(padding if w.ndim == 2 else padding[..., None], -9)
        for name, w in clean.items()
    }
    with torch.no_grad():
        expected = network.propagate(times=TIMES, **clean)
        found = network.propagate(times=TIMES, **rubbish)
    assert_same(found, expected, atol=0)


@each_jump
def test_gradients_of_a_jump(config: IntegratorConfig) -> None:
    network = random_network(config)
    molecule = state(config)
    for name, tensor in molecule.items():
        if tensor.is_floating_point():
            molecule[name] = tensor.requires_grad_()
    out = network.propagate(times=TIMES, **molecule)
    sum(w.square().sum() for w in out.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.startswith("lifting_layer.encoder"), name
        if not parameter.requires_grad:
            continue
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    padding = ~molecule["mask"]
    for name, tensor in molecule.items():
        if tensor.is_floating_point():
            assert torch.isfinite(tensor.grad).all(), name
            assert tensor.grad[molecule["mask"]].any(), name
            assert not tensor.grad[padding].any(), name


@each_jump
def test_state_keeps_its_precision(config: IntegratorConfig) -> None:
    exact, network = random_network(config), random_network(config).float()
    molecule = state(config)
    molecule["positions"] = molecule["positions"] + 1e4 * molecule["mask"][..., None]
    with torch.no_grad():
        expected = exact.propagate(times=TIMES, **molecule)
        found = network.propagate(times=TIMES, **molecule)
    straight = molecule["velocities"][:, None] * TIMES[:, :, None, None]
    straight = (molecule["positions"][:, None] + straight) * molecule["mask"][:, None, :, None]
    change = (expected["pos"] - straight).abs().max()
    assert found["pos"].dtype == torch.float64
    # Single precision of the positions themselves would be 1e-3 Å.
    assert (found["pos"] - expected["pos"]).abs().max() < 2e-5 * change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": torch.tensor([[1.0, 33.0]] * 3)}, "times from 1 to 33 fs.*max_horizon=32 fs"),
        ({"times": torch.tensor([[-0.5]] * 3)}, "times from -0.5 to -0.5 fs"),
        ({"times": torch.tensor([[float("nan")]] * 3)}, "times from nan"),
        ({"times": torch.ones(3)}, r"times has shape \(3,\)"),
        ({"times": torch.ones(2, 1)}, r"must be \(3, number of times\)"),
        ({"positions": torch.ones(3, 4, 3)}, r"positions has shape \(3, 4, 3\).*\(3, 5, 3\)"),
        ({"velocities": torch.ones(3, 5)}, "velocities has shape"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, r"mask has shape \(3, 4\)"),
        ({"mask": torch.zeros(3, 5, dtype=torch.bool)}, "without atoms"),
        ({"mask": torch.ones(3, 5)}, r"mask has type torch\.float32"),
        ({"numbers": torch.ones(3, 5)}, r"numbers has type torch\.float32.*torch\.int64"),
        ({"numbers": torch.zeros(3, 5, dtype=torch.long)}, "must be 1 to 118"),
        ({"numbers": torch.full((3, 5), 119)}, "must be 1 to 118"),
        ({"accelerations": torch.ones(3, 5, 3)}, "accelerations are given.*accelerations=False"),
    ],
    ids=str,
)
def test_wrong_states_are_refused(change: dict, message: str) -> None:
    network = random_network(JUMP)
    inputs = {"times": TIMES, **state(JUMP)}
    with pytest.raises(InputError, match=message):
        network.propagate(**{**inputs, **change})


def test_missing_accelerations_are_refused() -> None:
    network = random_network(JUMPS["shipped"])
    with pytest.raises(InputError, match="accelerations are missing"):
        network.propagate(times=TIMES, **state(JUMP))


# ---- what a force field knows of pairs --------------------------------------------------------


def random_encoder(config: MDETConfig = ENCODER) -> MDET:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        network = MDET(config)
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network.eval()


@pytest.mark.parametrize("name", ["without-accelerations", "recipe", "springs"])
def test_an_encoder_changes_nothing_until_it_is_trained(name: str) -> None:
    network = random_network(JUMPS[name])
    wider = network.with_encoder(random_encoder())
    assert wider.config == dataclasses.replace(JUMPS[name], encoder=ENCODER)
    molecule = state(JUMPS[name])
    with torch.no_grad():
        expected = network.propagate(times=TIMES, **molecule)
        assert_same(wider.propagate(times=TIMES, **molecule), expected)
        wider.projection_layer.from_pair.weight[:, -1] += 0.3
        moved = wider.propagate(times=TIMES, **molecule)
    assert (moved["pos"] - expected["pos"]).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["without-accelerations", "recipe", "springs"])
def test_a_wider_network_changes_nothing_until_it_is_trained(name: str) -> None:
    network = random_network(JUMPS[name])
    width = network.config.pair_hidden_dim
    wider = network.widened(width + 8)
    assert wider.config == dataclasses.replace(JUMPS[name], pair_hidden_dim=width + 8)
    molecule = state(JUMPS[name])
    with torch.no_grad():
        expected = network.propagate(times=TIMES, **molecule)
        assert_same(wider.propagate(times=TIMES, **molecule), expected)
        # The new part is no copy of zeros, which would never learn anything.
        wider.projection_layer.pair_coefficients.weight[:, width:] += 0.3
        moved = wider.propagate(times=TIMES, **molecule)
    assert (moved["pos"] - expected["pos"]).abs().max() > 1e-6
    with pytest.raises(ConfigError, match=f"pair_hidden_dim={width} is less than .* {width + 8}"):
        wider.widened(width)


def test_half_precision_of_training_spares_the_motion_of_springs() -> None:
    """Only what the network computes is rounded, here nothing, not the short steps that follow."""
    network = ATOMIntegrator(JUMPS["springs"]).eval()
    molecule = state(JUMPS["springs"])
    with torch.no_grad():
        expected = network.propagate(times=TIMES, **molecule)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network.propagate(times=TIMES, **molecule)
    assert_same(found, expected)


def test_an_encoder_keeps_the_weights_of_its_force_field() -> None:
    forces = random_encoder()
    encoder = random_network(JUMPS["recipe"]).with_encoder(forces).lifting_layer.encoder
    known = forces.state_dict()
    for name, weight in encoder.state_dict().items():
        torch.testing.assert_close(weight, known[name].double(), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_encoders_that_cannot_be_taken() -> None:
    network = random_network(JUMPS["recipe"])
    turning = random_encoder(dataclasses.replace(ENCODER, directions="direct"))
    with pytest.raises(ConfigError, match="directions='direct', and its features turn"):
        network.with_encoder(turning)
    with pytest.raises(ConfigError, match="has an encoder already"):
        network.with_encoder(random_encoder()).with_encoder(random_encoder())
