"""What jumps cost in force calls in OpenMM, and that saving them changes no number."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from another_process import run_child
from ase.build import molecule
from jump_systems import tethered

from mlmd_calc import MDETCalculator, Potential, load_propagator, units
from mlmd_calc.md import JumpSettings, MDSettings, Run, draw_momenta, read_record
from mlmd_calc.potential import structure_from_ase
from mlmd_calc.propagation import Corrections, FunctionForces, Guard
from mlmd_calc.propagation.harmonic import HarmonicPropagator

openmm = pytest.importorskip("openmm", reason="openmm is not installed")

from openmm_systems import PLATFORMS, context_of, system_of, topology_of  # noqa: E402

from openmm_bridge import (  # noqa: E402
    JumpNVEIntegrator,
    JumpNVTIntegrator,
    OpenMMEngine,
    available_backends,
    create_force,
)
from openmm_bridge.jump_context import ContextForces  # noqa: E402

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name not in available_backends(), reason=str(available_backends().unavailable.get(name))
        ),
    )
    for name in ("python", "torchscript")
]
TOLERANCE = 1e-12
"""Å. Forces come back from kJ/mol/nm, which is some 1e-16 of them."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """Who was asked for energies or forces, in the order of the calls."""
    asked = []
    for name, kind in {"engine": ContextForces, "potential": Potential}.items():
        evaluate = kind.evaluate

        def counting(*given, name=name, evaluate=evaluate, **more):
            asked.append(name)
            return evaluate(*given, **more)

        monkeypatch.setattr(kind, "evaluate", counting)
    return asked


def ethanol():
    atoms = molecule("CH3CH2OH")
    draw_momenta(atoms, 300.0, np.random.default_rng(0))
    return atoms


def jumping(*others, backend="python", platform="Reference", propagator=None, seed=0, **options):
    """A Context of ethanol with the force of a model and other forces, which jumps."""
    atoms = ethanol()
    topology = topology_of(atoms)
    force = create_force(topology, backend=backend, device="cpu", **options)
    integrator = JumpNVTIntegrator(
        propagator or load_propagator("atom-small-organics", device="cpu", dtype="float64"),
        topology,
        300,
        10,
        0.008,
        rng=np.random.default_rng(seed),
    )
    context = context_of(
        system_of(atoms, force, *others), atoms.positions, platform, integrator=integrator
    )
    context.setVelocities(atoms.get_velocities() * units.PS / units.NM)
    return context


def nothing():
    """A force that does nothing but be another one."""
    return openmm.CustomBondForce("r")


def step(context, steps=1):
    context.getIntegrator().step(steps)
    return positions_of(context)


def positions_of(context):
    return context.getState(getPositions=True).getPositions(asNumpy=True)._value * units.NM


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_jump_takes_the_forces_that_came_with_the_energy_of_the_one_before(
    asked, backend, platform
):
    context = jumping(backend=backend, platform=platform)
    assert context.getIntegrator().loop.setup.shares_forces
    asked.clear()
    shared = step(context, 5)
    assert asked.count("engine") == 6
    # A Python force is evaluated by the potential, one of TorchScript by itself.
    assert asked.count("potential") == (6 if backend == "python" else 0)
    apart = jumping(nothing(), backend=backend, platform=platform)
    assert not apart.getIntegrator().loop.setup.shares_forces
    asked.clear()
    np.testing.assert_allclose(shared, step(apart, 5), rtol=0.0, atol=TOLERANCE)
    assert asked.count("engine") == 6
    assert asked.count("potential") == (11 if backend == "python" else 5)


def test_a_propagator_by_name_takes_forces_of_higher_precision(asked):
    context = jumping(propagator="atom-small-organics")
    step(context)
    asked.clear()
    step(context, 3)
    assert asked == 3 * ["engine", "potential"]


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"dtype": "mixed"},
        {"rotation": "average", "n_rotations": 2},
        {"forces": "direct", "rotation": "none"},
        {"remove_net_force": True},
        {"model": "mdet-small-organics-gfn2"},
    ],
)
def test_other_forces_of_the_engine_are_not_taken_for_the_potential(options):
    context = jumping(**options)
    integrator = context.getIntegrator()
    integrator._options["other_forces"] = "ignore"
    assert not integrator.loop.setup.shares_forces


def test_random_orientations_are_drawn_by_each():
    potential = Potential(device="cpu", forces="direct", rotation="random", seed=1)
    propagator = load_propagator("atom-small-organics", dtype="float64", potential=potential)
    context = jumping(propagator=propagator, forces="direct", rotation="random", seed=1)
    assert not context.getIntegrator().loop.setup.shares_forces


def test_atoms_that_are_moved_in_between_have_their_own_forces(asked):
    ends = []
    for others in ([], [nothing()]):
        context = jumping(*others)
        step(context, 2)
        moved = positions_of(context)
        moved[8] += [0.02, 0.0, 0.0]
        context.setPositions(moved / units.NM)
        asked.clear()
        ends.append(step(context))
    np.testing.assert_allclose(*ends, rtol=0.0, atol=TOLERANCE)


def test_velocities_that_are_changed_in_between_cost_nothing(asked):
    context = jumping(openmm.CMMotionRemover(1))
    step(context)
    context.setVelocities(1.2 * context.getState(getVelocities=True).getVelocities(asNumpy=True))
    asked.clear()
    step(context, 3)
    assert asked == 3 * ["engine", "potential"]


def test_forces_that_come_in_between_end_the_sharing():
    context = jumping()
    step(context)
    system, integrator = context.getSystem(), context.getIntegrator()
    system.addForce(nothing())
    context.reinitialize(preserveState=True)
    step(context)
    assert not integrator.loop.setup.shares_forces
    system.removeForce(1)
    context.reinitialize(preserveState=True)
    step(context)
    assert integrator.loop.setup.shares_forces


def test_a_parameter_that_is_changed_in_between_acts_at_once():
    harmonic, start = tethered()

    class Known(HarmonicPropagator):
        potential = FunctionForces(harmonic.energy_and_forces)

    def pulled():
        atoms = start.to_atoms()
        spring = openmm.CustomExternalForce(f"{0.5 * 5.0 * units.PS**2}*(x^2+y^2+z^2)+pull*x")
        spring.addGlobalParameter("pull", 0.0)
        for i in range(len(atoms)):
            spring.addParticle(i, [])
        context = context_of(
            system_of(atoms, spring),
            start.positions,
            integrator=JumpNVEIntegrator(
                Known(harmonic),
                topology_of(atoms),
                0.008,
                other_forces="kick",
                guard=Guard.off(),
                corrections=Corrections.none(),
            ),
        )
        context.setVelocities(start.velocities * units.FS_PER_PS / units.NM)
        return context

    one, other = pulled(), pulled()
    step(one, 2)
    state = one.getState(getPositions=True, getVelocities=True)
    other.setPositions(state.getPositions())
    other.setVelocities(state.getVelocities())
    for context in (one, other):
        context.setParameter("pull", 300.0)
    np.testing.assert_allclose(step(one), step(other), rtol=0.0, atol=TOLERANCE)


def go_on(folder, backend):
    """Continue a run, with another seed, and write where it has led."""
    context = jumping(backend=backend, seed=7)
    context.getIntegrator().loadRestart(folder / "run.npz")
    np.save(folder / "end.npy", step(context, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_goes_on_in_another_process_to_the_last_bit(asked, backend):
    context = jumping(backend=backend)
    step(context, 3)
    context.getIntegrator().saveRestart("run.npz")
    asked.clear()
    end = step(context, 3)
    assert asked.count("engine") == 3
    run_child(go_on, Path.cwd(), backend)
    np.testing.assert_array_equal(np.load("end.npy"), end)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_recorded_run_evaluates_once_per_jump(monkeypatch, backend):
    evaluations = []
    read = openmm.Context.getState

    def counting(context, **what):
        if what.get("getEnergy") or what.get("getForces"):
            evaluations.append(what)
        return read(context, **what)

    monkeypatch.setattr(openmm.Context, "getState", counting)
    atoms = ethanol()
    atoms.calc = MDETCalculator(device="cpu")
    potential = atoms.calc.potential
    propagator = load_propagator("atom-small-organics", device="cpu", potential=potential)
    settings = MDSettings(interval=1, seed=1, jumps=JumpSettings("atom-small-organics", 8.0))
    engine = OpenMMEngine(backend=backend)
    with Run.start(atoms, "run", settings, engine=engine, propagator=propagator) as run:
        run.run(1)
        evaluations.clear()
        run.run(5)
    assert len(evaluations) == 4
    for frame in read_record("run").frames:
        known = potential.evaluate(
            [replace(structure_from_ase(atoms), positions=frame["positions"])]
        )
        assert frame["potential"] == pytest.approx(known[0].energy, abs=1e-9)
        np.testing.assert_allclose(frame["forces"], known[0].forces, rtol=0.0, atol=1e-9)
