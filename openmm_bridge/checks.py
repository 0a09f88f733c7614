"""What must not stand beside a force of this package in a System."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import openmm

from mlmd_calc.errors import InputError
from mlmd_calc.geometry.bonds import fragments_of
from openmm_bridge.region import Region
from openmm_bridge.stored import description_of, stored_description

FORCE_NAME: Final = "MD-ET"
"""What the force is called in the System and its XML."""

_BAROSTATS: Final = (
    openmm.MonteCarloBarostat,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.MonteCarloFlexibleBarostat,
    openmm.MonteCarloMembraneBarostat,
)

_COVALENT: Final = (0.25, 5e4)
"""Bonds of a force field are shorter (nm) and stiffer (kJ/mol/nm²); restraints are not both."""


_EWALD_SUMS: Final = (
    openmm.NonbondedForce.Ewald,
    openmm.NonbondedForce.PME,
    openmm.NonbondedForce.LJPME,
)

_POLARISABLE: Final = (
    openmm.AmoebaMultipoleForce,
    openmm.AmoebaVdwForce,
    openmm.HippoNonbondedForce,
)
"""Forces that act between all particles, and of which OpenMM-ML takes nothing away."""

_INTERPOLATION: Final = "lambda_interpolate"
"""Parameter of the force in which OpenMM-ML collects a model and the terms it replaces."""

_COUNTS: Final = (
    *("getNumBonds", "getNumAngles", "getNumTorsions", "getNumExceptions"),
    "getNumForces",
)
"""Methods of forces that tell how many terms they have, as far as these are checked."""


_Acting: TypeAlias = Sequence[tuple[Any, int]]
"""Forces of a System and their groups, as :func:`_acting` finds them."""


class _Placed(NamedTuple):
    """A force of this package and what is known of it."""

    force: Any
    beside: Sequence[Any]
    """Forces that OpenMM-ML interpolates to it; empty if there is no interpolation."""


def check_system(system: openmm.System, force: Any = None) -> None:
    """Refuse a System in which a force made by :func:`create_force` would give wrong results.

    Forces other than TorchForce do this by themselves when they are first evaluated, for Systems of
    a Context made in Python; here it is known before.

    Parameters
    ----------
    system
        System that the force was or will be added to.
    force
        The force: what :func:`create_force` returned, or ``system.getForce(i)``, also of a System
        that was copied or read from XML. None for all forces of this package in the System.

    Raises
    ------
    InputError
        If the number of particles does not fit; if ML atoms are virtual sites, are held by
        constraints among themselves or bonded to others; if the System is periodic and the force
        does not know it; if the force field's terms among the ML atoms are there too and would be
        counted besides the model's, or are missing where the two are interpolated; if two forces
        of this package act on the same atoms in the same force group; if there is a
        barostat and the forces are not conservative, or the ML atoms are not tied together by
        bonds, so that the barostat would tear the molecule apart. Also if there is no such force,
        or it does not say which atoms it acts on.
    """
    acting = _acting(system)
    placed = list(_placed(acting))
    if force is not None:
        same = [p for p in placed if _address(p.force) == _address(force)]
        placed = [_Placed(force, same[0].beside if same else ())]
    if not placed:
        raise InputError(
            "the System has no force of this package; add one that create_force returned"
        )
    for one in placed:
        region, conservative = _described(one.force)
        _check(system, acting, region, conservative, one.beside)
    _check_one_model(acting)


def check_contexts(computation: Any) -> list[weakref.ref[openmm.System]]:
    """Check every System with a Context that a Python force's computation is evaluated in.

    Returns
    -------
    list
        These Systems.
    """
    checked = []
    # `type`, because `isinstance` would run code of objects that have nothing to do with this.
    contexts = [found for found in gc.get_objects() if issubclass(type(found), openmm.Context)]
    # Those whose construction has failed are empty.
    for context in (context for context in contexts if hasattr(context, "this")):
        # The user's own object, which lives as long as the Context; `getSystem` makes another one.
        system = getattr(context, "_system", None) or context.getSystem()
        acting = _acting(system)
        for placed in _placed(acting):
            if _is_of(placed.force, computation):
                potential = computation.potential
                _check(system, acting, computation.region, potential.conservative, placed.beside)
                _check_one_model(acting)
                checked.append(weakref.ref(system))
    return checked


def check_images(system: openmm.System, region: Region) -> None:
    """Refuse ML atoms in different images where a force field acts at distances of the file.

    It does in the terms that OpenMM-ML interpolates, and where an Ewald sum takes the interactions
    of excluded pairs out.

    Raises
    ------
    InputError
        If the System has such terms or such charges.
    """
    own = {int(particle) for particle in region.particles}
    for placed in _placed(_acting(system)):
        if not all(force.usesPeriodicBoundaryConditions() for force in placed.beside):
            raise InputError(
                "ML atoms lie in different images of the periodic box, where the terms of the "
                "force field that are interpolated would act at wrong distances; give positions in "
                "which the molecule is whole"
            )
    for force in system.getForces():
        if (
            isinstance(force, openmm.NonbondedForce)
            and force.getNonbondedMethod() in _EWALD_SUMS
            and not force.getExceptionsUsePeriodicBoundaryConditions()
            and sum(bool(force.getParticleParameters(i)[0]._value) for i in own) > 1
        ):
            raise InputError(
                "ML atoms lie in different images of the periodic box, where the NonbondedForce "
                "would take the interactions among their charges out at wrong distances; call "
                "setExceptionsUsePeriodicBoundaryConditions(True) of it before the Context is "
                "made, or give positions in which the molecule is whole"
            )


def extent(system: openmm.System) -> list[Any]:
    """Return what changes as things are added to a System, quickly enough for every call."""
    counted = [
        (
            type(force).__name__,
            force.getForceGroup(),
            *(getattr(force, count)() for count in _COUNTS if hasattr(force, count)),
        )
        for force in system.getForces()
    ]
    return [system.getNumParticles(), system.getNumConstraints(), counted]


def _acting(system: openmm.System) -> _Acting:
    """Find the forces of a System and their groups, also those that an ATMForce evaluates."""
    found = []
    for force in system.getForces():
        group = force.getForceGroup()
        found.append((force, group))
        if isinstance(force, openmm.ATMForce):
            inner = (force.getForce(i) for i in range(force.getNumForces()))
            found += [(_of_its_kind(one), group) for one in inner]
    return found


def _of_its_kind(force: Any) -> Any:
    """Return a copy of the kind that a force is, which an ATMForce does not tell Python."""
    if _is_ours(force):
        return force
    return openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(force))


def _placed(acting: _Acting) -> Iterator[_Placed]:
    """Find the forces of this package, also among collective variables."""
    for force, _ in acting:
        if _is_ours(force):
            yield _Placed(force, ())
        elif isinstance(force, openmm.CustomCVForce):
            inner = [
                force.getCollectiveVariable(i) for i in range(force.getNumCollectiveVariables())
            ]
            ours = [one for one in inner if _is_ours(one)]
            others = [one for one in inner if not _is_ours(one)] if _interpolates(force) else []
            yield from (_Placed(one, others) for one in ours)


def _interpolates(force: openmm.CustomCVForce) -> bool:
    """Tell OpenMM-ML's interpolation from variables that a user has collected."""
    names = map(force.getGlobalParameterName, range(force.getNumGlobalParameters()))
    return _INTERPOLATION in names


