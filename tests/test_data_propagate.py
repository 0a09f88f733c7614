"""Trajectories that follow a force model, for propagators to learn from."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.data import atomic_masses
from bond_springs import WATER_SHAPE, water_energy_and_forces
from typer.testing import CliRunner

from mlmd_calc import units
from mlmd_calc.cli.data import app
from mlmd_calc.data import MOLECULES, MoleculeFrames, molecule_from_smiles, read_dataset
from mlmd_calc.data.npz import write_labels
from mlmd_calc.data.parallel_runs import BROKEN, DRIFTED, REFUSED, ParallelRuns
from mlmd_calc.data.plausibility import check_units
from mlmd_calc.data.propagate import PropagationSettings, follow, molecules_of, propagate
from mlmd_calc.data.sampling import generator_of
from mlmd_calc.data.start_states import StartStates
from mlmd_calc.data.trajectories import Trajectory
from mlmd_calc.errors import ConfigError, InputError, PredictionError
from mlmd_calc.io.files import FolderLock
from mlmd_calc.models.analytic import Harmonic
from mlmd_calc.potential import Structure
from mlmd_calc.propagation import FunctionForces
from mlmd_calc.zoo import load_model

pytest.importorskip("rdkit", reason="rdkit builds the molecules")

WATER = MOLECULES["water"]
NUMBERS = np.array([8, 1, 1])
BONDS = np.array([[0, 1], [0, 2]])
QUICK = PropagationSettings(runs=20, frames=12)
# Six femtoseconds of hot springs tell no slope of a few meV/atom/ps.
FINE = replace(QUICK, stride_fs=0.5, max_drift=30.0)


def runs_of_water(count, force_model=None):
    """Runs at the minimum of the springs."""
    kind = Structure(NUMBERS, WATER_SHAPE)
    force_model = force_model or FunctionForces(water_energy_and_forces)
    return ParallelRuns(force_model, kind, np.repeat(WATER_SHAPE[None], count, axis=0), BONDS)


def total_energies(frames):
    """Potential and kinetic energy of each run, ``(r, f)`` eV."""
    masses = atomic_masses[frames.numbers]
    kinetic = 0.5 * np.einsum("n,fnx,fnx->f", masses, frames.velocities, frames.velocities)
    totals = frames.energies + kinetic / units.FS**2
    return totals.reshape(len(np.unique(frames.segment)), -1)


def water(settings=QUICK, force_model=None):
    """Follow water."""
    rng = generator_of(WATER, settings.seed)
    return follow(WATER, settings, force_model or FunctionForces(water_energy_and_forces), rng)


# ---- runs ------------------------------------------------------------------------------------


def test_steps_follow_the_exact_motion():
    harmonic = Harmonic.springs(8.0 * (np.ones((3, 3)) - np.eye(3)))
    kind = Structure(NUMBERS, WATER_SHAPE)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 3))
    model = FunctionForces(harmonic.energy_and_forces)
    runs = ParallelRuns(model, kind, x, BONDS)
    runs.velocities[:] = v = 0.02 * rng.normal(size=x.shape)
    runs.evaluate()
    totals, conserved = [], []
    for _ in range(40):
        runs.step(0.1)
        totals.append(runs.total_energies)
        conserved.append(runs.conserved_energies.copy())
    for run in range(4):
        (place,), (speed,) = harmonic.evolve(x[run], v[run], runs.masses, [4.0])
        np.testing.assert_allclose(runs.positions[run], place, atol=2e-4)
        np.testing.assert_allclose(runs.velocities[run], speed, atol=2e-4)
    total, conserved = np.ptp(totals, axis=0), np.ptp(conserved, axis=0)
    assert (total < 0.02).all()
    assert (conserved < total / 100).all()


def test_each_run_takes_its_own_temperature():
    anchors = np.zeros((3, 3))
    model = FunctionForces(Harmonic.tethers(20.0, anchors).energy_and_forces)
    temperatures = np.repeat([0.0, 300.0, 900.0], 300)
    kind = Structure(NUMBERS, WATER_SHAPE)
    runs = ParallelRuns(model, kind, np.zeros((900, 3, 3)), BONDS[:0])
    rng = np.random.default_rng(1)
    runs.evaluate()
    for _ in range(80):
        runs.thermalise(temperatures, 0.1, 1.0, rng)
    kinetic = runs.total_energies - runs.energies
    for energies in (runs.energies, kinetic):
        cold, warm, hot = energies.reshape(3, 300).mean(axis=1) / (4.5 * units.KB)
        assert cold == 0.0
        # 2700 degrees of freedom, of which the root mean square error of the energy is 3 %.
        assert warm == pytest.approx(300.0, rel=0.1)
        assert hot == pytest.approx(900.0, rel=0.1)


def test_a_run_that_is_refused_does_not_disturb_the_others():
    class Refusing(FunctionForces):
        calls = 0

        def evaluate(self, structures, properties=("energy", "forces")):
            self.calls += 1
            if any(s.positions[0, 0] > 50.0 for s in structures):
                raise InputError("too far to the right")
            if any(s.positions[0, 0] < -50.0 for s in structures):
                raise PredictionError("absurd")
            return super().evaluate(structures, properties)

    model = Refusing(water_energy_and_forces)
    alone, disturbed = runs_of_water(8), runs_of_water(8, model)
    rng = np.random.default_rng(2)
    velocities = 0.01 * rng.normal(size=(8, 3, 3))
    for runs in (alone, disturbed):
        runs.velocities[:] = velocities
        runs.evaluate()
        runs.step(0.5)
    disturbed.positions[[2, 5]] += 100.0
    disturbed.positions[6] -= 100.0
    for runs in (alone, disturbed):
        for _ in range(5):
            runs.step(0.5)
    assert disturbed.ended == {2: REFUSED, 5: REFUSED, 6: REFUSED}
    others = [0, 1, 3, 4, 7]
    assert disturbed.running.tolist() == others
    for name in ("positions", "velocities", "forces", "energies"):
        np.testing.assert_array_equal(
            getattr(disturbed, name)[others], getattr(alone, name)[others]
        )
    before = model.calls
    disturbed.step(0.5)
    assert model.calls == before + 1  # what has ended is not asked for again


def test_a_broken_bond_ends_a_run():
    runs = runs_of_water(3)
    runs.positions[1, 2] += [-0.5, 0.4, 0.0]
    runs.positions[2, 2] += [-0.2, 0.2, 0.0]
    runs.end_broken()
    assert runs.ended == {1: BROKEN}


# ---- starts ----------------------------------------------------------------------------------


def test_positions_and_velocities_are_drawn_independently():
    starts = StartStates.draw(1000, 9, np.random.default_rng(3))
    minima, at_rest = starts.position_K == 0.0, starts.velocity_K == 0.0
    assert minima.sum() == at_rest.sum() == 100
    assert (starts.hot_atom >= 0).sum() == 100
    assert not (at_rest & (starts.hot_atom >= 0)).any()
    assert np.unique(starts.hot_atom).tolist() == list(range(-1, 9))
    warm = ~minima & ~at_rest
    for values, hottest in ((starts.position_K, 900.0), (starts.velocity_K, 1000.0)):
        assert values.max() < hottest
        assert values[warm].mean() == pytest.approx(hottest / 2, rel=0.06)
    assert abs(np.corrcoef(starts.position_K[warm], starts.velocity_K[warm])[0, 1]) < 0.1
    assert 3 < (minima & at_rest).sum() < 20
    assert (starts.displacement_A[minima & at_rest] > 0.0).all()
    assert 200 <= (starts.displacement_A > 0.0).sum() < 220


def test_cold_starts_are_hot_ones_with_less_of_everything():
    hot, cold = (
        StartStates.draw(100, 9, np.random.default_rng(3), hottest_K) for hottest_K in (1000.0, 10)
    )
    assert cold.position_K == pytest.approx(hot.position_K / 100)
    assert cold.velocity_K == pytest.approx(hot.velocity_K / 100)
    assert cold.hot_atom_K == pytest.approx(hot.hot_atom_K / 100)
    assert cold.displacement_A == pytest.approx(hot.displacement_A / 10)
    assert (cold.hot_atom == hot.hot_atom).all()


def test_starts_are_what_they_say():
    runs, rng = runs_of_water(300), np.random.default_rng(4)
    starts = StartStates.draw(300, 3, rng)
    starts.prepare(runs, rng)
    assert not runs.ended
    at_rest = starts.velocity_K == 0.0
    assert at_rest.sum() == 30
    assert (runs.velocities[at_rest] == 0.0).all()
    for vectors in (runs.positions, runs.velocities):
        np.testing.assert_allclose(np.einsum("n,rnx->rx", runs.masses, vectors), 0.0, atol=1e-12)
    untouched = (starts.position_K == 0.0) & (starts.displacement_A == 0.0)
    assert (runs.energies[untouched] < 1e-20).all()
    # Three vibrations hold k T / 2 each.
    plain = (starts.position_K > 0.0) & (starts.displacement_A == 0.0)
    expected = 1.5 * units.KB * starts.position_K[plain]
    assert runs.energies[plain].mean() == pytest.approx(expected.mean(), rel=0.15)
    # So do six motions, all but those of the centre of mass.
    kinetic = runs.total_energies - runs.energies
    thermal = ~at_rest & (starts.hot_atom < 0)
    expected = 3.0 * units.KB * starts.velocity_K[thermal]
    assert kinetic[thermal].mean() == pytest.approx(expected.mean(), rel=0.15)
    assert kinetic[starts.hot_atom >= 0].mean() > 1.2 * kinetic[thermal].mean()
    for run in (0, 7):
        energy, forces = water_energy_and_forces(runs.positions[run])
        assert runs.energies[run] == energy
        np.testing.assert_array_equal(runs.forces[run], forces)


# ---- trajectories of a molecule --------------------------------------------------------------


def test_frames_conserve_energy_and_are_the_stated_time_apart():
    frames, ended = water(FINE)
    assert not ended
    assert np.unique(frames.segment, return_counts=True)[1].tolist() == [12] * 20
    totals = total_energies(frames)
    # Velocity Verlet leaves a part of (ω Δt)² / 8 of the energy of a vibration.
    assert np.ptp(totals, axis=1).max() < 0.03 * np.ptp(frames.energies)
    starts = json.loads(frames.metadata["starts"])
    first = frames.velocities[::12]
    at_rest = np.array(starts["velocity_K"]) == 0.0
    assert at_rest.sum() == 2
    assert ((first == 0.0).all(axis=(1, 2)) == at_rest).all()
    x, v = (values.reshape(20, 12, 3, 3) for values in (frames.positions, frames.velocities))
    differences = (x[:, 2:] - x[:, :-2]) / (2 * frames.dt_fs)
    np.testing.assert_allclose(v[:, 1:-1], differences, atol=1e-9 * np.abs(v).max())
    accelerations = Trajectory.of(frames).accelerations(np.arange(1, 11))
    second = (x[0, 2:] - 2 * x[0, 1:-1] + x[0, :-2]) / frames.dt_fs**2
    np.testing.assert_allclose(accelerations, second, atol=1e-9)


def test_frames_lie_a_stride_apart():
    fine, _ = water(replace(FINE, frames=9))
    coarse, _ = water(replace(FINE, stride_fs=2.0, frames=3))
    assert coarse.dt_fs == 2.0
    every = np.arange(len(fine)) % 9 % 4 == 0
    np.testing.assert_array_equal(coarse.positions, fine.positions[every])


def test_runs_that_drift_are_dropped_and_counted():
    def apart(positions):
        return np.linalg.norm(positions[..., 1, :] - positions[..., 2, :], axis=-1) > 1.6

    def with_a_step(positions):
        energy, forces = water_energy_and_forces(positions)
        return energy + 0.1 * apart(positions), forces

    every, _ = water(FINE)
    beyond = apart(every.positions).reshape(20, 12)
    crossed = beyond.any(axis=1) & ~beyond.all(axis=1)
    assert 1 < crossed.sum() < 19
    kept, ended = water(FINE, FunctionForces(with_a_step))
    assert ended == dict.fromkeys(np.flatnonzero(crossed).tolist(), DRIFTED)
    assert np.unique(kept.segment).tolist() == np.flatnonzero(~crossed).tolist()
    inside = np.isin(every.segment, kept.segment)
    np.testing.assert_array_equal(kept.positions, every.positions[inside])


def test_the_limit_of_the_drift_is_in_mev_per_atom_and_ps():
    class Leaking(FunctionForces):
        """Its energy grows by 300 meV/ps, one call a step of 0.5 fs."""

        calls = 0

        def evaluate(self, structures, properties=("energy", "forces")):
            self.calls += 1
            lost = self.calls * 0.5e-3 * 300.0 * units.MEV
            answers = super().evaluate(structures, properties)
            return [replace(answer, energy=answer.energy + lost) for answer in answers]

    _, ended = water(replace(QUICK, max_drift=110.0), Leaking(water_energy_and_forces))
    assert not ended
    with pytest.raises(PredictionError, match=r"none of 20 runs can be kept \(20 drifted\)"):
        water(replace(QUICK, max_drift=90.0), Leaking(water_energy_and_forces))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": 0}, "runs=0; it must be at least 1"),
        ({"frames": 2}, "frames=2; it must be at least 3"),
        ({"stride_fs": 0.75}, "multiple of 0.5, at least 0.5"),
        ({"stride_fs": float("nan")}, "multiple of 0.5, at least 0.5"),
        ({"timestep_fs": 0.0}, "timestep_fs=0.0"),
        ({"max_drift": 0.0}, "max_drift=0.0"),
        ({"conformers": 0}, "conformers=0"),
        ({"hottest_K": 0.0}, "hottest_K=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        PropagationSettings(**changes)


# ---- files -----------------------------------------------------------------------------------

SHORT = PropagationSettings(runs=5, frames=10, conformers=1)


@pytest.fixture(scope="module")
def model():
    return load_model("mdet-small-organics")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Water and its like that a command has made."""
    path = tmp_path_factory.mktemp("motion")
    result = CliRunner().invoke(app, arguments(path, "ammonia", "water"))
    assert result.exit_code == 0, result.output
    assert "10 of 10 runs kept" in result.stderr
    assert "2 molecules in" in result.stderr
    return path


