"""Run directories of the MD-ET authors' code.

``.hydra/config.yaml`` holds the architecture below ``train.model``; after fine-tuning it has an
``ft`` entry instead and the architecture is in ``.hydra/model_pretrain_conf.yaml``. Weights are in
``ckpts/*.pth``. Both are read as data: nothing that the files name is imported or executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from torch import Tensor

from mlmd_calc.errors import ModelFileError
from mlmd_calc.models.mdet import MDET
from mlmd_calc.zoo.architecture import checkpoint_config
from mlmd_calc.zoo.card import ModelCard
from mlmd_calc.zoo.checkpoint import in_one_type, plain_names, read_checkpoint
from mlmd_calc.zoo.model_file import ModelFile, build_network, content_checksum

_WRAPPERS: Final = ("module", "encoder")
"""Names of modules that training code wraps around the network."""

_LARGEST_YAML: Final = 2**20


def read_run_directory(
    path: str | os.PathLike[str], *, checkpoint: str | None = None, ema: bool = False
) -> ModelFile:
    """Read a model trained with the MD-ET authors' code.

    Parameters
    ----------
    path
        The run directory.
    checkpoint
        Name of the checkpoint in ``ckpts``, without ``.pth``. None: "best_model", or "model_final",
        or the ``model_<step>`` with most steps, whichever is there first.
    ema
        Take the averaged weights, which the original never uses, instead of the raw ones. Write
        them with :func:`~mlmd_calc.zoo.save_model` to have them as a model file.

    Raises
    ------
    ModelFileError
        If a file is missing or damaged, does not hold an MD-ET network, or holds one of a kind that
        is not supported.
    """
    path = Path(path)
    options = _architecture_options(path)
    file = _checkpoint_file(path, checkpoint)
    tensors = _read_checkpoint(file, ema)
    try:
        config = checkpoint_config(tensors, options)
        network = build_network(MDET, config, tensors)
    except ModelFileError as error:
        raise ModelFileError(f"{file}: {error}") from error
    card = ModelCard(
        name=path.resolve().name,
        description=f"Run directory of the MD-ET authors' code, checkpoint {file.stem}"
        + (" (averaged weights)" if ema else ""),
        licence="Apache-2.0 (md-et code)",
        citation="Eissler et al., How simple can you go? An off-the-shelf transformer approach to "
        "molecular dynamics, arXiv 2503.01431",
        parameters=sum(p.numel() for p in network.parameters()),
        sha256=content_checksum(json.dumps(config.to_dict(), sort_keys=True), tensors),
    )
    return ModelFile(network=network, atomic_energies={}, card=card)


def _architecture_options(path: Path) -> dict[str, Any]:
    """Read the constructor arguments of the network, whatever the layout."""
    config = _read_yaml(path / ".hydra" / "config.yaml")
    if "ft" in config:
        return _read_yaml(path / ".hydra" / "model_pretrain_conf.yaml")
    train = config.get("train")
    options = train.get("model") if isinstance(train, dict) else None
    if not isinstance(options, dict):
        raise ModelFileError(
            f"{path / '.hydra' / 'config.yaml'} has neither train.model nor ft; it is not the "
            "configuration of an MD-ET run"
        )
    return options


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, with which a few lines can stand for any amount of data."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(
                f"alias *{alias.anchor} in line {alias.start_mark.line + 1}; write the value out"
            )
        return super().compose_node(parent, index)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > _LARGEST_YAML:
            raise ModelFileError(
                f"{path} has {size:,} bytes; the configuration of a run has at most "
                f"{_LARGEST_YAML:,}"
            )
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except FileNotFoundError as error:
        raise ModelFileError(
            f"there is no {path}; a run directory of the MD-ET authors' code holds ckpts and "
            ".hydra/config.yaml (and, after fine-tuning, .hydra/model_pretrain_conf.yaml), one of "
            "mlmd train model.safetensors or last.ckpt"
        ) from error
    except ModelFileError:
        raise
    except Exception as error:  # what is not a number or date makes its reader fail in its own way
        raise ModelFileError(
            f"{path} is not a readable YAML file ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds {type(content).__name__}, not a mapping")
    return content


def _checkpoint_file(path: Path, checkpoint: str | None) -> Path:
    folder = path / "ckpts"
    present = {file.stem: file for file in sorted(folder.glob("*.pth"))}
    if checkpoint is None:
        steps = {n: int(s) for n in present if (s := n.removeprefix("model_")).isdecimal()}
        order = ["best_model", "model_final", *sorted(steps, key=lambda name: -steps[name])]
        checkpoint = next((name for name in order if name in present), "best_model")
    if checkpoint not in present:
        raise ModelFileError(
            f"there is no checkpoint {checkpoint}.pth in {folder}; there are {sorted(present)}"
        )
    return present[checkpoint]


def _read_checkpoint(path: Path, ema: bool) -> dict[str, Tensor]:
    """State dictionary of a checkpoint, without prefixes, in one floating-point type."""
    content = read_checkpoint(path)
    tensors = plain_names(path, content.get("model_state_dict", content), _WRAPPERS)
    if ema:
        tensors |= _averaged(path, content, tensors)
    return in_one_type(tensors)


def _averaged(
    path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    state = content.get("ema_state")
    if not isinstance(state, Mapping) or "shadow" not in state:
        raise ModelFileError(f"{path} holds no averaged weights; use ema=False")
    shadow = plain_names(path, state["shadow"], _WRAPPERS)
    # Constants are not averaged. The averaged names may include parameters of the loss.
    constants = ("electron_config", "angular_freqs_azimuthal", "angular_freqs_polar")
    missing = [n for n in tensors if n not in shadow and not n.endswith(constants)]
    if missing:
        raise ModelFileError(f"{path} holds no averaged weights for {missing}; use ema=False")
    return {name: shadow[name] for name in tensors if name in shadow}
