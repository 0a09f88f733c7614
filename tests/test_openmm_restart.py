"""OpenMM scripts and runs that are continued in another process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import SMALL, random_network

from mlmd_calc.md import read_record
from mlmd_calc.zoo import save_model

pytest.importorskip("openmm", reason="openmm is not installed")

from openmm_bridge import available_backends

TESTS = Path(__file__).parent
BACKENDS = available_backends()
NEEDS_TORCHSCRIPT = pytest.mark.skipif(
    "torchscript" not in BACKENDS, reason=str(BACKENDS.unavailable.get("torchscript"))
)


def python(*arguments: object) -> None:
    """Run a new Python; its errors are shown."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "weak.safetensors"
    network = random_network(SMALL)
    with torch.no_grad():
        for parameter in network.heads["forces"].parameters():
            # Forces of random weights would break the molecule.
            parameter *= 0.02
    save_model(path, network, {}, {"name": "weak"})
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "backend", "rotation", "ways"),
    [
        ("Reference", "python", "none", ("checkpoint", "state", "xml")),
        ("CPU", "python", "none", ("checkpoint", "xml")),
        pytest.param(
            *("Reference", "torchscript", "random", ("checkpoint", "xml")), marks=NEEDS_TORCHSCRIPT
        ),
    ],
)
def test_scripts_go_on_bit_for_bit_in_another_process(
    tmp_path, model, platform, backend, rotation, ways
):
    child = TESTS / "openmm_restart_child.py"
    for action in ("begin", *ways):
        python(child, model, tmp_path, action, platform, backend, rotation)
    known = np.load(tmp_path / "begin.npy")
    assert np.abs(known[1]).max() > 0.0
    for action in ways:
        np.testing.assert_array_equal(np.load(tmp_path / f"{action}.npy"), known)


@pytest.mark.slow
def test_command_goes_on_bit_for_bit_in_another_process(tmp_path, model):
    mlmd = ("-c", "from mlmd_calc.cli import main; main()", "run")
    options = ("--engine", "openmm", "-e", "langevin", "--seed", 3, "--interval", 4)
    start = ("CH4", "-m", model, "--device", "cpu", *options)
    python(*mlmd, *start, "-d", 0.02, "-o", tmp_path / "whole")
    python(*mlmd, *start, "-d", 0.01, "-o", tmp_path / "parts")
    python(*mlmd, "--restart", "-d", 0.02, "-o", tmp_path / "parts")
    whole, parts = (read_record(tmp_path / name).frames for name in ("whole", "parts"))
    assert len(whole) == 11
    assert whole.tobytes() == parts.tobytes()