def arguments(path, *names):
    """Command line that makes short trajectories."""
    options = "--runs 5 --frames 10 --conformers 1 --device cpu"
    return ["propagate", *names, "--out", str(path), *options.split()]


@pytest.mark.slow
def test_file_is_what_training_reads(folder, model):
    (frames,) = read_dataset(folder / "water.npz")
    assert frames.dt_fs == 2.0
    assert frames.segment.tolist() == np.repeat(np.arange(5), 10).tolist()
    assert frames.forces.shape == frames.velocities.shape == (50, 3, 3)
    assert len(Trajectory.of(frames).starts(9)) == 5
    assert np.ptp(total_energies(frames), axis=1).max() < 0.05 * np.ptp(frames.energies)
    provenance = json.loads(frames.metadata["provenance"])
    assert frames.metadata["forces"] == provenance["teacher"] == "mdet-small-organics"
    assert provenance["teacher_sha256"] == model.sha256
    assert provenance["dropped"] == {}
    assert provenance["teacher_options"]["dtype"] == "float32"


def test_result_does_not_depend_on_company_and_finished_files_are_kept(folder, model, tmp_path):
    (alone,) = propagate([WATER], tmp_path, SHORT, model, device="cpu")
    with np.load(alone) as one, np.load(folder / "water.npz") as other:
        for key in one.files:
            np.testing.assert_array_equal(one[key], other[key])
    before = alone.stat().st_mtime_ns
    propagate([WATER], tmp_path, SHORT, model, device="cpu")
    assert alone.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="runs is 5 instead of 6"):
        propagate([WATER], tmp_path, replace(SHORT, runs=6), model, device="cpu")
    with pytest.raises(ConfigError, match="teacher is mdet-small-organics instead of mdet-ethanol"):
        propagate([WATER], tmp_path, SHORT, load_model("mdet-ethanol"), device="cpu")
    lock = FolderLock(tmp_path)
    with pytest.raises(ConfigError, match="being written to"):
        propagate([WATER], tmp_path, SHORT, model, device="cpu")
    lock.release()