def _is_ours(force: Any) -> bool:
    # OpenMM 8.5 does not store the name of a Python force.
    if isinstance(force, openmm.PythonForce) and stored_description(force) is not None:
        return True
    if force.getName() == FORCE_NAME:
        return True
    # Nor does OpenMM-Torch in the XML of a System; to Python such a force, and any in an ATMForce,
    # has no kind.
    if type(force) is not openmm.Force and type(force).__name__ != "TorchForce":
        return False
    return description_of(force) is not None


def _address(force: Any) -> int:
    """Where OpenMM's object is, of which there may be several in Python."""
    return int(force.this)


def _is_of(force: Any, computation: Any) -> bool:
    if computation.address is not None:
        return bool(_address(force) == computation.address)
    found = stored_description(force)
    return found is not None and found["id"] == computation.identity


def _described(force: Any) -> tuple[Region, bool]:
    """Find the region of a force, and whether it is conservative."""
    if hasattr(force, "region"):
        return force.region, force.conservative
    found = description_of(force)
    if found is None:
        raise InputError(
            f"the force {force.getName()!r} does not say which atoms it acts on; pass the object "
            "that create_force returned. Only forces whose model has a name or a file, and made by "
            "this version of the package, can be asked later"
        )
    return Region.from_dict(found["region"]), found["options"]["forces"] == "conservative"


