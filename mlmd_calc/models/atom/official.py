"""Checkpoints of the public ATOM code: constructor arguments and state dict to ours.

The public code exists in two revisions with different state dicts. The later one is what
:class:`~.network.ATOM` is built after. The first one differs in constants that can be expressed in
weights: it uses one norm where the later has three, divides scores by the head width (or a learnt
number) where the later divides by its square root, and numbers its slots where the later takes
times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from mlmd_calc.errors import ConfigError, ModelFileError
from mlmd_calc.models.atom.config import ATOMConfig
from mlmd_calc.models.atom.features import BOND_LENGTH
from mlmd_calc.options import shown

_COMPILED: Final = "_orig_mod."
_IDLE: Final = re.compile(
    r"\.(canonical_matrix_maker|test_linear)\.|^transformer_blocks\.0\.lambda_v_residual$"
)
"""Parameters that the public code has and never uses."""

_SHARED_OPTIONS: Final = (
    "lifting_dim",
    "norm",
    "activation",
    "num_layers",
    "num_heads",
    "attention_type",
    "delta_update",
    "rope_base",
    "rrwp_length",
    "value_residual_type",
)
_LATER_OPTIONS: Final = (
    *_SHARED_OPTIONS,
    "positional_encoding",
    "rope_tau",
    "lifting_type",
    "output_mode",
)
_FIRST_OPTIONS: Final = (
    *_SHARED_OPTIONS,
    "output_heads",
    "use_rope",
    "use_spherical_harmonics",
    "use_equivariant_lifting",
    "learnable_attention_denom",
)
_TABLE_NAMES: Final = {
    "heterogenous_attention_type": "attention_type",
    "equivariant_lifting_type": "use_equivariant_lifting",
}
"""Names in configuration files that differ from those of the constructor's arguments."""

_SUPPORTED_FIRST: Final = {"output_heads": (1,), "use_spherical_harmonics": (False,)}
_SUPPORTED_LATER: Final = {
    "output_heads": (1,),
    "learnable_attention_denom": (False,),
    "projection_type": ("equivariant", "decanonicalization"),
}
_SUPPORTED_DATA: Final = {
    "explicit_hydrogen": (False,),
    "normalize_z": (False,),
    "radius_graph_threshold": (BOND_LENGTH,),
}
_FIRST_LIFTING: Final = {
    "equivariant": "quasi_equivariant_tp",
    "no_tensor_product": "quasi_equivariant",
    "none": "non_equivariant",
}
_FIRST_NAMES: Final = {
    r"^lifting_layers\.concatenated_features\.": "lifting_layer.concat_feats_linear.",
    r"^lifting_layers\.(\w+)\.": r"lifting_layer.\1_linear.",
    r"^projection_layer\.weight$": "projection_layer.linear_pos.weight",
    r"\.pre_norm\.": ".norms.0.",
}


def convert(
    constructor_arguments: Mapping[str, Any], state_dict: Mapping[str, Tensor]
) -> tuple[ATOMConfig, dict[str, Tensor]]:
    """Translate a checkpoint of the public code.

    Parameters
    ----------
    constructor_arguments
        Arguments of the model class, enumerations as members or strings. ``num_timesteps`` is not
        needed: it is not part of the weights.
    state_dict
        The model's state dict.

    Returns
    -------
    config, tensors
        Configuration and state dict of :class:`~.network.ATOM`. Tensors are new ones, and
        differentiable functions of the given ones.

    Raises
    ------
    ConfigError
        If an argument is unknown, or asks for something that is not supported: mixtures of output
        heads, scores with spherical harmonics, linear or graph attention.
    ModelFileError
        If tensors that the public code shares differ.
    """
    options = {name: getattr(v, "value", v) for name, v in constructor_arguments.items()}
    options.pop("num_timesteps", None)
    tensors = _used_tensors(state_dict)
    if "use_equivariant_lifting" in options:
        config = _first_revision_config(options)
        tensors = _first_revision_tensors(config, tensors)
    else:
        _refuse_unknown(options, _LATER_OPTIONS)
        config = ATOMConfig(**options)
    if config.attention_type == "self":
        tensors = _separate_keys_and_values(tensors)
    return config, tensors


