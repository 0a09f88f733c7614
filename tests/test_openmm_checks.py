"""What may stand beside the force in a System, and which Systems are read from XML."""

import copy
import pickle
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import molecule
from toy_models import SMALL, random_network, toy_model

from mlmd_calc.data.molecules import atoms_from_smiles
from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.potential import Potential
from mlmd_calc.propagation import VerletPropagator
from mlmd_calc.zoo import save_model

openmm = pytest.importorskip("openmm", reason="openmm is not installed")

from openmm import app  # noqa: E402
from openmm_systems import context_of, energy_and_forces, system_of, topology_of  # noqa: E402

from openmm_bridge import (  # noqa: E402
    JumpNVEIntegrator,
    check_system,
    create_force,
    load_system,
)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def ethanol() -> ase.Atoms:
    return molecule("CH3CH2OH")


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "toy.safetensors"
    save_model(path, random_network(SMALL), {}, {"name": "toy"})
    return str(path)


def force_on(atoms: ase.Atoms, model: object = None, **options: object) -> openmm.Force:
    options = {"device": "cpu", "rotation": "none", **options}
    return create_force(topology_of(atoms), toy_model() if model is None else model, **options)


def bonds_of(atoms: ase.Atoms, strength: float = 2e5) -> openmm.HarmonicBondForce:
    """Bonds of a force field."""
    force = openmm.HarmonicBondForce()
    for bond in topology_of(atoms).bonds():
        i, j = bond[0].index, bond[1].index
        force.addBond(i, j, atoms.get_distance(i, j) / 10, strength)
    return force


def all_bonds(force: openmm.HarmonicBondForce) -> list[tuple]:
    return [tuple(force.getBondParameters(i)) for i in range(force.getNumBonds())]


def assert_refused(system: openmm.System, force: openmm.Force, atoms: ase.Atoms, match: str):
    """By `check_system`, and by the first evaluation if nobody calls that."""
    with pytest.raises(InputError, match=match):
        check_system(system, force)
    with pytest.raises(openmm.OpenMMException, match=match):
        energy_and_forces(context_of(system, atoms.positions))


# ---- forces that OpenMM hands out ---------------------------------------------------------------


def test_forces_handed_out_again_are_known(ethanol, stored):
    system = system_of(ethanol, force_on(ethanol, stored))
    for made in (
        system,
        copy.deepcopy(system),
        openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system)),
    ):
        check_system(made)
        check_system(made, made.getForce(0))
        made.addConstraint(0, 1, 0.15)
        with pytest.raises(InputError, match="ML atoms 0 and 1 are held"):
            check_system(made, made.getForce(0))


def test_copies_check_the_system_they_are_in(ethanol, stored):
    made = copy.deepcopy(system_of(ethanol, force_on(ethanol, stored)))
    made.addConstraint(0, 1, 0.15)
    with pytest.raises(openmm.OpenMMException, match="ML atoms 0 and 1 are held"):
        energy_and_forces(context_of(made, ethanol.positions))


def test_forces_that_say_nothing_of_their_atoms_are_refused(ethanol):
    system = system_of(ethanol, force_on(ethanol))
    with pytest.raises(InputError, match="does not say which atoms it acts on"):
        check_system(system, system.getForce(0))
    with pytest.raises(InputError, match="has no force of this package"):
        check_system(system_of(ethanol))


def alchemical(*forces: openmm.Force, size: int) -> openmm.ATMForce:
    """Half of the forces here, half of them in the same place."""
    made = openmm.ATMForce(0.5, 0.5, 0, 0, 0, 0, 0, 0, 1)
    for _ in range(size):
        made.addParticle(openmm.Vec3(0, 0, 0))
    for force in forces:
        made.addForce(force)
    return made


