"""MD-ET as an OpenMM force: the calculator's numbers, subsets, copies by reference, refusals."""

import copy
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import molecule
from toy_models import SMALL, random_network, toy_model

from mlmd_calc import MDETCalculator, units
from mlmd_calc.errors import ConfigError, InputError, MissingDependencyError, ModelFileError
from mlmd_calc.zoo import save_model

openmm = pytest.importorskip("openmm", reason="openmm is not installed")

from openmm import app, unit  # noqa: E402
from openmm_systems import (  # noqa: E402
    PLATFORMS,
    context_of,
    energy_and_forces,
    system_of,
    topology_of,
)

import openmm_bridge  # noqa: E402
from openmm_bridge import backends, check_system, create_force  # noqa: E402
from openmm_bridge.region import make_whole, region_from_topology  # noqa: E402

KJ_PER_MOL_NM = units.NM / units.KJ_PER_MOL
BOX = np.array([[2.0, 0.0, 0.0], [0.4, 1.9, 0.0], [-0.3, 0.5, 1.8]])
"""nm, in OpenMM's reduced form."""


@pytest.fixture
def ethanol() -> ase.Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture
def stored(tmp_path: Path) -> str:
    path = tmp_path / "toy.safetensors"
    save_model(path, random_network(SMALL), {}, {"name": "toy"})
    return str(path)


def expected(atoms: ase.Atoms, **options: object) -> tuple[float, np.ndarray]:
    """Energy in kJ/mol and forces in kJ/mol/nm of the calculator."""
    atoms = atoms.copy()
    atoms.calc = MDETCalculator(device="cpu", **options)
    return (
        atoms.get_potential_energy() / units.KJ_PER_MOL,
        atoms.get_forces() * KJ_PER_MOL_NM,
    )


def water_at(x: float, y: float) -> ase.Atoms:
    water = molecule("H2O")
    water.translate([x, y, 0.0])
    return water


def with_waters(
    atoms: ase.Atoms, before: int = 1, after: int = 2
) -> tuple[app.Topology, ase.Atoms]:
    """Topology and atoms of a molecule with water molecules before and after it."""
    everything = ase.Atoms()
    for index in range(before):
        everything += water_at(8.0, 3.0 * index)
    everything += atoms
    for index in range(after):
        everything += water_at(-8.0, 3.0 * index)
    return topology_of(everything), everything


# ---- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_forces_and_energy_are_those_of_the_calculator(ethanol, platform, forces):
    options = {"forces": forces, "rotation": "none", "dtype": "float64"}
    force = create_force(topology_of(ethanol), "mdet-ethanol-gfn2", device="cpu", **options)
    context = context_of(system_of(ethanol, force), ethanol.positions, platform)
    energy, computed = energy_and_forces(context)
    known_energy, known = expected(ethanol, model="mdet-ethanol-gfn2", **options)
    assert energy == pytest.approx(known_energy, rel=1e-9)
    np.testing.assert_allclose(computed, known, rtol=0, atol=1e-9 * np.abs(known).max())


def test_default_model_and_settings_are_those_of_the_calculator(ethanol):
    force = create_force(topology_of(ethanol), device="cpu")
    energy, _ = energy_and_forces(context_of(system_of(ethanol, force), ethanol.positions))
    assert energy == pytest.approx(expected(ethanol)[0], rel=1e-9)


def test_same_seed_gives_the_same_random_orientations_as_in_ase(ethanol):
    options = {"model": toy_model(), "rotation": "random", "seed": 7}
    context = context_of(
        system_of(ethanol, create_force(topology_of(ethanol), device="cpu", **options)),
        ethanol.positions,
    )
    atoms = ethanol.copy()
    atoms.calc = MDETCalculator(device="cpu", **options)
    for _ in range(3):
        atoms.calc.reset()
        known = atoms.get_forces() * KJ_PER_MOL_NM
        computed = energy_and_forces(context)[1]
        np.testing.assert_allclose(computed, known, rtol=0, atol=1e-9 * np.abs(known).max())


