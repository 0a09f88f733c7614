"""What steps of jumps cost in force calls, and that saving them changes no number."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from jump_run_child import SpringPotential, spring_molecule, springs

from mlmd_calc import MDETCalculator, Potential, load_model, load_propagator, units
from mlmd_calc.md import Ensemble, JumpNVE, JumpNVT, JumpSettings, MDSettings, Run, draw_momenta
from mlmd_calc.potential import Evaluation
from mlmd_calc.propagation import (
    Corrections,
    FunctionForces,
    JumpLoop,
    VerletPropagator,
    make_thermostat,
    state_from_ase,
)


class Counting(FunctionForces):
    """Springs that count the molecules they are asked for."""

    def __init__(self):
        super().__init__(springs)
        self.calls = 0

    def evaluate(self, structures, properties=("energy", "forces")):
        self.calls += len(structures)
        return super().evaluate(structures, properties)


class CountingPotential(SpringPotential):
    """The same as what a calculator has."""

    calls = 0

    def evaluate(self, structures, properties=(), coverage=None):
        self.calls += len(structures)
        return super().evaluate(structures, properties, coverage)


def moving(seed=0):
    atoms = spring_molecule(CountingPotential)
    draw_momenta(atoms, 300.0, np.random.default_rng(seed))
    return atoms


@pytest.mark.parametrize("ensemble", [Ensemble.NVE, Ensemble.LANGEVIN])
@pytest.mark.parametrize("steps_per_jump", [1, 4])
def test_a_recorded_run_of_force_steps_makes_one_force_call_per_step(
    tmp_path, ensemble, steps_per_jump
):
    atoms = moving()
    jumps = JumpSettings("verlet", 0.5 * steps_per_jump, replicas=3)
    settings = MDSettings(ensemble, timestep_fs=0.5, seed=1, interval=2, jumps=jumps)
    propagator = VerletPropagator(atoms.calc.potential, 0.5)
    with Run.start(atoms, tmp_path / "run", settings, propagator=propagator) as run:
        run.run(1)
        before = atoms.calc.potential.calls
        run.run(11)
    assert atoms.calc.potential.calls - before == 10 * steps_per_jump * 3


def test_force_steps_after_jumps_tell_their_energy():
    forces = Counting()
    loop = JumpLoop(
        [state_from_ase(moving())],
        VerletPropagator(forces, 0.5),
        0.5,
        md_steps_per_jump=1,
        md_timestep_fs=0.5,
    )
    loop.advance()
    before = forces.calls
    loop.advance()
    # The steps after a jump know nothing of its forces, but the next jump knows theirs.
    assert forces.calls - before == 3


def test_steps_are_those_of_ase():
    atoms, states = moving(), [state_from_ase(moving())]
    loop = JumpLoop(states, VerletPropagator(FunctionForces(springs), 0.5), 0.5)
    for _ in range(100):
        loop.advance()
    atoms.calc = moving().calc
    VelocityVerlet(atoms, 0.5 * units.FS).run(100)
    np.testing.assert_allclose(loop.states[0].positions, atoms.positions, rtol=0.0, atol=1e-11)
    assert loop.energies() == pytest.approx([springs(loop.states[0].positions)[0]], abs=1e-12)


def test_energies_are_those_of_the_engine_where_it_has_other_forces():
    other = FunctionForces(lambda positions: (springs(positions)[0] + 7.0, springs(positions)[1]))
    loop = JumpLoop(
        [state_from_ase(moving())],
        VerletPropagator(FunctionForces(springs), 0.5),
        0.5,
        forces=other,
        thermostat=make_thermostat("langevin", 300.0, 1e-3),
        rng=np.random.default_rng(0),
    )
    for _ in range(3):
        loop.advance()
        energy = loop.states[0].energy
        assert energy == pytest.approx(7.0 + springs(loop.states[0].positions)[0], abs=1e-12)


def test_a_net_force_moves_the_molecule_and_its_energy_is_evaluated_there():
    def lifted(positions):
        energy, forces = springs(positions)
        return energy - 2.0 * positions[:, 2].sum(), forces + np.array([0.0, 0.0, 2.0])

    loop = JumpLoop(
        [state_from_ase(moving())],
        VerletPropagator(FunctionForces(lifted), 0.5),
        2.0,
        corrections=Corrections(rescale_energy=True),
    )
    for _ in range(3):
        loop.advance()
        assert loop.states[0].energy == pytest.approx(
            lifted(loop.states[0].positions)[0], abs=1e-12
        )


def test_atoms_that_are_moved_in_between_have_their_own_forces():
    atoms = moving()
    dynamics = JumpNVE(atoms, 0.5 * units.FS, VerletPropagator(FunctionForces(springs), 0.5))
    dynamics.run(2)
    atoms.positions[0] += [0.05, 0.0, 0.0]
    expected = atoms.copy()
    expected.calc = moving().calc
    dynamics.run(1)
    VelocityVerlet(expected, 0.5 * units.FS).run(1)
    np.testing.assert_allclose(atoms.positions, expected.positions, rtol=0.0, atol=1e-12)


def test_forces_of_another_charge_are_not_taken_from_memory():
    def of_charge(structure):
        energy, forces = springs(structure.positions)
        return Evaluation((1 + structure.charge) * energy, (1 + structure.charge) * forces)

    class Charged:
        has_energy = True

        def evaluate(self, structures, properties=()):
            return [of_charge(structure) for structure in structures]

    verlet, generator = VerletPropagator(Charged(), 0.5), torch.Generator()
    start = state_from_ase(moving())
    (frames,) = verlet.propagate([start], [0.5], generator)
    end = replace(
        start,
        positions=frames.positions[-1],
        velocities=frames.velocities[-1],
        memory=frames.memory,
        charge=2,
    )
    assert verlet.known_energy(end) is None
    assert verlet.known_energy(replace(end, charge=0)) is not None
    (remembering,) = verlet.propagate([end], [0.5], generator)
    (forgetful,) = verlet.propagate([replace(end, memory={})], [0.5], generator)
    np.testing.assert_array_equal(remembering.positions, forgetful.positions)


def ethanol():
    atoms = molecule("CH3CH2OH")
    draw_momenta(atoms, 300.0, np.random.default_rng(0))
    return atoms


class Asked:
    """A potential that counts its calls."""

    has_energy = True

    def __init__(self):
        self.potential_of_ethanol = Potential("mdet-small-organics")
        self.calls = 0

    def evaluate(self, structures, properties=("energy", "forces")):
        self.calls += 1
        return self.potential_of_ethanol.evaluate(structures, properties)


def shared_and_apart(steps, **options):
    """Force calls of so many steps after the first, and where they end.

    The loop has the potential of the propagator, then another force model that answers the same.
    """
    ends, calls = [], []
    for shared in (True, False):
        asked = Asked()
        others = FunctionForces(lambda positions, asked=asked: _answer(asked, positions))
        loop = JumpLoop(
            [state_from_ase(ethanol())],
            load_propagator("atom-small-organics", dtype="float64", potential=asked),
            8.0,
            thermostat=make_thermostat("langevin", 300.0, 0.01),
            forces=asked if shared else others,
            rng=np.random.default_rng(0),
            **options,
        )
        loop.advance()
        before = asked.calls
        for _ in range(steps):
            loop.advance()
        calls.append(asked.calls - before)
        ends.append(loop.states[0].positions)
    return calls, ends


def test_a_jump_takes_the_forces_that_came_with_the_energy_of_the_one_before():
    calls, ends = shared_and_apart(5)
    assert calls == [5, 10]
    np.testing.assert_allclose(*ends, rtol=0.0, atol=1e-9)


def test_jumps_and_the_steps_between_them_know_the_forces_of_each_other():
    calls, ends = shared_and_apart(3, md_steps_per_jump=4)
    # The end of the jump and each of the steps; apart also the starts of both.
    assert calls == [3 * 5, 3 * 7]
    np.testing.assert_allclose(*ends, rtol=0.0, atol=1e-12)


def _answer(asked, positions):
    (found,) = asked.evaluate([replace(state_from_ase(ethanol()).structure, positions=positions)])
    return found.energy, found.forces


@functools.cache
def in_memory():
    """A model without name and checksum."""
    return replace(load_model("mdet-small-organics", device="cpu"), source="", sha256="")


@pytest.mark.parametrize(
    ("propagator", "calculator", "calls"),
    [
        (lambda: "atom-small-organics", MDETCalculator, 1),
        (lambda: load_propagator("atom-small-organics"), MDETCalculator, 1),
        (
            lambda: load_propagator("atom-small-organics", potential=Potential(in_memory())),
            lambda: MDETCalculator(in_memory()),
            1,
        ),
        (
            lambda: load_propagator("atom-small-organics", dtype="float64"),
            lambda: MDETCalculator(dtype="float32"),
            2,
        ),
        (
            lambda: load_propagator("atom-small-organics"),
            lambda: MDETCalculator(rotation="average", n_rotations=2),
            2,
        ),
        (
            lambda: load_propagator("atom-small-organics"),
            lambda: MDETCalculator(in_memory()),
            2,
        ),
    ],
)
def test_jumps_ask_the_calculator_of_the_atoms_where_it_has_their_potential(
    monkeypatch, propagator, calculator, calls
):
    asked = []
    evaluate = Potential.evaluate
    monkeypatch.setattr(
        Potential, "evaluate", lambda *given, **more: asked.append(1) or evaluate(*given, **more)
    )
    atoms = ethanol()
    atoms.calc = calculator()
    dynamics = JumpNVT(
        atoms,
        8.0 * units.FS,
        propagator(),
        300.0,
        friction=0.01 / units.FS,
        rng=np.random.default_rng(0),
    )
    dynamics.run(1)
    before = len(asked)
    dynamics.run(4)
    assert len(asked) - before == 4 * calls
