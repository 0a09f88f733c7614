"""How commands end: signals, full disks, terminals that know ASCII only."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from another_process import Child, mlmd
from toy_models import write_model
from typer.testing import CliRunner

from mlmd_calc.cli import app
from mlmd_calc.cli.structure_input import load_structure
from mlmd_calc.errors import ModelFileError
from mlmd_calc.io.files import json_text
from mlmd_calc.md import read_record
from mlmd_calc.md.checkpoint import CHECKPOINT_FILE

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def as_in_a_terminal():
    """Let signals end the process that a test under nohup or in the background would ignore."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def python(code, **options):
    """Start Python as a job of its own, with signals as in a terminal."""
    environment = {**os.environ, **options.pop("environment", {})}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, options.pop("arguments", ()))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=as_in_a_terminal,
    )


def ends(process):
    """Return exit status and stderr, which holds no traceback."""
    _, stderr = process.communicate(timeout=600)
    assert "Traceback" not in stderr
    return process.returncode, stderr


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_amid_imports_ends_with_a_sentence(number):
    code = """
from mlmd_calc.cli.endings import run_command
def command():
    print("up", flush=True)
    while True:
        import numpy, sys
        for name in [n for n in sys.modules if n.startswith("email")]:
            del sys.modules[name]
        import email.message
run_command(command)
"""
    process = python(code)
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    status, stderr = ends(process)
    assert status == 128 + number
    assert stderr == (
        f"mlmd: stopped by {number.name}; nothing was written; give the command again\n"
    )


def test_an_ignored_hangup_stays_ignored():
    code = """
import signal, os
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from mlmd_calc.cli.endings import raise_on_signal, run_command
def command():
    with raise_on_signal():
        os.kill(os.getpid(), signal.SIGHUP)
    print("went on", flush=True)
run_command(command)
"""
    process = python(code)
    assert process.stdout.read() == "went on\n"
    assert ends(process) == (0, "")


def test_what_is_raised_on_a_signal_lets_clean_up():
    code = """
import os, signal
from mlmd_calc.cli.endings import advise, raise_on_signal, run_command
def command():
    advise("half is kept")
    with raise_on_signal():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            print("clean", flush=True)
run_command(command)
"""
    process = python(code)
    assert process.stdout.read() == "clean\n"
    assert ends(process) == (143, "mlmd: stopped by SIGTERM; half is kept\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_goes_on(tmp_path, number):
    model = write_model(tmp_path / "weak.safetensors", 0.3)
    options = ["run", "CH4", "-m", model, "--seed", 1, "--interval", 4, "-o"]
    arguments = [*options, tmp_path / "run", "-d", 1000]
    with Child(mlmd, *arguments) as child:
        while not (tmp_path / "run" / CHECKPOINT_FILE).exists():
            time.sleep(0.05)
            assert child.is_alive
        child.send_signal(number)
        status, _, stderr = child.wait()
    assert "Traceback" not in stderr
    assert status == 128 + number
    assert f"mlmd: stopped by {number.name}; all " in stderr
    assert f"kept in {tmp_path / 'run'}; go on with: mlmd run --restart --out" in stderr
    step = int(read_record(tmp_path / "run").frames["step"][-1])
    duration = (step + 2) * 0.0005
    for arguments in (["run", "--restart", "-o", tmp_path / "run"], [*options, tmp_path / "whole"]):
        done = CliRunner().invoke(app, [*map(str, arguments), "-d", str(duration)])
        assert done.exit_code == 0, done.output
    again, whole = (read_record(tmp_path / name).frames for name in ("run", "whole"))
    assert again.tobytes() == whole.tobytes()


def test_a_terminal_that_knows_ascii_only_ends_nothing():
    code = """
from mlmd_calc.cli.endings import run_command
from rich.console import Console
run_command(lambda: Console().print("1 Å ± 0.1 × 2 ☃"))
"""
    process = python(code, environment={"PYTHONIOENCODING": "ascii"})
    assert process.stdout.read() == "1 A +- 0.1 x 2 ?\n"
    assert ends(process) == (0, "")


def test_warnings_are_sentences():
    code = """
from mlmd_calc.cli.endings import run_command
import warnings
run_command(lambda: warnings.warn("too hot for this model"))
"""
    process = python(code)
    assert ends(process) == (0, "mlmd: warning: too hot for this model\n")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left"), "make space on that disk. Go on with: mlmd"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x/y"), "the folder '/x' is not there"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "'/x'; choose another place"),
        (MemoryError("1 TiB"), "too little memory (1 TiB)"),
        (ZeroDivisionError("odd"), "ZeroDivisionError: odd (command"),
    ],
)
def test_errors_become_one_sentence(error, sentence):
    code = f"""
from mlmd_calc.cli.endings import advise, run_command
advise("go on with: mlmd run --restart")
import errno
import json
import math
error = {type(error).__name__}{error.args!r}
error.filename = {getattr(error, "filename", None)!r}
def command():
    raise error
run_command(command)
"""
    status, stderr = ends(python(code))
    assert status == 1
    assert stderr.startswith("mlmd: ")
    assert stderr.count("\n") == 1
    assert sentence in stderr


def test_version():
    import mlmd_calc

    process = python("from mlmd_calc.cli import main; main()", arguments=["--version"])
    assert process.stdout.read() == f"mlmd {mlmd_calc.__version__}\n"
    assert ends(process) == (0, "")


def test_no_word_of_a_table_is_cut(capsys, monkeypatch):
    from rich.table import Table

    from mlmd_calc.cli.tables import print_table

    monkeypatch.setenv("COLUMNS", "20")
    words = ["equivariance", "structures", "multiplicities"]
    print_table(Table(*words))
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


@pytest.mark.parametrize("suffix", ["pdb", "cif", "xyz", "sdf"])
def test_a_huge_file_is_refused_before_it_is_read(tmp_path, suffix):
    path = tmp_path / f"huge.{suffix}"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(ModelFileError, match=r"has 1024\.0 GiB, too much"):
        load_structure(str(path))


def test_json_is_understood_by_every_reader():
    def no_constants(name):
        raise ValueError(name)

    odd = {"a": [1.5, math.nan, (math.inf, "NaN")], "b": {"c": -math.inf, "d": None, "e": True}}
    read = json.loads(json_text(odd), parse_constant=no_constants)
    assert read == {"a": [1.5, None, [None, "NaN"]], "b": {"c": None, "d": None, "e": True}}
