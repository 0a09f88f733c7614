"""Work that can be killed at any moment and gone on with, as a user would from the shell."""

import contextlib
import io
from unittest import mock

from mlmd_calc.errors import ConfigError, ModelFileError


def command(*arguments):
    """Run an `mlmd` command in this process; its exit status is 0."""
    from mlmd_calc.cli.commands import app

    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        status = app([str(argument) for argument in arguments], standalone_mode=False)
    assert not status, f"exit status {status}"


def run_or_restart(name, folder, arguments):
    """Go on with the run in a folder, or start it if there is none: one of the two must work."""
    try:
        command(name, "--restart", "-o", folder)
    except (ConfigError, ModelFileError) as error:
        if "holds no run" not in str(error) and "holds no checkpoint" not in str(error):
            raise
        command(name, *arguments, "-o", folder)


def run(folder, model, engine, jumps):
    """Run dynamics by force-based steps or by jumps."""
    arguments = ["CH4", "-m", model, "--engine", engine, "--seed", 1, "--interval", 3]
    # Cold: a random network is no molecule's friend.
    arguments += ["--checkpoint-interval", 4, "--duration", 0.02, "--temperature", 20]
    # A kind of trajectory for each kind of run.
    formats = {("ase", False): "extxyz", ("ase", True): "dcd", ("openmm", True): "traj"}
    arguments += ["--format", formats.get((engine, jumps), "xtc")]
    if jumps:
        arguments += ["--propagator", "verlet", "--jump", 1.0, "--steps-per-jump", 1]
    if jumps and engine == "ase":
        arguments += ["--replicas", 2]
    from mlmd_calc.cli import run_results

    # A picture takes as long as all the rest.
    with mock.patch.object(run_results, "plot_run"):
        run_or_restart("run", folder, arguments)


def sample(folder, model):
    """Sample trajectories with a tiny network; every frame is a checkpoint."""
    arguments = ["smiles:CC(=O)N", "-m", model, "--seed", 1, "-b", 2, "-n", 12, "-f", "dcd"]
    arguments += ["--redraws", 0, "--keyframes-per-checkpoint", 1]
    with contextlib.suppress(AssertionError):  # frames of a random network are broken
        run_or_restart("sample", folder, arguments)


def generate(folder):
    """Label two molecules."""
    options = ["--frames", 3, "--conformers", 1, "--thermalise", 1, "--stride", 1]
    command("data", "generate", "w=O", "m=C", *options, "--workers", 1, "-o", folder)


def peptides(folder):
    """Simulate a peptide; every frame is a checkpoint."""
    import openmm_bridge.peptides as module

    module._SAVE_SECONDS = 0.0
    settings = module.PeptideSettings(frames=8, interval_ps=0.02, equilibration_ps=0.02)
    folder.mkdir(exist_ok=True)
    task = module.PeptideRun("A", 300.0, 0, settings, folder / "A.npz")
    if not task.is_done():
        task.run(lambda: None)
