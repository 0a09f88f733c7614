"""Small random ATMOS models, and systems for them."""

from pathlib import Path

import torch

from mlmd_calc.models import ATMOS, ATMOSConfig
from mlmd_calc.models.atmos import SamplerConfig
from mlmd_calc.zoo import ATMOSModel, ModelCard, save_model

STRIDE_PS = 10.0
FINE_STEPS = 4
"""Steps of the interpolator between keyframes."""

SMALL = {
    **{"c_s": 16, "c_z": 8, "c_token": 12, "c_atom": 8, "c_atompair": 4, "c_diffusion": 16},
    **{"c_triangle": 8, "triangle_heads": 2, "triangle_head_width": 4, "atom_heads": 2},
    **{"transition_blocks": 1, "diffusion_blocks": 1, "sigma_data": 2.0, "max_steps": 6},
    "sampler": SamplerConfig(steps=2, s_max=20.0, gamma_min=0.1),
}


def small_network(seed: int = 0, **changes) -> ATMOS:
    """Network in evaluation mode whose every parameter is random, in double precision."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = ATMOS(ATMOSConfig.preset("xs", **{**SMALL, **changes}))
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.double().eval()


def small_model(seed: int = 0, *, card: dict | None = None, **changes) -> ATMOSModel:
    """The network as loaded from a file."""
    entries = {"name": "small", "kind": "atmos", "strides_ps": (STRIDE_PS,), **(card or {})}
    return ATMOSModel(ModelCard(**entries), "small", "0" * 64, small_network(seed, **changes))


def write_model(path: Path, seed: int = 0, *, card: dict | None = None, **changes) -> Path:
    """Write a network into a file, in single precision as training does."""
    steps = changes.get("max_remaining", 1)
    entries = {"name": path.stem, "strides_ps": [STRIDE_PS / steps], **(card or {})}
    save_model(path, small_network(seed, **changes).float(), {}, entries)
    return path
