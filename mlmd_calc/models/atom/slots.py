"""Time slots: which tokens attend to which, and how their times enter (T-RoPE).

Tokens are atoms at output times. Rotary encoding turns the channel pairs of queries and keys by
angles proportional to their times, so that scores depend on time differences only; values are not
turned.

Tensors have a slot axis of length T, or of length 1 where all slots hold the same numbers. The
state at t = 0 enters every slot, so queries, and the keys and values of velocities and context,
have one slot, and most of the work is done once per atom instead of once per token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mlmd_calc.models.atom.config import ATOMConfig


class KeysAndValues(NamedTuple):
    """Keys and values of i streams, ``(i, b, t or 1, n, h, c)`` each."""

    keys: Tensor
    values: Tensor

    def scaled(self, factors: Tensor) -> KeysAndValues:
        """Multiply the values."""
        return KeysAndValues(self.keys, self.values * factors)


def angle_dtype(weights: Tensor) -> torch.dtype:
    """Precision of times and rotary angles: that of the weights, single at least."""
    return torch.promote_types(weights.dtype, torch.float32)


def rotary_factors(angles: Tensor, config: ATOMConfig) -> Tensor:
    """Complex factors ``exp(i·angle·base^(-2j/c))`` of the c/2 channel pairs, ``(..., c/2)``.

    The frequencies are rounded to single precision, as in the public code.
    """
    c = config.head_dim
    pairs = torch.arange(0, c, 2, dtype=torch.float32, device=angles.device)
    frequencies = 1.0 / config.rope_base ** (pairs / c)
    theta = angles[..., None] * frequencies.to(angles.dtype)
    return torch.polar(torch.ones_like(theta), theta)


def rotate(x: Tensor, factors: Tensor | None) -> Tensor:
    """Turn adjacent channels of ``(b, t, n, h, c)``; slots of both arguments broadcast."""
    if factors is None:
        return x
    # Complex products exist in single and double precision only, and compilers lack them.
    pairs = x.to(factors.real.dtype).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (even, odd), (cos, sin) = pairs.unbind(-1), torch.view_as_real(factors).unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * factors)
    return turned.flatten(-2).to(x.dtype)


def sinusoids(slots: int, d: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sinusoidal encoding ``(t, 1, d)`` of slot numbers (Vaswani et al., NeurIPS 2017)."""
    pairs = torch.arange(0, d, 2, dtype=dtype, device=device)
    slot = torch.arange(slots, dtype=dtype, device=device)
    angles = slot[:, None] / 10000.0 ** (pairs / d)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[:, None, :d]


class RotaryTables:
    """What attention between all slots needs to know of their times.

    Parameters
    ----------
    config
        Kind and constants of the positional encoding.
    times
        ``(b, t)`` or ``(1, t)`` time of every slot, in the precision of the rotary angles.
    n_atoms
        Number n of atoms, padding included.

    Attributes
    ----------
    factors
        ``(b or 1, t, n or 1, 1, c/2)`` rotary factors of tokens, or None if there is no rotation.
    evenly_spaced
        Whether equal time differences between slots may be treated as one, see
        :class:`RelativeTimes`.
    """

    def __init__(self, config: ATOMConfig, times: Tensor, n_atoms: int) -> None:
        self._times, self._n_atoms = times, n_atoms
        self._inference = torch.is_inference_mode_enabled()
        self.factors: Tensor | None = None
        self.evenly_spaced = False
        if config.positional_encoding in ("trope", "slot_rope"):
            angles = times / config.rope_tau
            self.factors = rotary_factors(angles[:, :, None, None], config)
            # Elsewhere fused attention is faster than fewer operations.
            self.evenly_spaced = times.device.type == "cpu" and _evenly_spaced(times)
        elif config.positional_encoding == "rope":
            count = times.shape[1] * n_atoms
            tokens = torch.arange(count, dtype=times.dtype, device=times.device)
            self.factors = rotary_factors(tokens.view(1, -1, n_atoms, 1), config)

    def fit(self, times: Tensor, n_atoms: int) -> bool:
        """Whether these tables are those of the given times, and can be used now."""
        # Autograd refuses tensors that were made in inference mode.
        return (
            self._inference == torch.is_inference_mode_enabled()
            and self._n_atoms == n_atoms
            and (self._times.dtype, self._times.device) == (times.dtype, times.device)
            and torch.equal(self._times, times)
        )


