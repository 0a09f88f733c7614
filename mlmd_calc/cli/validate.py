"""`mlmd validate`: run a model beside its reference and say how faithful it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mlmd_calc.analysis.jump_ensemble import ALL_ATOMS
from mlmd_calc.cli import shared_options as shared
from mlmd_calc.cli.data_options import Seed
from mlmd_calc.cli.endings import raise_on_signal
from mlmd_calc.cli.report import Html, Json, Report
from mlmd_calc.cli.validate_spread import validate_spread
from mlmd_calc.errors import ConfigError
from mlmd_calc.io.progress import LoggedProgress
from mlmd_calc.wording import counted

if TYPE_CHECKING:
    import ase

    from mlmd_calc.analysis.jump_fidelity import Fidelity, FidelitySettings, RunFidelity
    from mlmd_calc.analysis.statistics import Mean
    from mlmd_calc.data import MoleculeFrames

MOLECULES: Final = (
    "ethanol",
    "isobutane",
    "aspirin",
    "uracil",
    "butane",
    "smiles:CS",
    "smiles:Fc1ccccc1",
)

_FORCE_ROWS: Final = {
    "error_meV_per_A": "orientation-dependent part, meV/Å",
    "magnitude_meV_per_A": "spread of magnitudes, meV/Å",
    "angle_degrees": "angle to the mean, °",
    "antisymmetry": "antisymmetry λ",
    "loop_work_percent": "work around loops, %",
    "replicas": "replicas",
    "broken": "of which broke",
    "first_failure_ps": "the first after, ps",
    "distance_difference": "h(r) from the reference",
    "distance_difference_of_reference_halves": "h(r), halves of the reference",
}

_JUMP_COLUMNS: Final = (
    *("friction /ps", "died", "helped %", "T, K", "by element"),
    *("⟨V⟩ %", "JS, bits", "h(r)", "ξ, 1/ps"),
)
_JUMP_CAPTION: Final = (
    "died: replicas that broke; helped: jumps that were not taken at the first try; T: kinetic "
    "temperature, of all atoms and by element (± ?: the runs are too short to tell); ⟨V⟩: mean "
    "potential energy above the minimum, of force-based dynamics 100; JS: largest Jensen-Shannon "
    "divergence of bonds and torsions; h(r): difference of the distributions of distances; ξ: "
    "friction in 1/ps that keeps each element at its share, positive where jumps heat it"
)

_SHELLS: Final = 4
"""Bonds from an atom within which isomers are told apart."""

app = typer.Typer(help="Run a model beside its reference.", no_args_is_help=True)


@app.callback()
def validate() -> None:
    """Run a model beside its reference and say how faithful it is."""


app.command("spread")(validate_spread)


@app.command("jumps")
def validate_jumps(
    model: Annotated[str, typer.Argument(help="Name or file of a propagator with a force field.")],
    molecules: Annotated[
        list[str] | None,
        typer.Argument(help="Molecules, as for mlmd run. Default: seven small organic ones."),
    ] = None,
    stride: Annotated[
        float | None, typer.Option(help="Length of a jump in fs. Default: the card's.")
    ] = None,
    friction: Annotated[
        list[float] | None,
        typer.Option(
            help="Langevin friction in 1/ps, 0 for constant energy; may be repeated. "
            "(0.5, 1, 2, 5, 10, 20, 0)"
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    duration: Annotated[float, typer.Option(help="Length of each run of jumps in ps.")] = 5.0,
    reference: Annotated[
        float | None,
        typer.Option(help="Length of the force-based runs in ps. Default: that of the jumps."),
    ] = None,
    replicas: Annotated[int, typer.Option(help="Molecules that move side by side.")] = 4,
    seed: Seed = 0,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Compare runs of jumps with force-based runs: temperatures, energies, and single jumps."""
    from mlmd_calc import MDETCalculator, Potential, load_propagator
    from mlmd_calc.analysis.jump_fidelity import FidelitySettings, measure_fidelity
    from mlmd_calc.analysis.jump_plots import plot_mean_temperatures
    from mlmd_calc.cli.job import relax
    from mlmd_calc.cli.structure_input import load_structure
    from mlmd_calc.propagation import state_from_ase
    from mlmd_calc.zoo import load_any_model

    propagator = load_propagator(model, dtype="float64")
    forces = propagator.potential
    if not isinstance(forces, Potential) or not forces.conservative:
        raise ConfigError(
            f"{model!r} brings no force field with an energy to compare it with; choose a "
            "propagator that takes accelerations of a conservative model, like atom-small-organics"
        )
    settings = FidelitySettings(
        stride_fs=stride or propagator.usual_stride_fs(),
        temperature_K=temperature,
        **({} if friction is None else {"frictions_per_ps": tuple(friction)}),
        duration_ps=duration,
        reference_ps=reference,
        replicas=replicas,
        seed=seed,
    )
    console = Console(stderr=True)
    found: dict[str, Fidelity] = {}
    chosen = molecules or list(MOLECULES)
    runs = 2 + len(settings.frictions_per_ps) + (0.0 in settings.frictions_per_ps)
    with raise_on_signal(), LoggedProgress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=runs * len(chosen))
        for name in chosen:
            atoms = load_structure(name, seed=seed)
            atoms.calc = MDETCalculator(forces.model, **forces.options)
            relax(atoms)

            def show(run: str, name: str = name) -> None:
                progress.update(bar, description=f"{name}, {run}")
                progress.advance(bar)

            found[name] = measure_fidelity(
                propagator, forces, state_from_ase(atoms), settings, show
            )
    report = Report(f"Jumps of {model} beside force-based dynamics")
    for name, one in found.items():
        _tell(report, name, one, settings)
        if html is not None:
            labelled = {label: run.temperatures for label, run in _labelled(one)}
            with report.drawing(None) as folder:
                path = folder / f"temperatures of {name.replace('/', ' ')}.png"
                plot_mean_temperatures(labelled, path, name, temperature_K=temperature)
    report.card(load_any_model(model, device="cpu").card)
    numbers = {name: one.to_dict() for name, one in found.items()}
    report.deliver(numbers, as_json, html)


