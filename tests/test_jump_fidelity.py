"""Estimators of `mlmd validate jumps` on systems with known answers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from bond_springs import WATER_SHAPE, water_energy_and_forces
from typer.testing import CliRunner

from mlmd_calc import units
from mlmd_calc.analysis.jump_ensemble import ALL_ATOMS
from mlmd_calc.analysis.jump_fidelity import (
    REFERENCE_FRICTION_PER_PS,
    FidelitySettings,
    measure_fidelity,
)
from mlmd_calc.analysis.jump_map import measure_map
from mlmd_calc.cli.commands import app
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation import (
    Corrections,
    FunctionForces,
    Guard,
    JumpLoop,
    Langevin,
    State,
    VerletPropagator,
)
from mlmd_calc.propagation.harmonic import HarmonicPropagator
from mlmd_calc.propagation.thermostats import draw_velocities

MASSES = np.array([16.0, 1.0, 1.0])
STRIDE = 4.0
HARMONIC = Harmonic.tethers(20.0, WATER_SHAPE)
FORCES = FunctionForces(HARMONIC.energy_and_forces)
MINIMUM = State(WATER_SHAPE, np.zeros((3, 3)), np.array([8, 1, 1]), MASSES)


class Faulty(HarmonicPropagator):
    """Exact jumps, after which velocities are scaled."""

    def __init__(self, factor):
        super().__init__(HARMONIC)
        self.factor = factor
        self.potential = FORCES

    def propagate(self, states, times_fs, generator):
        return [
            replace(frames, velocities=self.factor * frames.velocities)
            for frames in super().propagate(states, times_fs, generator)
        ]


def warm_states(count):
    """Draw states of the tethered atoms at 300 K."""
    rng = np.random.default_rng(3)
    width = np.sqrt(units.KB * 300.0 / 20.0)
    return [
        replace(
            MINIMUM,
            positions=WATER_SHAPE + width * rng.standard_normal((3, 3)),
            velocities=draw_velocities(MINIMUM, 300.0, rng),
        )
        for _ in range(count)
    ]


def test_exact_motion_has_no_errors():
    errors = measure_map(Faulty(1.0), FORCES, warm_states(4), STRIDE, 300.0, minimum=MINIMUM)
    assert errors.reversibility_percent < 1e-9
    assert abs(errors.log_determinant) < 1e-9
    assert abs(errors.energy_change_meV) < 1e-9
    assert errors.acceptance_percent == pytest.approx(100.0)
    assert abs(errors.growth_per_ps) < 1e-6


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_scaled_velocities_are_found(factor):
    """A factor c takes the share 1 - c² of the kinetic energy, and c^(3 n) of the volume."""
    states = warm_states(4000)
    errors = measure_map(Faulty(factor), FORCES, states, STRIDE, 300.0, minimum=MINIMUM)
    assert errors.log_determinant == pytest.approx(9 * np.log(factor), rel=1e-6)
    lost = (1.0 - factor**2) * 4.5 * units.KB * 300.0
    assert errors.energy_change_meV == pytest.approx(-lost / units.MEV, rel=0.05)
    friction = (1.0 - factor**2) / 2.0 / (STRIDE / units.FS_PER_PS)
    assert errors.equivalent_friction_per_ps == pytest.approx(friction, rel=0.05)
    assert errors.reversibility_percent > 0.1
    assert (errors.growth_per_ps > 0.1) == (factor > 1.0)
    assert (errors.acceptance_percent < 99.9) == (factor > 1.0)


def test_jumps_made_of_the_same_steps_are_as_faithful_as_these():
    settings = FidelitySettings(
        STRIDE, frictions_per_ps=(20.0, 0.0), duration_ps=0.5, replicas=16, seed=1
    )
    names = []
    verlet = VerletPropagator(FORCES, 0.5)
    found = measure_fidelity(verlet, FORCES, MINIMUM, settings, names.append)
    assert len(names) == 5
    for run in (*found.runs.values(), *found.references.values()):
        assert run.died == 0
        assert run.interventions_percent == 0.0
        assert run.temperatures[ALL_ATOMS].value == pytest.approx(300.0, rel=0.25)
        assert run.configurational_percent == pytest.approx(100.0, abs=30.0)
    assert found.runs[0.0].to_dict() == found.references[0.0].to_dict()
    assert found.references[REFERENCE_FRICTION_PER_PS].distance_difference == 0.0
    assert 0.0 < found.runs[20.0].distance_difference < 2.0 * found.reference_halves


def mean_kinetic_temperature(corrections):
    """Temperature of water in jumps that heat, under a thermostat of 2/ps."""
    forces = FunctionForces(water_energy_and_forces)
    forces.has_energy = True
    loop = JumpLoop(
        [replace(MINIMUM, velocities=state.velocities) for state in warm_states(16)],
        Heating(forces),
        STRIDE,
        thermostat=Langevin(300.0, 0.002),
        corrections=corrections,
        guard=Guard(frames_file="/dev/null"),
        forces=forces,
        rng=np.random.default_rng(0),
    )
    found = []
    for _ in range(500):
        assert loop.advance()
        found.append(np.mean([state.kinetic_temperature for state in loop.states]))
    return np.mean(found[100:])


class Heating(VerletPropagator):
    """Force-based steps, after which velocities are larger by half a percent."""

    conserves_energy = False

    def __init__(self, forces):
        super().__init__(forces, 0.5)

    def propagate(self, states, times_fs, generator):
        states = [replace(state, memory={}) for state in states]
        return [
            replace(frames, velocities=1.005 * frames.velocities, memory={})
            for frames in super().propagate(states, times_fs, generator)
        ]


def test_rescaling_keeps_jumps_that_heat_at_the_temperature_of_the_thermostat():
    alone = Corrections(balance_elements=False)
    assert mean_kinetic_temperature(alone) == pytest.approx(300.0, rel=0.1)
    assert mean_kinetic_temperature(replace(alone, rescale_energy=False)) > 350.0


class Breaking(Faulty):
    """Moves an atom away."""

    def propagate(self, states, times_fs, generator):
        found = super().propagate(states, times_fs, generator)
        return [replace(frames, positions=frames.positions + 5.0 * np.eye(3)) for frames in found]


def test_replicas_that_cannot_go_on_have_died():
    settings = FidelitySettings(STRIDE, frictions_per_ps=(1.0,), duration_ps=0.4, replicas=2)
    found = measure_fidelity(Breaking(1.0), FORCES, MINIMUM, settings)
    assert found.runs[1.0].died == 2
    assert not found.runs[1.0].temperatures
    assert found.runs[1.0].interventions_percent >= 100.0
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    "change", [{"replicas": 0}, {"duration_ps": 0.001}, {"frictions_per_ps": (-1.0,)}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        FidelitySettings(STRIDE, **change)


def test_the_command_measures_a_shipped_model():
    options = ["--duration", "0.05", "--friction", "2", "--replicas", "1", "--json"]
    result = CliRunner().invoke(app, ["validate", "jumps", "atom-ethanol", "ethanol", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["ethanol"]
    assert found["friction_per_ps"]["2"]["died"] == 0
    assert 0.0 < found["jump"]["acceptance_percent"] <= 100.0
