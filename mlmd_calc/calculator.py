"""MD-ET as an ASE calculator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import ase
import numpy as np
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
    register_calculator_class,
)
from numpy.typing import NDArray

from mlmd_calc.electrons import ElectronicState, as_integer, electronic_state
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.options import refuse_keywords, shown
from mlmd_calc.potential import Potential, Structure, structure_from_ase
from mlmd_calc.potential.options import ForceOptions
from mlmd_calc.zoo import Model

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NO_PRESSURE: Final = "isolated molecules have no pressure: use dynamics of constant volume"


class MDETCalculator(Calculator):
    """ASE calculator for MD-ET force fields.

    Results are ``energy`` and ``free_energy`` (eV, with the zero of the method the model learnt, so
    that differences alone mean something), ``forces`` (eV/Å) and, with more than one orientation
    per call, ``forces_std`` (eV/Å) and ``energy_std`` (eV): the standard deviation over
    orientations, a free measure of how far the model is from being a function of the molecule
    alone. With ``on_spread`` also ``spread`` (eV/Å) and, of each atom, ``forces_spread``: how far
    the model's own answers lie apart, which grows with the error of the forces.

    Parameters
    ----------
    model
        Name of a shipped model (see :func:`mlmd_calc.list_models`), a ``.safetensors`` file, a run
        directory of the MD-ET authors, ``hf://owner/repo/variant``, or a loaded model. None: the
        default shipped model.
    charge, multiplicity
        Total charge in e and spin multiplicity 2S + 1 of all structures. None: what the atoms say
        in ``atoms.info`` ("charge", "multiplicity" or "spin"), by initial charges or by initial
        magnetic moments, else 0 and 1. A disagreement is an error.
    **options
        ``setting``, ``device``, ``dtype``, ``forces``, ``rotation``, ``n_rotations``, ``seed``,
        ``remove_net_force``, ``remove_net_torque``, ``max_spread`` and ``on_spread`` of
        :class:`mlmd_calc.Potential`.

    Raises
    ------
    ConfigError
        If an option does not fit the model.
    InputError
        From calculations: periodic cells, unknown elements, impossible charge or multiplicity, no
        atoms, non-finite positions, distances beyond those of the training data.
    PredictionError
        From calculations: non-finite or absurd model output, or with ``on_spread="raise"`` a
        spread beyond ``max_spread``.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from mlmd_calc import MDETCalculator
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = MDETCalculator()
    >>> atoms.get_forces().shape
    (9, 3)
    """

    name = "mdet"

    implemented_properties: ClassVar[list[str]] = [  # type: ignore[misc]
        "energy",
        "free_energy",
        "forces",
        "forces_std",
        "energy_std",
        "spread",
        "forces_spread",
    ]

    def __init__(
        self,
        model: str | Model | None = None,
        *,
        charge: int | None = None,
        multiplicity: int | None = None,
        **options: Unpack[ForceOptions],
    ) -> None:
        refuse_keywords(options, ForceOptions.__annotations__, type(self).__name__)
        super().__init__(  # type: ignore[no-untyped-call]
            charge=charge, multiplicity=multiplicity
        )
        self.potential = Potential(model, **options)
        self._device = str(options.get("device", "auto"))
        missing = set()
        if not self.potential.has_energy:
            missing |= {"energy", "free_energy", "energy_std"}
        if self.potential.n_rotations == 1:
            missing |= {"forces_std", "energy_std"}
        if self.potential.spread_limit is None:
            missing |= {"spread", "forces_spread"}
        # An instance lists what it can answer; ASE refuses the rest.
        self.implemented_properties = [  # type: ignore[misc]
            name for name in type(self).implemented_properties if name not in missing
        ]

    def __repr__(self) -> str:
        """Model and options, those that the model card decided included."""
        options = {name: value for name, value in self._options().items() if value is not None}
        listed = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"{type(self).__name__}({listed})"

    @property
    def charge(self) -> int | None:
        """Total charge in e of all structures; None if ``atoms.info`` decides."""
        charge: int | None = self.parameters["charge"]
        return charge

    @property
    def multiplicity(self) -> int | None:
        """Spin multiplicity 2S + 1 of all structures; None if ``atoms.info`` decides."""
        multiplicity: int | None = self.parameters["multiplicity"]
        return multiplicity

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change ``charge`` or ``multiplicity``; all else is fixed when the calculator is made.

        Returns
        -------
        dict
            What changed.

        Raises
        ------
        ConfigError
            For any other option.
        InputError
            If a value is not an integer.
        """
        fixed = sorted(set(kwargs) - {"charge", "multiplicity"})
        if fixed:
            raise ConfigError(f"set() cannot change {', '.join(fixed)}; make a new calculator")
        values = {name: as_integer(name, value) for name, value in kwargs.items()}
        changed: dict[str, Any] = super().set(**values)  # type: ignore[no-untyped-call]
        if changed:
            self.reset()  # type: ignore[no-untyped-call]
        return changed

    def state_of(self, atoms: ase.Atoms) -> ElectronicState:
        """Charge and multiplicity that are used for these atoms.

        Raises
        ------
        InputError
            If atoms and calculator disagree.
        """
        return electronic_state(atoms, self.charge, self.multiplicity)

    def _structure(self, atoms: ase.Atoms | None) -> Structure:
        if atoms is None:
            raise InputError("there are no atoms yet; pass atoms or set atoms.calc first")
        return structure_from_ase(atoms, self.charge, self.multiplicity)

    def get_property(
        self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Return one result; what the model does not answer is refused as ASE expects it."""
        if name not in self.implemented_properties:
            known = ", ".join(self.implemented_properties)
            hint = f"; {_NO_PRESSURE}" if name == "stress" else ""
            raise PropertyNotImplementedError(
                f"{type(self).__name__} has no {name}, but {known}{hint}"
            )
        return super().get_property(  # type: ignore[no-untyped-call]
            name, atoms, allow_calculation
        )

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy", "forces"),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate the model; ASE calls this when a property is asked for.

        Energy and forces come from one network call whatever is asked for, so that both belong to
        the same orientation.
        """
        atoms = self.atoms if atoms is None else atoms
        # Whatever fails below, old results must not be taken for those of the new atoms.
        self.reset()  # type: ignore[no-untyped-call]
        result = self.potential.evaluate([self._structure(atoms)])[0]
        super().calculate(  # type: ignore[no-untyped-call]
            atoms, list(properties), list(system_changes)
        )
        self.results = result.named()
        if result.energy is not None:
            self.results["free_energy"] = result.energy

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """List what changed since the last calculation, charge and multiplicity included."""
        if not isinstance(atoms, ase.Atoms):
            raise InputError(f"{shown(atoms)} is not a molecule; pass ase.Atoms")
        changes: list[str] = super().check_state(  # type: ignore[no-untyped-call]
            atoms, tol=tol
        )
        last = self.atoms
        if last is not None and not changes and self.state_of(last) != self.state_of(atoms):
            changes.append("info")
        return changes

    def get_hessian(self, atoms: ase.Atoms | None = None) -> NDArray[np.float64]:
        """Symmetrised Jacobian of the unprojected forces.

        ``calc.potential.hessian(atoms)`` also tells how far it was from being symmetric.

        Parameters
        ----------
        atoms
            None: the atoms of the last calculation.

        Returns
        -------
        ndarray
            ``(3 n, 3 n)`` eV/Å², index 3·atom + axis.
        """
        return self.potential.hessian(
            self._structure(self.atoms if atoms is None else atoms)
        ).matrix

    def _options(self) -> dict[str, Any]:
        potential = self.potential
        return {
            "model": potential.model.source,
            "device": self._device,
            **potential.options,
            "charge": self.charge,
            "multiplicity": self.multiplicity,
        }

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """Return what identifies the calculation, JSON-able; trajectories store it."""
        return {**self._options(), "sha256": self.potential.model.sha256}

    def __reduce__(self) -> tuple[Any, ...]:
        model = self.potential.model
        if not model.source:
            raise ModelFileError(
                "a calculator is pickled by the name of its model, and this model exists in memory "
                "only; write it with mlmd_calc.zoo.save_model and make a calculator from the file"
            )
        return _restore, (self._options(), model.sha256, self.potential.state_dict())

    def __deepcopy__(self, memo: dict[int, Any]) -> MDETCalculator:
        # The model is never written to, so copies share it.
        copied = MDETCalculator(**{**self._options(), "model": self.potential.model})
        copied.potential.load_state_dict(self.potential.state_dict())
        return copied


def _restore(options: dict[str, Any], sha256: str, state: Mapping[str, Any]) -> MDETCalculator:
    """Rebuild a pickled calculator, which refers to its model by name and checksum."""
    calculator = MDETCalculator(**options)
    calculator.potential.model.check_unchanged(
        sha256, "the calculator was stored with", "make a new calculator"
    )
    calculator.potential.load_state_dict(state)
    return calculator


register_calculator_class("mdet", MDETCalculator)
