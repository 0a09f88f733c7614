"""The OpenMM-ML potential: whole systems, mixed systems, interpolation, refusals."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from toy_models import toy_model

from mlmd_calc import MDETCalculator, units
from mlmd_calc.errors import ConfigError, InputError

openmm = pytest.importorskip("openmm", reason="openmm is not installed")
openmmml = pytest.importorskip("openmmml", reason="openmmml is not installed")

from openmm import app, unit  # noqa: E402
from openmm_systems import context_of, energy_and_forces, topology_of  # noqa: E402

import openmm_bridge  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
EDGE = 1.7
"""nm."""


@pytest.fixture(scope="module")
def solvated() -> tuple[app.Topology, openmm.System, np.ndarray]:
    """Ethanol in rigid water: topology, classical System, positions in Å."""
    pdb = app.PDBFile(str(EXAMPLES / "ethanol.pdb"))
    field = app.ForceField("tip3p.xml", str(EXAMPLES / "ethanol_opls.xml"))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(field, boxSize=openmm.Vec3(EDGE, EDGE, EDGE) * unit.nanometer)
    system = field.createSystem(
        modeller.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.45 * EDGE * unit.nanometer,
        constraints=app.HBonds,
    )
    positions = np.array(modeller.positions.value_in_unit(unit.angstrom))
    return modeller.topology, system, positions


def potential(**options: object) -> openmmml.MLPotential:
    return openmmml.MLPotential("mdet", **options)


def force_group_energy(context: openmm.Context, group: int) -> float:
    state = context.getState(getEnergy=True, groups={group})
    return state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def test_whole_system_gives_the_calculators_numbers():
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=1)
    system = potential(model="mdet-small-organics").createSystem(topology_of(atoms), device="cpu")
    energy, forces = energy_and_forces(context_of(system, atoms.positions))
    atoms.calc = MDETCalculator("mdet-small-organics", device="cpu")
    assert energy == pytest.approx(atoms.get_potential_energy() / units.KJ_PER_MOL, rel=1e-9)
    known = atoms.get_forces() * units.NM / units.KJ_PER_MOL
    np.testing.assert_allclose(forces, known, rtol=0, atol=1e-9 * np.abs(known).max())


def test_options_reach_the_model():
    atoms = molecule("NH3")
    model = toy_model()
    options = {"charge": 1, "multiplicity": 2, "forces": "direct", "rotation": "none"}
    system = potential(model=model).createSystem(
        topology_of(atoms), precision="single", device="cpu", **options
    )
    forces = energy_and_forces(context_of(system, atoms.positions))[1]
    atoms.calc = MDETCalculator(model, dtype="float32", device="cpu", **options)
    known = atoms.get_forces() * units.NM / units.KJ_PER_MOL
    np.testing.assert_allclose(forces, known, rtol=0, atol=1e-9 * np.abs(known).max())


def test_mixed_system_adds_the_model_and_keeps_the_water_rigid(solvated):
    topology, classical, positions = solvated
    mixed = potential().createMixedSystem(topology, classical, range(9), forceGroup=7, device="cpu")
    waters = (topology.getNumAtoms() - 9) // 3
    assert mixed.getNumConstraints() == 3 * waters
    context = context_of(mixed, positions)
    atoms = molecule("CH3CH2OH")
    atoms.set_positions(positions[:9])
    atoms.calc = MDETCalculator(device="cpu")
    known = atoms.get_potential_energy() / units.KJ_PER_MOL
    assert force_group_energy(context, 7) == pytest.approx(known, rel=1e-9)
    assert [len(m) for m in context.getMolecules()].count(9) == 1
    before, after = (len(openmm.XmlSerializer.serialize(s)) for s in (classical, mixed))
    assert after < 1.1 * before


def test_mixed_system_with_barostat_runs(solvated):
    topology, classical, positions = solvated
    mixed = potential().createMixedSystem(topology, classical, range(9), device="cpu")
    mixed.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 1))
    integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.0005)
    integrator.setRandomNumberSeed(1)
    context = context_of(mixed, positions, "CPU", integrator=integrator)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 20)
    integrator.step(10)
    moved = context.getState(getPositions=True).getPositions(asNumpy=True)._value[:9] * 10
    lengths = [np.linalg.norm(x[1:9] - x[0], axis=1) for x in (moved, positions)]
    assert np.abs(lengths[0] - lengths[1]).max() < 0.5


def test_ml_atoms_in_other_images_have_the_same_energy(solvated):
    """Interactions among their charges are taken out of the Ewald sum wherever they lie."""
    topology, classical, positions = solvated
    torn = positions.copy()
    torn[:4, 0] += EDGE * units.NM
    mixed = potential().createMixedSystem(topology, classical, range(9), device="cpu")
    energies = [energy_and_forces(context_of(mixed, x))[0] for x in (positions, torn)]
    assert energies[1] == pytest.approx(energies[0], abs=0.01)
    again = copy.deepcopy(mixed)
    nonbonded = next(f for f in again.getForces() if isinstance(f, openmm.NonbondedForce))
    nonbonded.setExceptionsUsePeriodicBoundaryConditions(False)
    with pytest.raises(openmm.OpenMMException, match="in different images of the periodic box"):
        energy_and_forces(context_of(again, torn))
    # OpenMM-ML takes the distances of the file for the interactions that it interpolates.
    both = potential().createMixedSystem(
        topology, flexible(solvated), range(9), interpolate=True, device="cpu"
    )
    with pytest.raises(openmm.OpenMMException, match="the molecule is whole"):
        energy_and_forces(context_of(both, torn))


def flexible(solvated) -> openmm.System:
    """Make the ethanol's constraints bonds, as a force field without constraints has them."""
    topology, classical, positions = solvated
    classical = copy.deepcopy(classical)
    for i in reversed(range(classical.getNumConstraints())):
        if classical.getConstraintParameters(i)[0] < 9:
            classical.removeConstraint(i)
    bonds = openmm.HarmonicBondForce()
    for bond in topology.bonds():
        i, j = bond[0].index, bond[1].index
        if i < 9:
            bonds.addBond(i, j, np.linalg.norm(positions[i] - positions[j]) / 10, 2e5)
    classical.addForce(bonds)
    return classical