@pytest.mark.parametrize("platform", PLATFORMS)
def test_setting_of_the_paper(ethanol, platform):
    options = {"model": toy_model(), "setting": "paper", "seed": 7}
    force = create_force(topology_of(ethanol), device="cpu", **options)
    context = context_of(system_of(ethanol, force), ethanol.positions, platform)
    known = [energy_and_forces(context)[1] for _ in range(2)]
    assert np.abs(known[0] - known[1]).max() > 1.0
    atoms = ethanol.copy()
    atoms.calc = MDETCalculator(device="cpu", **options)
    forces = atoms.get_forces() * KJ_PER_MOL_NM
    np.testing.assert_allclose(known[0], forces, rtol=0, atol=1e-9 * np.abs(forces).max())


def test_spread_beyond_the_limit_ends_a_run_also_after_copies(ethanol):
    options = {"forces": "conservative", "rotation": "none", "device": "cpu"}
    topology = topology_of(ethanol)
    force = create_force(
        topology, "mdet-ethanol-gfn2", max_spread=1e-4, on_spread="raise", **options
    )
    system = system_of(ethanol, force)
    for one in (system, copy.deepcopy(system)):
        context = context_of(one, ethanol.positions)
        with pytest.raises(openmm.OpenMMException, match=r"more than max_spread=0\.0001"):
            energy_and_forces(context)
    force = create_force(topology, "mdet-ethanol-gfn2", max_spread=1e-4, **options)
    with pytest.warns(UserWarning, match="contradicts itself about C2H6O"):
        energy_and_forces(context_of(system_of(ethanol, force), ethanol.positions))


def test_charge_and_multiplicity_reach_the_model():
    atoms = molecule("NH3")
    model = toy_model()
    force = create_force(
        topology_of(atoms), model, charge=1, multiplicity=2, rotation="none", device="cpu"
    )
    computed = energy_and_forces(context_of(system_of(atoms, force), atoms.positions))[0]
    known = expected(atoms, model=model, charge=1, multiplicity=2, rotation="none")[0]
    assert computed == pytest.approx(known, rel=1e-9)


def test_velocity_verlet_follows_the_same_path_as_in_ase(ethanol):
    from ase.md.verlet import VelocityVerlet

    options = {"model": "mdet-ethanol-gfn2", "rotation": "none", "device": "cpu"}
    atoms = ethanol.copy()
    atoms.calc = MDETCalculator(**options)
    VelocityVerlet(atoms, 0.5 * units.FS).run(200)
    integrator = openmm.CustomIntegrator(0.0005)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    force = create_force(topology_of(ethanol), **options)
    context = context_of(
        system_of(ethanol, force), ethanol.positions, "Reference", integrator=integrator
    )
    integrator.step(200)
    positions = context.getState(getPositions=True).getPositions(asNumpy=True)
    np.testing.assert_allclose(
        positions.value_in_unit(unit.angstrom), atoms.positions, rtol=0, atol=1e-6
    )


# ---- part of a system -----------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_subset_feels_the_model_and_the_rest_nothing(ethanol, platform):
    topology, everything = with_waters(ethanol)
    own = range(3, 3 + len(ethanol))
    model = toy_model()
    force = create_force(topology, model, atoms=own, rotation="none", device="cpu")
    context = context_of(system_of(everything, force), everything.positions, platform)
    energy, forces = energy_and_forces(context)
    known_energy, known = expected(ethanol, model=model, rotation="none")
    assert energy == pytest.approx(known_energy, rel=1e-9)
    np.testing.assert_allclose(forces[3:12], known, rtol=0, atol=1e-9 * np.abs(known).max())
    assert not np.delete(forces, own, axis=0).any()


def test_order_of_the_atoms_does_not_matter(ethanol):
    topology = with_waters(ethanol)[0]
    regions = [region_from_topology(topology, order) for order in ([5, 3, 4], [3, 4, 5])]
    for name in ("numbers", "particles", "parents"):
        np.testing.assert_array_equal(getattr(regions[0], name), getattr(regions[1], name))


