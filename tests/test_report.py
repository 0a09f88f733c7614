"""What commands have found as one page: whole, without other files, with all that was found."""

import json
import re

import pytest
from pages import browser, shown, whole_page
from rich.table import Column, Table
from typer.testing import CliRunner

import mlmd_calc
from mlmd_calc.cli import app
from mlmd_calc.cli.report import Report
from mlmd_calc.zoo import load_any_model


def invoke(*arguments):
    """Run a command of `mlmd`; return what it prints."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of water, its page and its summary."""
    folder = tmp_path_factory.mktemp("run")
    options = ("--duration", "0.1", "--interval", "4", "--seed", "1", "--ensemble", "nve")
    printed = invoke(
        "run", "H2O", *options, "--out", folder, "--html", folder / "page.html", "--json"
    )
    return folder, json.loads(printed)


@pytest.mark.skipif(browser() is None, reason="there is no Chromium to open pages with")
@pytest.mark.parametrize("width", [600, 1200])
def test_browser_shows_all_of_a_page(run, width):
    folder, _ = run
    page = whole_page(folder / "page.html")
    found = shown(folder / "page.html", width)
    assert found["width"] <= width
    assert len(found["pictures"]) == len(page.pictures) > 0
    # Pictures and tables are seen without scrolling to the side.
    assert all(0 < one <= width for one in found["pictures"] + found["tables"])


def test_texts_are_taken_as_they_are(tmp_path):
    """Neither what looks like HTML nor rich's markup is left in the page."""
    report = Report("1 < 2 & 3")
    table = Table("a", Column("b", justify="right"), title="[bold]<title>[/]", caption="&c")
    table.add_row("[green]pass[/]", "x < y")
    table.add_section()
    report.table(table)
    report.text("<script>alert(1)</script>")
    path = tmp_path / "new" / "page.html"
    report.write(path)
    page = whole_page(path)
    for words in ("1 < 2 & 3", "<title>", "&c", "pass", "x < y", "<script>alert(1)</script>"):
        assert words in page.text
    assert '<span class="green">pass</span>' in path.read_text("utf-8")
    assert f"mlmd {mlmd_calc.__version__}" in page.text


def test_pictures_are_taken_up_and_kept(tmp_path):
    report = Report("pictures")
    content = b"\x89PNG\r\nnot drawn"
    with report.drawing(tmp_path / "kept") as folder:
        (folder / "some-thing.png").write_bytes(content)
    assert (tmp_path / "kept" / "some-thing.png").read_bytes() == content
    report.write(tmp_path / "page.html")
    assert whole_page(tmp_path / "page.html").pictures == [content]


def test_page_of_a_run(run):
    folder, summary = run
    page = whole_page(folder / "page.html")
    assert page.pictures == [(folder / "run.png").read_bytes()]
    assert f"{summary['ns_per_day']:.3g} ns/day" in page.text
    card = load_any_model(None, device="cpu").card
    assert card.sha256 in page.text.replace(" ", "")
    assert "largest gap" in page.text


def test_page_of_a_continued_run_with_replicas(tmp_path):
    """A picture for each replica, and the cards of both models."""
    options = ("--propagator", "atom-small-organics", "--replicas", "2", "--seed", "1")
    invoke("run", "CH4", *options, "--duration", "0.08", "--out", tmp_path)
    page = tmp_path / "page.html"
    invoke("run", "--restart", "--duration", "0.12", "--out", tmp_path, "--html", page)
    read = whole_page(page)
    assert len(read.pictures) == 2
    for name in ("atom-small-organics", "mdet-small-organics"):
        assert f"Model card of {name}" in read.text


@pytest.mark.parametrize(
    ("command", "pictures"),
    [
        ("evaluate forces DATA", 1),
        ("evaluate spectrum DATA --model mdet-small-organics --resolution 500", 1),
        ("evaluate jumps DATA --model atom-small-organics --time 2 --frames 2", 1),
        ("validate spread mdet-small-organics DATA", 1),
        ("validate forces mdet-small-organics H2O --duration 0.002 --replicas 1", 0),
        (
            "validate jumps atom-small-organics H2O --duration 0.04 --friction 20 --replicas 1 "
            "--reference 0.02",
            1,
        ),
    ],
)
def test_pages_have_what_is_printed(run, tmp_path, command, pictures):
    data = str(run[0] / "trajectory.extxyz")
    words = [data if word == "DATA" else word for word in command.split()]
    printed = invoke(*words, "--html", tmp_path / "page.html")
    page = whole_page(tmp_path / "page.html")
    assert len(page.pictures) == pictures
    numbers = re.findall(r"\d+\.\d+", printed)
    assert numbers
    assert set(numbers) <= set(re.findall(r"\d+\.\d+", page.text))


def test_page_of_sampled_frames(tmp_path):
    pytest.importorskip("mdtraj", reason="mdtraj, which writes XTC files, is not installed")
    page = tmp_path / "page.html"
    invoke(
        *("sample", "sequence:A", "--model", "atmos-peptides", "--frames", "3", "--seed", "1"),
        *("--replicas", "2", "--out", tmp_path / "out", "--html", page),
    )
    read = whole_page(page)
    assert len(read.pictures) == 2
    assert "2 × 3 frames, 10 ps apart" in read.text
    assert "Model card of atmos-peptides" in read.text
