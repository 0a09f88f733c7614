"""Interpolators made from keyframe networks."""

from __future__ import annotations

from dataclasses import replace

import torch

from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atmos.network import ATMOS

_TABLES = ("transition.tau_s.table", "transition.tau_z.table")


def interpolator_from(network: ATMOS, max_remaining: int) -> ATMOS:
    """Make an interpolator that begins as a keyframe network, to be trained further.

    It draws what the keyframe network draws, whatever the end of the interval, because the weights
    that look at the end are zero. Steps that the keyframe network did not know are told apart from
    its last one by training only.

    Parameters
    ----------
    network
        Keyframe network. It is not changed.
    max_remaining
        Steps of an interval, at least 2.

    Raises
    ------
    ConfigError
        If the network is an interpolator, or an interval has less than two steps.
    """
    if network.config.max_remaining:
        raise ConfigError(
            f"the network is an interpolator already, of max_remaining="
            f"{network.config.max_remaining}; train it as it is, or give a keyframe network"
        )
    if max_remaining < 2:
        raise ConfigError(f"max_remaining={max_remaining}; an interval has at least 2 steps")
    steps = max(max_remaining - 1, network.config.max_steps)
    with torch.random.fork_rng(devices=[]):
        # Its random weights are replaced.
        made = ATMOS(replace(network.config, max_remaining=max_remaining, max_steps=steps))
    made.to(next(network.parameters()))
    weights = {**made.state_dict(), **network.state_dict()}
    for name in _TABLES:
        if name in weights and (more := steps - len(weights[name])):
            last = weights[name][-1:].expand(more, -1)
            weights[name] = torch.cat([weights[name], last])
    made.load_state_dict(weights)
    return made.train(network.training)
