"""The yardstick of the benchmark computes what the MD-ET authors' calculator computes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("MLMD_GOLDEN", ROOT.parent / "shared" / "golden")) / "mdet"
SUPPORTED_CASES = ("a_direct_gaussian", "b_fourier_gaussian")


@pytest.fixture(scope="module")
def reference(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("mdet_reference")


@pytest.fixture(scope="module")
def forms(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("mdet_forms")


def read_case(case: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], Any, list[Any]]:
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden data at {GOLDEN}; set MLMD_GOLDEN to their directory")
    folder = GOLDEN / case
    options = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())["train"]["model"]
    checkpoint = torch.load(folder / "ckpts" / "best_model.pth", weights_only=True)
    expected = np.load(folder / "expected.npz", allow_pickle=False)
    molecules = json.loads((GOLDEN / "molecules.json").read_text())["molecules"]
    return options, checkpoint["model_state_dict"], expected, molecules


@pytest.mark.parametrize("filter_forces", [True, False])
@pytest.mark.parametrize("case", SUPPORTED_CASES)
def test_float64_matches_the_authors_calculator(
    reference: ModuleType, case: str, filter_forces: bool
) -> None:
    options, weights, expected, molecules = read_case(case)
    weights = {key: value.double() for key, value in weights.items()}
    config = reference.ReferenceConfig.from_options(options)
    tag = "forces_filtered" if filter_forces else "forces_raw"
    for molecule in molecules:
        energy, forces = reference.literal_calculate(
            weights,
            config,
            np.array(molecule["positions_ang"]),
            np.array(molecule["numbers"]),
            molecule["charge"],
            molecule["multiplicity"],
            filter_forces=filter_forces,
        )
        name = molecule["name"]
        np.testing.assert_allclose(forces, expected[f"{name}.{tag}.f64"], rtol=0, atol=1e-9)
        assert energy == pytest.approx(float(expected[f"{name}.energy_eV.f64"]), abs=1e-9)


def test_unsupported_options_are_refused(reference: ModuleType) -> None:
    options, *_ = read_case("c_sh_bessel_edge")
    with pytest.raises(ValueError, match="reference form needs"):
        reference.ReferenceConfig.from_options(options)


def test_random_weights_have_the_names_and_shapes_of_a_checkpoint(reference: ModuleType) -> None:
    options, weights, *_ = read_case("a_direct_gaussian")
    drawn = reference.random_state_dict(reference.ReferenceConfig.from_options(options), seed=0)
    assert {k: v.shape for k, v in drawn.items()} == {k: v.shape for k, v in weights.items()}


def test_graph_of_all_layers_is_alive_after_the_call(reference: ModuleType) -> None:
    config = reference.ReferenceConfig(n_layers=1, embd_dim=16, num_heads=2, num_3d_kernels=8)
    weights = reference.random_state_dict(config, seed=0)
    positions = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.3, 0.1]], requires_grad=True)
    output = reference.literal_forward(weights, config, positions, torch.tensor([8, 1]), 0, 1)
    (slope,) = torch.autograd.grad(output["formation_energy"], positions)
    assert slope.abs().max() > 0


@pytest.mark.parametrize("n_atoms", [8, 9, 10, 23])
def test_chain_has_the_requested_size_and_ordinary_bonds(forms: ModuleType, n_atoms: int) -> None:
    chain = forms.chain_molecule(n_atoms)
    assert len(chain) == n_atoms
    heavy = chain[chain.numbers > 1]
    neighbours = np.sort(heavy.get_all_distances(), axis=1)[:, 1]
    assert np.all((neighbours > 1.2) & (neighbours < 1.8))
    hydrogens = chain.get_all_distances()[np.ix_(chain.numbers == 1, chain.numbers > 1)]
    assert np.all((hydrogens.min(axis=1) > 0.8) & (hydrogens.min(axis=1) < 1.4))


def test_chain_too_small_is_refused(forms: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least 8"):
        forms.chain_molecule(7)


def test_both_timed_forms_give_the_same_forces(forms: ModuleType) -> None:
    """On the published size; float32, so to the rounding of a network of twelve layers."""
    calls = forms.force_calls(forms.chain_molecule(8))
    literal, product = calls["literal"](), calls["product"]()
    np.testing.assert_allclose(product, literal, rtol=0, atol=1e-3 * np.abs(literal).max())
    calls["dense"]()
