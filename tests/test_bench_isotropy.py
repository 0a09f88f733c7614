"""The symmetry benchmark tells a network that sees directions from one that does not."""

import json
import sys

import pytest
from toy_models import CONFIGS, SMALL, random_network

from mlmd_calc.zoo import save_model

pytest.importorskip("rdkit", reason="rdkit is not installed")

ENERGIES = dict.fromkeys((1, 6, 7, 8), 0.0)


@pytest.mark.parametrize("name", ["distances-only", "gaussian-types-extensive"])
def test_symmetries_of_a_random_network(benchmark, name, monkeypatch, capsys, tmp_path):
    bench = benchmark("isotropy")
    for molecules in ("ORIENTED", "OPTIMISED"):
        monkeypatch.setattr(bench, molecules, ("water",))
    monkeypatch.setattr(bench, "SEPARATED", (("water", "water"),))
    monkeypatch.setattr(bench, "STEPS", 2)
    monkeypatch.setattr(bench, "DURATION_FS", 2.0)
    config = CONFIGS[name]
    assert config != SMALL
    path = tmp_path / "model.safetensors"
    save_model(path, random_network(config), ENERGIES, {"elements": [1, 6, 7, 8]})
    command = ["isotropy", "--model", str(path), "--forces", "conservative", "--json"]
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    rows = {row["test"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    spread = rows["energy over 60 rotations"]["std_meV"]
    turning = rows["|L| after 0.5 ps from rest"]["relative"]
    apart = abs(rows["30 Å apart"]["difference_meV"])
    assert rows["BFGS to 0.002 eV/Å"]["steps"] <= 2
    if config.invariant:
        assert spread < 1e-6
        assert turning < 1e-6
        assert apart < 1e-2
    else:
        assert spread > 1.0
        assert turning > 1e-3
        assert apart > 1.0
