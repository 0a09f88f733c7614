"""MDETCalculator among ASE's own tools: properties, caching, dynamics, files, copies, errors."""

import copy
import dataclasses
import importlib
import importlib.metadata
import json
import pickle
import subprocess
import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase import units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError, get_calculator_class
from ase.calculators.fd import calculate_numerical_forces
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory
from ase.md import MDLogger
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE, BFGSLineSearch
from ase.vibrations import Vibrations
from toy_models import SMALL, molecules, random_network, toy_model

import mlmd_calc
from mlmd_calc import MDETCalculator, Potential, __version__
from mlmd_calc.errors import ConfigError, InputError, MLMDError, ModelFileError, PredictionError
from mlmd_calc.models import MDETConfig
from mlmd_calc.zoo import save_model

FORCES_ONLY = dataclasses.replace(SMALL, target_heads=("forces",))


def make(config: MDETConfig = SMALL, **options: object) -> MDETCalculator:
    return MDETCalculator(toy_model(config), **{"device": "cpu", **options})


def with_calculator(name: str = "CH3CH2OH", **options: object) -> ase.Atoms:
    atoms = molecule(name)
    atoms.calc = make(**options)
    return atoms


def count_calls(calculator: MDETCalculator) -> list[int]:
    """A list that grows by one number at each call of the network."""
    calls: list[int] = []
    calculator.potential.prediction.network.register_forward_pre_hook(
        lambda _module, arguments: calls.append(len(arguments[0]))
    )
    return calls


# ---- properties -----------------------------------------------------------------------------


def test_results_are_those_of_the_potential() -> None:
    for atoms in molecules():
        atoms.calc = make(seed=1, n_rotations=3)
        expected = Potential(toy_model(), seed=1, n_rotations=3).evaluate([atoms])[0]
        assert atoms.get_potential_energy() == expected.energy
        assert isinstance(atoms.get_potential_energy(), float)
        assert atoms.get_potential_energy(force_consistent=True) == expected.energy
        np.testing.assert_array_equal(atoms.get_forces(), expected.forces)
        for name in ("forces_std", "energy_std"):
            value = atoms.calc.get_property(name, atoms)
            np.testing.assert_array_equal(value, getattr(expected, name))


def test_all_results_come_from_one_network_call() -> None:
    atoms = with_calculator(n_rotations=2)
    calls = count_calls(atoms.calc)
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.get_potential_energy(force_consistent=True)
    atoms.calc.get_property("forces_std", atoms)
    assert calls == [2]


def test_results_do_not_share_memory_with_the_caller() -> None:
    atoms = with_calculator()
    forces = atoms.get_forces()
    expected = forces.copy()
    forces[:] = 0.0
    np.testing.assert_array_equal(atoms.get_forces(), expected)


def test_single_atom_has_forces_of_the_usual_shape() -> None:
    atoms = ase.Atoms("Ne", calculator=make(remove_net_force=False))
    assert atoms.get_forces().shape == (1, 3)
    assert atoms.calc.get_hessian().shape == (3, 3)
    atoms.calc = make()
    np.testing.assert_array_equal(atoms.get_forces(), np.zeros((1, 3)))


@pytest.mark.parametrize("name", ["stress", "dipole", "magmoms", "forces_std", "energy_std"])
def test_properties_it_does_not_have(name: str) -> None:
    atoms = with_calculator()
    with pytest.raises(PropertyNotImplementedError):
        atoms.calc.get_property(name, atoms)
    assert name not in atoms.calc.implemented_properties


def test_a_model_without_energy_has_forces_only(tmp_path: Path) -> None:
    atoms = with_calculator(config=FORCES_ONLY)
    assert atoms.calc.implemented_properties == ["forces"]
    for consistent in (False, True):
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_potential_energy(force_consistent=consistent)
    assert atoms.get_forces().any()
    with Trajectory(tmp_path / "run.traj", "w", atoms) as trajectory:
        trajectory.write()
    read = ase.io.read(tmp_path / "run.traj")
    np.testing.assert_array_equal(read.get_forces(), atoms.get_forces())
    # One instance does not change what others can do.
    assert "energy" in make().implemented_properties


def test_hessian() -> None:
    atoms = with_calculator("H2O", rotation="none")
    atoms.get_forces()
    expected = atoms.calc.potential.hessian(atoms).matrix
    np.testing.assert_array_equal(atoms.calc.get_hessian(atoms), expected)
    np.testing.assert_array_equal(atoms.calc.get_hessian(), expected)


