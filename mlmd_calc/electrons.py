"""Total charge and spin multiplicity of a molecule: one rule for everything that is read.

They may be stated by arguments, in ``atoms.info``, and by properties of the atoms. Whatever states
one must agree with all else that does; where nothing does, the charge is 0 and the multiplicity 1.

============  ==================================================================================
charge        ``info``: charge, total_charge, net_charge, molecular_charge, system_charge;
              sum of ASE's initial charges or of a column ``formal_charges``, ``charges``,
              ``partial_charges`` or ``q``
multiplicity  ``info``: multiplicity, spin_multiplicity, mult, spin, total_spin, each meaning
              2S + 1; sum of ASE's initial magnetic moments
============  ==================================================================================

Keys are compared without regard to case and underscores. Other numbers in ``info`` whose key looks
like a charge or spin are refused, because nobody can tell what they mean, and so are comments such
as ``charge: 1``, ``charge|1`` or ``-2 1``, of which ASE makes words, and words such as ``dianion``
or ``triplet`` where nothing states the number. Initial charges that are all zero, and moments that
are all zero, state nothing.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import ase
import numpy as np
from numpy.typing import NDArray

from mlmd_calc.errors import InputError
from mlmd_calc.options import check_types, shown
from mlmd_calc.wording import counted

_CHARGE_KEYS: Final = frozenset(
    {"charge", "totalcharge", "netcharge", "molecularcharge", "systemcharge"}
)
_MULTIPLICITY_KEYS: Final = frozenset(
    {"multiplicity", "spinmultiplicity", "mult", "spin", "totalspin"}
)
_LOOKS_ELECTRONIC: Final = re.compile(
    r"charge|chrg|^chg$|spin|multiplicity|magmom|magneticmoment|uhf|unpaired|nelec|electrons|^q$|^qtot|^2s"
)
_FORMAL_CHARGES: Final = frozenset({"formalcharge", "formalcharges"})
_CHARGES: Final = frozenset({"charge", "charges", "partialcharge", "partialcharges", "q"})
_PAIR: Final = re.compile(r"\s*([+-]?\d+)([\s,;]+[+-]?\d+)?\s*")
"""A total, or charge and multiplicity, in a text."""
_BARE: Final = re.compile(r"[\[(\"']*(?P<charge>[+-]?\d)[\s,;]+(?P<multiplicity>\d)(?![\w.])")
"""Charge and multiplicity at the beginning of a comment, without names."""
_SAID: Final = re.compile(
    r"\b(?:(?P<charge>charge|chrg|chg|q)|mult|multiplicity|spin|2s\+1)\b"
    r"(?:\s+(?:of|is))?\W{0,3}?(?P<number>[+-]?\d+)(?![\w.])",
    re.IGNORECASE,
)
"""A charge or a multiplicity in words of a comment."""
_ION: Final = re.compile(r"(di|tri|tetra)?(an|cat)ion", re.IGNORECASE)
_SPIN_STATE: Final = re.compile(r"doublet|triplet|quartet|quintet", re.IGNORECASE)

_FAR_LARGER: Final = 2
"""A molecule of so many times the atoms of the largest trained one is far from anything known."""

_UNCLEAR: Final = 0.1
"""e; a sum of charges or moments farther from a whole number says nothing by itself."""


class ElectronicState(NamedTuple):
    """Total charge in e and spin multiplicity 2S + 1."""

    charge: int
    multiplicity: int

    def __str__(self) -> str:
        charge = f"{self.charge:+d}" if self.charge else "0"
        return f"charge {charge}, multiplicity {self.multiplicity}"


@dataclass(frozen=True)
class TrainedState:
    """A charge and multiplicity that a model was trained on.

    Attributes
    ----------
    charge, multiplicity
        Total charge in e and 2S + 1.
    molecules
        Number of molecules with them.
    most_atoms
        Atoms of the largest of these.
    fewest_atoms
        Smaller molecules were too few to learn from; 1 where nothing is known of that.

    Raises
    ------
    ConfigError
        If a value is not an integer.
    """

    charge: int
    multiplicity: int
    molecules: int
    most_atoms: int
    fewest_atoms: int = 1

    def __post_init__(self) -> None:
        check_types(self)

    def __str__(self) -> str:
        state = ElectronicState(self.charge, self.multiplicity)
        sizes = f"{self.fewest_atoms} to" if self.fewest_atoms > 1 else "up to"
        size = f"{sizes} {counted(self.most_atoms, 'atom')}"
        return f"{state} ({counted(self.molecules, 'molecule')} of {size})"


def check_trained(
    state: ElectronicState,
    atoms: int,
    trained: Collection[TrainedState] | None,
    remedy: Callable[[], str],
) -> None:
    """Refuse charges and multiplicities a model was not trained on, and warn of large molecules.

    What a network makes of a charge or spin it has never seen is arbitrary. A molecule of more
    than twice as many atoms as any with this charge and multiplicity is answered with a warning,
    and so is one that is too small, or another one than the only one.

    Parameters
    ----------
    state
        Charge and multiplicity of the molecule.
    atoms
        Its number of atoms.
    trained
        What the model was trained on; None if that is unknown.
    remedy
        Makes the sentence that says which model to take instead.

    Raises
    ------
    InputError
        If the model was not trained on this charge and multiplicity.
    """
    if trained is None:
        return
    found = [item for item in trained if (item.charge, item.multiplicity) == state]
    if not found:
        known = "; ".join(map(str, trained))
        raise InputError(
            f"the molecule has {state}, which this model was not trained on; it was trained on "
            f"{known}. {remedy()}, or correct charge and multiplicity"
        )
    if atoms < found[0].fewest_atoms:
        warnings.warn(
            f"the model is good for molecules of {found[0].fewest_atoms} atoms and more; what it "
            f"answers for {counted(atoms, 'atom')} is far off. Take another method",
            stacklevel=2,
        )
    is_another = found[0].molecules == 1 and atoms != found[0].most_atoms
    if is_another or atoms > _FAR_LARGER * found[0].most_atoms:
        warnings.warn(
            f"the model was trained on {found[0]}; for {counted(atoms, 'atom')} its answers are a "
            "guess",
            stacklevel=2,
        )


def electronic_state(
    atoms: ase.Atoms,
    charge: int | None = None,
    multiplicity: int | None = None,
    *,
    results: Mapping[str, Any] | None = None,
) -> ElectronicState:
    """Find the charge and multiplicity of atoms by the rule of this module.

    Parameters
    ----------
    atoms
        The molecule.
    charge, multiplicity
        What is known from elsewhere; None: nothing.
    results
        Results stored with the atoms (``atoms.calc.results`` of a file): ``charges`` of the atoms
        and the ``magmom`` of the molecule or the ``magmoms`` of the atoms count as statements too.

    Raises
    ------
    InputError
        If a value is not an integer, two statements disagree, or a key of ``atoms.info`` looks like
        a charge or spin but is not known.
    """
    return state_as_stated(atoms, charge, multiplicity, results=results)[0]


def state_as_stated(
    atoms: ase.Atoms,
    charge: int | None = None,
    multiplicity: int | None = None,
    *,
    results: Mapping[str, Any] | None = None,
) -> tuple[ElectronicState, bool]:
    """Do as :func:`electronic_state`, and tell whether anything states the charge."""
    _refuse_lookalikes(atoms.info)
    results = results or {}
    charges = _known(atoms.info, _CHARGE_KEYS)
    spins = _known(atoms.info, _MULTIPLICITY_KEYS)
    formal = [
        (f"the sum of the column {key!r}", values)
        for key, values in atoms.arrays.items()
        if _plain(key) in _FORMAL_CHARGES
    ]
    found_charge = _agreed(
        [
            ("charge", charge),
            *charges,
            *((name, _of_atoms(name, values).sum()) for name, values in formal),
        ],
        [
            ("the sum of the initial charges", atoms.get_initial_charges()),
            *(
                (f"the sum of the column {key!r}", values)
                for key, values in atoms.arrays.items()
                if _plain(key) in _CHARGES
            ),
            ("the sum of the atoms' charges in the results", results.get("charges")),
        ],
    )
    unpaired = [
        ("the sum of the initial magnetic moments", atoms.get_initial_magnetic_moments()),
        ("the magnetic moment in the results", results.get("magmom", results.get("magmoms"))),
    ]
    found_multiplicity = _agreed([("multiplicity", multiplicity), *spins], unpaired, moments=True)
    state = ElectronicState(
        charge=0 if found_charge is None else found_charge,
        multiplicity=1 if found_multiplicity is None else found_multiplicity,
    )
    _refuse_comment(atoms, state)
    if found_charge is None:
        _refuse_words(atoms, _ION, "charge=... (in e)", state)
    if found_multiplicity is None:
        _refuse_words(atoms, _SPIN_STATE, "multiplicity=... (2S + 1)", state)
    return state, found_charge is not None


def is_electronic(key: str) -> bool:
    """Tell whether a key names a charge or spin, or looks like one."""
    name = _plain(key)
    return name in _CHARGE_KEYS | _MULTIPLICITY_KEYS or bool(_LOOKS_ELECTRONIC.search(name))


def is_total(key: str) -> bool:
    """Tell whether a key names a number of the molecule, not one of each atom."""
    return _plain(key) in _CHARGE_KEYS | _MULTIPLICITY_KEYS | {"q"}


def store_state(atoms: ase.Atoms, state: ElectronicState) -> None:
    """Write charge and multiplicity into ``atoms.info`` as plain integers, in place of all keys."""
    for key in list(atoms.info):
        if _plain(key) in _CHARGE_KEYS | _MULTIPLICITY_KEYS:
            del atoms.info[key]
    atoms.info.update(state._asdict())


def check_parity(
    where: str, protons: int, state: ElectronicState, hint: Callable[[], str] = str
) -> None:
    """Refuse a multiplicity that the number of electrons cannot have.

    Parameters
    ----------
    where
        What it is about, the beginning of the message; may be empty.
    protons
        Sum of the atomic numbers.
    state
        Charge and multiplicity.
    hint
        Makes the end of the message, that says how they can be stated.

    Raises
    ------
    InputError
        If there are no electrons, or 2S exceeds their number or has the wrong parity.
    """
    charge, multiplicity = state
    electrons, unpaired = protons - charge, multiplicity - 1
    if electrons < 0:
        raise InputError(
            f"{where}charge={charge} is more than all {protons} electrons; pass the charge in units"
            " of e"
        )
    if electrons == 0:
        raise InputError(
            f"{where}charge={charge} leaves no electrons, and bare nuclei have no energy to "
            "predict; correct the charge"
        )
    if unpaired < 0 or unpaired > electrons or (electrons - unpaired) % 2:
        possible = range(1 + electrons % 2, electrons + 2, 2)
        shown = ", ".join(str(m) for m in possible[:3]) + (", ..." if possible[3:] else "")
        raise InputError(
            f"{where}charge={charge} leaves {counted(electrons, 'electron')}, which cannot have "
            f"multiplicity={multiplicity} (2S + 1); state another charge or multiplicity "
            f"(multiplicities possible at this charge: {shown}){hint()}"
        )


def implied_ion(implied: int) -> str:
    """Say which ion bonds imply, in brackets behind a sentence; nothing if it is none."""
    return f" (its bonds imply the charge {implied:+d})" if implied else ""


def charge_question(molecule: str, state: ElectronicState, implied: int, option: str) -> str | None:
    """Ask for the charge of a molecule that nobody calls an ion, but that seems to be one.

    Parameters
    ----------
    molecule
        What it is called.
    state
        Charge and multiplicity it is taken to have.
    implied
        Charge that its bonds imply.
    option
        How its charge is given: "--charge " or "charge=".

    Returns
    -------
    str or None
        None where there is nothing to ask, also if an odd charge is implied: the multiplicity of a
        neutral molecule does not go with its electrons, which :func:`check_parity` refuses.
    """
    if state != (0, 1) or implied % 2 or not implied:
        return None
    return (
        f"{molecule} is taken to be neutral, but its bonds imply the charge {implied:+d}; give "
        f"{option}{implied}, or {option}0 if other charges balance those of its ionic groups"
    )


def as_integer(name: str, value: Any) -> int | None:
    """Return an integer value as int, None as None.

    Raises
    ------
    InputError
        If the value is not a whole number.
    """
    if value is None:
        return None
    plain = value.item() if isinstance(value, np.generic) else value
    if (
        isinstance(plain, bool)
        or not isinstance(plain, (int, float))
        or (isinstance(plain, float) and not plain.is_integer())
    ):
        raise InputError(
            f"{name}={shown(plain)} is not an integer; give a whole number: a total charge in e, a "
            "multiplicity 2S + 1, or the number of an atom"
        )
    return int(plain)


@functools.lru_cache(maxsize=1024, typed=True)
def _plain(key: object) -> str:
    return re.sub(r"[_\-\s]", "", str(key)).lower()


def _known(info: Mapping[str, Any], keys: frozenset[str]) -> list[tuple[str, Any]]:
    return [(f"atoms.info[{key!r}]", value) for key, value in info.items() if _plain(key) in keys]


def _refuse_lookalikes(info: Mapping[str, Any]) -> None:
    for key, value in info.items():
        if _plain(key) in _CHARGE_KEYS | _MULTIPLICITY_KEYS or not is_electronic(key):
            continue
        # Texts (the name of a method), flags and arrays (charges of the atoms) are no totals,
        # unless they are one number or two.
        is_flag = isinstance(value, (bool, np.bool_))
        if isinstance(value, str):
            has_total = bool(_PAIR.fullmatch(value))
        elif np.ndim(value):
            has_total = np.shape(value) in ((1,), (2,)) and _are_whole(np.asarray(value))
        else:
            has_total = not is_flag and value is not None
        if has_total:
            plain = value.item() if isinstance(value, np.generic) else value
            raise InputError(
                f"{key}={plain!r} looks like a charge or spin, but is not a name known here; "
                "rename it to charge=... (total, in e) or multiplicity=... (2S + 1), or remove it"
            )


def _are_whole(values: NDArray[Any]) -> bool:
    """Tell whether numbers may be totals; zeros, and numbers of the atoms, seldom are."""
    if values.dtype.kind == "f":
        return bool(values.any() and (values == np.round(values)).all())
    return values.dtype.kind in "iu"


def words_of_comment(atoms: ase.Atoms) -> list[str]:
    """Words of a comment, which are flags to ASE; one that is turned off says nothing."""
    flags = ((k, v) for k, v in atoms.info.items() if isinstance(v, (bool, np.bool_)))
    return [str(key) for key, is_set in flags if is_set]


def _refuse_words(
    atoms: ase.Atoms, telling: re.Pattern[str], remedy: str, state: ElectronicState
) -> None:
    """Refuse words that name an ion or a spin state of which no number says anything."""
    for word in words_of_comment(atoms):
        if telling.fullmatch(word.strip(".,;:()")):
            raise InputError(
                f"the comment says {word!r}, but charge and multiplicity would be taken to be "
                f"{state.charge} and {state.multiplicity}; add {remedy}, or remove the word"
            )


def _refuse_comment(atoms: ase.Atoms, state: ElectronicState) -> None:
    """Refuse a comment whose words tell another charge or multiplicity than is taken.

    Numbers of other things, as of the frame, are seldom a possible charge and multiplicity.
    """
    comment = " ".join(words_of_comment(atoms))
    said: dict[str, ElectronicState] = {}
    if bare := _BARE.match(comment):
        pair = ElectronicState(int(bare["charge"]), int(bare["multiplicity"]))
        odd = (int(atoms.numbers.sum()) - pair.charge - pair.multiplicity + 1) % 2
        if pair.multiplicity > 0 and not odd:
            said[bare[0]] = pair
    for found in _SAID.finditer(comment):
        name = "multiplicity" if found["charge"] is None else "charge"
        said[found[0]] = state._replace(**{name: int(found["number"])})
    for words, other in said.items():
        if other != state:
            raise InputError(
                f"the comment says {words!r}, but charge and multiplicity would be taken to be "
                f"{state.charge} and {state.multiplicity}; write charge={other.charge} "
                f"multiplicity={other.multiplicity} if that is meant, or remove the words"
            )


def _of_atoms(name: str, values: Any) -> NDArray[Any]:
    """Return values of the atoms, or one of the molecule; what cannot be added up is refused."""
    array = np.asarray(values)
    if array.dtype.kind not in "iuf" or array.ndim > 1:
        raise InputError(
            f"{name} cannot be taken of {shown(array.tolist())}; give one number for each atom, or "
            "remove these values and state the total in atoms.info or by an argument"
        )
    return array


def _agreed(
    stated: Iterable[tuple[str, Any]], sums: Iterable[tuple[str, Any]], *, moments: bool = False
) -> int | None:
    """Return the value on which all sources that have one agree.

    Parameters
    ----------
    stated
        Integers.
    sums
        Values per atom, or their sum, which need not be whole numbers.
    moments
        The sums are numbers of unpaired electrons; returned is their multiplicity.
    """
    given = {name: n for name, value in stated if (n := as_integer(name, value)) is not None}
    explicit = bool(given)
    for name, values in sums:
        if values is None or not np.any(_of_atoms(name, values)):
            continue
        total = float(np.sum(values))
        if not np.isfinite(total):
            raise InputError(
                f"{name} is {total:g}; leave out these values of the atoms, or correct them"
            )
        nearest = round(total)
        if abs(total - nearest) > _UNCLEAR and not explicit:
            what = "multiplicity (2S + 1)" if moments else "charge (in e)"
            raise InputError(
                f"{name} is {total:g}, which is not a whole number; state the total {what} in "
                "atoms.info or by an argument"
            )
        label = f"{name} ({total:g}), that is multiplicity" if moments else name
        given[label] = 1 + abs(nearest) if moments else nearest
    if len(set(given.values())) > 1:
        said = " and ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(f"{said} disagree; correct one or remove it")
    return next(iter(given.values()), None)
