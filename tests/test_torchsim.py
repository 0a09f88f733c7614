"""MD-ET in TorchSim: answers, batches of any molecules, dynamics, and what is refused."""

import dataclasses
import sys

import ase
import numpy as np
import pytest
import torch
from ase.build import molecule
from toy_models import SMALL, molecules, toy_model

from mlmd_calc import MDETCalculator
from mlmd_calc.errors import ConfigError, InputError, MissingDependencyError

FIXED = {"device": "cpu", "rotation": "none"}


@pytest.fixture
def ts():
    return pytest.importorskip("torch_sim", reason="TorchSim is not installed (extra torchsim)")


@pytest.fixture
def model_class(ts):
    from mlmd_calc.torchsim import MDETModel

    return MDETModel


def state_of(ts, atoms):
    return ts.initialize_state(list(atoms), torch.device("cpu"), torch.float64)


def neutral():
    """Molecules of mixed sizes that need nothing but the default charge and multiplicity."""
    return [atoms for atoms in molecules() if not atoms.info]


def integrator(ts, name):
    """An integrator by its name; before TorchSim 0.4 they are functions."""
    return getattr(getattr(ts, "Integrator", ts), name)


def optimizer(ts, name):
    return getattr(getattr(ts, "Optimizer", ts.optimizers), name)


def total_energies(state):
    momenta, masses = state.momenta, state.masses
    kinetic = 0.5 * (momenta.square().sum(dim=1) / masses)
    return state.energy + torch.zeros_like(state.energy).index_add(0, state.system_idx, kinetic)


# ---- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": "none"},
        {"rotation": "random", "seed": 3},
        {"rotation": "random", "seed": 3, "n_rotations": 2},
        {"forces": "conservative", "rotation": "none", "on_spread": "measure"},
    ],
)
def test_answers_are_those_of_the_calculator(ts, model_class, options):
    model = model_class(toy_model(), device="cpu", **options)
    calculator = MDETCalculator(toy_model(), device="cpu", **options)
    found = neutral()
    for _ in range(2):  # The second call goes on with the stream of orientations.
        answers = model(state_of(ts, found))
        expected = []
        for atoms in found:
            calculator.calculate(atoms)
            expected.append(calculator.results)
        names = set(calculator.results) - {"free_energy"}
        assert set(answers) == names >= {"energy", "forces"}
        for name in names:
            values = [np.atleast_1d(result[name]) for result in expected]
            np.testing.assert_allclose(answers[name], np.concatenate(values), rtol=0, atol=1e-10)


def test_shipped_model_and_settings(ts, model_class):
    atoms = molecule("CH3CH2OH")
    for options in ({}, {"setting": "paper", "seed": 1}):
        answers = model_class(device="cpu", **options)(state_of(ts, [atoms]))
        atoms.calc = MDETCalculator(device="cpu", **options)
        assert abs(answers["energy"].item() - atoms.get_potential_energy()) < 1e-10
        np.testing.assert_allclose(answers["forces"], atoms.get_forces(), rtol=0, atol=1e-10)


def test_answers_are_like_the_positions(ts, model_class):
    model = model_class(toy_model(), **FIXED)
    state = ts.initialize_state([molecule("H2O")], torch.device("cpu"), torch.float32)
    state.positions.requires_grad_()
    generator = torch.get_rng_state()
    answers = model(state)
    assert torch.equal(torch.get_rng_state(), generator)
    assert {values.dtype for values in answers.values()} == {torch.float32}
    assert not any(values.requires_grad for values in answers.values())
    exact = model(ts.initialize_state([molecule("H2O")], model.device, model.dtype))
    assert exact["forces"].dtype == model.dtype == torch.float64
    torch.testing.assert_close(answers["forces"].double(), exact["forces"], rtol=1e-5, atol=1e-5)


def test_validator_of_torchsim(ts, model_class, monkeypatch):
    from torch_sim.models.interface import validate_model_outputs

    original = ts.io.atoms_to_state

    def clusters(atoms, *where):
        """The crystals of the validator as clusters, since the model knows no others."""
        found = [one.copy() for one in (atoms if isinstance(atoms, list) else [atoms])]
        for one in found:
            one.set_cell(np.zeros((3, 3)))
            one.pbc = False
        return original(found, *where)

    monkeypatch.setattr(ts.io, "atoms_to_state", clusters)
    validate_model_outputs(model_class(toy_model(), **FIXED), torch.device("cpu"), torch.float64)


# ---- charge and spin -------------------------------------------------------------------------


def test_charge_and_multiplicity(ts, model_class):
    ammonium, oxygen = (atoms for atoms in molecules() if atoms.info)
    water = molecule("H2O")
    found = [water, ammonium, oxygen]
    # Zeros say nothing.
    charges, spins = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 3.0])
    state = state_of(ts, found)
    state.charge, state.spin = charges, spins
    calculator = MDETCalculator(toy_model(), **FIXED)
    expected = [calculator.get_potential_energy(atoms) for atoms in found]
    energies = model_class(toy_model(), **FIXED)(state)["energy"]
    np.testing.assert_allclose(energies, expected, rtol=0, atol=1e-10)
    state.charge = charges[:, None]
    same = model_class(toy_model(), **FIXED)(state)["energy"]
    np.testing.assert_array_equal(same, energies)
    for number, options in ((1, {"charge": 1}), (2, {"multiplicity": 3})):
        stated = model_class(toy_model(), **options, **FIXED)(state_of(ts, [found[number]]))
        assert abs(stated["energy"].item() - expected[number]) < 1e-10
    with pytest.raises(InputError, match=r"charge=2 and .* disagree"):
        model_class(toy_model(), charge=2, **FIXED)(state)
    with pytest.raises(InputError, match="leaves 11 electrons"):
        model_class(toy_model(), **FIXED)(state_of(ts, [ase.Atoms("NH4", ammonium.positions)]))
    state.charge = torch.tensor([0.0, 0.5, 0.0])
    with pytest.raises(InputError, match="is not an integer"):
        model_class(toy_model(), **FIXED)(state)


