"""`mlmd run --engine openmm`: ASE's path and start, thermostats, exact restart, guards."""

import dataclasses
import json
import sys

import ase.io
import numpy as np
import pytest
import typer
from analytic_potentials import Morse, Springs, Tethers
from ase import Atoms
from ase.build import molecule
from toy_models import write_model
from typer.testing import CliRunner

from mlmd_calc import MDETCalculator, Potential, units
from mlmd_calc.analysis import summarise
from mlmd_calc.cli.run import run
from mlmd_calc.errors import ConfigError, InputError, MissingDependencyError, PredictionError
from mlmd_calc.md import Engine, Ensemble, MDSettings, Run, read_record
from mlmd_calc.md.ase_engine import ASE
from mlmd_calc.md.dynamics import draw_momenta, remove_rigid_motion
from mlmd_calc.md.record import DESCRIPTION_FILE, STOPPED_FILE
from mlmd_calc.potential import Evaluation

pytest.importorskip("openmm", reason="openmm is not installed")

import openmm_bridge
from openmm_bridge import OpenMMEngine, available_backends

PLATFORMS = ("Reference", "CPU")
ENSEMBLES = (Ensemble.NVE, Ensemble.LANGEVIN, Ensemble.NOSE_HOOVER)
BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name not in available_backends(), reason=str(available_backends().unavailable.get(name))
        ),
    )
    for name in ("python", "pytorch", "torchscript")
]

APP = typer.Typer()
APP.command("run")(run)
# With a single command Typer would not expect its name.
APP.command("nothing")(lambda: None)


