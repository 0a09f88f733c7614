"""One data structure for labelled molecular frames, whatever file they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlmd_calc.electrons import ElectronicState
from mlmd_calc.errors import InputError

FloatArray: TypeAlias = NDArray[np.floating]
Float64Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class MoleculeFrames:
    """Frames of one molecule: fixed atoms, many geometries.

    Attributes
    ----------
    name
        Name of the molecule; the unit by which data are split.
    numbers
        Atomic numbers, ``(n,)``.
    positions
        ``(f, n, 3)`` Å.
    forces
        ``(f, n, 3)`` eV/Å, or None.
    energies
        ``(f,)`` eV, or None.
    velocities
        ``(f, n, 3)`` Å/fs, or None.
    charge, multiplicity
        Total charge in e and spin multiplicity 2S + 1.
    dt_fs
        Time between consecutive frames in fs, or None when frames are not a time series.
    segment
        ``(f,)`` integer label of the independent trajectory a frame belongs to, or None.
    metadata
        Provenance (teacher, seeds, SMILES, source file).
    """

    name: str
    numbers: NDArray[np.int64]
    positions: FloatArray
    forces: FloatArray | None = None
    energies: FloatArray | None = None
    velocities: FloatArray | None = None
    charge: int = 0
    multiplicity: int = 1
    dt_fs: float | None = None
    segment: NDArray[np.int64] | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.numbers)
        if n == 0:
            raise InputError(f"molecule {self.name!r} has no atoms")
        if self.positions.ndim != 3 or self.positions.shape[1:] != (n, 3):
            raise InputError(
                f"molecule {self.name!r}: positions have shape {self.positions.shape}, "
                f"expected (frames, {n}, 3)"
            )
        f = len(self.positions)
        expected = {
            "forces": (f, n, 3),
            "velocities": (f, n, 3),
            "energies": (f,),
            "segment": (f,),
        }
        for key, shape in expected.items():
            value = getattr(self, key)
            if value is not None and value.shape != shape:
                raise InputError(
                    f"molecule {self.name!r}: {key} have shape {value.shape}, expected {shape}; "
                    "correct the file"
                )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def state(self) -> ElectronicState:
        """Charge and multiplicity."""
        return ElectronicState(self.charge, self.multiplicity)

    def select(self, index: NDArray[np.integer] | slice) -> MoleculeFrames:
        """Return the frames at the given indices.

        Parameters
        ----------
        index
            Integer indices or a slice along the frame axis.
        """

        def take(array: FloatArray | None) -> FloatArray | None:
            return None if array is None else array[index]

        return MoleculeFrames(
            name=self.name,
            numbers=self.numbers,
            positions=self.positions[index],
            forces=take(self.forces),
            energies=take(self.energies),
            velocities=take(self.velocities),
            charge=self.charge,
            multiplicity=self.multiplicity,
            dt_fs=self.dt_fs,
            segment=None if self.segment is None else self.segment[index],
            metadata=self.metadata,
        )
