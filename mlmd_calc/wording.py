"""How things are counted in sentences and tables."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Count things: "1 molecule", "2 molecules", "2,500 entries".

    Parameters
    ----------
    count
        How many.
    noun
        What one of them is called.
    plural
        What several are called; None appends an s.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
