"""Everyday inputs with something odd: sentences that say what to do, and no absurd numbers."""

import json
from dataclasses import asdict, replace

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.units import fs
from toy_models import toy_model

from mlmd_calc import MDETCalculator
from mlmd_calc.cli.structure_input import load_structure
from mlmd_calc.data import read_dataset
from mlmd_calc.electrons import electronic_state
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.geometry.lewis import charge_of_bonds
from mlmd_calc.md import JumpNVE, JumpNVT, MDSettings, MTSLangevin
from mlmd_calc.potential import Potential, structure_from_ase
from mlmd_calc.propagation import Langevin, VerletPropagator


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["initial_charges", "initial_magnetic_moments"])
def test_charges_and_moments_of_atoms_that_are_no_numbers(name, value):
    atoms = molecule("H2O")
    getattr(atoms, f"set_{name}")([value, 0.0, 0.0])
    with pytest.raises(InputError, match=rf"is {value}; leave out these values"):
        electronic_state(atoms)


@pytest.mark.parametrize("value", [1.5, np.float64(1.5), True, "one", [0], np.nan])
def test_a_charge_that_is_no_whole_number_has_a_remedy(value):
    atoms = molecule("H2O")
    atoms.info["charge"] = value
    with pytest.raises(InputError, match="is not an integer; give a whole number") as refused:
        electronic_state(atoms)
    assert "np." not in str(refused.value)


def test_bare_nuclei_are_refused():
    for atoms, charge in ((Atoms("H"), 1), (Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]), 2)):
        atoms.info["charge"] = charge
        with pytest.raises(InputError, match=r"leaves no electrons.*correct the charge"):
            structure_from_ase(atoms).check()


def test_what_holds_no_frame_is_named(tmp_path):
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        load_structure(str(tmp_path))
    (tmp_path / "x.xyz").write_text("\n1\n\nH 0 0 0\n")
    with pytest.raises(InputError, match=r"StopIteration: it does not begin with a frame"):
        load_structure(str(tmp_path / "x.xyz"))


def test_dummy_atoms_are_named(tmp_path):
    lines = ["4", "", "X 0 0 0", "H 0.96 0 0", "H -0.24 0.93 0", "O 0 0 1.0"]
    (tmp_path / "x.xyz").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"atom 0 is X, a dummy atom .* remove it"):
        load_structure(str(tmp_path / "x.xyz"))


def test_text_in_another_encoding_is_to_be_saved_as_utf8(tmp_path):
    lines = ["2", "bond of 0.74 Å", "H 0 0 0", "H 0 0 0.74"]
    (tmp_path / "latin.xyz").write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(InputError, match=r"not text in UTF-8 .* save it as UTF-8"):
        load_structure(str(tmp_path / "latin.xyz"))


def frame(symbols="HH", comment="energy=-1.0"):
    atoms = "".join(f"{s} 0 0 {0.74 * i}\n" for i, s in enumerate(symbols))
    return f"{len(symbols)}\nProperties=species:S:1:pos:R:3 {comment}\n{atoms}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (frame("HD").encode(), "'D' is not a chemical symbol .* correct it, or leave the file out"),
        (frame(comment="who=Å").encode("latin-1"), "not text in UTF-8 .* save it as UTF-8"),
        (frame().encode()[:-12], "copy or write it again"),
        (b"", "holds no frames; leave the file out"),
    ],
)
def test_frames_that_cannot_be_read_have_a_remedy(tmp_path, content, message):
    (tmp_path / "odd.extxyz").write_bytes(content)
    with pytest.raises((InputError, ModelFileError), match=message):
        read_dataset(tmp_path / "odd.extxyz")


def test_a_free_energy_alone_is_not_left_out_in_silence(tmp_path):
    path = tmp_path / "free.extxyz"
    path.write_text(frame(comment="free_energy=-31.0") * 2)
    with pytest.warns(UserWarning, match=r"left out are free_energy \(--energy-key\)"):
        (bare,) = read_dataset(path)
    assert bare.energies is None
    (read,) = read_dataset(path, energy_key="free_energy")
    assert read.energies.tolist() == [-31.0, -31.0]


