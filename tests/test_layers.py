"""Imports point downwards in the picture of the README."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlmd_calc"


def _levels() -> dict[str, int]:
    """Height of every part of the package, counted from the bottom of the picture."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    picture = readme.split("## Architecture")[1].split("```")[1]
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


def test_imports_point_downwards() -> None:
    levels = _levels()
    upwards = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            # The package itself offers the names of all layers.
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlmd_calc."):
                imported = str(node.module).split(".")[1]
                if levels[imported] > levels[part]:
                    upwards.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.module}")
    assert not upwards
