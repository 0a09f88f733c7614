"""The engine-neutral potential: batches, orientations, precision, derivatives, side effects."""

import contextlib
import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from another_process import code, run_child
from ase.build import molecule
from ase.collections import s22
from toy_models import CONFIGS, SMALL, molecules, random_network, toy_model

from mlmd_calc import Potential, units
from mlmd_calc.electrons import TrainedState
from mlmd_calc.errors import ConfigError, InputError, ModelFileError, PredictionError
from mlmd_calc.geometry.rotations import counted_rotations, fixed_rotations
from mlmd_calc.models import MDETConfig
from mlmd_calc.potential import Evaluation, Structure, potential, structure_from_ase
from mlmd_calc.potential.projections import remove_net_force, remove_net_torque

FIELDS = tuple(field.name for field in dataclasses.fields(Evaluation))


def make(config: MDETConfig = SMALL, **options: object) -> Potential:
    model = toy_model(config)
    if config.directions == "fourier" and options.get("forces") == "conservative":
        # Random features of up to 31,416 rad⁻¹ have slopes that count as absurd.
        with torch.no_grad():
            model.network.heads["formation_energy"].mlp[-1].weight *= 1e-3
    return Potential(model, device="cpu", **options)


def forces_of(potential: Potential, atoms: ase.Atoms) -> np.ndarray:
    return potential.evaluate([atoms], ["forces"])[0].forces


def assert_same(found: list[Evaluation], expected: list[Evaluation], atol: float = 1e-10) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for name in FIELDS:
            assert (getattr(a, name) is None) == (getattr(b, name) is None), name
            if getattr(a, name) is not None:
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=atol)


# ---- batches --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "orientations"),
    [
        *((name, {"rotation": "none"}) for name in CONFIGS),
        ("bessel-conservative", {"rotation": "average", "n_rotations": 4}),
        ("direct-gaussian", {"rotation": "average", "n_rotations": 4}),
        ("direct-gaussian", {"rotation": "random"}),
        ("direct-gaussian", {"rotation": "random", "n_rotations": 3}),
    ],
    ids=str,
)
def test_a_batch_equals_single_calls(name: str, orientations: dict) -> None:
    config = CONFIGS[name]
    together, alone = (make(config, seed=1, **orientations) for _ in range(2))
    # Fourier features magnify the rounding of angles.
    atol = 1e-7 if config.directions == "fourier" else 1e-10
    assert_same(together.evaluate(molecules()), [alone.evaluate([m])[0] for m in molecules()], atol)
    # Both have taken the same number of random orientations.
    assert together.state_dict() == alone.state_dict()


@pytest.mark.parametrize("n_rotations", [1, 5])
@pytest.mark.parametrize("conservative", [False, True])
def test_cutting_a_batch_into_parts_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, conservative: bool, n_rotations: int
) -> None:
    options = {
        "rotation": "average",
        "n_rotations": n_rotations,
        "forces": "conservative" if conservative else "direct",
    }
    whole = make(**options).evaluate(molecules())
    calls = []
    for limit in (1, 1000, 10_000):
        monkeypatch.setattr(potential, "_CHUNK_NUMBERS", limit)
        cut = make(**options)
        sizes = []
        cut.prediction.network.register_forward_pre_hook(
            lambda _, args, sizes=sizes: sizes.append(len(args[0]))
        )
        assert_same(cut.evaluate(molecules()), whole)
        assert sum(sizes) == n_rotations * len(molecules())
        calls.append(len(sizes))
    assert calls[0] == n_rotations * len(molecules())
    assert calls[0] > calls[1] > calls[2]


def test_memory_does_not_grow_with_the_number_of_orientations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    atoms = molecule("C6H6")
    limit = 3 * len(atoms) ** 2 * SMALL.embd_dim
    monkeypatch.setattr(potential, "_CHUNK_NUMBERS", limit)
    many = make(rotation="average", n_rotations=60)
    sizes = []
    many.prediction.network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    many.evaluate([atoms])
    assert sizes == [3] * 20


def test_no_structures_give_no_results() -> None:
    assert make().evaluate([]) == []


def test_structures_and_atoms_are_the_same_to_it() -> None:
    both = make(rotation="none")
    structures = [structure_from_ase(atoms) for atoms in molecules()]
    assert_same(both.evaluate(structures), both.evaluate(molecules()), atol=0.0)