@pytest.mark.parametrize("broken", ["0.2\t3.1", "********"])
def test_columns_of_pdb_files_that_hold_no_numbers_have_a_remedy(tmp_path, broken):
    line = "ATOM      1  CH3 ACE A   1    " + broken.ljust(8) + "  -3.574  -0.179  1.00  0.00"
    (tmp_path / "x.pdb").write_text(line + "\nEND\n")
    with pytest.raises(ModelFileError, match=r"is not a number.*write the file again"):
        load_structure(str(tmp_path / "x.pdb"))


@pytest.mark.parametrize("value", [10**30, -(10**400)])
def test_a_charge_of_many_digits_is_outside_of_what_is_possible(value):
    atoms = molecule("H2O")
    atoms.info["charge"] = value
    with pytest.raises(InputError, match="is outside -"):
        structure_from_ase(atoms).check()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("2S", 2),
        ("magmom", 2.0),
        ("charge_mult", np.array([2, 1])),
        ("charge_multiplicity", "2 1"),
        ("qm_charge", "+2"),
    ],
)
def test_totals_under_other_names_are_not_left_out_in_silence(key, value):
    atoms = molecule("CH3CH2OH")
    atoms.info[key] = value
    with pytest.raises(InputError, match=r"looks like a charge or spin.*rename it"):
        electronic_state(atoms)


def test_charges_of_the_atoms_and_names_of_methods_are_no_totals():
    atoms = molecule("CH3CH2OH")
    atoms.info["mulliken_charges"] = np.full(9, 0.1)
    atoms.info["charge_method"] = "CM5, 2 sets"
    assert electronic_state(atoms) == (0, 1)


def write_xyz(path, atoms, comment=""):
    rows = [f"{s} {x} {y} {z}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
    path.write_text("\n".join([str(len(atoms)), comment, *rows]) + "\n")
    return str(path)


@pytest.mark.parametrize("comment", ["-2 1", "0 3"])
def test_a_comment_of_charge_and_multiplicity_needs_their_names(tmp_path, comment):
    path, ethanol = tmp_path / "x.xyz", molecule("CH3CH2OH")
    with pytest.raises(InputError, match=rf"comment says '{comment}'"):
        load_structure(write_xyz(path, ethanol, comment))
    # What is no charge and multiplicity of this molecule, and what says the same, is let be.
    for other in ("0 1", "12 500", "1 7 3", "2 8"):
        assert load_structure(write_xyz(path, ethanol, other)).info["charge"] == 0
    charge, multiplicity = comment.split()
    named = f"charge={charge} multiplicity={multiplicity} {comment}"
    assert load_structure(write_xyz(path, ethanol, named)).info["charge"] == int(charge)


def test_a_column_of_charges_states_the_total():
    atoms = molecule("CH3CH2OH")
    atoms.set_array("charges", np.full(9, 2 / 9))
    assert electronic_state(atoms) == (2, 1)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("C(CC(=O)[O-])C(=O)[O-]", -2),
        ("[NH3+]CC[NH3+]", 2),
        ("NC(=[NH2+])NCC[NH3+]", 2),
        ("c1[nH]c[nH+]c1CC[NH3+]", 2),
        ("[O-]S(=O)(=O)CCS(=O)(=O)[O-]", -2),
        ("CP(=O)([O-])[O-]", -2),
        ("[O-]C(=O)C(=O)[O-]", -2),
        ("[O-]S(=O)(=O)[O-]", -2),
        ("[S-]CC[S-]", -2),
        ("[O-]C(=O)c1ccc([O-])cc1", -2),
        ("c1cc[nH+]cc1CC[NH3+]", 2),
        ("C[n+]1ccn(CCn2cc[n+](C)c2)c1", 2),
    ],
)
def test_ions_of_which_nothing_says_that_they_are_any(tmp_path, smiles, charge):
    path = write_xyz(tmp_path / "x.xyz", load_structure(f"smiles:{smiles}"))
    with pytest.raises(InputError, match=rf"charge \{charge:+d}; give --charge {charge}, or"):
        load_structure(path)
    for stated in (charge, 0):
        assert load_structure(path, charge=stated).info["charge"] == stated
    # The same atoms in a script are asked about when a force field sees them first.
    atoms = ase.io.read(path)
    potential = Potential(toy_model())
    with pytest.raises(InputError, match=rf"the charge \{charge:+d}; give charge={charge}, or"):
        potential.evaluate([atoms])
    for stated in (charge, 0):
        atoms.info["charge"] = stated
        assert np.isfinite(potential.evaluate([atoms])[0].forces).all()