def test_what_is_dropped_is_said_also_when_a_molecule_fails(model, tmp_path, monkeypatch):
    def one_breaks(runs):
        runs.end(3, BROKEN)

    monkeypatch.setattr(ParallelRuns, "end_broken", one_breaks)
    words = arguments(tmp_path, "silane=[SiH4]", "water")
    for _ in range(2):  # the second time nothing is left to do for water
        result = CliRunner().invoke(app, words)
        assert "4 of 5 runs kept" in result.stderr
        assert "dropped: 1 broken" in result.stderr
        assert "water 1" in result.stderr
        assert isinstance(result.exception, PredictionError)
        assert "1 of 2 molecules failed" in str(result.exception)
        assert "silane: atom 0 is Si" in str(result.exception)
    (frames,) = read_dataset(tmp_path)
    assert np.unique(frames.segment).tolist() == [0, 1, 2, 4]
    assert json.loads(frames.metadata["provenance"])["dropped"] == {"3": "broken"}


def test_a_model_without_energy_is_refused(tmp_path):
    from toy_models import SMALL, toy_model

    model = toy_model(replace(SMALL, target_heads=("forces",)))
    with pytest.raises(ConfigError, match="'toy' predicts no energy"):
        propagate([WATER], tmp_path, SHORT, model, device="cpu")


