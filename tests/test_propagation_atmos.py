"""ATMOS as a propagator: atom order, memory, restarts, relaxation, guard, OpenMM, refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from another_process import run_child, script
from ase.data import atomic_masses
from atmos_systems import STRIDE_PS, small_model, small_network, write_model
from scipy.spatial.transform import Rotation

from mlmd_calc import units
from mlmd_calc.biomolecules import build_system, read_structure
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.geometry.bonds import Bonds, bond_lengths
from mlmd_calc.md import JumpNVE, JumpNVT
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.propagation import (
    FunctionForces,
    Guard,
    JumpLoop,
    Langevin,
    Proposal,
    State,
    read_restart,
)
from mlmd_calc.propagation.atmos import ATMOSPropagator, Chirality, PeptideBonds
from mlmd_calc.propagation.relaxation import equilibrated, minimised, reference_window

pytest.importorskip("mdtraj", reason="mdtraj is not installed")
pytest.importorskip("rdkit", reason="rdkit is not installed")

from peptide_structures import permuted, write_dipeptide

STRIDE = 1e3 * STRIDE_PS
BARE = {"minimise_steps": 0, "langevin_steps": 0}
"""No relaxation, and so no forces."""
NO_FORCES = FunctionForces(lambda x: (0.0, np.full_like(x, np.nan)))
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def propagator(model, dipeptide):
    return ATMOSPropagator(model, build_system(dipeptide), **BARE)


def state_of(structure, **changes):
    numbers = structure.numbers
    start = State(structure.positions, 0.0 * structure.positions, numbers, atomic_masses[numbers])
    return replace(start, **changes)


def jump(propagator, state, seed=0):
    """Next state, as the loop makes it."""
    (frames,) = propagator.propagate([state], [STRIDE], torch.Generator().manual_seed(seed))
    time = state.time + STRIDE
    return replace(state, positions=frames.positions[0], time=time, memory=frames.memory)


def loop_of(propagator, state, seed=1, **options):
    options = {"guard": Guard.off(), "thermostat": Langevin(300.0, 0.005), **options}
    rng = np.random.default_rng(seed)
    return JumpLoop([state], propagator, STRIDE, rng=rng, **options)


def test_sampler_is_what_the_card_recommends(dipeptide):
    system, changes = (
        build_system(dipeptide),
        {"recommended": {"sampler_by_length": {"1": {"noise_scale": 1.5}}}},
    )
    recommending = ATMOSPropagator(small_model(card=changes), system, **BARE)
    plain = ATMOSPropagator(small_model(), system, **BARE)
    assert "noise_scale=1.5" in recommending.identity
    assert "noise_scale=1.003" in plain.identity
    moved = [jump(own, state_of(dipeptide)).positions for own in (recommending, plain)]
    assert not np.array_equal(*moved)


def test_jumps_are_those_of_the_network(propagator, model, dipeptide):
    system = propagator.system
    rollout = Rollout(model.network, system.features)
    memory, positions = rollout.start(1), torch.from_numpy(system.reference)[None]
    state = state_of(dipeptide)
    for seed in range(3):
        memory, positions = rollout.step(memory, positions, [torch.Generator().manual_seed(seed)])
        state = jump(propagator, state, seed)
        np.testing.assert_allclose(system.select(state.positions), positions[0], atol=1e-12)
    assert int(state.memory["step"]) == 3


def test_jumps_are_steered_unless_told_otherwise(model, dipeptide):
    """Steering shortens the bonds of an untrained network; restart files tell which it was."""
    system = build_system(dipeptide)
    sampler = replace(model.network.config.sampler, steps=20)
    steered, free = (
        ATMOSPropagator(model, system, sampler=sampler, steer=steer, **BARE)
        for steer in (True, False)
    )
    bonds = Bonds(system.bonds, bond_lengths(system.reference, system.bonds))
    worst = [
        np.abs(bonds.deviations(system.select(jump(own, state_of(dipeptide)).positions))).max()
        for own in (steered, free)
    ]
    assert worst[0] < 0.2 * worst[1]
    assert steered.identity != free.identity


def test_order_of_the_engine_does_not_matter(propagator, model, dipeptide):
    order = np.concatenate([np.random.default_rng(0).permutation(6), np.arange(6, 22)])
    other = permuted(dipeptide, order)
    assert (other.numbers != dipeptide.numbers).any()
    shuffled = ATMOSPropagator(model, build_system(other), **BARE)
    moved, expected = jump(shuffled, state_of(other)), jump(propagator, state_of(dipeptide))
    np.testing.assert_allclose(moved.positions, expected.positions[order], atol=1e-9)
    hydrogens = propagator.system.hydrogens
    for state in (state_of(dipeptide), expected):
        arms = state.positions[hydrogens.hydrogens] - state.positions[hydrogens.parents]
        lengths = np.linalg.norm(arms, axis=1)
        assert (np.abs(lengths - 1.05) < 0.1).all()


def test_a_turned_molecule_jumps_alike(propagator, dipeptide):
    turn, shift = Rotation.random(random_state=1).as_matrix(), np.array([1.0, 20.0, -3.0])
    state = state_of(dipeptide)
    turned = replace(state, positions=state.positions @ turn + shift)
    for seed in range(2):
        state, turned = jump(propagator, state, seed), jump(propagator, turned, seed)
        np.testing.assert_allclose(turned.positions, state.positions @ turn + shift, atol=1e-8)


def test_memory_matters_and_is_left_alone(propagator, dipeptide):
    first = jump(propagator, state_of(dipeptide))
    before = {name: array.copy() for name, array in first.memory.items()}
    second = jump(propagator, first)
    forgetful = jump(propagator, replace(first, memory={}))
    assert np.abs(second.positions - forgetful.positions).max() > 1e-3
    for name, array in before.items():
        np.testing.assert_array_equal(first.memory[name], array)


@pytest.mark.parametrize(("later", "kept"), [(0.09, True), (0.11, False)])
def test_memory_is_given_up_after_other_dynamics(propagator, dipeptide, later, kept):
    first = jump(propagator, state_of(dipeptide))
    waited = replace(first, time=first.time + later * STRIDE)
    assert int(jump(propagator, waited).memory["step"]) == (2 if kept else 1)


def test_several_molecules_jump_at_once(propagator, dipeptide):
    old = jump(propagator, state_of(dipeptide))
    states = [state_of(dipeptide), old]
    frames = propagator.propagate(states, [STRIDE], torch.Generator())
    assert [int(frame.memory["step"]) for frame in frames] == [1, 2]
    alone = propagator.propagate([old], [STRIDE], torch.Generator())[0]
    np.testing.assert_allclose(frames[1].memory["z"], alone.memory["z"], atol=1e-12)


def test_restart_goes_on_bit_for_bit(propagator, dipeptide, tmp_path):
    whole = loop_of(propagator, state_of(dipeptide))
    for _ in range(8):
        whole.advance()
    half = loop_of(propagator, state_of(dipeptide))
    for _ in range(4):
        half.advance()
    half.save(tmp_path / "half.npz")
    resumed = loop_of(propagator, state_of(dipeptide), seed=2)
    resumed.load(tmp_path / "half.npz")
    for _ in range(4):
        resumed.advance()
    (end,), (expected,) = resumed.states, whole.states
    assert int(end.memory["step"]) == 2  # the memory began anew once
    np.testing.assert_array_equal(end.positions, expected.positions)
    np.testing.assert_array_equal(end.velocities, expected.velocities)
    np.testing.assert_array_equal(end.memory["z"], expected.memory["z"])
    relaxed = ATMOSPropagator(propagator.model, propagator.system)
    with pytest.raises(ModelFileError, match="written with propagator = ATMOSPropagator"):
        loop_of(relaxed, state_of(dipeptide)).load(tmp_path / "half.npz")


def test_molecule_stays_where_it_is(propagator, dipeptide):
    loop = loop_of(propagator, state_of(dipeptide))
    heavy = propagator.system.reference.mean(axis=0)
    for _ in range(3):
        loop.advance()
    found = propagator.system.select(loop.states[0].positions).mean(axis=0)
    np.testing.assert_allclose(found, heavy, atol=1e-9)


def test_velocities_are_thermal(propagator, dipeptide):
    loop = loop_of(propagator, state_of(dipeptide), thermostat=Langevin(300.0, 1e-9))
    energies = []
    for _ in range(40):
        loop.advance()
        energies.append(loop.states[0].kinetic_energy)
    expected = 1.5 * 22 * units.KB * 300.0
    # Each energy is a sum of 66 squares.
    assert np.mean(energies) == pytest.approx(expected, rel=5.0 * np.sqrt(2.0 / (66 * 40)))


def test_mirror_images_are_rejected(propagator, dipeptide):
    check = Chirality(propagator.system)
    before = state_of(dipeptide)
    check.begin(before, None)
    turn = Rotation.random(random_state=0).as_matrix()
    turned = replace(before, positions=before.positions @ turn)
    mirrored = replace(before, positions=before.positions * [1.0, -1.0, 1.0])
    assert check.judge(Proposal(before, turned)) is None
    finding = check.judge(Proposal(before, mirrored))
    assert finding.reason == "C8 turned into the mirror image"
    other = Chirality(propagator.system)
    other.load_state_dict(check.state_dict())
    assert other.judge(Proposal(before, mirrored)) is not None


def test_peptide_bonds_that_turn_over_are_rejected(propagator, dipeptide):
    check = PeptideBonds(propagator.system)
    before = state_of(dipeptide)
    check.begin(before, None)
    first, carbon, nitrogen, _ = propagator.system.atoms[propagator.system.omega[0]]
    axis = before.positions[nitrogen] - before.positions[carbon]
    # What lies before the bond, with the caps' hydrogens; lengths do not matter here.
    near = np.linalg.norm(before.positions - before.positions[first], axis=1) < 1.3
    for degrees, sound in ((60.0, True), (150.0, False)):
        turn = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis))
        moved = np.array(before.positions)
        moved[near] = turn.apply(moved[near] - moved[carbon]) + moved[carbon]
        finding = check.judge(Proposal(before, replace(before, positions=moved)))
        assert (finding is None) == sound
    assert finding.reason == f"the peptide bonds C{carbon}-N{nitrogen} turned over"
    other = PeptideBonds(propagator.system)
    other.load_state_dict(check.state_dict())
    assert other.judge(Proposal(before, replace(before, positions=moved))) is not None


def tethered(dipeptide, spring=5.0):
    """Forces that hold the molecule where it is, with energies that can be shifted."""
    harmonic = Harmonic.tethers(spring, dipeptide.positions)
    shift = {"eV": 0.0}

    def energy_and_forces(x):
        energy, forces = harmonic.energy_and_forces(x)
        return energy + shift["eV"], forces

    return FunctionForces(energy_and_forces), shift


def test_reference_run_visits_the_energies_of_the_temperature(dipeptide):
    forces, _ = tethered(dipeptide, spring=50.0)
    rng = np.random.default_rng(0)
    window = reference_window(
        forces, state_of(dipeptide), 300.0, rng, steps=4000, minimise_steps=10
    )
    thermal = units.KB * 300.0
    # As many harmonic vibrations as there are coordinates, six of which would be free otherwise.
    deviation = np.sqrt(33.0) * thermal
    assert window.mean == pytest.approx(33.0 * thermal, abs=0.5 * deviation)
    assert window.deviation == pytest.approx(deviation, rel=0.3)
    assert window.limit == pytest.approx(2.0 * window.deviation / 22)
    assert window.judge(window.mean + 1.9 * window.deviation) is None
    finding = window.judge(window.mean + 2.1 * window.deviation)
    assert "2.1 standard deviations) above the mean of dynamics" in finding.reason


def test_jumps_of_too_high_an_energy_are_relaxed_again_and_rejected(model, dipeptide):
    system = build_system(dipeptide)
    forces, shift = tethered(dipeptide)
    # Barely relaxed, so that the first round is never enough.
    steps = {"minimise_steps": 3, "langevin_steps": 10, "reference_steps": 100}
    relaxed = []

    class Counting(ATMOSPropagator):
        def relax(self, *arguments):
            relaxed.append(super().relax(*arguments))
            return relaxed[-1]

    options = {"forces": forces, "guard": Guard(redraws=2, max_fallbacks=0)}
    strict = Counting(model, system, **steps, energy_limit=1e-6)
    loop = loop_of(strict, state_of(dipeptide), **options)
    with pytest.raises(PredictionError, match=r"relaxed 4 times, the potential energy is .* above"):
        loop.advance()
    assert len(relaxed) == 3 * 4
    assert loop.events.counts() == {"redraw": 2, "raise": 1}
    assert [event.check for event in loop.events] == ["energy"] * 3
    relaxed.clear()
    usual = Counting(model, system, minimise_steps=500, langevin_steps=20, reference_steps=100)
    loop = loop_of(usual, state_of(dipeptide), **options)
    loop.advance()
    assert len(relaxed) == 1
    window = loop.setup.window
    assert loop.energies()[0] < window.mean + 2.0 * window.deviation
    unguarded = loop_of(strict, state_of(dipeptide), **{**options, "guard": Guard.off()})
    unguarded.advance()
    assert unguarded.setup.window is None
    # Without energies nothing is judged, and with other forces the reference is another.
    assert Counting(model, system, **BARE).energy_window(None, forces, None, None) is None
    shift["eV"] = 5.0
    with pytest.raises(PredictionError, match=r"standard deviations\) above the mean of dynamics"):
        loop.advance()
    loop.forces = forces
    assert loop.setup.window is None
    loop.advance()
    assert loop.setup.window.mean == pytest.approx(window.mean + 5.0, abs=1.0)


def test_window_goes_with_the_restart(model, dipeptide, tmp_path):
    system = build_system(dipeptide)
    options = {"minimise_steps": 500, "langevin_steps": 20, "reference_steps": 60}

    def make(seed):
        propagator = ATMOSPropagator(model, system, **options)
        return loop_of(
            propagator, state_of(dipeptide), seed, forces=tethered(dipeptide)[0], guard=None
        )

    whole, half, resumed = make(1), make(1), make(2)
    for _ in range(4):
        whole.advance()
    for _ in range(2):
        half.advance()
    half.save(tmp_path / "half.npz")
    resumed.load(tmp_path / "half.npz")
    assert resumed.setup.window == half.setup.window
    for _ in range(2):
        resumed.advance()
    np.testing.assert_array_equal(resumed.states[0].positions, whole.states[0].positions)


def test_usual_checks_are_those_that_make_sense(propagator, dipeptide):
    loop = loop_of(propagator, state_of(dipeptide), guard=None)
    assert loop.settings()["checks"] == [
        *("displacement", "contact", "bonding", "chirality", "peptide bonds")
    ]


def test_guard_keeps_what_the_network_spoils(propagator, dipeptide):
    loop = loop_of(propagator, state_of(dipeptide), guard=Guard(redraws=1))
    with pytest.raises(PredictionError, match="step 0 at 0 fs failed"):
        loop.advance()
    assert loop.events.counts()["redraw"] == 1
    np.testing.assert_array_equal(loop.states[0].positions, dipeptide.positions)
    assert loop.states[0].memory == {}


def test_minimisation_goes_downhill(dipeptide):
    harmonic = Harmonic.tethers(30.0, dipeptide.positions)
    forces = FunctionForces(harmonic.energy_and_forces)
    displaced = dipeptide.positions + np.random.default_rng(0).normal(size=(22, 3))
    start = state_of(dipeptide, positions=displaced)
    end = minimised(forces, [start], 500)[0].positions
    assert np.linalg.norm(end - dipeptide.positions, axis=1).max() < 0.5 / 30.0
    way = minimised(forces, [start], 2)[0].positions
    way = way - minimised(forces, [start], 1)[0].positions
    assert np.linalg.norm(way, axis=1).max() == pytest.approx(0.2)
    with pytest.raises(PredictionError, match="forces on the proposed structure are not finite"):
        minimised(NO_FORCES, [start], 1)


def test_equilibration_gives_the_vibrations_of_the_temperature(dipeptide):
    spring = 5.0
    harmonic = Harmonic.tethers(spring, dipeptide.positions)
    forces = FunctionForces(harmonic.energy_and_forces)
    rng = np.random.default_rng(0)
    squares, energies = [], []
    for _ in range(8):
        # From the minimum, long against the inverse friction.
        (state,) = equilibrated(forces, [state_of(dipeptide)], 2000, 300.0, [rng])
        squares.append(((state.positions - dipeptide.positions) ** 2).mean())
        energies.append(state.kinetic_energy)
    error = 5.0 * np.sqrt(2.0 / (66 * 8))
    assert np.mean(squares) == pytest.approx(units.KB * 300.0 / spring, rel=error)
    assert np.mean(energies) == pytest.approx(33 * units.KB * 300.0, rel=error)


def test_relaxation_is_part_of_the_jump(model, dipeptide):
    propagator = ATMOSPropagator(
        model, build_system(dipeptide), minimise_steps=500, langevin_steps=20
    )
    harmonic = Harmonic.tethers(5.0, dipeptide.positions)
    forces = FunctionForces(harmonic.energy_and_forces)
    loop = loop_of(propagator, state_of(dipeptide), forces=forces)
    loop.advance()
    (state,) = loop.states
    moved = np.linalg.norm(state.positions - dipeptide.positions, axis=1)
    assert 0.01 < moved.max() < 0.5
    assert state.time == STRIDE
    with pytest.raises(ConfigError, match="langevin_steps=20 need forces; attach a calculator"):
        loop_of(propagator, state_of(dipeptide)).advance()
    unknown = FunctionForces(NO_FORCES.function)
    unknown.has_energy = False
    loop = loop_of(propagator, state_of(dipeptide), forces=unknown)
    with pytest.raises(PredictionError, match="cannot be relaxed: the forces"):
        loop.advance()
    loop = loop_of(propagator, state_of(dipeptide), forces=NO_FORCES, guard=None)
    with pytest.raises(PredictionError, match=r"dynamics from the start, .* fails: the forces"):
        loop.advance()


def test_jumps_in_ase(propagator, dipeptide):
    atoms = state_of(dipeptide).to_atoms()
    dyn = JumpNVT(
        atoms,
        STRIDE * units.FS,
        propagator,
        temperature_K=300.0,
        friction=0.005 / units.FS,
        guard=Guard.off(),
        rng=np.random.default_rng(0),
    )
    dyn.run(3)
    assert dyn.get_time() == pytest.approx(3 * STRIDE * units.FS)
    assert atoms.get_temperature() > 100.0
    with pytest.raises(ConfigError, match="predicts no velocities, so constant energy has no"):
        JumpNVE(atoms, STRIDE * units.FS, propagator)
    atoms.cell, atoms.pbc = 30.0 * np.eye(3), True
    with pytest.raises(InputError, match="periodic"):
        JumpNVT(atoms, STRIDE * units.FS, propagator, temperature_K=300.0, friction=0.1)


def test_refusals(model, propagator, dipeptide, tmp_path):
    system = build_system(dipeptide)
    solvated = build_system(
        read_structure(write_dipeptide(tmp_path / "complex.pdb", complexed=True))
    )
    with pytest.raises(InputError, match=r"2 atoms of the system are water or ions.*implicit"):
        ATMOSPropagator(model, solvated)
    with pytest.raises(ConfigError, match="is an interpolator"):
        ATMOSPropagator(small_model(max_remaining=3), system)
    with pytest.raises(InputError, match="does not know N"):
        ATMOSPropagator(small_model(card={"elements": (6, 8)}), system)
    with pytest.raises(ConfigError, match="does not tell its stride"):
        ATMOSPropagator(small_model(card={"strides_ps": ()}), system)
    with pytest.raises(ConfigError, match="trained on 10 ps and knows no other"):
        ATMOSPropagator(model, system, stride_ps=20.0)
    with pytest.raises(ConfigError, match="minimise_steps=-1"):
        ATMOSPropagator(model, system, minimise_steps=-1)
    with pytest.raises(ConfigError, match=r"energy_limit=-1\.0; it must be a positive number"):
        ATMOSPropagator(model, system, energy_limit=-1.0)
    with pytest.raises(ConfigError, match=r"a jump of 5 fs is not possible.*made for 10000 fs"):
        JumpLoop([state_of(dipeptide)], propagator, 5.0, thermostat=Langevin(300.0, 0.01))
    hot = ATMOSPropagator(small_model(card={"temperature_K": 350.0}), system)
    with pytest.raises(ConfigError, match="made for 350 K, but the thermostat has 300 K"):
        loop_of(hot, state_of(dipeptide))
    swapped = state_of(permuted(dipeptide, np.array([1, 0, *range(2, 22)])))
    with pytest.raises(InputError, match="build the system from the structure that is to move"):
        propagator.propagate([swapped], [STRIDE], torch.Generator())


def test_network_in_single_precision_keeps_its_memory(dipeptide):
    model = replace(small_model(), network=small_network().float())
    propagator = ATMOSPropagator(model, build_system(dipeptide), **BARE)
    first = jump(propagator, state_of(dipeptide))
    assert first.memory["z"].dtype == np.float32
    assert first.positions.dtype == np.float64


class TestOpenMM:
    """The same in OpenMM."""

    @pytest.fixture
    def simulation(self, model):
        openmm = pytest.importorskip("openmm", reason="openmm is not installed")
        from openmm import app, unit

        from openmm_bridge import JumpNVTIntegrator
        from openmm_bridge.topology_features import structure_from_topology

        def make(seed=1, constraints=None, **options):
            pdb = app.PDBFile(str(EXAMPLES / "alanine_dipeptide.pdb"))
            field = app.ForceField("amber14-all.xml")
            system = field.createSystem(pdb.topology, constraints=constraints)
            molecule = build_system(structure_from_topology(pdb.topology, pdb.positions))
            integrator = JumpNVTIntegrator(
                ATMOSPropagator(
                    model, molecule, minimise_steps=20, langevin_steps=5, reference_steps=0
                ),
                pdb.topology,
                300 * unit.kelvin,
                1 / unit.picosecond,
                STRIDE_PS * unit.picosecond,
                md_steps_per_jump=3,
                guard=options.get("guard", Guard.off()),
                rng=np.random.default_rng(seed),
            )
            platform = openmm.Platform.getPlatformByName("Reference")
            made = app.Simulation(pdb.topology, system, integrator, platform)
            made.context.setPositions(pdb.positions)
            return made

        return make

    @staticmethod
    def positions(simulation):
        state = simulation.context.getState(positions=True)
        return state.getPositions(asNumpy=True)._value

    def test_restart(self, simulation, tmp_path):
        whole, half, resumed = simulation(), simulation(), simulation(seed=2)
        whole.step(4)
        half.step(2)
        half.integrator.saveRestart(tmp_path / "half.npz")
        resumed.integrator.loadRestart(tmp_path / "half.npz")
        assert "z" in read_restart(tmp_path / "half.npz")["states"][0]["memory"]
        resumed.step(2)
        np.testing.assert_array_equal(self.positions(resumed), self.positions(whole))
        assert resumed.currentStep == 4
        time = resumed.context.getTime()._value
        assert time == pytest.approx(4 * (STRIDE_PS + 3 * 0.0005))

    def test_constraints_are_kept(self, simulation):
        from openmm import app

        made = simulation(constraints=app.HBonds)
        system, context = made.system, made.context
        pairs = [system.getConstraintParameters(i) for i in range(system.getNumConstraints())]
        first, second = (np.array([pair[k] for pair in pairs]) for k in (0, 1))
        lengths = np.array([pair[2]._value for pair in pairs])
        assert len(pairs) == 12
        made.context.setVelocitiesToTemperature(300.0, 1)
        for _ in range(2):
            made.step(1)
            state = context.getState(positions=True, velocities=True)
            arms, speeds = (
                values[second] - values[first]
                for values in (
                    state.getPositions(asNumpy=True)._value,
                    state.getVelocities(asNumpy=True)._value,
                )
            )
            np.testing.assert_allclose(np.linalg.norm(arms, axis=1), lengths, rtol=1e-6)
            assert np.abs((arms * speeds).sum(axis=1)).max() < 1e-6
            assert np.abs(speeds).max() > 0.1

    def test_example(self, tmp_path):
        pytest.importorskip("openmm", reason="openmm is not installed")
        path = write_model(tmp_path / "toy.safetensors", card={"strides_ps": [0.05]})
        printed = run_child(script, EXAMPLES / "openmm_atmos_jump.py", 1, path)
        assert f"jumps of {path}: 0.05 ps in" in printed
        assert printed.count("changes of basin") == 2
        assert "Jensen-Shannon divergence of the histograms" in printed
