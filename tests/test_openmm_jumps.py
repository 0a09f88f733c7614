"""Jumps in OpenMM: they behave as OpenMM's own integrators, and as jumps in ASE."""

import gc
import io
import os
import signal
import struct
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analytic_potentials import HarmonicCalculator
from another_process import PROCESSES
from ase.build import molecule
from ase.calculators.mixing import SumCalculator
from jump_systems import Noisy, Spoilt, nan, springs, springs_state, tethered
from toy_models import toy_model

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.md import JumpNVE, JumpNVT
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.potential import Potential
from mlmd_calc.propagation import (
    Conditions,
    Corrections,
    FunctionForces,
    Guard,
    Strides,
    VerletPropagator,
    read_restart,
)
from mlmd_calc.propagation.harmonic import HarmonicPropagator

openmm = pytest.importorskip("openmm", reason="openmm is not installed")

from openmm import app, unit  # noqa: E402
from openmm.app.simulatedtempering import SimulatedTempering  # noqa: E402
from openmm_systems import PLATFORMS, context_of, system_of, topology_of  # noqa: E402

from openmm_bridge import JumpNVEIntegrator, JumpNVTIntegrator  # noqa: E402
from openmm_bridge.jump_context import ContextForces  # noqa: E402

STRIDE = 8 * unit.femtosecond
FREE = {"corrections": Corrections.none(), "guard": Guard.off()}
"""For atoms in an external field."""

KILLS = 4
STEPS = 150
CONSTANT = units.PS**2
"""amu/ps², which is kJ/mol/nm², per eV/Å².

The way through kJ/mol differs by 2e-10, as the constants of ASE are rounded.
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spring_force(harmonic):
    """The potential of `springs` with OpenMM's own forces."""
    force = openmm.CustomBondForce("0.5*k*r^2")
    force.addPerBondParameter("k")
    constants = -harmonic.hessian[::3, ::3] * CONSTANT
    for i, j in zip(*np.triu_indices(len(constants), 1), strict=True):
        force.addBond(int(i), int(j), [constants[i, j]])
    return force


def tether_force(harmonic):
    """The potential of `tethered` with OpenMM's own forces."""
    force = openmm.CustomExternalForce(
        f"{0.5 * harmonic.hessian[0, 0] * CONSTANT}*((x-x0)^2+(y-y0)^2+(z-z0)^2)"
    )
    for name in ("x0", "y0", "z0"):
        force.addPerParticleParameter(name)
    for i, anchor in enumerate(harmonic.equilibrium / units.NM):
        force.addParticle(i, anchor.tolist())
    return force


def simulation_of(start, integrator, *forces, platform="Reference", system=None):
    """A Simulation at positions and velocities of a state."""
    atoms = start.to_atoms()
    simulation = app.Simulation(
        topology_of(atoms),
        system_of(atoms, *forces) if system is None else system,
        integrator,
        openmm.Platform.getPlatformByName(platform),
    )
    simulation.context.setPositions(start.positions / units.NM)
    simulation.context.setVelocities(start.velocities * units.FS_PER_PS / units.NM)
    return simulation


def nve(start, propagator, *forces, platform="Reference", system=None, **options):
    topology = topology_of(start.to_atoms())
    integrator = JumpNVEIntegrator(propagator, topology, STRIDE, **{**FREE, **options})
    return simulation_of(start, integrator, *forces, platform=platform, system=system)


def nvt(start, propagator, *forces, platform="Reference", **options):
    topology = topology_of(start.to_atoms())
    options = {"thermostat": "langevin", **FREE, **options}
    integrator = JumpNVTIntegrator(
        propagator, topology, 300 * unit.kelvin, 10 / unit.picosecond, STRIDE, **options
    )
    return simulation_of(start, integrator, *forces, platform=platform)


def read(context):
    """Positions Å and velocities Å/fs."""
    state = context.getState(getPositions=True, getVelocities=True)
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    speed = unit.angstrom / unit.femtosecond
    return np.array([positions, state.getVelocities(asNumpy=True).value_in_unit(speed)])


