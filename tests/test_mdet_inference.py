"""The network for force calls: its own operations, merged maps, recordings."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import Tensor
from toy_models import CONFIGS, molecules, random_network, toy_model

from mlmd_calc import Potential
from mlmd_calc.models import MDETConfig
from mlmd_calc.models.mdet import compiled
from mlmd_calc.models.mdet.compiled import CompiledAttention, CompiledGELU
from mlmd_calc.models.mdet.edge_attention import (
    edge_attention,
    edge_attention_reference,
    pair_bias,
)
from mlmd_calc.models.mdet.inference import merge_weights
from mlmd_calc.models.recorder import RECORD_AFTER
from mlmd_calc.potential import prediction

MASK = torch.tensor([[True, True, True, False, False], [True] * 5])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_reference(projections: Tensor, bias: Tensor | None) -> Tensor:
    query, key, value1, value2 = projections.transpose(-1, -2).unbind(3)
    return edge_attention_reference(query, key, value1, value2, bias).transpose(-1, -2)


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("bias", ["none", "mask", "fading"])
def test_attention_and_its_gradients_are_those_of_the_formulas(bias: str, heads: int) -> None:
    projections = numbers(2, 5, 5, 4, 4, heads).requires_grad_()
    fading = {
        "none": None,
        "mask": pair_bias(MASK, None),
        "fading": pair_bias(MASK, numbers(2, 5, 5, seed=1).sigmoid()),
    }[bias]
    if fading is not None:
        fading = fading.double().requires_grad_(bias == "fading")
    inputs = [tensor for tensor in (projections, fading) if getattr(tensor, "requires_grad", False)]
    real = MASK[:, :, None, None, None] & MASK[:, None, :, None, None]
    weight = numbers(2, 5, 5, 4, heads, seed=2) * real
    out, known = CompiledAttention.apply(projections, fading), by_reference(projections, fading)
    torch.testing.assert_close(out * real, known * real, rtol=1e-13, atol=1e-13)
    found = torch.autograd.grad((out * weight).sum(), inputs)
    for gradient, expected in zip(
        found, torch.autograd.grad((known * weight).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(CompiledAttention.apply(projections, fading), out)


@pytest.mark.parametrize("threads", [1, 2])
def test_large_molecules_keep_no_weights_and_have_the_same_numbers(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, h = 19, 2
    projections = numbers(2, n, n, 4, 3, h).requires_grad_()
    mask = torch.arange(n) < torch.tensor([[n], [n - 3]])
    fading = pair_bias(mask, numbers(2, n, n, seed=1).sigmoid()).detach().requires_grad_()
    weight = numbers(2, n, n, 3, h, seed=2)

    def evaluate() -> tuple[Tensor, Tensor, Tensor]:
        out = CompiledAttention.apply(projections, fading)
        return out, *torch.autograd.grad((out * weight).sum(), (projections, fading))

    known = evaluate()
    monkeypatch.setattr(compiled, "KEPT_WEIGHTS", 0)
    monkeypatch.setattr(compiled, "THREADED_ATOMS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    _, weights, _ = compiled._attend(projections, fading.detach())
    assert weights.numel() == 0
    found = evaluate()
    assert torch.equal(found[0], known[0])
    for gradient, expected in zip(found, known, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    out = by_reference(projections, fading)
    real = mask[:, :, None, None, None] & mask[:, None, :, None, None]
    torch.testing.assert_close(found[0] * real, out * real, rtol=1e-12, atol=1e-12)


def test_attention_in_single_precision() -> None:
    projections = numbers(1, 6, 6, 4, 4, 2)
    known = by_reference(projections, None)
    found = CompiledAttention.apply(projections.float(), None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), known, rtol=1e-5, atol=1e-5)


def test_scores_of_any_size_are_as_exact() -> None:
    projections = 30.0 * numbers(1, 6, 6, 4, 4, 2)
    known = by_reference(projections, None)
    found = CompiledAttention.apply(projections, None)
    torch.testing.assert_close(found, known, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    projections = numbers(1, 4, 4, 4, 2, 2)
    projections[0, 1, 2, 0] = value
    out = CompiledAttention.apply(projections, None)
    assert torch.equal(out.isfinite(), by_reference(projections, None).isfinite())
    assert not out.isfinite().all()
    assert not CompiledGELU.apply(torch.tensor([value], dtype=torch.float64)).isfinite().any()


def test_activation_and_its_slope() -> None:
    x = torch.cat([torch.linspace(-40.0, 40.0, 100_001), torch.tensor([0.0, -0.0, 1e-300])])
    x = x.double().requires_grad_()
    known = torch.nn.functional.gelu(x)
    found = CompiledGELU.apply(x)
    torch.testing.assert_close(found, known, rtol=4e-15, atol=4e-15)
    (slope,), (expected,) = (torch.autograd.grad(y.sum(), x) for y in (found, known))
    torch.testing.assert_close(slope, expected, rtol=4e-15, atol=4e-15)


@pytest.mark.parametrize("function", [CompiledAttention, CompiledGELU])
def test_second_derivatives_are_refused(function: Any) -> None:
    x, others = {
        CompiledAttention: (numbers(1, 3, 3, 4, 2, 2), (None,)),
        CompiledGELU: (numbers(3), ()),
    }[function]
    x.requires_grad_()
    out = function.apply(x, *others)
    with pytest.raises(RuntimeError, match="first derivative only"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_merged_networks_say_what_networks_say(name: str, padded: bool) -> None:
    config: MDETConfig = CONFIGS[name]
    network = random_network(config).double().requires_grad_(False)
    merged = merge_weights(network)
    positions = 3.0 * numbers(2, 5, 3)
    elements = torch.tensor([[8, 1, 1, 0, 0], [6, 1, 1, 1, 1]] if padded else [[6, 1, 1, 1, 1]] * 2)
    mask = elements != 0 if padded else None
    for attention in (edge_attention, edge_attention_reference):
        known = network(positions, elements, mask, attention=attention)
        found = merged(positions, elements, mask, attention=attention)
        assert found.keys() == known.keys()
        for target, value in known.items():
            real = mask[..., None] if padded and value.ndim == 3 else torch.ones(())
            scale = float((value * real).abs().max())
            atol = (1e-7 if config.directions == "fourier" else 1e-12) * scale
            torch.testing.assert_close(
                found[target] * real, value * real, rtol=0, atol=atol, check_dtype=True
            )


# ---- recordings -----------------------------------------------------------------------------


def python_calls(potential: Potential) -> list[int]:
    """Count how often Python evaluates the network from now on."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    potential.prediction.network.register_forward_pre_hook(count)
    return calls


