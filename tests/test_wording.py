"""Counts in sentences: one molecule, two molecules."""

import pytest
from ase.build import molecule
from typer.testing import CliRunner

from mlmd_calc.cli import app
from mlmd_calc.electrons import TrainedState
from mlmd_calc.training.stop import TrainingStopped
from mlmd_calc.wording import counted


@pytest.mark.parametrize(
    ("count", "words", "expected"),
    [
        (0, ("atom",), "0 atoms"),
        (1, ("atom",), "1 atom"),
        (2, ("atom",), "2 atoms"),
        (12345, ("atom",), "12,345 atoms"),
        (1, ("entry", "entries"), "1 entry"),
        (3, ("entry", "entries"), "3 entries"),
    ],
)
def test_counts(count, words, expected):
    assert counted(count, *words) == expected


def test_one_frame_of_one_molecule(tmp_path):
    molecule("CH4").write(tmp_path / "one.xyz")
    found = CliRunner().invoke(app, ["data", "info", str(tmp_path / "one.xyz")])
    assert "1 entry, 1 frame\n" in found.stdout.replace("  ", "").replace(" \n", "\n")


def test_one_step_and_one_molecule_in_sentences():
    assert str(TrainingStopped(1)).endswith("after 1 step")
    assert str(TrainingStopped(2)).endswith("after 2 steps")


def test_one_molecule_that_a_model_knows():
    assert (
        str(TrainedState(-1, 1, 1, 1)) == "charge -1, multiplicity 1 (1 molecule of up to 1 atom)"
    )
    assert (
        str(TrainedState(0, 1, 9, 33, 3))
        == "charge 0, multiplicity 1 (9 molecules of 3 to 33 atoms)"
    )
