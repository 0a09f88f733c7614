"""Load propagators by name."""

from __future__ import annotations

import os
from typing import TypeAlias

import ase

from mlmd_calc.biomolecules import (
    BondedStructure,
    MolecularSystem,
    bonded_structure_from_ase,
    build_system,
    read_structure,
)
from mlmd_calc.errors import ConfigError
from mlmd_calc.options import one_of
from mlmd_calc.potential import Potential
from mlmd_calc.propagation.atmos import ATMOSPropagator
from mlmd_calc.propagation.atom import ATOMPropagator
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.propagator import Propagator
from mlmd_calc.zoo import KINDS, ATMOSModel, ATOMModel, OperatorModel, load_any_model

MoleculeLike: TypeAlias = ase.Atoms | BondedStructure | MolecularSystem | str | os.PathLike[str]
"""A molecule with its bonds: ASE atoms, a structure or system, or a PDB or mmCIF file."""


def as_propagator(
    propagator: Propagator | str | os.PathLike[str], structure: MoleculeLike | None = None
) -> Propagator:
    """Return a propagator, loaded if it is given by name or file; see :func:`load_propagator`."""
    if isinstance(propagator, Propagator):
        return propagator
    return load_propagator(propagator, structure=structure)


def load_propagator(
    name_or_path: str | os.PathLike[str],
    *,
    structure: MoleculeLike | None = None,
    device: str = "auto",
    dtype: str = "float32",
    potential: ForceModel | str | os.PathLike[str] | None = None,
    rotation: str | None = None,
    stride_ps: float | None = None,
    beyond_training: bool = False,
) -> Propagator:
    """Load a propagator of any kind.

    Parameters
    ----------
    name_or_path
        Name of a shipped model (see :func:`mlmd_calc.list_models`) or a ``.safetensors`` file.
    structure
        The molecule that will move, in the engine's order of atoms. ATMOS models need it: ASE atoms
        (names and residues are those of the PDB file they come from), the file itself, or a
        structure, such as those of :func:`mlmd_calc.biomolecules.read_structure` and
        :func:`openmm_bridge.structure_from_topology`. ATOM models know every molecule and do not
        look at it.
    device
        "auto" (CUDA if there is one), or a torch device.
    dtype
        "float32" or "float64", precision of the network and of a potential given by name; motion
        without forces is always in double precision.
    potential
        ATOM: force model, or the name of one, for propagators that take the accelerations at the
        start of a jump. None: the one that the model card recommends, with which the propagator
        was trained; where the structure is ASE atoms whose calculator has just that, the
        calculator's own, so that a jump takes one force call.
    rotation
        ATOM: see :class:`ATOMPropagator`.
    stride_ps
        ATMOS: time between frames, of models that know several.
    beyond_training
        ATMOS: warn where the molecule is not like those the model was trained on, instead of
        refusing it.

    Raises
    ------
    ConfigError
        If there is no such model, it is not a propagator, the structure is missing, or an option is
        wrong or of the other kind of model.
    InputError
        If an ATMOS model does not know the molecule.
    ModelFileError
        If the model is damaged or cannot be read.

    Examples
    --------
    >>> from mlmd_calc import load_propagator
    >>> propagator = load_propagator("atom-small-organics")  # doctest: +SKIP
    >>> propagator = load_propagator("atmos-peptides", structure="peptide.pdb")  # doctest: +SKIP
    """
    one_of("dtype", dtype, ("float32", "float64"))
    model = load_any_model(name_or_path, device=device, dtype=dtype)
    name = model.name
    if isinstance(model, ATMOSModel):
        _refuse_options(name, "ATOM", potential=potential, rotation=rotation)
        if structure is None:
            raise ConfigError(
                f"{name!r} is an ATMOS model, which needs to know residues and bonds of the "
                "molecule: give structure=, such as the PDB file or ASE atoms"
            )
        return ATMOSPropagator(
            model, as_system(structure), stride_ps=stride_ps, beyond_training=beyond_training
        )
    if isinstance(model, ATOMModel):
        _refuse_options(name, "ATMOS", stride_ps=stride_ps, beyond_training=beyond_training)
        if potential is None and model.network.config.accelerations:
            potential = _recommended_potential(model.card.recommended.get("potential"), structure)
        if isinstance(potential, str | os.PathLike):
            potential = Potential(str(potential), device=device, dtype=dtype)
        return ATOMPropagator(model, potential=potential, rotation=rotation)
    if isinstance(model, OperatorModel):
        raise ConfigError(
            f"model {name!r} is the published operator, which predicts mean positions of heavy "
            "atoms and no velocities; a propagator needs an ATOM integrator"
        )
    kind = KINDS[model.card.kind]
    raise ConfigError(
        f"model {model.source!r} is {kind.title} and propagates nothing; load it with "
        f"mlmd_calc.{kind.loader}, or name a propagator"
    )


def _refuse_options(name: str, kind: str, **options: object) -> None:
    """Refuse options of another kind of models; None and False are the defaults."""
    for option, value in options.items():
        if value is not None and value is not False:
            raise ConfigError(f"{option} is an option of {kind} models, and {name!r} is not one")


def _recommended_potential(
    name: str | None, structure: MoleculeLike | None
) -> Potential | str | None:
    """Return the potential of the structure's calculator where it is the recommended one."""
    own = getattr(getattr(structure, "calc", None), "potential", None)
    if isinstance(own, Potential) and own.conservative and own.rotation == "none":
        return own if own.model.card.name == name else name
    return name


def as_system(structure: MoleculeLike) -> MolecularSystem:
    """Return what ATMOS computes with, made from whatever describes the molecule."""
    if isinstance(structure, MolecularSystem):
        return structure
    if isinstance(structure, ase.Atoms):
        structure = bonded_structure_from_ase(structure)
    elif not isinstance(structure, BondedStructure):
        structure = read_structure(structure)
    return build_system(structure)
