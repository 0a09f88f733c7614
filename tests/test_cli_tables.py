"""Tables stay legible in a narrow terminal: no number is cut."""

import re

import pytest
from rich.table import Column, Table

from mlmd_calc.cli.tables import print_table

NUMBERS = ["123456.7", "22222.2", "1000000.0", "-0.12345", "98765.4321", "1.5e-10", "100000"]
NAMES = ["ethanol", "a_long_name_of_a_molecule_17"]


@pytest.fixture(params=[40, 80, 120])
def terminal(request, monkeypatch):
    for name, value in {"COLUMNS": request.param, "FORCE_COLOR": 1, "TERM": "xterm"}.items():
        monkeypatch.setenv(name, str(value))
    return request.param


def wide_table():
    headings = (f"error of quantity {i}, meV/atom" for i in range(len(NUMBERS)))
    table = Table(
        Column("molecule", no_wrap=True),
        *(Column(heading, justify="right") for heading in headings),
        title="errors",
        caption="word " * 30,
    )
    for name in NAMES:
        table.add_row(name, *NUMBERS)
    return table


def shown(capsys):
    """Lines of the output without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


def words_of(text):
    return re.findall(r"[^\s│┃]+", text)


def test_a_wide_table_continues_below(terminal, capsys):
    print_table(wide_table())
    lines = shown(capsys)
    assert max(map(len, lines)) <= terminal
    words = words_of("\n".join(lines))
    for number in NUMBERS:
        assert words.count(number) == len(NAMES)
    # Every part names its rows again; names are folded before numbers are.
    assert words.count("ethanol") == {40: 7, 80: 2, 120: 1}[terminal]
    assert sum("errors" in line for line in lines) == 1
    assert words.count("word") == 30


def test_texts_share_what_numbers_leave(terminal, capsys):
    table = Table("model", "parameters", "description")
    table.add_row("small", "1,234,567", "one two three four " * 20)
    print_table(table)
    lines = shown(capsys)
    assert max(map(len, lines)) <= terminal
    out = "\n".join(lines)
    assert {"1,234,567", "parameters", "small"} <= set(words_of(out))
    assert words_of(out).count("three") == 20


def test_a_word_longer_than_a_line_is_folded(terminal, capsys):
    table = Table("", "", show_header=False)
    path = "/folder" * 30
    table.add_row("file", path)
    print_table(table)
    lines = shown(capsys)
    assert max(map(len, lines)) <= terminal
    assert "".join(words_of("\n".join(lines))).count("/folder") == 30


def test_a_file_has_room_for_all_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_table(wide_table())
    rows = [words_of(line) for line in shown(capsys)]
    assert [row for row in rows if row and row[0] in NAMES] == [[n, *NUMBERS] for n in NAMES]


def test_labels_are_not_wrapped_where_a_path_is_long(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = Table("", "", show_header=False)
    table.add_row("steps accepted", "97 %")
    table.add_row("folder", "/folder" * 30)
    print_table(table)
    lines = shown(capsys)
    assert any("steps accepted" in line for line in lines)
    assert any("/folder" * 30 in line for line in lines)
