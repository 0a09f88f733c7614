"""What the models of trajectories were trained on, and the refusal of what lies beyond it."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mlmd_calc import load_propagator
from mlmd_calc.biomolecules import build_system, read_structure
from mlmd_calc.biomolecules.domain import Domain
from mlmd_calc.biomolecules.pdb import format_structure
from mlmd_calc.biomolecules.reader import structure_from_pdb
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.zoo import ModelCard, list_models

pytest.importorskip("rdkit", reason="rdkit builds peptides")

from peptide_structures import sequence_structure, without, write_dipeptide

from mlmd_calc.data.biomolecules.peptides import Peptide, build_peptide, capped_peptide

SHIPPED = [card for card in list_models() if card.kind == "atmos"]


@pytest.fixture(scope="module")
def domain():
    """One of capped peptides with one tautomer of histidine."""
    wide = SHIPPED[0].domain
    residues = tuple(name for name in wide.residues if name != "HID")
    return replace(wide, residues=residues, first=("ACE",), last=("NME",), longest=4)


def objections(domain, structure, **options):
    return domain.objections(build_system(structure, **options).residues)


@pytest.mark.parametrize("card", SHIPPED, ids=lambda card: card.name)
def test_shipped_models_know_what_they_were_trained_on(card):
    """The commands on the card name the sequences; those of single residues are all of them."""
    peptides = re.findall(r"mlmd data peptides ((?:[A-Z]+ )+)", card.command)
    sequences = {name for names in peptides for name in names.split()}
    assert len(sequences) >= 40
    for sequence in ("ACDE", "FGHI", "KLMN", "PQRS", "TVWY", "A", "P"):
        assert objections(card.domain, capped_peptide(sequence, 0)) == []
    # Training on longer ones need not have made the model good at them.
    assert card.domain.longest <= max(map(len, sequences))
    trained = set("".join(sequences))
    states = {"HIE": "HIS", "HID": "HIS"}
    assert len({states.get(name, name) for name in card.domain.residues}) == len(trained) == 20
    has_free_ends = "mlmd data peptides H-" in card.command
    for ends, cap in ((card.domain.first, "ACE"), (card.domain.last, "NME")):
        assert set(ends) == ({cap, "free"} if has_free_ends else {cap})


def changed(structure, residue, name, place):
    """The structure with one atom elsewhere."""
    positions = structure.positions.copy()
    atom = next(
        i
        for i in range(len(structure))
        if structure.residues[i] == residue and structure.names[i] == name
    )
    positions[atom] = place
    return replace(structure, positions=positions)


def turned_about_peptide_bond(structure, degrees):
    """What follows the first peptide bond, turned about it."""
    names = list(zip(structure.residues.tolist(), structure.names, strict=True))
    carbon, nitrogen = (structure.positions[names.index(key)] for key in ((0, "C"), (1, "N")))
    axis = (nitrogen - carbon) / np.linalg.norm(nitrogen - carbon)
    turn = Rotation.from_rotvec(np.radians(degrees) * axis)
    after = (structure.residues > 0) & (np.arange(len(structure)) != names.index((1, "N")))
    positions = structure.positions.copy()
    positions[after] = turn.apply(positions[after] - nitrogen) + nitrogen
    return replace(structure, positions=positions)


def test_everything_else_is_beyond(domain, tmp_path):
    plain = capped_peptide("A", 0)
    assert objections(domain, turned_about_peptide_bond(plain, 30.0)) == []
    cis = turned_about_peptide_bond(plain, 180.0)
    assert objections(domain, cis) == ["the peptide bond before ALA 2 of chain A is cis"]
    mirror = replace(plain, positions=plain.positions * [1.0, 1.0, -1.0])
    [reason] = objections(domain, mirror)
    assert reason == "ALA 2 of chain A is the mirror image of the natural one at CA"
    [reason] = objections(domain, capped_peptide("AGAGA", 0))
    assert reason == "the chain of ACE 1 of chain A has 5 amino acids; known are 1 to 4"
    free = objections(domain, sequence_structure("AGA"))
    assert free == [
        "the chain begins without a cap and neutral at ALA 1 of chain A; known is ACE",
        "the chain ends without a cap and neutral at ALA 3 of chain A; known is NME",
    ]
    [reason] = objections(domain, structure_from_smiles("CCO"))
    assert reason == "MOL 1 of chain 1 is not an amino acid, and the model knows nothing else"
    complexed = read_structure(write_dipeptide(tmp_path / "c.pdb", complexed=True))
    assert len(objections(domain, complexed)) == 2  # the two ethanols; water and ions do not count


def test_ends_are_charged_and_whole(domain):
    """Fragments that are cut out of a chain lack OXT, and rings have no ends."""
    free = replace(domain, first=("ACE", "free"), last=("NME", "free"))
    whole = build_peptide(Peptide.parse("H-AGA-OH"), 0)
    assert objections(free, whole) == []
    cut = without(whole, [whole.names.index("OXT")])
    reasons = ["the chain ends without OXT or a cap at ALA 3 of chain A; known is NME or free"]
    assert objections(free, cut) == reasons
    known = Domain.of([build_system(cut).residues])
    assert (known.last, objections(known, cut)) == (("cut",), [])
    first, second = objections(free, sequence_structure("AGA"))
    assert "begins without a cap and neutral at ALA 1 of chain A; known is ACE or free" in first
    assert "ends without a cap and neutral at ALA 3 of chain A; known is NME or free" in second


def test_short_chains_with_free_ends_are_others_than_capped_ones():
    """Of one amino acid a zwitterion is another molecule than one with both caps."""
    structures = [build_peptide(Peptide.parse(text), 0) for text in ("A", "H-AG-OH")]
    known = Domain.of([build_system(structure).residues for structure in structures])
    assert (known.shortest, known.shortest_free) == (1, 2)
    assert "chains from ACE or free to NME or free, of 2 or more if free" in str(known)
    for domain in (known, *(card.domain for card in SHIPPED)):
        assert [objections(domain, structure) for structure in structures] == [[], []]
        assert objections(domain, build_peptide(Peptide.parse("H-A-OH"), 0)) == [
            "the chain of ALA 1 of chain A has 1 amino acid and an end without a cap; known are "
            "such chains of 2 and more"
        ]


def test_chains_with_one_cap_are_others_than_those_with_two_or_none():
    capped, free = (build_peptide(Peptide.parse(text), 0) for text in ("AG", "H-AG-OH"))
    # Without hydrogens the end is that of pH 7.
    heavy = without(capped, np.flatnonzero(capped.numbers == 1).tolist())
    lines = format_structure(heavy).splitlines()
    half = structure_from_pdb("\n".join(line for line in lines if " ACE " not in line))
    both = [build_system(structure).residues for structure in (capped, free)]
    for domain in (Domain.of(both), *(card.domain for card in SHIPPED)):
        assert "has a cap at one end and none at the other" in " ".join(objections(domain, half))
    assert objections(Domain.of([*both, build_system(half).residues]), half) == []


@pytest.mark.parametrize("letter", ["I", "T"])
def test_side_chains_have_a_hand_too(domain, letter):
    """Exchange two neighbours of CB; CA stays natural."""
    plain = capped_peptide(letter, 0)
    first, second = {"I": ("CG1", "CG2"), "T": ("OG1", "CG2")}[letter]
    own = np.flatnonzero(plain.residues == 1)
    where = {plain.names[atom]: plain.positions[atom] for atom in own}
    swapped = changed(changed(plain, 1, first, where[second]), 1, second, where[first])
    [reason] = objections(domain, swapped)
    assert reason.endswith("the mirror image of the natural one at CB")


@pytest.mark.parametrize(
    ("letter", "charges", "state"),
    [
        ("D", {(2, "OD2"): -1}, "ASP"),
        ("D", {}, "ASH"),
        ("E", {}, "GLH"),
        ("K", {(2, "NZ"): 1}, "LYS"),
        ("K", {}, "LYN"),
        ("C", {}, "CYS"),
        ("C", {(2, "SG"): -1}, "CYM"),
        ("H", {}, "HIE"),
        ("H", {(2, "ND1"): 1}, "HIP"),
    ],
)
def test_protonation_is_known_by_its_name_in_amber(domain, letter, charges, state):
    residues = build_system(sequence_structure(f"G{letter}G", charges)).residues
    assert residues[1].name == state
    found = [text for text in domain.objections(residues) if "in training" in text]
    assert len(found) == (state not in domain.residues)


def test_the_other_tautomer_of_histidine_is_beyond(domain):
    structure = capped_peptide("H", 0)
    nitrogens = [structure.names.index(name) for name in ("NE2", "ND1")]
    bonds = structure.bonds.copy()
    [row] = np.flatnonzero(
        (bonds == nitrogens[0]).any(axis=1) & (structure.numbers[bonds] == 1).any(axis=1)
    )
    bonds[row] = np.where(bonds[row] == nitrogens[0], nitrogens[1], bonds[row])
    [reason] = objections(domain, replace(structure, bonds=bonds))
    assert reason == "HIS 2 of chain A is HID; in training there was HIE"


def test_histidine_without_hydrogens_is_that_of_training(domain):
    structure = capped_peptide("H", 0)
    bare = without(structure, np.flatnonzero(structure.numbers == 1).tolist())
    assert objections(domain, bare) == []


def test_tables_and_files_hold_the_domain(domain):
    card = ModelCard(kind="atmos", domain=domain)
    assert ModelCard.from_dict(card.to_dict()) == card
    assert "1 to 4 amino acids" in str(card)
    entries = domain.to_dict()
    for change, message in (
        ({"longest": 0}, "longest=0; it must be a whole number"),
        ({"shortest": 5}, "shortest=5 exceeds longest=4"),
        ({"residues": ["\x1b[2J"]}, "not names of residues"),
        ({"cis": "no"}, "cis='no'; it must be true or false"),
        ({"length": 3}, "unknown entries of the domain"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            Domain.from_dict({**entries, **change})
    with pytest.raises(ConfigError, match="lacks last"):
        Domain.from_dict({name: value for name, value in entries.items() if name != "last"})


def test_propagators_refuse_too_or_warn():
    longer = capped_peptide("AAAAAA", 0)
    with pytest.raises(InputError, match=r"has 6 amino acids.*beyond_training=True"):
        load_propagator("atmos-peptides", structure=longer)
    with pytest.warns(UserWarning, match="has 6 amino acids"):
        load_propagator("atmos-peptides", structure=longer, beyond_training=True)
    with pytest.raises(ConfigError, match="beyond_training is an option of ATMOS models"):
        load_propagator("atom-small-organics", beyond_training=True)


def test_domain_of_training_data(tmp_path):
    """What data hold is known, and nothing else."""
    structures = [capped_peptide(sequence, 0) for sequence in ("AH", "GAS")]
    own = Domain.of([build_system(structure).residues for structure in structures])
    assert own == Domain(
        residues=("ALA", "GLY", "HIE", "SER"),
        first=("ACE",),
        last=("NME",),
        shortest=2,
        longest=3,
    )
    assert [objections(own, structure) for structure in structures] == [[], []]
    assert "known are 2 to 3" in objections(own, capped_peptide("A", 0))[0]
    assert "in training there were other amino acids" in objections(own, capped_peptide("AV", 0))[0]
    complexed = read_structure(write_dipeptide(tmp_path / "complex.pdb", complexed=True))
    mixed = Domain.of([build_system(complexed).residues])
    assert mixed.ligands == any(
        residue.kind == "ligand" for residue in build_system(complexed).residues
    )
    assert objections(mixed, complexed) == []
    small = Domain.of([build_system(structure_from_smiles("CCO")).residues])
    assert (small.ligands, small.chains) == (True, 0)
    assert "there are 1 chains; known are at most 0" in objections(small, structures[0])
    mirrored = replace(structures[0], positions=structures[0].positions * [1.0, 1.0, -1.0])
    assert Domain.of([build_system(mirrored).residues]).mirrored