def test_extras_of_a_state(ts, model_class):
    if not hasattr(ts.SimState, "system_extras"):
        pytest.skip("states of TorchSim have extras from 0.6 on")
    ammonium = next(atoms for atoms in molecules() if "charge" in atoms.info)
    model = model_class(toy_model(), device="cpu", rotation="average", n_rotations=2)

    def read(found):
        return ts.io.atoms_to_state(
            found, model.device, model.dtype, system_extras_map={"total_charge": "charge"}
        )

    # TorchSim leaves out what not every molecule states.
    with pytest.raises(InputError, match="leaves 11 electrons"):
        model(read([molecule("H2O"), ammonium]))
    moved = ts.integrate(
        read([ammonium, ammonium]),
        model,
        integrator=integrator(ts, "nvt_langevin"),
        n_steps=2,
        temperature=300,
        timestep=1e-4,
    )
    # Our further answers are kept in the state.
    assert moved.forces_std.shape == moved.positions.shape


# ---- in TorchSim -----------------------------------------------------------------------------


def test_energy_is_conserved(ts, model_class):
    model = model_class(device="cpu")

    def run(timestep_ps, steps):
        state, totals = [molecule("CH3CH2OH"), molecule("H2O")], []
        for _ in range(4):
            state = ts.integrate(
                state,
                model,
                integrator=integrator(ts, "nve"),
                n_steps=steps,
                temperature=300,
                timestep=timestep_ps,
            )
            totals.append(total_energies(state))
        return torch.stack(totals)

    coarse, fine = run(5e-4, 3), run(2.5e-4, 6)
    errors = [(totals - totals[0]).abs().max(dim=0).values for totals in (coarse, fine)]
    assert (errors[0] < 5e-3).all()
    # Of second order in the time step, as the work of a gradient is.
    ratio = errors[0] / errors[1]
    assert ((ratio > 3.0) & (ratio < 5.0)).all()


def test_runs_of_a_seed_are_repeated(ts, model_class):
    def run(seed):
        model = model_class(toy_model(), device="cpu", rotation="random", seed=seed)
        return ts.integrate(
            neutral(),
            model,
            integrator=integrator(ts, "nve"),
            n_steps=3,
            temperature=300,
            timestep=1e-4,
        ).positions

    first = run(1)
    assert torch.equal(run(1), first)
    assert not torch.equal(run(2), first)


def test_automatic_batches(ts, model_class):
    model = model_class(toy_model(), **FIXED)
    found = neutral()
    batcher = ts.BinningAutoBatcher(
        model, memory_scales_with=model.memory_scales_with, max_memory_scaler=10
    )
    whole, parts = ts.static(found, model), ts.static(found, model, autobatcher=batcher)
    assert len(batcher.memory_scalers) == len(found)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one["forces"], other["forces"], rtol=0, atol=1e-10)


def test_optimisation(ts, model_class):
    model = model_class(device="cpu")
    found = [atoms for atoms in neutral() if len(atoms) > 1]
    relaxed = ts.optimize(found, model, optimizer=optimizer(ts, "fire"), max_steps=20)
    before = model(state_of(ts, found))
    assert (relaxed.energy < before["energy"]).all()
    assert relaxed.forces.abs().max() < before["forces"].abs().max()


# ---- refusals --------------------------------------------------------------------------------


def test_refusals(ts, model_class):
    model = model_class(toy_model(elements=(1, 8)), **FIXED)
    periodic = ase.Atoms("H2O", molecule("H2O").positions, cell=[9, 9, 9], pbc=True)
    clash = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.05]])
    for atoms, sentence in (
        (periodic, "isolated molecules only"),
        (molecule("CH4"), "this model does not know"),
        (clash, "atoms 0 and 1 are 0.05 Å apart"),
    ):
        with pytest.raises(InputError, match=sentence):
            model(state_of(ts, [atoms]))
    with pytest.raises(InputError, match=r"^system 1: atoms 0 and 1 are"):
        model(state_of(ts, [molecule("H2O"), clash]))
    state = state_of(ts, [molecule("H2O")] * 2)
    state.system_idx = torch.tensor([1, 1, 1, 0, 0, 0])
    with pytest.raises(InputError, match="not in the order of their systems"):
        model(state)
    model.compute_stress = False
    with pytest.raises(NotImplementedError, match="use integrators without pressure"):
        model.compute_stress = True
    assert model.compute_stress is False
    answers = model(state_of(ts, [molecule("H2O")]))
    with pytest.raises(NotImplementedError, match="use integrators without pressure"):
        answers["stress"]
    with pytest.raises(KeyError, match="dipole"):
        answers["dipole"]
    with pytest.raises(ConfigError, match="predicts no energy"):
        model_class(toy_model(dataclasses.replace(SMALL, target_heads=("forces",))), **FIXED)
    with pytest.raises(TypeError, match="precision"):
        model_class(toy_model(), precision="double")


def test_without_torchsim(monkeypatch):
    monkeypatch.delitem(sys.modules, "mlmd_calc.torchsim", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_sim"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    with pytest.raises(MissingDependencyError, match=r"mlmd\[torchsim\]"):
        import mlmd_calc.torchsim  # noqa: F401