def test_a_force_in_an_atm_force_is_checked(ethanol, stored):
    """OpenMM hands its inner forces out without their kind."""
    alone = system_of(ethanol, alchemical(force_on(ethanol, stored), size=9))
    read = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(alone))
    expected = energy_and_forces(
        context_of(system_of(ethanol, force_on(ethanol, stored)), ethanol.positions)
    )
    for system in (alone, read):
        check_system(system)
        found = energy_and_forces(context_of(system, ethanol.positions))
        np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-8)
        system.addForce(bonds_of(ethanol))
        with pytest.raises(InputError, match="8 bonds, angles and torsions of a force field act"):
            check_system(system)


def test_bonds_and_second_models_in_an_atm_force_are_found(ethanol, stored):
    force = force_on(ethanol, stored)
    double = system_of(ethanol, alchemical(force, bonds_of(ethanol), size=9))
    with pytest.raises(InputError, match="8 bonds, angles and torsions of a force field act"):
        check_system(double)
    with pytest.raises(openmm.OpenMMException, match="8 bonds, angles and torsions"):
        energy_and_forces(context_of(double, ethanol.positions))
    twice = system_of(ethanol, alchemical(force_on(ethanol, stored), size=9))
    twice.addForce(force_on(ethanol, stored))
    with pytest.raises(InputError, match="two forces of this package act on particle 0"):
        check_system(twice)


# ---- whole molecules, one at a time -------------------------------------------------------------


def test_a_part_of_a_molecule_is_refused(ethanol):
    carbon = [1, *(bond[1].index for bond in topology_of(ethanol).bonds() if bond[0].index == 1)]
    group = [i for i in carbon if i == 1 or ethanol.numbers[i] == 1]
    assert ethanol[group].get_chemical_formula() == "CH2"
    with pytest.raises(InputError, match="end at the bond between atom 1 and atom"):
        create_force(topology_of(ethanol), toy_model(), atoms=group)


def test_a_residue_of_a_peptide_is_refused():
    topology = app.PDBFile(str(EXAMPLES / "alanine_dipeptide.pdb")).topology
    residue = [atom.index for atom in topology.atoms() if atom.residue.name == "ALA"]
    with pytest.raises(InputError, match="put all atoms of the molecule into atoms"):
        create_force(topology, toy_model(), atoms=residue)


def test_ions_whose_charge_nothing_states_are_refused(stored):
    pytest.importorskip("rdkit", reason="rdkit reads SMILES")
    dianion, zwitterion = (
        atoms_from_smiles(smiles) for smiles in ("[O-]C(=O)C(=O)[O-]", "C(C(=O)[O-])[NH3+]")
    )
    with pytest.raises(InputError, match=r"the charge -2; give charge=-2, or"):
        force_on(dianion)
    assert force_on(dianion, charge=-2).region.charge == -2
    assert force_on(dianion, charge=0).region.charge == 0
    assert force_on(zwitterion).region.charge == 0
    without_bonds = ligand_without_bonds(dianion)
    made = system_of(dianion, create_force(without_bonds, stored, device="cpu"))
    for system in (made, copy.deepcopy(made)):
        context = context_of(system, dianion.positions)
        with pytest.raises(openmm.OpenMMException, match="the charge -2; give charge=-2, or"):
            context.getState(getEnergy=True)
    propagator = VerletPropagator(Potential(toy_model()), 0.5)
    integrator = JumpNVEIntegrator(propagator, without_bonds, 0.002)
    jumping = context_of(system_of(dianion), dianion.positions, "Reference", integrator)
    with pytest.raises(InputError, match="the charge -2; give charge=-2, or"):
        jumping.getIntegrator().step(1)


def test_two_molecules_are_refused(ethanol):
    other = molecule("H2O")
    other.translate([5.0, 0.0, 0.0])
    topology = topology_of(ethanol + other)
    with pytest.raises(InputError, match=r"are 2 molecules \(no bonds lead from atom 0 to atom 9"):
        create_force(topology, toy_model())
    create_force(topology, toy_model(), atoms=range(9))


def ligand_without_bonds(atoms: ase.Atoms) -> app.Topology:
    """Topology of a PDB file without CONECT records."""
    topology = app.Topology()
    residue = topology.addResidue("LIG", topology.addChain())
    for symbol in atoms.get_chemical_symbols():
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    return topology