class JointSlots:
    """All slots attend to all slots, as published.

    Parameters
    ----------
    factors
        Rotary factors of tokens, see :class:`RotaryTables`, or None.
    evenly_spaced
        Whether the slots are evenly spaced from time 0.
    mask
        ``(b, n)`` bool, True for real atoms, or None.
    """

    def __init__(self, factors: Tensor | None, evenly_spaced: bool, mask: Tensor | None) -> None:
        self._factors, self._mask = factors, mask
        self._relative = RelativeTimes(factors) if evenly_spaced and factors is not None else None

    @property
    def smallest_norm(self) -> Tensor:
        """Smallest of :attr:`RelativeTimes.norms`; infinity without any."""
        norms = [] if self._relative is None else self._relative.norms
        return torch.stack(norms).amin() if norms else torch.tensor(math.inf)

    def attend(
        self, query: Tensor, own: KeysAndValues, inputs: KeysAndValues | None, dropout: float
    ) -> Tensor:
        """Attend from all tokens to all tokens of all streams, and add up the results.

        Parameters
        ----------
        query
            ``(b, t or 1, n, h, c)``.
        own
            Keys and values of the stream that blocks update.
        inputs
            Keys and values of other streams, or None.
        dropout
            Probability with which attention weights are dropped.

        Returns
        -------
        Tensor
            ``(b, t or 1, n, h, c)``.
        """
        if inputs is None:
            return self._attend(query, own, dropout)
        if inputs.keys.shape[2] == own.keys.shape[2]:
            return self._attend(query, _joined(own, inputs), dropout)
        return self._attend(query, own, dropout) + self._attend(query, inputs, dropout)

    def _attend(self, query: Tensor, streams: KeysAndValues, dropout: float) -> Tensor:
        keys, values = streams
        one_slot = query.shape[1] == keys.shape[2] == 1
        if self._relative is not None and one_slot and not dropout:
            return self._relative.attend(query, keys, values, self._mask)
        query, keys = rotate(query, self._factors), rotate(keys, self._factors)
        # Without rotation a key has one slot still: copies of it would share its weight evenly.
        values = values.expand(-1, -1, keys.shape[2], -1, -1, -1)
        return attention(query, keys, values, self._mask, dropout)


def _joined(first: KeysAndValues, second: KeysAndValues) -> KeysAndValues:
    return KeysAndValues(*(torch.cat(parts) for parts in zip(first, second, strict=True)))


class PairSlots:
    """One slot, the state at t = 0, in which pairs of atoms bias attention.

    Parameters
    ----------
    bias
        ``(b, h, n, n)`` added to the scores of every stream; minus infinity for padding.
    """

    def __init__(self, bias: Tensor) -> None:
        self._bias = bias

    def attend(
        self, query: Tensor, own: KeysAndValues, inputs: KeysAndValues | None, dropout: float
    ) -> Tensor:
        """Attend, see :meth:`JointSlots.attend`; there is one slot."""
        keys, values = own if inputs is None else _joined(own, inputs)
        q = query[:, 0].transpose(1, 2)
        k, v = (x[:, :, 0].transpose(2, 3) for x in (keys, values))
        q, bias = (x.expand(len(k), *x.shape) for x in (q, self._bias))
        q, k, v, bias = (x.flatten(0, 1) for x in (q, k, v, bias))
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        total: Tensor = out.unflatten(0, (len(keys), -1)).sum(dim=0)
        return total.transpose(1, 2)[:, None]


def _evenly_spaced(times: Tensor) -> bool:
    """Whether every sample's slots are equally far apart, up to rounding; two slots at least."""
    if times.shape[1] < 2:
        return False
    gaps = times.diff(dim=1)
    allowed = 4.0 * torch.finfo(times.dtype).eps * times.abs().amax(dim=1, keepdim=True)
    return bool(((gaps - gaps[:, :1]).abs() <= allowed).all())


def attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Sum over streams of fused softmax attention over all slots and real atoms.

    Parameters
    ----------
    query
        ``(b, t, n, h, c)``.
    keys, values
        ``(i, b, t', n, h, c)``.
    mask
        ``(b, n)`` bool, True for real atoms, or None.
    dropout
        Probability with which attention weights are dropped.

    Returns
    -------
    Tensor
        ``(b, t, n, h, c)``.
    """
    streams, _, key_slots = keys.shape[:3]
    allowed = None
    if mask is not None:
        allowed = mask.repeat(streams, key_slots)[:, None, None, :]
    queries = query.expand(streams, *query.shape)
    q, k, v = (x.flatten(2, 3).flatten(0, 1).transpose(1, 2) for x in (queries, keys, values))
    out = scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
    out = out.transpose(1, 2).reshape(streams, *query.shape)
    return out[0] if streams == 1 else out.sum(dim=0)


class RelativeTimes:
    """Attention among T evenly spaced copies of the same queries, keys and values.

    Scores depend on the time difference only, so 2T - 1 blocks of n × n scores replace T² of them,
    and as values do not depend on time, the weights of a key's copies are summed before the value
    product.

    Parameters
    ----------
    factors
        ``(b or 1, T, 1, 1, c/2)`` rotary factors of the slots, evenly spaced from time 0.

    Attributes
    ----------
    norms
        Smallest sum of the weights of any slot, for each call. All weights that a slot sees may be
        too small to be told from zero beside those that it does not see; see :meth:`suffice`.
    """

    def __init__(self, factors: Tensor) -> None:
        self.norms: list[Tensor] = []
        slots = factors.shape[1]
        # Turning queries back by a time difference is turning keys forth.
        back = torch.cat([factors[:, 1:].flip(1), factors.conj()], dim=1)
        self._factors = back.transpose(1, 3)
        steps = torch.arange(1 - slots, slots, device=factors.device)
        first = -torch.arange(slots, device=factors.device)[:, None]
        # Slot t sees the differences -t, ..., T - 1 - t.
        seen = (steps >= first) & (steps < first + slots)
        self._seen = seen.to(factors.real.dtype)

    @staticmethod
    def suffice(norm: Tensor) -> bool:
        """Whether weights are precise if their sum is no smaller than this; NaN passes."""
        limits = torch.finfo(norm.dtype)
        return not bool(norm < limits.tiny / limits.eps)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from all slots to all slots of some streams, and add up the results.

        Parameters
        ----------
        query
            ``(b, 1, n, h, c)``, not rotated.
        keys, values
            ``(i, b, 1, n, h, c)`` of i streams, not rotated.
        mask
            ``(b, n)`` bool, True for real atoms, or None.

        Returns
        -------
        Tensor
            ``(b, T, n, h, c)``.
        """
        b, _, n, h, c = query.shape
        # (b·h, i·n, c)
        all_values = values[:, :, 0].permute(1, 3, 0, 2, 4).reshape(b * h, -1, c)
        weights = self._summed_weights(query, keys, mask).view(b * h, -1, len(keys), n)
        norms = weights.sum(dim=-1, keepdim=True)
        self.norms.append(norms.detach().amin())
        out = torch.bmm((weights / norms).flatten(2), all_values)
        return out.view(b, h, n, -1, c).permute(0, 3, 2, 1, 4)

    def _summed_weights(self, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Weights ``(b·h·n, T, i·n)``, summed over the copies of each key, without norm."""
        b, _, n, h, _ = query.shape
        # This softmax is over differences and streams as well; its norm cancels later.
        weights = torch.softmax(self._scores(query, keys, mask).view(b * h * n, -1), dim=-1)
        seen = self._seen.to(weights.dtype).expand(b * h * n, -1, -1)
        return torch.bmm(seen, weights.view(b * h * n, seen.shape[2], -1))

    def _scores(self, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Scores ``(b·h, n·(2T - 1), i·n)``."""
        b, _, _, h, c = query.shape
        turned = rotate(query[:, 0].transpose(1, 2)[:, :, :, None] / math.sqrt(c), self._factors)
        # (b·h, c, i·n)
        all_keys = keys[:, :, 0].permute(1, 3, 4, 0, 2).reshape(b * h, c, -1)
        scores = torch.bmm(turned.reshape(b * h, -1, c), all_keys)
        if mask is None:
            return scores
        padding = ~mask.repeat(1, len(keys))[:, None, None, :]
        return scores.view(b, h, *scores.shape[1:]).masked_fill(padding, -math.inf)
