"""Optimisers for unconstrained networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mlmd_calc.errors import ConfigError


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices between features, AdamW for everything else, as one optimiser.

    Muon (K. Jordan, 2024) orthogonalises the update of a matrix, so that weak directions grow as
    fast as strong ones. An edge transformer has to find out about directions in space from a small
    part of its input, and in trials here it did so in fewer steps than with AdamW.

    Parameters
    ----------
    network
        Its linear maps, read-outs excepted, go to Muon.
    lr
        Learning rate of both; Muon's updates are scaled to AdamW's size.
    weight_decay
        Decoupled weight decay of both.

    Raises
    ------
    ConfigError
        If the installed torch has no Muon (before 2.9).
    """

    def __init__(self, network: nn.Module, *, lr: float, weight_decay: float) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optimizer='muon' needs torch >= 2.9, this is {torch.__version__}; "
                "upgrade torch or use optimizer='adamw'"
            )
        matrices = [
            module.weight
            for module in network.modules()
            if isinstance(module, nn.Linear) and not _is_readout(module)
        ]
        chosen = {id(weight) for weight in matrices}
        rest = [weight for weight in network.parameters() if id(weight) not in chosen]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay),
        )
        super().__init__([{"params": [*matrices, *rest]}], {"lr": lr})
        self._share_groups()

    def _share_groups(self) -> None:
        # The very same dictionaries, so that learning-rate schedules reach the parts.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def _is_readout(module: nn.Linear) -> bool:
    return module.out_features <= 3
