"""The TorchScript module for TorchForce: the calculator's numbers, orientations, copies, errors."""

import copy
import dataclasses
import json

import ase
import numpy as np
import pytest
import torch
from another_process import run_child
from ase.build import molecule
from toy_models import CONFIGS, SMALL, toy_model

from mlmd_calc import MDETCalculator, Potential, units
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.geometry.rotations import counted_rotations
from mlmd_calc.potential import Structure, structure_from_ase
from mlmd_calc.zoo import load_model

openmm = pytest.importorskip("openmm", reason="openmm is not installed")

from openmm_systems import (  # noqa: E402
    PLATFORMS,
    context_of,
    energy_and_forces,
    system_of,
    topology_of,
)

from openmm_bridge import (  # noqa: E402
    available_backends,
    create_force,
    export,
    load_system,
    restore_orientations,
    store_orientations,
)
from openmm_bridge.backends import openmmtorch_module  # noqa: E402
from openmm_bridge.export import export_module, read_metadata, torchscript_module  # noqa: E402
from openmm_bridge.region import Region, region_from_topology  # noqa: E402

pytestmark = pytest.mark.skipif(
    "torchscript" not in available_backends(),
    reason=available_backends().unavailable.get("torchscript", ""),
)

KJ_PER_MOL_NM = units.NM / units.KJ_PER_MOL
BOX = np.array([[2.0, 0.0, 0.0], [0.4, 1.9, 0.0], [-0.3, 0.5, 1.8]])
"""nm, in OpenMM's reduced form."""


@pytest.fixture(scope="module")
def ethanol() -> ase.Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture(scope="module")
def water() -> ase.Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture(scope="module")
def solution(ethanol) -> tuple[ase.Atoms, list[int]]:
    """Ethanol between two other molecules, its atoms not side by side, and its indices."""
    methane, ammonia = molecule("CH4"), molecule("NH3")
    methane.translate([5.0, 1.0, -2.0])
    ammonia.translate([-5.0, 1.0, -2.0])
    order = [0, 5, 1, *range(6, 14), 2, 3, 4, *range(14, 18)]
    return (methane + ethanol + ammonia)[order], [1, *range(3, 11)]


@pytest.fixture(scope="module")
def plain_module(water) -> torch.jit.ScriptModule:
    return module_of(water, rotation="none")


@pytest.fixture(scope="module")
def solute_module(solution) -> torch.jit.ScriptModule:
    return torchscript_module(potential(rotation="none"), region_of(*solution))


@pytest.fixture(scope="module")
def unused_random_module(water) -> torch.jit.ScriptModule:
    return module_of(water, rotation="random", seed=1)


@pytest.fixture
def random_module(unused_random_module) -> torch.jit.ScriptModule:
    return copy.deepcopy(unused_random_module)


def potential(model: object = None, **options: object) -> Potential:
    return Potential(toy_model() if model is None else model, device="cpu", **options)


def module_of(atoms: ase.Atoms, model: object = None, **options: object) -> torch.jit.ScriptModule:
    return torchscript_module(potential(model, **options), region_of(atoms))


def region_of(atoms: ase.Atoms, chosen: list[int] | None = None, **options: object) -> Region:
    return region_from_topology(topology_of(atoms), chosen, **options)


def nm(atoms: ase.Atoms) -> torch.Tensor:
    return torch.tensor(atoms.positions / 10)


def force_of(module: object, periodic: bool = False) -> openmm.Force:
    """TorchForce of a module or the path of one."""
    force = openmmtorch_module().TorchForce(module)
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def expected(atoms: ase.Atoms, model: object = None, **options: object) -> tuple[float, np.ndarray]:
    """Energy in kJ/mol and forces in kJ/mol/nm of the calculator."""
    atoms = atoms.copy()
    atoms.calc = MDETCalculator(toy_model() if model is None else model, device="cpu", **options)
    return atoms.get_potential_energy() / units.KJ_PER_MOL, atoms.get_forces() * KJ_PER_MOL_NM


def assert_same(
    found: tuple[object, object], known: tuple[float, np.ndarray], relative: float = 1e-9
) -> None:
    energy, forces = float(found[0]), np.asarray(found[1])
    assert abs(energy - known[0]) <= relative * abs(known[0])
    assert np.abs(forces - known[1]).max() <= relative * np.abs(known[1]).max()