def test_a_molecule_in_pieces_across_a_box_is_made_whole(ethanol):
    topology, everything = with_waters(ethanol)
    topology.setPeriodicBoxVectors(BOX * unit.nanometer)
    own = range(3, 12)
    model = toy_model()
    force = create_force(topology, model, atoms=own, rotation="none", device="cpu")
    system = system_of(everything, force)
    system.setDefaultPeriodicBoxVectors(*BOX)
    images = np.random.default_rng(3).integers(-2, 3, size=(len(everything), 3))
    torn = everything.positions + images @ BOX * units.NM
    energy, forces = energy_and_forces(context_of(system, torn))
    known_energy, known = expected(ethanol, model=model, rotation="none")
    assert energy == pytest.approx(known_energy, rel=1e-9)
    np.testing.assert_allclose(forces[3:12], known, rtol=0, atol=1e-8 * np.abs(known).max())


def test_a_chain_longer_than_half_the_box_is_made_whole_along_its_bonds():
    chain = np.array([[0.3 * i, 0.0, 0.0] for i in range(6)])
    topology = app.Topology()
    residue = topology.addResidue("CHN", topology.addChain())
    atoms = [topology.addAtom("C", app.element.carbon, residue) for _ in chain]
    for first, second in zip(atoms[1:], atoms, strict=False):
        topology.addBond(first, second)
    region = region_from_topology(topology, periodic=False)
    box = np.diag([2.0, 2.0, 2.0])
    wrapped = chain - np.floor(chain / 0.7) * 2.0
    whole = make_whole(wrapped, box, region.parents, region.lineage())
    np.testing.assert_allclose(whole - whole[0], chain, atol=1e-12)


def test_fragments_without_bonds_between_them_hang_on_the_first_atom(ethanol):
    topology = with_waters(ethanol, before=0, after=1)[0]
    region = region_from_topology(topology)
    assert list(region.parents).count(0) >= 2
    assert region.parents[9] == 0


def test_a_whole_molecule_keeps_its_coordinates_to_the_last_bit(ethanol):
    region = region_from_topology(topology_of(ethanol))
    positions = ethanol.positions / units.NM
    whole = make_whole(positions, BOX, region.parents, region.lineage())
    np.testing.assert_array_equal(whole, positions)


# ---- copies by reference --------------------------------------------------------------------


def restored(system: openmm.System) -> list[openmm.System]:
    text = openmm.XmlSerializer.serialize(system)
    assert len(text) < 12_000
    return [openmm.XmlSerializer.deserialize(text), copy.deepcopy(system)]


@pytest.mark.parametrize("rotation", ["none", "random"])
def test_xml_and_copies_refer_to_the_model_and_repeat_its_numbers(ethanol, stored, rotation):
    force = create_force(
        topology_of(ethanol), stored, rotation=rotation, seed=3, forceGroup=5, device="cpu"
    )
    system = system_of(ethanol, force)
    systems = [*restored(system), system]
    results = [energy_and_forces(context_of(s, ethanol.positions))[1] for s in systems]
    for result in results[:-1]:
        np.testing.assert_array_equal(result, results[-1])
    assert systems[0].getForce(0).getForceGroup() == 5


def test_simulation_state_and_checkpoint_carry_on(ethanol, stored, tmp_path):
    def simulation() -> app.Simulation:
        force = create_force(topology_of(ethanol), stored, rotation="none", device="cpu")
        return app.Simulation(
            topology_of(ethanol),
            system_of(ethanol, force),
            openmm.VerletIntegrator(0.0005),
            openmm.Platform.getPlatformByName("Reference"),
        )

    first = simulation()
    first.context.setPositions(ethanol.positions / 10)
    first.step(3)
    first.saveState(str(tmp_path / "state.xml"))
    first.saveCheckpoint(str(tmp_path / "state.chk"))
    first.step(3)
    end = first.context.getState(getPositions=True).getPositions(asNumpy=True)._value
    for load, name in (("loadState", "state.xml"), ("loadCheckpoint", "state.chk")):
        second = simulation()
        getattr(second, load)(str(tmp_path / name))
        second.step(3)
        again = second.context.getState(getPositions=True).getPositions(asNumpy=True)._value
        np.testing.assert_array_equal(again, end)