def test_a_ligand_without_bonds_is_one_molecule(ethanol):
    create_force(ligand_without_bonds(ethanol), toy_model())


def test_bonds_of_the_system_are_not_cut(ethanol):
    """The topology has no bonds, but the force field has."""
    topology = ligand_without_bonds(ethanol)
    force = create_force(topology, toy_model(), atoms=range(7), multiplicity=1, charge=0)
    with pytest.raises(InputError, match="bond of the force field ties particles"):
        check_system(system_of(ethanol, bonds_of(ethanol)), force)
    system = system_of(ethanol)
    system.addConstraint(0, 8, 0.109)
    with pytest.raises(InputError, match="constraint ties particles 0 and 8"):
        check_system(system, force)
    restraint = openmm.HarmonicBondForce()
    restraint.addBond(0, 8, 0.2, 1000.0)
    check_system(system_of(ethanol, restraint, force), force)


# ---- the force field beside the model -----------------------------------------------------------


def test_a_force_field_beside_the_model_is_refused(ethanol):
    force = force_on(ethanol)
    system = system_of(ethanol, bonds_of(ethanol), force)
    assert_refused(system, force, ethanol, "8 bonds, angles and torsions .* counted twice")


@pytest.mark.parametrize("again", ["reinitialize", "another Context"])
def test_a_system_that_is_changed_after_the_first_evaluation_is_checked_again(ethanol, again):
    system = system_of(ethanol, force_on(ethanol))
    context = context_of(system, ethanol.positions)
    before, _ = energy_and_forces(context)
    system.addForce(openmm.CMMotionRemover())
    context.reinitialize(preserveState=True)
    assert energy_and_forces(context)[0] == before
    system.addForce(bonds_of(ethanol))
    if again == "reinitialize":
        context.reinitialize(preserveState=True)
    else:
        context = context_of(system, ethanol.positions)
    with pytest.raises(openmm.OpenMMException, match="would be counted twice"):
        energy_and_forces(context)


def test_a_force_that_grows_after_the_first_evaluation_is_checked_again(ethanol):
    bonds = openmm.HarmonicBondForce()
    system = system_of(ethanol, force_on(ethanol), bonds)
    energy_and_forces(context_of(system, ethanol.positions))
    for i, j, length, strength in all_bonds(bonds_of(ethanol)):
        system.getForce(1).addBond(i, j, length, strength)
    with pytest.raises(openmm.OpenMMException, match="would be counted twice"):
        energy_and_forces(context_of(system, ethanol.positions))


def test_custom_angles_and_torsions_count_as_a_force_field(ethanol):
    angles = openmm.CustomAngleForce("50 * (theta - 1.9)^2")
    torsions = openmm.CustomTorsionForce("1 + cos(3 * theta)")
    for i in range(7):
        angles.addAngle(i, i + 1, i + 2)
    for i in range(6):
        torsions.addTorsion(i, i + 1, i + 2, i + 3)
    force = force_on(ethanol)
    assert_refused(system_of(ethanol, force, angles, torsions), force, ethanol, "counted twice")
    # Two of them are restraints of the user's.
    restraint = openmm.CustomTorsionForce("10 * (theta - 1)^2")
    for i in range(2):
        restraint.addTorsion(i, i + 1, i + 2, i + 3)
    energy_and_forces(
        context_of(system_of(ethanol, force_on(ethanol), restraint), ethanol.positions)
    )


def test_angles_that_are_left_count_as_a_force_field(ethanol):
    force = force_on(ethanol)
    angles = openmm.HarmonicAngleForce()
    neighbours = {i: set() for i in range(9)}
    for bond in topology_of(ethanol).bonds():
        neighbours[bond[0].index].add(bond[1].index)
        neighbours[bond[1].index].add(bond[0].index)
    for centre, others in neighbours.items():
        for i in others:
            for j in others:
                if i < j:
                    angles.addAngle(i, centre, j, 1.9, 400.0)
    assert_refused(system_of(ethanol, angles, force), force, ethanol, "counted twice")