def invoke(*arguments):
    """Run the command; our own errors reach the caller."""
    return CliRunner().invoke(APP, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network with random weights and forces so weak that it breaks nothing."""
    # Forces of random weights bring atoms together, which must not end a path.
    path = tmp_path_factory.mktemp("model") / "weak.safetensors"
    return write_model(path, 0.3, closest_contact=0.01)


def ethanol(model, rotation="random", seed=6):
    atoms = molecule("CH3CH2OH")
    atoms.calc = MDETCalculator(model, forces="direct", rotation=rotation, seed=seed, device="cpu")
    return atoms


class Analytic(Potential):
    """An ASE calculator in the place of a model."""

    def __init__(self, model, calculator):
        super().__init__(model, device="cpu", forces="direct", rotation="none")
        self.calculator = calculator

    def evaluate(self, structures, properties=(), *, coverage=None):
        atoms = Atoms(structures[0].numbers, structures[0].positions, calculator=self.calculator)
        return [Evaluation(atoms.get_potential_energy(), atoms.get_forces())]


def analytic(model, atoms, calculator):
    atoms = atoms.copy()
    atoms.calc = MDETCalculator(model, device="cpu")
    atoms.calc.potential = Analytic(model, calculator)
    return atoms


def frames_of(engine, atoms, folder, steps, settings, **options):
    with Run.start(atoms, folder, settings, engine=engine, **options) as simulation:
        outcome = simulation.run(steps)
        assert outcome.verdict == "completed", outcome.reason
    return read_record(folder).frames


def assert_same_path(found, known, tolerance=1e-6):
    """Positions in Å, velocities in Å/fs, energies in eV, forces in eV/Å."""
    assert found["step"].tolist() == known["step"].tolist()
    names = ("positions", "velocities", "forces", "potential", "kinetic", "bond_deviation")
    for name in names:
        np.testing.assert_allclose(found[name], known[name], rtol=0, atol=tolerance, err_msg=name)


# ---- the same as in ASE -----------------------------------------------------------------------


# Forces of random weights hold nothing together.
PATH = MDSettings(Ensemble.NVE, bond_stop=1e3, seed=1)


@pytest.fixture(scope="module")
def ase_path(tmp_path_factory, model):
    """200 steps in ASE."""
    folder = tmp_path_factory.mktemp("ase") / "run"
    return frames_of(ASE, ethanol(model, "none"), folder, 200, PATH)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_velocity_verlet_follows_the_path_of_ase(tmp_path, model, ase_path, platform, backend):
    engine = OpenMMEngine(platform, backend)
    found = frames_of(engine, ethanol(model, "none"), tmp_path, 200, PATH)
    flight = ase_path["positions"][0] + 100.0 * ase_path["velocities"][0]
    assert np.abs(ase_path["positions"][-1] - flight).max() > 1.0
    assert_same_path(found, ase_path)


def test_random_orientations_are_those_of_ase(tmp_path, model):
    # One orientation per step, whatever is recorded.
    frames = {}
    for engine, interval in ((ASE, 1), (OpenMMEngine(), 1), (OpenMMEngine(), 7)):
        settings = dataclasses.replace(PATH, interval=interval)
        folder = tmp_path / f"{engine.name.value}-{interval}"
        frames[folder.name] = frames_of(engine, ethanol(model), folder, 70, settings)
    assert_same_path(frames["openmm-1"], frames["ase-1"])
    for name in ("positions", "velocities", "potential", "forces"):
        np.testing.assert_array_equal(frames["openmm-7"][name], frames["openmm-1"][name][::7])


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_same_seed_starts_both_engines_alike(tmp_path, model, ensemble):
    settings = MDSettings(ensemble, seed=4)
    known, found = (
        frames_of(engine, ethanol(model), tmp_path / engine.name.value, 10, settings)[:1]
        for engine in (ASE, OpenMMEngine())
    )
    assert known["kinetic"] > 0
    assert_same_path(found, known, tolerance=1e-12 * abs(known["potential"][0]))


# ---- thermostats ------------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", [Ensemble.LANGEVIN, Ensemble.NOSE_HOOVER])
def test_velocities_are_recorded_at_the_time_of_the_positions(tmp_path, model, ensemble):
    # A thermostat that does nothing leaves velocity Verlet, whichever way it is split.
    atoms = ethanol(model, "none")
    draw_momenta(atoms, 300.0, np.random.default_rng(0))
    remove_rigid_motion(atoms, Ensemble.NVE, torque_free=True)
    known, found = (
        frames_of(
            OpenMMEngine(),
            atoms,
            tmp_path / kind.value,
            40,
            MDSettings(kind, friction_per_ps=1e-9, interval=1),
            keep_velocities=True,
        )
        for kind in (Ensemble.NVE, ensemble)
    )
    # Half a step moves velocities by a hundred times as much.
    lag = np.abs(np.diff(known["velocities"], axis=0)).max() / 2
    assert lag > 1e-4
    assert_same_path(found, known, tolerance=0.01 * lag)


def test_langevin_keeps_the_temperature_of_harmonic_atoms(tmp_path, model):
    rng = np.random.default_rng(0)
    atoms = Atoms("CHNO" * 5, 10 * rng.random((20, 3)))
    atoms = analytic(model, atoms, Tethers(k=5.0, anchors=atoms.positions))
    settings = MDSettings(friction_per_ps=30.0, timestep_fs=1.0, bond_stop=1e3, seed=1)
    frames = frames_of(OpenMMEngine(), atoms, tmp_path, 4000, settings)
    mean = summarise(read_record(tmp_path)).temperature
    assert mean.resolved
    assert mean.standard_error < 9.0
    assert abs(mean.value - 300.0) < 4 * mean.standard_error
    # Equipartition: the springs hold as much energy as the motion.
    potential = frames["potential"][100:].mean()
    assert potential == pytest.approx(0.5 * 60 * units.KB * 300.0, rel=0.1)


def test_nose_hoover_does_not_count_conserved_motion(tmp_path, model):
    # Of 12 degrees of freedom 6 stay at rest: counting them would double the temperature.
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    atoms = Atoms("CNOF", 1.5 / np.sqrt(8) * corners)
    atoms = analytic(model, atoms, Morse(depth=4.0, a=1.5, r0=1.5))
    settings = MDSettings(Ensemble.NOSE_HOOVER, friction_per_ps=80.0, timestep_fs=1.0, seed=1)
    frames = frames_of(OpenMMEngine(), atoms, tmp_path, 3000, settings)
    record = read_record(tmp_path)
    assert record.description.degrees_of_freedom == 6
    mean = summarise(record).temperature
    assert mean.standard_error < 30.0
    assert abs(mean.value - 300.0) < 4 * mean.standard_error
    momenta = record.description.masses[:, None] * frames[-1]["velocities"]
    np.testing.assert_allclose(momenta.sum(axis=0), 0.0, atol=1e-9 * np.abs(momenta).sum())


# ---- restart ----------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_restart_goes_on_bit_for_bit(tmp_path, model, ensemble, platform):
    settings = MDSettings(ensemble, interval=3, checkpoint_interval=7, seed=5)
    engine = OpenMMEngine(platform)
    whole = frames_of(engine, ethanol(model), tmp_path / "whole", 40, settings)
    frames_of(engine, ethanol(model), tmp_path / "parts", 20, settings)
    # The seed of the new calculator must not matter: the stream goes on from the checkpoint.
    calculator = ethanol(model, seed=7).calc
    with Run.resume(tmp_path / "parts", calculator, engine=OpenMMEngine()) as simulation:
        assert simulation.step == 20
        assert simulation.run(40).step == 40
    assert read_record(tmp_path / "parts").frames.tobytes() == whole.tobytes()
    assert whole["step"].tolist() == [*range(0, 40, 3), 40]


@pytest.mark.skipif(
    "torchscript" not in available_backends(),
    reason=str(available_backends().unavailable.get("torchscript")),
)
def test_restart_with_torchscript(tmp_path, model):
    engine = OpenMMEngine(backend="torchscript")
    settings = MDSettings(interval=4, checkpoint_interval=7, seed=5)
    whole = frames_of(engine, ethanol(model), tmp_path / "whole", 24, settings)
    frames_of(engine, ethanol(model), tmp_path / "parts", 12, settings)
    # The seed of the new calculator must not matter: the stream goes on from the checkpoint.
    calculator = ethanol(model, seed=7).calc
    with Run.resume(tmp_path / "parts", calculator, engine=OpenMMEngine()) as simulation:
        simulation.run(24)
    assert read_record(tmp_path / "parts").frames.tobytes() == whole.tobytes()


def test_runs_go_on_with_the_engine_they_were_started_with(tmp_path, model):
    for engine, stranger in ((ASE, OpenMMEngine()), (OpenMMEngine(), ASE)):
        folder = tmp_path / engine.name.value
        frames_of(engine, ethanol(model), folder, 10, MDSettings())
        with pytest.raises(ConfigError, match=f"made with engine '{engine.name.value}'"):
            Run.resume(folder, ethanol(model).calc, engine=stranger)


def test_a_run_keeps_the_options_of_its_engine(tmp_path, model):
    frames_of(OpenMMEngine("CPU"), ethanol(model), tmp_path, 2, MDSettings())
    calculator = ethanol(model).calc
    with pytest.raises(ConfigError, match="'Reference', but the run was started with 'CPU'"):
        Run.resume(tmp_path, calculator, engine=OpenMMEngine("Reference"))
    with Run.resume(tmp_path, calculator, engine=OpenMMEngine(backend="auto")) as simulation:
        assert simulation.run(4).verdict == "completed"


def test_runs_that_do_not_name_their_engine_are_of_ase(tmp_path, model):
    frames_of(ASE, ethanol(model), tmp_path, 10, MDSettings())
    path = tmp_path / DESCRIPTION_FILE
    content = json.loads(path.read_text())
    del content["engine"], content["engine_options"]
    path.write_text(json.dumps(content))
    assert read_record(tmp_path).description.engine is Engine.ASE
    Run.resume(tmp_path, ethanol(model).calc).close()


# ---- guards and refusals ----------------------------------------------------------------------


def diatomic(model, calculator):
    return analytic(model, Atoms("CO", [[0, 0, 0], [1, 0, 0]]), calculator)


@pytest.mark.parametrize("ensemble", [Ensemble.NVE, Ensemble.LANGEVIN])
def test_a_broken_bond_ends_the_run(tmp_path, model, ensemble):
    atoms = diatomic(model, Morse(depth=0.05, a=2.0, r0=1.0))
    settings = MDSettings(ensemble, temperature_K=5000.0, seed=1)
    with Run.start(atoms, tmp_path, settings, engine=OpenMMEngine()) as simulation:
        outcome = simulation.run(10_000)
    assert outcome.verdict == "failed"
    assert "C0-O1" in outcome.reason
    length = ase.io.read(tmp_path / STOPPED_FILE).get_distance(0, 1)
    assert length > 2.0
    # The record ends with the offending frame, whatever the interval.
    record = read_record(tmp_path)
    assert record.failed
    assert record.frames["step"][-1] == outcome.step
    assert record.frames["bond_deviation"][-1] == pytest.approx(length - 1.0, abs=1e-7)


class Faulty(Springs):
    """Springs that fail after some calls."""

    def __init__(self, failure, calls):
        super().__init__(k=80.0, r0=1.0)
        self.failure, self.calls = failure, calls

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.calls -= 1
        if self.calls < 0:
            raise self.failure


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("interval", [1, 100])
def test_forces_that_fail_end_the_run(tmp_path, model, caplog, ensemble, interval):
    atoms = diatomic(model, Faulty(PredictionError("odd forces"), calls=5))
    settings = MDSettings(ensemble, interval=interval)
    with Run.start(atoms, tmp_path, settings, engine=OpenMMEngine()) as simulation:
        outcome = simulation.run(100)
    assert (outcome.verdict, outcome.reason) == ("failed", "odd forces")
    assert 4 <= outcome.step <= 6
    assert (tmp_path / STOPPED_FILE).exists()
    assert not caplog.records


@pytest.mark.parametrize("error", [TypeError("a mistake"), KeyboardInterrupt("Ctrl-C")])
def test_an_error_that_is_not_of_the_model_is_not_hidden(tmp_path, model, error):
    atoms = diatomic(model, Faulty(error, calls=5))
    with (
        Run.start(atoms, tmp_path, MDSettings(), engine=OpenMMEngine()) as simulation,
        pytest.raises(type(error), match=str(error)),
    ):
        simulation.run(100)


def test_refusals_leave_nothing_behind(tmp_path, model):
    folder = tmp_path / "run"

    def start(atoms, ensemble=Ensemble.LANGEVIN, **options):
        settings = MDSettings(ensemble)
        Run.start(atoms, folder, settings, engine=OpenMMEngine(**options))

    with pytest.raises(ConfigError, match=r"no ensemble 'bussi'.*'langevin' or 'nose-hoover'"):
        start(ethanol(model), Ensemble.BUSSI)
    with pytest.raises(ConfigError, match=r"platform='cpu'.*Reference, CPU"):
        start(ethanol(model), platform="cpu")
    with pytest.raises(ConfigError, match="backend='fortran'"):
        start(ethanol(model), backend="fortran")
    atoms = molecule("CO")
    atoms.calc = Springs(k=80.0, r0=1.0)
    with pytest.raises(InputError, match="calculator is Springs"):
        start(atoms)
    assert not folder.exists()


# ---- the command ------------------------------------------------------------------------------


def test_command_runs_and_restarts(tmp_path, model):
    options = ("run", "CH4", "-m", model, "--engine", "openmm", "--platform", "CPU", "--seed", 3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = invoke(*options, "--interval", 4, "-d", 0.02, "-o", whole, "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["engine"] == {"name": "openmm", "platform": "CPU", "backend": "python"}
    assert summary["degrees_of_freedom"] == 15
    assert invoke(*options, "--interval", 4, "-d", 0.01, "-o", parts).exit_code == 0
    result = invoke("run", "--restart", "-d", 0.02, "-o", parts)
    assert result.exit_code == 0
    assert "openmm, CPU, python" in result.stdout
    assert read_record(whole).frames.tobytes() == read_record(parts).frames.tobytes()
    assert len(ase.io.read(parts / "trajectory.extxyz", index=":")) == 11


def test_options_of_openmm_need_openmm(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--platform is an option of OpenMM"):
        invoke("run", "CH4", "-m", model, "--platform", "CPU")
    with pytest.raises(ConfigError, match="--engine cannot be given with --restart"):
        invoke("run", "--restart", "--engine", "openmm")
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mlmd\[openmm\]'"):
        invoke("run", "CH4", "-m", model, "--engine", "openmm")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ImportError, match=r"pip install 'mlmd\[openmm\]'"):
        _ = openmm_bridge.create_force


def test_torchscript_on_opencl_is_refused_before_it_ends_the_process(tmp_path, monkeypatch):
    from openmm_bridge import engine

    monkeypatch.setattr(engine, "_platform", lambda name: None)
    monkeypatch.setattr(engine, "choose_backend", lambda name: name)
    atoms = molecule("CH4")
    atoms.calc = MDETCalculator(device="cpu")
    opencl = OpenMMEngine(platform="OpenCL", backend="torchscript")
    with pytest.raises(ConfigError, match="would end the process; use backend 'python'"):
        Run.start(atoms, tmp_path / "run", MDSettings(), engine=opencl)
    assert not (tmp_path / "run").exists()
