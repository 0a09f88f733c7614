"""What the distribution holds, and what it says of itself."""

import configparser
import email
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import mlmd_calc

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mlmd_calc", "openmm_bridge")
WEIGHTS = "mlmd_calc/zoo/weights/"


def sources():
    """Files of both packages in the checkout, by their names in a wheel."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found[path.relative_to(ROOT).as_posix()] = path
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="71", reason="setuptools 71 builds the wheel")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.mark.slow
def test_wheel_holds_the_packages_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    # All data files are declared in setup.cfg, and nothing is packed that is not in the checkout.
    assert names == set(sources())
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    for suffix in (".toml", ".csv", ".txt", ".safetensors"):
        assert any(name.endswith(suffix) for name in names), suffix


@pytest.mark.slow
def test_wheel_holds_the_models_of_the_manifest_and_nothing_as_large(wheel):
    manifest = json.loads(wheel.read(f"{WEIGHTS}manifest.json"))
    models = {f"{WEIGHTS}{entry['file']}": entry["sha256"] for entry in manifest}
    for name, checksum in models.items():
        assert hashlib.sha256(wheel.read(name)).hexdigest() == checksum, name
    sizes = {entry.filename: entry.file_size for entry in wheel.infolist()}
    others = {name: size for name, size in sizes.items() if name not in models}
    smallest = min(sizes[name] for name in models)
    assert max(others.values()) < smallest / 10, max(others, key=others.get)
    assert sum(others.values()) < sum(sizes[name] for name in models) / 4
    # What the package index takes without asking.
    assert sum(entry.compress_size for entry in wheel.infolist()) < 100e6


@pytest.mark.slow
def test_wheel_says_what_it_needs_and_which_commands_it_brings(wheel):
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert metadata["Version"] == mlmd_calc.__version__
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    core = declared["options"]["install_requires"].strip().splitlines()
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(required) == len(core)
    assert set(metadata.get_all("Provides-Extra")) == set(declared["options.extras_require"])
    points = configparser.ConfigParser()
    points.read_string(wheel.read(f"{folder}/entry_points.txt").decode())
    for group in ("console_scripts", "openmmml.potentials"):
        for target in points[group].values():
            module, name = target.split(":")
            if group == "console_scripts":
                assert callable(getattr(importlib.import_module(module), name))
            else:
                assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_shells_complete_the_commands():
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_MLMD_COMPLETE": "complete_bash",
        "COMP_WORDS": "mlmd de",
        "COMP_CWORD": "1",
    }
    mlmd = Path(sys.executable).with_name("mlmd")
    if not mlmd.exists():
        pytest.skip("the package is not installed, so that there is no program mlmd")
    done = subprocess.run([mlmd], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["demo"], done.stderr


def test_citation_has_the_papers_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == mlmd_calc.__version__
    readme = (ROOT / "README.md").read_text("utf-8")
    for key in ("message", "title", "authors"):
        assert citation[key]
    assert len(citation["references"]) == readme.count("@misc{") == 3
    for reference in citation["references"]:
        # What the format demands of a reference.
        assert reference["type"]
        assert reference["title"]
        identifier = reference["identifiers"][0]["value"].removeprefix("arXiv:")
        assert f"eprint={{{identifier}}}" in readme
        for author in reference["authors"]:
            name = author.get("family-names", "")
            assert name.replace("ü", '{\\"u}') in readme
            assert name or author["name"]