def test_hessian_knows_charge_and_multiplicity() -> None:
    oxygen = ase.Atoms("O2", [[0, 0, 0], [0, 0, 1.21]])
    calculator = make(rotation="none", multiplicity=3)
    expected = make(rotation="none").get_hessian(molecules_with_info(oxygen, multiplicity=3))
    np.testing.assert_array_equal(calculator.get_hessian(oxygen), expected)
    assert np.abs(make(rotation="none").get_hessian(oxygen) - expected).max() > 1e-3


def molecules_with_info(atoms: ase.Atoms, **info: object) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.info = info
    return atoms


@pytest.mark.parametrize("call", [lambda c: c.get_hessian(), lambda c: c.calculate()])
def test_without_atoms_there_is_nothing_to_calculate(call: object) -> None:
    with pytest.raises(InputError, match="no atoms yet"):
        call(make())


# ---- cache ----------------------------------------------------------------------------------


def move(atoms: ase.Atoms) -> None:
    atoms.positions[0, 0] += 1e-6


def replace_element(atoms: ase.Atoms) -> None:
    # Two electrons more, so that the multiplicity stays possible.
    atoms.numbers[np.flatnonzero(atoms.numbers == 6)[0]] = 14


CHANGES = {
    "positions": move,
    "numbers": replace_element,
    "charge": lambda atoms: atoms.info.update(charge=-2),
    "multiplicity": lambda atoms: atoms.info.update(multiplicity=3),
    "spin": lambda atoms: atoms.info.update(spin=3),
    "calculator's charge": lambda atoms: atoms.calc.set(charge=2),
    "calculator's multiplicity": lambda atoms: atoms.calc.set(multiplicity=3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_that_matters_is_noticed(change: object) -> None:
    atoms = with_calculator(rotation="none")
    calls = count_calls(atoms.calc)
    before = atoms.get_potential_energy(), atoms.get_forces()
    change(atoms)
    after = atoms.get_potential_energy(), atoms.get_forces()
    assert calls == [1, 1]
    assert after[0] != before[0]
    assert not np.array_equal(after[1], before[1])


IRRELEVANT = {
    "nothing": lambda atoms: None,
    "a label": lambda atoms: atoms.info.update(label="x"),
    "the default charge": lambda atoms: atoms.info.update(charge=0),
    "the same charge in another type": lambda atoms: atoms.info.update(charge=np.int64(0)),
    "velocities": lambda atoms: atoms.set_velocities(np.ones((len(atoms), 3))),
    "the same charge again": lambda atoms: atoms.calc.set(charge=None),
}


@pytest.mark.parametrize("change", IRRELEVANT.values(), ids=IRRELEVANT.keys())
def test_changes_that_do_not_matter_cost_nothing(change: object) -> None:
    atoms = with_calculator()
    calls = count_calls(atoms.calc)
    before = atoms.get_forces()
    change(atoms)
    np.testing.assert_array_equal(atoms.get_forces(), before)
    assert calls == [1]


def test_random_orientations_are_fresh_after_each_move_only() -> None:
    atoms = with_calculator()
    first = atoms.get_forces()
    np.testing.assert_array_equal(atoms.get_forces(), first)
    move(atoms)
    assert np.abs(atoms.get_forces() - first).max() > 1e-3


def test_a_failed_calculation_leaves_no_results_behind() -> None:
    good, bad = molecule("H2O"), molecules_with_info(molecule("H2O"), charge=1)
    calculator = make()
    good.calc = bad.calc = calculator
    good.get_forces()
    for _ in range(2):
        with pytest.raises(InputError):
            bad.get_forces()
    with pytest.raises(InputError):
        calculator.calculate(bad)
    assert not calculator.results
    with pytest.raises(InputError):
        bad.get_potential_energy()
    # The remedy helps at once.
    bad.info["multiplicity"] = 2
    assert bad.get_forces().shape == (3, 3)
    assert good.get_forces().shape == (3, 3)


def test_a_disagreement_can_be_mended() -> None:
    atoms = with_calculator()
    atoms.calc.set(charge=0)
    atoms.get_forces()
    atoms.info["charge"] = 2
    with pytest.raises(InputError, match=r"charge=0 and atoms.info\['charge'\]=2 disagree"):
        atoms.get_forces()
    del atoms.info["charge"]
    assert atoms.get_forces().any()


# ---- charge and multiplicity ----------------------------------------------------------------


def test_constructor_and_info_mean_the_same() -> None:
    for name, state in (("CH3CH2OH", {"charge": -2}), ("N2", {"multiplicity": 3})):
        plain = molecule(name)
        by_constructor = make(rotation="none", **state).get_forces(plain)
        with_info = molecules_with_info(plain, **state)
        by_info = make(rotation="none").get_forces(with_info)
        both = make(rotation="none", **state).get_forces(with_info)
        np.testing.assert_array_equal(by_constructor, by_info)
        np.testing.assert_array_equal(both, by_info)
        assert not np.array_equal(make(rotation="none").get_forces(plain), by_info)


@pytest.mark.parametrize(
    ("given", "info"),
    [
        ({"charge": 1}, {"charge": 0}),
        ({"charge": 0}, {"charge": 2}),
        ({"multiplicity": 1}, {"multiplicity": 3}),
        ({"multiplicity": 1}, {"spin": 3}),
        ({"multiplicity": 3}, {"multiplicity": 3, "spin": 1}),
    ],
    ids=str,
)
def test_a_disagreement_is_an_error(given: dict, info: dict) -> None:
    with pytest.raises(InputError, match="disagree"):
        make(**given).get_forces(molecules_with_info(molecule("O2"), **info))


@pytest.mark.parametrize("name", ["charge", "multiplicity"])
@pytest.mark.parametrize("value", [1.5, "1", True, float("nan"), [1]], ids=repr)
def test_charge_and_multiplicity_are_integers(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{name}=.* is not an integer"):
        make(**{name: value})
    with pytest.raises(InputError, match=f"{name}=.* is not an integer"):
        make().set(**{name: value})


def test_only_charge_and_multiplicity_can_be_set_later() -> None:
    calculator = make(charge=np.int64(1))
    assert calculator.charge == 1
    assert calculator.set(charge=1.0) == {}
    assert calculator.set(charge=2, multiplicity=1) == {"charge": 2, "multiplicity": 1}
    assert (calculator.charge, calculator.multiplicity) == (2, 1)
    for options in ({"dtype": "float32"}, {"charge": 0, "rotation": "none"}, {"parameters": "x"}):
        with pytest.raises(ConfigError, match="make a new calculator"):
            calculator.set(**options)
    assert calculator.charge == 2
    with pytest.raises(AttributeError):
        calculator.charge = 0


# ---- refusals -------------------------------------------------------------------------------


REFUSED = {
    "no atoms": (ase.Atoms(), "no atoms"),
    "periodic": (ase.Atoms("He", cell=[5, 5, 5], pbc=True), "periodic"),
    "coincident": (ase.Atoms("H2"), "atoms 0 and 1 are 0 Å apart"),
    "far away": (ase.Atoms("H2", [[3e9, 0, 0], [3e9, 0, 0.74]]), "a coordinate is 3e"),
    "NaN": (ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, np.nan]]), "atom 1 has position"),
    "unknown element": (ase.Atoms("X"), "atom 0 is X"),
    "impossible multiplicity": (ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]]), "multiplicity=1"),
    "impossible charge": (molecules_with_info(molecule("H2O"), charge=1), "charge=1"),
}


