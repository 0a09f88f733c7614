"""What `mlmd doctor --estimate` says: time and memory of a force call of a size."""

from __future__ import annotations

import os

import typer
from rich.console import Console
from rich.table import Table

from mlmd_calc.cli.tables import print_table
from mlmd_calc.io.files import json_text
from mlmd_calc.wording import counted

_LIBRARIES = 0.85e9
"""Bytes of Python with torch and numba."""


def show_estimate(atoms: int, model: str | None, *, as_json: bool) -> None:
    """Estimate force calls of all kinds and print them."""
    import torch

    from mlmd_calc.potential import Potential
    from mlmd_calc.potential.estimate import estimate
    from mlmd_calc.potential.options import FORCE_MODES
    from mlmd_calc.potential.prediction import has_force_head
    from mlmd_calc.zoo import load_model

    loaded = load_model(model, device="cpu")
    config = loaded.network.config
    rows = []
    with Console(stderr=True).status("trying smaller molecules, some ten seconds"):
        for forces in FORCE_MODES:
            if forces == "direct" and not has_force_head(config):
                continue
            for dtype in ("float64", "float32"):
                potential = Potential(loaded, device="cpu", forces=forces, dtype=dtype)
                cost = estimate(potential, atoms)
                rows.append({"forces": forces, "dtype": dtype, **cost._asdict()})
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    threads = torch.get_num_threads()
    report = {
        "atoms": atoms,
        "model": loaded.card.name,
        "threads": threads,
        "memory_of_machine": machine,
        "rows": rows,
    }
    if as_json:
        typer.echo(json_text(report))
        return
    table = Table(
        "forces",
        "precision",
        "time",
        "memory",
        "",
        box=None,
        title=(
            f"One force call of {counted(atoms, 'atom')}, {loaded.card.name}, "
            f"{counted(threads, 'thread')}"
        ),
        caption=(
            "Estimates from smaller molecules on this machine as busy as it is, to within a factor "
            f"of two in time; memory with Python and its libraries. The machine has "
            f"{machine / 2**30:.0f} GiB."
        ),
    )
    for row in rows:
        memory = row["bytes"] + _LIBRARIES
        table.add_row(
            row["forces"],
            row["dtype"],
            f"{row['seconds']:.3g} s",
            f"{memory / 2**30:.1f} GiB",
            "" if memory < 0.9 * machine else "more than there is",
        )
    print_table(table)