@pytest.mark.parametrize("damage", ["missing", "changed", "corrupted"])
def test_a_model_that_is_not_the_same_any_more_is_reported(ethanol, stored, damage, caplog):
    force = create_force(topology_of(ethanol), stored, device="cpu")
    text = openmm.XmlSerializer.serialize(system_of(ethanol, force))
    path = Path(stored)
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        path.unlink()
        save_model(path, random_network(SMALL, seed=1), {}, {"name": "other"})
    else:
        path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.ERROR, logger="openmm_bridge"):
        loaded = openmm.XmlSerializer.deserialize(text)
    assert "toy.safetensors" in caplog.text
    # A copy of what could not be loaded still refers to the same model.
    for system in (loaded, copy.deepcopy(loaded)):
        with pytest.raises(openmm.OpenMMException, match=r"toy\.safetensors"):
            energy_and_forces(context_of(system, ethanol.positions))


def test_a_corrupted_model_is_refused_by_create_force(ethanol, stored):
    path = Path(stored)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"toy\.safetensors"):
        create_force(topology_of(ethanol), stored)


def test_a_model_in_memory_runs_but_cannot_be_stored(ethanol):
    system = system_of(ethanol, create_force(topology_of(ethanol), toy_model(), device="cpu"))
    with pytest.raises(openmm.OpenMMException, match="could not be pickled"):
        openmm.XmlSerializer.serialize(system)


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atoms": [0, 9]}, "atoms contains 9, but the topology has atoms 0 to 8"),
        ({"atoms": [-1]}, "atoms contains -1"),
        ({"atoms": [0, 1, 1]}, "atoms contains 1 more than once"),
        ({"atoms": []}, "atoms is empty"),
        ({"atoms": [0.5]}, "0.5 is not an integer"),
        ({"atoms": 3}, "atoms=3; list the indices"),
        ({"charge": 0.5}, "charge=0.5 is not an integer"),
        ({"multiplicity": None}, "multiplicity=None"),
        ({"multiplicity": -1}, "multiplicity=-1 is outside"),
        ({"charge": 1}, "cannot have multiplicity=1"),
        ({"backend": "cuda"}, "backend='cuda'; choose one of auto, pytorch, python, torchscript"),
        ({"rotation": "sometimes"}, "rotation='sometimes'"),
    ],
)
def test_wrong_options_are_one_sentence(ethanol, options, message):
    with pytest.raises((InputError, ConfigError), match=message):
        create_force(topology_of(ethanol), toy_model(), **options)


def test_atoms_in_place_of_their_indices(ethanol):
    topology = topology_of(ethanol)
    with pytest.raises(InputError, match=r"<Atom 0 .*list indices, that is \[atom.index"):
        create_force(topology, toy_model(), atoms=next(topology.residues()).atoms())


def test_unknown_element_names_atom_and_known_elements():
    atoms = ase.Atoms("HCl", [[0, 0, 0], [0, 0, 1.3]])
    with pytest.raises(InputError, match=r"atom 1 is Cl .* knows H, C, N, O"):
        create_force(topology_of(atoms), "mdet-small-organics-gfn2")


def test_a_charge_that_contradicts_the_formal_charges_is_refused(ethanol):
    topology = topology_of(ethanol)
    next(topology.atoms()).formalCharge = -2
    with pytest.raises(InputError, match=r"charge=0.* add up to -2; pass charge=-2"):
        create_force(topology)


def test_something_that_is_no_topology_is_refused(ethanol):
    with pytest.raises(InputError, match=r"topology is a Atoms; pass an openmm.app.Topology"):
        create_force(ethanol)


def test_a_topology_without_atoms_is_refused():
    with pytest.raises(InputError, match="the topology has no atoms; read it from a file"):
        create_force(app.Topology(), toy_model())


