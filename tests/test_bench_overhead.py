"""The overhead benchmark runs, and what it puts in the place of a model does what it should."""

import json
import sys

import numpy as np
import pytest
from ase.build import molecule

pytest.importorskip("openmm", reason="openmm is not installed")


@pytest.fixture(scope="module")
def bench(benchmark):
    return benchmark("bench_overhead")


def test_report(bench, monkeypatch, capsys):
    # TorchScript takes seconds to compile.
    monkeypatch.setattr(bench, "available_backends", lambda: ["python"])
    monkeypatch.setattr(bench, "_SECONDS", 0.001)
    monkeypatch.setattr(bench.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["bench", "--atoms", "8", "--turns", "3", "--json"])
    status = bench.main()
    report = json.loads(capsys.readouterr().out)
    rows = {(row["engine"], row["backend"]): row for row in report["rows"]}
    assert set(rows) == {("ASE", "calculator"), ("Reference", "python"), ("CPU", "python")}
    for row in rows.values():
        assert row["n_atoms"] == 8
        assert row["cpu_s"]["complete"] > row["cpu_s"]["bridge"]
    python = [row for row in rows.values() if row["backend"] == "python"]
    assert all(row["target_s"] == bench.TARGET_S for row in python)
    assert status == any(row["wall_s"]["bridge"] > bench.TARGET_S for row in python)
    bench.Console(file=sys.stdout).print(bench.result_table(report))
    assert "Reference" in capsys.readouterr().out


def test_stand_ins_predict_zero(bench):
    from mlmd_calc import Potential

    atoms = molecule("CH3CH2OH")
    for kind in (Potential, bench.ZeroPotential):
        result = bench.zero_potential(kind).evaluate([atoms])[0]
        assert result.energy == 0.0
        np.testing.assert_array_equal(result.forces, np.zeros((9, 3)))


def test_every_step_of_ase_asks_for_forces(bench, monkeypatch):
    calls = []
    evaluate = bench.ZeroPotential.evaluate
    monkeypatch.setattr(
        bench.ZeroPotential, "evaluate", lambda *given: calls.append(1) or evaluate(*given)
    )
    step = bench.ase_stepper("bridge", molecule("CH4"))
    step(1)
    before = len(calls)
    step(10)
    assert len(calls) == before + 10
