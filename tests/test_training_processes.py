"""`mlmd train` in processes of its own: signals, kills, full disks."""

import random
import signal
import subprocess
import sys
import time

import needs_lightning  # noqa: F401
import pytest
import torch
from another_process import Child, mlmd
from spring_molecules import spring_frames

from mlmd_calc.data import write_labels
from mlmd_calc.zoo import load_model

RECIPE = """
steps = 60
warmup_steps = 1
validate_every = 4
pairs_per_batch = 100
ema_decay = 0.9
held_out_fraction = 0.2

[model]
n_layers = 1
embd_dim = 16
num_heads = 2
num_3d_kernels = 8

[loss]
forces = 1.0
energy = 1.0
"""


def arguments(folder, out):
    options = ["-o", out, "--recipe", folder / "recipe.toml", "--accelerator", "cpu"]
    return ["train", folder / "labels", *options]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labels, a recipe, and a run of it from end to end in a Python of its own."""
    path = tmp_path_factory.mktemp("springs")
    (path / "labels").mkdir()
    for frames in (
        spring_frames("water", [8, 1, 1], 10),
        spring_frames("methanal", [6, 8, 1, 1], 10, seed=2),
    ):
        write_labels(path / "labels" / f"{frames.name}.npz", frames)
    (path / "recipe.toml").write_text(RECIPE)
    command = [sys.executable, "-c", "from mlmd_calc.cli import main; main()"]
    subprocess.run([*command, *map(str, arguments(path, path / "straight"))], check=True)
    return path


def finish(folder, out, **options):
    """Exit status of a run that is left alone, and what it said."""
    with Child(mlmd, *arguments(folder, out), **options) as child:
        status, _, said = child.wait()
    return status, said


def last_written(out):
    """When the last checkpoint was written; 0 where there is none, as for an instant in between."""
    try:
        return (out / "last.ckpt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def interrupt(folder, out, number, delay=0.0):
    """Start or continue a run, and send a signal some time after its next checkpoint.

    Returns the exit status and what was said.
    """
    before = last_written(out)
    with Child(mlmd, *arguments(folder, out)) as child:
        while last_written(out) in (0, before):
            assert child.is_alive, child.wait()
            time.sleep(0.002)
        time.sleep(delay)
        child.send_signal(number)
        status, _, said = child.wait()
    return status, said


def assert_same_model(folder, out):
    assert finish(folder, out)[0] == 0
    first, second = (
        load_model(path, dtype="float32").network.state_dict()
        for path in (folder / "straight", out)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def steps_of(out):
    return torch.load(out / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.slow
def test_signals_and_kills_change_no_weight(folder, tmp_path):
    out = tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT, signal.SIGKILL):
        status, said = interrupt(folder, out, number)
        if number == signal.SIGKILL:
            assert status == -number
            continue
        assert status == 128 + number
        assert said.splitlines()[-1] == (
            f"mlmd: stopped by {number.name}; {steps_of(out)} of 60 steps are kept in {out}; the "
            "same command goes on from there"
        )
        assert "Traceback" not in said
    assert_same_model(folder, out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.kills) for seed in range(1, 7))]
)
def test_kills_at_random_times_change_no_weight(folder, tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(3):
        interrupt(folder, tmp_path, signal.SIGKILL, delay=rng.uniform(0.0, 0.2))
    assert_same_model(folder, tmp_path)


def test_full_disk_ends_with_a_sentence_and_the_run_goes_on(folder, tmp_path):
    """The limit is above the first checkpoint's metrics and below the size of a checkpoint."""
    status, said = finish(folder, tmp_path, file_size=20_000)
    assert status == 1
    assert "Traceback" not in said
    assert "mlmd: File too large" in said
    assert "last.ckpt" in said
    assert "the same command goes on from there" in said
    assert_same_model(folder, tmp_path)


def test_folder_that_cannot_be_made_is_a_sentence(folder, tmp_path):
    (tmp_path / "file").touch()
    status, said = finish(folder, tmp_path / "file" / "run")
    assert status == 1
    assert "Traceback" not in said
    assert "mlmd: Not a directory" in said