def test_isotopes_are_refused():
    heavy = molecule_from_smiles("heavy", "[2H]O[2H]")
    with pytest.raises(InputError, match="names isotopes"):
        follow(heavy, QUICK, FunctionForces(water_energy_and_forces), generator_of(heavy, 0))


def test_units_are_told_from_within_runs(folder):
    # Between runs there is no way that forces do work along.
    (frames,) = read_dataset(folder / "water.npz")
    shifted = frames.energies + 10.0 * frames.segment
    check_units(replace(frames, energies=shifted))
    with pytest.raises(InputError, match="the energies look like"):
        check_units(replace(frames, energies=100.0 * frames.energies))


# ---- starts from labelled structures ---------------------------------------------------------


def labelled(count=6):
    """Structures of water, the first of which is the minimum."""
    rng = np.random.default_rng(0)
    positions = WATER_SHAPE + 0.05 * rng.standard_normal((count, 3, 3))
    positions[0] = WATER_SHAPE
    energies = np.array([water_energy_and_forces(x)[0] for x in positions])
    return MoleculeFrames(
        "water", NUMBERS, positions, energies=energies, metadata={"smiles": WATER.smiles}
    )


def test_runs_start_from_given_structures():
    begin = labelled()
    rng = generator_of(WATER, 0)
    frames, ended = follow(WATER, FINE, FunctionForces(water_energy_and_forces), rng, begin=begin)
    assert not ended
    starts = frames.positions.reshape(FINE.runs, FINE.frames, 3, 3)[:, 0]
    masses = atomic_masses[NUMBERS]
    given = begin.positions - np.average(begin.positions, axis=1, weights=masses)[:, None]
    near = np.abs(starts[:, None] - given).max(axis=(2, 3))
    displaced = np.array(json.loads(frames.metadata["starts"])["displacement_A"]) > 0.0
    assert not any(json.loads(frames.metadata["starts"])["position_K"])
    assert (near.min(axis=1)[~displaced] < 1e-12).all()
    # All of the structures before one comes twice.
    assert set(near.argmin(axis=1)[:6][~displaced[:6]]) <= set(range(6))
    assert np.bincount(near.argmin(axis=1)[~displaced], minlength=6).max() <= 4


