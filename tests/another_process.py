"""Python in another process, with warnings as errors and the paths of this one."""

import os
import subprocess
import sys

COMMAND_LINE = ("-c", "from mlmd_calc.cli import main; main()")
"""Arguments of Python that are the command `mlmd`."""


def run_python(*arguments, cwd=None):
    """Run Python with arguments, which must succeed; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
