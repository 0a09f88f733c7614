"""Fitted cheap forces are of atoms in one order: starts in another are refused at once."""

import warnings

import numpy as np
import pytest
from analytic_potentials import Springs
from ase import units
from ase.build import molecule
from bond_springs import springs

from mlmd_calc.bonded import BondedForceField
from mlmd_calc.errors import InputError
from mlmd_calc.md import ExactMTS, MTSLangevin, MTSVelocityVerlet

RNG = np.random.default_rng(3)


def fitted(atoms):
    positions = atoms.positions + 0.06 * RNG.standard_normal((80, *atoms.positions.shape))
    return BondedForceField(atoms, positions, springs(atoms, positions))


@pytest.fixture(scope="module")
def cheap():
    return fitted(molecule("CH3CH2OH"))


def start_of(kind, atoms, cheap):
    atoms.calc = Springs(20.0, 1.0)
    options = {} if kind is MTSVelocityVerlet else {"temperature_K": 300, "friction": 0.1}
    return kind(atoms, 4.0 * units.fs, cheap, inner_steps=8, **options)


def exchanged(atoms, *pairs):
    for first, second in pairs:
        atoms.positions[[first, second]] = atoms.positions[[second, first]]
    return atoms


@pytest.mark.parametrize("kind", [MTSVelocityVerlet, MTSLangevin, ExactMTS])
@pytest.mark.parametrize(("pair", "centre"), [((4, 5), "C1"), ((6, 8), "C0"), ((7, 8), "C0")])
def test_hydrogens_in_each_others_place_are_refused(cheap, kind, pair, centre):
    atoms = exchanged(molecule("CH3CH2OH"), pair)
    with pytest.raises(InputError, match=rf"round {centre} .* other sense .*atoms.positions\[\["):
        start_of(kind, atoms, cheap)


def test_the_remedy_helps(cheap):
    atoms = exchanged(molecule("CH3CH2OH"), (6, 8))
    with pytest.raises(InputError) as refused:
        start_of(ExactMTS, atoms, cheap)
    command = str(refused.value).split("exchange them, ")[1].split(";")[0]
    exec(command, {"atoms": atoms})
    start_of(ExactMTS, atoms, cheap)


def test_another_order_of_equal_elements_is_refused(cheap):
    atoms = exchanged(molecule("CH3CH2OH"), (3, 6))
    with pytest.raises(InputError, match=r"Å apart, but are bonded .*order of the fit"):
        start_of(ExactMTS, atoms, cheap)


def test_a_mirror_image_is_refused():
    atoms = molecule("CH4")
    atoms.numbers[1:] = [9, 17, 35, 53]
    cheap = fitted(atoms)
    start_of(ExactMTS, atoms.copy(), cheap)
    atoms.positions[:, 0] *= -1.0
    with pytest.raises(InputError, match=r"round C0 .*mirror image"):
        start_of(ExactMTS, atoms, cheap)


def test_what_the_molecule_may_do_is_not_refused(cheap):
    third = exchanged(molecule("CH3CH2OH"), (6, 7), (7, 8))
    turned = molecule("CH3CH2OH")
    turned.set_dihedral(0, 1, 2, 3, 60.0, indices=[3])
    hot = molecule("CH3CH2OH")
    hot.positions += 0.12 * RNG.standard_normal(hot.positions.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for atoms in (third, turned, hot):
            start_of(ExactMTS, atoms, cheap)


def test_stored_fits_know_it_and_older_ones_do_without(cheap):
    state = dict(cheap.state_dict())
    atoms = exchanged(molecule("CH3CH2OH"), (6, 8))
    with pytest.raises(InputError, match="round C0"):
        start_of(ExactMTS, atoms, BondedForceField.from_state(state))
    del state["senses"]
    start_of(ExactMTS, atoms, BondedForceField.from_state(state))
