"""State transition: memory and current frame to the memory of the next step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlmd_calc.errors import InputError
from mlmd_calc.models.atmos.config import ATMOSConfig
from mlmd_calc.models.atmos.features import Features, Memory
from mlmd_calc.models.atmos.geometry import Encoding
from mlmd_calc.models.atmos.pairformer import PairformerBlock
from mlmd_calc.models.atmos.primitives import BlockStack, FourierEmbedding, linear


class TransitionBlock(PairformerBlock):
    """Pairformer block in which tokens also inform the pairs (arXiv 2603.17633, algorithm 2)."""

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__(config)
        self.single_to_pair = config.single_to_pair
        if config.single_to_pair == "none":
            return
        self.s_to_z_norm = nn.LayerNorm(config.c_s)
        self.s_to_z_i = linear(config.c_s, config.c_z, init="zeros")
        if config.single_to_pair == "separate":
            self.s_to_z_j = linear(config.c_s, config.c_z, init="zeros")

    def forward(
        self, s: Tensor, z: Tensor, pair_mask: Tensor | None, key_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return new tokens and pairs; see :meth:`PairformerBlock.forward`."""
        if self.single_to_pair != "none":
            tokens = self.s_to_z_norm(s)
            first = self.s_to_z_i(tokens)
            second = self.s_to_z_j(tokens) if self.single_to_pair == "separate" else first
            z = z + first[..., :, None, :] + second[..., None, :, :]
        return super().forward(s, z, pair_mask, key_mask)


class StepEmbedding(nn.Module):
    """Learned table over the index of a step; later steps use the last row."""

    def __init__(self, steps: int, c: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(steps, c))

    def forward(self, time: Tensor) -> Tensor:
        """Map indices ``(b,)`` to ``(b, c)``."""
        return self.table[time.clamp(max=len(self.table) - 1)]


class LagEmbedding(nn.Module):
    """Linear map of random Fourier features of the logarithm of the lag."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.fourier_embedding = FourierEmbedding()
        self.linear = linear(len(self.fourier_embedding.w), c, init="zeros")

    def forward(self, time: Tensor) -> Tensor:
        """Map lags ``(b,)`` in ps to ``(b, c)``."""
        features = self.fourier_embedding(torch.log(time))
        out: Tensor = self.linear(features.to(self.linear.weight.dtype))
        return out


class Interpolator(nn.Module):
    """Conditioning on the frame at the end of an interval and the steps that remain until then."""

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        self.norm_s = nn.LayerNorm(config.c_s)
        self.norm_z = nn.LayerNorm(config.c_z)
        self.end_s = linear(config.c_s, config.c_s, init="zeros")
        self.end_z = linear(config.c_z, config.c_z, init="zeros")
        self.rho_s = nn.Parameter(torch.zeros(config.max_remaining + 1, config.c_s))
        self.rho_z = nn.Parameter(torch.zeros(config.max_remaining + 1, config.c_z))

    def forward(self, end: Encoding, remaining: Tensor) -> Encoding:
        """Return the terms to add to tokens and pairs.

        Parameters
        ----------
        end
            Encoded end frame.
        remaining
            ``(b,)`` int64, steps from the current frame to the end frame, at least 1.

        Raises
        ------
        InputError
            If ``remaining`` is not between 1 and the configured ``max_remaining``.
        """
        largest = len(self.rho_s) - 1
        if bool(((remaining < 1) | (remaining > largest)).any()):
            raise InputError(
                f"remaining steps {remaining.tolist()} must be between 1 and {largest}, the "
                "max_remaining of this interpolator"
            )
        return Encoding(
            self.end_s(self.norm_s(end.s)) + self.rho_s[remaining][:, None],
            self.end_z(self.norm_z(end.z)) + self.rho_z[remaining][:, None, None],
        )


class StateTransition(BlockStack):
    """Recurrent update of the memory (arXiv 2603.17633, equations 7 and 8)."""

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        self.tau = config.tau
        self.update = config.update
        if config.tau == "step":
            self.tau_s: nn.Module = StepEmbedding(config.max_steps, config.c_s)
            self.tau_z: nn.Module = StepEmbedding(config.max_steps, config.c_z)
        else:
            self.tau_s = LagEmbedding(config.c_s)
            self.tau_z = LagEmbedding(config.c_z)
        if config.update == "concat":
            self.combine_s = linear(2 * config.c_s, config.c_s)
            self.combine_z = linear(2 * config.c_z, config.c_z)
        self.state_norm = config.state_norm
        if config.state_norm:
            self.norm_s = nn.LayerNorm(config.c_s)
            self.norm_z = nn.LayerNorm(config.c_z)
        self.blocks = nn.ModuleList(
            TransitionBlock(config) for _ in range(config.transition_blocks)
        )

    def forward(
        self,
        memory: Memory,
        encoding: Encoding,
        features: Features,
        *,
        lag: Tensor | None = None,
        end_terms: Encoding | None = None,
    ) -> Memory:
        """Return the memory of the next step; the one given is left as it is.

        Parameters
        ----------
        memory
            Memory of this step.
        encoding
            Encoded current frame.
        features
            Static features.
        lag
            ``(b,)`` time to the next frame in ps, for ``tau="lag"`` only.
        end_terms
            Terms of the interpolator.

        Raises
        ------
        InputError
            If ``lag`` is missing, not positive, or given to a model that does not use it.
        """
        if (lag is None) == (self.tau == "lag"):
            needed = "needs lag" if self.tau == "lag" else "takes no lag"
            raise InputError(f"a model with tau={self.tau!r} {needed}")
        if lag is not None and bool((lag <= 0.0).any()):
            raise InputError(f"lag={lag.tolist()} ps; the time to the next frame must be positive")
        time = memory.step if lag is None else lag
        s, z = memory.s, memory.z
        if self.state_norm:
            s, z = self.norm_s(s), self.norm_z(z)
        if self.update == "add":
            s, z = s + encoding.s, z + encoding.z
        else:
            s = self.combine_s(torch.cat([s, encoding.s], dim=-1))
            z = self.combine_z(torch.cat([z, encoding.z], dim=-1))
        s, z = s + self.tau_s(time)[:, None], z + self.tau_z(time)[:, None, None]
        if end_terms is not None:
            s, z = s + end_terms.s, z + end_terms.z
        for block in self.blocks:
            s, z = self.apply_block(block, s, z, features.pair_mask, features.token_mask)
        return Memory(
            s * features.token_mask[..., None], z * features.pair_mask[..., None], memory.step + 1
        )
