"""Capped peptides: start structures, force field, and runs that can be interrupted."""

import io
import json
from dataclasses import fields, replace

import numpy as np
import pytest
from another_process import pool_process
from scipy.spatial.distance import pdist
from typer.testing import CliRunner

from mlmd_calc.biomolecules import BondedStructure, build_system, read_structure
from mlmd_calc.biomolecules.domain import Domain
from mlmd_calc.biomolecules.hydrogen_names import with_hydrogen_names
from mlmd_calc.biomolecules.pdb import format_structure
from mlmd_calc.biomolecules.residues import RESIDUES
from mlmd_calc.cli.data import app as command
from mlmd_calc.cli.structure_input import load_bonded, load_structure
from mlmd_calc.data import pool
from mlmd_calc.data.biomolecules.peptides import (
    AMINO_ACIDS,
    Peptide,
    build_peptide,
    capped_peptide,
)
from mlmd_calc.data.biomolecules.trajectories import read_trajectories
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.geometry.bonds import bond_lengths
from mlmd_calc.geometry.stereochemistry import dihedrals, handedness

openmm = pytest.importorskip("openmm", reason="openmm is not installed")
pytest.importorskip("rdkit", reason="rdkit builds the peptides")

from openmm import app, unit  # noqa: E402

from openmm_bridge import peptides  # noqa: E402
from openmm_bridge.peptides import (  # noqa: E402
    PeptideRun,
    PeptideSettings,
    generate_peptides,
    peptide_system,
    peptide_topology,
)

QUICK = PeptideSettings(frames=5, interval_ps=0.1, equilibration_ps=0.1)
CHARGES = {"D": -1, "E": -1, "K": 1, "R": 1}


# start structures


@pytest.mark.parametrize("sequence", [*AMINO_ACIDS, "AGSV", "KDTP"])
def test_start_structure(sequence):
    structure = capped_peptide(sequence, 0)
    system = build_system(structure)
    assert not system.notes
    assert system.features.n_tokens == len(sequence) + 2
    assert system.features.ref_charge.sum() == sum(CHARGES.get(letter, 0) for letter in sequence)
    assert pdist(structure.positions).min() > 0.85
    assert pdist(system.reference).min() > 1.1
    place = {key: i for i, key in enumerate(zip(structure.residues, structure.names, strict=True))}
    alanine = RESIDUES["ALA"]
    left = alanine.conformer[[alanine.atoms.index(name) for name in ("CA", "N", "C", "CB")]]
    expected = handedness(left[None], np.arange(4)[None])
    for residue, letter in enumerate(sequence, start=1):
        if letter != "G":
            centre = [place[residue, name] for name in ("CA", "N", "C", "CB")]
            found = handedness(structure.positions[None], np.array([centre]))
            assert found == expected, letter
        alpha = place[residue - 1, "CA" if residue > 1 else "CH3"]
        peptide = [alpha, place[residue - 1, "C"], place[residue, "N"], place[residue, "CA"]]
        assert np.abs(dihedrals(structure.positions[None], np.array(peptide)))[0] > np.deg2rad(150)


@pytest.mark.parametrize("sequence", ["SVKF", "ACDEG", "HILMN", "PQRT", "WY"])
def test_names_are_those_of_force_fields(sequence):
    """A PDB file of a built peptide is parametrised as it is."""
    structure = capped_peptide(sequence, 0)
    pdb = app.PDBFile(io.StringIO(format_structure(structure)))
    force_field = app.ForceField("amber14-all.xml")
    assert force_field.createSystem(pdb.topology).getNumParticles() == len(structure)
    # By name and not only by bonds; caps have names of the Protein Data Bank, not of Amber.
    for residue in list(pdb.topology.residues())[1:-1]:
        name = {"HIS": "HIE"}.get(residue.name, residue.name)
        template = {atom.name for atom in force_field._templates[name].atoms}
        assert {atom.name for atom in residue.atoms()} == template, residue.name


