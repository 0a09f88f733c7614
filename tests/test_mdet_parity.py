"""Agreement with the MD-ET authors' implementation for every case of known answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from conftest import GOLDEN

from mlmd_calc import MDETCalculator, units
from mlmd_calc.models import MDET
from mlmd_calc.models.mdet.embeddings import pair_geometry

FOLDER = GOLDEN / "mdet"
CASES = sorted(path for path in FOLDER.glob("*") if path.is_dir())
ABSENT = f"no known answers at {FOLDER}; set MLMD_GOLDEN to the folder that holds mdet/"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=ABSENT)

FLOAT64_TOLERANCE = 1e-8
FLOAT32_TOLERANCE = 2e-4


class Case:
    """One run directory with its answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path / "expected.npz", allow_pickle=False) as file:
            self.expected = {name: file[name] for name in file.files}
        listed = json.loads((FOLDER / "molecules.json").read_text())["molecules"]
        self.molecules = {
            entry["name"]: ase.Atoms(
                entry["numbers"],
                positions=entry["positions_ang"],
                info={"charge": entry["charge"], "multiplicity": entry["multiplicity"]},
            )
            for entry in listed
        }

    def calculator(self, dtype: str = "float64", projected: bool = False) -> MDETCalculator:
        return MDETCalculator(
            str(self.path),
            device="cpu",
            dtype=dtype,
            rotation="none",
            remove_net_force=projected,
            remove_net_torque=projected,
        )

    def answers(self, quantity: str) -> Iterator[tuple[str, ase.Atoms, np.ndarray]]:
        """Name, atoms and answer of every molecule that has one; there must be one."""
        found = [
            (name, atoms, self.expected[f"{name}.{quantity}"])
            for name, atoms in self.molecules.items()
            if f"{name}.{quantity}" in self.expected
        ]
        assert found, f"{self.path.name} has no {quantity}"
        yield from found


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.name)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_the_folder_holds_cases() -> None:
    assert CASES


@pytest.mark.parametrize("projected", [False, True], ids=["raw", "filtered"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "mixed"])
def test_forces(case: Case, dtype: str, projected: bool) -> None:
    calculator = case.calculator(dtype, projected)
    for name, atoms, expected in case.answers(
        "forces_filtered.f64" if projected else "forces_raw.f64"
    ):
        # The original answers a single atom with shape (3,).
        error = np.abs(calculator.get_forces(atoms) - expected.reshape(-1, 3)).max()
        scale = np.abs(case.expected[f"{name}.forces_raw.f64"]).max()
        # Single precision answers of the original are noisier than its formulas.
        tolerance = FLOAT64_TOLERANCE if dtype == "float64" else FLOAT32_TOLERANCE * scale
        assert error <= tolerance, name


def test_charge_and_multiplicity_from_the_constructor(case: Case) -> None:
    special = [a for a in case.answers("forces_raw.f64") if list(a[1].info.values()) != [0, 1]]
    if not special:
        pytest.skip("all molecules of this case are neutral singlets")
    for name, atoms, expected in special:
        state = dict(atoms.info)
        bare = ase.Atoms(atoms.numbers, atoms.positions)
        calculator = case.calculator()
        calculator.set(**state)
        error = np.abs(calculator.get_forces(bare) - expected.reshape(-1, 3)).max()
        assert error <= FLOAT64_TOLERANCE, name
        bare.info = {"charge": state["charge"], "spin": state["multiplicity"]}
        assert np.array_equal(calculator.get_forces(bare), case.calculator().get_forces(bare))


@pytest.mark.parametrize("dtype", ["float64", "float32", "mixed"])
def test_energy(case: Case, dtype: str) -> None:
    calculator = case.calculator(dtype)
    if calculator.potential.conservative:
        pytest.skip("the original returns no energy for this kind of model")
    tolerance = FLOAT64_TOLERANCE if dtype == "float64" else 1e-5
    for name, atoms, expected in case.answers("energy_eV.f64"):
        assert abs(calculator.get_potential_energy(atoms) - float(expected)) <= tolerance, name


