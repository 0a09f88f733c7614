"""Attention for a GPU: its kernels in Triton's interpreter, and their code for a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed, which comes with the builds of torch for CUDA",
)

FOLDER = Path(__file__).parent
TOLERANCES = {"float64": 1e-12, "float32": 1e-6, "bfloat16": 2e-2}


def child(name, **environment):
    """What a script here prints; whether Triton interprets is decided when it is imported."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / name)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernels_compute_the_streamed_form():
    report = child("fused_attention_child.py", TRITON_INTERPRET="1")
    for name, errors in report["errors"].items():
        assert max(errors) < TOLERANCES[name.split(",")[0]], name
    assert "first derivative only" in report["refusal"]
    networks = report["networks"]
    assert max(networks["errors"]) < 1e-12
    # Two layers, of a potential and of a network in training.
    assert networks["launches"] == {"_attend": 4, "_left_gradients": 4, "_right_gradients": 4}