_METHYLENES = {
    "GLY": """
        N -6.778 -1.424 4.200
        CA -6.878 -0.708 2.896
        C -5.557 -0.840 2.138
        HA2 -7.677 -1.140 2.309
        HA3 -7.085 0.336 3.073""",
    "ASP": """
        CA -1.287 1.320 2.084
        CB -0.523 0.687 3.249
        CG 0.418 1.724 3.866
        HB2 -1.224 0.346 3.997
        HB3 0.055 -0.151 2.889""",
    "PRO": """
        N -0.311 2.922 0.557
        CG -0.876 5.221 0.298
        CD -1.199 3.960 1.121
        HD2 -0.977 4.125 2.167
        HD3 -2.232 3.677 0.991""",
}
"""Groups of chignolin as measured by NMR (PDB entry 1UAO)."""


@pytest.mark.parametrize("residue", _METHYLENES)
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 1, 2, 4, 3)])
def test_hydrogens_two_and_three_are_those_of_the_data_bank(residue, order):
    rows = [line.split() for line in _METHYLENES[residue].strip().splitlines()]
    rows = [rows[index] for index in order]
    names = [row[0] for row in rows]
    centre = next(name for name in names if f"H{name[1:]}2" in names)
    heavy = [name if name[0] != "H" else "" for name in names]
    structure = BondedStructure(
        names=tuple(heavy),
        numbers=np.array([{"N": 7, "C": 6, "H": 1}[name[0]] for name in names]),
        residues=np.zeros(5, dtype=np.int64),
        residue_names=(residue,),
        residue_numbers=np.ones(1, dtype=np.int64),
        chains=np.zeros(1, dtype=np.int64),
        chain_names=("A",),
        bonds=np.array([[names.index(centre), i] for i in range(5) if names[i] != centre]),
        charges=np.zeros(5, dtype=np.int64),
        positions=np.array([row[1:] for row in rows], dtype=np.float64),
    )
    assert with_hydrogen_names(structure).names == tuple(names)


def test_start_structures_have_bonds_and_angles_of_the_force_field():
    """Of a few steps of MMFF94; what was embedded is off by tenths of an angstrom."""
    structure = capped_peptide("SVKF", 0)
    context = peptides.peptide_context(structure, 300.0, 1)
    openmm.LocalEnergyMinimizer.minimize(context)
    relaxed = peptides._positions(context)
    bonds = structure.bonds[(structure.numbers[structure.bonds] > 1).all(axis=1)]
    change = bond_lengths(structure.positions, bonds) - bond_lengths(relaxed, bonds)
    assert np.abs(change).max() < 0.06


def test_side_chains_have_their_natural_handedness():
    """(2S,3S)-isoleucine and (2S,3R)-threonine, by RDKit's labels of the structures."""
    chem = pytest.importorskip("rdkit.Chem")
    for sequence, expected in (("I", "SS"), ("T", "SR")):
        structure = capped_peptide(sequence, 1)
        topology = peptide_topology(structure)
        molecule = chem.RWMol()
        for atom in topology.atoms():
            molecule.AddAtom(chem.Atom(atom.element.atomic_number))
        for bond in topology.bonds():
            carbonyl = {"C", "O"} == {bond[0].name, bond[1].name}
            molecule.AddBond(
                bond[0].index,
                bond[1].index,
                chem.BondType.DOUBLE if carbonyl else chem.BondType.SINGLE,
            )
        conformer = chem.Conformer(len(structure))
        conformer.SetPositions(structure.positions)
        chem.SanitizeMol(molecule)
        molecule.AddConformer(conformer)
        chem.AssignStereochemistryFrom3D(molecule)
        labels = dict(chem.FindMolChiralCenters(molecule, useLegacyImplementation=False))
        named = {structure.names[atom]: label for atom, label in labels.items()}
        assert named["CA"] + named["CB"] == expected


