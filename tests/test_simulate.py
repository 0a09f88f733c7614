"""Dynamics on analytic systems, restart to the last bit, and the guards."""

import errno
import json

import ase.io
import numpy as np
import pytest
from analytic_potentials import Morse, PairPotential, Springs, Tethers
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.constraints import FixAtoms
from toy_models import write_model

from mlmd_calc import MDETCalculator, units
from mlmd_calc.analysis import summarise
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.geometry.bonds import find_bonds
from mlmd_calc.md import Ensemble, MDSettings, Run, read_record
from mlmd_calc.md.checkpoint import CHECKPOINT_FILE, Checkpoint
from mlmd_calc.md.dynamics import degrees_of_freedom, draw_momenta, remove_rigid_motion
from mlmd_calc.md.export import export_frames
from mlmd_calc.md.record import DESCRIPTION_FILE, FRAMES_FILE, STOPPED_FILE
from mlmd_calc.propagation import read_restart, write_restart


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network with random weights and forces so weak that it breaks nothing."""
    return write_model(tmp_path_factory.mktemp("model") / "weak.safetensors", 0.3)


def diatomic(distance=1.0):
    return Atoms("CO", [[0, 0, 0], [distance, 0, 0]])


def tetrahedron(side=1.5):
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    return Atoms("CNOF", side / np.sqrt(8) * corners)


def simulate(atoms, folder, steps, **settings):
    with Run.start(atoms, folder, MDSettings(**settings)) as simulation:
        outcome = simulation.run(steps)
    return outcome, read_record(folder)


def test_verlet_error_of_a_spring_shrinks_with_the_square_of_the_time_step(tmp_path):
    fluctuations = []
    for timestep in (0.4, 0.2):
        atoms = diatomic()
        atoms.calc = Springs(k=80.0, r0=1.0)
        outcome, record = simulate(
            atoms,
            tmp_path / str(timestep),
            round(100 / timestep),
            ensemble=Ensemble.NVE,
            timestep_fs=timestep,
            interval=1,
        )
        assert outcome.verdict == "completed"
        energy = summarise(record).energy
        kinetic = record.frames["kinetic"].max() / (2 * units.MEV)
        assert energy.fluctuation < 0.02 * kinetic
        fluctuations.append(energy.fluctuation)
    assert fluctuations[0] / fluctuations[1] == pytest.approx(4.0, rel=0.1)


def test_spring_oscillates_with_its_frequency(tmp_path):
    atoms = diatomic()
    atoms.calc = Springs(k=80.0, r0=1.0)
    _, record = simulate(atoms, tmp_path, 800, ensemble=Ensemble.NVE, timestep_fs=0.1, interval=1)
    masses = record.description.masses
    omega = np.sqrt(80.0 * masses.sum() / masses.prod())
    bonds = record.description.bonds
    stretch = bonds.deviations(record.frames["positions"])[:, 0]
    times = record.times_ps * units.PS
    # Without angular momentum the bond starts at rest length and swings as a sine.
    expected = stretch.max() * np.sign(stretch[1]) * np.sin(omega * times)
    np.testing.assert_allclose(stretch, expected, atol=0.02 * stretch.max())


def test_langevin_gives_every_oscillator_its_temperature(tmp_path):
    rng = np.random.default_rng(0)
    atoms = Atoms("CHNO" * 5, 10 * rng.random((20, 3)))
    atoms.calc = Tethers(k=5.0, anchors=atoms.positions)
    settings = {"friction_per_ps": 30.0, "timestep_fs": 1.0, "bond_stop": 1e3, "seed": 1}
    outcome, record = simulate(atoms, tmp_path, 4000, **settings)
    assert outcome.verdict == "completed"
    mean = summarise(record).temperature
    assert mean.resolved
    assert mean.standard_error < 9.0
    assert abs(mean.value - 300.0) < 4 * mean.standard_error
    # Equipartition: the springs hold as much energy as the motion.
    potential = record.frames["potential"][100:].mean()
    assert potential == pytest.approx(0.5 * 60 * units.KB * 300.0, rel=0.1)


@pytest.mark.parametrize("ensemble", [Ensemble.BUSSI, Ensemble.NOSE_HOOVER])
def test_thermostats_do_not_count_conserved_motion(tmp_path, ensemble):
    # Of 12 degrees of freedom 6 stay at rest: counting them would double the temperature.
    atoms = tetrahedron()
    atoms.calc = Morse(depth=4.0, a=1.5, r0=1.5)
    _, record = simulate(
        atoms, tmp_path, 3000, ensemble=ensemble, friction_per_ps=80.0, timestep_fs=1.0, seed=1
    )
    assert record.description.degrees_of_freedom == 6
    mean = summarise(record).temperature
    assert mean.standard_error < 30.0
    assert abs(mean.value - 300.0) < 4 * mean.standard_error
    last = record.frames[-1]
    momentum = (record.description.masses[:, None] * last["velocities"]).sum(axis=0)
    scale = np.abs(record.description.masses[:, None] * last["velocities"]).sum()
    np.testing.assert_allclose(momentum, 0.0, atol=1e-9 * scale)


def angular_momentum(atoms):
    arms = atoms.positions - atoms.get_center_of_mass()
    return np.cross(arms, atoms.get_momenta()).sum(axis=0)


@pytest.mark.parametrize("torque_free", [True, False])
@pytest.mark.parametrize("ensemble", list(Ensemble))
def test_initial_velocities_have_the_temperature_and_nothing_conserved(ensemble, torque_free):
    rng = np.random.default_rng(3)
    atoms = molecule("CH3CH2OH")
    degrees = degrees_of_freedom(len(atoms), ensemble, torque_free)
    temperatures = []
    for _ in range(400):
        draw_momenta(atoms, 300.0, rng)
        remove_rigid_motion(atoms, ensemble, torque_free)
        temperatures.append(2 * atoms.get_kinetic_energy() / (degrees * units.KB))
    error = np.std(temperatures) / np.sqrt(len(temperatures))
    assert abs(np.mean(temperatures) - 300.0) < 4 * error
    total = np.abs(atoms.get_momenta().sum(axis=0)).max()
    spin = np.abs(angular_momentum(atoms)).max()
    removed = ensemble is not Ensemble.LANGEVIN
    assert (total < 1e-12) == removed
    assert (spin < 1e-12) == (removed and torque_free)


@pytest.mark.parametrize(
    ("n_atoms", "ensemble", "torque_free", "expected"),
    [
        (5, Ensemble.LANGEVIN, True, 15),
        (5, Ensemble.NVE, True, 9),
        (5, Ensemble.BUSSI, False, 12),
        (2, Ensemble.NVE, True, 1),
        (1, Ensemble.LANGEVIN, True, 3),
    ],
)
def test_degrees_of_freedom(n_atoms, ensemble, torque_free, expected):
    assert degrees_of_freedom(n_atoms, ensemble, torque_free) == expected


def test_single_atom_without_langevin_is_refused():
    with pytest.raises(ConfigError, match="1 atom"):
        degrees_of_freedom(1, Ensemble.NVE, True)


def test_removing_the_rotation_of_a_linear_molecule():
    atoms = molecule("CO2")
    draw_momenta(atoms, 300.0, np.random.default_rng(0))
    remove_rigid_motion(atoms, Ensemble.NVE, torque_free=True)
    np.testing.assert_allclose(angular_momentum(atoms), 0.0, atol=1e-12)
    assert atoms.get_kinetic_energy() > 0


def mdet(model, seed):
    return MDETCalculator(model, forces="direct", rotation="random", seed=seed)


@pytest.mark.parametrize("ensemble", list(Ensemble))
def test_restart_goes_on_bit_for_bit(tmp_path, model, ensemble):
    settings = MDSettings(ensemble, interval=3, checkpoint_interval=7, seed=5)
    atoms = molecule("CH3CH2OH")
    atoms.calc = mdet(model, seed=6)
    with Run.start(atoms, tmp_path / "whole", settings) as simulation:
        assert simulation.run(40).verdict == "completed"
        expected = simulation.atoms
    atoms.calc = mdet(model, seed=6)
    with Run.start(atoms, tmp_path / "parts", settings) as simulation:
        simulation.run(20)
    # The seed of the new calculator must not matter: the stream goes on from the checkpoint.
    with Run.resume(tmp_path / "parts", mdet(model, seed=7)) as simulation:
        assert simulation.step == 20
        assert simulation.run(40).step == 40
    np.testing.assert_array_equal(simulation.atoms.positions, expected.positions)
    np.testing.assert_array_equal(simulation.atoms.get_momenta(), expected.get_momenta())
    whole, parts = (read_record(tmp_path / name).frames for name in ("whole", "parts"))
    assert whole.tobytes() == parts.tobytes()
    # The end is recorded too, and dropped where the run goes on.
    assert whole["step"].tolist() == [*range(0, 40, 3), 40]


def test_restart_after_a_kill_drops_what_the_checkpoint_does_not_know(tmp_path, model):
    settings = MDSettings(interval=2, checkpoint_interval=10)
    atoms = molecule("CH3CH2OH")
    atoms.calc = mdet(model, seed=6)
    with Run.start(atoms, tmp_path / "whole", settings) as simulation:
        simulation.run(40)

    def kill(running):
        if running.step == 26:
            raise KeyboardInterrupt

    atoms.calc = mdet(model, seed=6)
    killed = Run.start(atoms, tmp_path / "killed", settings)
    with pytest.raises(KeyboardInterrupt):
        killed.run(40, on_frame=kill)
    killed.close()
    with Run.resume(tmp_path / "killed", mdet(model, seed=7)) as simulation:
        assert simulation.step == 20
        simulation.run(40)
    whole, again = (read_record(tmp_path / name).frames for name in ("whole", "killed"))
    assert whole.tobytes() == again.tobytes()


def springs(distance=1.0):
    atoms = diatomic(distance)
    atoms.calc = Springs(k=80.0, r0=1.0)
    return atoms


def test_a_run_killed_before_its_first_checkpoint_can_be_started_again(tmp_path, monkeypatch):
    def die(checkpoint, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", die)
        with pytest.raises(KeyboardInterrupt):
            Run.start(springs(), tmp_path / "run", MDSettings(), job={"for": "a test"})
    with pytest.raises(ModelFileError, match="stopped before its first step"):
        Run.resume(tmp_path / "run", Springs(k=80.0, r0=1.0))
    for name in ("run", "whole"):
        simulate(springs(), tmp_path / name, 20)
    whole, again = (read_record(tmp_path / name).frames for name in ("whole", "run"))
    assert whole.tobytes() == again.tobytes()


def test_checkpoints_of_older_versions_are_continued(tmp_path):
    simulate(springs(), tmp_path / "whole", 20, ensemble=Ensemble.BUSSI)
    simulate(springs(), tmp_path / "parts", 10, ensemble=Ensemble.BUSSI)
    path = tmp_path / "parts" / CHECKPOINT_FILE
    content = read_restart(path)
    inner = ("step", "frames", "bond_deviations", "random_state", "thermostat", "rotations")
    content["progress"] = {name: content.pop(name) for name in inner}
    write_restart(path, content)
    with Run.resume(tmp_path / "parts", Springs(k=80.0, r0=1.0)) as simulation:
        assert simulation.step == 10
        simulation.run(20)
    whole, parts = (read_record(tmp_path / name).frames for name in ("whole", "parts"))
    assert whole.tobytes() == parts.tobytes()


def test_frames_without_their_checkpoint_are_not_overwritten(tmp_path):
    simulate(springs(), tmp_path, 20)
    (tmp_path / CHECKPOINT_FILE).unlink()
    with pytest.raises(ConfigError, match="holds a run already"):
        Run.start(springs(), tmp_path, MDSettings())


def test_one_at_a_time(tmp_path):
    with Run.start(springs(), tmp_path, MDSettings()) as simulation:
        simulation.run(10)
        with pytest.raises(ConfigError, match="is being written to by another process"):
            Run.resume(tmp_path, Springs(k=80.0, r0=1.0))
    Run.resume(tmp_path, Springs(k=80.0, r0=1.0)).close()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"distance": 1.2}, "lengths is .1.2. there and .1.0. here"),
        ({"temperature_K": 900.0}, "temperature_K is 900.0 there and 300.0 here"),
        ({"calculator": Morse(depth=5.0, a=1.0, r0=1.0)}, "calculator is 'Morse' there"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other, message):
    simulate(springs(), tmp_path / "run", 10)
    atoms = springs(other.pop("distance", 1.0))
    atoms.calc = other.pop("calculator", atoms.calc)
    simulate(atoms, tmp_path / "other", 10, **other)
    (tmp_path / "other" / CHECKPOINT_FILE).replace(tmp_path / "run" / CHECKPOINT_FILE)
    with pytest.raises(ModelFileError, match=message):
        Run.resume(tmp_path / "run", Springs(k=80.0, r0=1.0))


def test_a_full_disk_leaves_what_can_be_continued(tmp_path, monkeypatch):
    settings = MDSettings(interval=1, checkpoint_interval=10)
    with Run.start(springs(), tmp_path / "whole", settings) as simulation:
        simulation.run(40)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Run.start(springs(), tmp_path / "full", settings) as simulation:
        simulation.run(20)
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            simulation.run(40)
        monkeypatch.undo()
    assert not list((tmp_path / "full").glob(".*.part"))
    with Run.resume(tmp_path / "full", Springs(k=80.0, r0=1.0)) as simulation:
        assert simulation.step == 20
        simulation.run(40)
    whole, again = (read_record(tmp_path / name).frames for name in ("whole", "full"))
    assert whole.tobytes() == again.tobytes()


def test_a_request_to_stop_leaves_a_checkpoint(tmp_path):
    atoms = diatomic()
    atoms.calc = Springs(k=80.0, r0=1.0)
    with Run.start(atoms, tmp_path, MDSettings(interval=1)) as simulation:
        outcome = simulation.run(100, should_stop=lambda: simulation.step >= 17)
    assert (outcome.verdict, outcome.step) == ("interrupted", 17)
    with Run.resume(tmp_path, Springs(k=80.0, r0=1.0)) as simulation:
        assert simulation.step == 17


def test_a_broken_bond_ends_the_run(tmp_path):
    atoms = diatomic()
    atoms.calc = Morse(depth=0.05, a=2.0, r0=1.0)
    settings = {"ensemble": Ensemble.NVE, "temperature_K": 5000.0, "seed": 1}
    outcome, record = simulate(atoms, tmp_path, 10_000, **settings)
    assert outcome.verdict == "failed"
    assert "C0-O1" in outcome.reason
    assert record.failed
    stopped = ase.io.read(tmp_path / STOPPED_FILE)
    length = stopped.get_distance(0, 1)
    assert length > 2.0
    assert f"{length:.2f}" in outcome.reason
    # The record ends with the offending frame, whatever the interval.
    assert record.frames["step"][-1] == outcome.step
    assert record.frames["bond_deviation"][-1] == pytest.approx(length - 1.0, abs=1e-7)
    summary = summarise(record)
    assert summary.bond == "C0-O1"
    assert 0 < summary.broken_at_ps <= summary.time_ps
    # Going on from the last checkpoint repeats the end.
    with Run.resume(tmp_path, Morse(depth=0.05, a=2.0, r0=1.0)) as simulation:
        assert not (tmp_path / STOPPED_FILE).exists()
        assert simulation.run(10_000) == outcome


class Faulty(Springs):
    """Springs that fail after some calls."""

    def __init__(self, failure, calls=5):
        super().__init__(k=80.0, r0=1.0)
        self.failure, self.calls = failure, calls

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.calls -= 1
        if self.calls < 0 and isinstance(self.failure, Exception):
            raise self.failure
        if self.calls < 0:
            self.results["forces"] = np.full((2, 3), self.failure)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (np.nan, "not finite"),
        (CalculationFailed("no convergence"), "no convergence"),
        (InputError("odd geometry"), "odd geometry"),
    ],
)
def test_forces_that_fail_end_the_run(tmp_path, failure, reason):
    atoms = diatomic()
    atoms.calc = Faulty(failure)
    outcome, record = simulate(atoms, tmp_path, 100, interval=1)
    assert outcome.verdict == "failed"
    assert reason in outcome.reason
    assert outcome.step == len(record)
    assert (tmp_path / STOPPED_FILE).exists()


def test_a_start_that_the_calculator_refuses_leaves_nothing_behind(tmp_path):
    atoms = diatomic()
    atoms.calc = Faulty(InputError("odd geometry"), calls=0)
    with pytest.raises(InputError, match="odd geometry"):
        Run.start(atoms, tmp_path / "run", MDSettings())
    assert not (tmp_path / "run").exists()


def test_kept_velocities_lose_only_what_is_conserved(tmp_path):
    atoms = tetrahedron()
    atoms.calc = Springs(k=10.0, r0=1.5)
    draw_momenta(atoms, 300.0, np.random.default_rng(0))
    before = atoms.get_momenta()
    with Run.start(atoms, tmp_path / "langevin", MDSettings(), keep_velocities=True) as simulation:
        np.testing.assert_array_equal(simulation.atoms.get_momenta(), before)
    with Run.start(
        atoms, tmp_path / "nve", MDSettings(Ensemble.NVE), keep_velocities=True
    ) as simulation:
        np.testing.assert_allclose(simulation.atoms.get_momenta().sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_array_equal(atoms.get_momenta(), before)


def test_refusals(tmp_path):
    atoms = diatomic()
    atoms.calc = Springs(k=80.0, r0=1.0)
    with pytest.raises(ConfigError, match="no velocities"):
        Run.start(atoms, tmp_path / "a", MDSettings(), keep_velocities=True)
    broken = atoms.copy()
    broken.calc = atoms.calc
    broken.set_momenta([[0, 0, 0], [np.nan, 0, 0]])
    with pytest.raises(InputError, match="velocities are not finite"):
        Run.start(broken, tmp_path / "a", MDSettings(), keep_velocities=True)
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(InputError, match="FixAtoms"):
        Run.start(atoms, tmp_path / "a", MDSettings())
    atoms.set_constraint()
    for mass in (0.0, -1.0, np.nan):
        light = atoms.copy()
        light.calc = atoms.calc
        light.set_masses([1.0, mass])
        with pytest.raises(InputError, match="must be positive and finite"):
            Run.start(light, tmp_path / "a", MDSettings())
    Run.start(atoms, tmp_path / "a", MDSettings()).close()
    with pytest.raises(ConfigError, match="holds a run already"):
        Run.start(atoms, tmp_path / "a", MDSettings())


@pytest.mark.parametrize(
    "wrong",
    [
        {"timestep_fs": 0.0},
        {"friction_per_ps": float("nan")},
        {"friction_per_ps": 2001.0},
        {"friction_per_ps": 1e9, "ensemble": Ensemble.NOSE_HOOVER},
        {"temperature_K": -1.0},
        {"temperature_K": 0.0},
        {"interval": 0},
        {"seed": -1},
        {"ensemble": "npt"},
        {"inner_forces": "cheap"},
    ],
)
def test_settings_refuse_impossible_values(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MDSettings(**wrong)


def test_settings_take_words():
    assert MDSettings("nve").ensemble is Ensemble.NVE
    assert MDSettings("nve") == MDSettings(Ensemble.NVE)


@pytest.mark.parametrize("name", [CHECKPOINT_FILE, DESCRIPTION_FILE, FRAMES_FILE])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damaged_runs_are_refused(tmp_path, name, damage):
    atoms = diatomic()
    atoms.calc = Springs(k=80.0, r0=1.0)
    simulate(atoms, tmp_path, 30)
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        content = (tmp_path / name).read_bytes()
        kept = len(content) // 2 if damage == "cut" else 0
        (tmp_path / name).write_bytes(content[:kept])
    with pytest.raises(ModelFileError):
        Run.resume(tmp_path, Springs(k=80.0, r0=1.0))


def test_a_run_starts_where_one_was_killed_before_its_first_frame(tmp_path):
    atoms = diatomic()
    atoms.calc = Springs(k=80.0, r0=1.0)
    (tmp_path / FRAMES_FILE).touch()
    outcome, record = simulate(atoms, tmp_path, 30)
    assert outcome.verdict == "completed"
    assert len(record) == 4


def test_another_kind_of_calculator_cannot_continue(tmp_path, model):
    atoms = molecule("CH4")
    atoms.calc = mdet(model, seed=0)
    simulate(atoms, tmp_path, 2)
    with pytest.raises(ModelFileError, match="Springs"):
        Run.resume(tmp_path, Springs(k=80.0, r0=1.0))


class ForcesOnly(PairPotential):
    """Springs that do not tell their energy."""

    implemented_properties = ("forces",)

    def curve(self, distances):
        return 0 * distances, 40 * (distances - 1.0)


def test_models_without_energy_simulate(tmp_path):
    atoms = diatomic()
    atoms.calc = ForcesOnly()
    outcome, record = simulate(atoms, tmp_path, 200)
    assert outcome.verdict == "completed"
    assert np.isnan(record.frames["potential"]).all()
    assert summarise(record).energy is None


def test_charge_and_masses_survive_a_restart(tmp_path):
    atoms = diatomic()
    atoms.set_masses([13.0, 18.0])
    atoms.info.update(charge=1, multiplicity=2, comment="dropped")
    atoms.calc = Springs(k=80.0, r0=1.0)
    simulate(atoms, tmp_path, 5)
    with Run.resume(tmp_path, Springs(k=80.0, r0=1.0)) as simulation:
        assert simulation.atoms.info == {"charge": 1, "multiplicity": 2}
        assert simulation.atoms.get_masses().tolist() == [13.0, 18.0]


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "dcd", "xtc"])
def test_export(tmp_path, suffix):
    if suffix in ("dcd", "xtc"):
        formats = pytest.importorskip("mdtraj.formats", reason="mdtraj writes DCD and XTC files")
    atoms = molecule("CH3OH")
    atoms.calc = Springs(k=20.0, r0=2.0)
    _, record = simulate(atoms, tmp_path, 60)
    path = tmp_path / f"frames.{suffix}"
    export_frames(record, path)
    if suffix == "dcd":
        with formats.DCDTrajectoryFile(str(path)) as file:
            positions = file.read()[0]
        np.testing.assert_allclose(positions, record.frames["positions"], atol=1e-5)
        return
    if suffix == "xtc":
        with formats.XTCTrajectoryFile(str(path)) as file:
            positions, times, steps, _ = file.read()
        np.testing.assert_allclose(10 * positions, record.frames["positions"], atol=0.0051)
        np.testing.assert_allclose(times, record.times_ps, rtol=1e-6)
        assert steps.tolist() == record.frames["step"].tolist()
        return
    frames = ase.io.read(path, index=":")
    assert len(frames) == len(record)
    for atoms, frame in zip(frames, record.frames, strict=True):
        np.testing.assert_allclose(atoms.positions, frame["positions"], atol=1e-7)
        velocities = atoms.get_velocities() * units.FS
        np.testing.assert_allclose(velocities, frame["velocities"], atol=1e-7)
        assert atoms.get_potential_energy() == pytest.approx(frame["potential"], abs=1e-7)
        again = atoms.copy()
        again.calc = Springs(k=20.0, r0=2.0)
        np.testing.assert_allclose(atoms.get_forces(), again.get_forces(), atol=1e-6)
        assert atoms.info["step"] == frame["step"]


@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
def test_positions_alone_have_a_topology_beside_them(tmp_path, suffix):
    mdtraj = pytest.importorskip("mdtraj", reason="mdtraj writes DCD and XTC files")
    atoms = molecule("CH3CH2OH")
    atoms.calc = Springs(k=20.0, r0=2.0)
    _, record = simulate(atoms, tmp_path, 20)
    export_frames(record, tmp_path / f"frames.{suffix}")
    read = mdtraj.load(str(tmp_path / f"frames.{suffix}"), top=str(tmp_path / "frames.pdb"))
    assert [atom.element.atomic_number for atom in read.topology.atoms] == atoms.numbers.tolist()
    assert read.topology.n_bonds == 8
    assert len(read) == len(record)


def carbon_monoxide():
    atoms = diatomic()
    atoms.calc = Springs(k=80.0, r0=1.0)
    return atoms


def n_frames(path):
    """Number of frames that other programs find in a file."""
    if path.suffix in (".extxyz", ".traj"):
        return len(ase.io.read(path, index=":"))
    formats = pytest.importorskip("mdtraj.formats", reason="mdtraj reads DCD and XTC files")
    kind = formats.DCDTrajectoryFile if path.suffix == ".dcd" else formats.XTCTrajectoryFile
    with kind(str(path)) as file:
        assert len(file) == len(file.read()[0])
        return len(file)


FORMATS = ["extxyz", "traj", "dcd", "xtc"]
GROWING = MDSettings(interval=3, checkpoint_interval=10, seed=1)


@pytest.mark.parametrize("suffix", FORMATS)
def test_trajectory_grows_with_the_run_and_is_cut_back_to_the_checkpoint(tmp_path, suffix):
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    with Run.start(carbon_monoxide(), whole, GROWING, trajectory=suffix) as run:
        run.run(40)
    found = []
    with Run.start(carbon_monoxide(), parts, GROWING, trajectory=suffix) as run:
        path = parts / f"trajectory.{suffix}"
        run.run(18, on_frame=lambda _: found.append(n_frames(path)))
        assert found == [2, 3, 4, 5, 6, 7]
        # A frame at the end, between two regular ones, goes when the run goes on.
        run.run(20)
        assert n_frames(path) == 8
        run.run(22)
        assert n_frames(path) == 9
        # As if it were killed at the end: the frames from here on have no checkpoint.
        run.checkpoint = lambda: None
        run.run(35)
        assert n_frames(path) > 9
    with Run.resume(parts, Springs(k=80.0, r0=1.0)) as run:
        assert run.step == 22
        assert n_frames(path) == 8
        run.run(40)
    expected = {file.name: file.read_bytes() for file in whole.glob("trajectory.*")}
    assert {file.name: file.read_bytes() for file in parts.glob("trajectory.*")} == expected
    assert n_frames(path) == len(read_record(parts)) == 15


@pytest.mark.parametrize("damage", ["missing", "short", "before there were any"])
def test_a_trajectory_that_cannot_be_cut_is_written_again(tmp_path, damage):
    with Run.start(carbon_monoxide(), tmp_path, GROWING, trajectory="extxyz") as run:
        run.run(20)
    path = tmp_path / "trajectory.extxyz"
    # Without the frame of the end, which is none of a run that goes on.
    expected = "".join(path.read_text().splitlines(keepends=True)[: 7 * 4])
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_text(expected[:100])
    else:
        content = read_restart(tmp_path / CHECKPOINT_FILE)
        del content["trajectory"]
        write_restart(tmp_path / CHECKPOINT_FILE, content)
    Run.resume(tmp_path, Springs(k=80.0, r0=1.0), trajectory="extxyz").close()
    assert path.read_text() == expected


def test_trajectory_of_another_format_has_all_frames(tmp_path):
    with Run.start(carbon_monoxide(), tmp_path, GROWING, trajectory="extxyz") as run:
        run.run(21)
    with Run.resume(tmp_path, Springs(k=80.0, r0=1.0), trajectory="traj") as run:
        run.run(30)
    assert n_frames(tmp_path / "trajectory.traj") == len(read_record(tmp_path)) == 11


def test_a_record_shown_by_a_notebook_is_a_line(tmp_path):
    with Run.start(carbon_monoxide(), tmp_path, GROWING) as run:
        run.run(6)
        assert repr(run) == f"<Run of CO in {tmp_path}: step 6>"
    assert repr(read_record(tmp_path)) == "<RunRecord of CO: 3 frames>"


def test_unknown_trajectory_format_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="'pdb'"):
        Run.start(carbon_monoxide(), tmp_path / "run", GROWING, trajectory="pdb")
    assert not (tmp_path / "run").exists()


def test_unknown_export_format_is_refused(tmp_path):
    atoms = diatomic()
    atoms.calc = Springs(k=80.0, r0=1.0)
    _, record = simulate(atoms, tmp_path, 5)
    with pytest.raises(ConfigError, match="'pdb'"):
        export_frames(record, tmp_path / "frames.pdb")


@pytest.mark.parametrize(("name", "count"), [("CH3CH2OH", 8), ("C6H6", 12), ("trans-butane", 13)])
def test_bonds_are_found(name, count):
    atoms = molecule(name)
    bonds = find_bonds(atoms)
    assert len(bonds) == count
    assert (bonds.pairs[:, 0] < bonds.pairs[:, 1]).all()
    assert np.abs(bonds.deviations(atoms.positions)).max() == 0.0


def test_bond_deviations_are_watched_between_frames(tmp_path):
    atoms = diatomic()
    atoms.calc = Springs(k=80.0, r0=1.0)
    settings = {"ensemble": Ensemble.NVE, "timestep_fs": 0.5, "seed": 1}
    _, every = simulate(atoms, tmp_path / "every", 60, interval=1, **settings)
    _, some = simulate(atoms, tmp_path / "some", 60, interval=20, **settings)
    expected = every.frames["bond_deviation"][1:].reshape(3, 20).max(axis=1)
    np.testing.assert_array_equal(some.frames["bond_deviation"][1:], expected)


def test_settings_are_stored_as_plain_json(tmp_path):
    atoms = diatomic()
    atoms.calc = Springs(k=80.0, r0=1.0)
    settings = MDSettings(Ensemble.BUSSI, temperature_K=250.0, seed=8)
    Run.start(atoms, tmp_path, settings).close()
    stored = json.loads((tmp_path / DESCRIPTION_FILE).read_text())["settings"]
    assert MDSettings.from_dict(stored) == settings