@pytest.mark.parametrize(("atoms", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_structures_it_cannot_answer_are_refused(atoms: ase.Atoms, message: str) -> None:
    atoms = atoms.copy()
    atoms.calc = make()
    for ask in (atoms.get_forces, atoms.get_potential_energy, atoms.calc.get_hessian):
        arguments = (atoms,) if ask == atoms.calc.get_hessian else ()
        with pytest.raises(InputError, match=message):
            ask(*arguments)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("CH3", None, "Take mdet-small-organics-gfn2, which was trained on such molecules"),
        ("CH3SH", "mdet-ethanol-gfn2", "Take mdet-small-organics, which was trained on such"),
        ("SiH4", None, "No shipped model knows it"),
    ],
)
def test_a_refusal_names_the_shipped_model_that_knows_the_molecule(name, model, message) -> None:
    atoms = molecule(name)
    atoms.calc = MDETCalculator(model)
    with pytest.raises(InputError, match=message):
        atoms.get_forces()


def test_a_forgotten_charge_can_be_given_as_the_message_says() -> None:
    atoms = molecule("CH3COOH")
    del atoms[int(np.flatnonzero(atoms.symbols == "H")[0])]
    atoms.calc = MDETCalculator()
    with pytest.raises(InputError, match=r"for an ion set atoms\.info\['charge'\], or charge="):
        atoms.get_forces()
    atoms.info["charge"] = -1
    assert np.isfinite(atoms.get_forces()).all()


