"""Diffusion decoder: denoises coordinates of the next frame, conditioned on the memory.

AlphaFold 3 (Abramson et al., Nature 630, 493, 2024), algorithms 20 and 21, in the preconditioned
form of Karras et al. (NeurIPS 2022). Module names are those of Protenix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlmd_calc.models.atmos.atom_attention import (
    AtomAttentionDecoder,
    AtomAttentionEncoder,
    AtomBlocks,
    AtomConditioning,
)
from mlmd_calc.models.atmos.config import ATMOSConfig
from mlmd_calc.models.atmos.diffusion_transformer import DiffusionTransformer
from mlmd_calc.models.atmos.embedders import RelativePositionEncoding
from mlmd_calc.models.atmos.features import Features
from mlmd_calc.models.atmos.primitives import FourierEmbedding, Transition, linear, mask_bias


class DiffusionConditioning(nn.Module):
    """Conditioning of tokens and pairs."""

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        c_s, c_z = config.c_s, config.c_z
        self.sigma_data = config.sigma_data
        self.relpe = RelativePositionEncoding(c_z)
        self.layernorm_z = nn.LayerNorm(2 * c_z, bias=False)
        self.linear_no_bias_z = linear(2 * c_z, c_z)
        self.transition_z1 = Transition(c_z, 2)
        self.transition_z2 = Transition(c_z, 2)
        self.layernorm_s = nn.LayerNorm(c_s + config.c_s_inputs, bias=False)
        self.linear_no_bias_s = linear(c_s + config.c_s_inputs, c_s)
        self.fourier_embedding = FourierEmbedding()
        c_noise = len(self.fourier_embedding.w)
        self.layernorm_n = nn.LayerNorm(c_noise, bias=False)
        self.linear_no_bias_n = linear(c_noise, c_s)
        self.transition_s1 = Transition(c_s, 2)
        self.transition_s2 = Transition(c_s, 2)

    def pairs(self, z: Tensor, features: Features) -> Tensor:
        """Return conditioned pairs ``(..., n, n, c_z)``."""
        z = torch.cat([z, self.relpe(features)], dim=-1)
        z = self.linear_no_bias_z(self.layernorm_z(z))
        z = z + self.transition_z1(z)
        out: Tensor = z + self.transition_z2(z)
        return out

    def tokens(self, s: Tensor, s_inputs: Tensor) -> Tensor:
        """Return the part ``(..., n, c_s)`` of the tokens that does not depend on the noise."""
        out: Tensor = self.linear_no_bias_s(self.layernorm_s(torch.cat([s, s_inputs], dim=-1)))
        return out

    def noisy_tokens(self, tokens: Tensor, sigma: Tensor) -> Tensor:
        """Add noise levels ``(...)`` to tokens ``(..., n, c_s)`` from :meth:`tokens`."""
        noise = self.fourier_embedding(torch.log(sigma / self.sigma_data) / 4.0)
        noise = self.linear_no_bias_n(self.layernorm_n(noise))
        s = tokens + noise[..., None, :]
        s = s + self.transition_s1(s)
        out: Tensor = s + self.transition_s2(s)
        return out


class Conditioning(NamedTuple):
    """All the decoder needs to know about a frame; the same for all noise levels and samples.

    Tensors have an axis of length one for the samples behind the batch axis.
    """

    tokens: Tensor
    """``(b, 1, n, c_s)``."""
    token_biases: list[Tensor]
    """``(b, 1, h, n, n)`` for each block of the token transformer."""
    atoms: AtomConditioning
    encoder_blocks: AtomBlocks
    decoder_blocks: AtomBlocks


class DiffusionModule(nn.Module):
    """Denoiser ``D(x, σ)``.

    It is not equivariant: samplers and training put the coordinates into random poses.
    """

    def __init__(self, config: ATMOSConfig) -> None:
        super().__init__()
        self.sigma_data = config.sigma_data
        c_a, blocks = config.c_diffusion, config.decoder_atom_blocks
        self.diffusion_conditioning = DiffusionConditioning(config)
        self.atom_attention_encoder = AtomAttentionEncoder(
            config, c_a, blocks, coordinates=True, embeddings=True
        )
        self.layernorm_s = nn.LayerNorm(config.c_s, bias=False)
        self.linear_no_bias_s = linear(config.c_s, c_a, init="zeros")
        self.diffusion_transformer = DiffusionTransformer(
            c_a,
            config.c_s,
            config.c_z,
            config.diffusion_blocks,
            config.diffusion_heads,
            cross=False,
        )
        self.layernorm_a = nn.LayerNorm(c_a, bias=False)
        self.atom_attention_decoder = AtomAttentionDecoder(config, c_a, blocks)

    def conditioning(
        self, features: Features, s_inputs: Tensor, s: Tensor, z: Tensor
    ) -> Conditioning:
        """Prepare the denoising of one frame.

        Parameters
        ----------
        features
            Static features.
        s_inputs
            ``(b, n, c_s_inputs)`` input features of the tokens.
        s, z
            ``(b, n, c_s)`` and ``(b, n, n, c_z)``, the memory.
        """
        pairs = self.diffusion_conditioning.pairs(z, features)[:, None]
        key_bias = mask_bias(features.token_mask, s.dtype)[:, None, None, None, :]
        atoms = self.atom_attention_encoder.conditioning(features, s, pairs[:, 0])
        atoms = atoms.with_sample_axis()
        return Conditioning(
            tokens=self.diffusion_conditioning.tokens(s, s_inputs)[:, None],
            token_biases=self.diffusion_transformer.biases(pairs, key_bias),
            atoms=atoms,
            encoder_blocks=self.atom_attention_encoder.atom_transformer.blocks(atoms),
            decoder_blocks=self.atom_attention_decoder.atom_transformer.blocks(atoms),
        )

    def update(self, r: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the raw output of the network.

        Parameters
        ----------
        r
            ``(b, k, a, 3)`` coordinates scaled to unit variance.
        sigma
            ``(b, k)`` noise levels in Å.
        conditioning
            From :meth:`conditioning`.
        """
        s = self.diffusion_conditioning.noisy_tokens(conditioning.tokens, sigma)
        a, q = self.atom_attention_encoder(r, conditioning.atoms, conditioning.encoder_blocks)
        a = a + self.linear_no_bias_s(self.layernorm_s(s))
        conditions = self.diffusion_transformer.conditions(s)
        a = self.layernorm_a(self.diffusion_transformer(a, conditions, conditioning.token_biases))
        out: Tensor = self.atom_attention_decoder(
            a, q, conditioning.atoms, conditioning.decoder_blocks
        )
        return out

    def forward(self, noisy: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Denoise coordinates.

        Parameters
        ----------
        noisy
            ``(b, k, a, 3)`` Å.
        sigma
            ``(b, k)`` noise levels in Å.
        conditioning
            From :meth:`conditioning`.

        Returns
        -------
        Tensor
            ``(b, k, a, 3)`` Å; values of padded atoms are finite but meaningless.
        """
        level = sigma[..., None, None]
        total = torch.sqrt(level**2 + self.sigma_data**2)
        update = self.update(noisy / total, sigma, conditioning)
        kept = noisy * (self.sigma_data / total) ** 2
        return kept + update * (level * self.sigma_data / total)