def test_interpolation_goes_from_classical_to_learned(solvated):
    topology, _, positions = solvated
    classical = flexible(solvated)
    own = potential()
    both = own.createMixedSystem(topology, classical, range(9), interpolate=True, device="cpu")
    mixed = own.createMixedSystem(topology, classical, range(9), device="cpu")
    learned = energy_and_forces(context_of(mixed, positions))[0]
    known = energy_and_forces(context_of(classical, positions))[0]
    context = context_of(both, positions)
    for fraction in (0.0, 0.5, 1.0):
        context.setParameter("lambda_interpolate", fraction)
        expected = fraction * learned + (1.0 - fraction) * known
        assert energy_and_forces(context)[0] == pytest.approx(expected, rel=1e-5)


def test_interpolation_needs_bonds_instead_of_constraints(solvated):
    topology, classical, positions = solvated
    both = potential().createMixedSystem(
        topology, classical, range(9), interpolate=True, device="cpu"
    )
    with pytest.raises(InputError, match="with constraints=None"):
        openmm_bridge.check_system(both)
    with pytest.raises(openmm.OpenMMException, match="with constraints=None"):
        energy_and_forces(context_of(both, positions))


@pytest.mark.parametrize("interpolate", [False, True])
def test_a_barostat_added_to_direct_forces_is_noticed(solvated, interpolate):
    topology, _, positions = solvated
    mixed = potential(model="mdet-small-organics").createMixedSystem(
        topology,
        flexible(solvated),
        range(9),
        interpolate=interpolate,
        forces="direct",
        device="cpu",
    )
    energy_and_forces(context_of(mixed, positions))
    mixed.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 1))
    context = context_of(mixed, positions, "CPU")
    with pytest.raises(openmm.OpenMMException, match="barostat needs forces that are the gradient"):
        context.getIntegrator().step(30)


def test_unknown_options_are_refused():
    topology = topology_of(molecule("H2O"))
    with pytest.raises(ConfigError, match=r"unknown option modelPath for MLPotential\('mdet'"):
        potential(modelPath="x")
    with pytest.raises(ConfigError, match=r"unknown option charges .* there are backend, charge"):
        potential().createSystem(topology, charges=1)
    with pytest.raises(ConfigError, match="precision='half'; choose one of single, double, mixed"):
        potential().createSystem(topology, precision="half")


def test_constraints_kept_among_ml_atoms_are_refused(solvated):
    topology, classical, _ = solvated
    held = copy.deepcopy(classical)
    held.addConstraint(0, 6, 0.109)
    potential().createMixedSystem(topology, held, range(9))
    with pytest.raises(InputError, match="held at a fixed distance"):
        potential().createMixedSystem(topology, held, range(9), removeConstraints=False)


def test_periodic_system_of_ml_atoms_only_is_refused():
    topology = topology_of(molecule("H2O"))
    topology.setUnitCellDimensions((2, 2, 2) * unit.nanometer)
    with pytest.raises(InputError, match="periodic and all of it"):
        potential().createSystem(topology)


def test_openmmml_loads_the_plugin_without_torch():
    code = """
import sys
import openmm_bridge.plugin
import openmmml
assert "mdet" in openmmml.MLPotential._implFactories
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
