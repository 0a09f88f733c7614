"""Steering puts right what is wrong, and leaves alone what is not."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch

from mlmd_calc.biomolecules import BondedStructure, MolecularSystem, build_system, steering
from mlmd_calc.biomolecules.limits import GeometryLimits
from mlmd_calc.biomolecules.steering import Steering
from mlmd_calc.data.biomolecules import structure_from_smiles
from mlmd_calc.data.biomolecules.peptides import capped_peptide
from mlmd_calc.geometry.stereochemistry import chirality_flips, dihedrals
from mlmd_calc.sampling.quality import FAULTS, FrameFaults


@pytest.fixture(scope="module")
def structure() -> BondedStructure:
    return capped_peptide("KVFT", 0)


@pytest.fixture(scope="module")
def system(structure: BondedStructure) -> MolecularSystem:
    return build_system(structure)


def _disturbed(system: MolecularSystem, size: float, count: int = 6) -> torch.Tensor:
    noise = np.random.default_rng(3).normal(size=(count, 1, len(system.atoms), 3))
    return torch.from_numpy(system.reference + size * noise)


def _settled(steer: Steering, frames: torch.Tensor) -> torch.Tensor:
    """What the steps of a sampler make of a prediction that does not change."""
    for _ in range(20):
        frames = steer(frames, 0.1)
    return frames


def test_what_is_right_stays(structure: BondedStructure, system: MolecularSystem) -> None:
    frames = _disturbed(system, 0.01)
    assert not any(
        found.any() for found in FrameFaults(system, structure)(frames[:, 0].numpy()).values()
    )
    assert torch.equal(Steering(system, structure.positions)(frames, 0.1), frames)


def test_what_is_wrong_is_put_right(structure: BondedStructure, system: MolecularSystem) -> None:
    frames = _disturbed(system, 0.25)
    judge = FrameFaults(system, structure)
    before = judge(frames[:, 0].numpy())
    assert {name for name in FAULTS if before[name].any()} >= {"bonds", "angles", "contacts"}
    steered = _settled(Steering(system, structure.positions), frames)[:, 0].numpy()
    after = judge(system.exchange_arms(torch.from_numpy(steered)).numpy())
    assert {name for name in FAULTS if after[name].any()} == set()


def test_a_mirror_image_is_turned_back(system: MolecularSystem) -> None:
    centres = system.chirality_centres
    alpha = next(k for k in range(len(centres)) if centres[k, 0] in system.alpha_carbons)
    centre, *arms = centres[alpha]
    frame = system.reference.copy()
    # Through the plane of its neighbours, by a little more than it is away from it.
    normal = np.cross(frame[arms[1]] - frame[arms[0]], frame[arms[2]] - frame[arms[0]])
    normal /= np.linalg.norm(normal)
    frame[centre] -= 1.5 * ((frame[centre] - frame[arms[0]]) @ normal) * normal
    assert chirality_flips(frame[None], system.reference, centres[[alpha]])[0] == 1
    steered = _settled(Steering(system), torch.from_numpy(frame)[None, None])[0].numpy()
    assert chirality_flips(steered, system.reference, centres[[alpha]])[0] == 0


def test_names_of_equal_arms_are_not_forced(system: MolecularSystem) -> None:
    """Exchanged methyl groups of valine are as good as they are."""
    ((first, second),) = system.equal_arms[:, 4:]
    frame = system.reference.copy()
    frame[[first, second]] = frame[[second, first]]
    frames = torch.from_numpy(frame)[None, None]
    steered = Steering(system)(frames, 0.1)
    assert (steered - frames).abs().max() < 0.05


def test_a_peptide_bond_half_way_to_cis_goes_back(system: MolecularSystem) -> None:
    axis, end, last = system.omega[1, 1:]
    turned = system.reference.copy()
    line = turned[end] - turned[axis]
    line /= np.linalg.norm(line)
    arm = turned[last] - turned[end]
    # A turn of 110 degrees about the bond.
    angle = np.radians(110.0)
    turned[last] = turned[end] + (
        np.cos(angle) * arm
        + np.sin(angle) * np.cross(line, arm)
        + (1.0 - np.cos(angle)) * (line @ arm) * line
    )
    omega = system.omega[[1]]
    assert abs(dihedrals(turned[None], omega)[0, 0]) < np.pi / 2
    steered = _settled(Steering(system), torch.from_numpy(turned)[None, None])[0].numpy()
    assert abs(dihedrals(steered, omega)[0, 0]) > np.pi / 2


def test_above_an_angstrom_of_noise_nothing_is_done(system: MolecularSystem) -> None:
    frames = _disturbed(system, 0.5)
    steer = Steering(system)
    assert torch.equal(steer(frames, 1.01), frames)
    assert not torch.equal(steer(frames, 0.99), frames)


def test_structures_do_not_depend_on_each_other(
    structure: BondedStructure, system: MolecularSystem
) -> None:
    frames = _disturbed(system, 0.3)
    steer = Steering(system, structure.positions)
    together = steer(frames, 0.1)
    alone = torch.cat([steer(frame[None], 0.1) for frame in frames])
    assert torch.equal(together, alone)


def test_dtype_is_kept_and_what_is_not_finite_left(system: MolecularSystem) -> None:
    frames = _disturbed(system, 0.3).float()
    steer = Steering(system)
    assert steer(frames, 0.1).dtype == torch.float32
    frames[2, 0, 5] = torch.nan
    assert torch.equal(steer(frames, 0.1).isnan(), frames.isnan())


def test_hydrogens_push_the_atoms_they_belong_to() -> None:
    """The ends of a chain that is bent back: heavy atoms are far enough apart, hydrogens not."""
    structure = structure_from_smiles("CCCCC")
    system = build_system(structure)
    limits = GeometryLimits(system)
    chain = ase.Atoms("C5", positions=system.reference)
    for first in range(2):
        chain.set_dihedral(*range(first, first + 4), 40.0, indices=range(first + 3, 5))
    frame = chain.positions

    def contacts(heavy: np.ndarray) -> int:
        whole = system.restore(heavy, structure.positions)[limits.inside]
        return len(limits.contacts(whole)[0])

    steered = Steering(system, structure.positions)
    settled = _settled(steered, torch.from_numpy(frame)[None, None])[0, 0].numpy()
    assert len(GeometryLimits(system, hydrogens=False).contacts(frame)[0]) == 0
    assert contacts(frame) > 0
    assert contacts(settled) == 0


def test_atoms_without_bonds_pass() -> None:
    system = build_system(structure_from_smiles("C"))
    frames = torch.ones(2, 1, 1, 3)
    assert torch.equal(Steering(system)(frames, 0.1), frames)


def test_large_molecules_are_steered_alike(
    structure: BondedStructure, system: MolecularSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbours in space are found in another way than among all pairs."""
    frames = _disturbed(system, 0.3)
    few = Steering(system, structure.positions)(frames, 0.1)
    monkeypatch.setattr(steering, "_MANY", 0)
    many = Steering(system, structure.positions)(frames, 0.1)
    torch.testing.assert_close(many, few, rtol=0, atol=1e-12)
