"""Imports point downwards in the picture of the documents."""

from __future__ import annotations

import configparser
import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlmd_calc"


def _levels() -> dict[str, int]:
    """Height of every part of the package, counted from the bottom of the picture."""
    document = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = document.split("```")[1]
    lines = [line for line in picture.splitlines() if line.startswith("mlmd_calc/")]
    return {
        name.removesuffix(".py").strip("/"): height
        for height, line in enumerate(reversed(lines))
        for name in re.findall(r"(?:(?<=mlmd_calc/)|(?<=  )|(?<=\) ))[a-z]+(?:\.py|/)", line)
    }


def test_every_part_is_in_the_picture() -> None:
    parts = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} == set(_levels())


def test_the_picture_is_what_the_linter_checks() -> None:
    """`lint-imports`, in .ci/run, refuses imports that point upwards or in circles."""
    linter = configparser.ConfigParser()
    linter.read(ROOT / ".importlinter", encoding="utf-8")
    lines = linter["importlinter:contract:layers"]["layers"].split("\n")
    checked = [re.findall(r"mlmd_calc\.(\w+)", line) for line in lines if line]
    levels = _levels()
    heights = [{levels[part] for part in parts} for parts in checked]
    assert {part for parts in checked for part in parts} == set(levels)
    for above, below in itertools.pairwise(heights):
        assert min(above) >= max(below)