@pytest.mark.parametrize("single", [molecule("H2O"), structure_from_ase(molecule("H2O"))])
def test_a_single_structure_is_not_a_list(single: ase.Atoms | Structure) -> None:
    with pytest.raises(InputError, match=r"\[structure\]"):
        make().evaluate(single)


def test_atoms_are_not_changed() -> None:
    atoms = molecules()[1]
    before = atoms.copy()
    make(rotation="average", n_rotations=4).evaluate([atoms])
    make().hessian(atoms)
    assert atoms == before
    assert atoms.info == before.info


# ---- orientations ---------------------------------------------------------------------------


def test_random_orientations_follow_the_seed() -> None:
    atoms = molecule("CH3CH2OH")

    def sequence(seed: int | None) -> np.ndarray:
        source = make(seed=seed)
        return np.array([forces_of(source, atoms) for _ in range(3)])

    first = sequence(5)
    np.testing.assert_array_equal(sequence(np.int64(5)), first)
    assert np.abs(first[0] - first[1]).max() > 1e-3
    assert np.abs(sequence(6) - first).max() > 1e-3
    assert np.abs(sequence(None) - sequence(None)).max() > 1e-3


@pytest.mark.parametrize("seed", [1.5, "1"])
def test_seeds_are_integers(seed: object) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        make(seed=seed)


def test_random_orientations_resume_from_their_state() -> None:
    atoms = molecule("CH3CH2OH")
    running = make(seed=5, n_rotations=2)
    forces_of(running, atoms)
    state = json.loads(json.dumps(running.state_dict()))
    expected = [forces_of(running, atoms) for _ in range(2)]
    resumed = make(seed=99, n_rotations=2)
    resumed.load_state_dict(state)
    for forces in expected:
        np.testing.assert_array_equal(forces_of(resumed, atoms), forces)
    assert state == {"seed": 5, "calls": 1}


@pytest.mark.parametrize("state", [{"generator": "eJy9"}, {"seed": 5}, {"seed": -1, "calls": 0}])
def test_states_of_other_versions_are_refused(state: dict) -> None:
    with pytest.raises(ModelFileError, match="start a new run"):
        make(seed=5).load_state_dict(state)


def test_states_of_other_versions_matter_to_random_orientations_only() -> None:
    plain = make(rotation="none")
    plain.load_state_dict({"generator": "eJy9"})
    assert plain.state_dict()["calls"] == 0


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_have_a_range(seed: int) -> None:
    with pytest.raises(ConfigError, match=str(seed)):
        make(seed=seed)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match=r"'rotations'.*n_rotations"):
        make(rotations=4)


