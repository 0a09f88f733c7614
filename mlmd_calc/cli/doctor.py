"""`mlmd doctor`: what works in this installation, why the rest does not, and what to install."""

from __future__ import annotations

import importlib
import logging
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlmd_calc.cli.estimate import show_estimate
from mlmd_calc.cli.report import Json
from mlmd_calc.io.files import json_text

_CORE: Final = ("numpy", "scipy", "ase", "torch", "safetensors")
"""Packages that nothing works without."""

_EXTRAS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "openmm": ("openmm", "molecular dynamics in OpenMM"),
        "openmmtorch": ("openmm", "the OpenMM back ends pytorch and torchscript"),
        "openmmml": ("openmm", "mixed systems, with MLPotential('mdet')"),
        "rdkit": ("data", "molecules from SMILES"),
        "tblite": ("data", "labels from GFN2-xTB"),
        "lightning": ("train", "training"),
        "mdtraj": ("dcd", "DCD and XTC files"),
    }
)
"""Optional package → the extra of this distribution that installs it, and what it is for."""

_PLATFORMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Reference": "",
        "CPU": "",
        "CUDA": "pip install 'openmm[cuda12]' where there is an NVIDIA GPU",
        "OpenCL": "install an OpenCL driver, e.g. apt install pocl-opencl-icd",
        "HIP": "pip install 'openmm[hip6]' where there is an AMD GPU",
    }
)
"""Platform of OpenMM → what to do where it is missing."""

_MOLECULE: Final = "CH4"


@dataclass(frozen=True)
class Check:
    """Whether one thing works.

    Attributes
    ----------
    works
        Whether it does.
    note
        Its version or what was found; if it does not work, why and what to do.
    """

    works: bool
    note: str


