"""Networks whose weights follow from a seed, and larger ones that know what one has learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


def seeded(build: Callable[[], N], seed: int) -> N:
    """Build a network whose weights follow from a seed; other random numbers are not touched."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds accelerators as well.
        torch.default_generator.manual_seed(seed)
        return build()


def seeded_like(network: N, build: Callable[[], N], seed: int) -> N:
    """Build another network of the precision, device and mode of one."""
    return seeded(build, seed).to(next(network.parameters())).train(network.training)


def take_weights(larger: nn.Module, smaller: nn.Module) -> None:
    """Copy weights into a network with more units, whose own do not yet reach its result."""
    target = larger.state_dict()
    for name, weight in smaller.state_dict().items():
        if weight.shape == target[name].shape:
            target[name].copy_(weight)
            continue
        # New rows are as drawn. Scale and shift are rows of one matrix.
        parts = 2 if "film" in name else 1
        old, new = (w.unflatten(0, (parts, -1)) for w in (weight, target[name]))
        new[:, : old.shape[1]] = 0.0
        new[tuple(map(slice, old.shape))] = old
