"""The examples and the script in the README run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = {
    "ase_langevin.py": ["20"],
    "hybrid_loop.py": ["4"],
    "ipi_client.py": ["4"],
    "jump_nvt.py": ["4"],
    "openmm_atmos_jump.py": ["3"],
    "openmm_jump_nve.py": ["4"],
    "openmm_langevin.py": ["20"],
    "openmm_mts.py": ["4"],
    "openmm_torchscript.py": ["20"],
    "openmm_solute_in_water.py": ["20", "1.7"],
}


# Where programs of this environment are, which need not be active.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(script, folder):
    return subprocess.run(
        [sys.executable, "-W", "error", script, *ARGUMENTS.get(script.name, [])],
        cwd=folder,
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name
)
def test_example_runs(script, tmp_path):
    if script.name.startswith("openmm"):
        pytest.importorskip("openmm", reason="openmm is not installed")
    if script.name.startswith("ipi") and shutil.which("i-pi", path=PATH) is None:
        pytest.skip("i-pi is not installed (pip install ipi)")
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_readme_script_runs(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    assert "dyn.run(1000)" in code[1]
    script = tmp_path / "readme.py"
    script.write_text(code[1].replace("dyn.run(1000)", "dyn.run(5)"), encoding="utf-8")
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
