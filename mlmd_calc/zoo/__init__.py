"""Model store: checkpoints, model cards, shipped weights."""

from mlmd_calc.zoo.card import ModelCard
from mlmd_calc.zoo.load import (
    ATMOSModel,
    ATOMModel,
    Model,
    OperatorModel,
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
    "ATMOSModel",
    "ATOMModel",
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
