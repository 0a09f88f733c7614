"""The teacher's labels, sampling, and a generator that can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase
import numpy as np
import pytest
from analytic_potentials import water_springs
from another_process import pool_process
from typer.testing import CliRunner

from mlmd_calc import units
from mlmd_calc.cli.data import app
from mlmd_calc.data import MOLECULES, pool, read_dataset
from mlmd_calc.data.generate import generate
from mlmd_calc.data.gfn2 import gfn2_calculator
from mlmd_calc.data.molecules import start_structures
from mlmd_calc.data.reference import Reference
from mlmd_calc.data.sampling import DISTORTED, MINIMUM, SAMPLED, sample
from mlmd_calc.data.sampling_settings import SamplingSettings
from mlmd_calc.errors import ConfigError, InputError, PredictionError

pytest.importorskip("rdkit", reason="rdkit builds the molecules")
pytest.importorskip("tblite", reason="tblite labels the structures")

LABELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "train" / "labels"
QUICK = {"frames": 2, "temperatures": (300.0,), "conformers": 1, "thermalise_fs": 5.0}


def settings(mode: str = "langevin", **changes: object) -> SamplingSettings:
    return SamplingSettings.for_mode(mode, **{**QUICK, "stride_fs": 2.0, **changes})


# teacher


def label(numbers, positions, charge=0, multiplicity=1):
    atoms = ase.Atoms(numbers, positions, calculator=gfn2_calculator(charge, multiplicity))
    return Reference("gfn2").evaluate(atoms)


@pytest.mark.parametrize("name", ["water", "methyl", "formate", "methylene"])
def test_forces_are_the_gradient_of_the_energy(name):
    molecule = MOLECULES[name]
    start = start_structures(molecule, 1, seed=0)
    rng = np.random.default_rng(3)
    positions = start.positions[0] + 0.05 * rng.normal(size=start.positions[0].shape)
    charge, multiplicity = molecule.charge, molecule.multiplicity
    energy, forces = label(start.numbers, positions, charge, multiplicity)
    assert np.abs(forces).max() > 0.5
    step = 1e-3
    for index in np.ndindex(positions.shape):
        shift = np.zeros_like(positions)
        shift[index] = step
        ahead, _ = label(start.numbers, positions + shift, charge, multiplicity)
        behind, _ = label(start.numbers, positions - shift, charge, multiplicity)
        assert forces[index] == pytest.approx((behind - ahead) / (2 * step), abs=2e-3)
    assert label(start.numbers, positions, charge, multiplicity)[0] == energy


def test_charge_and_multiplicity_reach_the_teacher():
    bond = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.2]])
    triplet, _ = label([8, 8], bond, 0, 3)
    singlet, _ = label([8, 8], bond, 0, 1)
    cation, _ = label([8, 8], bond, 1, 2)
    assert abs(triplet - singlet) > 0.05
    assert cation > triplet + 5


def test_labels_agree_with_existing_ones():
    if not LABELS.exists():
        pytest.skip(f"{LABELS} is not there")
    for name in ("ethanol", "methoxy", "acetate"):
        (frames,) = read_dataset(LABELS / f"{name}.npz")
        for index in (0, 1, 2, -1):
            energy, forces = label(
                frames.numbers, frames.positions[index], frames.charge, frames.multiplicity
            )
            # Positions are stored in single precision.
            assert energy == pytest.approx(frames.energies[index], abs=1e-5)
            np.testing.assert_allclose(forces, frames.forces[index], atol=1e-3)


@pytest.mark.parametrize(
    ("numbers", "positions"), [([1, 1], np.zeros((2, 3))), ([99, 1], np.eye(3)[:2])]
)
def test_teacher_refuses(numbers, positions):
    with pytest.raises(PredictionError, match="gfn2 failed"):
        label(numbers, positions)


# sampling


def test_langevin_samples():
    chosen = settings(frames=5, temperatures=(300.0, 900.0), conformers=2, noise=(0.02, 0.12))
    samples = sample(MOLECULES["methanol"], chosen)
    frames = samples.frames
    assert np.sum(samples.kind == MINIMUM) == 2
    assert np.sum(samples.kind == SAMPLED) == 5
    assert np.sum(samples.kind == DISTORTED) + samples.dropped == 10
    # Five frames over four runs, each of one temperature; minima open the runs of a conformer.
    assert frames.segment[samples.kind == SAMPLED].tolist() == [0, 0, 1, 2, 3]
    assert frames.segment[samples.kind == MINIMUM].tolist() == [0, 2]
    assert samples.temperatures[samples.kind == SAMPLED].tolist() == [300, 300, 900, 300, 900]
    largest = np.abs(frames.forces).max(axis=(1, 2))
    assert (largest[samples.kind == MINIMUM] < 0.011).all()
    assert frames.energies.argmin() in np.flatnonzero(samples.kind == MINIMUM)
    np.testing.assert_allclose(frames.positions.mean(axis=1), 0, atol=1e-12)
    energy, forces = label(frames.numbers, frames.positions[-1])
    assert energy == pytest.approx(frames.energies[-1], abs=1e-6)
    np.testing.assert_allclose(forces, frames.forces[-1], atol=1e-4)


def test_distortion_has_the_stated_width():
    chosen = settings(frames=20, stride_fs=1.0, thermalise_fs=0.0, noise=(0.05,), max_force=1e6)
    samples = sample(MOLECULES["methane"], chosen)
    positions = samples.frames.positions
    noise = positions[samples.kind == DISTORTED] - positions[samples.kind == SAMPLED]
    # The centroid of five atoms is taken out.
    assert noise.std() == pytest.approx(0.05 * np.sqrt(4 / 5), rel=0.15)


def test_strained_structures_are_dropped():
    strained = settings(noise=(0.12,) * 10, max_force=8.0)
    samples = sample(MOLECULES["methane"], strained)
    assert samples.dropped > 0
    assert np.linalg.norm(samples.frames.forces, axis=-1).max() <= 8.0
    assert len(samples.frames) + samples.dropped == 1 + 2 + 20


def test_nve_trajectories_conserve_energy_and_carry_true_velocities():
    chosen = settings("nve", frames=80, conformers=2, stride_fs=0.5, thermalise_fs=20.0)
    frames = sample(MOLECULES["methane"], chosen).frames
    masses = ase.Atoms(frames.numbers).get_masses()
    for segment in (0, 1):
        part = frames.select(np.flatnonzero(frames.segment == segment))
        assert len(part) == 40
        # amu (Å/fs)² in eV.
        kinetic = 0.5 * np.einsum("n,fnx->f", masses, part.velocities**2) / units.FS**2
        total = part.energies + kinetic
        assert kinetic.std() > 0.01
        assert total.std() < 0.1 * kinetic.std()
        differences = (part.positions[2:] - part.positions[:-2]) / (2 * frames.dt_fs)
        scale = np.abs(part.velocities).max()
        np.testing.assert_allclose(part.velocities[1:-1], differences, atol=0.02 * scale)
        np.testing.assert_allclose(np.einsum("n,fnx->fx", masses, part.velocities), 0, atol=1e-9)
        np.testing.assert_allclose(np.einsum("n,fnx->fx", masses, part.positions), 0, atol=1e-9)


def test_langevin_reaches_its_temperature():
    chosen = settings(
        frames=60, temperatures=(500.0,), stride_fs=10.0, thermalise_fs=200.0, noise=()
    )
    samples = sample(MOLECULES["methane"], chosen)
    frames = samples.frames
    potential = frames.energies[samples.kind == SAMPLED].mean() - frames.energies[0]
    # Nine harmonic vibrations hold k_B T / 2 of potential energy each.
    assert potential / (9 / 2 * units.KB) == pytest.approx(500, rel=0.35)


def test_molecule_that_rearranges_is_refused():
    from mlmd_calc.data import molecule_from_smiles

    zwitterion = molecule_from_smiles("zwitterion", "[NH3+]CC(=O)[O-]")
    with pytest.raises(PredictionError, match="break on the way"):
        sample(zwitterion, settings())


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("npt", {}, "mode='npt'"),
        ("langevin", {"frames": 0}, "frames=0"),
        ("langevin", {"temperatures": ()}, "temperatures="),
        ("langevin", {"temperatures": (300.0, -1.0)}, "temperature=-1.0"),
        ("nve", {"temperatures": (float("inf"),)}, "temperature=inf"),
        ("langevin", {"stride_fs": 0.5}, "stride_fs=0.5.*multiple of 1, at least 1"),
        ("nve", {"thermalise_fs": 0.75}, "thermalise_fs=0.75"),
        ("nve", {"noise": (0.1,)}, r"noise=\(0.1,\) with mode='nve'"),
        ("nve", {"max_force": 30.0}, "max_force=30.0 with mode='nve'"),
        ("langevin", {"conformers": 0}, "conformers=0"),
        ("langevin", {"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_settings_are_refused(mode, changes, message):
    with pytest.raises(ConfigError, match=message):
        SamplingSettings.for_mode(mode, **changes)


# generator


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the pool that need not import anything."""
    monkeypatch.setattr(pool._Worker, "run", pool_process)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_result_does_not_depend_on_workers_or_company(tmp_path):
    names = ["water", "hydroxide", "methyl"]
    molecules = [MOLECULES[name] for name in names]
    environment = dict(os.environ)
    generate(molecules, tmp_path / "two", settings(), workers=2)
    generate(molecules[:1], tmp_path / "one", settings(seed=0), workers=1)
    generate(molecules[:1], tmp_path / "other", settings(seed=1), workers=1)
    assert dict(os.environ) == environment
    assert {path.name for path in (tmp_path / "two").glob("*.npz")} == {f"{n}.npz" for n in names}
    two, one, other = (arrays(tmp_path / run / "water.npz") for run in ("two", "one", "other"))
    assert two.keys() == one.keys()
    for key in two:
        np.testing.assert_array_equal(two[key], one[key])
    assert not np.array_equal(one["R"], other["R"])
    hydroxide = read_dataset(tmp_path / "two" / "hydroxide.npz")[0]
    assert hydroxide.charge == -1
    provenance = json.loads(hydroxide.metadata["provenance"])
    assert provenance["teacher"] == "GFN2-xTB"
    assert provenance["teacher_program"].startswith("tblite ")
    assert provenance["seed"] == 0
    assert provenance["temperatures"] == [300.0]