def total_energy(simulation):
    state = simulation.context.getState(getEnergy=True)
    return (state.getPotentialEnergy() + state.getKineticEnergy())._value


@pytest.mark.parametrize("platform", PLATFORMS)
def test_constant_energy(platform):
    harmonic, start = springs(), springs_state()
    simulation = nve(
        start,
        HarmonicPropagator(harmonic),
        spring_force(harmonic),
        platform=platform,
        corrections=Corrections(),
    )
    energy = total_energy(simulation)
    assert energy * units.KJ_PER_MOL == pytest.approx(
        harmonic.energy_and_forces(start.positions)[0] + start.kinetic_energy, rel=1e-6
    )
    energies = []
    for _ in range(100 if platform == "Reference" else 20):
        simulation.step(10)
        energies.append(total_energy(simulation))
    # The CPU platform evaluates forces in single precision.
    np.testing.assert_allclose(energies, energy, rtol=1e-10 if platform == "Reference" else 1e-6)


@pytest.mark.parametrize("thermostat", [None, "langevin", "bussi"])
def test_the_same_trajectory_as_in_ase(thermostat):
    harmonic, start = tethered()
    propagator = Noisy(harmonic)
    options = {**FREE, "corrections": Corrections(False, False, False)}
    atoms = start.to_atoms()
    if thermostat is None:
        dyn = JumpNVE(atoms, 8 * units.FS, propagator, rng=np.random.default_rng(5), **options)
        simulation = nve(start, propagator, rng=np.random.default_rng(5), **options)
    else:
        rates = {"langevin": {"friction": 0.01 / units.FS}, "bussi": {"taut": 100 * units.FS}}
        dyn = JumpNVT(
            atoms,
            8 * units.FS,
            propagator,
            300,
            thermostat=thermostat,
            rng=np.random.default_rng(5),
            **rates[thermostat],
            **options,
        )
        simulation = nvt(
            start, propagator, thermostat=thermostat, rng=np.random.default_rng(5), **options
        )
    for _ in range(100):
        dyn.run(1)
        simulation.step(1)
        positions, velocities = read(simulation.context)
        np.testing.assert_allclose(positions, atoms.positions, atol=1e-8)
        np.testing.assert_allclose(velocities, atoms.get_velocities() * units.FS, atol=1e-10)
    assert np.abs(atoms.positions - start.positions).max() > 0.01


def test_reporters_time_and_temperature():
    harmonic, start = tethered()
    simulation = nve(start, HarmonicPropagator(harmonic), tether_force(harmonic))
    log = io.StringIO()
    columns = {"step": True, "time": True, "temperature": True, "potentialEnergy": True}
    simulation.reporters.append(app.StateDataReporter(log, 25, **columns))
    simulation.step(50)
    assert simulation.currentStep == 50
    state = simulation.context.getState(getPositions=True)
    assert state.getStepCount() == 50
    assert state.getTime().value_in_unit(unit.femtosecond) == pytest.approx(400.0, rel=1e-12)
    times = np.array([200.0, 400.0])
    x, v = harmonic.evolve(start.positions, start.velocities, start.masses, times)
    lines = [[float(word) for word in row.split(",")] for row in log.getvalue().splitlines()[1:]]
    for row, step, time, positions, velocities in zip(
        lines, (25, 50), times / units.FS_PER_PS, x, v, strict=True
    ):
        kinetic = 0.5 * start.masses @ (velocities**2).sum(axis=1) / units.FS**2
        temperature = 2 * kinetic / (12 * units.KB)
        potential = harmonic.energy_and_forces(positions)[0] / units.KJ_PER_MOL
        assert row == pytest.approx([step, time, potential, temperature], rel=1e-6)


def test_forces_shown_are_those_of_the_system():
    harmonic, start = tethered()
    simulation = nve(start, HarmonicPropagator(harmonic), tether_force(harmonic))
    simulation.step(3)
    state = simulation.context.getState(getForces=True, getEnergy=True)
    energy, forces = harmonic.energy_and_forces(read(simulation.context)[0])
    shown = state.getForces(asNumpy=True)._value * units.KJ_PER_MOL / units.NM
    np.testing.assert_allclose(shown, forces, atol=1e-9)
    assert state.getPotentialEnergy()._value * units.KJ_PER_MOL == pytest.approx(energy)


