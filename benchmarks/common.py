"""What benchmarks have in common: the machine they run on, fresh processes, and how they report."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from rich.console import Console, RenderableType

PROC: Final = Path("/proc")


def environment(*packages: str) -> dict[str, Any]:
    """Versions, processor and load of this machine; also the versions of further packages."""
    import torch

    cpuinfo = PROC / "cpuinfo"
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load_average_1min": os.getloadavg()[0],
        "torch_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("mlmd", "torch", "numpy", "ase", *packages)},
    }


def deliver(
    report: dict[str, Any],
    as_json: bool,
    table: Callable[[dict[str, Any]], RenderableType],
    width: int | None = None,
) -> None:
    """Write a report as JSON, or print the table that a function makes of it."""
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        Console(width=width).print(table(report))


def start_worker() -> None:
    """Restrict this process to one thread and load what takes long to load."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    import torch

    torch.set_num_threads(1)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new interpreter with one thread.

    Raises
    ------
    BrokenProcessPool
        If the process dies, which for these sizes means that memory ran out.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=start_worker) as pool:
        return pool.submit(function, *arguments).result()


def proc_bytes(file: str, key: str) -> int:
    """Read a value in bytes from a file of ``/proc`` that lists "key: value kB"."""
    lines = (PROC / file).read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