def test_the_remedy_for_a_molecule_far_away_works() -> None:
    atoms = with_calculator(rotation="none")
    near = atoms.get_forces()
    atoms.positions += 3e9
    with pytest.raises(InputError, match=r"atoms\.center\(about=\(0, 0, 0\)\)"):
        atoms.get_forces()
    atoms.center(about=(0, 0, 0))
    np.testing.assert_allclose(atoms.get_forces(), near, atol=1e-4)


def test_errors_are_of_the_expected_python_types() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(PredictionError, RuntimeError)
    assert issubclass(InputError, MLMDError)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_absurd_forces_do_not_enter_a_trajectory(tmp_path: Path, value: float) -> None:
    model = toy_model()
    with torch.no_grad():
        model.network.heads["forces"].mlp[-1].weight[1] = value
    atoms = molecule("H2O")
    atoms.calc = MDETCalculator(model)
    dynamics = VelocityVerlet(
        atoms, 0.5 * units.fs, trajectory=str(tmp_path / "run.traj"), loginterval=1
    )
    with pytest.raises(PredictionError, match=r"returned force .* on atom 0"):
        dynamics.run(2)
    dynamics.close()
    np.testing.assert_array_equal(atoms.positions, molecule("H2O").positions)
    with pytest.raises(PredictionError):
        atoms.get_potential_energy()


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": "sometimes"},
        {"dtype": "half"},
        {"device": "abacus"},
        {"device": None},
        {"remove_net_force": "no"},
    ],
    ids=str,
)
def test_unknown_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        make(**options)


@pytest.mark.parametrize("model", [3, "", ["mdet-ethanol"]], ids=repr)
def test_what_names_no_model_is_refused(model: object) -> None:
    with pytest.raises(ConfigError, match="is not a model; give the name of a shipped one"):
        MDETCalculator(model)


@pytest.mark.parametrize("atoms", ["CH3CH2OH", [molecule("H2O")]], ids=str)
def test_what_is_no_molecule_is_refused(atoms: object) -> None:
    with pytest.raises(InputError, match=r"is not a molecule; pass ase.Atoms"):
        make().get_property("energy", atoms)


# ---- ASE's tools ----------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", [BFGS, FIRE, BFGSLineSearch])
def test_optimisers_go_downhill(tmp_path: Path, optimiser: type) -> None:
    atoms = with_calculator("H2O", forces="conservative")
    energies = []
    # A random potential has no minimum worth finding.
    with optimiser(
        atoms, logfile=tmp_path / "log", trajectory=str(tmp_path / "run.traj")
    ) as running:
        running.attach(lambda: energies.append(atoms.get_potential_energy()))
        running.run(fmax=1e-3, steps=10)
    assert energies[-1] < energies[0] - 0.01
    frames = ase.io.read(tmp_path / "run.traj", ":")
    assert [frame.get_potential_energy() for frame in frames] == energies


def test_ase_s_own_finite_differences_agree() -> None:
    atoms = with_calculator("H2O", forces="conservative")
    numerical = calculate_numerical_forces(atoms, eps=1e-5)
    np.testing.assert_allclose(numerical, atoms.get_forces(), rtol=0, atol=1e-6)


def test_vibrations(tmp_path: Path) -> None:
    atoms = with_calculator("H2O", forces="conservative")
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-4)
    vibrations.run()
    hessian = vibrations.get_vibrations().get_hessian_2d()
    scale = np.abs(hessian).max()
    np.testing.assert_allclose(hessian, atoms.calc.get_hessian(atoms), atol=1e-4 * scale)


def test_constraints_go_along() -> None:
    atoms = with_calculator("H2O")
    atoms.set_constraint(FixAtoms([0]))
    assert not atoms.get_forces()[0].any()
    assert atoms.get_forces(apply_constraint=False)[0].any()


def thermalise(atoms: ase.Atoms, rng: np.random.Generator) -> None:
    """Velocities of 300 K. (The name of ASE's own function depends on its version.)"""
    masses = atoms.get_masses()[:, None]
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(masses * units.kB * 300))