def test_force_based_steps_take_the_forces_of_the_system():
    harmonic, start = tethered()
    options = {"md_steps_per_jump": 4, "md_timestep": 0.5 * unit.femtosecond}
    simulation = nve(start, HarmonicPropagator(harmonic), tether_force(harmonic), **options)
    simulation.step(5)
    atoms = start.to_atoms()
    atoms.calc = HarmonicCalculator(harmonic)
    options["md_timestep"] = 0.5 * units.FS
    JumpNVE(atoms, 8 * units.FS, HarmonicPropagator(harmonic), **FREE, **options).run(5)
    np.testing.assert_allclose(read(simulation.context)[0], atoms.positions, atol=1e-8)
    # Jumps and steps both take time.
    time = simulation.context.getState().getTime().value_in_unit(unit.femtosecond)
    assert time == pytest.approx(5 * (8.0 + 4 * 0.5))


def test_rescaling_takes_the_energy_of_the_system():
    harmonic, start = tethered()
    heating = Spoilt(harmonic, lambda f, s: replace(f, velocities=1.01 * f.velocities))
    simulation = nve(start, heating, tether_force(harmonic), rescale_energy=True)
    energy = total_energy(simulation)
    simulation.step(100)
    assert total_energy(simulation) == pytest.approx(energy, rel=1e-10)


def test_what_the_user_does_between_steps_counts():
    harmonic, start = tethered()
    simulation = nve(start, HarmonicPropagator(harmonic))
    simulation.step(2)
    moved = read(simulation.context)[0] + 0.1
    simulation.context.setPositions(moved / units.NM)
    simulation.context.setVelocities(np.zeros((4, 3)))
    simulation.context.setTime(1.0)
    simulation.step(1)
    frames = harmonic.evolve(moved, np.zeros((4, 3)), start.masses, [8.0])
    np.testing.assert_allclose(read(simulation.context)[0], frames[0][0], atol=1e-12)
    assert simulation.context.getState().getTime()._value == pytest.approx(1.008)


def test_momentum_removal_works():
    harmonic, start = springs(), springs_state()
    simulation = nve(start, HarmonicPropagator(harmonic), openmm.CMMotionRemover(1))
    simulation.step(3)
    momentum = start.masses @ read(simulation.context)[1]
    np.testing.assert_allclose(momentum, 0.0, atol=1e-14)


def test_a_molecule_that_lost_its_momentum_is_as_warm_as_it_was():
    class AtRoomTemperature(HarmonicPropagator):
        conditions = Conditions(temperature_range_K=(300.0, 300.0))

    harmonic, start = springs(), springs_state()
    temperatures = []
    simulation = nvt(
        start,
        AtRoomTemperature(harmonic),
        spring_force(harmonic),
        openmm.CMMotionRemover(1),
        rng=np.random.default_rng(0),
    )
    integrator = simulation.integrator
    for _ in range(20):
        simulation.step(1)
        temperatures.append(integrator.loop.states[0].kinetic_temperature)
    assert min(temperatures) < 150.0
    assert not list(integrator.events)
    momentum = start.masses @ integrator.loop.states[0].velocities
    np.testing.assert_allclose(momentum, 0.0, atol=1e-14)


def integrator_of(atoms, harmonic):
    return JumpNVEIntegrator(HarmonicPropagator(harmonic), topology_of(atoms), STRIDE, **FREE)


# Failures


def broken_after_two(harmonic):
    return Spoilt(harmonic, nan, lambda call, stride: call >= 2)


