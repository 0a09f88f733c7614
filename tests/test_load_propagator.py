"""One door for propagators of all kinds."""

import ase.io
import pytest
from ase import units
from atmos_systems import write_model
from typer.testing import CliRunner

from mlmd_calc import MDETCalculator, load_propagator
from mlmd_calc.biomolecules import build_system, read_structure
from mlmd_calc.biomolecules.pdb import format_structure
from mlmd_calc.cli import app
from mlmd_calc.cli.jumps import choose_propagator
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.md import JumpNVT, read_record
from mlmd_calc.propagation.atmos import ATMOSPropagator
from mlmd_calc.propagation.atom import ATOMPropagator

pytest.importorskip("rdkit", reason="rdkit builds peptides")

PEPTIDE = "examples/alanine_dipeptide.pdb"


@pytest.fixture
def atmos(tmp_path):
    return write_model(tmp_path / "atmos.safetensors")


@pytest.fixture
def peptide(pytestconfig):
    return pytestconfig.rootpath / PEPTIDE


def test_every_description_of_a_molecule_makes_the_same_propagator(atmos, peptide):
    structure = read_structure(peptide)
    described = [peptide, str(peptide), ase.io.read(peptide), structure, build_system(structure)]
    made = [load_propagator(atmos, structure=one, dtype="float64") for one in described]
    assert all(isinstance(one, ATMOSPropagator) for one in made)
    assert len({one.identity for one in made}) == 1
    assert {one.system.features.n_tokens for one in made} == {3}


def test_openmm_topologies_describe_molecules(atmos, peptide):
    app = pytest.importorskip("openmm.app", reason="openmm is not installed")
    from openmm_bridge import structure_from_topology

    pdb = app.PDBFile(str(peptide))
    structure = structure_from_topology(pdb.topology, pdb.positions)
    assert load_propagator(atmos, structure=structure).system.size == 22


def test_a_name_is_enough_in_ase(atmos, peptide):
    atoms = ase.io.read(peptide)
    atoms.calc = MDETCalculator()
    dynamics = JumpNVT(atoms, 1e4 * units.fs, str(atmos), temperature_K=300, friction=0.01)
    assert isinstance(dynamics.loop.propagator, ATMOSPropagator)


def test_other_kinds_do_not_need_the_molecule(peptide):
    assert isinstance(load_propagator("atom-small-organics", structure=peptide), ATOMPropagator)


def test_what_does_not_fit_is_refused(atmos, peptide):
    with pytest.raises(ConfigError, match="give structure="):
        load_propagator(atmos)
    with pytest.raises(ConfigError, match="potential is an option of ATOM models"):
        load_propagator(atmos, structure=peptide, potential="mdet-ethanol")
    with pytest.raises(ConfigError, match="stride_ps is an option of ATMOS models"):
        load_propagator("atom-small-organics", stride_ps=10.0)
    with pytest.raises(ConfigError, match="stride of 3 ps"):
        load_propagator(atmos, structure=peptide, stride_ps=3.0)
    with pytest.raises(ConfigError, match="propagates nothing"):
        load_propagator("mdet-ethanol")
    with pytest.raises(InputError, match="does not know"):
        load_propagator(
            write_model(atmos.parent / "carbon.safetensors", card={"elements": [6]}),
            structure=peptide,
        )


def test_commands_go_beyond_the_training_if_asked(tmp_path):
    options = ["--propagator", "atmos-peptides", "--duration", "10", "--out", str(tmp_path / "run")]

    def refused(*arguments):
        return str(CliRunner().invoke(app, ["run", *arguments]).exception)

    assert "chain of ACE 1 of chain A has 6 amino acids" in refused("sequence:GGGGGG", *options)
    assert "--beyond-training is an option of runs made of jumps" in refused(
        "CH4", "--beyond-training"
    )
    assert "--beyond-training is an option of ATMOS models" in refused(
        *("CH4", "--propagator", "verlet", "--jump", "1", "--beyond-training")
    )
    pdb = format_structure(capped_peptide("GGGGGG", 0))
    with pytest.warns(UserWarning, match="beyond the training of the model: the chain of ACE 1"):
        choose_propagator("atmos-peptides").make(None, 0.5, "cpu", pdb, beyond_training=True)


@pytest.mark.slow
def test_a_command_jumps_and_goes_on(tmp_path, monkeypatch):
    """With little of what relaxes a jump, which is most of its cost."""
    defaults = ATMOSPropagator.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "minimise_steps", 40)
    monkeypatch.setitem(defaults, "langevin_steps", 5)
    monkeypatch.setitem(defaults, "reference_steps", 20)
    options = ["run", "sequence:G", "--propagator", "atmos-peptides", "--interval", "1"]
    options += ["--model", "mdet-small-organics", "--dtype", "float32", "--seed", "2", "--no-relax"]

    def run(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output

    run(*options, "--duration", 20, "--out", tmp_path / "whole")
    run(*options, "--duration", 10, "--out", tmp_path / "parts")
    run("run", "--restart", "--duration", 20, "--out", tmp_path / "parts")
    whole, parts = (read_record(tmp_path / name).frames for name in ("whole", "parts"))
    assert len(whole) == 3
    assert parts.tobytes() == whole.tobytes()
