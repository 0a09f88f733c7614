"""The benchmark of jumps runs, and reports runs that stop."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from ase.build import molecule
from typer.testing import CliRunner

import mlmd_calc
from mlmd_calc.cli import app
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.propagation import FunctionForces, VerletPropagator, state_from_ase
from mlmd_calc.zoo import ModelCard

ETHANOL = molecule("CH3CH2OH")
FIRST, SECOND = np.triu_indices(len(ETHANOL), 1)
LENGTHS = ETHANOL.get_all_distances()[FIRST, SECOND]
SPRING = 20.0


def pair_springs(positions):
    """Springs between all pairs of atoms, at rest in the structure that ASE builds."""
    vectors = positions[FIRST] - positions[SECOND]
    lengths = np.linalg.norm(vectors, axis=1)
    pulls = (SPRING * (lengths - LENGTHS) / lengths)[:, None] * vectors
    forces = np.zeros_like(positions)
    np.add.at(forces, FIRST, -pulls)
    np.add.at(forces, SECOND, pulls)
    return -100.0 + 0.5 * SPRING * float(np.square(lengths - LENGTHS).sum()), forces


class FailsLater(VerletPropagator):
    """Gives up from its sixth call on."""

    calls = 0

    def propagate(self, states, times_fs, generator):
        self.calls += 1
        if self.calls > 5:
            raise PredictionError("no idea")
        return super().propagate(states, times_fs, generator)


@pytest.fixture
def module(benchmark):
    module = benchmark("bench_jump")
    if not module.PROC.is_dir():
        pytest.skip(f"the benchmark reads the processor's name from {module.PROC}")
    return module


@pytest.fixture
def bench(module, monkeypatch):
    bench = module
    card = ModelCard(
        "springs", recommended={"stride_fs": 2.0}, recipe={"held_out_molecules": ["ethanol"]}
    )
    models(bench, monkeypatch, VerletPropagator)
    monkeypatch.setattr(
        bench, "load_any_model", lambda name, device: type("Loaded", (), {"card": card})
    )
    monkeypatch.setattr(bench, "relaxed_state", lambda *_: state_from_ase(ETHANOL))
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, *given: function(*given))
    return bench


def models(bench, monkeypatch, kind):
    forces = FunctionForces(pair_springs)
    monkeypatch.setattr(bench, "load_models", lambda settings: (kind(forces, 0.25), forces))


def report(bench, monkeypatch, capsys, *arguments):
    options = ["--molecule", "ethanol", "--duration", "0.05", "--replicas", "8", *arguments]
    monkeypatch.setattr(sys, "argv", ["bench", *options, "--json"])
    assert bench.main() == 0
    return json.loads(capsys.readouterr().out)


def test_report(bench, monkeypatch, capsys, tmp_path):
    found = report(bench, monkeypatch, capsys, "--plots", str(tmp_path))
    assert found["settings"]["stride_fs"] == 2.0
    (row,) = found["molecules"]
    assert (row["molecule"], row["n_atoms"], row["held_out"]) == ("ethanol", 9, True)
    assert list(row["runs"]) == list(bench.RUNS)
    for name, run in row["runs"].items():
        many = "replicas" in name
        assert run["replicas"] == (8 if many else 1)
        # 25 jumps, or the fewest that a replica makes.
        assert run["time_ps"] == pytest.approx(0.008 if many else 0.05)
        assert run["stopped"] is None
        assert run["broken_molecules"] == 0
        assert run["largest_bond_change_A"] < 0.4
        assert set(run["temperature_K"]) == {"all atoms", "H", "C", "O"}
        timed = run["time_ps"] - (0.0005 if "force" in name else 0.002)
        assert run["ps_per_s"] == pytest.approx(timed * run["replicas"] / run["wall_s"])
        if "jump" in name and "no guards" not in name:
            assert run["guard"]["jumps"] == (32 if many else 25)
            assert run["guard"]["accepted_at_first_try"] == run["guard"]["jumps"]
        else:
            assert run["guard"] is None
    runs = row["runs"]
    one, other = runs["jump"]["ps_per_s"], runs["forces"]["ps_per_s"]
    assert row["speedup"]["jump / forces"]["wall_s"] == pytest.approx(one / other)
    assert max(runs["forces"]["divergence_bits"]["bonds"].values()) == 0.0
    assert 0.0 < row["floor_bits"]["bonds"]["C-H"] < 1.0
    assert runs["jump, NVE"]["energy"]["largest_relative_change"] < 1e-9
    assert abs(runs["jump, NVE"]["energy"]["drift_meV_per_atom_per_ps"]) < 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"ethanol-{kind}.png" for kind in ("bonds", "temperature", "torsions")
    ]
    bench.show(found, bench.Console(file=sys.stdout, width=160))
    text = capsys.readouterr().out
    assert "ethanol, 9 atoms, held out of the training" in text
    assert "stopped" not in text


def test_runs_that_stop_are_reported(bench, monkeypatch, capsys):
    models(bench, monkeypatch, FailsLater)
    found = report(bench, monkeypatch, capsys)
    runs = found["molecules"][0]["runs"]
    stop = runs["jump, no guards"]["stopped"]
    assert stop["time_ps"] == runs["jump, no guards"]["time_ps"] == pytest.approx(0.01)
    assert stop["check"] == "propagator"
    assert "gave up: no idea" in stop["reason"]
    # Where there are guards, forces step in.
    guard = runs["jump"]["guard"]
    assert runs["jump"]["stopped"] is None
    assert guard["jumps"] == 25
    assert guard["accepted_at_first_try"] == 5
    assert guard["actions"]["fallback"] == 20
    bench.show(found, bench.Console(file=sys.stdout, width=160))
    assert "jump, no guards: stopped at 0.01 ps: " in capsys.readouterr().out


def test_starts_at_the_minimum_are_given_the_heat_of_vibrations(bench):
    from mlmd_calc.propagation.corrections import rigid_basis

    settings = bench.Settings("", None, "cpu", 2.0, 1.0, 300.0, 1.0, 8, 0)
    state = state_from_ase(ETHANOL)
    basis = rigid_basis(state)
    energies = []
    for seed in range(400):
        warm = bench.warm_state(state, replace(settings, seed=seed))
        weighted = (np.sqrt(state.masses)[:, None] * warm.velocities / bench.units.FS).ravel()
        rigid = np.square(basis.T @ weighted).sum()
        energies.append([rigid / 6, (np.square(weighted).sum() - rigid) / 21])
    kelvin = np.mean(energies, axis=0) / bench.units.KB
    np.testing.assert_allclose(kelvin, [300.0, 600.0], rtol=0.08)


def test_force_field_of_the_propagator_unless_another_is_named(module, monkeypatch):
    def load(name, *, device, potential="own"):
        propagator = VerletPropagator(FunctionForces(pair_springs), 0.25)
        propagator.potential = potential
        return propagator

    monkeypatch.setattr(mlmd_calc, "load_propagator", load)
    monkeypatch.setattr(mlmd_calc, "Potential", lambda name, *, device: f"{name} on {device}")
    settings = module.Settings("atom", None, "cpu", 2.0, 1.0, 300.0, 1.0, 8, 0)
    propagator, forces = module.load_models(settings)
    assert propagator.potential == forces == "own"
    propagator, forces = module.load_models(replace(settings, potential="mdet"))
    assert propagator.potential == forces == "mdet on cpu"
    with pytest.raises(ConfigError, match=r"a jump of 0.3 fs is not possible"):
        module.load_models(replace(settings, stride_fs=0.3))


def test_impossible_requests_are_refused(bench, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--duration", "0.002"])
    assert bench.main() == 1
    assert "less than two jumps of 2 fs" in capsys.readouterr().err


def test_command_passes_its_options_on(monkeypatch):
    import mlmd_calc.cli.bench as command

    calls = []
    monkeypatch.setattr(command, "_run", lambda script, given: calls.append((script, given)))
    result = CliRunner().invoke(app, ["bench", "jump", "--jump", "4", "--json", "--help"])
    assert result.exit_code == 0
    assert calls == [("bench_jump.py", ["--jump", "4", "--json", "--help"])]
