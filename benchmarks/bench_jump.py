"""What a jump propagator costs and how good its ensemble is, against force-based steps.

For each molecule six runs are made one after the other, each in a process of its own with one
thread, from one thermalised state::

    forces             Langevin dynamics with the force field, steps of 0.5 fs
    jump               NVT jumps with the usual guards
    jump, no guards    the same without them
    jump, replicas     NVT jumps of many replicas in one call
    forces, replicas   force-based steps of as many replicas in one call
    jump, NVE          constant energy: jumps with energy rescaling and the usual guards

A speed is simulated ps, of all replicas together, per second of wall time; the first step warms up
and does not count. The replicas simulate the duration together, but at least four jumps each. A run
that stops early is a result: when and why is reported, and its numbers are those up to there.
Temperatures and distributions leave out the first fifth of a run::

    mlmd bench jump
    mlmd bench jump --molecule phenol --jump 4 --duration 5 --plots pictures
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np
from common import PROC, environment, in_fresh_process
from jump_summary import (
    divergence_floor,
    plot_distributions,
    plot_temperatures,
    summarise_ensemble,
)
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mlmd_calc import units
from mlmd_calc.analysis.jump_ensemble import (
    ALL_ATOMS,
    InternalCoordinates,
    Sample,
    kinetic_temperatures,
)
from mlmd_calc.analysis.statistics import fit_drift
from mlmd_calc.analysis.trajectory import EQUILIBRATION
from mlmd_calc.errors import ConfigError, InputError, MLMDError, PredictionError
from mlmd_calc.propagation import (
    Bonding,
    Corrections,
    ForceModel,
    Guard,
    JumpLoop,
    Langevin,
    Propagator,
    State,
    VerletPropagator,
    state_from_ase,
)
from mlmd_calc.propagation.corrections import rigid_basis, rigid_velocities
from mlmd_calc.propagation.thermostats import draw_velocities
from mlmd_calc.zoo import ModelCard, load_any_model

MOLECULES: Final = ("ethanol", "isobutane")
"""Ethanol, and a molecule that the shipped propagator was not trained on."""
MODEL: Final = "atom-small-organics"
TIMESTEP_FS: Final = 0.5
"""Of force-based steps."""
FEWEST_JUMPS: Final = 4
"""Of a replica."""

FORCES, JUMP, UNGUARDED, REPLICAS, FORCE_REPLICAS, NVE = RUNS = (
    "forces",
    "jump",
    "jump, no guards",
    "jump, replicas",
    "forces, replicas",
    "jump, NVE",
)
RATIOS: Final = (
    (JUMP, FORCES),
    (REPLICAS, FORCE_REPLICAS),
    (REPLICAS, FORCES),
)
_REFRESH_S: Final = 0.2


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes
    ----------
    model
        Name or path of the propagator.
    potential
        Name or path of the force field; None for that of the propagator, or if it needs none the
        default one.
    device
        Torch device.
    stride_fs
        Length of a jump.
    friction_per_ps, temperature_K
        Of the Langevin thermostat.
    duration_ps
        Length of a run.
    replicas
        Number of replicas.
    seed
        Seed of all runs.
    """

    model: str
    potential: str | None
    device: str
    stride_fs: float
    friction_per_ps: float
    temperature_K: float  # noqa: N815
    duration_ps: float
    replicas: int
    seed: int

    @property
    def thermostat(self) -> Langevin:
        """The thermostat of all runs but that at constant energy."""
        return Langevin(self.temperature_K, self.friction_per_ps / units.FS_PER_PS)


