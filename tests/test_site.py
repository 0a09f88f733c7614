"""The documents as a site: builds without warnings and without network, and is complete."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

from mlmd_calc.cli import app

ROOT = Path(__file__).resolve().parents[1]

WITHOUT_NETWORK = """
import socket
def refuse(*_):
    raise OSError("the site must build without network")
socket.socket.connect = socket.create_connection = refuse
from mkdocs.__main__ import cli
cli()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra docs)")
    folder = tmp_path_factory.mktemp("site")
    arguments = ["build", "--strict", "-f", str(ROOT / ".ci/mkdocs.yml"), "-d", str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Page(HTMLParser):
    """What a page loads, its ids, and its words."""

    def __init__(self, path):
        super().__init__()
        self.loaded, self.ids, self.words = [], set(), []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        source = attributes.get("src") if tag != "link" else attributes.get("href")
        if source and attributes.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(source)

    def handle_data(self, data):
        self.words += data.split()


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    loaded = {source for path in pages for source in Page(path).loaded}
    assert any(source.endswith(".js") for source in loaded)
    assert [source for source in loaded if "//" in source] == []


def test_tutorials_are_notebooks_too(site):
    notebooks = list(site.glob("notebooks/*.ipynb"))
    assert {path.stem for path in notebooks} >= {"vibrations", "free_energy", "finetune"}
    for path in notebooks:
        book = json.loads(path.read_text("utf-8"))
        assert (book["nbformat"], {cell["cell_type"] for cell in book["cells"]}) == (
            4,
            {"markdown", "code"},
        )
        text = (ROOT / "docs" / f"{path.stem}.md").read_text("utf-8")
        code = [cell["source"] for cell in book["cells"] if cell["cell_type"] == "code"]
        assert [one for one in code if one[0] != "!"] == re.findall(
            r"```python\n(.*?)```", text, re.DOTALL
        )
        lines = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
        assert [line for one in code if one[0] == "!" for line in one.splitlines()] == [
            f"!{line}" for line in lines if line
        ]
        # Nothing else is lost.
        words = "".join(cell["source"] for cell in book["cells"] if cell["cell_type"] != "code")
        assert re.sub(r"```(?:python|bash)\n.*?```\n?", "", text, flags=re.DOTALL).split() == (
            words.split()
        )
        assert f"notebooks/{path.name}" in (site / f"{path.stem}.html").read_text("utf-8")


def commands(group, path="mlmd"):
    children = getattr(group, "commands", None)
    if children is None:
        yield path, group
        return
    for name, child in children.items():
        yield from commands(child, f"{path} {name}")


def test_every_command_and_option_is_listed(site):
    page = Page(site / "reference/commands.html")
    for path, command in commands(typer.main.get_command(app)):
        assert path.replace(" ", "-") in page.ids
        for option in command.params:
            if option.param_type_name == "option":
                assert set(option.opts) <= set(page.words), f"{path} {option.opts}"


def test_every_public_name_has_its_docstring(site):
    from test_documents import exported

    pages = sorted((site / "reference/python").glob("*.html"))
    assert len(pages) > 10
    for path in pages:
        package = path.stem
        wanted = {f"{package}.{name}" for name in exported(package) if not name.startswith("_")}
        assert wanted <= Page(path).ids, package
        assert ":class:" not in path.read_text("utf-8"), "a role that was not turned into a link"


def test_every_card_and_recipe_is_shown(site):
    from mlmd_calc.training.recipe import list_recipes
    from mlmd_calc.zoo import list_models

    cards = Page(site / "reference/cards.html").ids
    assert {card.name for card in list_models()} <= cards
    assert set(list_recipes()) <= Page(site / "reference/recipes.html").ids
