"""Where test data lie, and small models that many tests share."""

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from toy_models import SMALL, random_network

from mlmd_calc.biomolecules import BondedStructure, read_structure
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


@pytest.fixture(scope="session")
def dipeptide(tmp_path_factory: pytest.TempPathFactory) -> BondedStructure:
    """Alanine between caps, with names and bonds."""
    from peptide_structures import write_dipeptide  # needs RDKit

    return read_structure(write_dipeptide(tmp_path_factory.mktemp("pdb") / "dipeptide.pdb"))


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[[str], ModuleType]]:
    """What imports a script of the folder of benchmarks by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
        yield importlib.import_module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests: no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
