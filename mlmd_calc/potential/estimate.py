"""Time and memory of a force call before one tries it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.optimize import nnls
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.mdet.compiled import KEPT_WEIGHTS
from mlmd_calc.potential.padding import PaddedBatch
from mlmd_calc.potential.potential import Potential
from mlmd_calc.potential.structure import Structure

_SPACING: Final = 1.5
"""Å between neighbouring atoms of what is tried."""

_CALLS: Final = 3
"""Calls of each size, of which the shortest counts."""

_LARGER: Final = 1.4
"""Second size that is tried, relative to the first."""


class Cost(NamedTuple):
    """What a force call takes.

    Attributes
    ----------
    seconds
        Wall time.
    bytes
        Peak memory of its tensors; Python and its libraries take 0.8 GB more.
    tried
        Sizes that were timed; the size itself if that is small, else two smaller ones, from which
        time and memory follow as sums of a part that grows as N² and one that grows as N³.
    """

    seconds: float
    bytes: float
    tried: tuple[int, ...]


def estimate(potential: Potential, atoms: int) -> Cost:
    """Estimate a force call of a molecule by smaller ones of the same model on this machine.

    Parameters
    ----------
    potential
        What would be called, on the CPU.
    atoms
        Number of atoms.

    Raises
    ------
    ConfigError
        If the number is not positive, or the potential is on another device.
    """
    if atoms < 1:
        raise ConfigError(f"atoms={atoms}; a molecule has at least 1")
    if potential.device.type != "cpu":
        raise ConfigError(f"device={str(potential.device)!r}; estimates are for device='cpu'")
    # The memory kept for larger molecules grows in another way.
    heads = potential.model.network.config.num_heads
    first = int((KEPT_WEIGHTS / heads) ** (1 / 3)) + 8
    sizes: tuple[int, ...] = (first, int(_LARGER * first))
    if atoms <= sizes[1]:
        sizes = (atoms,)
    seconds, memory = np.transpose([_try(potential, size) for size in sizes])
    return Cost(
        potential.n_rotations * _at(atoms, sizes, seconds), _at(atoms, sizes, memory), sizes
    )


def _at(atoms: int, sizes: tuple[int, ...], values: Any) -> float:
    """Continue what was found for one or two sizes to another one."""
    if sizes == (atoms,):
        return float(values[0])
    powers = [[(size / atoms) ** 2, (size / atoms) ** 3] for size in sizes]
    return float(nnls(np.array(powers), values)[0].sum())


def _try(potential: Potential, atoms: int) -> tuple[float, float]:
    """Shortest time and peak memory of calls."""
    side = np.arange(int(np.ceil(atoms ** (1 / 3))) + 1)
    lattice = np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3)[:atoms]
    molecule = Structure(np.full(atoms, 6), (_SPACING * lattice).astype(np.float64))
    batch = PaddedBatch.centred([molecule], potential.device)

    def call() -> None:
        potential.prediction(batch, potential.has_energy, True)

    with TensorMemory() as watch:
        call()
    return min(_seconds(call) for _ in range(_CALLS)), watch.peak


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class TensorMemory(TorchDispatchMode):
    """Bytes of all tensors that are made inside and alive at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        alive = self._alive
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        for key in [key for key, (reference, _) in alive.items() if reference.expired()]:
            del alive[key]
        self.peak = max(self.peak, sum(size for _, size in alive.values()))
        return out