# ---- the same numbers as the calculator -----------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"forces": "conservative", "rotation": "none"},
        {"forces": "conservative", "rotation": "average", "n_rotations": 4},
        {"forces": "direct", "rotation": "none"},
        {"forces": "direct", "rotation": "average", "n_rotations": 4},
    ],
    ids=lambda options: f"{options['forces']}-{options['rotation']}",
)
def test_trained_model_in_torchforce_equals_the_calculator(ethanol, options):
    model = load_model("mdet-ethanol-gfn2", device="cpu")
    force = force_of(module_of(ethanol, model, **options))
    system = system_of(ethanol, force)
    moved = ethanol.copy()
    moved.rattle(0.05, seed=2)
    for platform in PLATFORMS:
        context = context_of(system, ethanol.positions, platform)
        known = expected(ethanol, model, **options)
        # TorchScript optimises in the first two calls.
        for _ in range(3):
            assert_same(energy_and_forces(context), known)
        context.setPositions(moved.positions / 10)
        assert_same(energy_and_forces(context), expected(moved, model, **options))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_kind_of_network_can_be_recorded(water, config):
    # The gradient of the fastest Fourier features is beyond what a potential lets pass.
    forces = "direct" if config.directions == "fourier" else "conservative"
    options = {"forces": forces, "rotation": "none"}
    module = module_of(water, toy_model(config), **options)
    assert_same(module(nm(water)), expected(water, toy_model(config), **options))


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_single_precision(water, dtype):
    options = {"forces": "conservative", "rotation": "none"}
    module = module_of(water, dtype=dtype, **options)
    energy, forces = module(nm(water).float())
    assert (energy.dtype, forces.dtype) == (torch.float64, torch.float32)
    rounded = water.copy()
    rounded.positions = 10.0 * nm(water).float().double().numpy()
    assert_same((energy, forces), expected(rounded, dtype=dtype, **options), 1e-5)


def test_charge_multiplicity_and_reference_energies(water):
    model = dataclasses.replace(toy_model(), atomic_energies={1: -13.6, 8: -2040.0})
    known = potential(model, rotation="none").evaluate(
        [Structure(water.numbers.astype(np.int64), water.positions, 1, 2)]
    )[0]
    region = region_of(water, charge=1, multiplicity=2)
    module = torchscript_module(potential(model, rotation="none"), region)
    assert_same(module(nm(water)), (known.energy / units.KJ_PER_MOL, known.forces * KJ_PER_MOL_NM))


def test_model_without_energy_gives_zero_energy(water):
    model = toy_model(dataclasses.replace(SMALL, target_heads=("forces",)))
    energy, forces = module_of(water, model, rotation="none")(nm(water))
    assert energy == 0.0
    assert forces.abs().max() > 1.0


def test_large_molecules_are_evaluated_in_parts(ethanol, monkeypatch):
    monkeypatch.setattr(Potential, "copies_per_call", lambda self, size: 5)
    options = {"rotation": "average", "n_rotations": 6}
    module = module_of(ethanol, **options)
    assert module.copies == 3
    assert_same(module(nm(ethanol)), expected(ethanol, **options))


def test_positions_that_require_a_gradient(water, plain_module):
    energy, forces = plain_module(nm(water))
    for module in (plain_module, torch.jit.freeze(plain_module)):
        for _ in range(3):
            found = module(nm(water).requires_grad_())
            assert not found[0].requires_grad
            assert not found[1].requires_grad
            assert found[1].is_contiguous()
            assert_same(found, (float(energy), forces.numpy()), 1e-13)


# ---- a part of a system ---------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
def test_part_of_a_system(ethanol, solution, solute_module, platform):
    everything, chosen = solution
    assert np.array_equal(everything.positions[chosen], ethanol.positions)
    # A force of another kind, because the contributions have to be added up.
    spring = openmm.HarmonicBondForce()
    spring.addBond(chosen[0], 0, 0.3, 1000.0)
    alone = system_of(everything, copy.deepcopy(spring))
    known_energy, known = energy_and_forces(context_of(alone, everything.positions, platform))
    energy, forces = expected(ethanol, rotation="none")
    known[chosen] += forces
    system = system_of(everything, spring, force_of(solute_module))
    found = energy_and_forces(context_of(system, everything.positions, platform))
    assert_same(found, (known_energy + energy, known))
    rest = np.setdiff1d(np.arange(len(everything)), chosen)
    assert not solute_module(nm(everything))[1][rest].any()


