"""ATMOS networks to train that start from weights of Protenix."""

from __future__ import annotations

from pathlib import Path

from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atmos import ATMOS, ProtenixReport, load_protenix
from mlmd_calc.training.atmos.batches import coordinate_scale
from mlmd_calc.training.atmos.recipe import ATMOSRecipe
from mlmd_calc.training.held_out import split
from mlmd_calc.training.recipe import Recipe, TrainingData
from mlmd_calc.training.task import network_to_train
from mlmd_calc.zoo import ATMOSModel, ModelCard
from mlmd_calc.zoo.checkpoint import read_checkpoint
from mlmd_calc.zoo.model_file import file_checksum


def start_from_protenix(
    path: Path, recipe: Recipe, data: TrainingData
) -> tuple[ATMOSModel, ProtenixReport]:
    """Build the network of a recipe, with context embedder, decoder and distogram of Protenix.

    What Protenix does not have (geometric encoder, transition, interpolator) is random, from the
    seed of the recipe: the model is one to train, not to draw frames from.

    Parameters
    ----------
    path
        Checkpoint of Protenix, of the sizes that the recipe gives the network.
    recipe
        Hyper-parameters, of ATMOS.
    data
        Trajectories, whose training part tells the scale of coordinates.

    Returns
    -------
    ATMOSModel
        What to train.
    ProtenixReport
        Which weights were taken over.

    Raises
    ------
    ConfigError
        If the recipe is not of ATMOS, or there is no such file.
    ModelFileError
        If the checkpoint is damaged or of another size.
    """
    if not isinstance(recipe, ATMOSRecipe):
        raise ConfigError(
            f"weights of Protenix start an ATMOS network, but the recipe has kind={recipe.kind!r}; "
            "choose another recipe, such as atmos-peptides"
        )
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    trajectories = [item for item in data if isinstance(item, BiomolecularTrajectory)]
    train, _ = split(trajectories, recipe)
    config = recipe.network_config(round(coordinate_scale(train), 2))
    network = network_to_train(None, recipe.seed, lambda: ATMOS(config))
    report = load_protenix(network, read_checkpoint(path))
    checksum = file_checksum(path)
    card = ModelCard(
        name=path.stem,
        kind="atmos",
        licence="Apache-2.0 (Protenix)",
        citation="Protenix, github.com/bytedance/Protenix",
        sha256=checksum,
    )
    return ATMOSModel(card, str(path), checksum, network), report