def test_conformers_depend_on_the_seed_only():
    first, again, other = (capped_peptide("AG", seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.positions, again.positions)
    assert np.abs(first.positions - other.positions).max() > 0.1


@pytest.mark.parametrize("sequence", ["", "AXA", "ala", "A A"])
def test_refuses_what_is_no_sequence(sequence):
    with pytest.raises(InputError, match="is not a sequence; write it in one-letter codes"):
        capped_peptide(sequence, 0)


@pytest.mark.parametrize("text", ["H-", "AG-OH", "H-AG", "Ace-AG-OH", "H-AG-Nme", "h-AG-oh", "A-G"])
def test_refuses_half_an_end(text):
    with pytest.raises(InputError, match=r"is not a (peptide|sequence); write"):
        Peptide.parse(text)


def test_notations():
    assert Peptide.parse("Ace-HA-Nme") == Peptide.parse("HA") == Peptide("HA")
    assert Peptide.parse("H-HA-OH") == Peptide("HA", is_capped=False)
    for text in ("HA", "H-HA-OH"):
        assert str(Peptide.parse(text)) == text
        assert Peptide.parse(Peptide.parse(text).name) == Peptide.parse(text)


# free ends


@pytest.mark.parametrize("letters", ["AAA", "KG", "PDE", "GP", "HC"])
def test_free_ends_are_charged_and_named_as_in_amber(letters):
    structure = build_peptide(Peptide(letters, is_capped=False), 0)
    system = build_system(structure)
    features = system.features
    names = [structure.names[atom] for atom in system.atoms]
    assert features.n_tokens == len(letters)
    charged = {names[i]: q for i, q in enumerate(features.ref_charge.tolist()) if q}
    sides = {"K": {"NZ": 1.0}, "D": {"OD2": -1.0}, "E": {"OE2": -1.0}}
    expected = {name: q for letter in letters for name, q in sides.get(letter, {}).items()}
    assert charged == {"N": 1.0, "OXT": -1.0} | expected
    assert features.ref_charge[names.index("N")] == 1.0
    # The network knows the second oxygen as the last atom of the last token.
    assert names.index("OXT") == len(names) - 1 == features.n_atoms - 1
    assert features.atom_to_token[-1] == len(letters) - 1
    pdb = app.PDBFile(io.StringIO(format_structure(structure)))
    force_field = app.ForceField("amber14-all.xml")
    assert force_field.createSystem(pdb.topology).getNumParticles() == len(structure)
    # OpenMM's reader has other names of its own for hydrogens on N.
    for residue, prefix in ((0, "N"), (len(letters) - 1, "C")):
        name = structure.residue_names[residue]
        template = force_field._templates[prefix + {"HIS": "HIE"}.get(name, name)]
        own = {structure.names[i] for i in np.flatnonzero(structure.residues == residue)}
        assert own == {atom.name for atom in template.atoms}


def test_free_ends_are_the_same_in_the_names_of_charmm(tmp_path):
    """HT1-3, HN, OT1 and OT2 in a PDB file, with the atoms of the last residue turned round."""
    built = build_peptide(Peptide("AAA", is_capped=False), 0)
    others = {"H": "HN", "H1": "HT1", "H2": "HT2", "H3": "HT3", "OXT": "OT2"}
    names = [others.get(name, name) for name in built.names]
    names[max(i for i, name in enumerate(names) if name == "O")] = "OT1"
    structure = replace(built, names=tuple(names))
    path = tmp_path / "charmm.pdb"
    lines = format_structure(structure).splitlines()
    last = [line for line in lines if line[22:26].strip() == "3"]
    path.write_text("\n".join([*(line for line in lines if line not in last), *last[::-1]]))
    ours, theirs = build_system(built).features, build_system(read_structure(path)).features
    for entry in fields(ours):
        expected, found = getattr(ours, entry.name), getattr(theirs, entry.name)
        assert (expected is None and found is None) or bool((expected == found).all()), entry.name


def test_free_peptides_on_command_lines():
    atoms = load_structure("sequence:H-KG-OH")
    assert (len(atoms), atoms.info["charge"]) == (32, 1)
    assert load_bonded("sequence:H-KG-OH", 0).residue_names == ("LYS", "GLY")
    assert load_bonded("sequence:KG", 0).residue_names == ("ACE", "LYS", "GLY", "NME")


def test_trajectories_of_free_peptides(tmp_path):
    """A model that is trained on them knows chains without caps, and none with."""
    run = one_run(tmp_path, sequence="H-GA-OH")
    run.run()
    assert run.path.name == "H-GA-OH_300K_r0.npz"
    (trajectory,) = read_trajectories(run.path)
    assert (trajectory.name, trajectory.sequence) == ("H-GA-OH", "GA")
    assert trajectory.positions.shape[1] == 10
    domain = Domain.of([trajectory.system.residues])
    assert (domain.first, domain.last) == (("free",), ("free",))
    free, capped = build_peptide(Peptide("AG", is_capped=False), 0), capped_peptide("AG", 0)
    assert domain.objections(build_system(free).residues) == []
    assert "begins with ACE" in domain.objections(build_system(capped).residues)[0]
    with pytest.raises(InputError, match="no single amino acid with both ends free"):
        one_run(tmp_path, sequence="H-A-OH").run()


# force field


@pytest.mark.parametrize("sequence", ["A", "K", "AGSV"])
def test_implicit_solvent_is_that_of_the_force_field(sequence):
    """GBSAOBCForce against the CustomGBForce that OpenMM makes for OBC2."""
    structure = capped_peptide(sequence, 2)
    force_field = app.ForceField("amber14/protein.ff14SB.xml", "implicit/obc2.xml")
    custom = force_field.createSystem(peptide_topology(structure), constraints=app.HBonds)
    energies, forces = [], []
    for system in (custom, peptide_system(structure)):
        integrator = openmm.VerletIntegrator(0.001)
        platform = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(system, integrator, platform)
        context.setPositions(structure.positions / 10.0)
        state = context.getState(getEnergy=True, getForces=True)
        energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        forces.append(state.getForces(asNumpy=True)._value)
    assert energies[0] == pytest.approx(energies[1], abs=3e-4)
    np.testing.assert_allclose(forces[0], forces[1], atol=1e-2)


# runs


def one_run(folder, settings=QUICK, sequence="A"):
    folder.mkdir(exist_ok=True)
    return PeptideRun(
        sequence, 300.0, 0, settings, folder / f"{Peptide.parse(sequence).name}_300K_r0.npz"
    )


class KilledError(Exception):
    pass


def interrupt_after(frames):
    left = iter(range(frames - 1))

    def on_step():
        if next(left, None) is None:
            raise KilledError

    return on_step


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_interrupted_run_ends_bit_for_bit_the_same(tmp_path, monkeypatch, platform):
    monkeypatch.setattr(peptides, "_SAVE_SECONDS", 0.0)
    if platform == "CPU":
        monkeypatch.setattr(peptides, "_LARGEST_REFERENCE", 0)
    whole, parts = one_run(tmp_path / "whole"), one_run(tmp_path / "parts")
    whole.run()
    for frames in (2, 4):
        with pytest.raises(KilledError):
            parts.run(interrupt_after(frames))
        assert not parts.path.exists()
    seen = []
    parts.run(lambda: seen.append(1))
    assert len(seen) == QUICK.frames
    assert parts.path.read_bytes() == whole.path.read_bytes()
    assert [path.name for path in parts.path.parent.iterdir()] == [parts.path.name]
    (trajectory,) = read_trajectories(whole.path)
    assert json.loads(trajectory.metadata["provenance"])["platform"] == platform


def test_contents_of_a_run(tmp_path):
    run = one_run(tmp_path, sequence="GA")
    run.run()
    (trajectory,) = read_trajectories(run.path)
    assert (trajectory.name, trajectory.sequence) == ("Ace-GA-Nme", "GA")
    assert (len(trajectory), trajectory.dt_ps, trajectory.temperature_K) == (5, 0.1, 300.0)
    first, second = trajectory.system.bonds.T
    frames = trajectory.positions
    lengths = np.linalg.norm(frames[:, first] - frames[:, second], axis=-1)
    assert 1.15 < lengths.min() < lengths.max() < 1.65
    assert np.linalg.norm(np.diff(frames, axis=0), axis=-1).mean() > 0.05
    provenance = json.loads(trajectory.metadata["provenance"])
    assert provenance["implicit_solvent"] == "OBC2"
    assert provenance["openmm"] == openmm.Platform.getOpenMMVersion()
    assert run.is_done()


def test_runs_differ_by_replica_and_temperature(tmp_path):
    frames = []
    for temperature, replica in ((300.0, 0), (300.0, 1), (400.0, 0)):
        path = tmp_path / f"Ace-G-Nme_{temperature:g}K_r{replica}.npz"
        PeptideRun("G", temperature, replica, QUICK, path).run()
        frames.append(read_trajectories(path)[0].positions)
    assert np.abs(frames[0] - frames[1]).max() > 0.1
    assert np.abs(frames[0] - frames[2]).max() > 0.1


def test_other_settings_are_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.setattr(peptides, "_SAVE_SECONDS", 0.0)
    with pytest.raises(KilledError):
        one_run(tmp_path).run(interrupt_after(2))
    longer = PeptideSettings(frames=6, interval_ps=0.1, equilibration_ps=0.1)
    with pytest.raises(ConfigError, match="generated differently: frames is 5 instead of 6"):
        one_run(tmp_path, longer).run()
    one_run(tmp_path).run()
    assert one_run(tmp_path).is_done()
    with pytest.raises(ConfigError, match="frames is 5 instead of 6; choose another directory"):
        one_run(tmp_path, longer).is_done()
    one_run(tmp_path).path.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="was not written by this generator"):
        one_run(tmp_path).is_done()


