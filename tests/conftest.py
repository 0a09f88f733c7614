"""Where test data lie, and small models that many tests share."""

import os
from pathlib import Path

import pytest
from toy_models import SMALL, random_network

from mlmd_calc.zoo import save_model

_DATA = Path(__file__).resolve().parents[2] / "shared"

GOLDEN = Path(os.environ.get("MLMD_GOLDEN", _DATA / "golden"))
"""Known answers of the MD-ET authors' implementation."""

REAL_DATA = _DATA / "data" / "real"
"""Excerpts of public data sets."""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A small random model that claims to know H, C, N and O."""
    path = tmp_path / "toy.safetensors"
    save_model(path, random_network(SMALL), {}, {"name": "toy", "elements": [1, 6, 7, 8]})
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests: no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
