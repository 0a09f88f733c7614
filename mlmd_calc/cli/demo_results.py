"""What `mlmd demo` says of its runs: one picture, a summary, and a table with verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from mlmd_calc.cli.report import SUMMARY_FILE
from mlmd_calc.cli.tables import print_table
from mlmd_calc.io.files import read_json, write_json

if TYPE_CHECKING:
    from mlmd_calc.analysis.demo_picture import DemoFrames
    from mlmd_calc.cli.demo_runs import EthanolRun, PeptideFrames
    from mlmd_calc.md import RunRecord

LABELS: Final = {
    "steps": "0.5 fs steps, ASE",
    "openmm": "0.5 fs steps, OpenMM",
    "jumps": "8 fs jumps, ASE",
    "energy": "recommended: {forces} forces",
    "energy-direct": "as in the paper: {forces} forces",
}
"""What to call each run, in the order they are shown."""

_COLOURS: Final = {"steps": 0, "openmm": 2, "jumps": 1, "energy": 0, "energy-direct": 4}
"""Index of a colour for each method: forces in ASE are blue in all panels."""

_BASINS: Final = ("left-handed", "helical", "extended")
"""Names of what :func:`mlmd_calc.analysis.kinetics.basins` numbers."""

_PICTURE_FILE: Final = "demo.png"


def evaluate(
    out: Path, runs: Mapping[str, EthanolRun], peptide: PeptideFrames | None, notes: list[str]
) -> dict[str, Any]:
    """Draw what was computed and summarise it.

    Parameters
    ----------
    out
        Folder for picture and summary.
    runs
        Runs of ethanol that were done, by their names in `LABELS`.
    peptide
        Frames of the peptide; None if they were left out.
    notes
        Sentences on what was left out, and why.

    Returns
    -------
    dict
        The summary, JSON-able, which is also written to ``summary.json``.
    """
    from mlmd_calc.analysis.demo_picture import DemoRun, plot_demo
    from mlmd_calc.md import read_record

    ordered = {name: runs[name] for name in LABELS if name in runs}
    records = {name: read_record(task.folder) for name, task in ordered.items()}
    rows = [_row(name, task, records[name]) for name, task in ordered.items()]
    frames = panel = None
    if peptide is not None:
        result = read_json(peptide.path)
        frames = _peptide_row(peptide, result)
        panel = _panel(result, frames)
    summary = {
        "model": Path(runs["steps"].calculator["model"]).name,
        "friction_per_ps": runs["steps"].settings.friction_per_ps,
        "runs": rows,
        "peptide": frames,
        "notes": notes,
        "picture": str(out / _PICTURE_FILE),
        "trajectories": [row["trajectory"] for row in [*rows, *([frames] if frames else [])]],
    }
    drawn = [
        DemoRun(row["label"], records[row["run"]], row["ps_per_second"], _COLOURS[row["run"]])
        for row in rows
    ]
    title = f"mlmd demo: ethanol ({summary['model']})"
    if frames is not None:
        title += f" and alanine dipeptide ({frames['model']})"
    plot_demo(drawn, panel, out / _PICTURE_FILE, title)
    write_json(out / SUMMARY_FILE, summary)
    return summary


def _row(name: str, task: EthanolRun, record: RunRecord) -> dict[str, Any]:
    """Summary of one run of ethanol."""
    from mlmd_calc.analysis import summarise
    from mlmd_calc.analysis.verdicts import judge

    end = read_json(task.path)
    summary, verdict = summarise(record), judge(record)
    return {
        "run": name,
        "molecule": "ethanol",
        "label": LABELS[name].format(forces=task.calculator["forces"]),
        "ensemble": task.settings.ensemble.value,
        "engine": task.engine.value,
        "calculator": task.calculator,
        "ended": end["verdict"],
        "step": end["step"],
        "reason": end["reason"],
        "sound": verdict.sound,
        "verdict": verdict.sentence,
        **summary.to_dict(),
        "temperature_error_K": summary.temperature_error,
        "ps_per_second": end["ps_per_second"],
        "jumps": end["jumps"],
        "folder": str(task.folder),
        "trajectory": str(task.trajectory),
    }


def _peptide_row(task: PeptideFrames, result: dict[str, Any]) -> dict[str, Any]:
    """Summary of the frames of the peptide."""
    import numpy as np

    from mlmd_calc.analysis.kinetics import basins

    visited = basins(np.array(result["phi_psi"]))
    return {
        "model": task.model,
        "frames": result["frame"],
        "interval_ps": result["interval_ps"],
        "refused_draws": result["refused"],
        "faults": result["faults"],
        "unsound": result["quality"]["unsound"],
        "basins": {name: float((visited == index).mean()) for index, name in enumerate(_BASINS)},
        "ps_per_second": result["ps_per_second"],
        "folder": str(task.folder),
        "trajectory": str(task.trajectory),
    }


def _panel(result: dict[str, Any], frames: dict[str, Any]) -> DemoFrames:
    import numpy as np

    from mlmd_calc.analysis.demo_picture import DemoFrames

    return DemoFrames(
        np.array(result["phi_psi"]),
        f"Alanine dipeptide, {frames['interval_ps']:g} ps per frame, no forces",
        f"{frames['frames']} frames, {frames['refused_draws']} draws refused",
    )


def print_summary(summary: dict[str, Any]) -> None:
    """Print what :func:`evaluate` returned: a table, and sentences below it."""
    console = Console()
    table = Table(
        *("run", "ps", "T, K", "drift*", "bond, Å**", "ps/s***", "verdict"),
        title=f"Ethanol, {summary['model']}",
        title_justify="left",
    )
    rows = summary["runs"]
    for row, following in zip(rows, [*rows[1:], rows[-1]], strict=True):
        drift, speed = row["energy_drift_meV_per_atom_per_ps"], row["ps_per_second"]
        table.add_row(
            row["label"],
            f"{row['time_ps']:.1f}",
            _temperature(row),
            "" if drift is None else f"{drift:+.2f}",
            f"{row['largest_bond_deviation_A']:.2f}",
            "" if speed is None else f"{speed:#.2g}",
            row["verdict"],
            end_section=following["ensemble"] != row["ensemble"],
        )
    print_table(table)
    console.print(
        f"The upper runs have a thermostat (Langevin, 300 K, {summary['friction_per_ps']:g}/ps), "
        "the lower ones none.\n"
        "*   of the total energy without a thermostat, meV/atom/ps; it should be zero.\n"
        "**  largest change of any bond from its equilibrium length.\n"
        "*** simulated time per second of processor time.",
        highlight=False,
    )
    for sentence in _sentences(summary):
        console.print(sentence, highlight=False, markup=False)


def _temperature(row: dict[str, Any]) -> str:
    """Mean temperature with its standard error."""
    mean, error = row["temperature_K"], row["temperature_error_K"]
    if mean is None:
        return "too few frames"
    return f"{mean['value']:.0f} ± {mean['standard_error'] if error is None else error:.0f}"


def _sentences(summary: dict[str, Any]) -> list[str]:
    """Sentences to print below the table."""
    rows = {row["run"]: row for row in summary["runs"]}
    sentences = [f"{row['label']}: {row['reason']}" for row in rows.values() if row["reason"]]
    slow, fast = rows["steps"]["ps_per_second"], rows["jumps"]["ps_per_second"]
    if slow and fast:
        sentences.append(
            f"Jumps of 8 fs get {fast / slow:.1f} times as far per second as steps of 0.5 fs."
        )
    if summary["peptide"] is not None:
        sentences.append(_of_peptide(summary["peptide"]))
    names = [Path(path).name for path in summary["trajectories"]]
    moving = [name for name in names if name.endswith(".extxyz")]
    places = [f"{', '.join(moving)} (OVITO, ase gui)"]
    places += [f"{name} (PyMOL, VMD, ChimeraX)" for name in names if name not in moving]
    out = Path(summary["picture"]).parent
    return [
        *sentences,
        *summary["notes"],
        f"Picture: {summary['picture']}",
        f"Trajectories in {out}, to be opened in a viewer: {'; '.join(places)}",
        f"All numbers: {out / SUMMARY_FILE}",
    ]


def _of_peptide(frames: dict[str, Any]) -> str:
    """Sentence on the frames of the peptide."""
    from mlmd_calc.cli.sample import describe_faults

    shares = ", ".join(f"{name} {share:.0%}" for name, share in frames["basins"].items())
    return (
        f"Alanine dipeptide, {frames['model']}: {frames['frames']} frames "
        f"{frames['interval_ps']:g} ps apart ({shares}), {frames['ps_per_second']:.0f} ps/s; "
        f"{frames['refused_draws']} further draws were refused{describe_faults(frames['faults'])}."
    )
