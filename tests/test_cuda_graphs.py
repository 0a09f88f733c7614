"""Force calls as CUDA graphs, on the CPU with a capture that repeats operations as a graph does."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_models import CONFIGS, toy_model

from mlmd_calc import Potential
from mlmd_calc.models import cuda_graphs, recorder
from mlmd_calc.models.recorder import CAPTURE_AFTER, MAX_RECORDINGS, Recorder
from mlmd_calc.potential import potential
from mlmd_calc.potential.prediction import Prediction


class FakeGraph(TorchDispatchMode):
    """Operations with the memory they read and wrote, which a replay reads and writes again."""

    made: ClassVar[list[FakeGraph]] = []

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []
        self.pool: Any = None
        FakeGraph.made.append(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            both = (out, func(*args, **kwargs))
            leaves = (torch.utils._pytree.tree_leaves(value) for value in both)
            for old, new in zip(*leaves, strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class FakeStream:
    def wait_stream(self, other: Any) -> None:
        pass


@contextlib.contextmanager
def fake_capture(graph: FakeGraph, pool: Any) -> Any:
    graph.pool = pool
    with graph:
        yield


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is recorded be captured, and torch.cuda do so here."""
    FakeGraph.made.clear()
    cuda_graphs._pool.cache_clear()
    for name, fake in {
        "CUDAGraph": FakeGraph,
        "graph": fake_capture,
        "graph_pool_handle": object,
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "stream": lambda _: contextlib.nullcontext(),
        "device": lambda _: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(recorder, "_form", lambda _: cuda_graphs.capture_graph)


OPTIONS = [
    {"forces": "conservative", "rotation": "average", "n_rotations": 2},
    {"forces": "direct", "rotation": "random", "seed": 1, "n_rotations": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_graphs_have_the_bits_of_eager_calls(options: dict[str, Any]) -> None:
    model = toy_model(CONFIGS["direct-gaussian"])
    captured, eager = (Potential(model, device="cpu", **options) for _ in range(2))
    eager.prediction._recorded = eager.prediction._results
    python = []
    captured.prediction.network.register_forward_pre_hook(lambda *_: python.append(None))
    rng = np.random.default_rng(0)
    water, ammonia = molecule("H2O"), molecule("NH3")
    for turn in range(CAPTURE_AFTER + 6):
        if turn > CAPTURE_AFTER:
            python.clear()
        for atoms in (water, ammonia):
            atoms.positions += rng.normal(scale=0.01, size=atoms.positions.shape)
        # A batch with padding, whose orientations are other ones at every call.
        for found, known in zip(
            *(p.evaluate([water, ammonia]) for p in (captured, eager)), strict=True
        ):
            assert found.energy == known.energy
            assert np.array_equal(found.forces, known.forces)
            assert np.array_equal(found.forces_std, known.forces_std)
    assert not python
    assert len(FakeGraph.made) == 1


def test_sizes_that_come_once_are_not_captured_and_memory_is_shared() -> None:
    module = nn.Identity().eval()
    call = Recorder(lambda x: x + 1.0, module)
    with torch.no_grad():
        for size in range(1, 40):
            call(torch.zeros(size))
        assert not FakeGraph.made
        for size in range(1, MAX_RECORDINGS + 5):
            for _ in range(CAPTURE_AFTER + 1):
                call(torch.zeros(size))
    assert len(FakeGraph.made) == MAX_RECORDINGS
    assert len({id(graph.pool) for graph in FakeGraph.made}) == 1


def test_results_outlive_the_next_replay() -> None:
    call = Recorder(lambda x: (x + 1.0, 2.0 * x), nn.Identity().eval())
    with torch.no_grad():
        for _ in range(CAPTURE_AFTER + 1):
            call(torch.zeros(2))
        first, second = call(torch.ones(2)), call(torch.full((2,), 5.0))
    assert [value.tolist() for value in first] == [[2.0, 2.0], [2.0, 2.0]]
    assert [value.tolist() for value in second] == [[6.0, 6.0], [10.0, 10.0]]


def test_what_cannot_be_captured_stays_eager_after_one_warning() -> None:
    call = Recorder(lambda x: x * x.sum().item(), nn.Identity().eval())
    ones = torch.ones(3)
    with torch.no_grad():
        for _ in range(CAPTURE_AFTER):
            call(ones)
        with pytest.warns(UserWarning, match="CUDA graph"):
            call(ones)
        assert torch.equal(call(2.0 * ones), torch.full((3,), 12.0))


# ---- device="auto" ---------------------------------------------------------------------------


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices on which potentials evaluate, one after the other, with a GPU that is the CPU."""
    found: list[str] = []

    class OnPaper(Prediction):
        def __init__(self, *arguments: Any, device: torch.device, **options: Any) -> None:
            super().__init__(*arguments, device=torch.device("cpu"), **options)
            self.where = device.type

        def __call__(self, *arguments: Any) -> Any:
            found.append(self.where)
            return super().__call__(*arguments)

    monkeypatch.setattr(potential, "Prediction", OnPaper)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return found


@pytest.mark.parametrize(
    ("device", "graphs", "expected"),
    [
        ("auto", True, ["cuda", "cuda"]),
        ("auto", False, ["cpu", "cuda"]),
        ("cuda", False, ["cuda", "cuda"]),
        ("cpu", True, ["cpu", "cpu"]),
    ],
)
def test_auto_takes_the_gpu_for_what_is_faster_there(
    device: str,
    graphs: bool,
    expected: list[str],
    places: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(potential, "graphs_work", lambda _: graphs)
    monkeypatch.setattr(potential.PaddedBatch, "centred", centred_on_the_cpu)
    chosen = Potential(toy_model(), device=device, rotation="none")
    water = molecule("H2O")
    # 16 pair features of width 16 per pair: 9 pairs are few, 128 times 9 are not.
    chosen.evaluate([water])
    chosen.evaluate([water] * 128)
    assert places == expected
    assert not chosen.evaluate([])


CENTRED = potential.PaddedBatch.centred


def centred_on_the_cpu(molecules: Any, _: Any) -> Any:
    return CENTRED(molecules, torch.device("cpu"))


def test_graphs_are_tried_before_they_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_graphs.graphs_work.cache_clear()
    assert cuda_graphs.graphs_work(torch.device("cpu"))

    def broken(graph: Any, pool: Any) -> Any:
        raise RuntimeError("CUDA driver too old")

    monkeypatch.setattr(torch.cuda, "graph", broken)
    cuda_graphs.graphs_work.cache_clear()
    assert not cuda_graphs.graphs_work(torch.device("cpu"))
    cuda_graphs.graphs_work.cache_clear()