def by_hand(atoms: ase.Atoms, rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies and unprojected forces of every orientation, turned back."""
    plain = make(rotation="none", remove_net_force=False, remove_net_torque=False)
    turned = []
    for rotation in rotations:
        copy = atoms.copy()
        copy.positions = copy.positions @ rotation
        turned.append(copy)
    results = plain.evaluate(turned)
    forces = [r.forces @ rotation.T for r, rotation in zip(results, rotations, strict=True)]
    return np.array([r.energy for r in results]), np.array(forces)


@pytest.mark.parametrize("n_rotations", [2, 5, 12])
def test_average_is_the_mean_over_the_fixed_set(n_rotations: int) -> None:
    atoms = molecule("CH3CH2OH")
    energies, forces = by_hand(atoms, fixed_rotations(n_rotations).numpy())
    found = make(rotation="average", n_rotations=n_rotations).evaluate([atoms])[0]
    projected = remove_net_torque(remove_net_force(forces.mean(axis=0)), atoms.positions)
    np.testing.assert_allclose(found.forces, projected, atol=1e-12)
    np.testing.assert_allclose(found.energy, energies.mean(), atol=1e-12)
    np.testing.assert_allclose(found.forces_std, forces.std(axis=0, ddof=1), atol=1e-12)
    np.testing.assert_allclose(found.energy_std, energies.std(ddof=1), atol=1e-12)
    assert found.forces_std.max() > 1e-3


@pytest.mark.parametrize("n_rotations", [1, 4])
def test_random_is_the_fixed_set_turned_as_a_whole(n_rotations: int) -> None:
    atoms = molecule("CH3CH2OH")
    source = make(
        rotation="random",
        n_rotations=n_rotations,
        seed=3,
        remove_net_force=False,
        remove_net_torque=False,
    )
    for call in (1, 2):
        turn = counted_rotations(torch.tensor(3), torch.tensor([call]))
        energies, forces = by_hand(atoms, (fixed_rotations(n_rotations) @ turn).numpy())
        found = source.evaluate([atoms])[0]
        np.testing.assert_allclose(found.forces, forces.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.energy, energies.mean(), atol=1e-12)
        assert (found.forces_std is None) == (n_rotations == 1)
        assert (found.energy_std is None) == (n_rotations == 1)


def test_fixed_orientations_are_no_random_numbers() -> None:
    fixed = make(rotation="average", n_rotations=4, seed=1)
    before = fixed.state_dict()
    fixed.evaluate(molecules())
    fixed.hessian(molecule("H2O"))
    assert fixed.state_dict() == before


# ---- defaults and their origin --------------------------------------------------------------


def test_the_model_card_recommends_and_the_caller_decides() -> None:
    model = toy_model(
        recommended={"forces": "conservative", "rotation": "average", "n_rotations": 4}
    )
    recommended = Potential(model)
    assert (recommended.forces, recommended.rotation, recommended.n_rotations) == (
        "conservative",
        "average",
        4,
    )
    assert not recommended.remove_net_force
    assert not recommended.remove_net_torque
    assert Potential(model, n_rotations=12).n_rotations == 12
    # The recommended number belongs to the recommended kind.
    assert Potential(model, rotation="none").n_rotations == 1
    assert Potential(model, forces="direct", rotation="random").n_rotations == 1


def test_defaults_without_a_recommendation() -> None:
    direct = make()
    assert (direct.forces, direct.rotation, direct.n_rotations) == ("direct", "random", 1)
    assert direct.remove_net_force
    assert direct.remove_net_torque
    for conservative in (make(forces="conservative"), make(CONFIGS["bessel-conservative"])):
        assert conservative.conservative
        assert conservative.forces == "conservative"
        assert conservative.rotation == "none"
        assert not conservative.remove_net_force
        assert not conservative.remove_net_torque


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype='float16'.*float64, float32, mixed"),
        ({"forces": "both"}, "forces='both'.*direct, conservative"),
        ({"forces": ""}, "forces=''"),
        ({"rotation": "always"}, "rotation='always'.*random, average, none"),
        ({"rotation": ""}, "rotation=''"),
        ({"device": "abacus"}, "device='abacus'"),
        ({"rotation": "none", "n_rotations": 2}, "n_rotations=2.*rotation='average'"),
        ({"rotation": "average"}, "n_rotations=12"),
        ({"rotation": "average", "n_rotations": 0}, "n_rotations=0"),
        ({"rotation": "average", "n_rotations": 10_001}, "from 1 to 10,000"),
        ({"rotation": "random", "forces": "conservative"}, "'none' or 'average'"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Potential(toy_model(), **options)


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Potential(toy_model()).device == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device"):
        Potential(toy_model(), device="cuda")


@pytest.mark.parametrize("count", [2.5, "4"])
def test_a_number_of_orientations_is_an_integer(count: object) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        make(rotation="average", n_rotations=count)


def test_what_the_model_lacks_is_refused() -> None:
    forces_only = dataclasses.replace(SMALL, target_heads=("forces",))
    energy_only = dataclasses.replace(SMALL, target_heads=("energy",))
    assert not make(forces_only).has_energy
    with pytest.raises(ConfigError, match="energy head"):
        make(forces_only, forces="conservative", rotation="none")
    with pytest.raises(ConfigError, match="force head"):
        make(energy_only)
    with pytest.raises(ConfigError, match="force head"):
        make(CONFIGS["bessel-conservative"], forces="direct")
    with pytest.raises(ConfigError, match="no energy"):
        make(forces_only).evaluate(molecules(), ["energy"])
    assert make(energy_only, forces="conservative").evaluate(molecules())[0].energy is not None


@pytest.mark.parametrize("properties", [[], ["stress"], ["energy", "force"], "forces"], ids=str)
def test_unknown_properties_are_refused(properties: object) -> None:
    with pytest.raises(ConfigError, match="properties="):
        make().evaluate(molecules(), properties)


# ---- only what was asked for ----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["direct", "conservative"])
@pytest.mark.parametrize("properties", [["energy"], ["forces"], ["forces", "energy"]], ids=str)
def test_only_what_was_asked_for_is_computed(mode: str, properties: list[str]) -> None:
    asked = make(forces=mode, rotation="average", n_rotations=2)
    called = []
    for name, head in asked.prediction.network.heads.items():
        head.register_forward_hook(
            lambda _m, _i, out, name=name: called.append((name, out.requires_grad))
        )
    (result,) = asked.evaluate([molecule("H2O")], properties)
    for name in ("energy", "forces"):
        assert (getattr(result, name) is not None) == (name in properties)
        assert (getattr(result, f"{name}_std") is not None) == (name in properties)
    gradient = mode == "conservative" and "forces" in properties
    heads = {"formation_energy"} if gradient or "energy" in properties else set()
    if mode == "direct" and "forces" in properties:
        heads.add("forces")
    # A graph is made only to differentiate it.
    assert set(called) == {(name, gradient) for name in heads}
    assert len(called) == len(heads)


def test_energy_and_forces_belong_to_one_orientation() -> None:
    atoms = molecule("CH3CH2OH")
    together = make(seed=2).evaluate([atoms])[0]
    assert make(seed=2).evaluate([atoms], ["energy"])[0].energy == pytest.approx(together.energy)
    np.testing.assert_allclose(forces_of(make(seed=2), atoms), together.forces, atol=1e-12)


def test_energies_of_the_atoms_are_added() -> None:
    model = toy_model()
    energies = {1: -13.0, 6: -1000.25, 8: -2000.5}
    absolute = dataclasses.replace(model, atomic_energies=energies)
    atoms = molecule("CH3CH2OH")
    options = {"rotation": "average", "n_rotations": 3}
    with_atoms = Potential(absolute, **options).evaluate([atoms])[0]
    without = Potential(model, **options).evaluate([atoms])[0]
    total = sum(energies[z] for z in atoms.numbers)
    assert with_atoms.energy - without.energy == pytest.approx(total, abs=1e-9)
    np.testing.assert_array_equal(with_atoms.forces, without.forces)
    assert with_atoms.energy_std == without.energy_std


# ---- precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_lower_precisions_are_close_to_double(config: MDETConfig, dtype: str) -> None:
    exact = make(config, rotation="none").evaluate(molecules())
    rounded = make(config, rotation="none", dtype=dtype).evaluate(molecules())
    scale = max(np.abs(result.forces).max() for result in exact)
    for a, b in zip(rounded, exact, strict=True):
        assert a.forces.dtype == np.float64
        np.testing.assert_allclose(a.forces, b.forces, rtol=0, atol=2e-5 * scale)
        assert a.energy == pytest.approx(b.energy, abs=1e-4)


def test_mixed_precision_has_single_weights_and_double_features() -> None:
    seen = {}
    for dtype in ("float64", "mixed", "float32"):
        one = make(dtype=dtype, rotation="none")
        hidden = one.prediction.network.embedding.m3d_embed
        hidden.gbf.register_forward_hook(lambda _m, i, out, d=dtype: seen.update({d: out.dtype}))
        one.evaluate([molecule("H2O")])
        single = dtype != "float64"
        assert hidden.gbf_proj.layer1.weight.dtype == (torch.float32 if single else torch.float64)
    assert seen == {"float64": torch.float64, "mixed": torch.float64, "float32": torch.float32}


@pytest.mark.parametrize("forces", ["direct", "conservative"])
@pytest.mark.parametrize("dtype", ["float32", "mixed", "float64"])
@pytest.mark.parametrize("config", [SMALL, CONFIGS["fourier-gaussian"]], ids=["direct", "fourier"])
def test_far_from_the_origin_nothing_is_lost(config: MDETConfig, dtype: str, forces: str) -> None:
    """A million Å away, coordinates are rounded to 1e-10 Å, and to that only."""
    here, there = molecules()[1], molecules()[1]
    # With coordinates that are multiples of 2^-20 Å this shift is exact.
    here.positions = np.round(here.positions * 2**20) / 2**20
    there.positions = here.positions + np.array([2.0**20, -(2.0**19), 2.0**20])
    one = make(config, dtype=dtype, forces=forces, rotation="none")
    results = one.evaluate([here]) + one.evaluate([there])
    tolerance = 1e-9 if dtype == "float64" else 1e-5
    if config.directions == "fourier":
        tolerance *= 30
    np.testing.assert_allclose(results[1].forces, results[0].forces, rtol=0, atol=tolerance)
    assert results[1].energy == pytest.approx(results[0].energy, abs=tolerance)


# ---- derivatives ----------------------------------------------------------------------------


def slope_of_energy(potential: Potential, atoms: ase.Atoms, direction: np.ndarray) -> float:
    """Derivative of the energy along a direction, by a five-point stencil."""
    # The network has kinks (ReLU), and Fourier features turn over within 1e-7 Å near the poles.
    step = 1e-9 if potential.model.network.config.directions == "fourier" else 1e-6
    moved = []
    for factor in (-2, -1, 1, 2):
        copy = atoms.copy()
        copy.positions += factor * step * direction
        moved.append(copy)
    a, b, c, d = (result.energy for result in potential.evaluate(moved, ["energy"]))
    return (a - 8 * b + 8 * c - d) / (12 * step)


@pytest.mark.parametrize(
    "orientations", [{"rotation": "none"}, {"rotation": "average", "n_rotations": 3}], ids=str
)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_conservative_forces_are_minus_the_gradient_of_the_energy(
    config: MDETConfig, orientations: dict
) -> None:
    conservative = make(config, forces="conservative", **orientations)
    for seed, (atoms, result) in enumerate(
        zip(molecules(), conservative.evaluate(molecules()), strict=True)
    ):
        direction = np.random.default_rng(seed).normal(size=(len(atoms), 3))
        direction /= np.linalg.norm(direction)
        slope = slope_of_energy(conservative, atoms, direction)
        work = -np.sum(result.forces * direction)
        assert slope == pytest.approx(work, rel=1e-6, abs=2e-5)


def test_forces_are_the_positive_gradient_of_a_conservative_checkpoint() -> None:
    """The authors' conservative head learns minus the energy."""
    one = make(CONFIGS["bessel-conservative"])
    atoms = molecules()[1]
    bohr = torch.from_numpy(atoms.positions - atoms.positions.mean(axis=0)) / units.MDET_BOHR
    leaf = bohr[None].requires_grad_()
    out = toy_model(CONFIGS["bessel-conservative"]).network.double()(
        leaf, torch.from_numpy(atoms.numbers)[None]
    )["potential"]
    (slope,) = torch.autograd.grad(out.sum(), leaf)
    (result,) = one.evaluate([atoms])
    np.testing.assert_allclose(result.forces, slope[0].numpy() * units.MDET_FORCE, atol=1e-11)
    assert result.energy == pytest.approx(-float(out.detach()) * units.MDET_HARTREE, abs=1e-11)


HESSIANS = [
    {"forces": "direct", "rotation": "none"},
    {"forces": "direct", "rotation": "average", "n_rotations": 3},
    {"forces": "conservative", "rotation": "none"},
    {"forces": "conservative", "rotation": "average", "n_rotations": 2},
]


@pytest.mark.parametrize("options", HESSIANS, ids=lambda o: f"{o['forces']}-{o['rotation']}")
@pytest.mark.parametrize("name", ["direct-gaussian", "harmonics-bessel-types"])
def test_hessian_is_the_jacobian_of_the_forces(name: str, options: dict) -> None:
    one = make(CONFIGS[name], remove_net_force=False, remove_net_torque=False, **options)
    atoms = molecules()[0]
    step = 1e-5
    columns = []
    for index in range(3 * len(atoms)):
        sides = []
        for sign in (1, -1):
            copy = atoms.copy()
            copy.positions.ravel()[index] += sign * step
            sides.append(forces_of(one, copy).ravel())
        columns.append((sides[0] - sides[1]) / (2 * step))
    jacobian = np.stack(columns, axis=1)
    hessian = one.hessian(atoms)
    scale = np.abs(jacobian).max()
    np.testing.assert_allclose(hessian.matrix, -(jacobian + jacobian.T) / 2, atol=1e-5 * scale)
    np.testing.assert_array_equal(hessian.matrix, hessian.matrix.T)
    asymmetry = np.linalg.norm(jacobian - jacobian.T) / 2 / np.linalg.norm(jacobian)
    assert hessian.antisymmetry == pytest.approx(asymmetry, abs=1e-5)
    if options["forces"] == "conservative":
        assert hessian.antisymmetry < 1e-12
    else:
        assert hessian.antisymmetry > 0.05


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_hessians_of_conservative_forces_are_symmetric(config: MDETConfig) -> None:
    conservative = make(config, forces="conservative")
    assert conservative.hessian(molecules()[2]).antisymmetry < 1e-9


def test_hessian_in_lower_precision() -> None:
    atoms = molecules()[0]
    exact = make(rotation="none").hessian(atoms).matrix
    for dtype in ("float32", "mixed"):
        rounded = make(rotation="none", dtype=dtype).hessian(atoms).matrix
        assert rounded.dtype == np.float64
        np.testing.assert_allclose(rounded, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


def test_hessian_uses_random_orientations_like_a_force_call() -> None:
    first, second = make(seed=4), make(seed=4)
    atoms = molecule("H2O")
    first.hessian(atoms)
    second.evaluate([atoms])
    assert first.state_dict() == second.state_dict()
    assert np.abs(first.hessian(atoms).matrix - first.hessian(atoms).matrix).max() > 1e-3


@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_hessian_of_a_single_atom(forces: str) -> None:
    hessian = make(forces=forces, rotation="none").hessian(ase.Atoms("He"))
    assert hessian.matrix.shape == (3, 3)
    assert not hessian.matrix.any()
    assert hessian.antisymmetry == 0.0


# ---- side effects ---------------------------------------------------------------------------


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "double by default": lambda: default_dtype(torch.float64),
    "half by default": lambda: default_dtype(torch.float16),
    # Stands for a GPU, and holds no numbers at all.
    "another device by default": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("forces", ["direct", "conservative"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_the_caller_s_modes_do_not_matter(mode: object, forces: str) -> None:
    model = toy_model()
    # Single precision, because autocast leaves double precision alone.
    options = {"device": "cpu", "forces": forces, "rotation": "none", "dtype": "float32"}
    outside = Potential(model, **options)
    expected, hessian = outside.evaluate(molecules()), outside.hessian(molecule("H2O")).matrix
    with mode():
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        inside = Potential(model, **options)
        for one in (outside, inside):
            assert_same(one.evaluate(molecules()), expected, atol=0.0)
            np.testing.assert_array_equal(one.hessian(molecule("H2O")).matrix, hessian)
        assert torch.is_grad_enabled() == grad
        assert torch.is_inference_mode_enabled() == inference
    # Made in inference mode, used outside of it.
    assert_same(inside.evaluate(molecules()), expected, atol=0.0)
    np.testing.assert_array_equal(inside.hessian(molecule("H2O")).matrix, hessian)


def test_a_model_made_in_inference_mode_can_be_differentiated() -> None:
    with torch.inference_mode():
        model = toy_model()
    inside = Potential(model, forces="conservative").evaluate(molecules())
    assert_same(inside, make(forces="conservative").evaluate(molecules()), atol=0.0)


def global_state() -> dict[str, object]:
    return {
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "torch": torch.random.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "printing": np.get_printoptions(),
        "errors": np.geterr(),
    }


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("forces", ["direct", "conservative"])
def test_no_global_state_is_touched(forces: str, seed: int | None) -> None:
    model = toy_model()
    before = global_state()
    rotation = "random" if forces == "direct" else "none"
    for dtype in ("float64", "float32", "mixed"):
        one = Potential(model, forces=forces, rotation=rotation, dtype=dtype, seed=seed)
        one.evaluate(molecules())
        one.hessian(molecule("H2O"))
    assert global_state() == before


def test_the_model_is_shared_and_not_changed() -> None:
    network = random_network()
    model = dataclasses.replace(toy_model(), network=network.train())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Potential(model, dtype="float64").evaluate(molecules())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_dropout_is_off() -> None:
    config = dataclasses.replace(SMALL, attention_dropout=0.5, ffn_dropout=0.5, head_dropout=0.5)
    model = dataclasses.replace(toy_model(config), network=random_network(config).train())
    one = Potential(model, rotation="none")
    assert_same(one.evaluate(molecules()), one.evaluate(molecules()), atol=0.0)


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rotations", [1, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("head", ["forces", "formation_energy"])
def test_absurd_predictions_are_refused(head: str, value: float, n_rotations: int) -> None:
    model = toy_model()
    with torch.no_grad():
        model.network.heads[head].mlp[-1].weight[0, 0] = value
    one = Potential(model, rotation="average", n_rotations=n_rotations)
    atoms = molecule("H2O")
    other = "energy" if head == "forces" else "forces"
    assert one.evaluate([atoms], [other])
    if head == "formation_energy" and value == 1e30:
        # Energies have no scale to judge them by.
        assert one.evaluate([atoms])
        return
    message = "returned force .* on atom 0" if head == "forces" else "returned energy"
    with pytest.raises(PredictionError, match=message):
        one.evaluate([atoms])
    # In a batch too.
    with pytest.raises(PredictionError, match=message):
        one.evaluate([molecule("CH4"), atoms])


def test_one_poisoned_element_spoils_only_molecules_that_have_it() -> None:
    model = toy_model()
    with torch.no_grad():
        model.network.embedding.nuclear_embedding.embedding.weight[8] = float("nan")
    # Everything sees everything: one unknown oxygen spoils all atoms.
    with pytest.raises(PredictionError, match="on atom 0"):
        Potential(model).evaluate([molecule("HCOOH")], ["forces"])
    assert Potential(model).evaluate([molecule("CH4")])


def test_non_finite_hessians_are_refused() -> None:
    model = toy_model()
    with torch.no_grad():
        model.network.heads["forces"].mlp[-1].weight[0, 0] = float("nan")
    with pytest.raises(PredictionError, match="not finite"):
        Potential(model).hessian(molecule("H2O"))


def structure(atoms: ase.Atoms, **info: object) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.info.update(info)
    return atoms


def with_position(value: float) -> ase.Atoms:
    atoms = molecule("H2O")
    atoms.positions[1, 2] = value
    return atoms


REFUSED = {
    "no atoms": (ase.Atoms(), "no atoms"),
    "periodic": (ase.Atoms("He", cell=[5, 5, 5], pbc=[0, 0, 1]), "periodic.*pbc = False"),
    "NaN": (with_position(float("nan")), "atom 1 has position .*nan"),
    "infinite": (with_position(float("inf")), "atom 1 has position .*inf"),
    "coincident": (ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.01]]), "atoms 0 and 1 are 0.01"),
    "dummy atom": (ase.Atoms("XH"), r"atom 0 is X \(Z = 0\)"),
    "mendelevium": (ase.Atoms("Md"), r"atom 0 is Md \(Z = 101\)"),
    "radical as singlet": (
        ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]]),
        "9 electrons.*multiplicity=1.*: 2, 4, 6, ...",
    ),
    "charge": (structure(molecule("H2O"), charge=1), "9 electrons.*multiplicity=1"),
    "too many unpaired": (structure(ase.Atoms("H"), multiplicity=4), r"\(.* charge: 2\)"),
    "more charge than electrons": (structure(ase.Atoms("H"), charge=2), "more than all 1"),
    "charge out of range": (structure(ase.Atoms("Au"), charge=65), "charge=65 .* -64..63"),
    "multiplicity 0": (structure(molecule("H2O"), multiplicity=0), "multiplicity=0.*2S"),
    "multiplicity 128": (structure(molecule("H2O"), multiplicity=128), "multiplicity=128"),
    "half a charge": (structure(molecule("H2O"), charge=1.5), r"info\['charge'\]=1.5 is not"),
    "NaN charge": (structure(molecule("H2O"), charge=float("nan")), "nan is not an integer"),
    "infinite charge": (structure(molecule("H2O"), charge=float("inf")), "inf is not an integer"),
    "boolean charge": (structure(molecule("H2O"), charge=True), "True is not an integer"),
    "text charge": (structure(molecule("H2O"), charge="1"), "'1' is not an integer"),
    "array charge": (structure(molecule("H2O"), charge=np.array([1, 2])), "is not an integer"),
    "multiplicity against spin": (
        structure(molecule("O2"), multiplicity=3, spin=1),
        r"info\['multiplicity'\]=3 and atoms.info\['spin'\]=1 .*disagree",
    ),
}