def _check(
    system: openmm.System,
    acting: _Acting,
    region: Region,
    conservative: bool,
    beside: Sequence[Any],
) -> None:
    if system.getNumParticles() != region.system_size:
        raise InputError(
            f"the System has {system.getNumParticles()} particles, but the topology the force was "
            f"made for has {region.system_size} atoms; make both from the same topology"
        )
    own = {int(particle): i for i, particle in enumerate(region.particles)}
    virtual = [particle for particle in own if system.isVirtualSite(particle)]
    if virtual:
        raise InputError(
            f"particle {virtual[0]} is a virtual site; the model knows atoms only. Leave it out of "
            "atoms=[...]"
        )
    _check_constraints(system, own)
    if system.usesPeriodicBoundaryConditions() and not region.periodic:
        raise InputError(
            "the System is periodic, but the topology the force was made from has no box; "
            + (
                "set topology.setPeriodicBoxVectors(...) before create_force"
                if region.is_subset
                else "if the molecule is alone, make the System's other forces without periodic "
                "boundary conditions, restraints without periodicdistance"
            )
        )
    _check_bonds_outwards(acting, own)
    _check_polarisable(acting, own)
    if beside:
        _check_interpolation(beside, own)
    else:
        _check_not_counted_twice(acting, own)
    # OpenMM itself refuses a barostat without a box.
    if system.usesPeriodicBoundaryConditions() and any(
        isinstance(f, _BAROSTATS) for f in system.getForces()
    ):
        _check_barostat(system, conservative, own)


def _check_one_model(acting: _Acting) -> None:
    """Refuse a second force on the same atoms, as of a script whose lines were run twice.

    Groups may be integrated apart, and what collective variables add up is the user's affair.
    """
    taken: set[tuple[int, int]] = set()
    for force, group in acting:
        if not _is_ours(force):
            continue
        try:
            region, _ = _described(force)
        except InputError:
            # Forces of models in memory do not say which atoms they act on.
            continue
        atoms = {(group, int(particle)) for particle in region.particles}
        if both := sorted(taken & atoms):
            raise InputError(
                f"two forces of this package act on particle {both[0][1]} in force group {group}, "
                "so that its model would count twice; take one away (System.removeForce, then "
                "Context.reinitialize) or make the System anew"
            )
        taken |= atoms


def _check_constraints(system: openmm.System, own: dict[int, int]) -> None:
    found = (system.getConstraintParameters(i) for i in range(system.getNumConstraints()))
    pairs = [(int(first), int(second)) for first, second, _ in found]
    touched = [pair for pair in pairs if pair[0] in own or pair[1] in own]
    held = [pair for pair in touched if own.keys() >= set(pair)]
    if held:
        raise InputError(
            f"ML atoms {held[0][0]} and {held[0][1]} are held at a fixed distance by a constraint "
            f"of the force field ({len(held)} such); remove the constraints among ML atoms, with "
            "System.removeConstraint or by OpenMM-ML's createMixedSystem"
        )
    if touched:
        raise _cut(*touched[0], "constraint")


