"""Weights of AlphaFold-3-like models in the layout of Protenix.

Context embedder, diffusion decoder and distogram head have the module names of Protenix, so that
its weights can be taken over. Geometric encoder, transition and interpolator are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from mlmd_calc.errors import ModelFileError
from mlmd_calc.models.atmos.network import ATMOS

_SAME_NAME: Final = ("diffusion_module", "distogram_head")
_UNUSED: Final = ("template_embedder", "constraint_embedder", "confidence_head")
_LISTED: Final = 5


@dataclass(frozen=True)
class ProtenixReport:
    """What became of the entries of a checkpoint, in its own names.

    Attributes
    ----------
    loaded
        Entries taken over.
    unused
        Entries of known parts that this network does not have: templates, constraints, confidence,
        and the alignment module if the network was built without one.
    unknown
        Entries of parts that this package does not know.
    """

    loaded: tuple[str, ...]
    unused: tuple[str, ...]
    unknown: tuple[str, ...]


def load_protenix(network: ATMOS, checkpoint: Mapping[str, Any]) -> ProtenixReport:
    """Fill context embedder, decoder and distogram head of a network, in place.

    Parameters
    ----------
    network
        Network of the same sizes as the checkpoint.
    checkpoint
        State dictionary, or the contents of a checkpoint file that has it under ``"model"``. Names
        may start with ``module.``.

    Returns
    -------
    ProtenixReport
        What was loaded and what was not.

    Raises
    ------
    ModelFileError
        If entries are missing, if they have another shape than the network's, or if the checkpoint
        has more of a part than the network, for example more blocks. The network is unchanged then.

    Examples
    --------
    >>> import torch
    >>> from mlmd_calc.models.atmos import load_protenix
    >>> checkpoint = torch.load("model.pt", weights_only=True)  # doctest: +SKIP
    >>> report = load_protenix(network, checkpoint)  # doctest: +SKIP
    """
    tensors = _tensors(checkpoint)
    own = protenix_names(network)
    missing = sorted(set(own) - set(tensors))
    if missing:
        raise ModelFileError(
            f"the checkpoint lacks {len(missing)} entries of this network, among them "
            f"{missing[:_LISTED]}; build the network with the sizes of the checkpoint"
        )
    wrong = [n for n, tensor in own.items() if tensors[n].shape != tensor.shape]
    if wrong:
        raise ModelFileError(
            f"{len(wrong)} entries have another shape than in this network, first {wrong[0]}: "
            f"{tuple(tensors[wrong[0]].shape)} instead of {tuple(own[wrong[0]].shape)}; build the "
            "network with the sizes of the checkpoint"
        )
    extra = sorted(set(tensors) - set(own))
    parts = {name.split(".")[0] for name in own}
    surplus = [name for name in extra if name.split(".")[0] in parts]
    if surplus:
        raise ModelFileError(
            f"the checkpoint has {len(surplus)} entries that this network has no place for, among "
            f"them {surplus[:_LISTED]}; build the network with the sizes of the checkpoint"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
    unused = [name for name in extra if name.split(".")[0] in (*_UNUSED, "msa_module")]
    return ProtenixReport(tuple(own), tuple(unused), tuple(sorted(set(extra) - set(unused))))


def protenix_names(network: ATMOS) -> dict[str, Tensor]:
    """Return the tensors of a network that Protenix has as well, under its names."""
    found = {}
    for name, tensor in network.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "context_embedder":
            found[rest] = tensor
        elif part in _SAME_NAME:
            found[name] = tensor
    return found


def _tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ModelFileError(
            "the checkpoint is neither a dictionary of tensors nor one that has such a dictionary "
            "under 'model'"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
