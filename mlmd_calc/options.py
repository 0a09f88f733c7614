"""Values that come from files: their types and sizes, and how to print them.

A file from elsewhere may hold anything where an option is expected. Values are checked here before
anything is computed with them, allocated for them or printed.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import reprlib
import types
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from mlmd_calc.errors import ConfigError

LARGEST_COUNT: Final = 2**16
"""No width or other count of an architecture is larger; published ones stay below 1,000."""

MOST_LAYERS: Final = 1000
"""No network has more layers, blocks or cycles of one kind; published ones stay below 50."""

_LARGEST_INTEGER: Final = 2**53
"""Whole numbers up to here are exact in double precision."""

_ROUNDING: Final = 1e-6
"""Relative error of times, which files may hold in single precision."""

_DEEPEST: Final = 20
"""Levels of tables within tables."""

W = TypeVar("W", bound=str)

_printer: Final = reprlib.Repr()
_printer.maxlevel = 2
_printer.maxstring = _printer.maxother = _printer.maxlong = 80


def shown(value: object) -> str:
    """Show a value of unknown origin in one short line without control characters."""
    text = _printer.repr(value)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def check_types(options: Any, prefix: str = "") -> None:
    """Refuse values that are not of the type a dataclass declares, and infinite numbers.

    Parameters
    ----------
    options
        Instance of a dataclass whose fields are of simple types: bool, int, float, str, tuples of
        one of them, dictionaries, other dataclasses, or one of these and None.
    prefix
        What to say before the name of a field.

    Raises
    ------
    ConfigError
        With the first offending field.
    """
    for name, kind in _declared(type(options)).items():
        value = getattr(options, name)
        if not _fits(value, kind):
            raise ConfigError(f"{prefix}{name}={shown(value)}; it must be {_words(kind)}")


def check_count(options: Any, *names: str, least: int = 1, most: int = LARGEST_COUNT) -> None:
    """Refuse counts outside the range of what can be built."""
    for name in names:
        whole_number(name, getattr(options, name), least, most)


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number as one of Python's.

    Raises
    ------
    ConfigError
        If the value is not a whole number, or outside the limits.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise ConfigError(f"{name}={shown(value)}; it must be a whole number {limits}")
    return int(value)


def steps_in(value: float, step: float) -> int | None:
    """Return how many steps make up a time, or another quantity; None if not a whole number."""
    count = value / step
    whole = math.isfinite(count) and abs(count - round(count)) <= _ROUNDING * abs(count)
    return round(count) if whole else None


def whole_steps(name: str, value: float, step: float, least: int = 1) -> int:
    """Return how many steps make up a time that a user gives, or another quantity.

    Raises
    ------
    ConfigError
        If it is not a whole number, or fewer than the least.
    """
    count = steps_in(value, step)
    if count is None or count < least:
        raise ConfigError(
            f"{name}={shown(value)}; it must be a multiple of {step:g}, at least {least * step:g}"
        )
    return count


def one_of(name: str, value: W, allowed: Collection[str]) -> W:
    """Return a word that is among the allowed ones.

    Raises
    ------
    ConfigError
        If the value is not one of them.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{name}={shown(value)}; choose one of {', '.join(allowed)}")
    return value


def check_choices(options: Any, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse words that are not among the allowed ones."""
    for name, allowed in choices.items():
        one_of(name, getattr(options, name), allowed)


def check_fraction(options: Any, *names: str) -> None:
    """Refuse values that are not probabilities below 1."""
    for name in names:
        value = getattr(options, name)
        if not _fits(value, float) or not 0.0 <= value < 1.0:
            raise ConfigError(f"{name}={shown(value)}; it must be at least 0 and less than 1")


def positive_number(name: str, value: Any) -> float:
    """Return a positive number as one of Python's, which JSON and comparisons know.

    Raises
    ------
    ConfigError
        If the value is not a number, infinite or not positive.
    """
    if not _is_number(value) or not value > 0.0:
        raise ConfigError(f"{name}={shown(value)}; it must be a positive number")
    return float(value)


def check_positive(options: Any, *names: str) -> None:
    """Refuse values that are not positive numbers."""
    for name in names:
        positive_number(name, getattr(options, name))


def check_not_negative(options: Any, *names: str) -> None:
    """Refuse values that are negative or not numbers."""
    for name in names:
        value = getattr(options, name)
        if not _fits(value, float) or not value >= 0.0:
            raise ConfigError(f"{name}={shown(value)}; it must not be negative")


def check_at_least(options: Any, least: float, *names: str) -> None:
    """Refuse values below a limit, infinite ones, and fractions in fields of whole numbers."""
    whole = _whole(options)
    for name in names:
        value = getattr(options, name)
        if not _is_number(value) or not least <= value:
            raise ConfigError(f"{name}={shown(value)}; it must be at least {least:g} and finite")
        if name in whole and value != int(value):
            raise ConfigError(f"{name}={shown(value)}; it must be a whole number")


def make_plain(options: Any) -> None:
    """Turn numbers of numpy in a dataclass into those of Python, which JSON knows."""
    whole = _whole(options)
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        if name in whole:
            object.__setattr__(options, name, int(value))
        elif isinstance(value, numbers.Real) and hasattr(value, "item"):
            object.__setattr__(options, name, value.item())


def refuse_unknown(kind: type[Any], options: object, title: str) -> Mapping[str, Any]:
    """Return the options if they are a table with names of fields of a dataclass only.

    Raises
    ------
    ConfigError
        If they are no table, or one of the names is unknown.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f"{title} are {shown(options)}; they must be a table of names and values")
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"unknown {title} {shown(unknown)}; known are {', '.join(sorted(known))}")
    return options


def refuse_keywords(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse keyword arguments that a function does not have, as Python would: by a TypeError."""
    if unknown := sorted(set(given) - set(known)):
        raise TypeError(
            f"{where} got an unexpected keyword argument {unknown[0]!r}; choose from "
            f"{', '.join(known)}"
        )


def with_lists(value: Any) -> Any:
    """Turn tuples into lists, at any depth, as JSON and TOML have them."""
    if isinstance(value, dict):
        return {key: with_lists(entry) for key, entry in value.items()}
    return [with_lists(entry) for entry in value] if isinstance(value, list | tuple) else value


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the lists of a table into tuples, as dataclasses have them."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def check_depth(name: str, value: object) -> None:
    """Refuse tables in tables in tables, which functions that call themselves cannot follow."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _contents(outer)]
        if not level:
            return
    raise ConfigError(f"{name} has tables more than {_DEEPEST} levels deep; make it flatter")


def _contents(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def _declared(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _whole(options: Any) -> set[str]:
    """Names of the fields of whole numbers; names of other types need not be known here."""
    return {field.name for field in dataclasses.fields(options) if field.type in (int, "int")}


def _is_number(value: object) -> bool:
    """Whether a value is a finite real number, of Python or of numpy; True is not."""
    if isinstance(value, numbers.Integral):
        return not isinstance(value, bool)
    return isinstance(value, numbers.Real) and math.isfinite(value)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a declared type; whole numbers are numbers, True is not."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= _LARGEST_INTEGER
    if kind is float:
        return isinstance(value, float) and math.isfinite(value)
    return isinstance(value, get_origin(kind) or kind)


def _words(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_words(option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list in which each entry is {_words(get_args(kind)[0])}"
    names = {
        int: "a whole number",
        float: "a finite number",
        str: "a text",
        bool: "true or false",
        dict: "a table",
        type(None): "nothing",
    }
    kind = get_origin(kind) or kind
    return names.get(kind, f"a table of {kind.__name__}")
