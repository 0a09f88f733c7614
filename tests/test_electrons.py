"""The one rule for charge and spin."""

import ase
import numpy as np
import pytest
from ase.build import molecule

from mlmd_calc.data import MoleculeFrames
from mlmd_calc.electrons import ElectronicState, TrainedState, electronic_state, store_state
from mlmd_calc.errors import InputError
from mlmd_calc.training.mdet.task import trained_states


def atoms_saying(charges=None, moments=None, arrays=None, **info) -> ase.Atoms:
    """Carbon monoxide with statements about its electrons."""
    atoms = ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.13]], info=info)
    if charges is not None:
        atoms.set_initial_charges(charges)
    if moments is not None:
        atoms.set_initial_magnetic_moments(moments)
    for name, values in (arrays or {}).items():
        atoms.set_array(name, np.array(values))
    return atoms


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ({}, (0, 1)),
        ({"charge": np.int64(2), "spin": 3}, (2, 3)),
        ({"total_charge": 2.0, "total_spin": 3}, (2, 3)),
        ({"Charge": -1, "mult": 2}, (-1, 2)),
        ({"charges": [1.0, 0.0], "moments": [0.0, -1.0]}, (1, 2)),
        ({"charges": [0.49, -0.52]}, (0, 1)),
        ({"charges": [0.0, 0.0], "charge": 2}, (2, 1)),
        ({"arrays": {"formal_charges": [-1, 0]}, "multiplicity": 2}, (-1, 2)),
        ({"charge": 1, "charges": [1.0, 0.0], "multiplicity": 2, "moments": [0.4, 0.6]}, (1, 2)),
        ({"arrays": {"q": [-1.2, -0.8]}}, (-2, 1)),
        # Words that a number explains, and words of other things.
        ({"dianion": True, "charge": -2, "triplet": True, "multiplicity": 3}, (-2, 3)),
        ({"zwitterion": True, "name": "dianion", "cation": False}, (0, 1)),
        # Neither charges of atoms nor names and flags are a total charge.
        ({"mulliken_charges": [0.2, -0.2], "charge_model": "RESP", "spin_polarized": True}, (0, 1)),
        # Words of a comment that agree, or mean other things.
        ({"charge:": True, "0": True, "(mult": True, "1)": True}, (0, 1)),
        ({"charges:": True, "Mulliken": True, "1": True, "2.0": True, "Q-Chem": True}, (0, 1)),
        ({"-2": True, "1": True, "charge": -2}, (-2, 1)),
        ({"arrays": {"charges_esp": [0.2, -0.2]}}, (0, 1)),
    ],
    ids=str,
)
def test_whatever_states_charge_or_spin_counts(statements, expected):
    assert electronic_state(atoms_saying(**statements)) == expected


def test_ase_knows_that_oxygen_is_a_triplet():
    assert electronic_state(molecule("O2")) == (0, 3)


def test_results_of_a_file_count():
    atoms = atoms_saying()
    assert electronic_state(atoms, results={"charges": [-0.4, -0.6], "magmom": 1.0}) == (-1, 2)
    assert electronic_state(atoms, results={"magmoms": [1.1, 0.9]}) == (0, 3)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ({"charge": 0, "total_charge": 1}, "info.*charge.*=0 and .*total_charge.*=1 disagree"),
        ({"charge": 0, "charges": [1.0, 0.0]}, "initial charges=1 disagree"),
        ({"multiplicity": 1, "moments": [1.0, 1.0]}, r"moments \(2\), .*multiplicity=3 disagree"),
        ({"charges": [0.5, 0.0]}, "sum of the initial charges is 0.5.*state the total charge"),
        ({"moments": [0.5, 0.0]}, "moments is 0.5.*state the total multiplicity"),
        ({"charge": 1, "arrays": {"formalCharge": [0, 2]}}, "formalCharge.*=2 disagree"),
        ({"spin": 0.5}, "0.5 is not an integer"),
        ({"q_charge": 1}, "q_charge=1 looks like a charge or spin.*rename it"),
        ({"uhf": 2}, "uhf=2 looks like"),
        ({"q": 1}, "q=1 looks like"),
        # What ASE makes of comments such as "charge: 1".
        ({"charge:": True, "1": True}, "comment says 'charge: 1', but .* 0 and 1; write charge=1"),
        ({"(charge": True, "-2)": True}, r"comment says 'charge -2', but .* write charge=-2"),
        ({"chg": True, "of": True, "+2": True}, r"says 'chg of \+2', but .* write charge=2"),
        ({"mol|q|2|mult|1": True}, r"says 'q\|2', but .* write charge=2"),
        ({"mult:": True, "3;": True}, "comment says 'mult: 3', but .* write charge=0 mult.*=3"),
        ({"[-2, 1]": True, "-76.4": True}, "comment says .*-2, 1'.* write charge=-2 mult.*=1"),
        ({"0": True, "3": True, "O2": True}, "comment says '0 3'.* write charge=0 mult.*=3"),
        ({"chg": -2}, "chg=-2 looks like"),
        ({"Dianion:": True}, "comment says 'Dianion:', but .* 0 and 1; add charge="),
        ({"triplet": True, "charge": 0}, "comment says 'triplet', but .* add multiplicity="),
        ({"arrays": {"formal_charges": ["1-", "1-"]}}, r"cannot be taken of \['1-', '1-'\]; give"),
        ({"arrays": {"charges": ["-1", "-1"]}}, r"cannot be taken of \['-1', '-1'\]; give one"),
        (
            {"moments": [[0, 0, 1.0], [0, 0, 1.0]]},
            r"moments cannot be taken of \[\[0.0, 0.0, 1.0\]",
        ),
        ({"n_unpaired_electrons": np.int64(2)}, "looks like"),
    ],
    ids=str,
)
def test_what_contradicts_or_cannot_be_understood_is_refused(statements, message):
    with pytest.raises(InputError, match=message):
        electronic_state(atoms_saying(**statements))


def test_arguments_must_agree_with_the_atoms():
    assert electronic_state(atoms_saying(charge=2), 2, 3) == (2, 3)
    for arguments in ((1, None), (None, 1)):
        with pytest.raises(InputError, match="disagree"):
            electronic_state(atoms_saying(charge=2, spin=3), *arguments)


def test_a_stored_state_replaces_all_names():
    atoms = atoms_saying(total_charge=np.int64(2), spin=3, step=1)
    store_state(atoms, electronic_state(atoms))
    assert atoms.info == {"charge": 2, "multiplicity": 3, "step": 1}
    assert str(ElectronicState(2, 3)) == "charge +2, multiplicity 3"


@pytest.mark.parametrize(("symbols", "fewest"), [("N2", 2), ("H2O", 3)])
def test_a_model_fine_tuned_to_a_small_molecule_knows_it(symbols, fewest):
    atoms = ase.Atoms(symbols)
    frames = MoleculeFrames(
        name=symbols,
        numbers=atoms.numbers,
        positions=np.zeros((1, len(atoms), 3)),
        energies=np.zeros(1),
    )
    (state,) = trained_states([frames], [TrainedState(0, 1, 10, 33, 3)])
    assert state["fewest_atoms"] == fewest
    assert state["most_atoms"] == 33