@pytest.mark.parametrize("last", ["raise", "stop"])
@pytest.mark.parametrize("with_forces", [False, True])
def test_a_broken_propagator_leaves_the_positions_of_before(last, with_forces):
    harmonic, start = tethered()
    forces = [tether_force(harmonic)] if with_forces else []
    guard = Guard(checks=(), last=last, max_fallbacks=0)
    simulation = nve(start, broken_after_two(harmonic), *forces, guard=guard)
    simulation.step(2)
    before = read(simulation.context)
    for _ in range(2 if last == "stop" else 1):
        with pytest.raises(PredictionError, match="not finite"):
            simulation.step(20)
        np.testing.assert_array_equal(read(simulation.context), before)
        assert simulation.currentStep == 2
        assert simulation.context.getState().getTime()._value == pytest.approx(0.016)
    assert simulation.integrator.events.counts()[last] == 1


def test_failing_forces_leave_the_positions_of_before():
    def fail(state):
        if fail.left == 0:
            raise ValueError("no convergence")
        fail.left -= 1
        return 0.0, np.zeros((4, 3))

    fail.left = 5
    harmonic, start = tethered()
    simulation = nve(
        start, HarmonicPropagator(harmonic), openmm.PythonForce(fail), md_steps_per_jump=3
    )
    simulation.step(1)
    before = read(simulation.context)
    # Four evaluations each.
    with pytest.raises(PredictionError, match="no convergence"):
        simulation.step(1)
    np.testing.assert_array_equal(read(simulation.context), before)
    assert simulation.currentStep == 1


def test_a_failed_jump_falls_back_on_the_forces_of_the_system():
    harmonic, start = tethered()
    spoilt = Spoilt(harmonic, lambda f, s: nan(f, s) if s.time == 16.0 else f)
    simulation = nve(start, spoilt, tether_force(harmonic), guard=Guard(()))
    simulation.step(3)
    assert simulation.integrator.events.counts()["fallback"] == 1
    x, v = harmonic.evolve(start.positions, start.velocities, start.masses, [24.0])
    # The error of velocity Verlet in 16 steps.
    np.testing.assert_allclose(read(simulation.context), [x[0], v[0]], atol=1e-3)


def test_copies_made_by_openmm_do_not_seem_to_work():
    harmonic, start = tethered()
    atoms = start.to_atoms()
    integrator = nve(start, HarmonicPropagator(harmonic)).integrator
    copied = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(integrator))
    context = context_of(system_of(atoms), atoms.positions, "Reference", copied)
    copied.step(1)
    assert np.isnan(read(context)[0]).all()


def test_a_compound_integrator_that_would_step_without_python_is_refused():
    harmonic, start = tethered()
    integrator = integrator_of(start.to_atoms(), harmonic)
    compound = openmm.CompoundIntegrator()
    with pytest.raises(ConfigError, match=r"cannot be one of a CompoundIntegrator.*it alone"):
        compound.addIntegrator(integrator)
    assert compound.getNumIntegrators() == 0


# Refusals


def constrained(system):
    system.addConstraint(0, 1, 0.1)


def with_virtual_site(system):
    system.setParticleMass(3, 0.0)
    system.setVirtualSite(3, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))


def periodic(system):
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    for _ in range(4):
        force.addParticle(0.0, 0.1, 0.0)
    system.addForce(force)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (constrained, "1 constraints, which a jump would break"),
        (with_virtual_site, "particle 3 is a virtual site"),
        (periodic, "the System is periodic"),
        (lambda system: system.setParticleMass(2, 0.0), "particle 2 has no mass"),
        (lambda system: system.addForce(openmm.AndersenThermostat(300, 1)), "AndersenThermostat"),
        (lambda system: system.addParticle(18.0), "5 particles, but the topology has 4 atoms"),
    ],
)
def test_systems_that_jumps_would_spoil_are_refused(change, message):
    harmonic, start = tethered()
    atoms = start.to_atoms()
    system = system_of(atoms)
    change(system)
    integrator = integrator_of(atoms, harmonic)
    positions = np.zeros((system.getNumParticles(), 3))
    positions[:4] = atoms.positions
    context = context_of(system, positions, "Reference", integrator)
    with pytest.raises(InputError, match=message):
        context.getIntegrator().step(1)
    np.testing.assert_allclose(read(context)[0], positions, atol=1e-12)