@pytest.mark.parametrize("integrator", ["verlet", "langevin"])
def test_dynamics_with_logger_and_trajectory(tmp_path: Path, integrator: str) -> None:
    atoms = with_calculator(n_rotations=2, seed=0)
    rng = np.random.default_rng(0)
    thermalise(atoms, rng)
    if integrator == "verlet":
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    else:
        dynamics = Langevin(
            atoms,
            0.5 * units.fs,
            temperature_K=300,
            friction=0.01 / units.fs,
            fixcm=False,
            rng=rng,
        )
    path, log = tmp_path / "run.traj", tmp_path / "run.log"
    calls = count_calls(atoms.calc)
    with Trajectory(path, "w", atoms) as trajectory, MDLogger(dynamics, atoms, log) as logger:
        dynamics.attach(trajectory.write, interval=2)
        dynamics.attach(logger, interval=2)
        dynamics.run(6)
    # One network call per step and one at the start, each with two orientations.
    assert calls == [2] * 7
    assert len(log.read_text().splitlines()) == 1 + 4
    frames = ase.io.read(path, ":")
    assert len(frames) == 4
    np.testing.assert_array_equal(frames[-1].get_forces(), atoms.get_forces())
    assert frames[-1].get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_array_equal(frames[-1].get_velocities(), atoms.get_velocities())
    assert calls == [2] * 7


def test_conservative_dynamics_conserve_energy() -> None:
    atoms = with_calculator("H2O", forces="conservative")
    atoms.rattle(0.02, seed=0)
    thermalise(atoms, np.random.default_rng(0))
    energies = []
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(50)
    kinetic = atoms.get_kinetic_energy()
    assert np.ptp(energies) < 1e-4 * kinetic


def test_extended_xyz_keeps_the_results(tmp_path: Path) -> None:
    atoms = with_calculator()
    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
    ase.io.write(tmp_path / "one.extxyz", atoms)
    read = ase.io.read(tmp_path / "one.extxyz")
    np.testing.assert_allclose(read.get_forces(), forces, atol=1e-7)
    assert read.get_potential_energy() == pytest.approx(energy, abs=1e-7)


# ---- identity and copies --------------------------------------------------------------------


def test_description_is_json_and_rebuilds_the_calculator(model_file: Path) -> None:
    original = MDETCalculator(
        str(model_file),
        device=torch.device("cpu"),
        rotation="average",
        n_rotations=np.int64(4),
        charge=np.int64(1),
        dtype="mixed",
    )
    described = json.loads(json.dumps(original.todict()))
    assert described == original.todict()
    assert described["model"] == str(model_file)
    assert described.pop("sha256") == original.potential.model.sha256 != ""
    rebuilt = MDETCalculator(**described)
    assert rebuilt.todict() == original.todict()