def test_nonbonded_interactions_among_ml_atoms_are_refused(ethanol):
    force = force_on(ethanol)
    nonbonded = openmm.NonbondedForce()
    for _ in ethanol:
        nonbonded.addParticle(0.1, 0.3, 0.0)
    assert_refused(
        system_of(ethanol, nonbonded, force), force, ethanol, "acts between ML atoms 0 and 1"
    )
    nonbonded = openmm.NonbondedForce(nonbonded)
    for i in range(9):
        for j in range(i):
            nonbonded.addException(i, j, 0.0, 0.3, 0.0)
    check_system(system_of(ethanol, nonbonded), force)


@pytest.mark.parametrize("of", ["Particle", "Exception"])
def test_nonbonded_interactions_that_a_parameter_turns_on_are_refused(ethanol, of):
    force = force_on(ethanol)
    nonbonded = openmm.NonbondedForce()
    nonbonded.addGlobalParameter("scale", 0.0)
    for _ in ethanol:
        nonbonded.addParticle(0.0, 0.3, 0.0)
    for i in range(9 if of == "Exception" else 0):
        for j in range(i):
            nonbonded.addException(i, j, 0.0, 0.3, 0.0)
    for index in (0, 1):
        getattr(nonbonded, f"add{of}ParameterOffset")("scale", index, 0.2, 0.0, 0.0)
    assert_refused(system_of(ethanol, nonbonded, force), force, ethanol, "acts between ML atoms")


def test_custom_nonbonded_interactions_among_ml_atoms_are_refused(ethanol, stored):
    """As the Lennard-Jones terms of CHARMM, which OpenMM puts beside the NonbondedForce."""
    force = force_on(ethanol, stored)
    energy = openmm.CustomNonbondedForce("4*0.3*((0.3/r)^12-(0.3/r)^6)")
    for _ in ethanol:
        energy.addParticle([])
    apart = openmm.CustomNonbondedForce(energy)
    apart.addInteractionGroup(range(9), [])
    check_system(system_of(ethanol, apart, force_on(ethanol, stored)))
    assert_refused(
        system_of(ethanol, energy, force), force, ethanol, "CustomNonbondedForce.* atoms 0 and 1"
    )
    energy = openmm.CustomNonbondedForce(energy)
    for i in range(9):
        for j in range(i):
            energy.addExclusion(i, j)
    check_system(system_of(ethanol, energy, force_on(ethanol, stored)))


def test_amoeba_beside_the_model_is_refused(ethanol, stored):
    """Its bonds can be taken away, as by OpenMM-ML, and the rest cannot."""
    force, rest = force_on(ethanol, stored), openmm.AmoebaVdwForce()
    for i in range(len(ethanol)):
        rest.addParticle(i, 0.3, 0.4, 1.0)
    assert_refused(
        system_of(ethanol, rest, force), force, ethanol, "AmoebaVdwForce acts between ML atoms"
    )


def test_a_force_that_was_added_twice_is_refused(ethanol, stored):
    first, second = force_on(ethanol, stored), force_on(ethanol, stored)
    assert_refused(
        system_of(ethanol, first, second), second, ethanol, "two forces .* particle 0 in force"
    )
    other = force_on(ethanol, stored, forceGroup=1)
    check_system(system_of(ethanol, other, force_on(ethanol, stored)))


def test_a_model_among_collective_variables(ethanol, stored):
    """As in alchemical scaling with a restraint; what is interpolated is known by its parameter."""
    alone = context_of(system_of(ethanol, force_on(ethanol, stored)), ethanol.positions)
    energy, forces = energy_and_forces(alone)
    distance = openmm.CustomBondForce("r")
    distance.addBond(0, 2)
    together = openmm.CustomCVForce("scale*learned + 500*(distance - 0.2)^2")
    together.addGlobalParameter("scale", 0.25)
    together.addCollectiveVariable("learned", force_on(ethanol, stored))
    together.addCollectiveVariable("distance", distance)
    system = system_of(ethanol, together)
    check_system(system)
    found, found_forces = energy_and_forces(context_of(system, ethanol.positions))
    arm = (ethanol.positions[2] - ethanol.positions[0]) / 10
    stretch = np.linalg.norm(arm) - 0.2
    forces = 0.25 * forces
    forces[0] += 1000 * stretch * arm / np.linalg.norm(arm)
    forces[2] -= 1000 * stretch * arm / np.linalg.norm(arm)
    assert found == pytest.approx(0.25 * energy + 500 * stretch**2)
    np.testing.assert_allclose(found_forces, forces, atol=1e-6)


