"""A fourth kind of networks in one module: all that the package asks of one."""

import functools
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from torch import nn

from mlmd_calc.options import check_count, refuse_unknown
from mlmd_calc.training.held_out import elements_of
from mlmd_calc.training.mdet.batches import StructureTable, TrainingBatches
from mlmd_calc.training.module import TrainingModule
from mlmd_calc.training.recipe import LossWeights, Recipe
from mlmd_calc.training.task import Task, network_to_train, refuse_new_elements
from mlmd_calc.zoo import Kind, LoadedModel


@dataclass(frozen=True)
class ToyConfig:
    width: int = 4

    def __post_init__(self):
        check_count(self, "width")

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, options):
        return cls(**refuse_unknown(cls, options, "toy options"))


class Toy(nn.Module):
    """The energy of a molecule as a sum over its atoms, wherever they are."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(119, config.width)
        self.readout = nn.Linear(config.width, 1)

    def forward(self, numbers):
        energies = self.readout(self.embedding(numbers))[..., 0]
        return (energies * (numbers != 0)).sum(-1)


@dataclass(frozen=True)
class ToyLossWeights(LossWeights):
    energy: float = 1.0


@dataclass(frozen=True)
class ToyRecipe(Recipe):
    kind: ClassVar[str] = "toy"
    smallest: ClassVar[dict[str, int]] = {**Recipe.smallest, "pairs_per_batch": 1}

    loss: ToyLossWeights = field(default_factory=ToyLossWeights)
    pairs_per_batch: int = 100

    def check_model(self):
        ToyConfig.from_dict(self.model)


class ToyTraining(TrainingModule):
    def layers(self):
        return [self.network.readout]

    def loss_terms(self, batch):
        return {"energy": (self.network(batch.numbers) - batch.energies.float()).abs().mean()}

    def measure(self, batch, name):
        error = self.loss_terms(batch)["energy"]
        self.log_mean(f"{name}/energy_mae", error, len(batch.energies))

    def unit(self, metric):
        return "eV"


def toy_task(train, validation, recipe, start):
    network = network_to_train(start, recipe.seed, lambda: Toy(ToyConfig.from_dict(recipe.model)))
    energies = dict.fromkeys(elements_of(train), 0.0)
    refuse_new_elements(validation, energies)
    batches = {
        name: list(StructureTable(part, energies).spread(10, recipe.pairs_per_batch))
        for name, part in validation.items()
    }
    stream = functools.partial(
        TrainingBatches,
        StructureTable(train, energies),
        pairs_per_batch=recipe.pairs_per_batch,
        copies=1,
    )
    return Task(ToyTraining(network, recipe), stream, batches, {}, sorted(energies), {})


TOY = Kind(
    name="toy",
    title="a toy",
    units="energy eV",
    network=Toy,
    config=ToyConfig,
    model=LoadedModel,
    recipe="toy_kind:ToyRecipe",
    task="toy_kind:toy_task",
)