def test_positions_in_another_order_than_the_topology_are_refused():
    ethanol = molecule("CH3CH2OH")
    propagator = VerletPropagator(Potential(toy_model()), 0.5)
    integrator = JumpNVEIntegrator(propagator, topology_of(ethanol), STRIDE)
    swapped = ethanol.positions[[2, 1, 0, *range(3, 9)]]
    context = context_of(system_of(ethanol), swapped, "Reference", integrator)
    with pytest.raises(InputError, match=r"are bonded, but they are .* order of the topology"):
        context.getIntegrator().step(1)
    context.setPositions(ethanol.positions)
    with pytest.raises(InputError, match=r"from the one next to them.* divide by 10 what is in Å"):
        context.getIntegrator().step(1)


def test_a_context_without_positions_is_refused():
    ethanol = molecule("CH3CH2OH")
    propagator = VerletPropagator(Potential(toy_model()), 0.5)
    integrator = JumpNVEIntegrator(propagator, topology_of(ethanol), STRIDE)
    context = context_of(system_of(ethanol), 0.0 * ethanol.positions, "Reference", integrator)
    with pytest.raises(InputError, match="has no positions yet; call setPositions"):
        context.getIntegrator().step(1)


def test_integrators_that_cannot_work_are_refused():
    harmonic, start = tethered()
    atoms = start.to_atoms()
    with pytest.raises(ConfigError, match="belongs to 0 Contexts"):
        integrator_of(atoms, harmonic).step(1)
    short = VerletPropagator(FunctionForces(harmonic.energy_and_forces), 0.3)
    with pytest.raises(ConfigError, match=r"a jump of 8 fs is not possible.*multiples of 0.3 fs"):
        nve(start, short)
    fixed = HarmonicPropagator(harmonic)
    fixed.strides = Strides.among([4.0, 8.0])
    with pytest.raises(ConfigError, match="a jump of 2 fs is not possible"):
        nve(start, fixed).integrator.setStepSize(0.002)
    assert JumpNVTIntegrator(fixed, topology_of(atoms), 300, 10).getStepSize()._value == 0.004
    with pytest.raises(ConfigError, match="recommends no stride"):
        JumpNVTIntegrator(HarmonicPropagator(harmonic), topology_of(atoms), 300, 10)
    with pytest.raises(ConfigError, match="nothing is recommended"):
        JumpNVTIntegrator(fixed, topology_of(atoms), 300, stepSize=STRIDE)
    with pytest.raises(ConfigError, match="choose 'langevin' or 'bussi'"):
        nvt(start, HarmonicPropagator(harmonic), thermostat="nose")
    with pytest.raises(TypeError, match="'guards'; choose from corrections, guard, other_forces"):
        nvt(start, HarmonicPropagator(harmonic), guards=Guard.off())
    for forces in ([], [openmm.CMMotionRemover(1)]):
        simulation = nve(start, HarmonicPropagator(harmonic), *forces, md_steps_per_jump=1)
        with pytest.raises(ConfigError, match="need forces"):
            simulation.step(1)
    simulation = nve(
        start, HarmonicPropagator(harmonic), tether_force(harmonic), md_steps_per_jump=1
    )
    simulation.integrator.setIntegrationForceGroups({1})
    with pytest.raises(ConfigError, match="need forces"):
        simulation.step(1)


# What LangevinMiddleIntegrator has as well


def test_setters_of_openmms_integrators():
    harmonic, start = tethered()
    simulation = nvt(start, HarmonicPropagator(harmonic))
    integrator = simulation.integrator
    integrator.setTemperature(400)
    for _ in range(2):
        # Before the first step and after it.
        integrator.setTemperature(integrator.getTemperature() + 50 * unit.kelvin)
        integrator.setFriction(integrator.getFriction() * 2)
        integrator.setStepSize(0.004)
        simulation.step(1)
    assert integrator.getTemperature() == 500 * unit.kelvin
    assert integrator.getFriction().value_in_unit(unit.picosecond**-1) == pytest.approx(40.0)
    thermostat = integrator.loop.thermostat
    assert thermostat.temperature_K == 500.0
    assert thermostat.friction_per_fs == pytest.approx(0.04)
    assert simulation.context.getTime()._value == pytest.approx(0.008)


