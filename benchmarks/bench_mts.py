"""Energy drift and cost of multiple time stepping, against direct and conservative forces.

    python benchmarks/bench_mts.py
    python benchmarks/bench_mts.py --fast bonded --molecules decane --methods conservative 'MTS 8'

Every method starts from the same thermalised state of a molecule and runs at constant energy with
time steps of 0.5 fs: "conservative" and "direct" are velocity Verlet with these forces, "MTS M" is
:class:`mlmd_calc.md.MTSVelocityVerlet` with M steps of cheap forces in one of conservative ones.
The energy is that of the conservative model in all of them. Cost is processor time on one thread,
of the shortest of many blocks of steps, which other load disturbs least; the energies that are
fitted are left out of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import ase
import numpy as np
import torch
from ase.md.verlet import VelocityVerlet
from common import deliver, environment
from rich import box
from rich.table import Table

from mlmd_calc import MDETCalculator, Potential, load_model, units
from mlmd_calc.analysis import Drift, fit_drift
from mlmd_calc.bonded import BondedForceField
from mlmd_calc.bonded.force_field import NETWORK_FRAMES, NETWORK_NEURONS
from mlmd_calc.cli.job import relax
from mlmd_calc.data.molecules import MOLECULES, start_structures
from mlmd_calc.md import MTSLangevin, MTSVelocityVerlet
from mlmd_calc.md.dynamics import draw_momenta, remove_rigid_motion
from mlmd_calc.md.mts import direct_forces
from mlmd_calc.md.settings import Ensemble
from mlmd_calc.propagation import ForceModel
from mlmd_calc.zoo import Model

TIMESTEP_FS: Final = 0.5
TEMPERATURE_K: Final = 300.0
FRICTION_PER_PS: Final = 10.0
SAMPLE_FS: Final = 8.0
"""Time between energies, about."""

DIRECT: Final = "direct"
BONDED: Final = "bonded"
NETWORK: Final = "network"

_MOLECULES: Final = ("ethanol", "aspirin", "decane")
_METHODS: Final = ("conservative", "direct", "MTS 1", "MTS 2", "MTS 4", "MTS 5", "MTS 8")


def thermalised(name: str, model: Model, picoseconds: float, seed: int) -> ase.Atoms:
    """Make a molecule at 300 K that neither moves nor turns as a whole."""
    built = start_structures(MOLECULES[name], 1, seed)
    atoms = ase.Atoms(built.numbers, built.positions[0])
    atoms.calc = MDETCalculator(model, device="cpu", forces="conservative")
    relax(atoms)
    rng = np.random.default_rng(seed)
    draw_momenta(atoms, TEMPERATURE_K, rng)
    dynamics = MTSLangevin(
        atoms,
        4 * TIMESTEP_FS * units.FS,
        inner_steps=4,
        temperature_K=TEMPERATURE_K,
        friction=FRICTION_PER_PS / units.PS,
        rng=rng,
    )
    dynamics.run(round(picoseconds * units.FS_PER_PS / (4 * TIMESTEP_FS)))
    remove_rigid_motion(atoms, Ensemble.NVE, torque_free=True)
    return atoms


def stepper(
    method: str, atoms: ase.Atoms, model: Model, cheap: ForceModel
) -> tuple[Callable[[], Any], float]:
    """Return what does one step of a method, and the length of it in fs."""
    if method in ("conservative", "direct"):
        options = {"dtype": "float32"} if method == "direct" else {}
        atoms.calc = MDETCalculator(model, device="cpu", forces=method, **options)
        return VelocityVerlet(atoms, TIMESTEP_FS * units.FS).step, TIMESTEP_FS
    inner_steps = int(method.removeprefix("MTS "))
    atoms.calc = MDETCalculator(model, device="cpu", forces="conservative")
    length = inner_steps * TIMESTEP_FS
    dynamics = MTSVelocityVerlet(atoms, length * units.FS, cheap, inner_steps=inner_steps)
    return dynamics.step, length


def cheap_forces(name: str, start: ase.Atoms, model: Model, seed: int) -> ForceModel:
    """Return the cheap forces of a molecule."""
    if name == DIRECT:
        return direct_forces(MDETCalculator(model, device="cpu", forces="conservative"))
    if name == BONDED:
        return BondedForceField.fit(start, temperature_K=TEMPERATURE_K, seed=seed)
    if name == NETWORK:
        return BondedForceField.fit(
            start,
            temperature_K=TEMPERATURE_K,
            frames=NETWORK_FRAMES,
            neurons=NETWORK_NEURONS,
            seed=seed,
        )
    return Potential(name, device="cpu", dtype="float32", rotation="none")


def measure(
    method: str, start: ase.Atoms, model: Model, cheap: ForceModel, picoseconds: float
) -> dict[str, Any]:
    """Run one method from a start, and fit the drift of its energy."""
    atoms = start.copy()
    step, length_fs = stepper(method, atoms, model, cheap)
    judge = Potential(model, device="cpu", forces="conservative")
    steps = round(SAMPLE_FS / length_fs)
    sample_ps = steps * length_fs / units.FS_PER_PS
    energies, seconds, temperatures = [], [], []
    for sample in range(round(picoseconds / sample_ps)):
        if sample > 1 and sample % 125 == 1:
            drift = drift_of(energies, sample_ps, len(atoms))
            cost = min(seconds) / sample_ps
            print(
                f"{start.symbols}, {method}: {sample * sample_ps:.1f} ps, {drift.slope:+.3f} "
                f"meV/atom/ps, {cost:.1f} s per ps",
                file=sys.stderr,
                flush=True,
            )
        energy = judge.evaluate([atoms], ("energy",))[0].energy
        assert energy is not None
        energies.append(energy + atoms.get_kinetic_energy())
        temperatures.append(atoms.get_temperature())
        begin = time.process_time()
        for _ in range(steps):
            step()
        seconds.append(time.process_time() - begin)
    drift = drift_of(energies, sample_ps, len(atoms))
    return {
        "method": method,
        "picoseconds": picoseconds,
        "seconds_per_ps": min(seconds) / sample_ps,
        "drift_meV_per_atom_per_ps": drift.slope,
        "fluctuation_meV_per_atom": drift.fluctuation,
        "temperature_K": float(np.mean(temperatures)) * len(atoms) / (len(atoms) - 2),
    }


def drift_of(energies: list[float], sample_ps: float, n_atoms: int) -> Drift:
    """Fit the drift of total energies in eV, in meV per atom and ps."""
    times_ps = sample_ps * np.arange(len(energies))
    return fit_drift(times_ps, np.array(energies) / (n_atoms * units.MEV))


def result_table(report: dict[str, Any]) -> Table:
    """Lay the report out for reading."""
    where = report["environment"]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{report['model']}, 0.5 fs; cheap forces of MTS: {report['fast']}",
        caption=f"{where['cores']} cores, load {where['load_average_1min']:.1f}, one thread",
    )
    for heading in (
        "molecule",
        "atoms",
        "method",
        "ps",
        "drift, meV/atom/ps",
        "about it, meV/atom",
        "T, K",
        "s per ps",
        "cost",
    ):
        table.add_column(heading, justify="left" if heading in ("molecule", "method") else "right")
    for row in report["rows"]:
        cost = row.get("cost")
        table.add_row(
            row["molecule"],
            str(row["n_atoms"]),
            row["method"],
            f"{row['picoseconds']:g}",
            f"{row['drift_meV_per_atom_per_ps']:+.3f}",
            f"{row['fluctuation_meV_per_atom']:.3f}",
            f"{row['temperature_K']:.0f}",
            f"{row['seconds_per_ps']:.1f}",
            "" if cost is None else f"{cost:.2f}×",
        )
    return table


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="name or path; the default model if left out")
    parser.add_argument(
        "--fast",
        default=DIRECT,
        help="cheap forces: direct (the model's force head), bonded (a force field that is fitted "
        "to the molecule), network (a better one), or another model, by name or path",
    )
    parser.add_argument(
        "--molecules", nargs="+", default=list(_MOLECULES), choices=MOLECULES, metavar="NAME"
    )
    parser.add_argument("--methods", nargs="+", default=list(_METHODS))
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--thermalise", type=float, default=1.0, help="ps before")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model, device="cpu")
    rows = []
    for name in arguments.molecules:
        start = thermalised(name, model, arguments.thermalise, arguments.seed)
        cheap = cheap_forces(arguments.fast, start, model, arguments.seed)
        found = [
            measure(method, start, model, cheap, arguments.picoseconds)
            for method in arguments.methods
        ]
        whole = [row["seconds_per_ps"] for row in found if row["method"] == "conservative"]
        for row in found:
            cost = {"cost": row["seconds_per_ps"] / whole[0]} if whole else {}
            rows.append({"molecule": name, "n_atoms": len(start), **row, **cost})
    report = {
        "benchmark": "mts",
        "model": model.card.name,
        "fast": arguments.fast,
        "environment": environment(),
        "rows": rows,
    }
    deliver(report, arguments.json, result_table, width=120)


if __name__ == "__main__":
    main()