def test_molecule_across_the_box_is_made_whole(ethanol, solution):
    everything, chosen = solution
    topology = topology_of(everything)
    topology.setPeriodicBoxVectors(BOX)
    options = {"forces": "conservative", "rotation": "none"}
    module = torchscript_module(potential(**options), region_from_topology(topology, chosen))
    force = force_of(module, periodic=True)
    system = system_of(everything, force)
    system.setDefaultPeriodicBoxVectors(*BOX)
    assert system.usesPeriodicBoundaryConditions()
    energy, forces = expected(ethanol, **options)
    known = np.zeros((len(everything), 3))
    known[chosen] = forces
    images = np.random.default_rng(0).integers(-2, 3, (len(everything), 3))
    for platform in PLATFORMS:
        for shift in (0 * images, images):
            context = context_of(system, everything.positions + 10 * shift @ BOX, platform)
            assert_same(energy_and_forces(context), (energy, known))
    with pytest.raises(torch.jit.Error, match=r"setUsesPeriodicBoundaryConditions\(True\)"):
        module(nm(everything))


# ---- projections ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["H2O", "CO2", "Ne"])
def test_net_force_and_torque_are_removed(name):
    atoms = ase.Atoms("Ne") if name == "Ne" else molecule(name)
    atoms.rotate(40.0, (1, 2, 3))
    atoms.translate([3.0, -2.0, 8.0])
    options = {"forces": "direct", "rotation": "none"}
    _, forces = module_of(atoms, **options)(nm(atoms))
    _, raw = expected(atoms, remove_net_force=False, remove_net_torque=False, **options)
    scale = np.abs(raw).max()
    assert scale > 100.0
    assert forces.sum(dim=0).abs().max() < 1e-10 * scale
    torque = torch.linalg.cross(nm(atoms), forces).sum(dim=0)
    assert torque.abs().max() < 1e-10 * scale
    assert np.abs(forces.numpy() - expected(atoms, **options)[1]).max() < 1e-9 * scale


# ---- random orientations --------------------------------------------------------------------


def energies(module: torch.jit.ScriptModule, atoms: ase.Atoms, calls: int = 4) -> list[float]:
    return [float(module(nm(atoms))[0]) for _ in range(calls)]


def test_seed_decides_the_orientations(water, random_module):
    first = energies(random_module, water)
    assert len(set(first)) == len(first)
    assert energies(module_of(water, rotation="random", seed=1), water) == first
    assert not set(energies(module_of(water, rotation="random", seed=2), water)) & set(first)


def test_export_leaves_the_stream_of_the_potential_alone(water):
    source = potential(rotation="random", seed=1)
    before = source.state_dict()
    first, second = (torchscript_module(source, region_of(water)) for _ in range(2))
    assert energies(first, water) == energies(second, water)
    assert source.state_dict() == before


@pytest.mark.parametrize("n_rotations", [1, 3])
def test_orientations_are_those_of_the_potential_call_by_call(water, n_rotations):
    options = {"rotation": "random", "n_rotations": n_rotations, "seed": 1}
    source = potential(**options)
    source.evaluate([structure_from_ase(water)])
    module = torchscript_module(source, region_of(water))
    resumed = potential(**{**options, "seed": 2})
    resumed.load_state_dict(source.state_dict())
    continued = torchscript_module(resumed, region_of(water))
    for _ in range(3):
        known = source.evaluate([structure_from_ase(water)])[0]
        energy, forces = module(nm(water))
        assert float(energy) == pytest.approx(known.energy / units.KJ_PER_MOL, rel=1e-12)
        np.testing.assert_allclose(forces.numpy(), known.forces * KJ_PER_MOL_NM, rtol=0, atol=1e-9)
        assert energies(continued, water, 1) == [float(energy)]


