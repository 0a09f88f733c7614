"""Files in the layout of MISATO, made of a small peptide and ethanol."""

import numpy as np
import pytest
from typer.testing import CliRunner

from mlmd_calc.cli.data import app as command
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.data.biomolecules.misato import misato_names, read_misato
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.data.biomolecules.trajectories import read_trajectories
from mlmd_calc.errors import ConfigError, InputError, ModelFileError

h5py = pytest.importorskip("h5py", reason="h5py reads and writes HDF5")
pytest.importorskip("mdtraj", reason="mdtraj reads Amber topologies")
pytest.importorskip("rdkit", reason="rdkit builds the molecules")

SOLVENT = [("Na+", ["Na+"], [11]), ("WAT", ["O", "H1", "H2"], [8, 1, 1])]


def section(flag, form, values):
    per_line, width = {"20a4": (20, 4), "10I8": (10, 8)}[form]
    lines = [values[i : i + per_line] for i in range(0, len(values), per_line)]
    rows = [
        "".join(f"{v:<{width}}" if form == "20a4" else f"{v:>{width}}" for v in r) for r in lines
    ]
    return "\n".join([f"%FLAG {flag}", f"%FORMAT({form})", *rows, ""])


def write_topology(path, residues, bonds):
    """Write those parts of an Amber topology that tell names, elements, residues and bonds."""
    names = [name for _, atoms, _ in residues for name in atoms]
    numbers = [number for _, _, elements in residues for number in elements]
    first = np.cumsum([1] + [len(atoms) for _, atoms, _ in residues])[:-1].tolist()
    with_hydrogen = [1 in (numbers[a], numbers[b]) for a, b in bonds]

    def pointers(which):
        chosen = [b for b, has in zip(bonds, with_hydrogen, strict=True) if has == which]
        return [value for a, b in chosen for value in (3 * a, 3 * b, 1)]

    path.write_text(
        "%VERSION  VERSION_STAMP = V0001.000  DATE = 01/01/24 00:00:00\n"
        + section("POINTERS", "10I8", [len(names), *[0] * 30])
        + section("ATOM_NAME", "20a4", names)
        + section("ATOMIC_NUMBER", "10I8", numbers)
        + section("RESIDUE_LABEL", "20a4", [label for label, _, _ in residues])
        + section("RESIDUE_POINTER", "10I8", first)
        + section("BONDS_INC_HYDROGEN", "10I8", pointers(True))
        + section("BONDS_WITHOUT_HYDROGEN", "10I8", pointers(False))
    )


def write(folder, *, ligand="MOL", distance=6.0, change=None):
    """Write a complex with solvent in the topology; return its HDF5 file, topology and frames."""
    peptide, ethanol = capped_peptide("AH", 0), structure_from_smiles("CCO")
    names = np.array(peptide.names)
    residues = [
        (label, names[peptide.residues == i].tolist(), peptide.numbers[peptide.residues == i])
        for i, label in enumerate(["ACE", "ALA", "HIE", "NME"])
    ]
    residues.append((ligand, [f"X{i}" for i in range(len(ethanol))], ethanol.numbers))
    topology = folder / "production.top"
    bonds = [*peptide.bonds.tolist(), *(ethanol.bonds + len(peptide)).tolist()]
    write_topology(topology, residues + SOLVENT, bonds)
    below = peptide.positions[:, 2].min() - distance - ethanol.positions[:, 2].max()
    place = np.array([*peptide.positions[0, :2], below])
    start = np.concatenate([peptide.positions, ethanol.positions + place])
    frames = start + 0.02 * np.random.default_rng(0).normal(size=(4, *start.shape))
    path = folder / "MD.hdf5"
    with h5py.File(path, "w") as file:
        group = file.create_group("10GS")
        group["trajectory_coordinates"] = frames
        group["atoms_number"] = np.concatenate([peptide.numbers, ethanol.numbers])
        group["molecules_begin_atom_index"] = [0, len(peptide)]
        if change is not None:
            change(group)
    return path, topology, frames


def test_reads_a_complex(tmp_path):
    path, topology, frames = write(tmp_path)
    assert misato_names(path) == ["10GS"]
    complexed = read_misato(path, "10GS", topology)
    assert (complexed.name, complexed.sequence, complexed.dt_ps) == ("10GS", "AH", 80.0)
    features = complexed.system.features
    assert int(features.is_ligand.sum()) == 3
    assert features.asym_id.tolist() == [0] * 4 + [1] * 3
    np.testing.assert_allclose(complexed.positions, frames[:, complexed.system.atoms], atol=1e-5)
    assert not set(complexed.structure.residue_names) & {"WAT", "Na+"}
    assert len(complexed.system.phi_psi) == 2


def test_leaves_out_what_the_method_leaves_out(tmp_path):
    path, topology, _ = write(tmp_path, ligand="LIG")
    with pytest.raises(InputError, match="no residue is called MOL"):
        read_misato(path, "10GS", topology)
    path, topology, _ = write(tmp_path, distance=14.0)
    with pytest.raises(InputError, match=r"in frame 0 the ligand is 1\d\.\d Å from the protein"):
        read_misato(path, "10GS", topology)


def test_refuses_bad_files(tmp_path):
    path, topology, _ = write(tmp_path)
    with pytest.raises(ConfigError, match="holds no complex '1ABC'"):
        read_misato(path, "1ABC", topology)
    with pytest.raises(ModelFileError, match=r"absent\.top does not exist"):
        read_misato(path, "10GS", tmp_path / "absent.top")
    topology.write_text("%FLAG\n")
    with pytest.raises(ModelFileError, match="cannot be read as an Amber topology"):
        read_misato(path, "10GS", topology)
    path, topology, _ = write(
        tmp_path,
        change=lambda group: group["atoms_number"].write_direct(
            group["atoms_number"][()][::-1].copy()
        ),
    )
    with pytest.raises(ModelFileError, match="other elements in another order"):
        read_misato(path, "10GS", topology)

    def broken(group):
        frames = group["trajectory_coordinates"][()]
        frames[2, 4:] += 40.0
        group["trajectory_coordinates"][...] = frames

    path, topology, _ = write(
        tmp_path,
        change=lambda group: group["trajectory_coordinates"].write_direct(
            -group["trajectory_coordinates"][()]
        ),
    )
    with pytest.raises(InputError, match=r"ALA.* is a mirror image at CA, but has the name of"):
        read_misato(path, "10GS", topology)
    path, topology, _ = write(tmp_path, change=broken)
    with pytest.raises(InputError, match=r"in frame 2 a bond is .* Å long"):
        read_misato(path, "10GS", topology)


def test_command(tmp_path):
    path, topology, frames = write(tmp_path)
    folder = tmp_path / "topologies" / "10gs"
    folder.mkdir(parents=True)
    topology.rename(folder / "production.top")
    out = tmp_path / "out"
    arguments = ["misato", str(path), "--topologies", str(folder.parent), "--out", str(out)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    (read,) = read_trajectories(out)
    assert (read.name, read.temperature_K) == ("10GS", 300.0)
    np.testing.assert_allclose(read.positions, frames[:, read.system.atoms], atol=1e-5)


def test_files_of_another_kind_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["coordinates"] = np.zeros((2, 3, 3))
        file.create_group("1ABC/atoms_number")
    for name, message in (("coordinates", "is an array"), ("1ABC", "atoms_number is a group")):
        with pytest.raises(ModelFileError, match=message):
            read_misato(path, name, tmp_path / "production.top")
