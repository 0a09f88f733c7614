"""Agreement with the ATOM authors' implementation for every case of known answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from mlmd_calc.errors import ConfigError
from mlmd_calc.models import ATOM
from mlmd_calc.models.atom import input_features, official, return_probabilities

FOLDER = GOLDEN / "atom"
CASES = sorted(path.parent for path in FOLDER.glob("[ab]_*/io.safetensors"))
ABSENT = f"no known answers at {FOLDER}; set MLMD_GOLDEN to the folder that holds atom/"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=ABSENT)

INPUTS = ("x_0", "v_0", "concatenated_features", "padded_nodes_mask", "time_increments")
# The later revision rounds its rotary tables to single precision.
FLOAT64_TOLERANCE = {"A": 1e-9, "B": 1e-5}
FLOAT32_TOLERANCE = 2e-4
GRADIENT_TOLERANCE = 1e-4


class Case:
    """One network with inputs and answers."""

    def __init__(self, path: Path) -> None:
        self.config = read_config(path)
        self.revision = self.config["revision"]
        self.options = self.config["model"]
        self.weights = load_file(path / "state_dict.safetensors")
        self.tensors = load_file(path / "io.safetensors")
        gradients = path / "grads.safetensors"
        self.gradients = load_file(gradients) if gradients.exists() else {}

    def network(self, dtype: torch.dtype) -> ATOM:
        # Converted in the wanted precision, because conversion rounds.
        weights = {name: tensor.to(dtype) for name, tensor in self.weights.items()}
        return ATOM.from_official(self.options, weights)

    def inputs(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        found = {n: self.tensors[f"in.{n}"] for n in INPUTS if f"in.{n}" in self.tensors}
        return {n: w.to(dtype) if w.is_floating_point() else w for n, w in found.items()}

    def answers(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors under a prefix, at least one; rows of padding are cleared."""
        found = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }
        assert found, prefix
        return {name: self.clear(tensor) for name, tensor in found.items()}

    def clear(self, tensor: torch.Tensor) -> torch.Tensor:
        mask = self.tensors.get("in.padded_nodes_mask")
        return tensor if mask is None or tensor.ndim < 4 else tensor * mask


def supported(path: Path) -> bool:
    return read_config(path)["model"].get("output_heads", 1) == 1


def read_config(path: Path) -> dict:
    return json.loads((path / "config.json").read_text())


MODELS = [path for path in CASES if "num_atoms_per_sample" in read_config(path)]


@pytest.fixture(scope="module", params=filter(supported, MODELS), ids=lambda path: path.name)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_the_folder_holds_cases_of_both_revisions() -> None:
    revisions = [Case(path).revision for path in MODELS if supported(path)]
    assert revisions.count("B") >= 2
    assert "A" in revisions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs(case: Case, dtype: torch.dtype) -> None:
    double = dtype == torch.float64
    with torch.no_grad():
        out = case.network(dtype)(**case.inputs(dtype))
    expected = case.answers("out64." if double else "out32.")
    assert out.keys() == expected.keys()
    tolerance = FLOAT64_TOLERANCE[case.revision] if double else FLOAT32_TOLERANCE
    for name, answer in expected.items():
        assert out[name].dtype == dtype
        torch.testing.assert_close(out[name], answer, rtol=0, atol=tolerance)


def test_features_on_the_way(case: Case) -> None:
    network = case.network(torch.float64)
    seen = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, out: seen.__setitem__(name, out)

    network.lifting_layer.register_forward_hook(keep("lift"))
    for index, block in enumerate(network.transformer_blocks):
        block.register_forward_hook(keep(f"block.{index}"))
        block.attention.register_forward_hook(keep(f"attn.{index}"))
    with torch.no_grad():
        network(**case.inputs(torch.float64))
    lifted = seen.pop("lift")
    for name, tensor in zip(("x_0", "v_0", "concatenated_features"), lifted, strict=True):
        seen[f"lift.{name}"] = tensor
    expected = case.answers("mid64.")
    expected.pop("lift.vz_0", None)
    assert seen.keys() == expected.keys()
    for name, answer in expected.items():
        found = case.clear(seen[name].expand_as(answer))
        atol = FLOAT64_TOLERANCE[case.revision]
        torch.testing.assert_close(found, answer, rtol=0, atol=atol, msg=lambda m, n=name: n + m)


