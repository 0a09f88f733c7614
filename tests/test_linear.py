"""Linear maps as loops for the processor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlmd_calc.models import linear, linear_loops
from mlmd_calc.models.linear import CompiledLinear, Linear
from mlmd_calc.models.linear_loops import pack


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def packed(weight: Tensor, bias: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    return pack(weight, bias, columns), pack(weight.T, None, columns)


@pytest.mark.parametrize("rows", [1, 5, 9, 10, 163])
@pytest.mark.parametrize("columns", [8, 16])
def test_linear_maps_and_their_gradients(columns: int, rows: int) -> None:
    weight, bias = numbers(48, 32), numbers(48, seed=1)
    x, slope = numbers(1, rows, 32, seed=2).requires_grad_(), numbers(1, rows, 48, seed=3)
    out = CompiledLinear.apply(x, *packed(weight, bias, columns))
    known = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(out, known, rtol=1e-13, atol=1e-13)
    (found,), (expected,) = (torch.autograd.grad((y * slope).sum(), x) for y in (out, known))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_linear_maps_in_single_precision() -> None:
    weight, bias, x = numbers(64, 32).float(), numbers(64).float(), numbers(11, 32).float()
    found = CompiledLinear.apply(x, *packed(weight, bias, 32))
    assert found.dtype == torch.float32
    known = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(found.double(), known, rtol=1e-5, atol=1e-5)


def test_rows_of_linear_maps_have_the_same_bits_among_any_others() -> None:
    maps = packed(numbers(16, 32), numbers(16), 16)
    x = numbers(50, 32, seed=1)
    known = CompiledLinear.apply(x, *maps)
    for part in (1, 8, 11):
        found = [CompiledLinear.apply(rows, *maps) for rows in x.split(part)]
        assert torch.equal(torch.cat(found), known)


def test_torch_multiplies_what_does_not_fill_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loops, "VECTOR_BYTES", 64)
    weight, x = numbers(32, 16), numbers(3, 16)
    assert Linear(weight).packed
    with pytest.raises(RuntimeError, match="dtype"):
        Linear(weight)(x.float())
    assert not Linear(weight.float()).packed
    assert not Linear(weight[:, :15]).packed
    monkeypatch.setattr(linear_loops, "VECTOR_BYTES", 0)
    plain = Linear(weight)
    assert not plain.packed
    assert torch.equal(plain(x), torch.nn.functional.linear(x, weight))


@pytest.mark.parametrize(("threads", "rows", "own"), [(1, 7, 1), (2, 7, 0), (2, 6, 1)])
def test_torch_multiplies_many_rows_on_more_than_one_thread(
    threads: int, rows: int, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(linear_loops, "VECTOR_BYTES", 64)
    monkeypatch.setattr(linear, "_MANY_ROWS", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(CompiledLinear, "apply", lambda *given: calls.append(given) or given[0])
    Linear(numbers(32, 16))(numbers(rows, 16))
    assert len(calls) == own


def test_second_derivatives_are_refused() -> None:
    x = numbers(3, 16).requires_grad_()
    out = CompiledLinear.apply(x, *packed(numbers(16, 16), numbers(16), 16))
    with pytest.raises(RuntimeError, match="first derivative only"):
        torch.autograd.grad(out.sum(), x, create_graph=True)