def constructor_arguments(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Take the constructor arguments of the model from the configuration file of a run.

    Parameters
    ----------
    configuration
        Content of the TOML file that the public code keeps beside its checkpoints.

    Raises
    ------
    ConfigError
        If it is no such file, or asks for a model or data that are not supported.
    """
    options, data = (configuration.get(table) for table in ("atom_config", "dataloader"))
    if not isinstance(options, Mapping) or not isinstance(data, Mapping):
        raise ConfigError("the configuration lacks the tables atom_config and dataloader")
    if data.get("rrwp_length", 0) == 0:
        data = {**data, "radius_graph_threshold": BOND_LENGTH}
    _refuse_unsupported(data, _SUPPORTED_DATA)
    found = {_TABLE_NAMES.get(str(name), str(name)): value for name, value in options.items()}
    found["rrwp_length"] = data.get("rrwp_length", 0)
    if "lifting_type" in found:
        _refuse_unsupported(found, _SUPPORTED_LATER)
        found = {name: value for name, value in found.items() if name not in _SUPPORTED_LATER}
        if found.get("output_mode") == "pos_vel_energy":
            found["output_mode"] = "full"
    return found


def _refuse_unsupported(
    options: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]
) -> None:
    for name, values in supported.items():
        if options.get(name, values[0]) not in values:
            raise ConfigError(
                f"{name}={shown(options[name])} is not supported, only "
                f"{' or '.join(map(repr, values))}"
            )


def _refuse_unknown(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"unknown ATOM arguments {unknown}; known are {sorted(known)}")


def _used_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the tensors that are evaluated, each once."""
    tensors = {name.removeprefix(_COMPILED): tensor for name, tensor in state_dict.items()}
    used = {}
    for name, tensor in tensors.items():
        # The second activation of a feed-forward network is the first one.
        original = name.replace(".ffn.layers.3.", ".ffn.layers.1.")
        if original != name:
            if not torch.equal(tensor, tensors[original]):
                raise ModelFileError(f"{name} differs from {original}, with which it is shared")
            continue
        if tensor.numel() and not name.endswith(".output_mask") and not _IDLE.search(name):
            used[name] = tensor.clone()
    return used


def _separate_keys_and_values(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the fused projection of self-attention, and drop norms of streams it does not see."""
    separate = {}
    for name, tensor in tensors.items():
        if ".kv_projs." in name:
            keys, values = tensor.chunk(2)
            separate[name.replace("kv_projs", "key")] = keys
            separate[name.replace("kv_projs", "value")] = values
        elif not re.search(r"\.norms\.[12]\.", name):
            separate[name] = tensor
    return separate


def _first_revision_config(options: Mapping[str, Any]) -> ATOMConfig:
    _refuse_unknown(options, _FIRST_OPTIONS)
    _refuse_unsupported(options, _SUPPORTED_FIRST)
    lifting = options["use_equivariant_lifting"]
    if lifting not in _FIRST_LIFTING:
        raise ConfigError(
            f"use_equivariant_lifting={lifting!r}; choose one of {', '.join(_FIRST_LIFTING)}"
        )
    values = {name: options[name] for name in _SHARED_OPTIONS if name in options}
    if values.get("value_residual_type") == "fixed":
        # The first revision accepts this string and does nothing.
        values["value_residual_type"] = "none"
    if values.get("attention_type") == "self":
        values["rope_base"] = 1000.0
    return ATOMConfig(
        **values,
        lifting_type=_FIRST_LIFTING[lifting],
        tensor_product_rrwp=True,
        positional_encoding="slot_rope" if options.get("use_rope", True) else "none",
        rope_tau=1.0,
    )


def _first_revision_tensors(config: ATOMConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors, copy the norm for all streams, and scale queries for the scores' divisor."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _FIRST_NAMES.items():
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    converted = {}
    for name, tensor in renamed.items():
        if ".attention_denom" in name:
            continue
        converted[name] = tensor
        if ".norms.0." in name:
            for index in (1, 2):
                converted[name.replace(".norms.0.", f".norms.{index}.")] = tensor.clone()
        if ".attention.query." in name:
            default = tensor.new_full((config.num_heads,), float(config.head_dim))
            divisor = renamed.get(name.split(".query.")[0] + ".attention_denom", default)
            factor = math.sqrt(config.head_dim) / divisor.repeat_interleave(config.head_dim)
            converted[name] = tensor * (factor[:, None] if tensor.ndim == 2 else factor)
    return converted
