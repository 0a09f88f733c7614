"""Process that runs one task: ``python -m mlmd_calc.data.worker``, with the pickled task on stdin.

It writes one line to stdout per step, so that the pool can show progress.
"""

from __future__ import annotations

import pickle
import sys

from mlmd_calc.data.pool import PoolTask
from mlmd_calc.errors import MLMDError


def main() -> int:
    """Run the task; return the exit status, with the reason of a failure on stderr."""
    task: PoolTask = pickle.load(sys.stdin.buffer)

    def tick() -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()

    try:
        task.run(tick)
    except MLMDError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