def test_periodic_system_of_ml_atoms_only_is_refused(ethanol):
    topology = topology_of(ethanol)
    topology.setPeriodicBoxVectors(BOX * unit.nanometer)
    for atoms in (None, range(9)):
        with pytest.raises(InputError, match="periodic and all of it"):
            create_force(topology, toy_model(), atoms=atoms)


def test_a_molecule_without_bonds_in_a_box_is_refused(ethanol):
    """The image nearest to the first atom is the wrong one for what is longer than half a box."""
    topology = app.Topology()
    chain = topology.addChain()
    for name, symbols in (("LIG", ethanol.get_chemical_symbols()), ("ION", ["Na"])):
        residue = topology.addResidue(name, chain)
        for symbol in symbols:
            topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    create_force(topology, toy_model(), atoms=range(9))
    topology.setPeriodicBoxVectors(BOX * unit.nanometer)
    with pytest.raises(InputError, match=r"no bonds .* from ML atom 0 to ML atom 1.*addBond"):
        create_force(topology, toy_model(), atoms=range(9))


def test_virtual_site_in_the_topology_is_refused(ethanol):
    topology = topology_of(ethanol)
    topology.addAtom("M", None, next(topology.residues()))
    with pytest.raises(InputError, match=r"atom 9 \(M\) has no element"):
        create_force(topology, toy_model())


def test_topology_of_another_system_is_refused(ethanol):
    force = create_force(topology_of(ethanol), toy_model(), device="cpu")
    water = molecule("H2O")
    with pytest.raises(openmm.OpenMMException, match="System has 3 particles"):
        energy_and_forces(context_of(system_of(water, force), water.positions))
    with pytest.raises(InputError, match="System has 3 particles"):
        check_system(system_of(water), force)


def test_broken_positions_name_atom_and_step(ethanol, caplog):
    topology, everything = with_waters(ethanol)
    force = create_force(topology, toy_model(), atoms=range(3, 12), device="cpu")
    everything.positions[7] = np.nan
    context = context_of(system_of(everything, force), everything.positions)
    context.setStepCount(12)
    with (
        caplog.at_level(logging.ERROR, logger="openmm_bridge"),
        pytest.raises(openmm.OpenMMException, match=r"at step 12: atom 4 .*nan.*particles 3 to 11"),
    ):
        energy_and_forces(context)
    assert caplog.records[-1].exc_info is not None


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(("scale", "shown"), [(np.nan, "nan"), (1e6, "absurd")])
def test_wrong_forces_stop_the_run_and_keep_their_type(ethanol, caplog, platform, scale, shown):
    model = toy_model()
    for parameter in model.network.heads["forces"].parameters():
        parameter.data *= scale
    force = create_force(topology_of(ethanol), model, forces="direct", device="cpu")
    context = context_of(system_of(ethanol, force), ethanol.positions, platform)
    with (
        caplog.at_level(logging.ERROR, logger="openmm_bridge"),
        pytest.raises(openmm.OpenMMException, match=f"(?=.*{shown})at step 0: .* on atom 0"),
    ):
        energy_and_forces(context)
    assert type(force.computation.last_error).__name__ == "PredictionError"


def test_minimisation_with_direct_forces_is_refused(ethanol):
    force = create_force(topology_of(ethanol), toy_model(), forces="direct", device="cpu")
    context = context_of(system_of(ethanol, force), ethanol.positions)
    with pytest.raises(openmm.OpenMMException, match="minimisation needs forces that are the grad"):
        openmm.LocalEnergyMinimizer.minimize(context)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_path_integrals_whose_steps_openmm_does_not_count_are_refused(ethanol, platform):
    """`Simulation.step` would never end."""
    topology = topology_of(ethanol)
    force = create_force(topology, toy_model(), backend="python", device="cpu")
    integrator = openmm.RPMDIntegrator(2, 300.0, 1.0, 0.0001)
    simulation = app.Simulation(
        topology,
        system_of(ethanol, force),
        integrator,
        openmm.Platform.getPlatformByName(platform),
    )
    for bead in range(2):
        integrator.setPositions(bead, ethanol.positions / 10)
    integrator.step(1)
    with pytest.raises(openmm.OpenMMException, match=r"never end; call integrator.step"):
        simulation.step(1)


