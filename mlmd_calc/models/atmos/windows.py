"""Windows of atoms: each block of consecutive atoms attends to a wider block around it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AtomWindows:
    """Division of a sequence of atoms into windows.

    Window t holds the query atoms from ``t * n_queries`` on and ``n_keys`` key atoms, the first of
    them ``before`` atoms earlier. Slots outside the sequence hold zeros.

    Attributes
    ----------
    n_atoms
        Length of the sequence.
    n_queries, n_keys
        Slots per window.
    before
        Key atoms before the first query atom of a window.
    """

    n_atoms: int
    n_queries: int
    n_keys: int
    before: int

    @classmethod
    def of(cls, n_atoms: int, n_queries: int, n_keys: int) -> AtomWindows:
        """Divide a sequence into windows with the keys centred on the queries.

        A sequence so short that every atom sees every other one becomes a single window without
        empty slots, which gives the same attention at a fraction of the cost.
        """
        before = (n_keys - n_queries) // 2
        last_start = (n_atoms - 1) // n_queries * n_queries
        if last_start <= before and n_atoms <= n_keys - before:
            return cls(n_atoms, n_atoms, n_atoms, 0)
        return cls(n_atoms, n_queries, n_keys, before)

    @property
    def count(self) -> int:
        """Number of windows."""
        return -(-self.n_atoms // self.n_queries)

    @property
    def is_whole(self) -> bool:
        """Whether a single window holds the sequence and nothing else."""
        return self.n_atoms == self.n_queries == self.n_keys

    def queries(self, x: Tensor) -> Tensor:
        """Map ``(..., a, c)`` to ``(..., windows, queries, c)``."""
        if self.is_whole:
            return x.unsqueeze(-3)
        extra = self.count * self.n_queries - self.n_atoms
        padded = functional.pad(x, (0, 0, 0, extra))
        return padded.view(*x.shape[:-2], self.count, self.n_queries, x.shape[-1])

    def keys(self, x: Tensor) -> Tensor:
        """Map ``(..., a, c)`` to ``(..., windows, keys, c)``."""
        if self.is_whole:
            return x.unsqueeze(-3)
        after = (self.count - 1) * self.n_queries + self.n_keys - self.before - self.n_atoms
        padded = functional.pad(x, (0, 0, self.before, after))
        return padded.unfold(-2, self.n_keys, self.n_queries).transpose(-1, -2)

    def join(self, x: Tensor) -> Tensor:
        """Map ``(..., windows, queries, c)`` back to ``(..., a, c)``."""
        return x.flatten(-3, -2)[..., : self.n_atoms, :]