def test_frozen_and_stored_modules_go_on_with_the_stream(water, tmp_path):
    module = module_of(water, rotation="random", n_rotations=2, seed=1)
    sequence = energies(copy.deepcopy(module), water, 8)
    assert energies(module, water, 2) == sequence[:2]
    torch.jit.save(module, tmp_path / "begun.pt")
    frozen = torch.jit.freeze(torch.jit.load(tmp_path / "begun.pt"))
    np.testing.assert_allclose(energies(frozen, water, 6), sequence[2:], rtol=1e-13)


def test_every_context_begins_the_stream_anew(water, random_module):
    system = system_of(water, force_of(random_module))
    sequences = []
    for platform in PLATFORMS:
        context = context_of(system, water.positions, platform)
        sequences.append([energy_and_forces(context)[0] for _ in range(3)])
    assert sequences[0] == sequences[1]
    assert len(set(sequences[0])) == 3


def counted_force(module: torch.jit.ScriptModule, group: int = 0) -> openmm.Force:
    """TorchForce as `create_force` makes it."""
    force = force_of(copy.deepcopy(module))
    force.addGlobalParameter(f"mdet_calls_{group}", 0)
    force.setForceGroup(group)
    return force


def test_context_goes_back_to_the_orientations_of_a_checkpoint(water, random_module):
    spring = openmm.HarmonicBondForce()
    spring.addBond(0, 1, 0.3, 1000.0)
    spring.setForceGroup(2)
    forces = [counted_force(random_module, group) for group in (0, 1)]
    context = context_of(system_of(water, *forces, spring), water.positions)
    energy_and_forces(context)
    context.getState(getEnergy=True, groups={1})
    calls = {"mdet_calls_0": 1, "mdet_calls_1": 2}
    assert store_orientations(context) == calls
    checkpoint = context.createCheckpoint()
    known = [energy_and_forces(context)[0] for _ in range(3)]
    assert len(set(known)) == 3
    context.loadCheckpoint(checkpoint)
    restore_orientations(context)
    assert [energy_and_forces(context)[0] for _ in range(3)] == known
    restore_orientations(context, calls)
    assert [energy_and_forces(context)[0] for _ in range(3)] == known
    assert store_orientations(context) == {"mdet_calls_0": 4, "mdet_calls_1": 5}


def test_orientations_that_cannot_be_counted_are_refused(water, random_module, plain_module):
    spring = openmm.HarmonicBondForce()
    spring.addBond(0, 1, 0.3, 1000.0)
    system = system_of(water, counted_force(random_module), spring)
    known, found = [], []
    for energies, calls in ((known, 4), (found, 2)):
        context = context_of(system, water.positions)
        energies += [energy_and_forces(context)[0] for _ in range(calls)]
    with pytest.raises(InputError, match="force group 0"):
        store_orientations(context)
    # What could not be stored goes on as if nothing had been asked.
    assert found + [energy_and_forces(context)[0] for _ in range(2)] == known
    with pytest.raises(InputError, match="mdet_calls_7"):
        restore_orientations(context, {"mdet_calls_7": 1})
    twice = system_of(water, counted_force(random_module), counted_force(random_module))
    with pytest.raises(InputError, match="mdet_calls_0"):
        store_orientations(context_of(twice, water.positions))
    still = system_of(water, force_of(plain_module))
    with pytest.raises(InputError, match="draws random orientations"):
        store_orientations(context_of(still, water.positions))


def energy_of_a_file(path, positions):
    print(energy_and_forces(context_of(load_system(path), positions))[0])


