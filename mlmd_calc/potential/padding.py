"""Molecules of any sizes as one set of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlmd_calc.potential.structure import Structure


class PaddedBatch(NamedTuple):
    """Molecules padded to the largest; the fields are the first arguments of a network.

    Attributes
    ----------
    positions
        ``(b, n, 3)`` Å, float64.
    numbers
        ``(b, n)`` int64, 0 for padding.
    mask
        ``(b, n)`` bool, True for real atoms; None if there is no padding.
    charge, multiplicity
        ``(b,)`` int64.
    """

    positions: Tensor
    numbers: Tensor
    mask: Tensor | None
    charge: Tensor
    multiplicity: Tensor

    @classmethod
    def centred(cls, molecules: Sequence[Structure], device: torch.device) -> PaddedBatch:
        """Put molecules into one batch, each centred in double precision."""
        size = max(len(molecule) for molecule in molecules)
        positions = np.zeros((len(molecules), size, 3))
        numbers = np.zeros((len(molecules), size), dtype=np.int64)
        for b, molecule in enumerate(molecules):
            positions[b, : len(molecule)] = molecule.positions - molecule.positions.mean(axis=0)
            numbers[b, : len(molecule)] = molecule.numbers
        state = torch.tensor([(m.charge, m.multiplicity) for m in molecules], device=device)
        atoms = torch.from_numpy(numbers).to(device)
        padded = any(len(molecule) != size for molecule in molecules)
        return cls(
            positions=torch.from_numpy(positions).to(device),
            numbers=atoms,
            mask=atoms != 0 if padded else None,
            charge=state[:, 0],
            multiplicity=state[:, 1],
        )

    def repeat(self, copies: int) -> PaddedBatch:
        """Repeat every molecule, the copies side by side."""
        if copies == 1:
            return self
        return PaddedBatch._make(
            None if field is None else field.repeat_interleave(copies, dim=0) for field in self
        )

    def split(self, count: int) -> Iterator[PaddedBatch]:
        """Cut the batch into parts of at most ``count`` molecules."""
        if len(self.positions) <= count:
            yield self
            return
        for start in range(0, len(self.positions), count):
            yield PaddedBatch._make(
                None if field is None else field[start : start + count] for field in self
            )