def _cut(first: int, second: int, what: str) -> InputError:
    return InputError(
        f"a {what} ties particles {first} and {second}, of which only one is an ML atom, but the "
        "model knows whole molecules only; put all atoms of the molecule into atoms=[...], or none"
    )


def _check_bonds_outwards(acting: _Acting, own: dict[int, int]) -> None:
    """Refuse covalent bonds from ML atoms to others."""
    length, strength = _COVALENT
    for force, _ in acting:
        if isinstance(force, openmm.HarmonicBondForce):
            for first, second, r0, k in _terms(force):
                if (first in own) != (second in own) and r0 < length and k > strength:
                    raise _cut(first, second, "bond of the force field")


def _check_polarisable(acting: _Acting, own: dict[int, int]) -> None:
    for force, _ in acting:
        if isinstance(force, _POLARISABLE) and len(own) > 1:
            raise InputError(
                f"{type(force).__name__} acts between ML atoms, which the model does too, and "
                "there is no way to except pairs of atoms from it; take a force field with fixed "
                "charges, such as Amber's, or begin with an empty System if the molecule is alone"
            )


def _check_not_counted_twice(acting: _Acting, own: dict[int, int]) -> None:
    """Refuse the force field's terms among the ML atoms.

    Single terms may be restraints of the user's. The bonded terms of a force field tie all atoms of
    a molecule together.
    """
    groups = [atoms for force, _ in acting for atoms in _bonded(force, own)]
    enough = len(groups) >= min(2, len(own) - 1) > 0
    if enough and fragments_of(len(own), groups).max() == 0:
        raise InputError(
            f"{len(groups)} bonds, angles and torsions of a force field act among the ML atoms as "
            "well, so that the molecule would be counted twice; take them away, as OpenMM-ML's "
            "createMixedSystem does, or begin with an empty System if the molecule is alone"
        )
    for force, _ in acting:
        if isinstance(force, openmm.NonbondedForce):
            pair = _nonbonded_pair(force, own)
            if pair is not None:
                raise InputError(
                    f"the NonbondedForce acts between ML atoms {pair[0]} and {pair[1]}, which the "
                    "model does too; add an exception with zero charge and epsilon for every pair "
                    "of ML atoms, as OpenMM-ML's createMixedSystem does"
                )
        elif isinstance(force, openmm.CustomNonbondedForce):
            pair = _custom_pair(force, own)
            if pair is not None:
                raise InputError(
                    f"a CustomNonbondedForce ({force.getName()}) acts between ML atoms {pair[0]} "
                    f"and {pair[1]}, which the model does too; add an exclusion for every pair of "
                    "ML atoms, as OpenMM-ML's createMixedSystem does"
                )


def _check_interpolation(beside: Sequence[Any], own: dict[int, int]) -> None:
    """Refuse a force field without bonds where it is to act alone."""
    groups = [group for force in beside for group in _bonded(force, own, bonds_only=True)]
    fragments = fragments_of(len(own), groups)
    if fragments.max() > 0:
        particles = list(own)
        first, other = particles[0], particles[int((fragments > 0).argmax())]
        raise InputError(
            f"no bonds of the force field tie ML atoms {first} and {other} together, which would "
            f"drift apart as {_INTERPOLATION} goes to 0; make the classical System with "
            "constraints=None and rigidWater=False, because interpolate=True takes the constraints "
            "among ML atoms away"
        )


def _bonded(
    force: Any, own: dict[int, int], *, bonds_only: bool = False
) -> Iterator[tuple[int, ...]]:
    """Yield the ML atoms of bonded terms that act among ML atoms alone."""
    size, strengths = _BONDED.get(type(force), (0, slice(0)))
    # A diatomic molecule's one bond of a custom kind is more likely a restraint.
    if not size or (bonds_only and size > 2):
        return
    if isinstance(force, openmm.CustomBondForce) and len(own) == 2:
        return
    for term in _terms(force):
        atoms = term[:size]
        if own.keys() >= set(atoms) and any(term[strengths]):
            yield tuple(own[atom] for atom in atoms)


