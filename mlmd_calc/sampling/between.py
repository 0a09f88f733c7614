"""Frames between two given structures of one molecule, drawn by an interpolator."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from mlmd_calc.biomolecules import BondedStructure, MolecularSystem, build_system
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.geometry.superposition import align
from mlmd_calc.options import LARGEST_COUNT, whole_number
from mlmd_calc.propagation.atmos import check_molecule, trained_stride_ps
from mlmd_calc.sampling.quality import FrameFaults, FrameGuard, FrameQuality
from mlmd_calc.sampling.rollouts import SamplerOptions, make_rollout
from mlmd_calc.sampling.trajectories import generators_of
from mlmd_calc.sampling.trajectory_file import topology_of
from mlmd_calc.zoo import ATMOSModel

_UNREACHABLE: Final = {
    "flipped": "is a mirror image of the first",
    "isomerised": "has a peptide bond of the other kind, cis or trans, than the first",
}
"""What no dynamics changes."""
_OF_THE_FILE: Final = ("ref_pos", "residue_index")
"""Features that may differ: by positions, where a ligand has no SMILES, and numbers of residues."""


@dataclass(frozen=True)
class Between:
    """Trajectories that begin and end in given structures.

    Attributes
    ----------
    structure
        The first structure without water and ions, whose atoms the frames have.
    frames
        ``(t, f, n, 3)`` Å, both ends included; each is superposed on the one before. Hydrogens,
        those of the end as well, are carried along from the first structure.
    interval_ps
        Time between frames.
    steps
        ``(t, f - 1)`` RMSD in Å of heavy atoms from one frame to the next. The last is from the
        last frame drawn to the end: where it exceeds the others, the end is farther away than the
        model goes in that time.
    guard
        What was refused.
    quality
        What is wrong with the frames that were drawn and kept.
    notes
        Sentences on what was left out or assumed.
    """

    structure: BondedStructure
    frames: NDArray[np.float64]
    interval_ps: float
    steps: NDArray[np.float64]
    guard: FrameGuard
    quality: FrameQuality
    notes: tuple[str, ...]


def draw_between(
    model: ATMOSModel,
    first: BondedStructure,
    last: BondedStructure,
    *,
    count: int,
    seed: int,
    redraws: int,
    sampler: SamplerOptions | None = None,
    beyond_training: bool = False,
) -> Between:
    """Draw trajectories from one structure to another.

    Parameters
    ----------
    model
        An interpolator; the number of its steps is that of the intervals.
    first, last
        Both ends, of the same molecule; the order of atoms may differ.
    count
        Number of trajectories.
    seed
        Of all random numbers.
    redraws
        How often a frame that no simulation would visit is drawn again.
    sampler
        What of the sampler of the model is changed.
    beyond_training
        Take molecules, too, that the model was not trained on.

    Raises
    ------
    ConfigError
        If the model is not an interpolator, or a number is out of range.
    InputError
        If the structures are of different molecules or no dynamics leads from one to the other, or
        the model does not know the molecule.
    PredictionError
        If a frame is not finite, or all draws of one are refused (RefusedFramesError).
    """
    if not model.network.config.max_remaining:
        raise ConfigError(
            f"the model {model.name!r} is not an interpolator "
            "(max_remaining=0); give one that is, such as atmos-peptides-interpolator"
        )
    whole_number("count", count, 1, LARGEST_COUNT)
    whole_number("redraws", redraws, 0)
    system = build_system(first)
    end = _end(system, first, last)
    notes = (*system.notes, *check_molecule(model, system, beyond_training))
    interval_ps = trained_stride_ps(model, None)
    guard = FrameGuard(system, first)
    options = SamplerOptions() if sampler is None else sampler
    rollout = make_rollout(model, system, first, interval_ps, options, guard, redraws)
    starts, ends = (
        torch.from_numpy(frame).repeat(count, 1, 1) for frame in (system.reference, end)
    )
    chain = [starts, *rollout.fill(starts, ends, generators_of(seed, count))]
    quality = FrameQuality(system, first)
    for drawn in chain[1:]:
        quality.add(drawn.numpy())
    chain.append(align(ends, chain[-1], ends.new_ones(ends.shape[:2])))
    frames = torch.stack(chain, dim=1).numpy()
    steps = np.sqrt(np.square(np.diff(frames, axis=1)).sum(axis=3).mean(axis=2))
    inside = np.setdiff1d(np.arange(len(first)), system.left_out)
    whole = system.restore(frames, first.positions)[..., inside, :]
    topology = topology_of(first, inside)
    return Between(topology, whole, interval_ps, steps, guard, quality, notes)


def _end(
    system: MolecularSystem, first: BondedStructure, last: BondedStructure
) -> NDArray[np.float64]:
    """Heavy atoms of the last structure in the order of the network, ``(a, 3)`` Å."""
    other = build_system(last)
    for entry in fields(system.features):
        ours, theirs = (getattr(each.features, entry.name) for each in (system, other))
        if entry.name not in _OF_THE_FILE and not _equal(ours, theirs):
            raise InputError(
                f"the two structures differ in {entry.name}: they must be of one molecule with the "
                f"same protonation, but have {_residues(first)} and {_residues(last)}"
            )
    end = system.exchange_arms(torch.from_numpy(other.reference)[None]).numpy()
    faults = FrameFaults(system, first)(end)
    for name, reason in _UNREACHABLE.items():
        if faults[name].any():
            raise InputError(f"the last structure {reason}, so that no dynamics leads there")
    reached: NDArray[np.float64] = end[0]
    return reached


def _equal(first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    return bool(torch.equal(first, second))


def _residues(structure: BondedStructure) -> str:
    return "-".join(structure.residue_names)
