"""The ATMOS network: context, geometric encoder, state transition, diffusion decoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlmd_calc.errors import InputError
from mlmd_calc.models.atmos.config import ATMOSConfig, SamplerConfig
from mlmd_calc.models.atmos.diffusion import Conditioning, DiffusionModule
from mlmd_calc.models.atmos.embedders import ContextEmbedder, DistogramHead
from mlmd_calc.models.atmos.features import Context, Features, Memory
from mlmd_calc.models.atmos.geometry import Encoding, GeometricEncoder
from mlmd_calc.models.atmos.sampler import sample
from mlmd_calc.models.atmos.transition import Interpolator, StateTransition


class Prediction(NamedTuple):
    """What the training losses compare with the true next frame."""

    denoised: Tensor
    """``(b, k, a, 3)`` Å."""
    distogram: Tensor
    """``(b, n, n, distogram_bins)`` logits."""


class ATMOS(nn.Module):
    """State-space model of molecular motion with long strides (arXiv 2603.17633).

    One step encodes the current frame, updates the memory with it, and draws the next frame from a
    diffusion model conditioned on the memory::

        context = network.context(features)  # once per system
        memory = network.initial_memory(context)  # once per trajectory
        memory = network.step(memory, positions, features, context)
        positions = network.sample(memory, features, context, generator)[:, 0]

    The network itself holds nothing that changes: a step returns a new memory and leaves the one it
    was given alone, so that a rejected frame costs nothing but time. Lengths are in Å, and frames
    come out in an arbitrary pose.

    Parameters
    ----------
    config
        Architecture.

    Examples
    --------
    >>> from mlmd_calc.models import ATMOS, ATMOSConfig
    >>> sum(p.numel() for p in ATMOS(ATMOSConfig.preset("xs")).parameters()) > 800_000
    True
    """

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        self.config = config
        self.context_embedder = ContextEmbedder(config)
        self.geometric_encoder = GeometricEncoder(config)
        self.transition = StateTransition(config)
        self.interpolator = Interpolator(config) if config.max_remaining else None
        self.diffusion_module = DiffusionModule(config)
        self.distogram_head = DistogramHead(config.c_z, config.distogram_bins)

    def context(self, features: Features, cycles: int | None = None) -> Context:
        """Embed the chemistry of a batch of systems; see :meth:`ContextEmbedder.forward`."""
        out: Context = self.context_embedder(features, cycles)
        return out

    def initial_memory(self, context: Context) -> Memory:
        """Return the memory a trajectory starts with."""
        start = torch.zeros(len(context.s), dtype=torch.long, device=context.s.device)
        return Memory(context.s, context.z, start)

    def step(
        self,
        memory: Memory,
        positions: Tensor,
        features: Features,
        context: Context,
        *,
        lag: Tensor | None = None,
        end: Tensor | None = None,
        remaining: Tensor | None = None,
    ) -> Memory:
        """Take a frame into the memory.

        Parameters
        ----------
        memory
            Memory before the frame.
        positions
            ``(b, a, 3)`` Å, the current frame, in any precision and, with
            ``coord_mode="local"``, in any pose.
        features, context
            Of the systems.
        lag
            ``(b,)`` time to the next frame in ps, for ``tau="lag"`` only.
        end
            ``(b, a, 3)`` Å, the frame at the end of the interval, for interpolators only.
        remaining
            ``(b,)`` int64, steps from this frame to the end frame, for interpolators only.

        Returns
        -------
        Memory
            What the next frame is drawn from.

        Raises
        ------
        InputError
            If an argument that the model needs is missing, if one is given that it does not use, or
            if ``remaining`` is out of range.
        """
        encoding = self.encode(positions, features, context, memory)
        encoded_end = None if end is None else self.encode(end, features, context, memory)
        return self.advance(
            memory, encoding, features, lag=lag, end=encoded_end, remaining=remaining
        )

    def encode(
        self, positions: Tensor, features: Features, context: Context, memory: Memory | None = None
    ) -> Encoding:
        """Encode frames ``(b, a, 3)`` for :meth:`advance`.

        The memory is that before the frame, and needed with ``encoder_state="memory"`` only.
        """
        seen = {"context": context, "memory": memory, "none": None}[self.config.encoder_state]
        s, z = (None, None) if seen is None else (seen.s, seen.z)
        out: Encoding = self.geometric_encoder(positions, features, s, z)
        return out

    def advance(
        self,
        memory: Memory,
        encoding: Encoding,
        features: Features,
        *,
        lag: Tensor | None = None,
        end: Encoding | None = None,
        remaining: Tensor | None = None,
    ) -> Memory:
        """Take an encoded frame into the memory; see :meth:`step`."""
        terms = self._end_terms(end, remaining)
        out: Memory = self.transition(memory, encoding, features, lag=lag, end_terms=terms)
        return out

    def _end_terms(self, end: Encoding | None, remaining: Tensor | None) -> Encoding | None:
        """Terms of the end frame, or None for a model that is no interpolator."""
        if self.interpolator is None:
            if end is not None or remaining is not None:
                raise InputError(
                    "this model is no interpolator (max_remaining=0): it takes neither an end "
                    "frame nor remaining steps"
                )
            return None
        if end is None or remaining is None:
            raise InputError("an interpolator needs the end frame and the remaining steps")
        out: Encoding = self.interpolator(end, remaining)
        return out

    def conditioning(self, memory: Memory, features: Features, context: Context) -> Conditioning:
        """Prepare the decoder for the next frame; the result serves any number of samples."""
        return self.diffusion_module.conditioning(features, context.s_inputs, memory.s, memory.z)

    @torch.no_grad()
    def sample(
        self,
        memory: Memory,
        features: Features,
        context: Context,
        generator: torch.Generator,
        *,
        samples: int = 1,
        sampler: SamplerConfig | None = None,
    ) -> Tensor:
        """Draw the next frame.

        Parameters
        ----------
        memory
            From :meth:`step`.
        features, context
            Of the systems.
        generator
            Source of all randomness.
        samples
            Independent draws k per batch entry.
        sampler
            Noise levels and step rule; None for those of the configuration.

        Returns
        -------
        Tensor
            ``(b, k, a, 3)`` Å in an arbitrary pose; padded atoms at the origin.
        """
        conditioning = self.conditioning(memory, features, context)
        return sample(
            lambda noisy, sigma: self.diffusion_module(noisy, sigma, conditioning),
            features.atom_mask,
            samples,
            sampler or self.config.sampler,
            self.config,
            generator,
            memory.s.dtype,
        )

    def forward(
        self,
        features: Features,
        frames: Tensor,
        noisy: Tensor,
        sigma: Tensor,
        *,
        cycles: int | None = None,
        lag: Tensor | None = None,
        end: Tensor | None = None,
        remaining: Tensor | None = None,
        recompute: bool = False,
    ) -> Prediction:
        """Read a window of true frames and denoise the frame after it.

        Parameters
        ----------
        features
            Static features.
        frames
            ``(b, w, a, 3)`` Å.
        noisy, sigma
            ``(b, k, a, 3)`` and ``(b, k)`` in Å, noisy copies of the frame after the window.
        cycles
            Passes through the context embedder; None for the configured number.
        lag, end
            As in :meth:`step`.
        remaining
            ``(b,)`` int64, steps from the first frame of the window to the end frame.
        recompute
            Save memory: recompute the transitions in the backward pass.
        """
        context = self.context(features, cycles)
        memory = self.initial_memory(context)

        def advance(memory: Memory, positions: Tensor, left: Tensor | None) -> Memory:
            return self.step(memory, positions, features, context, lag=lag, end=end, remaining=left)

        for index, positions in enumerate(frames.unbind(1)):
            left = None if remaining is None else remaining - index
            if recompute:
                memory = checkpoint(advance, memory, positions, left, use_reentrant=False)
            else:
                memory = advance(memory, positions, left)
        conditioning = self.conditioning(memory, features, context)
        return Prediction(
            self.diffusion_module(noisy, sigma, conditioning), self.distogram_head(memory.z)
        )
