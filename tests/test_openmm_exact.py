"""`ExactNVTIntegrator`: its ensemble, its restarts, what it shows to OpenMM, what it refuses."""

import io

import numpy as np
import pytest
from another_process import run_child, script

pytest.importorskip("openmm", reason="openmm is not installed")

import openmm
import openmm_exact_systems
from ase.build import molecule
from openmm import app
from openmm_exact_systems import STIFFNESS, TEMPERATURE, begin, sampling, tethered
from openmm_systems import context_of, energy_and_forces, system_of, topology_of
from toy_models import write_model

from mlmd_calc import units
from mlmd_calc.analysis import block_average, summarise_exact
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from openmm_bridge import ExactNVTIntegrator, create_force

EXACT = units.KB / units.KJ_PER_MOL * TEMPERATURE / STIFFNESS
"""Mean square of a coordinate, nm²."""


def squares(context, steps, stride):
    """Mean square of the coordinates after every stride, nm²."""
    found = []
    for _ in range(steps):
        context.getIntegrator().step(stride)
        positions = context.getState(getPositions=True).getPositions(asNumpy=True)._value
        found.append((positions**2).mean())
    return block_average(np.array(found))


def test_ensemble_is_that_of_the_system_with_a_proposal_that_is_off():
    soft = tethered(0.9 * STIFFNESS)
    context, integrator = sampling(tethered(STIFFNESS), soft)
    integrator.step(20)
    found = squares(context, 1500, 1)
    assert found.standard_error < 0.015 * EXACT
    assert abs(found.value - EXACT) < 3.5 * found.standard_error
    assert 0.3 < integrator.sampler.acceptance < 0.9
    langevin = openmm.LangevinMiddleIntegrator(TEMPERATURE, 20.0, 0.004)
    langevin.setRandomNumberSeed(1)
    alone = context_of(soft, np.zeros((30, 3)), integrator=langevin)
    langevin.step(1000)
    off = squares(alone, 1000, 20)
    assert off.value > 1.05 * EXACT + 3 * off.standard_error


def test_goes_on_in_another_process_bit_for_bit(tmp_path):
    run_child(script, openmm_exact_systems.__file__, tmp_path)
    whole, steps = begin()
    steps.step(25)
    parts, again = begin()
    again.loadRestart(tmp_path / "exact.npz")
    again.step(15)
    assert again.sampler.samples == steps.sampler.samples
    assert len(steps.sampler.samples) == 19
    for context in (whole, parts):
        assert context.getStepCount() == 25
    states = [c.getState(getPositions=True, getVelocities=True) for c in (whole, parts)]
    assert states[0].getTime() == states[1].getTime()
    for name in ("getPositions", "getVelocities"):
        one, other = (getattr(state, name)(asNumpy=True)._value for state in states)
        assert np.array_equal(one, other)
    _, other = sampling(tethered(1.1 * STIFFNESS, 5), tethered(0.7 * STIFFNESS, 5), warmup=6)
    with pytest.raises(ModelFileError, match="continue with the target of the run"):
        other.loadRestart(tmp_path / "exact.npz")


def test_reporters_of_a_simulation_see_the_system(tmp_path):
    atoms = molecule("H2O")
    topology = topology_of(atoms)
    bonds = openmm.HarmonicBondForce()
    for i, j, length in ((0, 1, 0.097), (0, 2, 0.097), (1, 2, 0.153)):
        bonds.addBond(i, j, length, 2e5)
    model = write_model(tmp_path / "weak.safetensors", 0.3)
    learned = create_force(topology, model, backend="python", rotation="none", device="cpu")
    integrator = ExactNVTIntegrator(
        system_of(atoms, learned), 300, 20, 0.0002, trajectorySteps=5, warmup=2
    )
    simulation = app.Simulation(
        topology, system_of(atoms, bonds), integrator, openmm.Platform.getPlatform("Reference")
    )
    simulation.context.setPositions(atoms.positions / 10)
    log = io.StringIO()
    simulation.reporters.append(
        app.StateDataReporter(log, 1, step=True, potentialEnergy=True, temperature=True)
    )
    simulation.step(12)
    rows = np.loadtxt(io.StringIO(log.getvalue()), delimiter=",")
    assert rows[:, 0].tolist() == list(range(1, 13))
    energies = np.array(integrator.sampler.samples.energies) / units.KJ_PER_MOL
    np.testing.assert_allclose(rows[2:, 1], energies, rtol=1e-9)
    assert rows[:, 2].min() > 0.0
    found = summarise_exact(integrator.sampler)
    assert (found.steps, found.failed) == (10, 0)
    assert found.proposal is not None


