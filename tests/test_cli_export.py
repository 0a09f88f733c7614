"""`mlmd export`."""

import numpy as np
import pytest
from ase.build import molecule
from typer.testing import CliRunner

from mlmd_calc import MDETCalculator, units
from mlmd_calc.cli import app
from mlmd_calc.errors import ConfigError, InputError

openmm = pytest.importorskip("openmm", reason="openmm is not installed")
if "torchscript" not in (found := __import__("openmm_bridge").available_backends()):
    pytest.skip(found.unavailable["torchscript"], allow_module_level=True)

from openmm_systems import context_of, energy_and_forces, system_of  # noqa: E402

from openmm_bridge.backends import openmmtorch_module  # noqa: E402
from openmm_bridge.export import read_metadata  # noqa: E402


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["export", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_exported_file_gives_the_calculators_numbers_in_openmm(tmp_path, model_file):
    path = tmp_path / "water.pt"
    options = ("--model", str(model_file), "--forces", "direct", "--rotation", "none")
    output = invoke("H2O", "--openmm", str(path), *options)
    assert "toy for H2O, direct forces, rotation 'none', float64" in output
    force = openmmtorch_module().TorchForce(str(path))
    force.setOutputsForces(True)
    atoms = molecule("H2O")
    forces = energy_and_forces(context_of(system_of(atoms, force), atoms.positions))[1]
    atoms.calc = MDETCalculator(str(model_file), forces="direct", rotation="none", device="cpu")
    known = atoms.get_forces() * units.NM / units.KJ_PER_MOL
    np.testing.assert_allclose(forces, known, rtol=0, atol=1e-9 * np.abs(known).max())
    assert read_metadata(path)["region"]["numbers"] == [8, 1, 1]


def test_unknown_element_is_refused_and_no_file_is_written(tmp_path, model_file):
    path = tmp_path / "hcl.pt"
    with pytest.raises(InputError, match="is Cl"):
        invoke("HCl", "--openmm", str(path), "--model", str(model_file))
    assert not path.exists()


def test_the_molecule_is_not_replaced(tmp_path, model_file):
    start = tmp_path / "water.xyz"
    molecule("H2O").write(start)
    before = start.read_bytes()
    for path, message in (
        (start, "would replace MOLECULE"),
        (tmp_path, "give a file in a folder that is there"),
        (tmp_path / "missing" / "water.pt", "give a file in a folder that is there"),
    ):
        with pytest.raises(ConfigError, match=message):
            invoke(str(start), "--openmm", str(path), "--model", str(model_file))
    assert start.read_bytes() == before