def test_damaged_state_is_refused(tmp_path):
    (tmp_path / ".Ace-A-Nme_300K_r0.state").write_bytes(b"damaged")
    with pytest.raises(ModelFileError, match=r"cannot be read .* remove it to begin anew"):
        one_run(tmp_path).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0; .* of at least 1"),
        ({"interval_ps": 0.0}, "interval_ps=0.0; it must be a multiple of 0.002"),
        ({"interval_ps": 0.003}, "interval_ps=0.003"),
        ({"equilibration_ps": -1.0}, "equilibration_ps=-1.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        PeptideSettings(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "replicas=0"),
        ({"temperatures_K": [-5.0]}, "temperature=-5.0"),
        ({"temperatures_K": [300.0, 300.0]}, "given twice"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_generator_refuses(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        generate_peptides(["A"], tmp_path, QUICK, **options)


@pytest.mark.slow
def test_one_failure_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(pool._Worker, "run", pool_process)
    (tmp_path / ".Ace-A-Nme_300K_r0.state").write_bytes(b"damaged")
    with pytest.raises(PredictionError, match=r"1 of 2 runs failed.*\n  Ace-A-Nme_300K_r0: the"):
        generate_peptides(["A", "G"], tmp_path, QUICK)
    assert (tmp_path / "Ace-G-Nme_300K_r0.npz").exists()


@pytest.mark.slow
def test_command(tmp_path):
    arguments = ["peptides", "G", "--out", str(tmp_path), "--interval", "0.1", "--equilibrate", "0"]
    runner = CliRunner()
    result = runner.invoke(command, [*arguments, "--ns", "0.0003", "--temperature", "400"])
    assert result.exit_code == 0, result.output
    (trajectory,) = read_trajectories(tmp_path)
    assert (len(trajectory), trajectory.temperature_K) == (3, 400.0)
    refused = runner.invoke(command, [*arguments, "--ns", "0.00025"])
    assert "ns=0.00025; it must be a multiple of 0.0001" in str(refused.exception)