@pytest.mark.parametrize(
    "smiles",
    [
        "C(C(=O)[O-])[NH3+]",
        "NC(=[NH2+])NCC(=O)[O-]",
        "CS(=O)(=O)C",
        "C[N+](=O)[O-]",
        "C[N+](C)(C)[O-]",
        "NC(=N)NC",
        "c1c[nH]cn1",
        "COP(=O)(OC)OC",
        "c1cc[nH+]cc1C(=O)[O-]",
        "[O-][n+]1ccccc1",
        "O=[N+]([O-])c1ccc([N+](=O)[O-])cc1",
        "CN=[N+]=[N-]",
        "C[N+]#[C-]",
        "CS(=O)C",
        "CC#[N+][O-]",
        "O=C1C=CC(=O)C=C1",
        "O=C1C=CC(=O)c2c(O)ccc(O)c12",
        "CS(=O)O",
        "O=S(Cl)Cl",
        "NC(=S)C(N)=S",
        "OC1=C(O)C(=O)C1=O",
        "Nc1ccc(N)cc1",
    ],
)
def test_neutral_molecules_with_ionic_groups_need_no_charge(tmp_path, smiles):
    path = write_xyz(tmp_path / "x.xyz", load_structure(f"smiles:{smiles}"))
    assert load_structure(path).info["charge"] == 0
    assert charge_of_bonds(ase.io.read(path)) == 0


def polygon(corners: int, radius: float) -> np.ndarray:
    angle = 2.0 * np.pi * np.arange(corners) / corners
    return radius * np.stack([np.cos(angle), np.sin(angle), 0.0 * angle], axis=1)


def ring(corners: int, side: float, arms: str, length: float) -> Atoms:
    """Regular ring of carbon whose atoms have one neighbour each; hydrogens are 1.09 Å away."""
    radius = 0.5 * side / np.sin(np.pi / corners)
    outer = np.array([radius + (1.09 if arm == "H" else length) for arm in arms])
    places = [polygon(corners, radius), polygon(corners, 1.0) * outer[:, None]]
    return Atoms(f"C{corners}{arms}", np.concatenate(places))


def pyramid(symbols: str, length: float, height: float) -> Atoms:
    corners = polygon(3, np.sqrt(length**2 - height**2))
    return Atoms(symbols, np.concatenate([[[0.0, 0.0, height]], corners]))


@pytest.mark.parametrize(
    ("atoms", "charge"),
    [
        (ring(6, 1.41, "OHHOHH", 1.22), 0),  # benzoquinone
        (ring(6, 1.41, "OHHOHH", 1.30), -2),  # hydroquinone without its protons
        (ring(6, 1.42, "SHHSHH", 1.66), 0),
        (ring(6, 1.42, "SHHSHH", 1.73), -2),  # benzenedithiolate
        (ring(6, 1.42, "SSHHHH", 1.73), -2),
        (ring(4, 1.51, "OOOO", 1.19), 0),
        (ring(4, 1.466, "OOOO", 1.263), -2),  # squarate
        (ring(5, 1.47, "OOOOO", 1.255), -2),  # croconate
        (pyramid("SO3", 1.43, 0.0), 0),
        (pyramid("SO3", 1.52, 0.55), -2),  # sulfite
        (pyramid("SeO3", 1.69, 0.65), -2),  # selenite
    ],
)
def test_lengths_of_bonds_tell_ions_from_molecules_of_the_same_bonds(atoms, charge):
    assert charge_of_bonds(atoms) == charge


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("C[n+]1ccc(-c2cc[n+](C)cc2)cc1", 2),
        ("CN1C=CC(=C2C=CN(C)C=C2)C=C1", 0),
        ("c1ccc2-c3cccc[n+]3CC[n+]2c1", 2),  # diquat, where a bridge closes a ring
        ("C1=CC2=C3C=CC=CN3CCN2C=C1", 0),
        ("N#C[C-](C#N)[C-](C#N)C#N", -2),
        ("N#CC(C#N)=C(C#N)C#N", 0),
        ("N#C[C-](C#N)c1ccc([C-](C#N)C#N)cc1", -2),
        ("N#CC(C#N)=C1C=CC(=C(C#N)C#N)C=C1", 0),
    ],
)
def test_a_bond_between_conjugated_parts_tells_ions(smiles, charge):
    """Two electrons more or less make the bond between the parts a double one."""
    assert charge_of_bonds(load_structure(f"smiles:{smiles}")) == charge


