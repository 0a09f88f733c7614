"""The models in the box do what their cards say."""

import ase
import numpy as np
import pytest

from mlmd_calc import MDETCalculator, Potential, list_models, load_model, load_propagator
from mlmd_calc.analysis.accuracy import measure_accuracy
from mlmd_calc.analysis.jump_baselines import Ballistic
from mlmd_calc.analysis.jumps import jumps_of, measure_jumps
from mlmd_calc.data import MOLECULES, SamplingSettings, read_dataset
from mlmd_calc.data.generate import generate
from mlmd_calc.data.molecules import start_structures
from mlmd_calc.zoo import load_any_model

NAMES = [card.name for card in list_models() if card.kind == "mdet"]
PROPAGATORS = [card.name for card in list_models() if card.kind == "atom"]
SPECIFIC = {"mdet-ethanol": "ethanol", "mdet-aspirin": "aspirin"}


def test_there_is_a_default_model():
    assert NAMES
    assert load_model().card.name == NAMES[0]


@pytest.mark.parametrize("name", NAMES + PROPAGATORS)
def test_card_is_complete(name):
    model = load_any_model(name)
    card = model.card
    for entry in ("description", "level_of_theory", "training_data", "licence", "citation"):
        assert getattr(card, entry), entry
    assert "mlmd train" in card.command or "mlmd finetune" in card.command
    assert card.errors
    assert card.recommended
    assert card.parameters == sum(p.numel() for p in model.network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_recommended_settings_conserve_energy(name):
    """Conservative forces are minus the slope of the energy, by finite differences."""
    molecule = MOLECULES[SPECIFIC.get(name, "ethanol")]
    start = start_structures(molecule, 1, seed=3)
    atoms = ase.Atoms(start.numbers, start.positions[0])
    atoms.calc = MDETCalculator(name)
    assert atoms.calc.potential.conservative
    direction = np.random.default_rng(0).normal(size=atoms.positions.shape)
    slope = np.vdot(atoms.get_forces(), direction)
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions += sign * 1e-4 * direction
        moved.calc = atoms.calc
        energies.append(moved.get_potential_energy())
    assert -(energies[0] - energies[1]) / 2e-4 == pytest.approx(slope, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_fresh_labels_confirm_the_card(name, tmp_path):
    """New dynamics of the teacher, never seen in training or in the card's measurement."""
    molecule = SPECIFIC.get(name, "butane")
    settings = SamplingSettings.for_mode(
        "langevin",
        frames=4,
        temperatures=(300.0,),
        conformers=1,
        stride_fs=20.0,
        thermalise_fs=50.0,
        seed=12345,
    )
    generate([MOLECULES[molecule]], tmp_path, settings)
    accuracy = measure_accuracy(Potential(name), read_dataset(tmp_path))
    claimed = max(
        errors["force MAE, meV/Å"]
        for setting, errors in load_model(name).card.errors.items()
        if setting.endswith("recommended")
    )
    # A handful of structures of one molecule scatters around the mean of the test set.
    assert accuracy.forces_mae < 2.0 * claimed


@pytest.mark.parametrize("name", PROPAGATORS)
def test_fresh_trajectories_confirm_the_card(name, tmp_path):
    """New motion of the teacher, of a molecule that was never trained on."""
    settings = SamplingSettings.for_mode(
        "nve", frames=60, conformers=1, thermalise_fs=100.0, seed=12345
    )
    generate([MOLECULES["isobutane"]], tmp_path, settings)
    (molecule,) = read_dataset(tmp_path)
    times = [2.0, 4.0, 8.0]
    jumps = jumps_of(molecule, times, 20)
    learned = measure_jumps(load_propagator(name, device="cpu"), jumps, times)
    ballistic = measure_jumps(Ballistic(), jumps, times)
    errors = load_any_model(name).card.errors
    claimed = next(rows for key, rows in errors.items() if key.startswith("molecules never"))
    for column, time in enumerate(times):
        for quantity in ("position", "velocity"):
            found = 100.0 * learned.relative(quantity)[column]
            # A few jumps of one molecule scatter around the mean of the test set.
            assert found < 1.5 * claimed[f"{time:g} fs"][f"{quantity}, %"]
            assert found < 100.0 * ballistic.relative(quantity)[column] / 3.0
