"""Keeps what a diffusion sampler draws within the limits of a molecule.

Sequences that a network has seen little of come out with a bond too long, a carbon atom turned over
or two atoms in one place. While the last Ångströms of noise are taken away, such places are put
right in every structure that the network predicts, and the network fits the rest of the molecule to
them in the steps that follow (steering at the time of inference, as Wohlwend et al., Boltz-1, 2024,
do by the gradients of potentials). What is right is left as it is.

The corrections are projections onto one limit at a time, averaged where an atom has several: the
position-based dynamics of Müller et al., J. Vis. Commun. Image Represent. 18, 109 (2007).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.biomolecules.limits import ANGLE_LIMIT, BOND_LIMIT, GeometryLimits
from mlmd_calc.biomolecules.system import MolecularSystem
from mlmd_calc.geometry.bonds import bond_lengths

_LARGEST_NOISE: Final = 1.0
"""Å; above this level a predicted structure is a mean of many, whose bonds need not be right."""

_MARGIN: Final = 0.6
"""Part of the limits of bonds and angles that structures are put within."""

_CONTACT_MARGIN: Final = 1.03
"""The same of the smallest distances."""

_SLACK: Final = 0.3
"""Å; atoms that are farther from each other are not looked at again until the next prediction."""

_FLATTEST: Final = 0.5
"""Smallest volume at a chirality centre over that of the reference."""

_PEPTIDE_BOND: Final = (0.9, 1.15)
"""Distance of the outer atoms of a peptide bond over that of the reference: trans it does not come
half-way to cis (0.78), nor cis to trans (1.29)."""

_MANY: Final = 300
"""Atoms beyond which contacts are looked for among neighbours in space, not in all pairs."""

_ROUNDS: Final = 10
_OVER_RELAXATION: Final = 1.2


class _Push(NamedTuple):
    """What some limits ask of atoms: displacements ``(b, m, 3)`` Å of atoms ``(m,)``."""

    atoms: Tensor
    displacements: Tensor


class _Distances(NamedTuple):
    """What distances may be: ``(m,)`` or ``(b, m)`` Å.

    Pairs ``(2, m)`` are places in `GeometryLimits.inside`.
    """

    pairs: Tensor
    shortest: Tensor
    longest: Tensor


class Steering:
    """Puts structures that a denoiser predicts right.

    Bonds and angles, the hands of tetrahedral carbon atoms, cis and trans peptide bonds, and
    contacts are brought within the limits that frames are judged by, and a little farther. Centres
    whose equal arms may be exchanged (`MolecularSystem.equal_arms`) keep the hand they have got.

    Parameters
    ----------
    system
        The molecule; its reference structure is right by definition.
    positions
        ``(n, 3)`` Å, a structure of the engine; contacts of hydrogens, placed as in it, are looked
        at, too. None: heavy atoms alone.

    Examples
    --------
    >>> import torch
    >>> from mlmd_calc.biomolecules import build_system
    >>> from mlmd_calc.biomolecules.steering import Steering
    >>> from mlmd_calc.data.biomolecules import structure_from_smiles
    >>> system = build_system(structure_from_smiles("CCO"))
    >>> stretched = 1.5 * torch.from_numpy(system.reference)[None, None]
    >>> steered = Steering(system)(stretched, 0.1)
    >>> bool((steered[0, 0, 0] - steered[0, 0, 1]).norm() < 1.7)
    True
    """

    def __init__(
        self, system: MolecularSystem, positions: NDArray[np.float64] | None = None
    ) -> None:
        self._system, self._positions = system, positions
        self._limits = limits = GeometryLimits(system, hydrogens=positions is not None)
        self._angles = torch.from_numpy(limits.angles).T
        widest = _MARGIN * ANGLE_LIMIT
        self._cosines = tuple(
            torch.from_numpy(np.cos(np.radians(np.clip(each, 0.0, 180.0))))
            for each in (limits.reference_angles - widest, limits.reference_angles + widest)
        )
        self._centres = torch.from_numpy(system.handed_centres)
        reference = torch.from_numpy(system.reference)
        arms = reference[self._centres[:, 1:]] - reference[self._centres[:, :1]]
        self._volumes = torch.linalg.det(arms)
        self._all_pairs: tuple[Tensor, Tensor] | None = None
        if len(limits.inside) <= _MANY:
            pairs, nearest = limits.all_contacts()
            self._all_pairs = torch.from_numpy(pairs).T, torch.from_numpy(nearest)
        self._carriers = torch.from_numpy(self._heavy_atoms_of(limits.inside))
        self._kept = self._kept_distances()

    def _heavy_atoms_of(self, atoms: NDArray[np.int64]) -> NDArray[np.int64]:
        """Heavy atoms of the network that atoms in the engine's order are or belong to."""
        system = self._system
        found = np.full(system.size, -1)
        found[system.atoms] = np.arange(len(system.atoms))
        found[system.hydrogens.hydrogens] = found[system.hydrogens.parents]
        carriers: NDArray[np.int64] = found[atoms]
        return carriers

    def _kept_distances(self) -> _Distances:
        """Those of bonds, and of the outer atoms of peptide bonds."""
        limits, system = self._limits, self._system
        outer = system.omega[:, [0, 3]]
        lengths, widths = limits.bonds.lengths, bond_lengths(system.reference, outer)
        change = _MARGIN * BOND_LIMIT
        shortest = np.concatenate([lengths - change, _PEPTIDE_BOND[0] * widths])
        longest = np.concatenate([lengths + change, _PEPTIDE_BOND[1] * widths])
        pairs = np.concatenate([limits.bonds.pairs, outer])
        places = np.searchsorted(limits.inside, system.atoms[pairs])
        return _Distances(*(torch.from_numpy(each) for each in (places.T, shortest, longest)))

    def __call__(self, predicted: Tensor, noise: float) -> Tensor:
        """Put structures right.

        Parameters
        ----------
        predicted
            ``(b, k, a, 3)`` Å, structures that a denoiser predicts.
        noise
            Å, the noise level of what it predicts them from; nothing is done above 1 Å.

        Returns
        -------
        Tensor
            Of the same shape, dtype and device. It is computed in float64 on the CPU, so that it
            does not depend on these. What is not finite is left as it is.
        """
        if noise > _LARGEST_NOISE or not bool(predicted.isfinite().all()):
            return predicted
        positions = predicted.flatten(0, 1).to("cpu", torch.float64, copy=True)
        offsets = self._offsets(positions)
        distances = self._distances(positions, offsets)
        for _ in range(_ROUNDS):
            pushes = [
                *self._at_distances(positions, offsets, distances),
                *self._at_angles(positions),
                *self._at_centres(positions),
            ]
            atoms = torch.cat([push.atoms for push in pushes])
            displacements = torch.cat([push.displacements for push in pushes], dim=1)
            asked = (displacements != 0.0).any(dim=-1, keepdim=True)
            if not bool(asked.any()):
                break
            total = torch.zeros_like(positions).index_add_(1, atoms, displacements)
            count = torch.zeros_like(total[..., :1]).index_add_(1, atoms, asked.to(total))
            positions += _OVER_RELAXATION * total / count.clamp_min(1.0)
        return positions.view(predicted.shape).to(predicted)

    def _offsets(self, positions: Tensor) -> Tensor:
        """Where atoms whose contacts are looked at are, ``(b, m, 3)`` Å from their heavy atoms."""
        if self._positions is None:
            return torch.zeros_like(positions)
        whole = self._system.restore(positions.numpy(), self._positions)[:, self._limits.inside]
        return torch.from_numpy(whole) - positions[:, self._carriers]

    def _distances(self, positions: Tensor, offsets: Tensor) -> _Distances:
        """Join what is to be kept, and contacts of atoms that are or may come too near.

        Contacts may have any distance in structures where the two are far from each other, so that
        none depends on what the others are.
        """
        pairs, nearest = self._near(positions[:, self._carriers] + offsets)
        kept, count = self._kept, len(positions)
        return _Distances(
            torch.cat([kept.pairs, pairs], dim=1),
            torch.cat([kept.shortest.expand(count, -1), _CONTACT_MARGIN * nearest], dim=1),
            torch.cat([kept.longest.expand(count, -1), torch.full_like(nearest, torch.inf)], dim=1),
        )

    def _near(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs ``(2, p)`` near each other in any structure, and how near they may be in each."""
        if self._all_pairs is not None:
            pairs, limits = self._all_pairs
            near = (atoms[:, pairs[0]] - atoms[:, pairs[1]]).norm(dim=-1) < limits + _SLACK
            chosen = near.any(dim=0)
            return pairs[:, chosen], near[:, chosen] * limits[chosen]
        found = [self._limits.contacts(frame, _SLACK) for frame in atoms.numpy()]
        joined, places = np.unique(
            np.concatenate([pairs for pairs, _ in found]), axis=0, return_inverse=True
        )
        rows = np.repeat(np.arange(len(found)), [len(limits) for _, limits in found])
        nearest = np.zeros((len(found), len(joined)))
        nearest[rows, places] = np.concatenate([limits for _, limits in found])
        return torch.from_numpy(joined).T, torch.from_numpy(nearest)

    def _at_distances(
        self, positions: Tensor, offsets: Tensor, distances: _Distances
    ) -> Iterator[_Push]:
        """Hydrogens push the heavy atoms they belong to."""
        atoms = positions[:, self._carriers] + offsets
        first, second = distances.pairs
        vectors = atoms[:, second] - atoms[:, first]
        first, second = self._carriers[distances.pairs]
        return _into_range(first, second, vectors, distances.shortest, distances.longest)

    def _at_angles(self, positions: Tensor) -> Iterator[_Push]:
        """Angles by the distance of their ends, whatever the bonds are."""
        first, middle, second = self._angles
        left, right = (
            (positions[:, end] - positions[:, middle]).norm(dim=-1) for end in (first, second)
        )
        squares, product = left.square() + right.square(), 2.0 * left * right
        lowest, highest = (
            (squares - product * cosine).clamp_min(0.0).sqrt() for cosine in self._cosines
        )
        vectors = positions[:, second] - positions[:, first]
        return _into_range(first, second, vectors, lowest, highest)

    def _at_centres(self, positions: Tensor) -> Iterator[_Push]:
        """Along the gradients of the volume, by a step that would make it large enough."""
        arms = positions[:, self._centres[:, 1:]] - positions[:, self._centres[:, :1]]
        one, two, three = arms.unbind(dim=2)
        gradients = torch.stack(
            [torch.linalg.cross(*pair) for pair in ((two, three), (three, one), (one, two))], dim=2
        )
        volumes = (one * gradients[:, :, 0]).sum(-1)
        lacking = (_FLATTEST - volumes / self._volumes).clamp_min(0.0) * self._volumes
        gradients = torch.cat([-gradients.sum(dim=2, keepdim=True), gradients], dim=2)
        # In a flat arrangement of short arms gradients vanish.
        steps = lacking / (gradients.square().sum(dim=(-1, -2)) + 1.0)
        yield _Push(self._centres.flatten(), (steps[..., None, None] * gradients).flatten(1, 2))


def _into_range(
    first: Tensor, second: Tensor, vectors: Tensor, lowest: Tensor, highest: Tensor
) -> Iterator[_Push]:
    """Move pairs of atoms, the two of each by the same, until distances are within a range.

    Parameters
    ----------
    first, second
        ``(p,)`` atoms.
    vectors
        ``(b, p, 3)`` Å, from the first to the second.
    lowest, highest
        ``(p,)`` or ``(b, p)`` Å.
    """
    distances = vectors.norm(dim=-1).clamp_min(1e-3)
    missing = distances.clamp(lowest, highest) - distances
    half = (0.5 * missing / distances)[..., None] * vectors
    yield _Push(first, -half)
    yield _Push(second, half)
