"""The benchmark of activation checkpointing takes its step."""

import importlib
from pathlib import Path

import needs_lightning  # noqa: F401
import pytest

pytest.importorskip("rdkit", reason="rdkit builds the peptide")

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_a_step_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("bench_checkpointing")
    row = bench.measure(2, "xs", checkpointing=True)
    assert row["seconds"] > 0.0
    assert row["MiB"] >= 0.0
