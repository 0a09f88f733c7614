"""Small random ATMOS models, and systems for them."""

from pathlib import Path

import torch

from mlmd_calc.models import ATMOS, ATMOSConfig
from mlmd_calc.models.atmos import Context, Features, Memory, SamplerConfig
from mlmd_calc.models.atmos.losses import Prediction
from mlmd_calc.models.atmos.sampler import random_steps, run_sampler, standard_normal
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


def denoise_window(
    network: ATMOS,
    features: Features,
    frames: torch.Tensor,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    *,
    remaining: torch.Tensor | None = None,
    **given: torch.Tensor | None,
) -> Prediction:
    """Read true frames ``(b, w, a, 3)`` one by one and denoise the frame after them."""
    context = network.context(features)
    memory = network.initial_memory(context)
    for index, positions in enumerate(frames.unbind(1)):
        left = None if remaining is None else remaining - index
        memory = network.step(memory, positions, features, context, remaining=left, **given)
    conditioning = network.conditioning(memory, features, context)
    denoised = network.diffusion_module(noisy, sigma, conditioning)
    return Prediction(denoised, network.distogram_head(memory.z))


@torch.no_grad()
def draw(
    network: ATMOS,
    memory: Memory,
    features: Features,
    context: Context,
    generator: torch.Generator,
    samples: int = 1,
) -> torch.Tensor:
    """Draw frames ``(b, k, a, 3)`` in arbitrary poses with the sampler of the network."""
    config, conditioning = network.config, network.conditioning(memory, features, context)
    shape = (*features.atom_mask.shape[:1], samples, features.n_atoms, 3)
    return run_sampler(
        lambda noisy, sigma: network.diffusion_module(noisy, sigma, conditioning),
        standard_normal(shape, [generator], memory.s),
        random_steps(shape, config.pose_translation, [generator], memory.s),
        features.atom_mask,
        config.sampler,
        config.sigma_data,
    )


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