@dataclass(frozen=True)
class Run:
    """What a process brings back from a run.

    Attributes
    ----------
    sample
        The state at the start, and after each jump or the time of one.
    totals
        ``(f,)`` total energy in eV of a run at constant energy; else None.
    timed_ps, wall_s, cpu_s
        What was timed: all but the first step.
    stopped
        When, by which check and why the run stopped; None if it did not.
    guard
        What became of the jumps of all molecules; None without guards.
    """

    sample: Sample
    totals: NDArray[np.float64] | None
    timed_ps: float
    wall_s: float
    cpu_s: float
    stopped: dict[str, Any] | None
    guard: dict[str, Any] | None

    def speed(self, clock: str = "wall_s") -> float | None:
        """Return simulated ps per second of a clock; None if nothing was timed."""
        return self.timed_ps / getattr(self, clock) if self.timed_ps else None


def load_models(settings: Settings) -> tuple[Propagator, ForceModel]:
    """Load the propagator and the force field it is compared with.

    Raises
    ------
    ConfigError
        If the propagator cannot jump so far.
    """
    from mlmd_calc import Potential, load_propagator

    propagator = load_propagator(settings.model, device=settings.device)
    propagator.strides.check(settings.stride_fs)
    own: ForceModel | None = getattr(propagator, "potential", None)
    if own is not None and settings.potential is None:
        return propagator, own
    forces = Potential(settings.potential, device=settings.device)
    if own is not None:
        propagator = load_propagator(settings.model, device=settings.device, potential=forces)
    return propagator, forces


def relaxed_state(molecule: str, settings: Settings) -> State:
    """Build a molecule and move it to the nearest minimum of the force field.

    Only conservative forces have a minimum; with others the geometry stays that of RDKit.
    """
    from mlmd_calc import MDETCalculator, Potential
    from mlmd_calc.cli.job import relax
    from mlmd_calc.cli.structure_input import load_structure

    atoms = load_structure(molecule, seed=settings.seed)
    _, forces = load_models(settings)
    assert isinstance(forces, Potential)
    if forces.conservative:
        atoms.calc = MDETCalculator(forces.model, device=settings.device, **forces.options)
        relax(atoms)
    return state_from_ase(atoms)


def warm_state(state: State, settings: Settings) -> State:
    """Give a molecule at its minimum velocities from which it settles at the temperature.

    Half of the kinetic energy of vibrations becomes potential energy, so they get twice as much.
    """
    rng = np.random.default_rng(settings.seed)
    drawn = replace(state, velocities=draw_velocities(state, settings.temperature_K, rng))
    rigid = rigid_velocities(drawn, rigid_basis(drawn))
    return replace(drawn, velocities=rigid + np.sqrt(2.0) * (drawn.velocities - rigid))


def replica_states(state: State, reference: Sample, settings: Settings) -> list[State]:
    """Draw starts of the replicas: frames of the reference, evenly spread, with new velocities."""
    rng = np.random.default_rng([settings.seed, settings.replicas])
    frames = np.linspace(0, len(reference) - 1, settings.replicas).round().astype(int)
    return [
        replace(
            state,
            positions=reference.positions[frame, 0],
            velocities=draw_velocities(state, settings.temperature_K, rng),
        )
        for frame in frames
    ]


def make_loop(name: str, states: Sequence[State], settings: Settings, folder: Path) -> JumpLoop:
    """Set up a run of `RUNS`."""
    propagator, forces = load_models(settings)
    rng = np.random.default_rng([settings.seed, RUNS.index(name)])
    rejected = folder / "rejected.extxyz"
    unguarded = replace(Guard.off(), frames_file=rejected)
    if name in (FORCES, FORCE_REPLICAS):
        return JumpLoop(
            states,
            VerletPropagator(forces, TIMESTEP_FS),
            TIMESTEP_FS,
            thermostat=settings.thermostat,
            # Forces conserve what corrections restore; turning molecules would cost a second call.
            corrections=Corrections.none(),
            guard=unguarded,
            rng=rng,
        )
    guarded = name != UNGUARDED
    return JumpLoop(
        states,
        propagator,
        settings.stride_fs,
        thermostat=None if name == NVE else settings.thermostat,
        corrections=Corrections(rescale_energy=name == NVE),
        guard=Guard(last="stop", frames_file=rejected) if guarded else unguarded,
        forces=forces if guarded else None,
        rng=rng,
    )