def test_systems_are_loaded_in_a_process_that_has_no_torchforce_yet(water, tmp_path):
    force = create_force(topology_of(water), toy_model(), backend="torchscript", device="cpu")
    system, path = system_of(water, force), tmp_path / "system.xml"
    path.write_text(openmm.XmlSerializer.serialize(system))
    known, _ = energy_and_forces(context_of(system, water.positions))
    printed = run_child(energy_of_a_file, path, water.positions)
    assert float(printed) == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_setting_of_the_paper(ethanol, platform):
    options = {"setting": "paper", "seed": 11}
    force = create_force(
        topology_of(ethanol), toy_model(), backend="torchscript", device="cpu", **options
    )
    context = context_of(system_of(ethanol, force), ethanol.positions, platform)
    ethanol.calc = MDETCalculator(toy_model(), device="cpu", **options)
    found = [energy_and_forces(context)[1] for _ in range(3)]
    centred = ethanol.positions - ethanol.positions.mean(axis=0)
    for one in found:
        ethanol.calc.reset()
        known = ethanol.get_forces() * KJ_PER_MOL_NM
        # OpenMM's CPU platform holds positions and forces in single precision.
        close = 1e-9 if platform == "Reference" else 1e-5
        np.testing.assert_allclose(one, known, rtol=0, atol=close * np.abs(known).max())
        np.testing.assert_allclose(one.sum(axis=0), 0.0, atol=10 * close * np.abs(known).max())
        torque = np.cross(centred, one).sum(axis=0)
        np.testing.assert_allclose(torque, 0.0, atol=20 * close * np.abs(known).max())
    assert np.abs(found[0] - found[1]).max() > 1.0


def test_spread_cannot_be_watched_without_python(water):
    watched = potential(forces="conservative", rotation="none", on_spread="measure")
    with pytest.raises(ConfigError, match="on_spread='measure' is not possible in TorchScript"):
        torchscript_module(watched, region_from_topology(topology_of(water)))


def test_mean_over_random_orientations_is_the_average(water, random_module):
    samples = torch.stack([random_module(nm(water))[1] for _ in range(1000)]).numpy()
    known = expected(water, rotation="average", n_rotations=1000)[1]
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert np.abs((samples.mean(axis=0) - known) / error).max() < 4.0


def test_random_rotations_are_uniform():
    script = torch.jit.script(counted_rotations)
    seed = torch.tensor(2**62 + 12345)
    drawn = torch.cat([script(seed, torch.tensor([call])) for call in range(4000)])
    assert torch.equal(drawn, counted_rotations(seed, torch.arange(4000)))
    identity = torch.eye(3, dtype=torch.float64)
    assert (drawn @ drawn.mT - identity).abs().max() < 1e-14
    assert (torch.linalg.det(drawn) - 1.0).abs().max() < 1e-14
    # Means of products of entries over SO(3); each product has a variance below 1/5.
    products = torch.einsum("nij,nkl->ijkl", drawn, drawn) / len(drawn)
    known = torch.einsum("ik,jl->ijkl", identity, identity) / 3.0
    assert (products - known).abs().max() < 4.5 * (0.2 / len(drawn)) ** 0.5
    assert drawn.mean(dim=0).abs().max() < 4.5 * (len(drawn) * 3) ** -0.5
    successive = (drawn[1:] @ drawn[:-1].mT).diagonal(dim1=1, dim2=2).sum(-1).mean()
    assert abs(successive) < 4.5 * len(drawn) ** -0.5


# ---- copies and files -----------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
def test_copies_of_a_system_give_the_same_numbers(water, random_module, platform):
    system = system_of(water, force_of(random_module))
    xml = openmm.XmlSerializer.serialize(system)
    known = energy_and_forces(context_of(system, water.positions, platform))
    for made in (copy.deepcopy(system), openmm.XmlSerializer.deserialize(xml)):
        assert_same(energy_and_forces(context_of(made, water.positions, platform)), known, 1e-13)


def test_file_says_what_it_is_and_gives_the_same_numbers(ethanol, solution, tmp_path):
    everything, chosen = solution
    source = potential(load_model("mdet-ethanol-gfn2", device="cpu"))
    region = region_of(everything, chosen)
    path = tmp_path / "ethanol.pt"
    export_module(source, region, path)
    found = read_metadata(path)
    assert json.loads(json.dumps(found)) == found
    assert (found["model"], found["source"]) == ("mdet-ethanol-gfn2", "mdet-ethanol-gfn2")
    assert found["sha256"] == source.model.sha256
    assert found["options"]["forces"] == "conservative"
    described = found["region"]
    assert described["numbers"] == ethanol.numbers.tolist()
    assert described["particles"] == chosen
    assert (described["charge"], described["multiplicity"], described["periodic"]) == (0, 1, False)
    assert found["versions"]["torch"] == torch.__version__
    energy, forces = torch.jit.load(path)(nm(everything))
    known = expected(ethanol, "mdet-ethanol-gfn2")
    assert_same((energy, forces[chosen]), known)
    context = context_of(system_of(everything, force_of(str(path))), everything.positions)
    energy, forces = energy_and_forces(context)
    assert_same((energy, forces[chosen]), known)


