"""Process that runs tasks of the pool: ``python -m mlmd_calc.data.worker``, pickled ones on stdin.

It writes a line to stdout per step, so that the pool can show progress, and one after every task.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

from mlmd_calc.data.pool import STEP, PoolTask
from mlmd_calc.errors import MLMDError


def main() -> int:
    """Run tasks until there are no more; return the exit status.

    The reason of a failure of ours is the answer. Any other ends the process with its traceback.
    """
    answers = os.dup(1)
    # Other output on stdout, also of libraries, is not for the pool.
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)

    def tick() -> None:
        os.write(answers, STEP)

    while True:
        try:
            task: PoolTask = pickle.load(sys.stdin.buffer)
        except EOFError:
            return 0
        reason = None
        try:
            task.run(tick)
        except MLMDError as error:
            reason = str(error)
        os.write(answers, json.dumps(reason).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
