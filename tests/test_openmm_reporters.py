"""The progress reporter shows what OpenMM's own reporter reports."""

import io
import re

import numpy as np
import pytest
from ase.build import molecule
from toy_models import toy_model

from mlmd_calc.errors import ConfigError

openmm = pytest.importorskip("openmm", reason="openmm is not installed")

from openmm import app, unit  # noqa: E402
from openmm_systems import system_of, topology_of  # noqa: E402

from openmm_bridge import create_force  # noqa: E402
from openmm_bridge.reporters import ProgressReporter  # noqa: E402

SHOW_CURSOR = "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def simulation_of(*forces, constrained=False):
    atoms = molecule("CH3CH2OH")
    system = system_of(atoms, *forces)
    if constrained:
        system.addConstraint(0, 1, atoms.get_distance(0, 1) / 10)
    integrator = openmm.VerletIntegrator(0.0005)
    made = app.Simulation(
        topology_of(atoms), system, integrator, openmm.Platform.getPlatformByName("Reference")
    )
    made.context.setPositions(atoms.positions / 10)
    made.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    return made


@pytest.mark.parametrize("constrained", [False, True])
def test_lines_hold_the_numbers_of_openmm(constrained):
    bond = openmm.HarmonicBondForce()
    bond.addBond(0, 2, 0.2, 1e5)
    simulation = simulation_of(bond, openmm.CMMotionRemover(), constrained=constrained)
    ours, known = io.StringIO(), io.StringIO()
    simulation.reporters.append(ProgressReporter(20, 60, file=ours))
    simulation.reporters.append(
        app.StateDataReporter(
            known, 20, step=True, time=True, potentialEnergy=True, temperature=True
        )
    )
    simulation.step(60)
    lines = ours.getvalue().splitlines()
    expected = np.loadtxt(io.StringIO(known.getvalue()), delimiter=",")
    assert len(lines) == len(expected) == 3
    pattern = r"(\d+)/60  (\S+) ps  (\S+) K  (\S+) kJ/mol  (\S+) ns/day  left (\S+)"
    for line, (step, time, potential, temperature) in zip(lines, expected, strict=True):
        found = re.fullmatch(pattern, line)
        assert found, line
        assert int(found[1]) == step
        assert float(found[2]) == pytest.approx(time, abs=0.0051)
        assert float(found[3]) == pytest.approx(temperature, abs=0.51)
        assert float(found[4]) == pytest.approx(potential, abs=0.051)
        assert float(found[5]) > 0
    assert lines[-1].endswith("left 0:00:00")


def test_speed_and_time_left_count_from_where_the_simulation_was(monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("openmm_bridge.reporters.time.perf_counter", lambda: next(clock))
    simulation = simulation_of()
    simulation.step(40)
    out = io.StringIO()
    simulation.reporters.append(ProgressReporter(50, 100, file=out))
    simulation.step(10)
    # 10 steps of 0.5 fs in 10 s; 50 steps are left.
    assert "0.0432 ns/day  left 0:00:50" in out.getvalue()


def test_a_bar_on_a_terminal_ends_with_the_simulation():
    simulation = simulation_of()
    out = Terminal()
    simulation.reporters.append(ProgressReporter(5, 20, file=out))
    simulation.step(10)
    assert SHOW_CURSOR not in out.getvalue()
    simulation.step(10)
    assert out.getvalue().index(SHOW_CURSOR) > out.getvalue().index("100%")


def test_a_reporter_that_is_given_up_shows_the_cursor_again():
    simulation = simulation_of()
    out = Terminal()
    simulation.reporters.append(ProgressReporter(5, 20, file=out))
    simulation.step(5)
    assert SHOW_CURSOR not in out.getvalue()
    simulation.reporters.clear()
    assert SHOW_CURSOR in out.getvalue()


def test_errors_of_the_force_are_shown(caplog):
    atoms = molecule("CH3CH2OH")
    force = create_force(topology_of(atoms), toy_model(), rotation="none", device="cpu")
    simulation = simulation_of(force)
    out = io.StringIO()
    simulation.reporters.append(ProgressReporter(1, 10, force=force, file=out))
    simulation.context.setPositions(np.zeros((9, 3)))
    with pytest.raises(openmm.OpenMMException, match="apart"):
        simulation.step(1)
    simulation.context.setPositions(atoms.positions / 10)
    simulation.step(1)
    assert f"last error: {force.computation.last_error}" in out.getvalue()


@pytest.mark.parametrize("name", ["reportInterval", "totalSteps"])
def test_refusals(name):
    with pytest.raises(ConfigError, match=f"{name}=0"):
        ProgressReporter(**{"reportInterval": 1, "totalSteps": 1, name: 0})
