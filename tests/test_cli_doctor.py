"""`mlmd doctor` tells the truth about complete and broken installations, and never fails itself."""

import importlib.metadata
import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from mlmd_calc import list_models
from mlmd_calc.cli.doctor import doctor

APP = typer.Typer()
APP.command()(doctor)


def examine(*arguments):
    """Run the command; return exit status and report."""
    result = CliRunner().invoke(APP, ["--json", *arguments], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


@pytest.fixture
def hide(monkeypatch):
    """Make packages look as if they were not installed, or (installed=True) were broken."""

    def hide_packages(*names, installed=False):
        for module in list(sys.modules):
            if module.split(".")[0] in (*names, "openmm_bridge"):
                monkeypatch.delitem(sys.modules, module)
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
        if installed:
            return
        known = importlib.metadata.version

        def version(name):
            if name in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return known(name)

        # The package has a function of the name of the module.
        monkeypatch.setattr(sys.modules["mlmd_calc.cli.doctor"], "version", version)

    return hide_packages


def test_report_of_this_installation():
    status, report = examine()
    assert status == 0
    assert report["works"]
    assert all(check["works"] for check in report["core"].values())
    assert report["core"]["torch"]["note"] == importlib.metadata.version("torch")
    assert set(report["models"]) == {card.name for card in list_models()}
    assert all(check["works"] for check in report["models"].values())
    for section in report.values():
        if isinstance(section, dict):
            assert all(check["works"] or check["note"] for check in section.values())
    pytest.importorskip("openmm", reason="openmm is not installed")
    from openmm_bridge import available_backends

    platforms, backends = report["OpenMM platforms"], report["OpenMM back ends"]
    assert platforms["Reference"]["works"]
    assert backends["python"]["works"]
    assert "Reference" in backends["python"]["note"]
    for name, reason in available_backends().unavailable.items():
        assert backends[name] == {"works": False, "note": reason}


def test_without_openmm_the_core_works(hide):
    hide("openmm", "openmmtorch", "openmmml")
    status, report = examine()
    assert status == 0
    openmm = report["optional packages"]["openmm"]
    assert not openmm["works"]
    assert "not installed; pip install 'mlmd[openmm]'" in openmm["note"]
    assert not report["OpenMM"]["engine openmm"]["works"]
    assert "OpenMM platforms" not in report


def test_packages_that_cannot_be_imported_are_told_from_missing_ones(hide):
    hide("openmm", "tblite", installed=True)
    status, report = examine()
    assert status == 0
    note = report["optional packages"]["tblite"]["note"]
    assert note.startswith(importlib.metadata.version("tblite"))
    assert "cannot be imported" in note
    assert "pip install 'mlmd[data]'" in note


def test_a_core_that_does_not_work_is_an_error(monkeypatch):
    def broken(*arguments, **options):
        raise OSError("no such library\nlibgomp.so.1 is missing")

    monkeypatch.setattr("mlmd_calc.calculator.Potential", broken)
    monkeypatch.setattr("mlmd_calc.zoo.list_models", broken)
    status, report = examine()
    assert status == 1
    assert not report["works"]
    assert report["core"]["engine ase"]["note"] == "libgomp.so.1 is missing"
    assert not report["models"]["shipped models"]["works"]


def test_table_shows_every_check(hide):
    hide("openmm", "openmmtorch", "openmmml", "lightning")
    result = CliRunner().invoke(APP, [], catch_exceptions=False)
    assert result.exit_code == 0
    lines = " ".join(result.stdout.split())
    for text in ("engine ase ok", "lightning no not installed; pip install 'mlmd[train]'"):
        assert text in lines
