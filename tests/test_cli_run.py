"""`mlmd run` as a user types it."""

import gzip
import json
import math
import os
import re
import signal

import ase.io
import numpy as np
import pytest
from analytic_potentials import Morse, Springs
from another_process import Child, mlmd, run_child
from ase import Atoms
from ase.build import molecule
from toy_models import write_model
from typer.testing import CliRunner

from mlmd_calc.bonded import network
from mlmd_calc.cli import app, inner_forces
from mlmd_calc.cli.endings import stop_on_signal
from mlmd_calc.cli.job import JOB_FILE, relax, steps_of
from mlmd_calc.cli.report import SUMMARY_FILE
from mlmd_calc.cli.structure_input import load_structure
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.md import MDSettings, exact_mts, read_record
from mlmd_calc.md.checkpoint import Checkpoint
from mlmd_calc.md.settings import InnerForces

NAMES = ("whole", "parts")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "weak.safetensors", 0.3)


def invoke(*arguments):
    """Run the command; our own errors reach the caller."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_run_leaves_trajectory_picture_and_summary(tmp_path, model):
    out = tmp_path / "run"
    arguments = ("run", "CH3CH2OH", "-m", model, "--duration", 0.02, "--seed", 3, "--json")
    result = invoke(*arguments, "--out", out, "--interval", 5)
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["verdict"] == "completed"
    assert summary["time_ps"] == pytest.approx(0.02)
    assert summary["settings"]["seed"] == 3
    assert summary["degrees_of_freedom"] == 27
    record = read_record(out)
    frames = ase.io.read(summary["trajectory"], index=":")
    assert len(frames) == len(record) == 9
    assert (out / "run.png").read_bytes().startswith(b"\x89PNG")
    assert "there is no minimum" in result.stderr


def test_logs_without_a_terminal_show_progress(tmp_path, model, monkeypatch):
    monkeypatch.setattr("mlmd_calc.io.progress._SECONDS_PER_LINE", 0.0)
    options = ("-m", model, "--duration", 0.01, "--interval", 5, "--out", tmp_path / "run")
    result = invoke("run", "CH4", *options)
    shares = re.findall(r"ns/day .* (\d+)%", result.stderr)
    assert shares[:3] == ["25", "50", "75"]
    assert f"Frames are added to {tmp_path / 'run' / 'trajectory.extxyz'}" in result.stderr


def test_setting_of_the_paper_and_spread(tmp_path, model):
    common = ("run", "CH3CH2OH", "-m", model, "--duration", 0.002, "--seed", 3, "--json")
    assert invoke(*common, "--setting", "paper", "--out", tmp_path / "a").exit_code == 0
    options = json.loads((tmp_path / "a" / JOB_FILE).read_text())["calculator"]
    assert (options["forces"], options["rotation"]) == ("direct", "random")
    assert options["remove_net_force"]
    assert options["remove_net_torque"]
    conservative = ("--forces", "conservative", "--rotation", "none", "--no-relax")
    limit = ("--max-spread", 1e-6, "--on-spread", "raise", "--out", tmp_path / "b")
    with pytest.raises(PredictionError, match="max_spread=1e-06"):
        invoke(*common, *conservative, *limit)


def test_same_seed_same_trajectory(tmp_path, model):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("-m", model, "-d", 0.01, "--seed", seed, "-o", tmp_path / name)
        assert invoke("run", "CH4", *options).exit_code == 0
    a, b, c = (read_record(tmp_path / name).frames.tobytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(("friction", "said"), [(1, True), (2000, False)])
def test_a_run_shorter_than_its_thermostat_says_so(tmp_path, model, friction, said):
    options = ("-m", model, "-d", 0.01, "--friction", friction, "-o", tmp_path / "run")
    result = invoke("run", "CH4", *options)
    assert ("the thermostat acts within 1 ps; run 5 ps or more" in result.stdout) is said


def test_restart_extends_a_run_bit_for_bit(tmp_path, model):
    options = ("-m", model, "--seed", 3, "-e", "bussi", "--interval", 4)
    assert invoke("run", "CH4", *options, "-d", 0.02, "-o", tmp_path / "whole").exit_code == 0
    assert invoke("run", "CH4", *options, "-d", 0.01, "-o", tmp_path / "parts").exit_code == 0
    result = invoke("run", "--restart", "-d", 0.02, "-o", tmp_path / "parts")
    assert result.exit_code == 0
    assert "completed" in result.stdout
    whole, parts = (read_record(tmp_path / name).frames for name in ("whole", "parts"))
    assert whole.tobytes() == parts.tobytes()
    assert len(ase.io.read(tmp_path / "parts" / "trajectory.extxyz", index=":")) == len(whole)


@pytest.mark.parametrize(
    ("ensemble", "forces"), [("nve", "direct"), ("langevin", "direct"), ("nve", "bonded")]
)
def test_multiple_time_steps_go_on_bit_for_bit(tmp_path, model, monkeypatch, ensemble, forces):
    monkeypatch.setattr(inner_forces, "_STRUCTURES", {InnerForces.BONDED: 20})
    options = ("-m", model, "--forces", "conservative", "--rotation", "none", "--no-relax")
    options += ("--seed", 3, "-e", ensemble, "-T", 20, "--timestep", 0.2, "--interval", 4)
    options += ("--mts", 2, "--mts-forces", forces)
    assert invoke("run", "CH4", *options, "-d", 0.008, "-o", tmp_path / "whole").exit_code == 0
    assert invoke("run", "CH4", *options, "-d", 0.004, "-o", tmp_path / "parts").exit_code == 0
    result = invoke("run", "--restart", "-d", 0.008, "-o", tmp_path / "parts", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["step"], summary["settings"]["inner_steps"]) == (20, 2)
    assert summary["time_ps"] == pytest.approx(0.008)
    whole, parts = (read_record(tmp_path / name).frames for name in ("whole", "parts"))
    assert whole.tobytes() == parts.tobytes()


def go_on(out, *options):
    """Continue a run in another process; return its summary."""
    restart = ("run", "--restart", "--out", out, "--json")
    return json.loads(run_child(mlmd, *restart, *options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forces", "ensemble", "test"),
    [("bonded", "nve", ()), ("network", "langevin", ("--metropolis",))],
)
def test_fitted_cheap_forces_go_on_in_another_process(
    tmp_path, model, forces, ensemble, test, monkeypatch
):
    structures = {InnerForces.BONDED: 20, InnerForces.NETWORK: 24}
    monkeypatch.setattr(inner_forces, "_STRUCTURES", structures)
    monkeypatch.setattr(inner_forces, "_NEURONS", 4)
    monkeypatch.setattr(network, "_STEPS", 50)
    options = ("-m", model, "--forces", "conservative", "--rotation", "none", "--no-relax")
    options += ("--seed", 3, "-e", ensemble, "-T", 20, "--interval", 4)
    options += ("--mts", 3, "--mts-forces", forces, *test, "--timestep", 0.2)
    result = invoke("run", "CH4", *options, "-d", 0.012, "-o", tmp_path / "whole")
    assert result.exit_code == 0
    assert re.search(
        rf"fitted to {structures[InnerForces(forces)]} structures: \d+ meV/Å", result.stderr
    )
    assert f"by {forces} forces" in result.stdout
    assert ("steps accepted" in result.stdout) == bool(test)
    assert invoke("run", "CH4", *options, "-d", 0.006, "-o", tmp_path / "parts").exit_code == 0
    summary = go_on(tmp_path / "parts", "-d", 0.012)
    assert (summary["step"], summary["settings"]["inner_forces"]) == (20, forces)
    known = json.loads((tmp_path / "whole" / SUMMARY_FILE).read_text())
    assert summary["acceptance"] == known["acceptance"]
    whole, parts = (read_record(tmp_path / name).frames for name in ("whole", "parts"))
    assert whole.tobytes() == parts.tobytes()
    fits = [Checkpoint.read(tmp_path / name).thermostat["fast"]["model"] for name in NAMES]
    assert np.array_equal(fits[0]["weights"], fits[1]["weights"])
    assert fits[0]["weights"].any()


def test_a_run_whose_steps_are_rejected_is_not_called_completed(tmp_path, model, monkeypatch):
    monkeypatch.setattr(exact_mts, "acceptance_probability", lambda *_: 0.0)
    options = ("-m", model, "--forces", "conservative", "--rotation", "none", "--no-relax")
    options += ("--mts", 3, "--mts-forces", "bonded", "--metropolis", "--seed", 3, "-T", 20)
    result = invoke("run", "CH4", *options, "-d", 0.02, "-o", tmp_path / "run")
    assert result.exit_code == 1
    summary = json.loads((tmp_path / "run" / SUMMARY_FILE).read_text())
    assert (summary["verdict"], summary["acceptance"]) == ("hardly moved", 0.0)
    assert "0.0% of the steps were accepted" in summary["reason"]
    assert "--mts 3" in summary["reason"]


def test_restart_refuses_what_it_cannot_do(tmp_path, model):
    with pytest.raises(ConfigError, match="holds no run"):
        invoke("run", "--restart", "-o", tmp_path)
    out = tmp_path / "run"
    invoke("run", "CH4", "-m", model, "-d", 0.01, "-o", out)
    with pytest.raises(ConfigError, match="--temperature"):
        invoke("run", "--restart", "-o", out, "--temperature", 400)
    with pytest.raises(ConfigError, match="MOLECULE"):
        invoke("run", "CH4", "--restart", "-o", out)
    with pytest.raises(ConfigError, match=r"has done 20 steps \(0\.01 ps\) already"):
        invoke("run", "--restart", "-o", out, "-d", 0.005)
    asked = json.loads((out / JOB_FILE).read_text())
    asked["calculator"]["sha256"] = "0" * 64
    (out / JOB_FILE).write_text(json.dumps(asked))
    with pytest.raises(ModelFileError, match="0000"):
        invoke("run", "--restart", "-o", out)


def test_a_file_of_an_ion_without_charge_names_the_option(tmp_path):
    path = tmp_path / "ethanolate.xyz"
    ase.io.write(path, molecule("CH3CH2OH")[[0, 1, 2, *range(4, 9)]], format="xyz")
    with pytest.raises(InputError, match="an ion needs --charge"):
        invoke("run", path, "-o", tmp_path / "run")


def test_a_second_run_does_not_overwrite_the_first(tmp_path, model):
    options = ("run", "CH4", "-m", model, "-d", 0.01, "-o", tmp_path / "run")
    assert invoke(*options).exit_code == 0
    with pytest.raises(ConfigError, match="holds a run already"):
        invoke(*options)


def test_a_molecule_that_comes_apart_is_reported(tmp_path):
    wild = write_model(tmp_path / "wild.safetensors", 0.6)
    out = tmp_path / "run"
    result = invoke("run", "CH3CH2OH", "-m", wild, "-d", 0.5, "--seed", 0, "-o", out, "--json")
    assert result.exit_code == 1
    summary = json.loads(result.stdout)
    assert summary["verdict"] == "failed"
    assert summary["reason"]
    assert (out / "stopped.extxyz").exists()
    assert (out / "run.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("C2H5OHH",), "C2H5OH"),
        (("missing.xyz",), "no file 'missing.xyz'"),
        ((), "no molecule given"),
        (("CH4", "-d", 0), "shorter than one step"),
        (("CH4", "-d", "inf"), "a duration of inf ps has no end"),
        (("CH4", "-e", "nve", "--friction", 3), "--friction 3 with --ensemble nve"),
        (("CH4", "--html", "start.xyz"), "--html start.xyz; give a file that ends in .html"),
        (("CH4", "-f", "pdb"), "'pdb'"),
        (("CH4", "--relax"), "--relax is not possible"),
        (("CH4", "--keep-velocities"), "no velocities"),
        (("CH4", "--multiplicity", 2), "multiplicity"),
        (("CH4", "--mts", 0), "inner_steps=0"),
        (("CH4", "--mts", 2, "-e", "bussi"), "'nve' and 'langevin'"),
        (("CH4", "--mts", 2), "no cheaper forces"),
        (("CH4", "--mts-forces", "bonded"), "give --mts with it"),
        (("CH4", "--metropolis"), "give --mts with it"),
        (("CH4", "--mts", 2, "--metropolis", "--engine", "openmm"), "use ase"),
        (("CH4", "--mts", 2, "--metropolis", "-e", "nve"), "it is for --ensemble langevin"),
        (("CH4", "--mts", 2, "--mts-forces", "bonded", "-e", "bussi"), "'nve' and 'langevin'"),
        (("CH4", "--mts", 2, "--mts-forces", "bonded", "-e", "nve", "-T", 0), "must be positive"),
        (("CH4", "--mts", 2, "--mts-forces", "bonded", "--engine", "openmm"), "engine ase"),
        (("NH3",), "N"),
    ],
)
def test_run_refusals(tmp_path, monkeypatch, model, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, InputError), match=message):
        invoke("run", *options, "-m", model)
    assert list(tmp_path.iterdir()) == []


def test_conservative_runs_start_from_a_minimum(tmp_path, model):
    out = tmp_path / "run"
    options = ("--forces", "conservative", "--rotation", "none", "-d", 0.01, "-o", out)
    result = invoke("run", "CH4", "-m", model, *options)
    assert result.exit_code == 0
    assert "Relaxed in" in result.stderr


def test_relaxation_reaches_the_minimum():
    atoms = Atoms("CO", [[0, 0, 0], [1.3, 0, 0]])
    atoms.calc = Springs(k=30.0, r0=1.15)
    assert relax(atoms).startswith("Relaxed in")
    assert atoms.get_distance(0, 1) == pytest.approx(1.15, abs=1e-3)


def test_relaxation_that_breaks_a_bond_is_refused():
    atoms = Atoms("CO", [[0, 0, 0], [1.15, 0, 0]])
    atoms.calc = Morse(depth=5.0, a=1.0, r0=3.0)
    with pytest.raises(PredictionError, match="C0-O1"):
        relax(atoms)


def test_kept_velocities_come_from_the_file(tmp_path, model):
    # Short: the untrained model tears molecules apart, which are no starts then.
    first = tmp_path / "first"
    invoke("run", "CH4", "-m", model, "-d", 0.002, "-o", first, "-f", "traj")
    options = ("-m", model, "-e", "langevin", "-d", 0.01, "-o", tmp_path / "second")
    result = invoke("run", first / "trajectory.traj", "--keep-velocities", *options)
    assert result.exit_code == 0
    before, after = (read_record(folder).frames for folder in (first, tmp_path / "second"))
    np.testing.assert_allclose(after["velocities"][0], before["velocities"][-1], rtol=1e-12)


@pytest.fixture
def ctrl_c_raises():
    """Ctrl-C as in a terminal, even if the tests run as a background job, which ignores it."""
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, outside)


@pytest.mark.usefixtures("ctrl_c_raises")
def test_first_interrupt_asks_second_insists():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupted_run_ends_cleanly_and_goes_on(tmp_path, model, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(
        "mlmd_calc.md.frames.FrameWriter.append", interrupt_at(30, out=out), raising=True
    )
    options = ("-m", model, "-d", 0.025, "--seed", 1, "--interval", 10)
    result = invoke("run", "CH4", *options, "-o", out)
    assert result.exit_code == 130
    assert "interrupted" in result.stdout
    monkeypatch.undo()
    assert invoke("run", "--restart", "-o", out).exit_code == 0
    assert invoke("run", "CH4", *options, "-o", tmp_path / "whole").exit_code == 0
    whole, again = (read_record(folder).frames for folder in (tmp_path / "whole", out))
    assert whole.tobytes() == again.tobytes()


@pytest.mark.parametrize("suffix", ["extxyz", "traj"])
def test_full_disk_ends_with_a_sentence_and_the_run_goes_on(tmp_path, model, suffix):
    options = ("-m", model, "-d", 0.05, "--seed", 1, "--interval", 1, "--format", suffix)
    options += ("--checkpoint-interval", 10)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with Child(mlmd, "run", "CH4", *options, "-o", parts, file_size=40_000) as child:
        status, _, said = child.wait()
    assert status == 1
    assert f"mlmd: File too large: '{parts / 'trajectory'}.{suffix}'" in said
    assert invoke("run", "--restart", "-o", parts).exit_code == 0
    assert invoke("run", "CH4", *options, "-o", whole).exit_code == 0
    name = f"trajectory.{suffix}"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()


def interrupt_at(step, out):
    """Stand-in for `FrameWriter.append` that presses Ctrl-C when a step is recorded."""
    from mlmd_calc.md.frames import FrameWriter

    append = FrameWriter.append

    def append_and_interrupt(writer, frames):
        append(writer, frames)
        if frames["step"][-1] == step:
            os.kill(os.getpid(), signal.SIGINT)

    return append_and_interrupt


def test_steps_of_a_duration():
    settings = MDSettings(timestep_fs=0.25)
    assert steps_of(1.0, settings) == 4000
    # The duration is covered.
    assert steps_of(0.1, MDSettings(timestep_fs=0.3)) == 334
    assert steps_of(1.0, MDSettings(timestep_fs=0.1)) == 10000
    assert steps_of(1e9, settings) == 4 * 10**12
    for endless in (1e300, math.inf):
        with pytest.raises(ConfigError, match="has no end"):
            steps_of(endless, settings)


def test_file_comes_before_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, last = molecule("H2O"), molecule("NH3")
    last.info["charge"] = 1
    ase.io.write("CH4", [first, last], format="extxyz")
    atoms = load_structure("CH4", multiplicity=2)
    assert atoms.get_chemical_formula() == "H3N"
    assert atoms.calc is None
    assert (atoms.info["charge"], atoms.info["multiplicity"]) == (1, 2)


def test_ase_names_know_their_multiplicity():
    assert load_structure("CH3").info["multiplicity"] == 2
    assert load_structure("trans-butane").info["multiplicity"] == 1
    assert load_structure("CH3", charge=1, multiplicity=1).info == {"charge": 1, "multiplicity": 1}


def test_files_with_integer_charges_run_and_say_so(tmp_path, model):
    path = tmp_path / "water.xyz"
    water = molecule("H2O")
    water.info.update(charge=2, spin=3)
    ase.io.write(path, water, format="extxyz")
    out = tmp_path / "run"
    result = invoke("run", path, "-m", model, "-d", 0.002, "-o", out, "--json")
    assert "charge +2, multiplicity 3" in result.stderr
    summary = json.loads(result.stdout)
    assert (summary["charge"], summary["multiplicity"]) == (2, 3)
    with pytest.raises(InputError, match="disagree"):
        load_structure(str(path), charge=0)


def test_mdl_files_have_formal_charges_radicals_and_isotopes(tmp_path):
    chem = pytest.importorskip("rdkit.Chem", reason="RDKit reads MDL files")
    pytest.importorskip("rdkit.Chem.AllChem")
    for smiles, state in (
        ("[O-]C(=O)CC(=O)[O-]", (-2, 1)),
        ("[2H]C[NH3+]", (1, 1)),
        ("[CH3]", (0, 2)),
    ):
        graph = chem.AddHs(chem.MolFromSmiles(smiles))
        chem.AllChem.EmbedMolecule(graph, randomSeed=1)
        path = tmp_path / "x.sdf"
        path.write_text(chem.MolToMolBlock(graph) + "$$$$\n")
        atoms = load_structure(str(path))
        assert (atoms.info["charge"], atoms.info["multiplicity"]) == state
        assert ("2H" in smiles) == (abs(atoms.get_masses() - 2.014) < 0.001).any()
    with pytest.raises(InputError, match="disagree"):
        load_structure(str(path), multiplicity=4)
    path.write_text(chem.MolToMolBlock(graph) + "> <Charge>\n1\n\n> <spin>\n2\n\n$$$$\n")
    with pytest.raises(InputError, match=r"charge=0 and atoms.info\['Charge'\]=1 disagree"):
        load_structure(str(path))
    path.write_text(2 * (chem.MolToMolBlock(graph) + "$$$$\n"))
    with pytest.raises(InputError, match="holds 2 molecules"):
        load_structure(str(path))
    path.write_text(chem.MolToMolBlock(chem.MolFromSmiles("CCO")))
    with pytest.raises(InputError, match="lacks 6 hydrogen atoms"):
        load_structure(str(path))
    path.write_text("no structure")
    with pytest.raises(InputError, match="cannot be read"):
        load_structure(str(path))
    packed = tmp_path / "x.sdf.gz"
    packed.write_bytes(gzip.compress(chem.MolToMolBlock(graph).encode())[:-20])
    with pytest.raises(InputError, match="cannot be read as an MDL file"):
        load_structure(str(packed))


@pytest.mark.parametrize("v3000", [False, True])
def test_paired_electrons_of_mdl_files(tmp_path, v3000):
    """A carbene has two electrons that are paired (1) or not (3)."""
    chem = pytest.importorskip("rdkit.Chem", reason="RDKit reads MDL files")
    pytest.importorskip("rdkit.Chem.AllChem")
    graph = chem.AddHs(chem.MolFromSmiles("[CH2]"))
    chem.AllChem.EmbedMolecule(graph, randomSeed=1)
    triplet = chem.MolToMolBlock(graph, forceV3000=v3000)
    path = tmp_path / "x.mol"
    path.write_text(triplet)
    assert load_structure(str(path)).info["multiplicity"] == 3
    singlet = triplet.replace("RAD=3", "RAD=1").replace("RAD  1   1   3", "RAD  1   1   1")
    assert singlet != triplet
    path.write_text(singlet)
    assert load_structure(str(path)).info["multiplicity"] == 1


def test_drawings_in_mdl_files_are_refused(tmp_path):
    """Their bonds may be as short as those of a molecule."""
    chem = pytest.importorskip("rdkit.Chem", reason="RDKit reads MDL files")
    pytest.importorskip("rdkit.Chem.AllChem")
    path = tmp_path / "x.sdf"
    for smiles, label in (("O", "2D"), ("CCO", "2D"), ("CCO", "  ")):
        graph = chem.AddHs(chem.MolFromSmiles(smiles))
        chem.AllChem.Compute2DCoords(graph, bondLength=1.1)
        path.write_text(chem.MolToMolBlock(graph).replace("2D", label))
        with pytest.raises(InputError, match=r"a drawing in the plane, not a structure.*SMILES"):
            load_structure(str(path))
    # What is flat may lie in a plane, and there may be empty lines at the end.
    flat = chem.AddHs(chem.MolFromSmiles("C=C"))
    chem.AllChem.Compute2DCoords(flat, bondLength=1.1)
    path.write_text(chem.MolToMolBlock(flat).replace("2D", "  ") + "$$$$\n\n\n")
    assert len(load_structure(str(path))) == 6


def test_seeds_larger_than_rdkit_knows():
    pytest.importorskip("rdkit", reason="rdkit reads SMILES")
    small, large = (load_structure("smiles:CCO", seed=seed) for seed in (5, 2**40 + 5))
    np.testing.assert_array_equal(small.positions, large.positions)


def test_a_smiles_may_be_longer_than_the_name_of_a_file():
    pytest.importorskip("rdkit", reason="RDKit builds molecules from SMILES")
    with pytest.raises(InputError, match="is a SMILES of several molecules"):
        load_structure(".".join(["[H]O[H]"] * 40))


def test_smiles_and_table_names_are_built_in_three_dimensions():
    pytest.importorskip("rdkit", reason="RDKit builds molecules from SMILES")
    ion = load_structure("smiles:C[NH3+]", seed=1)
    assert ion.get_chemical_formula() == "CH6N"
    assert (ion.info["charge"], ion.info["multiplicity"]) == (1, 1)
    plain = load_structure("CO", smiles=True)
    assert plain.get_chemical_formula() == "CH4O"
    assert load_structure("CO").get_chemical_formula() == "CO"
    assert load_structure("ethanol").get_chemical_formula() == "C2H6O"
    with pytest.raises(InputError, match="charge"):
        load_structure("smiles:CCO", charge=1)
    # A stem and a suffix for Python, a salt for chemists.
    with pytest.raises(InputError, match="SMILES of several molecules"):
        load_structure("[Na+].CC(=O)[O-]")


def test_unreadable_file(tmp_path):
    path = tmp_path / "broken.xyz"
    path.write_text("three\nthis is no structure\n")
    with pytest.raises(InputError, match=r"broken\.xyz"):
        load_structure(str(path))