def test_minimisation_with_conservative_forces_lowers_the_energy(ethanol):
    force = create_force(topology_of(ethanol), "mdet-ethanol-gfn2", device="cpu")
    context = context_of(system_of(ethanol, force), ethanol.positions)
    before = energy_and_forces(context)[0]
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 20)
    assert energy_and_forces(context)[0] < before - 10.0


def test_minimisation_outlives_trial_steps_that_break_the_molecule():
    """The first trial step of this minimisation puts a hydrogen onto the nitrogen."""
    pyridine = molecule("C5H5N")
    force = create_force(topology_of(pyridine), device="cpu")
    context = context_of(system_of(pyridine, force), pyridine.positions)
    for _ in range(2):
        context.setPositions(pyridine.positions / 10)
        openmm.LocalEnergyMinimizer.minimize(context)
        _, forces = energy_and_forces(context)
        assert np.abs(forces).max() < 20.0
    overlapping = pyridine.positions.copy()
    overlapping[6] = overlapping[0]
    context.setPositions(overlapping / 10)
    with pytest.raises(openmm.OpenMMException, match="atoms 0 and 6 are 0 Å apart"):
        openmm.LocalEnergyMinimizer.minimize(context)


def test_a_model_without_energy_says_that_zero_is_shown(ethanol):
    import dataclasses

    model = toy_model(dataclasses.replace(SMALL, target_heads=("forces",)))
    with pytest.warns(UserWarning, match="potential energy of zero"):
        create_force(topology_of(ethanol), model)


# ---- check_system ---------------------------------------------------------------------------