@pytest.mark.usefixtures("quick_processes")
def test_killed_generation_continues(tmp_path):
    names = ["water", "methane", "methanol", "ammonia"]
    script = (
        "import sys\n"
        "from mlmd_calc.data import MOLECULES\n"
        "from mlmd_calc.data.sampling_settings import SamplingSettings\n"
        "from mlmd_calc.data.generate import generate\n"
        f"quick = SamplingSettings.for_mode('langevin', **{ {**QUICK, 'stride_fs': 2.0} })\n"
        f"generate([MOLECULES[name] for name in {names}], sys.argv[1], quick)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    first = tmp_path / "water.npz"
    deadline = time.monotonic() + 60
    while not first.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / f"{names[-1]}.npz").exists()
    written = first.stat().st_mtime_ns
    paths = generate([MOLECULES[name] for name in names], tmp_path, settings())
    assert paths == [tmp_path / f"{name}.npz" for name in names]
    assert first.stat().st_mtime_ns == written
    assert [frames.name for frames in read_dataset(paths)] == names
    # Nothing is left to do: the third run touches nothing.
    times = [path.stat().st_mtime_ns for path in paths]
    generate([MOLECULES[name] for name in names], tmp_path, settings())
    assert [path.stat().st_mtime_ns for path in paths] == times