_BONDED: Final[dict[type, tuple[int, slice]]] = {
    openmm.HarmonicBondForce: (2, slice(3, 4)),
    openmm.HarmonicAngleForce: (3, slice(4, 5)),
    openmm.PeriodicTorsionForce: (4, slice(6, 7)),
    openmm.RBTorsionForce: (4, slice(4, 10)),
    # The meaning of these parameters is not known.
    openmm.CustomBondForce: (2, slice(0, 2)),
    openmm.CustomAngleForce: (3, slice(0, 3)),
    openmm.CustomTorsionForce: (4, slice(0, 4)),
}
"""Number of atoms of a term, and its parameters that say how strong it is."""


def _terms(force: Any) -> Iterator[tuple[Any, ...]]:
    """Parameters of bonded terms, in OpenMM's units."""
    kind = next(name for name in ("Bond", "Angle", "Torsion") if hasattr(force, f"getNum{name}s"))
    read = getattr(force, f"get{kind}Parameters")
    for i in range(getattr(force, f"getNum{kind}s")()):
        yield tuple(getattr(value, "_value", value) for value in read(i))


def _nonbonded_pair(force: openmm.NonbondedForce, own: dict[int, int]) -> tuple[int, int] | None:
    """Find a pair of ML atoms that the force field's nonbonded interactions act between."""
    charged, sticky = _offsets(force, "Exception")
    excepted = set()
    for i in range(force.getNumExceptions()):
        first, second, charge, _, epsilon = force.getExceptionParameters(i)
        if first in own and second in own:
            if charge._value or epsilon._value or i in charged | sticky:
                return int(first), int(second)
            excepted.add(frozenset((first, second)))
    for value, changed in zip((0, 2), _offsets(force, "Particle"), strict=True):
        acting = [i for i in own if i in changed or force.getParticleParameters(i)[value]._value]
        for position, first in enumerate(acting):
            for second in acting[:position]:
                if frozenset((first, second)) not in excepted:
                    return second, first
    return None


def _offsets(force: openmm.NonbondedForce, of: str) -> tuple[set[int], set[int]]:
    """Find the particles or exceptions whose charge, or epsilon, a global parameter changes."""
    read = getattr(force, f"get{of}ParameterOffset")
    found = [read(i) for i in range(getattr(force, f"getNum{of}ParameterOffsets")())]
    charged = {int(index) for _, index, charge, _, _ in found if charge}
    return charged, {int(index) for _, index, _, _, epsilon in found if epsilon}


def _custom_pair(force: openmm.CustomNonbondedForce, own: dict[int, int]) -> tuple[int, int] | None:
    """Find a pair of ML atoms that a force with an energy of the user's acts between."""
    excluded = {frozenset(force.getExclusionParticles(i)) for i in range(force.getNumExclusions())}
    groups = [
        force.getInteractionGroupParameters(i) for i in range(force.getNumInteractionGroups())
    ]
    everything = range(force.getNumParticles())
    for one, other in groups or [(everything, everything)]:
        for first in own.keys() & set(one):
            for second in own.keys() & set(other):
                if first != second and frozenset((first, second)) not in excluded:
                    return min(first, second), max(first, second)
    return None


def _check_barostat(system: openmm.System, conservative: bool, own: dict[int, int]) -> None:
    if not conservative:
        raise InputError(
            "a Monte Carlo barostat needs forces that are the gradient of an energy, and direct "
            "forces are not; make the force with forces='conservative' or remove the barostat"
        )
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    torn = [molecule for molecule in context.getMolecules() if own.keys() & set(molecule)]
    if len(torn) > 1:
        raise InputError(
            f"the barostat would move the ML atoms as {len(torn)} separate molecules, because no "
            "bonds of the System tie them together; add a HarmonicBondForce of zero strength along "
            "their bonds, as the OpenMM-ML potential 'mdet' does"
        )