def test_simulated_tempering():
    harmonic, start = tethered()
    simulation = nvt(start, HarmonicPropagator(harmonic), tether_force(harmonic))
    tempering = SimulatedTempering(
        simulation,
        numTemperatures=3,
        minTemperature=300 * unit.kelvin,
        maxTemperature=330 * unit.kelvin,
        tempChangeInterval=5,
        reportInterval=1000,
        reportFile=io.StringIO(),
    )
    seen = set()
    for _ in range(20):
        tempering.step(5)
        seen.add(simulation.integrator.getTemperature()._value)
    assert len(seen) > 1


def test_trajectories_of_runs_with_steps_between_jumps_have_the_right_times():
    """Both reporters take the time of a frame from the step size."""
    harmonic, start = tethered()
    simulation = nve(
        start, HarmonicPropagator(harmonic), tether_force(harmonic), md_steps_per_jump=4
    )
    simulation.reporters += [app.DCDReporter("run.dcd", 1), app.XTCReporter("run.xtc", 1)]
    simulation.step(3)
    simulation.reporters.clear()
    times = app.internal.xtc_utils.read_xtc(b"run.xtc")[2]
    np.testing.assert_allclose(times, [0.010, 0.020, 0.030], atol=1e-6)
    header = Path("run.dcd").read_bytes()
    spacing = struct.unpack("<f", header[44:48])[0] * 0.04888821
    assert spacing == pytest.approx(0.010, abs=1e-6)


# Forces that the propagator does not know


class Known(HarmonicPropagator):
    """Exact motion, in a potential that it tells."""

    def __init__(self, harmonic):
        super().__init__(harmonic)
        self.potential = FunctionForces(harmonic.energy_and_forces)


def bias_force(harmonic):
    return tether_force(Harmonic.tethers(2.0, harmonic.equilibrium + 0.3))


def test_a_bias_is_refused_or_kicks_as_in_ase():
    harmonic, start = tethered()
    simulation = nve(start, Known(harmonic), tether_force(harmonic), bias_force(harmonic))
    with pytest.raises(ConfigError, match="forces of the engine differ"):
        simulation.step(1)
    np.testing.assert_allclose(read(simulation.context)[0], start.positions, atol=1e-6)
    forces = tether_force(harmonic), bias_force(harmonic)
    simulation = nve(start, Known(harmonic), *forces, other_forces="kick")
    simulation.step(3)
    atoms = start.to_atoms()
    bias = Harmonic.tethers(2.0, harmonic.equilibrium + 0.3)
    atoms.calc = SumCalculator([HarmonicCalculator(harmonic), HarmonicCalculator(bias)])
    JumpNVE(atoms, 8 * units.FS, Known(harmonic), other_forces="kick", **FREE).run(3)
    np.testing.assert_allclose(read(simulation.context)[0], atoms.positions, atol=1e-9)


def moving_restraint(harmonic):
    restraint = bias_force(harmonic)

    def move(context):
        for i, anchor in enumerate((harmonic.equilibrium - 0.5) / units.NM):
            restraint.setParticleParameters(i, i, anchor.tolist())
        restraint.updateParametersInContext(context)

    return restraint, move


def metadynamics_bias(harmonic):
    table = openmm.Continuous1DFunction([0.0, 0.0, 0.0], 0.0, 2.0)
    bias = openmm.CustomCVForce("height(distance)")
    bias.addCollectiveVariable("distance", openmm.CustomBondForce("r"))
    bias.getCollectiveVariable(0).addBond(0, 1)
    bias.addTabulatedFunction("height", table)

    def deposit(context):
        bias.getTabulatedFunction(0).setFunctionParameters([200.0, 100.0, 0.0], 0.0, 2.0)
        bias.updateParametersInContext(context)

    return bias, deposit