@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_nothing_in_the_network_is_tied_to_a_device(water, forces):
    """TorchForce moves the module to the device of the platform; meta stands in for a GPU."""
    network = module_of(water, forces=forces, rotation="none").network.to("meta")
    energy, found = network(torch.zeros(1, 3, 3, dtype=torch.float64, device="meta"))
    assert (energy.device.type, found.device.type) == ("meta", "meta")


# ---- refusals -------------------------------------------------------------------------------


def broken(module: torch.jit.ScriptModule, value: float) -> torch.jit.ScriptModule:
    """Copy with a value in all numbers of the network."""
    changed = copy.deepcopy(module)
    for constant in changed.network.buffers():
        if constant.is_floating_point():
            constant.fill_(value)
    return changed


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.inf, r"evaluation 2: particle 4 has position \[.*inf.*\] nm. The simulation has expl"),
        (1e-8, r"evaluation 2: particles 4 and 5 are .*e-0.* Å apart"),
    ],
)
def test_impossible_positions_are_refused(solution, solute_module, platform, value, message):
    everything, _ = solution
    fresh = copy.deepcopy(solute_module)
    fresh.calls.zero_()
    context = context_of(system_of(everything, force_of(fresh)), everything.positions, platform)
    known = energy_and_forces(context)
    positions = everything.positions.copy()
    positions[4] = positions[5] + value
    context.setPositions(positions / 10)
    with pytest.raises(openmm.OpenMMException, match=message):
        energy_and_forces(context)
    assert torch.is_grad_enabled()
    context.setPositions(everything.positions / 10)
    assert_same(energy_and_forces(context), known, 1e-13)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"the model returned force \[nan, nan, nan\] eV/Å on particle 1; components"),
        (1e4, r"the model returned force \[.*\] eV/Å on particle 1; components beyond 1000. are a"),
    ],
)
def test_absurd_forces_are_refused(solution, solute_module, value, message):
    everything, _ = solution
    with pytest.raises(torch.jit.Error, match=message):
        broken(solute_module, value)(nm(everything))


def test_energy_that_is_not_a_number_is_refused(water, plain_module):
    changed = copy.deepcopy(plain_module)
    # The last map of the energy head; that of the force head has three columns.
    [weight] = [c for c in changed.network.buffers() if sorted(c.shape) == [1, SMALL.embd_dim // 4]]
    weight.fill_(np.nan)
    with pytest.raises(torch.jit.Error, match="an energy that is not a finite number"):
        changed(nm(water))


def test_wrong_system_is_refused(water, plain_module):
    twice = water + water
    context = context_of(system_of(twice, force_of(plain_module)), twice.positions)
    with pytest.raises(openmm.OpenMMException, match="has 6 particles, but the MD-ET module was m"):
        energy_and_forces(context)
    force = force_of(plain_module, periodic=True)
    context = context_of(system_of(water, force), water.positions)
    with pytest.raises(openmm.OpenMMException, match=r"setUsesPeriodicBoundaryConditions\(False\)"):
        energy_and_forces(context)


def test_error_in_a_frozen_module_without_its_original(water, plain_module):
    """PyTorch would look for the functions that freezing has inlined, and crash."""
    frozen = torch.jit.freeze(copy.deepcopy(plain_module))
    for positions in (nm(water) * np.nan, nm(water) * 0.0, nm(water)[:2]):
        with pytest.raises(torch.jit.Error):
            frozen(positions)


def test_unknown_element_is_refused(ethanol):
    with pytest.raises(InputError, match="atom 0 is C"):
        module_of(ethanol, toy_model(elements=(1, 8)))


def test_module_that_differs_from_the_potential_is_refused(water, monkeypatch):
    attention = export._edge_attention
    monkeypatch.setattr(export, "_edge_attention", lambda *inputs: 1.0001 * attention(*inputs))
    with pytest.raises(PredictionError, match="the TorchScript module differs from the potential"):
        module_of(water, rotation="none")
