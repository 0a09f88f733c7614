"""Every script and every command in README and docs runs, each in a process of its own."""

import ast
import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import typer
from another_process import Child, code, mlmd, run_child

from mlmd_calc.cli import app

ROOT = Path(__file__).resolve().parents[1]
TORCHSIM = importlib.util.find_spec("torch_sim") is not None
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]

# ---- scripts ---------------------------------------------------------------------------------

SHORTER = {
    "dyn.run(1000)": "dyn.run(5)",
    "repeat=100": "repeat=2",
    # To fit cheap forces takes long.
    "atoms.calc = MDETCalculator()\ncheap": (
        'atoms = molecule("H2O")\natoms.calc = MDETCalculator()\n'
        "from mlmd_calc.bonded import network\nnetwork._STEPS = 50\ncheap"
    ),
    "frames=1600, neurons=128": "frames=40, neurons=4",
    "frames=100, seed": "frames=40, seed",
    "dyn.run(100)": "dyn.run(5)",
    "run.run(500)": "run.run(5)",
    "dyn = JumpNVT(atoms, 1e4": (
        "propagator.reference_steps = propagator.langevin_steps = 20\ndyn = JumpNVT(atoms, 1e4"
    ),
    "dyn.run(20)\nsummary": "dyn.run(14)\nsummary",
    # As many structures as a calibration of the spread needs.
    "dyn.attach(trajectory, 20)\ndyn.run(8000)": "dyn.attach(trajectory, 1)\ndyn.run(130)",
    "step(simulation, 20000)": "step(simulation, 50)",
    "n_steps=1000": "n_steps=3",
    # As it was before TorchSim 0.4.
    "=ts.Integrator.": "=getattr(ts, 'Integrator', ts).",
}
"""Smaller numbers in scripts, and smaller molecules."""

BEFORE = {
    "mixed = MLPotential": """
from openmm import app
pdb = app.PDBFile("ethanol.pdb")
topology, ml_atoms = pdb.topology, list(range(9))
classical_system = app.ForceField("ethanol_opls.xml").createSystem(topology)
""",
}
"""What a script takes for granted, by words in it."""


def scripts():
    """Python scripts of all documents."""
    found = []
    for path in DOCUMENTS:
        blocks = re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
        for i, block in enumerate(blocks):
            found.append(pytest.param(block, id=f"{path.name}-{i}"))
    return found


def shorter(script):
    """A script with smaller numbers."""
    for long, short in SHORTER.items():
        script = script.replace(long, short)
    return script