def test_forces_of_conservative_models_are_minus_the_gradient_of_the_energy(case: Case) -> None:
    calculator = case.calculator()
    if not calculator.potential.conservative:
        pytest.skip("this model has a force head")
    for _, atoms, _ in case.answers("forces_raw.f64"):
        forces = calculator.get_forces(atoms)
        direction = np.random.default_rng(0).normal(size=forces.shape)
        # Fourier features turn over within 1e-4 Å.
        step = 1e-6
        moved = [atoms.copy() for _ in range(4)]
        for factor, copy in zip((-2, -1, 1, 2), moved, strict=True):
            copy.positions += factor * step * direction
        a, b, c, d = (calculator.get_potential_energy(copy) for copy in moved)
        slope = (a - 8 * b + 8 * c - d) / (12 * step)
        assert slope == pytest.approx(-np.sum(forces * direction), rel=1e-6, abs=1e-7)


def test_hessian(case: Case) -> None:
    calculator = case.calculator()
    if not any(name.endswith(".hessian.f64") for name in case.expected):
        pytest.skip("the original has no Hessian for this kind of model")
    config = calculator.potential.model.network.config
    # The slopes of Fourier features are four orders of magnitude above the forces.
    relative = 1e-5 if config.directions == "fourier" else 1e-8
    for name, atoms, expected in case.answers("hessian.f64"):
        hessian = calculator.potential.hessian(atoms)
        assert np.abs(hessian.matrix - expected).max() <= relative * np.abs(expected).max(), name
        assert np.array_equal(calculator.get_hessian(atoms), hessian.matrix)
        # The original divides by the norm of the symmetric part, we by that of the whole.
        ratio = float(case.expected[f"{name}.hessian_antisym_ratio.f64"])
        assert hessian.antisymmetry == pytest.approx(ratio / np.hypot(1.0, ratio), rel=relative)


def bare_inputs(atoms: ase.Atoms) -> tuple[torch.Tensor, ...]:
    positions = atoms.positions / units.MDET_BOHR
    return (
        torch.from_numpy(positions - positions.mean(axis=0))[None],
        torch.from_numpy(atoms.numbers)[None],
        None,
        torch.tensor([atoms.info["charge"]]),
        torch.tensor([atoms.info["multiplicity"]]),
    )


def double_network(case: Case) -> MDET:
    return case.calculator().potential.model.network.double()


def test_bare_network_outputs(case: Case) -> None:
    network = double_network(case)
    for name, atoms, expected in case.answers("model_forces_au.f64"):
        positions, *rest = bare_inputs(atoms)
        positions.requires_grad_()
        out = network(positions, *rest)
        if network.config.energy_conserving:
            (forces,) = torch.autograd.grad(out["potential"].sum(), positions)
        else:
            forces = out["forces"]
            energy = out["formation_energy" if "formation_energy" in out else "energy"]
            reference = case.expected[f"{name}.model_energy_au.f64"]
            assert np.allclose(energy.detach().numpy().ravel(), reference.ravel(), 0, 1e-9)
        for ours, theirs in (
            (forces, expected),
            (out["embd"], case.expected[f"{name}.model_embd.f64"]),
        ):
            assert np.allclose(ours.detach().numpy().ravel(), theirs.ravel(), 0, 1e-9), name


def test_every_traced_stage(case: Case) -> None:
    traced = {tuple(n.split(".")[1:3]): a for n, a in case.expected.items() if n[:6] == "trace."}
    if not traced:
        pytest.skip("this case has no intermediate tensors")
    network = double_network(case)
    stages: dict[str, torch.Tensor] = {}

    def keep(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda _module, _inputs, out: stages.update({name: out}))

    keep("distance_embed", network.embedding.m3d_embed)
    keep("directional_embed", network.embedding.directional_embed)
    keep("composer", network.composer)
    keep("decomposer", network.decomposer)
    for index, layer in enumerate(network.layers):
        keep(f"layer{index}_attention", layer.attention)
        keep(f"layer{index}", layer)
    for name in {name for name, _ in traced}:
        inputs = bare_inputs(case.molecules[name])
        with torch.no_grad():
            network(*inputs)
            positions, numbers, _, charge, multiplicity = inputs
            mask = torch.ones_like(numbers, dtype=torch.bool)
            stages["node"] = network.embedding.nodes(numbers, charge, multiplicity)
            stages["edge"] = network.embedding.edges(
                pair_geometry(positions, mask), numbers, torch.float64
            )
        for (molecule, stage), expected in traced.items():
            if molecule == name:
                assert np.allclose(stages[stage].numpy().ravel(), expected.ravel(), 0, 1e-9), stage