@pytest.mark.usefixtures("quick_processes")
def test_files_of_other_settings_are_refused(tmp_path):
    water = [MOLECULES["water"]]
    generate(water, tmp_path, settings())
    before = (tmp_path / "water.npz").read_bytes()
    with pytest.raises(ConfigError, match="frames is 2 instead of 3"):
        generate(water, tmp_path, settings(frames=3))
    with pytest.raises(ConfigError, match="mode is langevin instead of nve"):
        generate(water, tmp_path, settings("nve"))
    assert (tmp_path / "water.npz").read_bytes() == before
    (tmp_path / "methane.npz").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="not written by this generator"):
        generate([MOLECULES["methane"]], tmp_path, settings())


@pytest.mark.usefixtures("quick_processes")
def test_one_failure_does_not_stop_the_others(tmp_path):
    from mlmd_calc.data import molecule_from_smiles

    unstable = molecule_from_smiles("zwitterion", "[NH3+]CC(=O)[O-]")
    with pytest.raises(PredictionError, match=r"1 of 2 molecules failed(.|\n)*zwitterion.*break"):
        generate([unstable, MOLECULES["water"]], tmp_path, settings())
    assert [path.name for path in tmp_path.glob("*.npz")] == ["water.npz"]


def test_number_of_workers_is_checked(tmp_path):
    with pytest.raises(ConfigError, match="workers=0"):
        generate([MOLECULES["water"]], tmp_path, settings(), workers=0)


