"""OpenMM scripts and runs that are continued in another process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from another_process import mlmd, run_child, script
from toy_models import SMALL, random_network

from mlmd_calc.md import read_record
from mlmd_calc.zoo import save_model

pytest.importorskip("openmm", reason="openmm is not installed")

from openmm_bridge import available_backends

CHILD = Path(__file__).with_name("openmm_restart_child.py")
BACKENDS = available_backends()
NEEDS_TORCHSCRIPT = pytest.mark.skipif(
    "torchscript" not in BACKENDS, reason=str(BACKENDS.unavailable.get("torchscript"))
)


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
    for action in ("begin", *ways):
        arguments = [CHILD, model, tmp_path, action, platform, backend, rotation]
        if action == "xml":
            # A Python that must have imported all it needs, and ends well.
            subprocess.run([sys.executable, *map(str, arguments)], check=True)
        else:
            run_child(script, *arguments)
    known = np.load(tmp_path / "begin.npy")
    assert np.abs(known[1]).max() > 0.0
    for action in ways:
        np.testing.assert_array_equal(np.load(tmp_path / f"{action}.npy"), known)


@pytest.mark.slow
def test_command_goes_on_bit_for_bit_in_another_process(tmp_path, model):
    options = ("--engine", "openmm", "-e", "langevin", "--seed", 3, "--interval", 4)
    start = ("CH4", "-m", model, "--device", "cpu", *options)
    run_child(mlmd, "run", *start, "-d", 0.02, "-o", tmp_path / "whole")
    run_child(mlmd, "run", *start, "-d", 0.01, "-o", tmp_path / "parts")
    run_child(mlmd, "run", "--restart", "-d", 0.02, "-o", tmp_path / "parts")
    whole, parts = (read_record(tmp_path / name).frames for name in ("whole", "parts"))
    assert len(whole) == 11
    assert whole.tobytes() == parts.tobytes()