@pytest.mark.slow
@pytest.mark.parametrize("script", scripts())
def test_script_runs(script, tmp_path):
    if "openmm" in script:
        pytest.importorskip("openmm", reason="openmm is not installed")
    if "torch_sim" in script and not TORCHSIM:
        pytest.skip("TorchSim is not installed (extra torchsim)")
    for words, before in BEFORE.items():
        if words in script:
            script = before + script
    for name in ("ethanol.pdb", "ethanol_opls.xml", "alanine_dipeptide.pdb"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    run_child(code, shorter(script), cwd=tmp_path)


EXAMPLES = [
    pytest.param(path.read_text("utf-8"), id=path.name)
    for path in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.parametrize("script", [*scripts(), *EXAMPLES])
def test_scripts_import_every_module_that_they_name(script):
    """Where all is imported already, nobody notices that `import ase` does not bring `ase.io`."""
    nodes = list(ast.walk(ast.parse(script)))
    imports = [one for node in nodes if isinstance(node, ast.Import) for one in node.names]
    imported = [f"{one.name}." for one in imports if one.asname is None]
    for node in nodes:
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if any(one.startswith(f"{name.partition('.')[0]}.") for one in imported):
            known = any(one.startswith(f"{name}.") for one in imported)
            assert known or not is_module(name), f"import {name}"


def is_module(name):
    """Whether a dotted name is that of a module."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


# ---- public names ----------------------------------------------------------------------------


def exported(package):
    """Names on the face of a package or module, read without importing it."""
    path = ROOT.joinpath(*package.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text("utf-8"))
    values = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return ast.literal_eval(values[0]) if values else []


def test_public_names_are_those_of_the_document():
    rows = re.findall(
        r"^\|(.*)\|(.*)\|$", (ROOT / "docs/python.md").read_text("utf-8"), re.MULTILINE
    )
    documented, package = {}, ""
    for first, second in rows:
        package = first.strip(" `") or package
        documented.setdefault(package, set()).update(re.findall(r"`(\w+)`", second))
    faces = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("mlmd_calc", "openmm_bridge")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    faces |= {name for name in documented if name.startswith("mlmd_calc.")}
    shared = set(exported("mlmd_calc.models"))
    for package in sorted(faces):
        names = set(exported(package))
        if package in documented:
            # The networks are on the faces of their own packages as well.
            assert names - shared == documented[package] - shared, package
        else:
            assert names <= shared | {"structure_from_smiles"}, package


# ---- what documents quote --------------------------------------------------------------------


def texts_of_the_code():
    """Every text in the packages as it is written there, with … for values that are put in."""
    found = []
    for folder in ("mlmd_calc", "openmm_bridge"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (getattr(part, "value", None) for part in node.values)
                    found.append("".join(p if isinstance(p, str) else "…" for p in parts))
    return "\n".join(found)


def test_errors_of_the_guide_are_those_of_the_code():
    page = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    sentences = [sentence for heading in headings for sentence in re.findall("`(.*?)`", heading)]
    assert len(sentences) > 30
    texts = texts_of_the_code()
    assert [one for one in sentences if one.strip("… ") not in texts] == []


def test_numbers_of_the_model_guide_are_of_cards_and_benchmarks():
    from mlmd_calc.zoo import list_models

    others = ("benchmarks", "trust", "ensembles", "atmos")
    known = [str(card) for card in list_models()]
    known += [(ROOT / f"docs/{name}.md").read_text("utf-8") for name in others]
    measured = set(re.findall(r"\d+(?:\.\d+)?", " ".join(known)))
    guide = (ROOT / "docs/models.md").read_text("utf-8")
    numbers = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)(?= (?:and|%|ms|s|meV|times|against))", guide)
    assert len(numbers) > 15
    assert [one for one in numbers if one not in measured] == []


# ---- commands --------------------------------------------------------------------------------

WORDS = {
    "all20": "V",
    "bench forces --atoms 9 --atoms 21": "bench forces",
    "audit atom-small-organics ethanol": "audit atom-small-organics H2O",
    "audit mdet-small-organics ethanol": "audit mdet-small-organics H2O",
    "forces mdet-small-organics-gfn2 ethanol": "forces mdet-small-organics-gfn2 H2O",
    "SVKF GATL NDIY QPEM": "GATL",
    "propagate acetophenone but-1-ene cytosine dioxane ethylamine glycine_dipeptide isobutane "
    "methyl_formate phenol propionitrile pyrazole serine": "propagate isobutane",
    " --only Ace-D-Nme --only Ace-F-Nme --only Ace-K-Nme --only Ace-L-Nme --only Ace-N-Nme "
    "--only Ace-S-Nme --only Ace-T-Nme": "",
    "CH3CH2OH --mts 16": "H2O --mts 16",
    "CH3CH2OH --ensemble nve --mts 6": "CH4 --ensemble nve --mts 6",
    "models NAME": "models mdet-ethanol",
    "60000 1.9": "20 1.7",
    """ --set 'model={"preset": "paper"}'""": "",
}
"""Arguments in place of which smaller ones, or existing ones, are given."""

STEPS = "--set steps=2 --set warmup_steps=1"

OPTIONS = {
    "mlmd --install-completion": None,
    "mlmd audit": "--quick",
    "mlmd bench forces": "--atoms 9 --turns 1",
    "mlmd bench jump": None,
    "mlmd bench mdet": "--atoms 9",
    "mlmd bench overhead": "--atoms 9",
    "mlmd bench sampling": "--sequence A --frames 1 --mdet-atoms 5",
    "mlmd bench rollout": "--frames 4 --part 2 --steps 2",
    "mlmd bench table": "--quick --atoms 9 --html table.html",
    "mlmd bench table --device cuda": None,
    "mlmd data info": "",
    "mlmd data atlas": "",
    "mlmd data generate": "--frames 10 --thermalise 20",
    "mlmd data mdcath": "",
    "mlmd data mdgen": "--every 2",
    "mlmd data misato": "",
    "mlmd data peptides": "--ns 0.45 --equilibrate 1",
    "mlmd data peptides SVKF GATL --ns 2": "--ns 0.1 --equilibrate 1",
    "mlmd data peptides SVKF GATL NDIY QPEM --ns 0.5": "--ns 0.1 --equilibrate 1",
    "mlmd data peptides VKTAE RIFAQ": "--ns 0.1 --equilibrate 1",
    "mlmd data peptides LD KT FN": "--ns 0.1 --equilibrate 1",
    "mlmd data peptides AQ": "--ns 0.1 --equilibrate 1",
    "mlmd data peptides VEK TYA NIS": "--ns 0.1 --equilibrate 1",
    "mlmd data peptides H-KG-OH": None,
    "mlmd data timewarp": "",
    "mlmd data propagate": "--runs 10 --frames 20 --conformers 1",
    "mlmd demo": "--quick",
    "mlmd doctor": "",
    "mlmd doctor --estimate": "--estimate 9",
    "mlmd evaluate": "--frames 2",
    "mlmd evaluate spectrum": "--resolution 100",
    "mlmd evaluate spectrum forces-inside": "--resolution 1000",
    "mlmd evaluate spectrum box-inside": "--resolution 1000",
    "mlmd evaluate spectrum better-inside": "--resolution 1000",
    "mlmd evaluate rollouts held-out": "--frames 2 --replicas 2 --steps 2 --redraws 0",
    "mlmd evaluate rollouts peptides": "--frames 2 --steps 2 --redraws 0",
    "mlmd export": "",
    "mlmd finetune": STEPS,
    "mlmd interpolate": "--replicas 1 --steps 2 --redraws 0 --seed 1",
    "mlmd models": "",
    "mlmd run": "--duration 0.05",
    "mlmd run ethanol --ensemble nve --temperature 50": "--duration 0.4",
    "mlmd run ethanol --propagator atom-small-organics --frames": "--replicas 2 --duration 0.05",
    "mlmd run ethanol --propagator runs/ethanol": "--replicas 2 --duration 0.05",
    "mlmd run ethanol --propagator verlet --jump 8": "--replicas 2 --duration 0.05",
    "mlmd run ethanol --propagator verlet --replicas": "--replicas 2 --duration 0.02",
    "mlmd run --restart": "--duration 0.1",
    "mlmd run --restart --out exact": "--proposals 6",
    "mlmd run ethanol --exact": "--proposals 4 --warmup 2 --trajectory-steps 4 --no-relax",
    # A jump takes minutes of dynamics; test_load_propagator.py runs one, with less of it.
    "mlmd run sequence:A": None,
    "mlmd sample": "--frames 2 --seed 1",
    "mlmd sample sequence:A --model atmos-peptides --relax": (
        "--frames 1 --seed 1 --reference-ps 0.2"
    ),
    "mlmd sample --restart": "--frames 4",
    "mlmd sample sequence:AGSV": "--frames 10 --seed 1",
    "mlmd sample sequence:AAG": "--frames 2 --model atmos-peptides --seed 1",
    "mlmd train": STEPS,
    "mlmd train md17": (
        "--set steps=2 --set horizon=8 --set margin=0 --set train_starts=9 --set test_starts=9 "
        "--set validation_structures=9"
    ),
    "mlmd validate forces": "--duration 0.002",
    "mlmd validate forces mdet-ethanol-gfn2 ethanol --reference": "--duration 0.02 --replicas 1",
    "mlmd validate spread": "--frames 20",
    "mlmd validate spread runs/pyrrole": "",
    "mlmd validate jumps": "--duration 0.05 --reference 0.05 --friction 20 --replicas 1",
    "pip install '.[openmm]' && mlmd demo": None,
    "pip install '.[test]' && pytest": None,
    "pip install": None,
    "pytest tests/test_mdet_parity.py": "",
    "python benchmarks/bench_atom.py": "--molecules 1",
    "python benchmarks/bench_checkpointing.py": None,
    "python benchmarks/bench_precision.py": "--steps 1",
    "python benchmarks/bench_exact.py": "--proposals 10 --trajectory 2 --picoseconds 0.1",
    "python benchmarks/bench_exact_mts.py": (
        "--molecules methane --steps 4 --picoseconds 0.5 --plain 0.5 --frames 210 --neurons 4"
    ),
    "python benchmarks/bench_mts.py": (
        "--molecules methane --methods conservative 'MTS 2' --picoseconds 0.02 --thermalise 0.01"
    ),
    "python benchmarks/bench_torchsim.py": (
        "--molecules 2 --steps 16 --turns 1" if TORCHSIM else None
    ),
    "python benchmarks/isotropy.py": None,
    "python benchmarks/md17_like.py": "--frames 60 --thermalise 5",
    "python benchmarks/ship_model.py": None,
    "python benchmarks/stability.py": (
        "--picoseconds 0.01 --molecules methane --settings 'direct, offset, float64'"
    ),
    "python examples/openmm_solute_in_water.py": "",
}
"""Options that make a command small, by its first words; None: not run here.

The last of an option that is given twice counts. Installation is how all tests begin, completion is
written into the user's own files, there may be no GPU and no TorchSim; the other benchmarks that
are left out take minutes in their smallest form and have tests of their own.
"""


def commands():
    """Commands of all documents in their order, in fences and between words."""
    found = []
    pattern = r"```bash\n(.*?)```|```.*?```|`((?:mlmd|python|pytest|pip) [^`]+)`"
    for path in DOCUMENTS:
        for match in re.finditer(pattern, path.read_text("utf-8"), re.DOTALL):
            lines = [" ".join(match[2].split())] if match[2] else (match[1] or "").splitlines()
            found += [line for line in lines if line and not is_name(line)]
    return list(dict.fromkeys(found))


@functools.cache
def command_group():
    """The commands of `mlmd`; to make them takes long."""
    return typer.main.get_command(app)


def is_name(line):
    """Whether this is the name of a command, said without the arguments it needs."""
    group = command_group()
    first, *words = line.split()
    for word in words:
        if first != "mlmd" or word not in getattr(group, "commands", {}):
            return line in ("mlmd run --restart", "mlmd sample --restart")
        group = group.commands[word]
    return line != "mlmd doctor" and not line.startswith("mlmd bench")


def small(line):
    """Return a command of the same kind that takes seconds, or None."""
    beginning = max((words for words in OPTIONS if line.startswith(words)), key=len, default="")
    assert beginning, f"{line!r} has no entry in OPTIONS that says how to make it small"
    options = OPTIONS[beginning]
    if options is None:
        return None
    for word, smaller in WORDS.items():
        line = line.replace(word, smaller)
    for folder in ("benchmarks", "examples", "tests"):
        line = line.replace(f" {folder}/", f" {ROOT / folder}/")
    if line.startswith(("mlmd run", "mlmd sample")) and "--out" not in line:
        options += f" --out {abs(hash(line))}"
    return f"{line} {options}"


def prepare(folder):
    """Write what the documents take for granted: data of other people, and a trajectory."""
    pytest.importorskip("h5py", reason="h5py writes the files of other people")
    import test_mdcath
    import test_misato
    import test_operator_metrics
    import test_published_layouts
    import test_training_atmos

    from mlmd_calc.biomolecules.pdb import format_structure
    from mlmd_calc.data.biomolecules.peptides import capped_peptide
    from mlmd_calc.training.recipe import load_recipe

    test_mdcath.write(folder / "mdcath_dataset_1abcA00.h5")
    _, topology, _ = test_misato.write(folder)
    complexed = folder / "parameter_restart_files_MD" / "10gs"
    complexed.mkdir(parents=True)
    topology.rename(complexed / topology.name)
    test_published_layouts.write_atlas(folder / "1abc_A_protein")
    test_published_layouts.write_mdgen(folder / "4AA_sims" / "AIKW")
    test_published_layouts.write_timewarp(folder)
    (folder / "end.pdb").write_text(format_structure(capped_peptide("V", 1)))
    test_operator_metrics.write_later_run(folder)
    sizes = load_recipe("atmos-peptides").network_config(2.0)
    test_training_atmos.protenix_file(folder / "model_v0.5.0.pt", sizes)
    line = "mlmd data generate ethanol butane --mode nve --frames 400 --thermalise 20 --out traj"
    assert run(line, folder).returncode == 0
    # The commands of this page go on with what its script writes.
    (labelling,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/finetune.md").read_text("utf-8"), re.DOTALL
    )
    subprocess.run([sys.executable, "-c", shorter(labelling)], cwd=folder, check=True)


def run(line, folder):
    """Run a line of the shell with the programs of this environment."""
    # `mlmd bench` needs a checkout, also where the package is installed.
    if line.startswith("mlmd ") and not line.startswith("mlmd bench") and not set(line) & _OF_SHELL:
        with Child(documented, *shlex.split(line)[1:], cwd=folder) as child:
            return subprocess.CompletedProcess(line, *child.wait(timeout=900))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


_OF_SHELL = set("&|;<>*?$`~")
"""With none of these a line means the same to a shell and to `shlex.split`."""


def documented(*arguments):
    """Be the command `mlmd` as a user starts it, to whom warnings are none but sentences."""
    warnings.simplefilter("default")
    mlmd(*arguments)


def test_every_command_has_a_small_form():
    assert [line for line in commands() if small(line)]


@pytest.mark.documents
def test_commands_run(tmp_path):
    for package in ("openmm", "rdkit", "tblite", "lightning"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    prepare(tmp_path)
    failed = []
    for line in filter(None, map(small, commands())):
        begin = time.monotonic()
        done = run(line, tmp_path)
        print(f"{done.returncode} {time.monotonic() - begin:4.0f} s  {line}", flush=True)
        if done.returncode != 0:
            failed.append(f"{line}\n{done.stdout[-500:]}{done.stderr[-1000:]}")
    assert not failed, "\n\n".join(failed)
