"""SIGKILL at random moments, each time in a process of its own: nothing changes, none in limbo."""

import signal
import time
from functools import partial
from importlib.util import find_spec

import ase.io
import kill_child
import numpy as np
import pytest
from another_process import PROCESSES, code, run_child
from toy_models import write_model

KILLS = 2
MANY_KILLS = 20
"""Per kind of work, of which there are ten with those that count twice."""


def needs(*modules):
    missing = [module for module in modules if find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from atmos_systems import write_model as write_atmos

    folder = tmp_path_factory.mktemp("models")
    return {
        "mdet": write_model(folder / "weak.safetensors", 0.3),
        "atmos": write_atmos(folder / "atmos.safetensors"),
    }


WORK = {
    "run, ase": lambda m: partial(kill_child.run, model=m["mdet"], engine="ase", jumps=False),
    "jumps, ase": lambda m: partial(kill_child.run, model=m["mdet"], engine="ase", jumps=True),
    "run, openmm": lambda m: partial(kill_child.run, model=m["mdet"], engine="openmm", jumps=False),
    "jumps, openmm": lambda m: partial(
        kill_child.run, model=m["mdet"], engine="openmm", jumps=True
    ),
    "sample": lambda m: partial(kill_child.sample, model=m["atmos"]),
    "data generate": lambda m: kill_child.generate,
    "data peptides": lambda m: kill_child.peptides,
}
NEEDS = {
    "run, openmm": needs("openmm", "mdtraj"),
    "jumps, openmm": needs("openmm"),
    "sample": needs("mdtraj", "rdkit"),
    "data generate": needs("tblite", "rdkit"),
    "data peptides": needs("openmm", "rdkit"),
}
TIMES = {"run, ase": 2, "run, openmm": 2, "jumps, openmm": 2}
"""Kinds with more kills than others."""


def contents(folder):
    """What must not depend on kills: frames, trajectories, events, labels."""
    suffixes = (".npy", ".extxyz", ".traj", ".dcd", ".xtc", ".jsonl", ".npz")
    passing = ("checkpoint.npz", "restart.npz")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in suffixes and path.name not in passing
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.kills)],
    ids=["some", "many"],
)
@pytest.mark.parametrize("kind", [pytest.param(k, marks=NEEDS.get(k, ())) for k in WORK])
def test_killed_work_goes_on_bit_for_bit(tmp_path, models, kind, kills):
    work, count = WORK[kind](models), kills * TIMES.get(kind, 1)
    whole = tmp_path / "whole"
    # The server is there before anything is timed.
    run_child(code, "")
    begin = time.monotonic()
    assert finish(work, whole) == 0
    span = time.monotonic() - begin
    expected = contents(whole)
    assert expected
    rng = np.random.default_rng([kills, *kind.encode()])
    folder, done, runs = tmp_path / "0", 0, 0
    while done < count:
        # Several kills of one run, one after the other, and as many runs as that takes.
        status = finish(work, folder, kill_after=span * rng.random())
        assert status in (0, -signal.SIGKILL)
        done += status != 0
        for path in folder.rglob("trajectory.extxyz"):
            # No frame is torn.
            assert ase.io.read(path, ":")
        if status == 0:
            assert contents(folder) == expected
            runs += 1
            folder = tmp_path / str(runs)
    assert finish(work, folder) == 0
    assert contents(folder) == expected


@pytest.mark.parametrize("jumps", [False, True], ids=["steps", "jumps"])
@pytest.mark.parametrize("engine", ["ase", pytest.param("openmm", marks=needs("openmm", "mdtraj"))])
def test_the_first_checkpoint_is_as_good_as_any(tmp_path, models, monkeypatch, engine, jumps):
    """A kill right after it, before the first step."""
    from mlmd_calc.md import Run

    class KilledError(BaseException):
        pass

    def stop_after(run):
        written(run)
        raise KilledError

    written = Run.checkpoint
    work = partial(kill_child.run, model=models["mdet"], engine=engine, jumps=jumps)
    work(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "checkpoint", stop_after)
        with pytest.raises(KilledError):
            work(tmp_path / "parts")
    work(tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def finish(work, folder, kill_after=None):
    """Do work in a process; return its exit status."""
    child = PROCESSES.Process(target=work, args=(folder,))
    child.start()
    if kill_after is not None:
        child.join(kill_after)
        child.kill()
    child.join()
    status = child.exitcode
    child.close()
    return status
