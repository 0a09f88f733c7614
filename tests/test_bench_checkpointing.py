"""The benchmark of activation checkpointing takes its step."""

import needs_lightning  # noqa: F401
import pytest

from mlmd_calc.models.atmos.primitives import BlockStack

pytest.importorskip("rdkit", reason="rdkit builds the peptide")


@pytest.mark.parametrize("wanted", [False, True])
def test_a_step_is_measured(benchmark, monkeypatch, wanted):
    """With the network that was asked for, and the peak after the step less that before."""
    bench = benchmark("bench_checkpointing")
    tasks, peaks = [], iter((100.0, 130.0))

    def prepare(*arguments):
        tasks.append(prepare_task(*arguments))
        return tasks[0]

    prepare_task = bench.prepare
    monkeypatch.setattr(bench, "prepare", prepare)
    monkeypatch.setattr(bench, "_peak", lambda: next(peaks))
    row = bench.measure(2, "xs", checkpointing=wanted)
    assert row["MiB"] == 30.0
    assert row["seconds"] > 0.0
    network = tasks[0].module.network
    stacks = [module for module in network.modules() if isinstance(module, BlockStack)]
    assert {stack.recompute for stack in stacks} == {wanted}
    assert any(parameter.grad is not None for parameter in network.parameters())
