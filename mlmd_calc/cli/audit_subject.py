"""What `mlmd audit` looks at: a calculator or a propagator, by name, file or import path."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ase

from mlmd_calc import MDETCalculator
from mlmd_calc.analysis.audit.forces import ForceAudit
from mlmd_calc.analysis.audit.propagators import JumpConditions, PropagatorAudit
from mlmd_calc.analysis.audit.settings import AuditSettings
from mlmd_calc.cli.job import relax
from mlmd_calc.errors import ConfigError
from mlmd_calc.md.attached import AttachedCalculator, ForceModelCalculator, state_of
from mlmd_calc.optional import import_object
from mlmd_calc.propagation import ForceModel, Propagator
from mlmd_calc.propagation.load import load_propagator
from mlmd_calc.zoo import LoadedModel, Model, ModelCard, load_any_model

_WANTED: Final = (
    "name an ASE calculator, a propagator (mlmd_calc.propagation.Propagator), or what returns one "
    "of them when it is called without arguments"
)


@dataclass(frozen=True)
class Subject:
    """What is audited.

    Attributes
    ----------
    name
        What the user called it.
    calculator
        Forces and energies: what is audited, or what the propagator is compared with.
    propagator
        None for the audit of a calculator.
    """

    name: str
    calculator: Any
    propagator: Propagator | None = None

    @property
    def cards(self) -> list[ModelCard]:
        """Cards of the models that take part, so far as they are models of this package."""
        forces = getattr(self.calculator, "potential", None)
        if forces is None:
            forces = getattr(self.calculator, "force_model", None)
        models = [getattr(part, "model", None) for part in (self.propagator, forces)]
        return [model.card for model in models if isinstance(model, LoadedModel)]

    def audit(
        self,
        atoms: ase.Atoms,
        settings: AuditSettings,
        stride_fs: float | None = None,
        friction_per_ps: float | None = None,
    ) -> ForceAudit | PropagatorAudit:
        """Relax a molecule and prepare its audit.

        Raises
        ------
        ConfigError
            If stride or friction are given for a calculator, or none is known for a propagator.
        InputError, PredictionError
            If the molecule is refused, or breaks when it is relaxed.
        """
        atoms.calc = self.calculator
        state = state_of(atoms, self.calculator)
        forces = _force_model(atoms)
        # With the charge that the calculator takes it to have.
        moved = state.to_atoms()
        moved.calc = ForceModelCalculator(forces)
        relax(moved)
        state = replace(state, positions=moved.positions)
        if self.propagator is not None:
            self.propagator.check(state)
            conditions = JumpConditions.usual(self.propagator, stride_fs, friction_per_ps)
            return PropagatorAudit(self.propagator, forces, state.structure, settings, conditions)
        if stride_fs is not None or friction_per_ps is not None:
            raise ConfigError(
                f"--stride and --friction are options of propagators, and {self.name!r} is a "
                "force field; leave them out"
            )
        return ForceAudit(forces, state.structure, settings)


def find_subject(
    name: str, potential: str | None, options: dict[str, Any], *, seed: int
) -> Subject:
    """Load what is to be audited.

    Parameters
    ----------
    name
        A shipped name, a file or folder of a model, or ``package.module:name``.
    potential
        Force field that a propagator is compared with, named in the same way. None: its own.
    options
        Of an MD-ET force field, without those that were not given.
    seed
        Of its random orientations.

    Raises
    ------
    ConfigError
        If there is no such thing, or options do not fit it.
    """
    found = _found(name, options, seed)
    if not isinstance(found, Propagator):
        if potential is not None:
            raise ConfigError(
                f"--potential is an option of propagators, and {name!r} is a force field; leave it "
                "out"
            )
        return Subject(name, found)
    if potential is not None:
        calculator = _found(potential, options, seed)
        if isinstance(calculator, Propagator):
            raise ConfigError(f"--potential {potential!r} is a propagator; name a force field")
        return Subject(name, calculator, found)
    if found.potential is None:
        raise ConfigError(
            f"{name!r} does not tell the potential in which it moves molecules; give its force "
            "field with --potential"
        )
    if options:
        raise ConfigError(
            f"--{next(iter(options))} is an option of force fields, and {name!r} is a propagator "
            "with its own; leave it out, or name the force field with --potential"
        )
    return Subject(name, ForceModelCalculator(found.potential), found)


def _force_model(atoms: ase.Atoms) -> ForceModel:
    """Force model behind the calculator of atoms; one of ours takes many structures in one call."""
    if isinstance(atoms.calc, MDETCalculator):
        return atoms.calc.potential
    if isinstance(atoms.calc, ForceModelCalculator):
        return atoms.calc.force_model
    return AttachedCalculator(atoms)


def _found(name: str, options: dict[str, Any], seed: int) -> Any:
    """Return a calculator or a propagator."""
    if ":" in name and "://" not in name and not Path(name).exists():
        if options:
            raise ConfigError(
                f"--{next(iter(options))} is an option of MD-ET models, and {name!r} is an import "
                "path; leave it out"
            )
        return _made(name)
    model = load_any_model(name, device="cpu")
    if isinstance(model, Model):
        return MDETCalculator(model, device="cpu", seed=seed, **options)
    return load_propagator(name, device="cpu", dtype="float64")


def _made(path: str) -> Any:
    """Import a calculator or a propagator, or what makes one when it is called."""
    found = import_object(path, "subject")
    if isinstance(found, type) or not _fits(found):
        if not callable(found):
            raise ConfigError(f"{path!r} is a {type(found).__name__}; {_WANTED}")
        found = found()
    if not _fits(found):
        raise ConfigError(f"{path!r} makes a {type(found).__name__}; {_WANTED}")
    return found


def _fits(found: Any) -> bool:
    return isinstance(found, Propagator) or hasattr(found, "get_property")