@pytest.mark.parametrize("options", [{"forces": "conservative"}, {"forces": "direct", "seed": 1}])
def test_frequent_molecules_skip_python_and_keep_their_bits(options: dict[str, Any]) -> None:
    potential = Potential(toy_model(), device="cpu", **options)
    calls = python_calls(potential)
    atoms, other = molecules()[1], molecule("CH4")
    for _ in range(RECORD_AFTER + 1):
        potential.evaluate([atoms])
    recorded = calls[0]
    rng = np.random.default_rng(0)
    for _ in range(3):
        atoms.rattle(0.05, rng=rng)
        fresh = Potential(toy_model(), device="cpu", **options)
        fresh.load_state_dict(potential.state_dict())
        expected = fresh.evaluate([atoms])[0]
        found = potential.evaluate([atoms])[0]
        assert found.energy == expected.energy
        np.testing.assert_array_equal(found.forces, expected.forces)
    assert calls[0] == recorded
    potential.evaluate([other])
    assert calls[0] == recorded + 1


@pytest.mark.parametrize("each_is_frequent", [False, True])
def test_recordings_know_which_molecule_it_is(each_is_frequent: bool) -> None:
    atoms, *others = molecules_of_one_shape = [molecule("CH4") for _ in range(4)]
    others[0].numbers[1] = 9
    others[1].info.update(charge=-1, multiplicity=2)
    others[2].numbers[:2] = atoms.numbers[[1, 0]]
    potential = Potential(toy_model(), device="cpu", forces="conservative")
    calls = python_calls(potential)
    for own in molecules_of_one_shape if each_is_frequent else [atoms]:
        for _ in range(RECORD_AFTER + 1):
            potential.evaluate([own])
    # The first of the others makes the recording for all that are rare.
    potential.evaluate(others[:1])
    recorded = calls[0]
    for own in molecules_of_one_shape:
        expected = Potential(toy_model(), device="cpu", forces="conservative").evaluate([own])[0]
        found = potential.evaluate([own])[0]
        assert found.energy == expected.energy
        np.testing.assert_array_equal(found.forces, expected.forces)
    assert calls[0] == recorded


def test_large_molecules_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "_RECORDED_NUMBERS", 100)
    potential = Potential(toy_model(), device="cpu", forces="conservative")
    calls = python_calls(potential)
    for _ in range(RECORD_AFTER + 3):
        potential.evaluate([molecule("CH4")])
    assert calls[0] == RECORD_AFTER + 3


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_potentials_with_recordings_can_be_copied(duplicate: Any) -> None:
    potential = Potential(toy_model(), device="cpu", forces="conservative")
    atoms = molecule("CH4")
    for _ in range(RECORD_AFTER + 2):
        known = potential.evaluate([atoms])[0]
    copied = duplicate(potential)
    np.testing.assert_array_equal(copied.evaluate([atoms])[0].forces, known.forces)
