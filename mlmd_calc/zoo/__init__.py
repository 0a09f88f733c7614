"""Model store: checkpoints, model cards, shipped weights."""

from mlmd_calc.zoo.card import ModelCard
from mlmd_calc.zoo.kinds import (
    KINDS,
    ATMOSModel,
    ATOMModel,
    Kind,
    LoadedModel,
    Model,
    OperatorModel,
)
from mlmd_calc.zoo.load import (
    list_models,
    load_any_model,
    load_atmos,
    load_atom,
    load_model,
    load_operator,
)
from mlmd_calc.zoo.model_file import save_model
from mlmd_calc.zoo.run_directory import read_run_directory

__all__ = [
    "KINDS",
    "ATMOSModel",
    "ATOMModel",
    "Kind",
    "LoadedModel",
    "Model",
    "ModelCard",
    "OperatorModel",
    "list_models",
    "load_any_model",
    "load_atmos",
    "load_atom",
    "load_model",
    "load_operator",
    "read_run_directory",
    "save_model",
]