def test_restraints_are_no_force_field(ethanol):
    restraint = openmm.HarmonicBondForce()
    restraint.addBond(0, 2, 0.24, 1e5)
    torsion = openmm.PeriodicTorsionForce()
    torsion.addTorsion(3, 2, 1, 0, 1, 0.0, 50.0)
    pull = openmm.CustomBondForce("k*(r-r0)^2")
    for name, value in (("k", 1000.0), ("r0", 0.3)):
        pull.addGlobalParameter(name, value)
    pull.addBond(0, 2)
    system = system_of(ethanol, restraint, torsion, pull, force_on(ethanol))
    energy_and_forces(context_of(system, ethanol.positions))


def test_zero_bonds_are_no_force_field(ethanol):
    system = system_of(ethanol, bonds_of(ethanol, strength=0.0), force_on(ethanol))
    energy_and_forces(context_of(system, ethanol.positions))


# ---- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_another_unit_of_length_is_refused(ethanol, factor):
    context = context_of(system_of(ethanol, force_on(ethanol)), factor * ethanol.positions)
    with pytest.raises(openmm.OpenMMException, match="positions in OpenMM are in nm"):
        energy_and_forces(context)


# ---- systems read from XML ----------------------------------------------------------------------


class Foreign:
    """What a stranger could have pickled: it leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_systems_with_our_forces_are_loaded(ethanol, stored, tmp_path):
    system = system_of(ethanol, force_on(ethanol, stored))
    path = tmp_path / "system.xml"
    path.write_text(openmm.XmlSerializer.serialize(system))
    results = [
        energy_and_forces(context_of(s, ethanol.positions))[1] for s in (load_system(path), system)
    ]
    np.testing.assert_array_equal(*results)


def test_positions_in_another_order_than_the_topology_are_refused(ethanol):
    """Oxygen and the methyl carbon exchanged: the model would see a molecule that there is not."""
    order = [2, 1, 0, *range(3, 9)]
    other = ethanol[order]
    energy_and_forces(context_of(system_of(other, force_on(other)), other.positions))
    context = context_of(system_of(other, force_on(other)), ethanol.positions)
    reason = r"topology says that atoms 2 \(C\) and \d \(H\) are bonded, but they are .* order"
    with pytest.raises(openmm.OpenMMException, match=reason):
        energy_and_forces(context)


@pytest.mark.parametrize("nested", [False, True])
def test_foreign_code_in_a_system_does_not_run(ethanol, stored, tmp_path, nested):
    force = force_on(ethanol, stored)
    if nested:
        force, inner = openmm.CustomCVForce("x"), force
        force.addCollectiveVariable("x", inner)
    text = openmm.XmlSerializer.serialize(system_of(ethanol, force))
    begin = text.index('function="') + len('function="')
    end = text.index('"', begin)
    path, trace = tmp_path / "system.xml", tmp_path / "trace"
    foreign = pickle.dumps(Foreign(trace)).hex()
    path.write_text(text[:begin] + foreign + text[end:])
    with pytest.raises(ModelFileError, match=r"would run pathlib\S*Path\.touch|would run pathlib"):
        load_system(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    ["", "<State/>", "no XML", '<System><Force type="PythonForce" function="zz"/></System>'],
)
def test_files_that_are_no_systems_are_refused(tmp_path, content):
    path = tmp_path / "system.xml"
    path.write_text(content)
    with pytest.raises(ModelFileError, match=r"system\.xml"):
        load_system(path)
    with pytest.raises(ModelFileError, match=r"missing\.xml"):
        load_system(tmp_path / "missing.xml")