def test_virtual_sites_and_constraints_among_ml_atoms_are_refused(ethanol):
    force = create_force(topology_of(ethanol), toy_model())
    system = system_of(ethanol)
    check_system(system, force)
    system.addConstraint(0, 3, 0.109)
    with pytest.raises(InputError, match="ML atoms 0 and 3 are held"):
        check_system(system, force)
    system.removeConstraint(0)
    system.setParticleMass(8, 0.0)
    system.setVirtualSite(8, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(InputError, match="particle 8 is a virtual site"):
        check_system(system, force)


def test_constraints_of_the_rest_are_no_concern(ethanol):
    topology, everything = with_waters(ethanol)
    system = system_of(everything)
    system.addConstraint(0, 1, 0.1)
    check_system(system, create_force(topology, toy_model(), atoms=range(3, 12)))


def test_periodic_system_with_a_topology_without_box_is_refused(ethanol):
    topology, everything = with_waters(ethanol)
    nonbonded = openmm.NonbondedForce()
    nonbonded.setNonbondedMethod(openmm.NonbondedForce.PME)
    for _ in everything:
        nonbonded.addParticle(0.0, 0.1, 0.0)
    system = system_of(everything, nonbonded)
    with pytest.raises(InputError, match="topology the force was made from has no box"):
        check_system(system, create_force(topology, toy_model(), atoms=range(3, 12)))


def test_a_periodic_restraint_of_a_molecule_alone_is_refused(ethanol):
    """A box of the topology, which a solute needs, would be refused."""
    restraint = openmm.CustomExternalForce("100*periodicdistance(x, y, z, 0, 0, 0)^2")
    restraint.addParticle(0)
    force = create_force(topology_of(ethanol), toy_model())
    with pytest.raises(InputError, match=r"is periodic.*restraints without periodicdistance"):
        check_system(system_of(ethanol, restraint), force)


def test_barostat_needs_conservative_forces_and_a_tied_molecule(ethanol):
    topology, everything = with_waters(ethanol)
    topology.setPeriodicBoxVectors(BOX * unit.nanometer)
    system = system_of(everything, openmm.MonteCarloBarostat(1.0, 300.0))
    system.setDefaultPeriodicBoxVectors(*BOX)
    own = range(3, 12)
    direct = create_force(topology, toy_model(), atoms=own, forces="direct")
    system.addForce(direct)
    with pytest.raises(InputError, match="barostat needs forces that are the gradient"):
        check_system(system, direct)
    system.removeForce(1)
    conservative = create_force(topology, "mdet-ethanol-gfn2", atoms=own)
    system.addForce(conservative)
    with pytest.raises(InputError, match="9 separate molecules"):
        check_system(system, conservative)
    bonds = openmm.HarmonicBondForce()
    for atom in range(4, 12):
        bonds.addBond(3, atom, 0.1, 0.0)
    system.addForce(bonds)
    check_system(system, conservative)


# ---- back ends ------------------------------------------------------------------------------


def test_available_backends_gives_a_reason_for_each_of_the_others():
    found = openmm_bridge.available_backends()
    assert "python" in found
    assert {*found, *found.unavailable} == set(backends.BACKENDS)
    assert all(found.unavailable.values())


def test_missing_openmmtorch_is_said_and_python_still_works(ethanol, monkeypatch):
    monkeypatch.setitem(sys.modules, "openmmtorch", None)
    assert "openmmtorch cannot be imported" in backends.available_backends().unavailable["pytorch"]
    with pytest.raises(MissingDependencyError, match="'torchscript' does not work here: openmmtor"):
        create_force(topology_of(ethanol), toy_model(), backend="torchscript")
    assert isinstance(create_force(topology_of(ethanol), toy_model()), openmm.PythonForce)


def test_torchforce_works_whatever_is_imported_first():
    code = """
import openmm
from ase.build import molecule
from openmm_systems import context_of, energy_and_forces, system_of, topology_of
from openmm_bridge import available_backends, create_force
if "torchscript" in available_backends():
    atoms = molecule("H2O")
    force = create_force(topology_of(atoms), backend="torchscript", device="cpu")
    energy_and_forces(context_of(system_of(atoms, force), atoms.positions))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 0, done.stderr


def test_torchforce_is_refused_where_copying_it_would_crash(ethanol, monkeypatch):
    monkeypatch.setattr(backends, "openmm_version", lambda: (8, 6))
    with pytest.raises(MissingDependencyError, match="crashes the process"):
        create_force(topology_of(ethanol), toy_model(), backend="torchscript")


def test_old_openmm_is_told_what_to_install(ethanol, monkeypatch):
    monkeypatch.delattr(openmm, "PythonForce")
    with pytest.raises(MissingDependencyError, match=r"install openmm 8\.5 or newer"):
        create_force(topology_of(ethanol), toy_model(), backend="python")


def test_pythontorchforce_is_used_where_there_is_one(ethanol, monkeypatch):
    """No released openmmtorch has it; a stand-in hands its callable a tensor, as the real one."""
    import torch

    class PythonTorchForce(openmm.PythonForce):
        def __init__(self, compute):
            def computation(state):
                positions = torch.tensor(state.getPositions(asNumpy=True)._value)
                energy, forces = compute(state, positions.requires_grad_())
                assert energy.shape == ()
                return float(energy), forces.numpy()

            super().__init__(computation)

    stand_in = types.SimpleNamespace(PythonTorchForce=PythonTorchForce)
    monkeypatch.setitem(sys.modules, "openmmtorch", stand_in)
    model = toy_model()
    force = create_force(topology_of(ethanol), model, rotation="none", device="cpu")
    assert type(force) is PythonTorchForce
    energy, forces = energy_and_forces(context_of(system_of(ethanol, force), ethanol.positions))
    known_energy, known = expected(ethanol, model=model, rotation="none")
    assert energy == pytest.approx(known_energy, rel=1e-9)
    np.testing.assert_allclose(forces, known, rtol=0, atol=1e-9 * np.abs(known).max())


@pytest.mark.parametrize("group", [32, -1, "a", 1.5])
def test_force_groups_that_openmm_does_not_have_are_refused(group):
    with pytest.raises(ConfigError, match=r"forceGroup=.*a whole number from 0 to 31"):
        create_force(topology_of(molecule("H2O")), toy_model(), forceGroup=group)
