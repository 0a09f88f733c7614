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


@pytest.mark.parametrize("kernel", ["_attend", "_left_gradients", "_right_gradients"])
def test_kernels_compile_for_a_gpu(kernel, tmp_path, monkeypatch):
    """The interpreter takes more of Python than the compiler does."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mlmd_calc.models.mdet import fused_attention

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(fused_attention, kernel)
    constants = {"C": 2, "T": 8, "BIASED": True, "ACC": triton.language.float32}
    numbers = ("n", "heads", "channels", "size", "sb", "si", "sj", "sh", "sc")
    signature = dict.fromkeys(function.arg_names, "*fp32")
    signature |= dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