@pytest.mark.parametrize("make", [moving_restraint, metadynamics_bias])
def test_values_of_forces_that_are_changed_between_steps_act_at_once(make):
    harmonic, start = tethered()

    def simulation_with_bias():
        bias, change = make(harmonic)
        forces = tether_force(harmonic), bias
        return nve(start, Known(harmonic), *forces, other_forces="kick"), change

    simulation, change = simulation_with_bias()
    simulation.step(1)
    positions, velocities = read(simulation.context)
    change(simulation.context)
    simulation.step(1)
    fresh, change = simulation_with_bias()
    fresh.context.setPositions(positions / units.NM)
    fresh.context.setVelocities(velocities * units.FS_PER_PS / units.NM)
    change(fresh.context)
    fresh.step(1)
    np.testing.assert_allclose(read(simulation.context), read(fresh.context), atol=1e-12)


def test_a_bias_that_a_parameter_turns_on_is_refused():
    harmonic, start = tethered()
    bias = openmm.CustomExternalForce("pull*x")
    bias.addGlobalParameter("pull", 0.0)
    for i in range(len(start)):
        bias.addParticle(i, [])
    simulation = nve(start, Known(harmonic), tether_force(harmonic), bias)
    simulation.step(1)
    simulation.context.setParameter("pull", 500.0)
    with pytest.raises(ConfigError, match="forces of the engine differ"):
        simulation.step(1)
    simulation.context.setParameter("pull", 0.0)
    simulation.step(1)
    assert simulation.currentStep == 2


def test_forces_added_later_are_looked_at():
    harmonic, start = tethered()
    simulation = nve(start, Known(harmonic))
    simulation.step(1)
    simulation.system.addForce(tether_force(harmonic))
    simulation.context.reinitialize(preserveState=True)
    simulation.step(1)
    assert isinstance(simulation.integrator.loop.forces, ContextForces)
    simulation.system.addForce(bias_force(harmonic))
    simulation.context.reinitialize(preserveState=True)
    with pytest.raises(ConfigError, match="forces of the engine differ"):
        simulation.step(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda system: system.setParticleMass(2, 3.0), "masses of the System have changed"),
        (lambda system: system.setParticleMass(2, 0.0), "particle 2 has no mass"),
        (constrained, "1 constraints, which a jump would break"),
    ],
)
def test_a_system_that_is_changed_later_is_looked_at(change, message):
    harmonic, start = tethered()
    simulation = nve(start, HarmonicPropagator(harmonic))
    simulation.step(1)
    change(simulation.system)
    simulation.context.reinitialize(preserveState=True)
    with pytest.raises(InputError, match=message):
        simulation.step(1)


# Randomness and restart


def test_seeds():
    harmonic, start = tethered()

    def end(seed):
        simulation = nvt(start, Noisy(harmonic))
        simulation.integrator.setRandomNumberSeed(seed)
        simulation.step(3)
        with pytest.raises(ConfigError, match="before the first step"):
            simulation.integrator.setRandomNumberSeed(seed)
        return read(simulation.context)

    np.testing.assert_array_equal(end(3), end(3))
    assert not np.array_equal(end(3), end(4))
    assert not np.array_equal(end(0), end(3))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_run_goes_on_to_the_last_bit(platform):
    harmonic, start = tethered()
    options = {"platform": platform, "md_steps_per_jump": 2}

    def run(seed):
        forces = tether_force(harmonic), openmm.CMMotionRemover(3)
        rng = np.random.default_rng(seed)
        return nvt(start, Noisy(harmonic), *forces, rng=rng, **options)

    whole = run(1)
    whole.step(7)
    whole.integrator.saveRestart("run.npz")
    expected = []
    for _ in range(10):
        whole.step(1)
        expected.append(read(whole.context))
    again = run(2)
    again.integrator.loadRestart("run.npz")
    assert again.currentStep == 7
    for frame in expected:
        again.step(1)
        np.testing.assert_array_equal(read(again.context), frame)
    assert again.context.getState().getTime() == whole.context.getState().getTime()