def simulate(name: str, states: Sequence[State], jumps: int, settings: Settings) -> Run:
    """Do a run in this process.

    Parameters
    ----------
    name
        One of `RUNS`.
    states
        Where the molecules start.
    jumps
        How many jumps to make, or force-based steps that take as long.
    settings
        What is measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _simulate(make_loop(name, states, settings, Path(folder)), name, jumps, settings)


def _simulate(loop: JumpLoop, name: str, jumps: int, settings: Settings) -> Run:
    per_frame = max(1, round(settings.stride_fs / loop.stride_fs))
    frames, timings, stopped = [loop.states], [], None
    # Drawn by hand, because a thread that does it would take time from what is measured.
    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as progress:
        bar, drawn = progress.add_task(name, total=jumps * per_frame), 0.0
        while loop.step < jumps * per_frame and stopped is None:
            wall, cpu = time.perf_counter(), time.process_time()
            stopped = advance(loop)
            timings.append((time.perf_counter() - wall, time.process_time() - cpu))
            if stopped is None and loop.step % per_frame == 0:
                frames.append(loop.states)
            if wall > drawn + _REFRESH_S:
                progress.update(bar, completed=loop.step, refresh=True)
                drawn = wall
    wall_s, cpu_s = np.sum(timings[1 : loop.step] or [(0.0, 0.0)], axis=0)
    timed_fs = max(0, loop.step - 1) * loop.stride_fs * len(loop.states)
    return Run(
        sample=Sample.from_states(frames),
        totals=_totals(frames, loop) if name == NVE else None,
        timed_ps=timed_fs / units.FS_PER_PS,
        wall_s=float(wall_s),
        cpu_s=float(cpu_s),
        stopped=stopped,
        guard=_interventions(loop) if loop.setup.guard.checks is None else None,
    )


def _interventions(loop: JumpLoop) -> dict[str, Any]:
    """Count jumps that were made, those accepted at the first try, and interventions."""
    made = loop.step * len(loop.states)
    touched = {(event.step, event.molecule) for event in loop.events if event.step < loop.step}
    return {
        "jumps": made,
        "accepted_at_first_try": made - len(touched),
        "actions": dict(loop.events.counts()),
        "checks": dict(loop.events.counts("check")),
    }


def advance(loop: JumpLoop) -> dict[str, Any] | None:
    """Do one step; say why if that was not possible.

    Raises
    ------
    InputError
        If the models cannot take the molecule.
    """
    try:
        if loop.advance():
            return None
        reason = str(loop.stopped)
    except (InputError, PredictionError) as error:
        if loop.step == 0 and isinstance(error, InputError):
            raise
        reason = str(error)
    time_ps = loop.states[0].time / units.FS_PER_PS
    last = loop.events[-1] if len(loop.events) else None
    if last is None or last.step != loop.step or last.action not in ("raise", "stop"):
        return {"time_ps": time_ps, "molecule": None, "check": None, "reason": reason}
    found = {"molecule": last.molecule, "check": last.check, "reason": last.reason}
    return {"time_ps": time_ps, **found}


def _totals(frames: Sequence[Sequence[State]], loop: JumpLoop) -> NDArray[np.float64]:
    """Total energies of the first molecule; after the first frame the loop knows them."""
    assert loop.forces is not None
    first = loop.forces.evaluate([frames[0][0].structure], ("energy",))[0].energy
    potential = [first, *(states[0].energy for states in frames[1:])]
    kinetic = [states[0].kinetic_energy for states in frames]
    return np.array(potential, dtype=np.float64) + np.array(kinetic)


def measure(molecule: str, settings: Settings) -> dict[str, Run]:
    """Do all runs of a molecule."""
    jumps = round(settings.duration_ps * units.FS_PER_PS / settings.stride_fs)
    if jumps < 2:
        raise ConfigError(
            f"a duration of {settings.duration_ps:g} ps is less than two jumps of "
            f"{settings.stride_fs:g} fs; give a longer one"
        )
    relaxed = in_fresh_process(relaxed_state, molecule, settings)
    warm = warm_state(relaxed, settings)
    runs = {FORCES: in_fresh_process(simulate, FORCES, [warm], jumps, settings)}
    reference = runs[FORCES].sample.without_first(EQUILIBRATION)
    settled = replace(
        relaxed, positions=reference.positions[-1, 0], velocities=reference.velocities[-1, 0]
    )
    replicas = replica_states(relaxed, reference, settings)
    for name in RUNS[1:]:
        many = name in (REPLICAS, FORCE_REPLICAS)
        count = max(FEWEST_JUMPS, round(jumps / settings.replicas)) if many else jumps
        states = replicas if many else [settled]
        runs[name] = in_fresh_process(simulate, name, states, count, settings)
    return runs


def coordinates_of(runs: dict[str, Run]) -> InternalCoordinates:
    """Bonds and torsions of the relaxed molecule, with which the force-based run begins."""
    start = runs[FORCES].sample
    return InternalCoordinates.of(ase.Atoms(start.numbers, start.positions[0, 0]))


def report_of(runs: dict[str, Run]) -> dict[str, Any]:
    """Summarise the runs of a molecule."""
    coordinates = coordinates_of(runs)
    reference = runs[FORCES].sample.without_first(EQUILIBRATION)
    floor = divergence_floor(coordinates, reference) if len(reference) > 1 else None
    return {
        "n_atoms": len(reference.numbers),
        "speedup": {
            f"{one} / {other}": {
                clock: _ratio(runs[one].speed(clock), runs[other].speed(clock))
                for clock in ("wall_s", "cpu_s")
            }
            for one, other in RATIOS
        },
        "floor_bits": None if floor is None else asdict(floor),
        "runs": {
            name: {
                "time_ps": float(run.sample.times_fs[-1]) / units.FS_PER_PS,
                "replicas": run.sample.positions.shape[1],
                "ps_per_s": run.speed(),
                "wall_s": run.wall_s,
                "cpu_s": run.cpu_s,
                "stopped": run.stopped,
                "guard": run.guard,
                "energy": None if run.totals is None else energy_changes(run),
                **summarise_ensemble(
                    coordinates, run.sample, reference, bond_limit=Bonding().limit
                ),
            }
            for name, run in runs.items()
        },
    }


def energy_changes(run: Run) -> dict[str, float | None]:
    """Largest change and drift of the total energy of a run at constant energy."""
    assert run.totals is not None
    change = np.abs(run.totals - run.totals[0]).max()
    per_atom = run.totals / (len(run.sample.numbers) * units.MEV)
    times = run.sample.times_fs / units.FS_PER_PS
    return {
        "largest_relative_change": float(change / abs(run.totals[0])),
        "largest_change_meV_per_atom": float(np.abs(per_atom - per_atom[0]).max()),
        "drift_meV_per_atom_per_ps": fit_drift(times, per_atom).slope if len(times) > 1 else None,
    }


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report for reading."""
    where, settings = report["environment"], report["settings"]
    for row in report["molecules"]:
        console.print(result_table(row))
        for name, ratio in row["speedup"].items():
            wall, cpu = (_number(ratio[clock], ".2f") for clock in ("wall_s", "cpu_s"))
            console.print(f"{name}: {wall} times as many ps per s of wall time, {cpu} of CPU time")
        for name, run in row["runs"].items():
            if run["stopped"]:
                stop = run["stopped"]
                console.print(f"{name}: stopped at {stop['time_ps']:.4g} ps: {stop['reason']}")
    console.print(
        f"\n{where['cpu']} ({where['cores']} cores, load {where['load_average_1min']:.1f}), torch "
        f"{where['torch']}, one thread, device {settings['device']}. {settings['model']}: jumps of "
        f"{settings['stride_fs']:g} fs, {settings['temperature_K']:g} K, "
        f"{settings['friction_per_ps']:g}/ps.\n"
        "ps per s: of all replicas together, per second of wall time. Bond change: the largest. "
        "Bits: Jensen-Shannon divergence from the distributions of the force-based run, mean and "
        "worst of the coordinates; in its own column that of its halves, which is the floor. "
        "Energy change: the largest, relative to the total energy. Energy drift: meV/atom/ps."
    )


