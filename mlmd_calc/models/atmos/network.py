"""The ATMOS network: context, geometric encoder, state transition, diffusion decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlmd_calc.errors import InputError
from mlmd_calc.models.atmos.config import ATMOSConfig
from mlmd_calc.models.atmos.diffusion import Conditioning, DiffusionModule
from mlmd_calc.models.atmos.embedders import ContextEmbedder, DistogramHead
from mlmd_calc.models.atmos.features import Context, Features, Memory
from mlmd_calc.models.atmos.geometry import Encoding, GeometricEncoder
from mlmd_calc.models.atmos.transition import Interpolator, StateTransition


class ATMOS(nn.Module):
    """State-space model of molecular motion with long strides (arXiv 2603.17633).

    One step encodes the current frame, updates the memory with it, and draws the next frame from a
    diffusion model conditioned on the memory::

        context = network.context(features)  # once per system
        memory = network.initial_memory(context)  # once per trajectory
        memory = network.step(memory, positions, features, context)
        conditioning = network.conditioning(memory, features, context)
        denoised = network.diffusion_module(noisy, sigma, conditioning)

    :class:`~.rollout.Rollout` draws frames with it.

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

    def context(self, features: Features) -> Context:
        """Embed the chemistry of a batch of systems."""
        out: Context = self.context_embedder(features)
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
        """Terms of the end frame, or None for a model that is not an interpolator."""
        if self.interpolator is None:
            if end is not None or remaining is not None:
                raise InputError(
                    "this model is not an interpolator (max_remaining=0): it takes neither an end "
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