def test_gradients(case: Case) -> None:
    if not case.gradients:
        pytest.skip("this case has no gradients")
    leaves = {name: case.weights[name].double().requires_grad_() for name in case.gradients}
    weights = {name: tensor.double() for name, tensor in case.weights.items()}
    for name in weights:
        weights[name] = leaves.get(name.replace(".ffn.layers.3.", ".ffn.layers.1."), weights[name])
    config, tensors = official.convert(case.options, weights)
    network = ATOM(config).double().eval()
    out = torch.func.functional_call(network, tensors, kwargs=case.inputs(torch.float64))
    squares = (out["pos"] - case.tensors["target.pos"].double()).square()
    assert squares.mean().item() == pytest.approx(case.config["loss_s2t_f64"], rel=1e-6)
    assert squares[:, -1].mean().item() == pytest.approx(case.config["loss_s2s_f64"], rel=1e-6)
    found = torch.autograd.grad(squares.mean(), list(leaves.values()), materialize_grads=True)
    for name, gradient in zip(leaves, found, strict=True):
        answer = case.gradients[name].double()
        error = (gradient - answer).abs().max()
        assert error <= GRADIENT_TOLERANCE * answer.abs().max().clamp(min=1e-6), name


def test_names_and_shapes_of_the_later_revision_are_ours(case: Case) -> None:
    if case.revision != "B":
        pytest.skip("the first revision has other names")
    ours = {name: w.shape for name, w in case.network(torch.float32).state_dict().items()}
    assert ours.items() <= {name: w.shape for name, w in case.weights.items()}.items()


@pytest.mark.parametrize(
    "path", [path for path in MODELS if not supported(path)], ids=lambda path: path.name
)
def test_mixtures_of_heads_are_refused(path: Path) -> None:
    case = Case(path)
    with pytest.raises(ConfigError, match="output_heads=4 is not supported"):
        ATOM.from_official(case.options, case.weights)


# ---- from a trajectory to the metrics ---------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory() -> Case:
    path = FOLDER / "a_dataset"
    if not path.is_dir():
        pytest.skip(f"no trajectory at {path}")
    return Case(path)


def heavy_atoms(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions and velocities ``(frames, n, 3)`` and numbers without hydrogens."""
    numbers = case.tensors["traj.nuclear_charges"]
    positions = case.tensors["traj.coords"][:, numbers > 1]
    return positions[:-1], positions.diff(dim=0), numbers[numbers > 1]


def features(case: Case, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
    positions, velocities, numbers = heavy_atoms(case)
    walks = return_probabilities(positions[0], case.config["rrwp_length"])
    b = len(frames)
    return input_features(
        positions[frames],
        velocities[frames],
        numbers.expand(b, -1),
        walks.expand(b, -1, -1),
    )


def test_input_features(trajectory: Case) -> None:
    for split, index in (("train", 0), ("train", 3), ("val", 0), ("val", 3)):
        frame = trajectory.tensors[f"split.{split}"][index : index + 1]
        found = features(trajectory, frame)
        for name, tensor in zip(("x_0", "v_0", "concatenated_features"), found, strict=True):
            item = trajectory.tensors[f"item.{split}.{index}.{name}"]
            n = tensor.shape[2]
            expected = item[:, :n]
            torch.testing.assert_close(tensor[0].expand_as(expected), expected, rtol=0, atol=2e-6)
            assert not item[:, n:].any()


def test_metrics_of_a_trajectory(trajectory: Case) -> None:
    config = trajectory.config
    frames = trajectory.tensors["split.val"][: config["max_samples"]]
    slots = config["num_timesteps"]
    steps = torch.arange(1, slots + 1) * config["delta_frame"] // slots
    positions, _, _ = heavy_atoms(trajectory)
    inputs = features(trajectory, frames)
    network = trajectory.network(torch.float64)
    increments = torch.ones(len(frames), slots)
    with torch.no_grad():
        out = network(*(w.double() for w in inputs), time_increments=increments)
    squares = (out["pos"] - positions[frames[:, None] + steps]).square()
    assert squares.mean().item() == pytest.approx(config["s2t"], rel=1e-5)
    assert squares[:, -1].mean().item() == pytest.approx(config["s2s"], rel=1e-5)
