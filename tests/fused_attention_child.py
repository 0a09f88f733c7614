"""Fused attention in Triton's interpreter; prints largest differences to the formulas as JSON."""

import json
import sys

import torch
import triton.runtime.interpreter as interpreter
from ase.build import molecule
from toy_models import CONFIGS, random_network, toy_model

from mlmd_calc import Potential
from mlmd_calc.models.mdet import edge_attention, fused_attention, inference
from mlmd_calc.models.mdet.edge_attention import edge_attention_streamed, pair_bias
from mlmd_calc.models.mdet.fused_attention import edge_attention_fused

_patch = interpreter._patch_lang_tensor


def patch(tensor):
    _patch(tensor)
    # Bounds of loops are arrays of one number, which numpy 2.3 and later do not take for a number.
    tensor.__index__ = lambda self: self.handle.data.item()


interpreter._patch_lang_tensor = patch


def numbers(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def differences(n, heads, channels, bias, dtype, merged):
    """Relative errors of output and gradients against the streamed form in double precision."""
    shape = (2, n, n, 4, heads, channels)
    projections = numbers(*shape, seed=0)
    mask = torch.arange(n) < torch.tensor([[n], [n - 2]])
    fading = None
    if bias != "none":
        weights = numbers(2, n, n, seed=1).sigmoid() if bias == "fading" else None
        fading = pair_bias(mask, weights).double()
    real = mask if bias != "none" else torch.ones_like(mask)
    pairs = (real[:, :, None] & real[:, None, :])[..., None, None]
    slope = numbers(2, n, n, heads, channels, seed=2) * pairs

    def evaluate(form, kind):
        inputs = projections.to(kind)
        if merged:
            inputs = inputs.transpose(-1, -2).contiguous().transpose(-1, -2)
        leaves = [inputs.requires_grad_()]
        own = None
        if fading is not None:
            own = fading.to(torch.float32 if kind == torch.bfloat16 else kind).requires_grad_()
            leaves.append(own)
        out = form(*inputs.unbind(3), own)
        found = [out * pairs, *torch.autograd.grad((out * slope.to(kind)).sum(), leaves)]
        if bias == "mask":
            found.pop()
        return [value.detach().double() for value in found]

    known = evaluate(edge_attention_streamed, torch.float64)
    found = evaluate(edge_attention_fused, dtype)
    return [float((f - k).norm() / k.norm()) for f, k in zip(found, known, strict=True)]


CASES = {
    "float64": (3, 2, 4, "none", torch.float64, False),
    "float64, all biases, several tiles": (11, 1, 4, "fading", torch.float64, False),
    "float64, mask, merged maps": (9, 2, 3, "mask", torch.float64, True),
    "float32": (5, 2, 8, "mask", torch.float32, False),
    "bfloat16": (5, 1, 8, "fading", torch.bfloat16, False),
}


def refusal():
    """What a second derivative is answered with."""
    inputs = [numbers(1, 2, 2, 1, 2, seed=i).requires_grad_() for i in range(4)]
    out = edge_attention_fused(*inputs, None)
    try:
        torch.autograd.grad(out.sum(), inputs, create_graph=True)
    except RuntimeError as error:
        return str(error)
    return ""


def networks():
    """Differences of forces and of a training gradient if networks take these kernels."""
    model = toy_model(CONFIGS["distances-only"])
    atoms = [molecule("H2O"), molecule("NH3")]

    def evaluate():
        potential = Potential(model, device="cpu", forces="conservative")
        forces = [found.forces for found in potential.evaluate(atoms)]
        network = random_network(CONFIGS["distances-only"]).double()
        out = network(numbers(1, 3, 3, seed=0), torch.tensor([[8, 1, 1]]))
        weights = list(network.layers[0].attention.parameters())
        return [*map(torch.from_numpy, forces), *torch.autograd.grad(out["forces"].sum(), weights)]

    known = evaluate()
    launched = []
    launch = fused_attention._launch

    def count(kernel, *rest):
        launched.append(kernel.fn.__name__)
        launch(kernel, *rest)

    fused_attention._launch = count
    edge_attention.can_fuse = inference.can_fuse = lambda tensor: True
    found = evaluate()
    errors = [float((f - k).norm() / k.norm()) for f, k in zip(found, known, strict=True)]
    return {"errors": errors, "launches": {name: launched.count(name) for name in launched}}


json.dump(
    {
        "errors": {name: differences(*case) for name, case in CASES.items()},
        "refusal": refusal(),
        "networks": networks(),
    },
    sys.stdout,
)