def doctor(
    as_json: Json = False,
    estimate: Annotated[
        int | None,
        typer.Option(
            help="Say instead what time and memory a force call of so many atoms takes.", min=1
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model of --estimate; the default model if left out.")
    ] = None,
) -> None:
    """Say what works here and what to install for the rest.

    Exit status 0 if the models can be used with ASE.
    """
    if estimate is not None:
        show_estimate(estimate, model, as_json=as_json)
        return
    if model is not None:
        raise typer.BadParameter("--model belongs to --estimate N")
    with Console(stderr=True).status("trying everything, about half a minute"), _quiet():
        sections = examine()
    works = all(check.works for check in sections["core"].values())
    if as_json:
        found = {
            section: {name: asdict(check) for name, check in checks.items()}
            for section, checks in sections.items()
        }
        typer.echo(json_text({"works": works, **found}))
    else:
        _print(sections)
    raise typer.Exit(0 if works else 1)


def examine() -> dict[str, dict[str, Check]]:
    """Check everything, section by section."""
    core = {
        "python": Check(True, platform.python_version()),
        "mlmd": _check(partial(version, "mlmd")),
        **{name: _package(name) for name in _CORE},
        "engine ase": _check(partial(_run_engine, "ase")),
    }
    return {
        "core": core,
        "optional packages": {name: _package(name) for name in _EXTRAS},
        "devices": {"cpu": _check(_cpu), "cuda": _check(_cuda)},
        "models": _models(),
        **_openmm(),
    }


def _check(probe: Callable[[], str]) -> Check:
    """Try something; whatever goes wrong in it is the answer."""
    try:
        return Check(True, probe())
    except Exception as error:
        # A broken library may raise anything, and what was wrong is in the last line.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Check(False, lines[-1])


def _package(name: str) -> Check:
    """Import a package and return its version."""
    extra, purpose = _EXTRAS.get(name, ("", ""))
    install = f"pip install 'mlmd[{extra}]', for {purpose}" if extra else "pip install mlmd"
    try:
        number = version(name)
    except PackageNotFoundError:
        return Check(False, f"not installed; {install}")
    check = _check(partial(_import, name))
    note = number if check.works else f"{number} cannot be imported: {check.note}; {install}"
    return Check(check.works, note)


def _import(name: str) -> str:
    if name == "openmmtorch":
        # It needs some care before it is imported.
        from openmm_bridge.backends import openmmtorch_module

        openmmtorch_module()
    else:
        importlib.import_module(name)
    return ""


def _cpu() -> str:
    import torch

    return f"torch threads: {torch.get_num_threads()}"


def _cuda() -> str:
    import torch

    if torch.cuda.is_available():
        from mlmd_calc.models.cuda_graphs import graphs_work

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        graphs = "CUDA graphs work"
        if not graphs_work(torch.device("cuda")):
            graphs = "CUDA graphs do not work, so device='auto' leaves small molecules to the CPU"
        return f"{', '.join(names)}; {graphs}"
    if torch.version.cuda is None:
        raise RuntimeError("the installed torch is made without CUDA")
    raise RuntimeError(f"torch (for CUDA {torch.version.cuda}) finds no GPU or no driver")


def _models() -> dict[str, Check]:
    """Load every shipped model."""
    try:
        from mlmd_calc.zoo import list_models

        names = [card.name for card in list_models()]
    except Exception as error:
        return {"shipped models": Check(False, str(error))}
    return {name: _check(partial(_load, name)) for name in names}


def _load(model: str) -> str:
    from mlmd_calc.zoo import load_any_model

    return f"{load_any_model(model, device='cpu').card.parameters:,} parameters"


def _run_engine(engine: str, **options: str) -> str:
    """Do two steps of the default model in an engine, as `mlmd run` does them."""
    from ase.build import molecule

    from mlmd_calc.calculator import MDETCalculator
    from mlmd_calc.cli.job import run_engine
    from mlmd_calc.md import Engine, MDSettings, Run

    atoms = molecule(_MOLECULE)
    atoms.calc = MDETCalculator(device="cpu")
    chosen = run_engine(Engine(engine), **options)
    with (
        tempfile.TemporaryDirectory() as folder,
        Run.start(atoms, Path(folder) / "run", MDSettings(), engine=chosen) as simulation,
    ):
        outcome = simulation.run(2)
    if outcome.verdict != "completed":
        raise RuntimeError(outcome.reason)
    return f"computes {_MOLECULE} with the default model"


def _openmm() -> dict[str, dict[str, Check]]:
    """Check platforms, back ends and the OpenMM-ML potential."""
    try:
        import openmm

        from openmm_bridge.backends import BACKENDS, available_backends

        backends = available_backends()
        platforms = _platforms(openmm)
    except Exception as error:
        hint = "pip install 'mlmd[openmm]'"
        return {"OpenMM": {"engine openmm": Check(False, f"{error}; {hint}")}}
    # Forces like ours are computed for the CPU platform by the Reference platform.
    working = [name for name, check in platforms.items() if check.works and name != "CPU"]
    return {
        "OpenMM platforms": platforms,
        "OpenMM back ends": {
            name: Check(False, backends.unavailable[name])
            if name in backends.unavailable
            else _check(partial(_backend, name, working))
            for name in BACKENDS
        },
        "OpenMM-ML": {"MLPotential('mdet')": _check(_mlpotential)},
    }


def _platforms(openmm: Any) -> dict[str, Check]:
    """Check the platforms of OpenMM."""
    count = openmm.Platform.getNumPlatforms()
    loaded = [openmm.Platform.getPlatform(index).getName() for index in range(count)]
    failures = "\n".join(openmm.Platform.getPluginLoadFailures())
    found = {}
    for name in dict.fromkeys([*_PLATFORMS, *loaded]):
        hint = _PLATFORMS.get(name, "")
        if name in loaded:
            found[name] = _check(partial(_empty_context, openmm, name))
        else:
            failure = re.search(rf"libOpenMM{name}\.\w+: (.*)", failures)
            reason = failure[1] if failure else "not part of this installation"
            found[name] = Check(False, f"{reason}; {hint}")
    return found


def _empty_context(openmm: Any, name: str) -> str:
    """Move one particle on a platform."""
    system = openmm.System()
    system.addParticle(1.0)
    chosen = openmm.Platform.getPlatformByName(name)
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator, chosen)
    context.setPositions([openmm.Vec3(0, 0, 0)])
    integrator.step(1)
    return ""


def _backend(name: str, platforms: list[str]) -> str:
    """Run a back end on every platform that works; return on which it does."""
    checks = {
        where: _check(partial(_run_engine, "openmm", platform=where, backend=name))
        for where in platforms
    }
    working = ", ".join(where for where, check in checks.items() if check.works)
    failed = "; ".join(f"not on {w}: {c.note}" for w, c in checks.items() if not c.works)
    if not working:
        raise RuntimeError(failed)
    return "; ".join(filter(None, (f"works on {working}", failed)))


def _mlpotential() -> str:
    from openmmml import MLPotential

    MLPotential("mdet")
    return "registered"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries say about themselves out of the report."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _print(sections: dict[str, dict[str, Check]]) -> None:
    console = Console()
    table = Table("", "", "", box=None, show_header=False)
    for section, checks in sections.items():
        table.add_row(Text(section, style="bold"))
        for name, check in checks.items():
            mark = Text("ok", "green") if check.works else Text("no", "red")
            table.add_row(Text("  " + name), mark, Text(check.note))
    console.print(table)