def test_what_others_do_to_the_context_is_noticed():
    context, integrator = sampling(tethered(STIFFNESS, 4), tethered(STIFFNESS, 4))
    integrator.step(3)
    context.setParameter("k", 2 * STIFFNESS)
    integrator.step(1)
    energy = energy_and_forces(context)[0] * units.KJ_PER_MOL
    assert integrator.sampler.samples.energies[-1] == pytest.approx(energy, rel=1e-12)
    # So far out that whatever is proposed lies lower by much.
    context.setPositions(np.full((4, 3), 0.1))
    integrator.step(1)
    assert integrator.sampler.samples.changes[-1] < -100 * units.KB * TEMPERATURE
    with pytest.raises(ConfigError, match="cannot be changed"):
        integrator.setStepSize(0.001)
    copied = openmm.XmlSerializer.clone(integrator)
    lost = context_of(tethered(STIFFNESS, 4), np.zeros((4, 3)), integrator=copied)
    copied.step(1)
    positions = lost.getState(getPositions=True).getPositions(asNumpy=True)._value
    assert np.isnan(positions).all()


def test_values_of_forces_that_are_changed_between_steps_count():
    system = tethered(STIFFNESS, 4)
    shift = openmm.CustomExternalForce("shift")
    shift.addPerParticleParameter("shift")
    shift.addParticle(0, [0.0])
    system.addForce(shift)
    context, integrator = sampling(system, tethered(STIFFNESS, 4))
    integrator.step(1)
    shift.setParticleParameters(0, 0, [1000.0])
    shift.updateParametersInContext(context)
    integrator.step(1)
    # A constant changes no energy differences, and so no trajectory is refused for it.
    assert integrator.sampler.samples.changes[-1] < 500 * units.KJ_PER_MOL


def test_other_force_groups_count_from_the_next_step_on():
    system = tethered(STIFFNESS, 4)
    shift = openmm.CustomExternalForce("1000")
    shift.addParticle(0)
    shift.setForceGroup(1)
    system.addForce(shift)
    context, integrator = sampling(system, tethered(STIFFNESS, 4))
    integrator.setIntegrationForceGroups({0})
    integrator.step(1)
    integrator.setIntegrationForceGroups({0, 1})
    integrator.step(1)
    energy = energy_and_forces(context)[0] * units.KJ_PER_MOL
    assert integrator.sampler.samples.energies[-1] == pytest.approx(energy, rel=1e-12)


def constrained(system):
    system.addConstraint(0, 1, 0.1)


def virtual(system):
    system.setParticleMass(2, 0.0)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))


def massless(system):
    system.setParticleMass(2, 0.0)


def pressed(system):
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0))


def heated(system):
    system.addForce(openmm.AndersenThermostat(300.0, 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (constrained, "constraints, but"),
        (virtual, "virtual sites"),
        (massless, "particles without mass"),
        (pressed, "a barostat"),
        (heated, "a thermostat"),
        (lambda system: system.addParticle(1.0), "has 5 particles and the System 4"),
    ],
)
def test_systems_that_trajectories_would_not_do_justice_to_are_refused(change, message):
    proposal = tethered(STIFFNESS, 4)
    change(proposal)
    _, integrator = sampling(tethered(STIFFNESS, 4), proposal)
    with pytest.raises(InputError, match=message):
        integrator.step(1)


def test_random_orientations_are_refused(tmp_path):
    atoms = molecule("H2O")
    model = write_model(tmp_path / "weak.safetensors", 0.3)
    force = create_force(
        topology_of(atoms), model, backend="python", rotation="random", seed=1, device="cpu"
    )
    context, integrator = sampling(tethered(STIFFNESS, 3), system_of(atoms, force))
    context.setPositions(atoms.positions / 10)
    with pytest.raises(ConfigError, match="rotation='none'"):
        integrator.step(1)
