"""A sampling run that is killed while it writes."""

import os
import signal

from mlmd_calc.sampling import SamplingRun, TrajectoryFile


def run_until_killed(folder, frames):
    """Go on with a run; die in the middle of a frame of the last replica."""
    run = SamplingRun.resume(folder)
    append = TrajectoryFile.append

    def append_and_die(file, new, first):
        append(file, new, first)
        if first > frames and file.path == run.paths[-1]:
            file.cut(file.size - 7)
            os.kill(os.getpid(), signal.SIGKILL)

    TrajectoryFile.append = append_and_die
    run.run()
