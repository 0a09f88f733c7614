"""Architecture of an MD-ET checkpoint, read off the names and shapes of its tensors.

The released code ignores several options that its configuration files nevertheless contain, so the
configuration is asked only for what no tensor shows: the number of attention heads, the activation,
dropout, and whether Bessel distances tell elements apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.models.mdet import MDETConfig
from mlmd_calc.options import shown

_ELEMENTS: Final = "embedding.nuclear_embedding.embedding.weight"
_GAUSSIAN: Final = "embedding.m3d_embed.gbf.means.weight"
_BESSEL: Final = "embedding.m3d_embed.freqs.weight"
_FOURIER: Final = "embedding.directional_embed.proj.weight"
_CONSERVATIVE: Final = "heads.forces.energy_head."
_DROPOUT: Final = ("attention_dropout", "ffn_dropout", "head_dropout")


def checkpoint_config(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> MDETConfig:
    """Derive the architecture of a checkpoint.

    Parameters
    ----------
    tensors
        State dictionary without prefixes.
    options
        Constructor arguments from the run's configuration file, in the original's names. Where they
        contradict the tensors, the tensors win.

    Raises
    ------
    ModelFileError
        If the tensors are not those of an MD-ET network, if the options lack something that the
        tensors do not show, or if the network is of a kind that is not supported.
    """
    width = _shape(tensors, _ELEMENTS)[1]
    if any(name.endswith(".running_mean") for name in tensors):
        raise ModelFileError(
            "the network has batch norms (norm: batch); only norm: layer is supported"
        )
    visible: dict[str, Any] = {
        "norm_first": "layers.0.norm.weight" in tensors,
        "decomposer": _decomposer(tensors, width),
        "electron_table": "embedding.nuclear_embedding.electron_config" in tensors,
        "directions": _directions(tensors),
    }
    ignored = _options_were_ignored(visible, options)
    if options.get("cls_token") and not ignored:
        raise ModelFileError(
            "cls_token: true is not supported: the extra token sits at the origin, so that forces "
            "would depend on where the molecule is. If the run was made with md-et 0.1.0 or later, "
            "which ignores the entry, set cls_token: false in the configuration file"
        )
    try:
        dropout: dict[str, Any] = {name: options.get(name, 0.0) for name in _DROPOUT}
        return MDETConfig(
            **visible,
            **_distances(tensors, options),
            **_heads(tensors, width),
            n_layers=len({n.split(".")[1] for n in tensors if n.startswith("layers.")}),
            embd_dim=width,
            num_heads=_number(options, "num_heads"),
            ffn_multiplier=_shape(tensors, "layers.0.ffn.mlp.0.weight")[0] // width,
            activation="gelu" if ignored else options.get("activation", "gelu"),
            **dropout,
        )
    except (ConfigError, ArithmeticError, TypeError) as error:
        raise ModelFileError(f"the network cannot be built: {error}") from error


def _options_were_ignored(visible: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether the code that made the checkpoint ignored options, as the released code does.

    The released code always builds the same kind of network. A checkpoint of that kind whose
    options ask for another kind shows that options which leave no trace (activation, cls_token)
    were ignored as well.
    """
    released = {
        "norm_first": True,
        "decomposer": "pooling",
        "electron_table": False,
        "directions": "direct",
    }
    asked = {
        "norm_first": options.get("norm_first", True),
        "decomposer": options.get("decomposer_type", "pooling"),
        "electron_table": options.get("use_electronic_embeddings", False),
        "directions": options.get("directional_embed_type", "direct"),
    }
    return dict(visible) == released and (
        asked != released or options.get("norm", "layer") != "layer"
    )


def _decomposer(tensors: Mapping[str, Tensor], width: int) -> str:
    rows = _shape(tensors, "decomposer.out_proj.1.weight")[0]
    return "diagonal" if rows == width else "pooling"


def _directions(tensors: Mapping[str, Tensor]) -> str:
    if _FOURIER in tensors:
        return "fourier"
    inputs = _shape(tensors, "embedding.directional_embed.linear.weight")[1]
    return "direct" if inputs == 3 else "spherical_harmonics"


def _distances(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    if _BESSEL in tensors:
        # The Bessel table has rows for all pairs of elements even if only the first row is used.
        edge_types = options.get("embed_edge_types")
        if not isinstance(edge_types, bool):
            raise ModelFileError(
                f"embed_edge_types is {shown(edge_types)} in the configuration file; with Bessel "
                "distances it must be true or false, because the tensors do not show it"
            )
        kernels = _shape(tensors, _BESSEL)[1]
        return {"distances": "bessel", "num_3d_kernels": kernels, "edge_types": edge_types}
    rows = _shape(tensors, "embedding.m3d_embed.gbf.mul.weight")[0]
    kernels = _shape(tensors, _GAUSSIAN)[1]
    return {"distances": "gaussian", "num_3d_kernels": kernels, "edge_types": rows != 257}


def _heads(tensors: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    names = tuple(dict.fromkeys(n.split(".")[1] for n in tensors if n.startswith("heads.")))
    if not names:
        raise ModelFileError("this is not an MD-ET network: it has no heads")
    conservative = any(n.startswith(_CONSERVATIVE) for n in tensors)
    first = _CONSERVATIVE if conservative else f"heads.{names[0]}."
    return {
        "target_heads": ("forces", "formation_energy") if conservative else names,
        "energy_conserving": conservative,
        "head_project_down": _shape(tensors, f"{first}mlp.0.weight")[0] != width,
    }


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Shape of a matrix that every network of the kind at hand has."""
    if name not in tensors or tensors[name].ndim != 2:
        raise ModelFileError(f"this is not an MD-ET network: it has no matrix {name!r}")
    rows, columns = tensors[name].shape
    return rows, columns


def _number(options: Mapping[str, Any], name: str) -> int:
    value = options.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelFileError(
            f"{name} is {shown(value)} in the configuration file; it must be a whole number, "
            "because the tensors do not show it"
        )
    return value