def test_trajectories_store_the_description(tmp_path: Path, model_file: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = MDETCalculator(str(model_file))
    atoms.get_forces()
    path = tmp_path / "run.traj"
    with Trajectory(path, "w", atoms) as trajectory:
        trajectory.write()
    with Trajectory(path) as trajectory:
        stored = trajectory.backend.calculator
        assert stored.name == "mdet"
        assert dict(stored.parameters) == atoms.calc.todict()


COPIES = {
    "pickle": lambda calculator: pickle.loads(pickle.dumps(calculator)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize(
    "options",
    [
        {"seed": 4},
        {"n_rotations": 2, "charge": -2, "remove_net_torque": False, "dtype": "float32"},
        {"forces": "conservative", "rotation": "average", "n_rotations": 2, "multiplicity": 3},
    ],
    ids=str,
)
def test_copies_go_on_like_the_original(model_file: Path, options: dict, duplicate: object) -> None:
    atoms = molecule("CH3CH2OH")
    original = MDETCalculator(str(model_file), device="cpu", **options)
    original.get_forces(atoms)
    copied = duplicate(original)
    assert type(copied) is MDETCalculator
    assert copied.todict() == original.todict()
    assert copied.implemented_properties == original.implemented_properties
    for _ in range(3):
        atoms.rattle(0.01, rng=np.random.default_rng(0))
        expected = original.get_forces(atoms)
        np.testing.assert_array_equal(copied.get_forces(atoms), expected)
        assert copied.results.keys() == original.results.keys()
    # Neither touches the other's random numbers.
    state = copied.potential.state_dict()
    atoms.rattle(0.01, rng=np.random.default_rng(1))
    original.get_forces(atoms)
    assert copied.potential.state_dict() == state


def test_pickles_refer_to_the_model(model_file: Path) -> None:
    calculator = MDETCalculator(str(model_file), seed=0)
    calculator.get_forces(molecule("C6H6"))
    pickled = pickle.dumps(calculator)
    assert len(pickled) < 1000 < model_file.stat().st_size


def test_a_changed_model_file_is_refused(model_file: Path) -> None:
    calculator = MDETCalculator(str(model_file))
    pickled = pickle.dumps(calculator)
    save_model(model_file, random_network(SMALL, seed=1), {}, {"name": "other"})
    with pytest.raises(ModelFileError, match=r"sha256 .* was stored with"):
        pickle.loads(pickled)
    model_file.unlink()
    with pytest.raises(MLMDError, match="no file"):
        pickle.loads(pickled)
    # A copy in memory needs no file.
    atoms = molecule("H2O")
    expected = copy.deepcopy(calculator).get_forces(atoms)
    np.testing.assert_array_equal(calculator.get_forces(atoms), expected)


def test_a_model_in_memory_is_copied_but_not_pickled() -> None:
    calculator = make(seed=0)
    atoms = molecule("H2O")
    copied = copy.deepcopy(calculator)
    np.testing.assert_array_equal(copied.get_forces(atoms), calculator.get_forces(atoms))
    with pytest.raises(ModelFileError, match="save_model"):
        pickle.dumps(calculator)


def test_atoms_with_the_calculator_can_be_copied(model_file: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = MDETCalculator(str(model_file), seed=0)
    twin = copy.deepcopy(atoms)
    assert twin.calc is not atoms.calc
    np.testing.assert_array_equal(twin.get_forces(), atoms.get_forces())


# ---- registration ---------------------------------------------------------------------------


def test_ase_finds_it_by_name(model_file: Path) -> None:
    calculator = get_calculator_class("mdet")(str(model_file))
    assert isinstance(calculator, MDETCalculator)
    assert calculator.name == "mdet"


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ase_s_plugin_system_finds_it(capsys: pytest.CaptureFixture[str]) -> None:
    entries = importlib.metadata.entry_points(group="ase.plugins")
    if not any(entry.value == "mlmd_calc.plugins" for entry in entries):
        pytest.skip("the package is imported from its source and not installed")
    system = pytest.importorskip(
        "ase._4.plugins", reason="this version of ASE has no plugin system"
    )
    found = [plugin for plugin in system.plugins.calculators if plugin.name == "mdet"]
    assert [plugin.implementation for plugin in found] == [MDETCalculator]
    # What "ase info --plugins" does; it fails if it cannot find the distribution of a plugin.
    importlib.import_module("ase.cli.info").print_plugins()
    assert f"mlmd {__version__}" in capsys.readouterr().out


def test_importing_the_package_costs_neither_torch_nor_ase() -> None:
    code = "import sys, mlmd_calc; print(sorted({'torch', 'ase', 'numpy'} & set(sys.modules)))"
    assert run_python(code) == "[]"


def test_importing_the_commands_costs_no_torch() -> None:
    """`mlmd --help` imports all of them."""
    code = "import sys, mlmd_calc.cli.commands; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_importing_the_plugin_costs_no_torch() -> None:
    code = "import sys, mlmd_calc.plugins; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_public_names_are_there_and_unknown_ones_are_not() -> None:
    assert set(mlmd_calc.__all__) <= set(dir(mlmd_calc))
    # What a notebook completes are names for scripts.
    assert set(mlmd_calc.md.__all__) == set(dir(mlmd_calc.md))
    for name in (*mlmd_calc.__all__, "models", "zoo", "data", "potential"):
        assert getattr(mlmd_calc, name)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        mlmd_calc.Nonsense  # noqa: B018


def test_what_the_model_does_not_answer_is_refused_with_what_it_does():
    atoms = molecule("H2O")
    atoms.calc = MDETCalculator(toy_model())
    with pytest.raises(PropertyNotImplementedError, match=r"no stress, but energy.*no pressure"):
        atoms.get_stress()
    with pytest.raises(PropertyNotImplementedError, match=r"no dipole, but energy.*forces$"):
        atoms.get_dipole_moment()
    with pytest.raises(InputError, match=r"is not a molecule; pass ase\.Atoms"):
        atoms.calc.get_potential_energy([atoms])