@app.command("forces")
def validate_forces(
    model: Annotated[str, typer.Argument(help="Name, file or run directory of a force field.")],
    molecules: Annotated[
        list[str] | None, typer.Argument(help="Molecules, as for mlmd run. (ethanol)")
    ] = None,
    forces: shared.Forces = None,
    rotation: shared.Rotation = None,
    temperature: Annotated[float, typer.Option(help="K.")] = 500.0,
    duration: Annotated[float, typer.Option(help="Length in ps of the runs that may break.")] = 2.0,
    replicas: Annotated[int, typer.Option(help="Molecules in these runs.")] = 4,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Frames of reference dynamics of these molecules at this temperature, in the "
            "order of time: distances between atoms are compared with theirs."
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    html: Html = None,
) -> None:
    """Symmetry of forces in both precisions, work around loops, time to failure, distances."""
    from mlmd_calc import MDETCalculator
    from mlmd_calc.analysis.force_fidelity import ForceFidelitySettings, measure_force_fidelity
    from mlmd_calc.cli.job import relax
    from mlmd_calc.cli.structure_input import load_structure
    from mlmd_calc.data import read_dataset
    from mlmd_calc.propagation import state_from_ase
    from mlmd_calc.zoo import load_model

    settings = ForceFidelitySettings(temperature, duration, replicas, seed)
    loaded = load_model(model, device="cpu")
    calculators = {
        dtype: MDETCalculator(loaded, dtype=dtype, forces=forces, rotation=rotation, seed=seed)
        for dtype in ("float64", "float32")
    }
    found = {}
    others = None if reference is None else read_dataset([reference])
    console = Console(stderr=True)
    with raise_on_signal(), console.status("") as status:
        for name in molecules or ["ethanol"]:
            atoms = load_structure(name, seed=seed)
            atoms.calc = calculators["float64"]
            compared = None if others is None else _reference_frames(others, atoms, name)
            relax(atoms)

            def show(part: str, name: str = name) -> None:
                status.update(f"{name}, {part}")

            found[name] = measure_force_fidelity(
                {dtype: one.potential for dtype, one in calculators.items()},
                state_from_ase(atoms).structure,
                settings,
                show,
                compared,
            )
    rows = {name: {d: one.to_dict() for d, one in each.items()} for name, each in found.items()}
    report = Report(f"Forces of {loaded.card.name}: symmetry, work, time to failure")
    for name, columns in rows.items():
        table = Table("", *columns, title=name)
        for quantity, label in _FORCE_ROWS.items():
            values = [column[quantity] for column in columns.values()]
            if all(value is None for value in values):
                continue
            table.add_row(label, *("" if value is None else f"{value:.3g}" for value in values))
        report.table(table)
    report.card(loaded.card)
    report.deliver(rows, as_json, html)


