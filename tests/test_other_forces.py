"""Forces that a propagator does not know are refused, or act by kicks."""

import numpy as np
import pytest
from analytic_potentials import HarmonicCalculator
from ase import Atoms
from ase.calculators.mixing import SumCalculator
from jump_systems import forces_of, tethered

from mlmd_calc import units
from mlmd_calc.errors import ConfigError
from mlmd_calc.md import JumpNVE, JumpNVT
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.propagation import (
    Corrections,
    FunctionForces,
    Guard,
    JumpLoop,
    Langevin,
    Strides,
    VerletPropagator,
)
from mlmd_calc.propagation.harmonic import HarmonicPropagator

FREE = {"corrections": Corrections.none(), "guard": Guard.off()}


class Known(HarmonicPropagator):
    """Exact motion, in a potential that it tells."""

    def __init__(self, harmonic):
        super().__init__(harmonic)
        self.potential = forces_of(harmonic)


def shifted(constant=2.0, shift=0.3):
    """Springs to other points than those of `tethered`."""
    return Harmonic.tethers(constant, tethered()[0].equilibrium + shift)


def sum_of(*parts):
    """Force model of several potentials together."""

    def evaluate(positions):
        results = [part.energy_and_forces(positions) for part in parts]
        return sum(energy for energy, _ in results), sum(forces for _, forces in results)

    return FunctionForces(evaluate)


def loop_of(forces, stride=8.0, **options):
    harmonic, start = tethered()
    return JumpLoop([start], Known(harmonic), stride, forces=forces, **{**FREE, **options})


@pytest.mark.parametrize(
    "bias",
    [
        shifted(),
        Harmonic.tethers(0.1, tethered()[0].equilibrium),  # at its minimum at the start
        Harmonic.tethers(1e-6, tethered()[0].equilibrium + 1e5),  # a field
    ],
)
def test_a_bias_is_refused(bias):
    harmonic, _ = tethered()
    with pytest.raises(ConfigError, match=r"would not act on jumps\. With other_forces='kick'"):
        loop_of(sum_of(harmonic, bias))
    for choice in ("kick", "ignore"):
        assert loop_of(sum_of(harmonic, bias), other_forces=choice).advance()
    with pytest.raises(ConfigError, match="choose one of refuse, kick, ignore"):
        loop_of(sum_of(harmonic, bias), other_forces="add")


def test_the_same_forces_are_not_refused_however_noisy():
    harmonic, _ = tethered()
    noise = np.random.default_rng(0)

    def noisy(positions):
        energy, forces = harmonic.energy_and_forces(positions)
        return energy, forces + 0.1 * noise.normal(size=forces.shape)

    assert loop_of(forces_of(harmonic)).advance()
    assert loop_of(FunctionForces(noisy)).advance()


def test_a_bias_that_grows_is_noticed():
    harmonic, _ = tethered()
    strength = [0.0]

    def growing(positions):
        energy, forces = harmonic.energy_and_forces(positions)
        return energy, forces + strength[0]

    loop = loop_of(FunctionForces(growing))
    for _ in range(60):
        assert loop.advance()
    strength[0] = 0.1
    for _ in range(40):
        assert loop.advance()
    with pytest.raises(ConfigError, match="forces of the engine differ"):
        loop.advance()


def test_kicks_are_right_to_second_order():
    """The error of the energy falls by four when the stride is halved."""
    harmonic, start = tethered()
    everything = sum_of(harmonic, shifted())

    def worst(stride):
        loop = loop_of(everything, stride, other_forces="kick")
        first = loop.energies()[0] + start.kinetic_energy
        errors = []
        for _ in range(round(400 / stride)):
            assert loop.advance()
            errors.append(loop.energies()[0] + loop.states[0].kinetic_energy - first)
        return np.abs(errors).max()

    assert worst(8.0) == pytest.approx(4.0 * worst(4.0), rel=0.15)
    propagator = Known(harmonic)
    propagator.strides = Strides.among([8.0])
    with pytest.raises(ConfigError, match="two of 4 fs"):
        JumpLoop([start], propagator, 8.0, forces=everything, other_forces="kick", **FREE)


