"""Model store: checkpoints, model cards, shipped weights."""

from mlmd_calc.zoo.card import ModelCard
from mlmd_calc.zoo.load import Model, list_models, load_model
from mlmd_calc.zoo.model_file import save_model
from mlmd_calc.zoo.run_directory import read_run_directory

__all__ = [
    "Model",
    "ModelCard",
    "list_models",
    "load_model",
    "read_run_directory",
    "save_model",
]