def _reference_frames(
    data: list[MoleculeFrames], atoms: ase.Atoms, name: str
) -> NDArray[np.floating]:
    """Frames ``(f, n, 3)`` of the molecule, and of no isomer, among the reference dynamics."""
    from ase import Atoms

    wanted = _environments(atoms)
    found = [
        molecule.positions
        for molecule in data
        if len(molecule.numbers) == len(atoms)
        and _environments(Atoms(molecule.numbers, molecule.positions[0])) == wanted
    ]
    if not found:
        raise ConfigError(
            f"--reference has no frames with the atoms and bonds of {name!r}, only of "
            f"{', '.join(sorted({m.name for m in data}))}; give dynamics of this molecule, such as "
            "mlmd run or mlmd data generate --mode nve writes"
        )
    # Distances of all pairs do not depend on the order of the atoms.
    return np.concatenate(found)


def _environments(atoms: ase.Atoms) -> list[str]:
    """Describe every atom by its bonds and theirs: the same for one molecule in any order."""
    from mlmd_calc.geometry.bonds import find_bonds, neighbour_lists

    neighbours = neighbour_lists(len(atoms), find_bonds(atoms).pairs)
    words = list(atoms.symbols)
    for _ in range(_SHELLS):
        words = [
            f"{word}({','.join(sorted(words[other] for other in own))})"
            for word, own in zip(words, neighbours, strict=True)
        ]
    return sorted(words)


def _labelled(found: Fidelity) -> list[tuple[str, RunFidelity]]:
    """List runs with their friction in 1/ps, those of jumps first."""
    rows = [(f"{f:g}" if f else "NVE", run) for f, run in found.runs.items()]
    references = found.references.items()
    return rows + [(f"forces {f:g}" if f else "forces NVE", run) for f, run in references]


def _mean_text(mean: Mean) -> str:
    error = "?" if math.isnan(mean.standard_error) else f"{mean.standard_error:.0f}"
    return f"{mean.value:.0f} ± {error}"


def _tell(report: Report, name: str, found: Fidelity, settings: FidelitySettings) -> None:
    errors = found.map
    table = Table(
        title=f"{name}: runs of {settings.duration_ps:g} ps, "
        f"{counted(settings.replicas, 'replica')}",
        caption=_JUMP_CAPTION,
    )
    for column in _JUMP_COLUMNS:
        table.add_column(column, justify="right")
    for label, run in _labelled(found):
        means = run.temperatures
        table.add_row(
            label,
            str(run.died),
            f"{run.interventions_percent:.1f}",
            _mean_text(means[ALL_ATOMS]) if means else "",
            ", ".join(f"{k} {mean.value:.0f}" for k, mean in means.items() if k != ALL_ATOMS),
            "" if run.configurational_percent is None else f"{run.configurational_percent:.0f}",
            "" if run.largest_divergence is None else f"{run.largest_divergence:.3f}",
            "" if run.distance_difference is None else f"{run.distance_difference:.3f}",
            ", ".join(f"{k} {xi:+.2f}" for k, xi in run.element_frictions.items()),
        )
    report.table(table)
    if found.reference_halves is not None:
        report.text(f"h(r) of the halves of the force-based run: {found.reference_halves:.3f}")
    report.text(
        f"one jump of {settings.stride_fs:g} fs: comes back to within "
        f"{errors.reversibility_percent:.2g} % of the way, log |det J| "
        f"{errors.log_determinant:.2g}, energy changes by {errors.energy_change_meV:.2g} ± "
        f"{errors.energy_spread_meV:.2g} meV (a Metropolis test accepts "
        f"{errors.acceptance_percent:.0f} %, like a friction of "
        f"{errors.equivalent_friction_per_ps:.2g}/ps, negative if jumps heat), a small deviation "
        f"from the minimum grows by {errors.growth_per_ps:.2g}/ps\n"
    )
