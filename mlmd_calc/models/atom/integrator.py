"""The integrator: jumps of small molecules to any time within its horizon."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.models.atom.blocks import Blocks, draw_dense_weights
from mlmd_calc.models.atom.config import IntegratorConfig
from mlmd_calc.models.atom.pairs import Geometry, PairLifting, PairReadout
from mlmd_calc.models.atom.physical_units import (
    NUM_ELEMENTS,
    HorizonEmbedding,
    MolecularState,
    PhysicalUnits,
    check_kind,
)
from mlmd_calc.models.atom.slots import PairSlots, angle_dtype
from mlmd_calc.models.larger import seeded_like, take_weights
from mlmd_calc.models.mdet.network import PairEncoder

_ENCODER: Final = "lifting_layer.encoder"

_STARTS_AT_ZERO: Final = re.compile(r"_coefficients|film")
"""Last layers, with which an untrained network is ballistic, and layers that depend on time."""


class ATOMIntegrator(nn.Module):
    """Jump of an integrator, made of the blocks of :class:`~.network.ATOM`.

    A pure function of tensors, in Å and fs. What it knows of geometry are pairs of atoms (see
    :mod:`.pairs`), so that its predictions turn and mirror exactly with the molecule; what it
    predicts are changes of ballistic motion (see :mod:`.physical_units`).

    Parameters
    ----------
    config
        Architecture.

    See Also
    --------
    mlmd_calc.models.atom.record : a faster copy for inference.

    Examples
    --------
    >>> import torch
    >>> from mlmd_calc.models import ATOMIntegrator, IntegratorConfig
    >>> net = ATOMIntegrator(IntegratorConfig(lifting_dim=32, num_heads=4))
    >>> x, v = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    >>> out = net.propagate(x, v, torch.tensor([[8, 1]]), torch.tensor([[0.0, 4.0]]))
    >>> torch.equal(out["pos"][:, 0], x)
    True
    """

    def __init__(self, config: IntegratorConfig) -> None:
        super().__init__()
        self.config = config
        self.lifting_layer = PairLifting(config)
        self.transformer_blocks = Blocks(config)
        self.projection_layer = PairReadout(config)
        self.physical_units = PhysicalUnits(config)
        self.element_embedding = nn.Embedding(NUM_ELEMENTS, 3 * config.lifting_dim)
        self.horizon = HorizonEmbedding(config)
        draw_dense_weights(self)
        for name, weight in self.named_parameters():
            if _STARTS_AT_ZERO.search(name):
                nn.init.zeros_(weight)

    def with_encoder(self, network: PairEncoder) -> ATOMIntegrator:
        """Copy the network, and give the copy what a force field's network knows of pairs.

        A force field has learnt which atoms are bound how, from more molecules than an integrator.
        The copy predicts the same until it is trained further. The encoder is not trained.

        Parameters
        ----------
        network
            A :class:`~mlmd_calc.models.MDET`, whose weights are copied, without its read-outs.

        Raises
        ------
        ConfigError
            If its features turn with the molecule, or there is an encoder already.
        """
        if self.config.encoder is not None:
            raise ConfigError(
                "the network has an encoder already, and keeps it; leave out encoder (in a command "
                "with --set encoder='\"\"')"
            )
        # Of what is drawn nothing is kept.
        wider = self._in_larger(replace(self.config, encoder=network.config), seed=0)
        own = wider.state_dict()
        for name, weight in network.state_dict().items():
            if (name := f"{_ENCODER}.{name}") in own:
                own[name].copy_(weight)
        nn.init.zeros_(wider.lifting_layer.from_encoder.weight)
        return wider

    def widened(self, pair_hidden_dim: int, seed: int = 0) -> ATOMIntegrator:
        """Copy the network, with functions of pairs that are wider inside.

        The copy predicts the same until it is trained further, and learns what is too much for the
        network as it is.

        Parameters
        ----------
        pair_hidden_dim
            Width inside the functions of pairs, at least the network's.
        seed
            Seed of the weights of the new part.

        Raises
        ------
        ConfigError
            If that is narrower than the network.
        """
        if pair_hidden_dim < self.config.pair_hidden_dim:
            raise ConfigError(
                f"pair_hidden_dim={pair_hidden_dim} is less than the network's "
                f"{self.config.pair_hidden_dim}; a trained network can only become wider"
            )
        return self._in_larger(replace(self.config, pair_hidden_dim=pair_hidden_dim), seed)

    def _in_larger(self, config: IntegratorConfig, seed: int) -> ATOMIntegrator:
        """Copy the weights into a larger network, whose own ones do not yet reach its result."""
        larger = seeded_like(self, lambda: ATOMIntegrator(config), seed)
        take_weights(larger, self)
        return larger

    def propagate(
        self,
        positions: Tensor,
        velocities: Tensor,
        numbers: Tensor,
        times: Tensor,
        mask: Tensor | None = None,
        accelerations: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict positions and velocities at any times.

        The result is ballistic motion plus changes that vanish at t = 0; an untrained network moves
        atoms ballistically. Every time is predicted by itself: it does not matter which others are
        asked for. Translating the molecule or adding a common velocity changes the result
        accordingly.

        Parameters
        ----------
        positions, velocities
            ``(b, n, 3)`` Å and Å/fs, in any precision; the result has the same.
        numbers
            ``(b, n)`` int64 atomic numbers, 0 for padding.
        times
            ``(b, t)`` fs, from 0 to ``max_horizon``.
        mask
            ``(b, n)`` bool, True for real atoms; None if there is no padding.
        accelerations
            ``(b, n, 3)`` Å/fs² at t = 0, if the network takes them.

        Returns
        -------
        dict of Tensor
            "pos" Å and "vel" Å/fs, ``(b, t, n, 3)``, zero for padding.

        Raises
        ------
        InputError
            If shapes do not fit together or a value is not allowed.
        """
        check_kind("numbers", numbers, torch.int64)
        if mask is None:
            mask = torch.ones_like(numbers, dtype=torch.bool)
        elif mask.shape != numbers.shape:
            raise InputError(
                f"mask has shape {tuple(mask.shape)} and numbers {tuple(numbers.shape)}; they must "
                "be the same, (b, n)"
            )
        check_kind("mask", mask, torch.bool)
        numbers = numbers.masked_fill(~mask, 0)
        state = MolecularState(positions, velocities, numbers, mask, accelerations)
        state.check(self.config, times)
        return self._jump(*state, times)

    def _jump(
        self,
        positions: Tensor,
        velocities: Tensor,
        numbers: Tensor,
        mask: Tensor,
        accelerations: Tensor | None,
        times: Tensor,
    ) -> dict[str, Tensor]:
        """Later states; what is done depends on shapes and options only."""
        state = MolecularState(positions, velocities, numbers, mask, accelerations)
        weights = self.element_embedding.weight
        x, motions = (w.to(weights.dtype) for w in self.physical_units.inputs(state))
        geometry = Geometry.of(x, motions, mask)
        pairs, bias, lifted = self.lifting_layer(x, geometry, motions, numbers, mask)
        elements = self.element_embedding(numbers).chunk(3, dim=-1)
        h_x, h_v, h_c = ((h + e)[:, None] for h, e in zip(lifted, elements, strict=True))
        # The stream starts with all that is known of an atom, because attention mixes atoms.
        stream = self.transformer_blocks(
            h_x + h_v + h_c, h_v, h_c, [PairSlots(own) for own in bias]
        )
        horizon = self.horizon(times.to(angle_dtype(weights)))
        out = self.projection_layer(stream[:, 0], pairs, motions, geometry, horizon)
        # Training may be in half precision, in which the short steps of springs would be lost.
        out = {name: found.to(weights.dtype) for name, found in out.items()}
        return self.physical_units.advance(state, times, out["pos"], out["vel"], out.get("springs"))
