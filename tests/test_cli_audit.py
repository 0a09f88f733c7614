"""`mlmd audit` on calculators and propagators of other people, and on the default model."""

import json
import re

import pytest
from typer.testing import CliRunner

from mlmd_calc.cli.commands import app
from mlmd_calc.errors import ConfigError

WATER = ["H2O", "--quick"]
ENERGIES = {"energy against work", "rotation of the energy", "energy drift at Δt → 0"}


def audit(*arguments):
    """What the command prints; its errors are raised."""
    result = CliRunner().invoke(app, ["audit", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def verdicts(*arguments):
    """Verdict of each measurement of the only molecule."""
    (molecule,) = json.loads(audit(*arguments, "--json"))["molecules"].values()
    return {one["name"]: one["verdict"] for one in molecule["measurements"]}


def test_a_calculator_by_import_path(tmp_path):
    """A table, and a page with pictures that refers to nothing else."""
    page = tmp_path / "audit.html"
    printed = audit("audit_systems:WaterSprings", *WATER, "--html", str(page))
    assert "work around closed loops" in printed
    html = page.read_text("utf-8")
    assert html.count('<img alt="') == 5
    assert set(re.findall(r'(?:src|href)="([^,"]*)', html)) == {"data:image/png;base64"}
    assert "energy drift at Δt → 0" in html
    assert "http" not in html


def test_a_calculator_without_energies():
    found = verdicts("audit_systems:OnlyForces", *WATER)
    assert {name for name in ENERGIES if found[name] == "cannot tell"} == ENERGIES
    assert found["work around closed loops"] == "pass"


def test_propagators_by_import_path(tmp_path):
    """What makes one, with a page; one that does not tell its potential needs one."""
    page = tmp_path / "audit.html"
    found = verdicts("audit_systems:heating", *WATER, "--stride", "4", "--html", str(page))
    assert found["heating by jumps"] == "fail"
    assert found["flight of the centre of mass"] == "pass"
    assert "Energy changes by single jumps" in page.read_text("utf-8")
    with pytest.raises(ConfigError, match="--potential"):
        audit("audit_systems:Secretive", *WATER)
    found = verdicts("audit_systems:Secretive", *WATER, "--potential", "audit_systems:WaterSprings")
    assert found["log |det J|"] == "pass"


def test_default_model_fails_nowhere(tmp_path):
    page = tmp_path / "audit.html"
    found = verdicts("mdet-small-organics", "H2O", "--quick", "--html", str(page))
    assert "Model card of mdet-small-organics" in page.read_text("utf-8")
    # A first look is too short for temperatures.
    told = {name for name in found if not name.startswith("temperature")}
    assert {found[name] for name in told} == {"pass"}, found
    assert "fail" not in found.values()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit_systems:missing"], "cannot be imported"),
        (["audit_systems:WaterSprings", "--temperature", "inf"], "temperature_K=inf; it must be"),
        (["audit_systems:SPRING"], "is a float; name an ASE calculator"),
        (["audit_systems:springs_of_nothing"], "makes a NoneType; name an ASE calculator"),
        (["audit_systems:WaterSprings", "H2O", "--stride", "4"], "options of propagators"),
        (["audit_systems:WaterSprings", "--dtype", "float32"], "--dtype is an option of MD-ET"),
        (["audit_systems:WaterSprings", "--potential", "x"], "--potential is an option of prop"),
        (
            ["audit_systems:Jumps", "--potential", "audit_systems:Jumps"],
            "is a propagator; name a force field",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        audit(*arguments)
