"""What the networks know of a system that does not move: tokens, atoms, bonds, chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mlmd_calc.errors import InputError

N_RESTYPES: Final = 32
N_ELEMENTS: Final = 128
N_NAME_CHARS: Final = 64


_AXES: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("restype", "asym_id", "entity_id", "sym_id", "residue_index"), ("token",)),
    **dict.fromkeys(("token_index", "representative_atom", "frame_atoms"), ("token",)),
    **dict.fromkeys(("frame_mask", "token_mask", "profile", "deletion_mean"), ("token",)),
    "token_bonds": ("token", "token"),
    **dict.fromkeys(("atom_to_token", "ref_pos", "ref_mask", "ref_element"), ("atom",)),
    **dict.fromkeys(("ref_charge", "ref_atom_name_chars", "ref_space_uid"), ("atom",)),
    **dict.fromkeys(("is_ligand", "atom_mask"), ("atom",)),
}
"""What the first axes of each field count."""


@dataclass(frozen=True)
class Features:
    """Static features of a system, or with one leading axis those of a padded batch.

    n tokens, a atoms. Class indices are int64, masks bool. A token is a
    standard amino-acid residue, or one heavy atom of anything else.

    Attributes
    ----------
    restype
        ``(n,)`` residue class: ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR
        TRP TYR VAL 0…19, unknown and ligands 20, nucleotides 21…30, gap 31.
    asym_id, entity_id, sym_id
        ``(n,)`` chain, chemical entity, and copy number of the chain within its entity.
    residue_index, token_index
        ``(n,)`` residue number within the chain, and running number of the token.
    token_bonds
        ``(n, n)`` bool, symmetric; bonds within ligands and between polymers and ligands.
    representative_atom
        ``(n,)`` the atom that stands for the token: CB, CA of glycine, the atom of a ligand token.
    frame_atoms, frame_mask
        ``(n, 3)`` atoms a, b, c that span the token's frame with origin b (N, CA, C of a residue),
        and ``(n,)`` whether the token has one.
    token_mask
        ``(n,)`` False for padding.
    atom_to_token
        ``(a,)`` token of each atom.
    ref_pos, ref_mask
        ``(a, 3)`` reference conformer in Å, and ``(a,)`` whether the atom has a place in it.
    ref_element
        ``(a,)`` atomic number minus 1; 118…127 for unknown elements.
    ref_charge
        ``(a,)`` formal charge.
    ref_atom_name_chars
        ``(a, 4)`` name padded with spaces, ``ord(c) - 32`` for each character.
    ref_space_uid
        ``(a,)`` conformer the reference position belongs to: one per residue, one per ligand.
    is_ligand
        ``(a,)`` bool.
    atom_mask
        ``(a,)`` False for padding.
    profile, deletion_mean
        ``(n, 32)`` and ``(n,)`` statistics of an alignment; None for the residue class itself and
        zero.
    """

    restype: Tensor
    asym_id: Tensor
    entity_id: Tensor
    sym_id: Tensor
    residue_index: Tensor
    token_index: Tensor
    token_bonds: Tensor
    representative_atom: Tensor
    frame_atoms: Tensor
    frame_mask: Tensor
    token_mask: Tensor
    atom_to_token: Tensor
    ref_pos: Tensor
    ref_mask: Tensor
    ref_element: Tensor
    ref_charge: Tensor
    ref_atom_name_chars: Tensor
    ref_space_uid: Tensor
    is_ligand: Tensor
    atom_mask: Tensor
    profile: Tensor | None = None
    deletion_mean: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens, padding included."""
        return self.restype.shape[-1]

    @property
    def n_atoms(self) -> int:
        """Atoms, padding included."""
        return self.atom_to_token.shape[-1]

    @property
    def pair_mask(self) -> Tensor:
        """``(..., n, n)`` True where both tokens are real."""
        return self.token_mask[..., :, None] & self.token_mask[..., None, :]

    def to(self, device: torch.device | str) -> Features:
        """Return the features on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def expand(self, count: int) -> Features:
        """Return ``count`` copies of one system's batch of one, without using memory for them."""
        return self._map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Features:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return replace(self, **{k: change(v) for k, v in values.items() if v is not None})

    def crop(self, tokens: Tensor) -> tuple[Features, Tensor]:
        """Keep some tokens of one system.

        Frames that lose an atom become invalid.

        Parameters
        ----------
        tokens
            Indices to keep, in ascending order.

        Returns
        -------
        Features
            Features of the tokens and their atoms.
        Tensor
            Indices of the atoms kept, to cut coordinates with.
        """
        atoms = torch.isin(self.atom_to_token, tokens).nonzero()[:, 0]
        kept = {"token": tokens, "atom": atoms}
        cut = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            for axis, name in enumerate(_AXES[entry.name]):
                if value is not None and name in kept:
                    value = value.index_select(axis, kept[name])
            cut[entry.name] = value
        new_atom = _positions_in(atoms, self.n_atoms)
        frames = new_atom[cut["frame_atoms"]]
        cut["representative_atom"] = new_atom[cut["representative_atom"]]
        cut["frame_atoms"] = frames.clamp(min=0)
        cut["frame_mask"] = cut["frame_mask"] & (frames >= 0).all(-1)
        cut["atom_to_token"] = _positions_in(tokens, self.n_tokens)[cut["atom_to_token"]]
        return Features(**cut), atoms

    @staticmethod
    def stack(systems: Sequence[Features]) -> Features:
        """Join systems into a batch, padded with zeros to the largest.

        Raises
        ------
        InputError
            If there is no system, or only some have statistics of an alignment.
        """
        if not systems:
            raise InputError("a batch needs at least one system")
        joined: dict[str, Any] = {
            entry.name: _stack(systems, entry.name) for entry in fields(Features)
        }
        return Features(**joined)


def _positions_in(kept: Tensor, count: int) -> Tensor:
    """Map old index to new one, -1 for what is not kept."""
    new = torch.full((count,), -1, dtype=torch.long, device=kept.device)
    new[kept] = torch.arange(len(kept), device=kept.device)
    return new


def _stack(systems: Sequence[Features], name: str) -> Tensor | None:
    values = [getattr(system, name) for system in systems]
    if all(value is None for value in values):
        return None
    if any(value is None for value in values):
        raise InputError(f"only some systems of the batch have {name}; give it to all or to none")
    largest = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
    return torch.stack([_pad(value, largest) for value in values])


def _pad(value: Tensor, shape: Sequence[int]) -> Tensor:
    missing = [new - old for new, old in zip(shape, value.shape, strict=True)]
    return functional.pad(value, [n for extra in reversed(missing) for n in (0, extra)])


class Context(NamedTuple):
    """Embedding of a system's chemistry, computed once per system."""

    s_inputs: Tensor
    """``(b, n, c_token + 65)`` input features of the tokens."""
    s: Tensor
    """``(b, n, c_s)`` token embedding."""
    z: Tensor
    """``(b, n, n, c_z)`` pair embedding."""

    def expand(self, count: int) -> Context:
        """Return ``count`` copies of a batch of one, without using memory for them."""
        return Context(*(tensor.expand(count, *tensor.shape[1:]) for tensor in self))


class Memory(NamedTuple):
    """Latent state of trajectories: all that a step takes over from earlier frames."""

    s: Tensor
    """``(b, n, c_s)`` tokens."""
    z: Tensor
    """``(b, n, n, c_z)`` token pairs."""
    step: Tensor
    """``(b,)`` int64, number of transitions since the start."""