def test_kicks_hold_an_umbrella_where_it_is():
    """Without kicks the mean would be off by 0.086 Å."""
    harmonic, start = tethered()
    loop = JumpLoop(
        [start] * 8,
        Known(harmonic),
        8.0,
        forces=sum_of(harmonic, shifted()),
        other_forces="kick",
        thermostat=Langevin(300.0, 0.02),
        rng=np.random.default_rng(1),
        **FREE,
    )
    seen = []
    for step in range(500):
        assert loop.advance()
        if step >= 50:
            seen.append([state.positions - harmonic.equilibrium for state in loop.states])
    assert np.mean(seen) == pytest.approx(2.0 * 0.3 / 7.0, abs=0.01)


def test_a_rejected_jump_falls_back_from_before_the_kick():
    harmonic, start = tethered()
    everything = sum_of(harmonic, shifted())

    class Broken(Known):
        def propagate(self, states, times_fs, generator):
            (frames,) = super().propagate(states, times_fs, generator)
            frames.positions[:] = np.nan
            return [frames]

    loop = JumpLoop(
        [start],
        Broken(harmonic),
        8.0,
        forces=everything,
        other_forces="kick",
        corrections=Corrections.none(),
        guard=Guard(checks=(), frames_file="/dev/null"),
    )
    loop.advance()
    (expected,) = VerletPropagator(everything, 0.5).propagate([start], [8.0], None)
    np.testing.assert_allclose(loop.states[0].positions, expected.positions[0], atol=1e-13)


def test_a_run_with_kicks_goes_on_to_the_last_bit(tmp_path):
    harmonic, _ = tethered()

    def make(seed):
        return loop_of(
            sum_of(harmonic, shifted()),
            other_forces="kick",
            thermostat=Langevin(300.0, 0.02),
            rng=np.random.default_rng(seed),
        )

    whole, again = make(1), make(2)
    whole.advance()
    whole.save(tmp_path / "run.npz")
    again.load(tmp_path / "run.npz")
    for _ in range(3):
        whole.advance()
        again.advance()
    np.testing.assert_array_equal(whole.states[0].positions, again.states[0].positions)


# ASE


def atoms_with(*parts):
    _, start = tethered()
    atoms = start.to_atoms()
    atoms.calc = SumCalculator([HarmonicCalculator(part) for part in parts])
    return atoms


def jump(atoms, **options):
    return JumpNVE(
        atoms, 8 * units.FS, Known(tethered()[0]), **{**FREE, "guard": Guard(checks=()), **options}
    )


def test_a_sum_of_calculators():
    harmonic, _ = tethered()
    atoms = atoms_with(harmonic, shifted())
    with pytest.raises(ConfigError, match="forces of the engine differ"):
        jump(atoms)
    assert jump(atoms, other_forces="kick").run(3)
    loop = loop_of(sum_of(harmonic, shifted()), other_forces="kick")
    for _ in range(3):
        loop.advance()
    np.testing.assert_allclose(atoms.positions, loop.states[0].positions, atol=1e-12)


def test_a_calculator_attached_later_is_looked_at():
    harmonic, start = tethered()
    atoms = start.to_atoms()
    dyn = jump(atoms)
    dyn.run(1)
    atoms.calc = HarmonicCalculator(harmonic)
    dyn.run(1)
    assert dyn.loop.forces.atoms is atoms
    atoms.calc = atoms_with(harmonic, shifted()).calc
    # Twice: to run the cell of a notebook again changes nothing.
    for _ in range(2):
        with pytest.raises(ConfigError, match="forces of the engine differ"):
            dyn.run(1)
    assert dyn.nsteps == 2


def test_a_calculator_that_is_needed_cannot_be_taken_away():
    harmonic, _ = tethered()
    atoms = atoms_with(harmonic)
    dyn = JumpNVE(atoms, 8 * units.FS, HarmonicPropagator(harmonic), md_steps_per_jump=1, **FREE)
    dyn.run(1)
    atoms.calc = None
    for _ in range(2):
        with pytest.raises(ConfigError, match="force-based steps need forces"):
            dyn.run(1)


def test_charges_of_calculators_are_those_of_jumps():
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]])
    atoms.calc = HarmonicCalculator(Harmonic.springs(np.ones((2, 2))))
    atoms.calc.parameters["charge"] = -1
    propagator = HarmonicPropagator(Harmonic.springs(np.ones((2, 2))))
    options = {"friction": 0.01 / units.FS, "guard": Guard.off()}
    dyn = JumpNVT(atoms, 8 * units.FS, propagator, 300, **options)
    assert dyn.loop.states[0].charge == -1
    atoms.info["charge"] = 1
    with pytest.raises(ValueError, match="disagree"):
        JumpNVT(atoms, 8 * units.FS, propagator, 300, **options)