def test_structures_without_energies_are_refused():
    with pytest.raises(InputError, match="'water' have no energies"):
        molecules_of([replace(labelled(), energies=None)])
    with pytest.raises(InputError, match="no SMILES"):
        molecules_of([replace(labelled(), metadata={})])


def test_the_command_starts_from_labels(tmp_path):
    begin = labelled()
    forces = np.array([water_energy_and_forces(x)[1] for x in begin.positions])
    (tmp_path / "labels").mkdir()
    write_labels(tmp_path / "labels" / "water.npz", replace(begin, forces=forces))
    out = tmp_path / "out"
    words = arguments(out, "--starts", str(tmp_path / "labels"))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (frames,) = read_dataset(out)
    assert "starts_sha256" in json.loads(frames.metadata["provenance"])
    write_labels(tmp_path / "labels" / "water.npz", replace(begin, forces=forces).select([0, 1]))
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, ConfigError), result.output
    assert "starts_sha256" in str(result.exception)
    for words in (arguments(out, "water", "--starts", str(tmp_path)), arguments(out)):
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, ConfigError)
        assert "one of both" in str(result.exception)


def test_starts_of_one_name_in_two_files_are_refused(tmp_path):
    """Only one of them would be followed."""
    frames = MoleculeFrames(
        name="water",
        numbers=np.array([8, 1, 1]),
        positions=np.array([[[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]]] * 2),
        forces=np.zeros((2, 3, 3)),
        energies=np.zeros(2),
        metadata={"smiles": "O", "name": "water"},
    )
    for name in ("a.npz", "b.npz"):
        write_labels(tmp_path / name, frames)
    words = ["propagate", "--starts", str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert "has 2 sets of structures of 1 names" in str(result.exception)
