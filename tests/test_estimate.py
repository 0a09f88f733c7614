"""Time and memory of a force call before one tries it."""

import json

import pytest
import typer
from toy_models import toy_model
from typer.testing import CliRunner

from mlmd_calc import Potential
from mlmd_calc.cli.doctor import doctor
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.mdet import compiled
from mlmd_calc.potential import estimate as estimates
from mlmd_calc.potential.estimate import estimate

APP = typer.Typer()
APP.command()(doctor)


@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_memory_of_large_molecules_follows_from_smaller_ones(forces, monkeypatch):
    # Smaller than real ones, so that the larger one is soon tried as well.
    for module in (compiled, estimates):
        monkeypatch.setattr(module, "KEPT_WEIGHTS", 4 * 12**3)
    potential = Potential(toy_model(), device="cpu", forces=forces)
    cost = estimate(potential, 80)
    assert max(cost.tried) < 30
    _, memory = estimates._try(potential, 80)
    assert cost.bytes == pytest.approx(memory, rel=0.05)
    assert cost.seconds > 0.0


def test_small_molecules_are_tried_themselves():
    potential = Potential(toy_model(), device="cpu", forces="direct", n_rotations=3)
    cost = estimate(potential, 9)
    assert cost.tried == (9,)
    # At least the pair features of one layer and its projections.
    assert cost.bytes > 5 * 9**2 * 16 * 8


def test_costs_grow_as_squares_and_cubes():
    values = [2.0 * n**2 + 3.0 * n**3 for n in (10, 14)]
    assert estimates._at(50, (10, 14), values) == pytest.approx(2.0 * 50**2 + 3.0 * 50**3)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="atoms=0"):
        estimate(Potential(toy_model(), device="cpu"), 0)


def test_command():
    result = CliRunner().invoke(APP, ["--estimate", "9", "--json"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["atoms"] == 9
    assert {(row["forces"], row["dtype"]) for row in report["rows"]} == {
        (forces, dtype) for forces in ("direct", "conservative") for dtype in ("float64", "float32")
    }
    double, single = (
        next(row for row in report["rows"] if row["dtype"] == dtype and row["forces"] == "direct")
        for dtype in ("float64", "float32")
    )
    assert double["bytes"] > single["bytes"]
    table = CliRunner().invoke(APP, ["--estimate", "9"], catch_exceptions=False)
    assert "conservative" in table.stdout
    assert "GiB" in table.stdout
    assert CliRunner().invoke(APP, ["--model", "mdet-ethanol"]).exit_code != 0