def result_table(row: dict[str, Any]) -> Table:
    """Lay the report on a molecule out for reading."""
    unseen = ", held out of the training" if row["held_out"] else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        title=f"{row['molecule']}, {row['n_atoms']} atoms{unseen}",
    )
    table.add_column(no_wrap=True)
    for name, run in row["runs"].items():
        table.add_column(name.replace("replicas", f"{run['replicas']} replicas"), justify="right")
    for label, cells in _rows(row):
        table.add_row(label, *cells)
    return table


def _rows(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    runs = list(row["runs"].values())
    divergences = [run["divergence_bits"] for run in runs]
    divergences[0] = row["floor_bits"]
    rows = [
        ("simulated, ps", [f"{run['time_ps']:.3g}" for run in runs]),
        ("ps per s", [_number(run["ps_per_s"], ".3g") for run in runs]),
    ]
    for group in runs[0]["temperature_K"]:
        label = "T, K" if group == ALL_ATOMS else f"T of {group}, K"
        rows.append((label, [_mean(run["temperature_K"][group]) for run in runs]))
    rows.append(("bond change, Å", [_number(r["largest_bond_change_A"], ".2f") for r in runs]))
    rows.append(("broken", [str(run["broken_molecules"]) for run in runs]))
    for kind in ("bonds", "torsions"):
        found = [[] if bits is None else list(bits[kind].values()) for bits in divergences]
        for label, reduce in ((f"{kind}, bits", np.mean), ("worst", np.max)):
            rows.append((label, [f"{reduce(v):.3f}" if v else "" for v in found]))
    for key, label in _COUNTS.items():
        rows.append((label, [_count(run["guard"], key) for run in runs]))
    for key, label in _ENERGIES.items():
        values = ["" if r["energy"] is None else _number(r["energy"][key], ".2g") for r in runs]
        rows.append((label, values))
    return rows


_COUNTS: Final = {
    "jumps": "jumps made",
    "accepted_at_first_try": "at first try",
    "redraw": "drawn again",
    "shorter": "halved",
    "fallback": "by forces",
}
_ENERGIES: Final = {
    "largest_relative_change": "energy change",
    "drift_meV_per_atom_per_ps": "energy drift",
}


def _count(guard: dict[str, Any] | None, key: str) -> str:
    return "" if guard is None else str(guard.get(key, guard["actions"].get(key, 0)))


def _mean(mean: dict[str, Any]) -> str:
    error = mean["standard_error"]
    return f"{mean['value']:.0f}" + ("" if error is None else f" ± {error:.0f}")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def draw(molecule: str, runs: dict[str, Run], settings: Settings, folder: Path) -> None:
    """Draw distributions and temperatures of the runs of a molecule."""
    name = "".join(c if c.isalnum() else "-" for c in Path(molecule).stem)
    title = f"{molecule}: jumps of {settings.stride_fs:g} fs"
    coordinates = coordinates_of(runs)
    shown = {key: run.sample.without_first(EQUILIBRATION) for key, run in runs.items()}
    lengths = {key: coordinates.bond_lengths(sample) for key, sample in shown.items()}
    plot_distributions(lengths, folder / f"{name}-bonds.png", title, unit="Å")
    if coordinates.torsions:
        angles = {
            key: {
                torsion: np.rad2deg(values)
                for torsion, values in coordinates.torsion_angles(sample).items()
            }
            for key, sample in shown.items()
        }
        path = folder / f"{name}-torsions.png"
        plot_distributions(angles, path, title, unit="degrees", limits=(-180.0, 180.0))
    temperatures = {
        key: (run.sample.times_fs / units.FS_PER_PS, kinetic_temperatures(run.sample).mean(axis=1))
        for key, run in runs.items()
    }
    path = folder / f"{name}-temperature.png"
    plot_temperatures(temperatures, path, title, temperature_K=settings.temperature_K)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="mlmd bench jump",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--molecule", action="append", help="as for mlmd run; may be repeated (ethanol isobutane)")
    add("--model", default=MODEL, help=f"propagator ({MODEL})")
    add("--potential", help="force field (that of the propagator, else the default)")
    add("--jump", type=float, metavar="FS", help="length of a jump (what the model recommends)")
    add("--friction", type=float, metavar="PER_PS", help="(what the model recommends, or 1)")
    add("--temperature", type=float, default=300.0, metavar="K", help="(300)")
    add("--duration", type=float, default=1.0, metavar="PS", help="of each run (1)")
    add("--replicas", type=int, default=64, help="(64)")
    add("--seed", type=int, default=0, help="(0)")
    add("--device", default="cpu", help="cpu, cuda or auto (cpu)")
    add("--json", action="store_true", help="write JSON instead of tables")
    add("--plots", type=Path, metavar="DIR", help="folder for pictures")
    arguments = parser.parse_args()
    if not PROC.is_dir():
        parser.error(f"the processor's name is read from {PROC}, which only Linux has")
    if arguments.replicas < 1:
        parser.error(f"--replicas {arguments.replicas}: at least one is needed")
    return arguments


def settings_of(arguments: argparse.Namespace, card: ModelCard) -> Settings:
    """Return the settings of the command line, with the jump that the model card recommends.

    Raises
    ------
    ConfigError
        If none is given or recommended, or it is not positive.
    """
    stride = card.recommended.get("stride_fs") if arguments.jump is None else arguments.jump
    if stride is None:
        raise ConfigError(f"the card of {arguments.model!r} recommends no stride; give --jump")
    if not stride > 0.0:
        raise ConfigError(f"--jump {stride:g} fs; jumps must be longer than nothing")
    friction = arguments.friction
    if friction is None:
        friction = card.recommended.get("friction_per_ps", 1.0)
    return Settings(
        model=arguments.model,
        potential=arguments.potential,
        device=arguments.device,
        stride_fs=float(stride),
        friction_per_ps=float(friction),
        temperature_K=arguments.temperature,
        duration_ps=arguments.duration,
        replicas=arguments.replicas,
        seed=arguments.seed,
    )


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all molecules, drawing pictures on the way if they are wanted."""
    card = load_any_model(arguments.model, device="cpu").card
    settings = settings_of(arguments, card)
    held_out = card.recipe.get("held_out_molecules", [])
    rows = []
    for molecule in arguments.molecule or MOLECULES:
        runs = measure(molecule, settings)
        unseen = molecule in held_out
        rows.append({"molecule": molecule, "held_out": unseen, **report_of(runs)})
        if arguments.plots is not None:
            draw(molecule, runs, settings, arguments.plots)
    return {
        "benchmark": "jump",
        "environment": environment(),
        "threads": 1,
        "settings": asdict(settings),
        "molecules": rows,
    }


def main() -> int:
    """Run the benchmark from the command line."""
    arguments = read_arguments()
    try:
        report = benchmark(arguments)
    except MLMDError as error:
        sys.stderr.write(f"mlmd: {error}\n")
        return 1
    if arguments.json:
        sys.stdout.write(json.dumps(report, indent=2, allow_nan=False) + "\n")
    else:
        show(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
