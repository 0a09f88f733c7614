"""Files in the layout of mdCATH, made of a small peptide."""

import numpy as np
import pytest
from peptide_structures import pdb_line
from typer.testing import CliRunner

from mlmd_calc.cli.data import app as command
from mlmd_calc.data.biomolecules.mdcath import read_mdcath
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.data.biomolecules.trajectories import read_trajectories
from mlmd_calc.errors import ConfigError, InputError, ModelFileError

h5py = pytest.importorskip("h5py", reason="h5py reads and writes HDF5")
pytest.importorskip("rdkit", reason="rdkit builds the peptide")

SEQUENCE = "HIG"
HEAVY = {
    1: "N CA C O CB CG ND1 CD2 CE1 NE2",
    2: "N CA C O CB CG2 CG1 CD1",  # with the gamma carbons exchanged
    3: "N CA C O",
}
"""Names in the order of the network, by residue of the capped peptide."""

CAPS = {
    ("ACE", "CH3"): "CAY",
    ("ACE", "C"): "CY",
    ("ACE", "O"): "OY",
    ("NME", "N"): "NT",
    ("NME", "C"): "CAT",
    ("ILE", "CD1"): "CD",
}
"""CHARMM's names."""


def write(path, *, change=None):
    """Write two runs at 320 K and one at 450 K; return the structure and the frames of the first.

    As in the data set caps belong to the residues next to them, and atoms have CHARMM's names.
    """
    built = capped_peptide(SEQUENCE, 0)
    owner = np.clip(built.residues, 1, len(SEQUENCE))
    residue_names = [{"HIS": "HSE"}.get(name, name) for name in built.residue_names]
    names = [
        CAPS.get((built.residue_names[residue], name), name)
        for residue, name in zip(built.residues, built.names, strict=True)
    ]
    symbols = np.array(["", "H", *" " * 4, "C", "N", "O"])[built.numbers].tolist()
    resnames = [residue_names[i] for i in owner]
    resids = built.residue_numbers[owner] + 40
    rows = zip(names, resnames, resids, built.positions, symbols, strict=True)
    text = "MODEL        1\n" + "".join(
        pdb_line(i, name, residue, "A", number, x, symbol).replace("HETATM", "ATOM  ")
        for i, (name, residue, number, x, symbol) in enumerate(rows, start=1)
    )
    frames = built.positions + 0.02 * np.random.default_rng(0).normal(size=(3, len(built), 3))
    with h5py.File(path, "w") as file:
        file.attrs["layout"] = "mdcath-only-protein-v1.0"
        domain = file.create_group("1abcA00")
        domain["z"], domain["resid"] = built.numbers, resids
        domain["resname"], domain["element"] = resnames, symbols
        domain["chain"] = ["A"] * len(built)
        domain["pdbProteinAtoms"] = text.encode()
        for temperature, replica in (("320", "0"), ("320", "1"), ("450", "0")):
            run = domain.create_group(f"{temperature}/{replica}")
            run["coords"] = frames.astype(np.float32) + float(replica)
            run["box"] = np.eye(3)
        if change is not None:
            change(domain)
    return built, frames


def test_reads_heavy_atoms_without_caps(tmp_path):
    path = tmp_path / "mdcath_dataset_1abcA00.h5"
    built, frames = write(path)
    first, second = read_mdcath(path)
    assert (first.name, first.sequence, first.dt_ps) == ("1abcA00", SEQUENCE, 1000.0)
    assert (first.replica, second.replica) == (0, 1)
    assert first.temperature_K == 320.0
    system = first.system
    place = {key: i for i, key in enumerate(zip(built.residues.tolist(), built.names, strict=True))}
    heavy = [place[residue, name] for residue, names in HEAVY.items() for name in names.split()]
    np.testing.assert_allclose(first.positions, frames[:, heavy], atol=1e-5)
    np.testing.assert_allclose(second.positions, frames[:, heavy] + 1.0, atol=1e-5)
    # Where the simulation started; PDB files have three decimals.
    np.testing.assert_allclose(system.reference, built.positions[heavy], atol=6e-4)
    assert len(system.bonds) == len(heavy)  # one ring
    assert len(system.phi_psi) == 1
    assert system.features.residue_index.tolist() == [42, 43, 44]
    assert system.features.ref_charge.nonzero().ravel().tolist() == [0]


def test_choice_of_runs_and_frames(tmp_path):
    path = tmp_path / "domain.h5"
    write(path)
    hot = read_mdcath(path, temperature_K=450, frames=2)[0]
    assert (len(hot), hot.temperature_K) == (2, 450.0)
    with pytest.raises(ConfigError, match="no temperature 300 in /1abcA00; there are 320, 450"):
        read_mdcath(path, temperature_K=300)
    with pytest.raises(ConfigError, match="frames=0"):
        read_mdcath(path, frames=0)


def replace(key, data):
    def change(domain):
        del domain[key]
        if data is not None:
            domain[key] = data

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (replace("z", None), ModelFileError, "has no 'z', only"),
        (replace("resid", np.arange(3)), ModelFileError, r"resid has shape \(3,\), expected"),
        (replace("resname", np.zeros(60)), ModelFileError, "expected"),
        (replace("pdbProteinAtoms", None), ModelFileError, "holds 0 groups"),
        (replace("pdbProteinAtoms", b"END"), ModelFileError, "has 0 atoms, z has"),
        (replace("320/0/coords", np.zeros((2, 5, 3))), ModelFileError, "coords has shape"),
        (
            lambda domain: domain["320/1/coords"].write_direct(domain["320/1/coords"][()] / 10),
            InputError,
            "a bond is .* Å long, allowed are 0.9 to 2.8 Å",
        ),
        (
            lambda domain: domain["320/1/coords"].write_direct(-domain["320/1/coords"][()]),
            InputError,
            "has the other hand than in the topology",
        ),
    ],
)
def test_refuses_bad_files(tmp_path, change, error, message):
    path = tmp_path / "domain.h5"
    write(path, change=change)
    with pytest.raises(error, match=message):
        read_mdcath(path)


def test_refuses_what_is_no_hdf5(tmp_path):
    path = tmp_path / "domain.h5"
    with pytest.raises(ModelFileError, match="does not exist"):
        read_mdcath(path)
    path.write_text("text")
    with pytest.raises(ModelFileError, match="cannot be read as HDF5"):
        read_mdcath(path)
    with h5py.File(path, "w") as file:
        file["something"] = np.arange(3)
    with pytest.raises(ModelFileError, match="holds 0 groups"):
        read_mdcath(path)


def test_command_converts_what_it_can(tmp_path):
    write(tmp_path / "good.h5")
    (tmp_path / "bad.h5").write_text("text")
    out = tmp_path / "out"
    files = [str(tmp_path / name) for name in ("bad.h5", "good.h5")]
    result = CliRunner().invoke(command, ["mdcath", *files, "--out", str(out), "--frames", "2"])
    assert result.exit_code == 0, result.output
    assert "1 of 2 converted" in result.output
    converted = read_trajectories(out)
    assert [path.name for path in sorted(out.glob("*.npz"))] == [
        "1abcA00_320K_r0.npz",
        "1abcA00_320K_r1.npz",
    ]
    for read, direct in zip(converted, read_mdcath(files[1], frames=2), strict=True):
        np.testing.assert_array_equal(read.positions, direct.positions)
        assert read.sequence == SEQUENCE
    refused = CliRunner().invoke(command, ["mdcath", files[0], "--out", str(out)])
    assert "nothing could be converted" in str(refused.exception)