@pytest.mark.parametrize(("atoms", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_molecular_model_cannot_answer_is_refused(atoms: ase.Atoms, message: str) -> None:
    one = make()
    before = one.state_dict()
    with pytest.raises(InputError, match=message):
        one.evaluate([molecule("H2O"), atoms])
    with pytest.raises(InputError, match=message):
        one.hessian(atoms)
    # A refused structure takes no random orientation.
    assert one.state_dict() == before


def test_which_of_several_structures_is_refused() -> None:
    potential = Potential()
    good, bad = molecule("H2O"), molecule("SiH4")
    with pytest.raises(InputError, match=r"^structures\[1\]: atom 0 is Si"):
        potential.evaluate([good, bad, good])
    with pytest.raises(InputError, match=r"^atom 0 is Si"):
        potential.evaluate([bad])


def test_elements_the_model_was_not_trained_on_are_refused() -> None:
    one = Potential(toy_model(elements=(1, 6, 8)))
    assert one.evaluate([molecule("CH3CH2OH")])
    with pytest.raises(InputError, match=r"atom 0 is N \(Z = 7\).*knows H, C, O"):
        one.evaluate([molecule("NH3")])


@pytest.mark.parametrize("charge", [1, 1.0, np.int64(1), np.int8(1), np.float32(1.0)], ids=repr)
def test_whole_numbers_of_any_type_are_charges(charge: object) -> None:
    ammonium = molecules()[2]
    expected = make(rotation="none").evaluate([ammonium])
    ammonium.info["charge"] = charge
    assert_same(make(rotation="none").evaluate([ammonium]), expected, atol=0.0)


def test_spin_means_multiplicity() -> None:
    oxygen = molecule("O2")
    oxygen.info["multiplicity"] = 3
    expected = make(rotation="none").evaluate([oxygen])
    oxygen.info = {"spin": 3}
    assert_same(make(rotation="none").evaluate([oxygen]), expected, atol=0.0)
    # ASE's molecule carries magnetic moments, which say the same.
    oxygen.info = {}
    assert_same(make(rotation="none").evaluate([oxygen]), expected, atol=0.0)
    oxygen.set_initial_magnetic_moments(None)
    assert make(rotation="none").evaluate([oxygen])[0].energy != expected[0].energy


def test_forked_children_draw_their_own_orientations(model_file: Path) -> None:
    # A process of its own, because a test runner may have threads, which do not survive a fork.
    script = (
        "import os\n"
        "from ase.build import molecule\n"
        "from mlmd_calc import MDETCalculator\n"
        f"calculator = MDETCalculator({str(model_file)!r}, forces='direct', rotation='random')\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        print(calculator.get_potential_energy(molecule('H2O')), flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    first, second = run_child(code, script).split()
    assert first != second


def test_only_charges_and_spins_the_model_was_trained_on_are_answered() -> None:
    states = (TrainedState(0, 1, 10, 9), TrainedState(0, 3, 1, 2))
    model = toy_model(elements=(1, 6, 8))
    one = Potential(
        dataclasses.replace(model, card=dataclasses.replace(model.card, electronic_states=states))
    )
    one.evaluate([molecule("CH3CH2OH"), molecule("O2")])
    with pytest.raises(InputError, match=r"charge -1, multiplicity 1.* trained on charge 0, mult"):
        one.evaluate([structure(ase.Atoms("OH", [[0, 0, 0], [0, 0, 1]]), charge=-1)])
    with pytest.warns(UserWarning, match="up to 2 atoms.*for 9 atoms"):
        one.evaluate([structure(molecule("CH3CH2OH"), multiplicity=3)])


def test_models_of_one_molecule_warn_of_others() -> None:
    one = Potential("mdet-ethanol-gfn2", device="cpu")
    one.evaluate([molecule("CH3CH2OH")])
    with pytest.warns(UserWarning, match="1 molecule of up to 9 atoms.*for 6 atoms"):
        one.evaluate([molecule("CH3OH")])


def test_molecules_too_small_for_the_default_are_warned_of() -> None:
    default = Potential(device="cpu")
    default.evaluate([molecule("H2O")])
    with pytest.warns(UserWarning, match="3 atoms and more; .* for 2 atoms is far off"):
        default.evaluate([molecule("N2")])


@pytest.mark.parametrize("name", ["Water_dimer", "Formic_acid_dimer"])
def test_molecules_beside_each_other_are_warned_of(name: str) -> None:
    """Within the gaps of the training data, but the default is off by 0.1 eV and more."""
    default = Potential(device="cpu")
    pair = s22[name]
    with pytest.warns(UserWarning, match=r"2 molecules \(atoms \d and \d, 1\.\d\d Å apart"):
        default.evaluate([pair])
    default.evaluate([pair[: len(pair) // 2]])


def test_a_hydrogen_that_has_left_is_no_molecule() -> None:
    ethanol = molecule("CH3CH2OH")
    ethanol.set_distance(2, 3, 1.7, fix=0)
    Potential(device="cpu").evaluate([ethanol])