# command line


@pytest.mark.usefixtures("quick_processes")
def test_commands(tmp_path):
    run = CliRunner().invoke
    arguments = ["water", "hydroxyl", "--out", str(tmp_path), "--mode", "nve", "--frames", "3"]
    arguments += [
        "--conformers",
        "1",
        "--thermalise",
        "5",
        "--temperature",
        "200",
        "--workers",
        "1",
    ]
    result = run(app, ["generate", *arguments])
    assert result.exit_code == 0, result.output
    trajectory = read_dataset(tmp_path / "water.npz")[0]
    assert trajectory.velocities.shape == (3, 3, 3)

    listing = run(app, ["info", str(tmp_path), "--json"])
    rows = json.loads(listing.stdout)
    assert [(row["molecule"], row["multiplicity"]) for row in rows] == [
        ("hydroxyl", 2),
        ("water", 1),
    ]
    assert rows[1]["force_rms_eV_per_A"] > 0.0
    assert rows[1]["velocities"] is True
    table = run(app, ["info", str(tmp_path)])
    assert "hydroxyl" in table.stdout
    assert "2 entries, 6 frames" in table.stdout


def test_command_passes_refusals_on(tmp_path):
    run = CliRunner().invoke
    wrong = run(app, ["generate", "watr", "--out", str(tmp_path)])
    assert isinstance(wrong.exception, InputError)
    wrong = run(app, ["generate", "water", "--out", str(tmp_path), "--mode", "npt"])
    assert isinstance(wrong.exception, ConfigError)


# other reference methods


def test_labels_of_another_method_at_the_same_geometries(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    options = {**QUICK, "stride_fs": 2.0}
    method = "analytic_potentials:water_springs"
    for name in ("gfn2", method):
        made = SamplingSettings.for_mode("langevin", **options, reference=name)
        generate([MOLECULES["water"]], tmp_path / name, made)
    own, other = (read_dataset(tmp_path / name)[0] for name in ("gfn2", method))
    np.testing.assert_array_equal(other.positions, own.positions)
    for frame in range(len(other)):
        atoms = ase.Atoms(other.numbers, other.positions[frame], calculator=water_springs())
        assert other.energies[frame] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(other.forces[frame], atoms.get_forces(), atol=1e-4)
    provenance = json.loads(other.metadata["provenance"])
    assert provenance["reference"] == method
    assert "reference" not in json.loads(own.metadata["provenance"])
    with pytest.raises(ConfigError, match=r"reference is None instead of analytic"):
        generate([MOLECULES["water"]], tmp_path / "gfn2", made)


@pytest.mark.parametrize(
    ("name", "message"),
    [("dft", "choose gfn2, so3lr or"), ("no.such:thing", "cannot be imported"), ("math:pi", "ret")],
)
def test_what_is_no_method_is_refused(tmp_path, name, message):
    made = SamplingSettings.for_mode("langevin", reference=name)
    with pytest.raises(ConfigError, match=message):
        generate([MOLECULES["water"]], tmp_path, made)


def test_trajectories_follow_their_own_forces():
    with pytest.raises(ConfigError, match=r"reference=so3lr .*: leave it at 'gfn2'"):
        SamplingSettings.for_mode("nve", reference="so3lr")


def test_so3lr_repeats_the_labels_of_the_default_model():
    pytest.importorskip("so3krates_torch", reason="so3krates-torch labels with SO3LR")
    from mlmd_calc.data.reference import Reference

    known = np.load(Path(__file__).parent / "so3lr_isobutane.npz")
    atoms = ase.Atoms(known["numbers"], known["R"][0])
    energy, forces = Reference("so3lr").evaluate(atoms)
    assert energy == pytest.approx(float(known["E"][0]), abs=1e-3)
    np.testing.assert_allclose(forces, known["F"][0], atol=1e-4)
    with pytest.raises(InputError, match="closed shells"):
        Reference("so3lr", 0, 3)
