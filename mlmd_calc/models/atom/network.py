"""The published operator. Module names are those of the public code's later revision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlmd_calc.errors import InputError, ModelFileError
from mlmd_calc.models.atom import official
from mlmd_calc.models.atom.blocks import Blocks, draw_dense_weights
from mlmd_calc.models.atom.config import ATOMConfig
from mlmd_calc.models.atom.lifting import (
    build_lifting,
    canonical_frame,
    mean_position,
    turn_vectors,
)
from mlmd_calc.models.atom.physical_units import check_kind
from mlmd_calc.models.atom.slots import (
    JointSlots,
    RelativeTimes,
    RotaryTables,
    angle_dtype,
    sinusoids,
)


class VectorReadout(nn.Module):
    """Linear combination of the vectors among the features, ``1/sqrt(n_v) · sum of w_u X_u``."""

    def __init__(self, config: ATOMConfig) -> None:
        super().__init__()
        self.in_features = config.lifting_dim
        self.weight = nn.Parameter(torch.randn(config.num_vectors))

    def forward(self, stream: Tensor) -> Tensor:
        """Map ``(..., d)`` to ``(..., 3)``."""
        weight = self.weight / math.sqrt(len(self.weight))
        mix = torch.diag_embed(weight[:, None].expand(-1, 3)).flatten(0, 1)
        return stream[..., : len(mix)] @ mix


class ScalarReadout(nn.Module):
    """Linear combination of the scalars among the features, ``1/sqrt(n_s) · sum of w_u a_u``."""

    def __init__(self, config: ATOMConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.num_scalars))

    def forward(self, stream: Tensor) -> Tensor:
        """Map ``(..., d)`` to ``(...)``."""
        return stream[..., -len(self.weight) :] @ (self.weight / math.sqrt(len(self.weight)))


class Readouts(nn.Module):
    """Position, velocity and energy per token, as far as the configuration has them."""

    def __init__(self, config: ATOMConfig) -> None:
        super().__init__()
        self.linear_pos = VectorReadout(config)
        if config.output_mode != "pos_only":
            self.linear_vel = VectorReadout(config)
        if config.output_mode == "full":
            self.linear_energy = ScalarReadout(config)

    def forward(self, stream: Tensor) -> dict[str, Tensor]:
        """Map ``(..., d)`` to "pos", "vel" ``(..., 3)`` and "energy" ``(...)``."""
        return {name.removeprefix("linear_"): head(stream) for name, head in self.named_children()}


class ATOM(nn.Module):
    """Transformer operator from one molecular state to future frames (arXiv 2510.05482).

    A pure function of tensors, in the units of the data set that it was trained on.

    Parameters
    ----------
    config
        Architecture.

    See Also
    --------
    ATOMIntegrator : the network that replaces the integrator of an engine.
    mlmd_calc.models.atom.record : a faster copy for inference.

    Examples
    --------
    >>> import torch
    >>> from mlmd_calc.models import ATOM, ATOMConfig
    >>> from mlmd_calc.models.atom import input_features
    >>> net = ATOM(ATOMConfig(lifting_dim=32, num_layers=2, num_heads=4)).eval()
    >>> state = input_features(torch.randn(1, 5, 3), torch.randn(1, 5, 3), torch.full((1, 5), 6))
    >>> net(*state, time_increments=torch.full((1, 8), 100.0))["pos"].shape
    torch.Size([1, 8, 5, 3])
    """

    def __init__(self, config: ATOMConfig) -> None:
        super().__init__()
        self.config = config
        self.lifting_layer = build_lifting(config)
        self.transformer_blocks = Blocks(config)
        self.projection_layer = Readouts(config)
        self._tables: RotaryTables | None = None
        draw_dense_weights(self)

    @classmethod
    def from_official(
        cls, constructor_arguments: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> ATOM:
        """Build the network of a checkpoint of the public code, in evaluation mode.

        Parameters
        ----------
        constructor_arguments
            Arguments of the public code's model class, enumerations as their strings.
        state_dict
            Its state dict; prefixes of compiled models are removed.

        Raises
        ------
        ConfigError
            If the arguments ask for something this network does not have.
        ModelFileError
            If the tensors do not fit the arguments.

        See Also
        --------
        mlmd_calc.models.atom.official.convert : what is converted, and what is refused.
        """
        config, tensors = official.convert(constructor_arguments, state_dict)
        # On the meta device no initial weights are drawn: global random numbers stay as they are.
        with torch.device("meta"):
            network = cls(config)
        try:
            network.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            raise ModelFileError(f"the state dict does not fit the arguments: {error}") from error
        return network.eval()

    def forward(
        self,
        x_0: Tensor,
        v_0: Tensor,
        concatenated_features: Tensor,
        padded_nodes_mask: Tensor | None = None,
        time_increments: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict the frames at T times.

        Inputs have T slots, which are copies of the state at t = 0, or one slot that stands for
        them; T is then the number of time increments. Copies are recognised and evaluated once;
        slots that differ, as with noise on the inputs, cost more. Numbers of padded atoms do not
        matter.

        Parameters
        ----------
        x_0, v_0
            ``(b, t or 1, n, 4)`` positions and velocities with their lengths.
        concatenated_features
            ``(b, t or 1, n, 9 + K)``: position, its length, velocity, its length, atomic number, K
            return probabilities.
        padded_nodes_mask
            ``(b, t or 1, n, 1)`` bool, True for real atoms; None if there is no padding.
        time_increments
            ``(b, t)`` time from each slot to the next, the first from t = 0, in the unit of
            ``rope_tau``. None for unit increments.

        Returns
        -------
        dict of Tensor
            "pos" and, if predicted, "vel" ``(b, t, n, 3)``, zero for padding, and "energy"
            ``(b, t)``, the sum over real atoms.

        Raises
        ------
        InputError
            If shapes do not fit together.
        """
        inputs = (x_0, v_0, concatenated_features)
        count = self._check_shapes(inputs, padded_nodes_mask, time_increments)
        mask = None if padded_nodes_mask is None else _atom_mask(padded_nodes_mask)
        x_0, v_0, context = (_without_copies(tensor) for tensor in inputs)
        weights = next(self.parameters())
        times = self._slot_times(count, time_increments, weights)
        tables = self._rotary_tables(times, x_0.shape[2])
        state = (x_0, v_0, context, mask, tables.factors)
        out, norm = self._predict(*state, count, tables.evenly_spaced)
        if not RelativeTimes.suffice(norm):
            out, _ = self._predict(*state, count, False)
        return out

    def _predict(
        self,
        x_0: Tensor,
        v_0: Tensor,
        context: Tensor,
        mask: Tensor | None,
        factors: Tensor | None,
        count: int,
        evenly_spaced: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Frames, and :attr:`JointSlots.smallest_norm`.

        What is done depends on shapes and options only, not on numbers in tensors.
        """
        dtype = next(self.parameters()).dtype
        x_0, v_0, context = (_clear(w, mask).to(dtype) for w in (x_0, v_0, context))
        positions, frame = x_0[..., :3], None
        if self.config.lifting_type == "canonicalization":
            frame = canonical_frame(x_0[:, 0, :, :3], v_0[:, 0, :, :3], mask)
            x_0, v_0, context = self._turn(frame, x_0, v_0, context)
        h_x, h_v, h_c = self.lifting_layer(x_0, v_0, context)
        if self.config.positional_encoding == "sinusoidal":
            h_c = h_c + sinusoids(count, self.config.lifting_dim, h_c.dtype, h_c.device)
        slots = JointSlots(factors, evenly_spaced, mask)
        stream = self.transformer_blocks(h_x, h_v, h_c, [slots] * self.config.num_layers)
        out = self.projection_layer(stream)
        if frame is not None:
            out = _turn_back(out, frame)
            out["pos"] = out["pos"] + mean_position(positions[:, 0], mask)[:, None, None]
        if self.config.delta_update:
            out["pos"] = out["pos"] + positions
        return _finish(out, mask, count), slots.smallest_norm

    def _rotary_tables(self, times: Tensor, n_atoms: int) -> RotaryTables:
        """Tables for these times; those of the last call if they fit."""
        if self._tables is None or not self._tables.fit(times, n_atoms):
            self._tables = RotaryTables(self.config, times, n_atoms)
        return self._tables

    def _turn(self, frame: Tensor, *features: Tensor) -> list[Tensor]:
        layouts = ("vs", "vs", self.config.context_layout)
        return [turn_vectors(w, how, frame) for w, how in zip(features, layouts, strict=True)]

    def _slot_times(self, count: int, time_increments: Tensor | None, weights: Tensor) -> Tensor:
        """Time ``(b or 1, t)`` at which every slot's interval begins."""
        dtype = angle_dtype(weights)
        if time_increments is None or self.config.positional_encoding == "slot_rope":
            return torch.arange(count, dtype=dtype, device=weights.device)[None]
        begins = time_increments.to(dtype).cumsum(dim=1).roll(1, dims=1)
        begins[:, 0] = 0.0
        return begins

    def _check_shapes(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        time_increments: Tensor | None,
    ) -> int:
        """Return the number of slots."""
        layouts = ("vs", "vs", "vsvss" + "s" * self.config.rrwp_length)
        names = ("x_0", "v_0", "concatenated_features")
        b, count, n, _ = inputs[0].shape if inputs[0].ndim == 4 else (0, 0, 0, 0)
        if time_increments is not None:
            count = time_increments.shape[-1]
            if time_increments.shape != (b, count):
                raise InputError(
                    f"time_increments has shape {tuple(time_increments.shape)}; it must be "
                    f"({b}, number of slots)"
                )
        channels = [len(layout) + 2 * layout.count("v") for layout in layouts]
        for name, tensor, width in zip(names, inputs, channels, strict=True):
            if tuple(tensor.shape) not in ((b, count, n, width), (b, 1, n, width)):
                raise InputError(
                    f"{name} has shape {tuple(tensor.shape)}; it must be "
                    f"({b}, {count} or 1, {n}, {width})"
                )
        if mask is not None:
            if tuple(mask.shape) not in ((b, count, n, 1), (b, 1, n, 1)):
                raise InputError(
                    f"padded_nodes_mask has shape {tuple(mask.shape)}; it must be "
                    f"({b}, {count} or 1, {n}, 1)"
                )
            check_kind("padded_nodes_mask", mask, torch.bool)
        return int(count)


def _without_copies(tensor: Tensor) -> Tensor:
    """Reduce slots that are copies to one slot.

    Not if gradients with respect to the slots are wanted, which are not copies of each other.
    """
    if tensor.shape[1] == 1 or tensor.requires_grad:
        return tensor
    return tensor[:, :1] if (tensor == tensor[:, :1]).all() else tensor


def _atom_mask(padded_nodes_mask: Tensor) -> Tensor:
    """Mask ``(b, n)`` that all slots share."""
    mask = padded_nodes_mask[:, 0, :, 0]
    if (padded_nodes_mask[..., 0] != mask[:, None]).any():
        raise InputError("padded_nodes_mask differs between slots; padding must be the same in all")
    if not mask.any(dim=1).all():
        raise InputError("padded_nodes_mask leaves a molecule without atoms")
    return mask


def _clear(features: Tensor, mask: Tensor | None) -> Tensor:
    return features if mask is None else features.masked_fill(~mask[:, None, :, None], 0.0)


def _turn_back(out: dict[str, Tensor], frame: Tensor) -> dict[str, Tensor]:
    """Express predicted vectors in the frame of the inputs."""
    back = frame.transpose(1, 2)[:, None]
    return {name: w if name == "energy" else w @ back for name, w in out.items()}


def _finish(out: dict[str, Tensor], mask: Tensor | None, count: int) -> dict[str, Tensor]:
    """Clear padding, add up energies, and repeat what is the same in all slots."""
    if mask is not None:
        real = mask[:, None]
        out = {n: w * (real if n == "energy" else real[..., None]) for n, w in out.items()}
    if "energy" in out:
        out["energy"] = out["energy"].sum(dim=2)
    return {n: w.expand(-1, count, *w.shape[2:]) for n, w in out.items()}