def test_a_restart_file_can_be_written_before_the_first_step(tmp_path):
    harmonic, start = tethered()

    def run(seed):
        rng = np.random.default_rng(seed)
        return nvt(start, Noisy(harmonic), tether_force(harmonic), rng=rng)

    whole, again = run(1), run(2)
    whole.integrator.saveRestart(tmp_path / "start.npz")
    again.integrator.loadRestart(tmp_path / "start.npz")
    for simulation in (whole, again):
        simulation.step(2)
    np.testing.assert_array_equal(read(again.context), read(whole.context))


def run_to_the_end(folder, platform, seed, kill_at=None, delay=0.0):
    """Start, or go on, and run to the end, or be killed some seconds after a step."""
    harmonic, start = tethered()
    rng = np.random.default_rng(seed)
    forces = tether_force(harmonic), openmm.CMMotionRemover(7)
    simulation = nvt(
        start, Noisy(harmonic), *forces, platform=platform, md_steps_per_jump=2, rng=rng
    )
    path = folder / "run.npz"
    if path.exists():
        simulation.integrator.loadRestart(path)
    killer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
    while (step := simulation.currentStep) < STEPS:
        if kill_at is not None and step >= kill_at and not killer.is_alive():
            killer.start()
        simulation.step(1)
        if step % 4 == 0:
            simulation.integrator.saveRestart(path)
    simulation.integrator.saveRestart(path)
    if killer.is_alive():
        killer.join()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_killed_runs_go_on_to_the_last_bit(platform, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run_to_the_end(whole, platform, 1)
    rng = np.random.default_rng()
    for kill in range(KILLS + 1):
        # The first part begins like the whole run; the seeds of the others must not matter.
        step = 10 * kill + int(rng.integers(2, 10)) if kill < KILLS else None
        arguments = (killed, platform, 1 + kill, step, 0.01 * rng.random())
        child = PROCESSES.Process(target=run_to_the_end, args=arguments)
        child.start()
        child.join()
        assert child.exitcode == (0 if step is None else -signal.SIGKILL)
        child.close()
    last, expected = read_restart(killed / "run.npz"), read_restart(whole / "run.npz")
    assert last["step"] == expected["step"] == STEPS
    for name in ("positions", "velocities", "time"):
        np.testing.assert_array_equal(last["states"][0][name], expected["states"][0][name])


def test_what_ase_has_begun_goes_on_in_openmm():
    harmonic, start = tethered()
    atoms = start.to_atoms()
    options = {**FREE, "friction": 0.01 / units.FS}
    dyn = JumpNVT(
        atoms, 8 * units.FS, Noisy(harmonic), 300, rng=np.random.default_rng(1), **options
    )
    dyn.run(5)
    dyn.save_restart("run.npz")
    dyn.run(5)
    simulation = nvt(start, Noisy(harmonic))
    simulation.integrator.loadRestart("run.npz")
    simulation.step(5)
    np.testing.assert_allclose(read(simulation.context)[0], atoms.positions, atol=1e-12)
    assert simulation.currentStep == 10
    other = nvt(start, HarmonicPropagator(harmonic))
    with pytest.raises(ModelFileError, match="propagator = Noisy"):
        other.integrator.loadRestart("run.npz")


def test_a_finished_simulation_is_freed():
    harmonic, start = tethered()
    simulation = nve(start, HarmonicPropagator(harmonic))
    simulation.step(1)
    context = weakref.ref(simulation.context)
    gc.disable()
    try:
        del simulation
        assert context() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["temperature", "frictionCoeff", "stepSize"])
@pytest.mark.parametrize("value", ["300", [300.0], True, 1 + 1j, 3 * unit.meter])
def test_arguments_that_are_no_numbers_are_refused_with_their_unit(name, value):
    arguments = {"temperature": 300.0, "frictionCoeff": 1.0, "stepSize": 0.008, name: value}
    with pytest.raises(ConfigError, match=r"cannot be expressed in .*give a number in that unit"):
        JumpNVTIntegrator(
            HarmonicPropagator(springs()), topology_of(springs_state().to_atoms()), **arguments
        )
