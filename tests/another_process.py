"""Work in another process, which is there at once: a child of a server that has imported all.

To import torch and what else there is takes seconds, and a restart needs no more than *another*
process. Tests of how Python starts, imports and ends need :mod:`subprocess`.
"""

import io
import json
import multiprocessing
import os
import pickle
import resource
import runpy
import signal
import sys
import tempfile
import warnings
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
"""Makes processes as :mod:`multiprocessing` does."""

# Those that are not installed are left out.
PROCESSES.set_forkserver_preload(
    [
        *("pytest", "torch", "numba", "scipy.stats", "matplotlib.figure", "ase.build"),
        *("openmm.app", "rdkit.Chem", "tblite.ase"),
        *("mlmd_calc.cli.commands", "mlmd_calc.cli.run_results", "mlmd_calc.cli.structure_input"),
        *("mlmd_calc.md.run", "mlmd_calc.sampling", "mlmd_calc.models.mdet.network"),
        *("mlmd_calc.training.train", "openmm_bridge.engine", "openmm_bridge.peptides"),
    ]
)


class Child:
    """A process that does some work, in which warnings are errors; ends with its context.

    Parameters
    ----------
    work
        Function of a module.
    arguments
        What it is called with.
    cwd
        Where it works. Default: here.
    file_size
        Bytes beyond which no file can grow.
    """

    def __init__(self, work, *arguments, cwd=".", file_size=None):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        everything = (work, arguments, Path(cwd).absolute(), self._outputs, file_size)
        self._process = PROCESSES.Process(target=_perform, args=everything)
        self._process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.is_alive:
            self._process.kill()
        self._process.join()
        self._folder.cleanup()

    @property
    def is_alive(self):
        """Whether it is at work."""
        return self._process.is_alive()

    def send_signal(self, number):
        """Send a signal."""
        os.kill(self._process.pid, number)

    def wait(self, timeout=500):
        """Wait for its end; return exit status, stdout and stderr."""
        self._process.join(timeout)
        assert not self.is_alive, f"still at work after {timeout} s"
        return self._process.exitcode, *(path.read_text("utf-8") for path in self._outputs)


def run_child(work, *arguments, cwd="."):
    """Do work in a process, which must succeed; return what it printed."""
    with Child(work, *arguments, cwd=cwd) as child:
        status, printed, errors = child.wait()
    assert status == 0, f"exit status {status}\n{printed}{errors}"
    return printed


def mlmd(*arguments):
    """Be the command `mlmd`; work for a child."""
    from mlmd_calc.cli import main

    sys.argv = ["mlmd", *map(str, arguments)]
    main()


def script(path, *arguments):
    """Be a script; work for a child."""
    sys.argv = [str(path), *map(str, arguments)]
    runpy.run_path(str(path), run_name="__main__")


def pool_process(worker, task, advance):
    """Run a task of :mod:`mlmd_calc.data.pool`: stands in for its process, which imports first."""
    with Child(_worker, pickle.dumps(task)) as child:
        status, printed, errors = child.wait()
    *steps, answer = printed.splitlines() if status == 0 else [""]
    for _ in steps:
        advance(task.cost)
    return json.loads(answer) if status == 0 else errors.strip().splitlines()[-1]


def code(text):
    """Be a script of which this is the text; work for a child."""
    exec(text, {"__name__": "__main__"})


def _worker(task):
    from mlmd_calc.data.worker import main

    warnings.simplefilter("default")
    sys.stdin = io.TextIOWrapper(io.BytesIO(task))
    sys.exit(main())


def _perform(work, arguments, cwd, outputs, file_size):
    os.chdir(cwd)
    # Where programs of this environment are, which need not be active.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for path, descriptor in zip(outputs, (1, 2), strict=True):
        with path.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), descriptor)
    # As in a terminal, though a test under nohup or in the background ignores them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    warnings.simplefilter("error")
    work(*arguments)
