"""Recordings of functions: when they are made, and what they repeat."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mlmd_calc.models.operations import record_operations, single_operation
from mlmd_calc.models.recorder import MAX_RECORDINGS, RECORD_AFTER, Recorder


@dataclass(frozen=True)
class Scaled:
    factor: int
    values: Tensor


class Both(NamedTuple):
    first: Scaled
    others: list[Tensor]


class Counted(nn.Module):
    """A function that counts how often Python evaluates it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.calls = 0

    def forward(self, both: Both, power: int, extra: Tensor | None) -> dict[str, Tensor]:
        self.calls += 1
        total = both.first.factor * both.first.values * self.weight + sum(both.others)
        return {"power": total**power, "sum": total.sum() if extra is None else total.sum() + extra}


def arguments(size: int = 3, power: int = 2, seed: int = 0, factor: int = 2) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    values, *others = torch.randn(3, size, 3, generator=generator)
    return Both(Scaled(factor, values), others), power, None


def recorder() -> tuple[Counted, Recorder[Any]]:
    module = Counted().eval()
    return module, Recorder(module, module)


def repeat(call: Recorder[Any], count: int, *given: Any) -> None:
    for _ in range(count):
        call(*given)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_frequent_calls_are_recorded(mode: Any) -> None:
    module, call = recorder()
    with mode():
        repeat(call, RECORD_AFTER, *arguments())
        assert module.calls == RECORD_AFTER
        call(*arguments())
        recorded = module.calls
        repeat(call, 5, *arguments())
        assert module.calls == recorded
        for given in (arguments(seed=1), arguments(power=3), arguments(factor=5), arguments(2)):
            found, expected = call(*given), module(*given)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        other, power, _ = arguments()
        module.calls = 0
        call(other, power, torch.ones(()))
        assert module.calls == 1
        call(Both(Scaled(2, other.first.values.double()), other.others), power, None)
        assert module.calls == 2


def test_functions_of_the_first_arguments_share_recordings() -> None:
    module, call = recorder()
    with torch.no_grad():
        for seed in range(RECORD_AFTER + 1):
            both, power, _ = arguments(seed=seed)
            call.ending_with(power, torch.tensor(float(seed)))(both)
        recorded = module.calls
        both, power, _ = arguments(seed=100)
        for extra in (torch.ones(()), torch.zeros(())):
            found = call.ending_with(power, extra)(both)
            assert module.calls == recorded
            expected = module(both, power, extra)
            recorded += 1
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        for last in ((power, None), (power + 1, extra), (power, extra.double())):
            found, expected = call.ending_with(*last)(both), module(both, *last)
            recorded += 2
            assert module.calls == recorded
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_calls_with_gradients_are_not_recorded() -> None:
    module, call = recorder()
    repeat(call, RECORD_AFTER + 5, *arguments())
    assert module.calls == RECORD_AFTER + 5
    call(*arguments())["sum"].backward()
    assert module.weight.grad is not None


def test_modules_in_training_are_not_recorded() -> None:
    module, call = recorder()
    module.train()
    with torch.no_grad():
        repeat(call, RECORD_AFTER + 5, *arguments())
    assert module.calls == RECORD_AFTER + 5
    assert module.training


def test_weights_are_not_copied() -> None:
    module, call = recorder()
    with torch.no_grad():
        repeat(call, RECORD_AFTER + 2, *arguments())
        module.weight.mul_(2.0)
        assert torch.equal(call(*arguments())["power"], module(*arguments())["power"])


class Tabulated(nn.Module):
    """A function of a table of numbers, of which it counts how often it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        table = LOOK_UP(self.weight.detach(), numbers)
        first, *_ = table.split(2, dim=-1)
        return x * first.sum(dim=-1)[:, None] + table.mean()


LOOKED = [0]


def look_up(table: Tensor, numbers: Tensor) -> Tensor:
    LOOKED[0] += 1
    return table[numbers]


LOOK_UP = single_operation("look_up", "Tensor table, Tensor numbers", "Tensor", look_up)


def test_what_follows_from_constants_is_not_computed_again() -> None:
    module = Tabulated().eval()
    call = Recorder(module, module, constants=(1,))
    x = torch.randn(2, 3)
    numbers = torch.tensor([[0, 1, 2], [3, 3, 1]])
    with torch.no_grad():
        repeat(call, RECORD_AFTER + 1, x, numbers)
        seen = LOOKED[0]
        found = [call(scale * x, numbers) for scale in (1.0, 2.0)]
        assert LOOKED[0] == seen
        for scale, own in zip((1.0, 2.0), found, strict=True):
            assert torch.equal(own, module(scale * x, numbers))


def test_constants_may_change_in_their_memory() -> None:
    module = Tabulated().eval()
    call = Recorder(module, module, constants=(1,))
    x, numbers = torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    with torch.no_grad():
        repeat(call, RECORD_AFTER + 1, x, numbers)
        zeros = call(x, numbers)
        for number in (1, 2):
            numbers.fill_(number)
            # Rare values, and then frequent ones, which begin with the recording of the shapes.
            for _ in range(RECORD_AFTER + 2):
                assert torch.equal(call(x, numbers), module(x, numbers))
        assert torch.equal(call(x, torch.zeros_like(numbers)), zeros)


def test_there_are_few_recordings() -> None:
    module, call = recorder()
    with torch.no_grad():
        for size in range(1, MAX_RECORDINGS + 2):
            repeat(call, RECORD_AFTER + 1, *arguments(size))
        module.calls = 0
        repeat(call, 3, *arguments(MAX_RECORDINGS))
        assert module.calls == 0
        repeat(call, 3, *arguments(MAX_RECORDINGS + 1))
        assert module.calls == 3


def test_functions_are_recorded_in_any_thread() -> None:
    # torch.fx notes for a whole process what it traces, which a second thread would have changed.
    inside, second_inside, first_done = (threading.Event() for _ in range(3))

    def first(x: Tensor) -> Tensor:
        inside.set()
        second_inside.wait(0.3)
        return 2.0 * x

    def second(x: Tensor) -> Tensor:
        second_inside.set()
        first_done.wait(10.0)
        return 3.0 * x

    x = torch.arange(3.0)
    with ThreadPoolExecutor() as pool:
        double = pool.submit(record_operations, first, [x])
        double.add_done_callback(lambda _: first_done.set())
        inside.wait(10.0)
        triple = pool.submit(record_operations, second, [x])
        assert torch.equal(double.result()(x), 2.0 * x)
        assert torch.equal(triple.result()(x), 3.0 * x)
