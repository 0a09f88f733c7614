"""One data structure for labelled molecular frames, whatever file they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc.electrons import ElectronicState, electronic_state, is_electronic, is_total
from mlmd_calc.errors import InputError
from mlmd_calc.wording import counted

FloatArray: TypeAlias = NDArray[np.floating]
Float64Array: TypeAlias = NDArray[np.float64]

READ_IN: Final = "read_in"
"""Entry of the metadata: units of energies and forces, as ``"kcal/mol, kcal/mol/Å"``, in which
numbers were read because nothing states any. Missing where that is eV and eV/Å."""


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
        Provenance (reference method, seeds, SMILES, source file).
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
        if self.numbers.ndim != 1:
            raise InputError(
                f"molecule {self.name!r}: atomic numbers have shape {self.numbers.shape}, expected "
                "one for each atom; all frames of a molecule have the same atoms in the same order"
            )
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
        for key in ("positions", *expected):
            value = getattr(self, key)
            if value is not None and value.dtype.kind not in "iuf":
                raise InputError(
                    f"molecule {self.name!r}: {key} are of type {value.dtype}; give real numbers"
                )
            if value is not None:
                refuse_half_precision(f"molecule {self.name!r}: {key}", value)
        if self.dt_fs is not None and not 0.0 < self.dt_fs < np.inf:
            raise InputError(
                f"molecule {self.name!r}: the time between frames is {self.dt_fs} fs; it must be "
                "above 0"
            )

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        # Not the arrays, which fill pages.
        formula = ase.Atoms(self.numbers).get_chemical_formula()
        names = ("energies", "forces", "velocities")
        known = ", ".join(name for name in names if getattr(self, name) is not None)
        frames = counted(len(self), "frame")
        return f"<MoleculeFrames {self.name}: {frames} of {formula}{known and f' with {known}'}>"

    def where_labels_are(self, otherwise: str) -> str:
        """Say under which names labels may be that are missing here, or something else if none."""
        others = self.metadata.get("left_out")
        return f"its file has {others}; give these options" if others else otherwise

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

        return replace(
            self,
            positions=self.positions[index],
            forces=take(self.forces),
            energies=take(self.energies),
            velocities=take(self.velocities),
            segment=None if self.segment is None else self.segment[index],
        )


def refuse_half_precision(what: str, values: NDArray[Any]) -> None:
    """Refuse numbers of which half precision has left too few digits.

    It rounds positions to 0.004 Å, which changes forces of bonds by 0.1 eV/Å, and total energies to
    some eV.
    """
    if values.dtype == np.float16:
        raise InputError(
            f"{what} are in half precision (float16), which rounds positions to 0.004 Å and "
            "energies to some eV; store them in single or double precision, from where they were "
            "computed"
        )


def stated_state(
    where: str, stated: Mapping[str, Any], frames: int, *, charge: int | None = None
) -> ElectronicState:
    """Charge and multiplicity of frames by the numbers that stand beside them in a file.

    Parameters
    ----------
    where
        The file, the beginning of a message.
    stated
        Numbers by name, as in `mlmd_calc.electrons`; one for all frames, or equal ones for each.
    frames
        Number of frames.
    charge
        Total charge in e that is known from elsewhere; None: nothing.

    Raises
    ------
    InputError
        If they contradict each other, or differ from frame to frame.
    """
    info = {
        key: _common(where, key, np.asarray(value), frames)
        for key, value in stated.items()
        if is_electronic(key)
    }
    try:
        return electronic_state(ase.Atoms(info=info), charge)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _common(where: str, key: str, values: NDArray[Any], frames: int) -> Any:
    """Return the number that holds for all frames; what is no total stays as it is."""
    if values.size == 1:
        return values.item()
    if not is_total(key) or values.shape not in ((frames,), (frames, 1)):
        return values
    if key in ("q", "Q") and not values.any():
        return values  # whatever it means, it is no charge
    different = np.unique(values).tolist()
    if len(different) > 1:
        raise InputError(
            f"{where}: {key} differs from frame to frame ({different[0]}, {different[1]}, ...); "
            "write a file for each charge and multiplicity"
        )
    return different[0]
