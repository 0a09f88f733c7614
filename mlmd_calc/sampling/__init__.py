"""Trajectories from ATMOS models, without an engine: `mlmd sample`.

`Trajectories` draws frames, `TrajectoryFile` writes them, and `SamplingRun` does both in a folder
from which a run that was killed goes on bit for bit.
"""

from mlmd_calc.sampling.job import SamplingJob
from mlmd_calc.sampling.run import SamplingRun
from mlmd_calc.sampling.trajectories import Trajectories
from mlmd_calc.sampling.trajectory_file import FORMATS, TrajectoryFile

__all__ = ["FORMATS", "SamplingJob", "SamplingRun", "Trajectories", "TrajectoryFile"]
