"""Pages of the site that nobody writes by hand, made whenever it is built so that none goes stale.

A hook of MkDocs: README becomes the first page; commands come from the command line itself, Python
from the public names and their docstrings, cards and recipes from the files that ship.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mlmd_calc.cli import app
from mlmd_calc.zoo import list_models

ROOT = Path(__file__).resolve().parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List a page for every public package in the navigation."""
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    python = next(part for part in reference if "Python" in part)
    python["Python"] = [{package: _python_path(package)} for package in public_packages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "index.md": from_top(ROOT / "README.md"),
        "changelog.md": from_top(ROOT / "CHANGELOG.md"),
        "SECURITY.md": from_top(ROOT / "SECURITY.md"),
        "reference/cards.md": cards_page(),
        "reference/commands.md": commands_page(),
        "reference/recipes.md": recipes_page(),
        **{_python_path(name): python_page(name) for name in public_packages()},
        **{
            _notebook_path(page): notebook((ROOT / "docs" / page).read_text("utf-8"))
            for page in tutorials(config)
        },
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Offer tutorials as notebooks, too."""
    path = page.file.src_uri
    if path not in tutorials(config):
        return markdown
    return f"{markdown}\n\n[This page as a Jupyter notebook]({_notebook_path(path)})\n"


def tutorials(config: MkDocsConfig) -> list[str]:
    """Pages that the navigation calls tutorials."""
    (parts,) = (part["Tutorials"] for part in config.nav if "Tutorials" in part)
    return [path for part in parts for path in part.values()]


def _notebook_path(page: str) -> str:
    return f"notebooks/{page.removesuffix('.md')}.ipynb"


def notebook(text: str) -> str:
    """Return a page as a notebook, in which scripts and commands are cells to run."""
    cells = []
    words, *rest = re.split(r"```(\w*)\n(.*?)```\n?", text, flags=re.DOTALL)
    for language, block, after in [("", "", words), *zip(*[iter(rest)] * 3, strict=True)]:
        if language == "bash":
            block = "".join(f"!{line}\n" for line in block.splitlines() if line)
        if language in ("python", "bash"):
            never_run = {"execution_count": None, "outputs": []}
            cells.append({"cell_type": "code", "source": block, "metadata": {}, **never_run})
        elif block:
            after = f"```{language}\n{block}```\n{after}"
        if after.strip():
            cells.append({"cell_type": "markdown", "source": after, "metadata": {}})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4}
    return json.dumps({**whole, "nbformat_minor": 4}, indent=1, ensure_ascii=False)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the roles of docstrings into links, where there is what they name."""
    return re.sub(
        r":(?:class|func|meth|mod|attr):<code>~?\.?([\w.]+)</code>",
        r'<autoref optional identifier="\1"><code>\1</code></autoref>',
        html,
    )


def from_top(path: Path) -> str:
    """Return a document from the top folder with links as they are from within docs."""
    return re.sub(r"\]\(docs/", "](", path.read_text("utf-8"))


# ---- Python ----------------------------------------------------------------------------------


def public_packages() -> list[str]:
    """Return the packages that docs/python.md lists, in its order."""
    rows = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs/python.md").read_text("utf-8"), re.M)
    return list(dict.fromkeys(rows))


def python_page(package: str) -> str:
    """Return the docstrings of the public names of a package, for mkdocstrings to fill in."""
    path = ROOT.joinpath(*package.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text("utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    summary = ast.get_docstring(tree) or ""
    entries = "\n\n".join(f"::: {package}.{name}" for name in names if not name.startswith("_"))
    return f"# {package}\n\n{summary}\n\n{entries}\n"


def _python_path(package: str) -> str:
    return f"reference/python/{package}.md"


# ---- commands --------------------------------------------------------------------------------


def commands_page() -> str:
    """Return every command with its arguments and options."""
    sections = "\n".join(_command(path, command) for path, command in leaves(app))
    return (
        "# Commands\n\nWhat `--help` says, of all commands on one page. "
        "How commands end, and how to go on after a kill: [stop and continue](../runs.md).\n\n"
        f"{sections}"
    )


def leaves(top: typer.Typer) -> Iterator[tuple[str, Any]]:
    """Yield the words of every command and its description by click."""
    waiting = [("mlmd", typer.main.get_command(top))]
    while waiting:
        path, command = waiting.pop(0)
        children = getattr(command, "commands", None)
        if children is None:
            yield path, command
        else:
            waiting = [(f"{path} {name}", child) for name, child in children.items()] + waiting


def _command(path: str, command: Any) -> str:
    # Of the types, since click's own descriptions of them differ between versions of typer.
    types = get_type_hints(command.callback)
    rows = "".join(_parameter(one, _value(types[one.name])) for one in command.params)
    table = f"\n| option | value | default | meaning |\n|---|---|---|---|\n{rows}" if rows else ""
    return f"## {path}\n\n{_text(command.help or '')}\n{table}\n"


def _parameter(one: Any, value: str) -> str:
    is_option = one.param_type_name == "option"
    written = (*one.opts, *one.secondary_opts) if is_option else (one.name.upper(),)
    names = " ".join(f"`{name}`" for name in written)
    default = getattr(one.default, "value", one.default)
    shown = "" if default in (None, False, (), []) or callable(default) else f"`{default}`"
    shown = "needed" if one.required else shown
    return f"| {names} | {value} | {_text(shown)} | {_text(one.help or '')} |\n"


def _value(kind: Any) -> str:
    """Say what kind of value the type of an argument stands for."""
    arguments = [one for one in get_args(kind) if one is not NoneType]
    if get_origin(kind) in (UnionType, Union):
        return _value(arguments[0])
    if get_origin(kind) is list:
        return f"{_value(arguments[0])}, may be repeated"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if issubclass(kind, Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    return {bool: "", str: "text", int: "whole number", float: "number", Path: "path"}[kind]


def _text(text: str) -> str:
    """Return text on one line that neither ends a cell of a table nor is taken for markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ---- models and recipes ----------------------------------------------------------------------


def cards_page() -> str:
    """Return the cards of the models in the box."""
    cards = "\n\n".join(f"## {card.name}\n\n```text\n{card}\n```" for card in list_models())
    return (
        "# Cards of the models in the box\n\nWhat `mlmd models NAME` prints. "
        f"[Which model for what](../models.md).\n\n{cards}\n"
    )


def recipes_page() -> str:
    """Return the recipes as they are stored; their first lines say what they are for."""
    paths = sorted((ROOT / "mlmd_calc/training/recipes").glob("*.toml"))
    recipes = "\n\n".join(
        f"## {path.stem}\n\n```toml\n{path.read_text('utf-8').strip()}\n```" for path in paths
    )
    return (
        "# Recipes\n\n`mlmd train --recipe NAME` takes one of these names or a file of your own, "
        "whose `base` may be one of them; `--set KEY=VALUE` changes single settings.\n\n"
        f"{recipes}\n"
    )