def test_odd_electrons_are_refused_with_the_ion_that_bonds_imply(tmp_path):
    urate = load_structure("smiles:O=c1[nH]c(=O)c2[n-]c(=O)[nH]c2[nH]1")
    path = write_xyz(tmp_path / "urate.xyz", urate)
    with pytest.raises(InputError, match=r"needs --charge \(its bonds imply the charge -1\)"):
        load_structure(path)
    unstated = structure_from_ase(ase.io.read(path))
    with pytest.raises(InputError, match=r"of the calculator \(its bonds imply the charge -1\)"):
        unstated.check()
    broken = replace(unstated, positions=np.full_like(unstated.positions, np.nan))
    with pytest.raises(InputError, match="Nothing states the charge"):
        broken.check()


def test_bonds_that_are_about_to_break_imply_no_charge():
    atoms = molecule("N2H4")
    for gap in (0.0, 0.3, 0.7):  # up to a bond of 2.1 Å
        stretched = atoms.copy()
        stretched.positions[:, 1] += gap / 2 * np.sign(atoms.positions[:, 1])
        assert charge_of_bonds(stretched) == 0


def test_a_sequence_too_long_for_random_conformers_is_refused_at_once():
    with pytest.raises(InputError, match=r"300 amino acids cannot be built.*give a structure file"):
        load_structure("sequence:" + "AGKLEVSFTD" * 30)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature_K": "300"},
        {"temperature_K": np.inf},
        {"timestep_fs": None},
        {"friction_per_ps": True},
        {"seed": "one"},
        {"interval": 2.5},
    ],
)
def test_settings_that_are_no_numbers_are_named(settings):
    ((name, _),) = settings.items()
    with pytest.raises(ConfigError, match=f"{name}=.*; it must be"):
        MDSettings(**settings)


def test_numbers_of_numpy_are_numbers():
    settings = MDSettings(temperature_K=np.float32(300.0), interval=np.int64(10))
    assert settings == MDSettings(temperature_K=300.0, interval=10)
    assert json.loads(json.dumps(asdict(settings)))["interval"] == 10
    assert Langevin(np.int64(300), np.float32(0.5)) == Langevin(300.0, 0.5)


@pytest.mark.parametrize("value", [np.inf, np.nan, -1.0, "8", None, [8.0], True])
def test_steps_and_friction_of_dynamics_that_are_no_numbers_are_named(value):
    ethanol = molecule("CH3CH2OH")
    verlet = VerletPropagator(Potential(toy_model()), 0.5)
    with pytest.raises(ConfigError, match=r"timestep=.*; it must be a positive number"):
        JumpNVE(ethanol, value, verlet)
    with pytest.raises(ConfigError, match=r"temperature_K=.*; it must be a positive number"):
        JumpNVT(ethanol, 8 * fs, verlet, value, friction=0.01)
    if value is not None:
        with pytest.raises(ConfigError, match=r"friction=.*; it must be a positive number"):
            JumpNVT(ethanol, 8 * fs, verlet, 300.0, friction=value)
    ethanol.calc = MDETCalculator(toy_model())
    with pytest.raises(ConfigError, match=r"timestep=.*; it must be a positive number"):
        MTSLangevin(ethanol, value, ethanol.calc, inner_steps=2, temperature_K=300.0, friction=0.01)
