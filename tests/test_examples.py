"""The examples and the script in the README run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from another_process import run_child, script

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


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name
)
def test_example_runs(path, tmp_path):
    if path.name.startswith("openmm"):
        pytest.importorskip("openmm", reason="openmm is not installed")
    if path.name.startswith("ipi") and not Path(sys.executable).with_name("i-pi").exists():
        pytest.skip("i-pi is not installed (pip install ipi)")
    assert run_child(script, path, *ARGUMENTS.get(path.name, []), cwd=tmp_path)


def test_readme_script_runs_in_a_python_of_its_own(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    assert "dyn.run(1000)" in code[1]
    path = tmp_path / "readme.py"
    path.write_text(code[1].replace("dyn.run(1000)", "dyn.run(5)"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
