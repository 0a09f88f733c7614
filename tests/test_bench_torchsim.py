"""The benchmark of TorchSim runs, and all its ways do the steps they are timed for."""

import json
import sys

import pytest
from rich.console import Console

pytest.importorskip("torch_sim", reason="TorchSim is not installed (extra torchsim)")


@pytest.fixture
def bench(benchmark, monkeypatch):
    bench = benchmark("bench_torchsim")
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda count: None)
    return bench


def test_report(bench, monkeypatch, capsys, model_file):
    evaluate, asked = bench.MDETModel.forward, []
    monkeypatch.setattr(
        bench.MDETModel, "forward", lambda self, state: asked.append(1) or evaluate(self, state)
    )
    small = ["--model", str(model_file), "--molecules", "2", "--steps", "16", "--turns", "1"]
    monkeypatch.setattr(sys, "argv", ["bench", *small, "--json"])
    bench.main()
    # The warming step, the timed ones, and one before each of the two runs.
    assert len(asked) == 1 + 16 + 2
    report = json.loads(capsys.readouterr().out)
    assert set(report["speeds"]) == set(bench.WAYS)
    for speed in report["speeds"].values():
        slowest, fastest = speed["slowest_and_fastest"]
        assert 0 < slowest == speed["steps_per_s"] == fastest
    monkeypatch.setattr(sys, "argv", ["bench", *small, "--steps", "3"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "not a multiple of 16" in capsys.readouterr().err
    Console(file=sys.stdout).print(bench.result_table(report))
    assert "2 ethanols, 16 steps each" in capsys.readouterr().out
