"""The kinds of networks: one entry of `KINDS` for each says all that the package asks of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from torch import nn

from mlmd_calc.errors import ModelFileError
from mlmd_calc.models.atmos import ATMOS, ATMOSConfig, SamplerConfig
from mlmd_calc.models.atom import ATOM, ATOMConfig, ATOMIntegrator, IntegratorConfig
from mlmd_calc.models.mdet import MDET, MDETConfig
from mlmd_calc.zoo.card import ModelCard

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class LoadedModel(Generic[N]):
    """What all loaded models have.

    Attributes
    ----------
    card
        What the model is.
    source
        What must be given to load the model again.
    sha256
        Checksum that identifies the model: of the file, or of the content of a run directory.
    network
        The network, in evaluation mode.
    atomic_energies
        Energy in eV of each element that the network's energy is relative to; empty if it predicts
        none, or one that is absolute or relative to something that is not known.
    """

    card: ModelCard
    source: str
    sha256: str
    network: N = field(repr=False)
    atomic_energies: dict[int, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What to call the model: as its card does, else where it comes from."""
        return self.card.name or self.source

    def check_unchanged(self, sha256: str | None, stored: str, anew: str) -> None:
        """Refuse to take the place of another model that had the same name.

        Parameters
        ----------
        sha256
            Checksum of the model that is wanted.
        stored, anew
            For the message: what was stored with it, and what to make anew otherwise.

        Raises
        ------
        ModelFileError
            If this is another one.
        """
        if self.sha256 != sha256:
            raise ModelFileError(
                f"model {self.source!r} has sha256 {self.sha256}, but {stored} {sha256}; bring "
                f"back the original file or {anew}"
            )


@dataclass(frozen=True)
class Model(LoadedModel[MDET]):
    """A loaded force field, see :class:`LoadedModel`."""


@dataclass(frozen=True)
class ATOMModel(LoadedModel[ATOMIntegrator]):
    """A loaded ATOM integrator, see :class:`LoadedModel`."""


@dataclass(frozen=True)
class OperatorModel(LoadedModel[ATOM]):
    """A loaded ATOM network of the published kind, see :class:`LoadedModel`."""


@dataclass(frozen=True)
class ATMOSModel(LoadedModel[ATMOS]):
    """A loaded ATMOS network, see :class:`LoadedModel`."""

    def sampler(self, amino_acids: int) -> SamplerConfig:
        """Return the sampler for a molecule: the network's, with what the card recommends.

        Parameters
        ----------
        amino_acids
            How many the molecule has. The more, the less noise it takes to keep the pace of
            molecular dynamics.
        """
        sampler = self.network.config.sampler
        recommended = self.card.recommended.get("sampler_by_length", {})
        settings = {int(least): own for least, own in recommended.items()}
        reached = [least for least in settings if least <= amino_acids]
        if not reached:
            return sampler
        own = settings[max(reached)]
        factors: dict[str, Any] = {name: float(factor) for name, factor in own.items()}
        return replace(sampler, **factors)


@dataclass(frozen=True)
class Kind:
    """A kind of networks.

    Attributes
    ----------
    name
        As in model files, model cards and recipes.
    title
        What a model of this kind is, with its article.
    units
        Units of what it predicts.
    network, config
        Class of the network, which takes a configuration and keeps it as ``config``; class of that,
        with ``to_dict`` and ``from_dict``.
    model
        Class of a loaded model.
    recipe, task
        Where to find the :class:`mlmd_calc.training.recipe.Recipe` and the function that prepares
        its training (:data:`mlmd_calc.training.task.PrepareTask`), as ``module:name``. They belong
        to a layer above this one and need what not every installation has. None for networks that
        are not trained here.
    evaluation
        The command of ``mlmd evaluate`` that measures it; None if none does.
    loader
        Function of `mlmd_calc` that loads a model of this kind.
    """

    name: str
    title: str
    units: str
    network: type[Any]
    config: type[Any]
    model: type[LoadedModel[Any]]
    recipe: str | None = None
    task: str | None = None
    evaluation: str | None = None
    loader: str = "zoo.load_any_model"


_TRAINING: Final = "mlmd_calc.training"

KINDS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind(
            name="mdet",
            title="an MD-ET force field",
            units="energy eV, forces eV/Å",
            network=MDET,
            config=MDETConfig,
            model=Model,
            recipe=f"{_TRAINING}.mdet.recipe:MDETRecipe",
            task=f"{_TRAINING}.mdet.task:mdet_task",
            evaluation="forces",
            loader="load_model",
        ),
        Kind(
            name="atom",
            title="an ATOM propagator",
            units="positions Å, velocities Å/fs",
            network=ATOMIntegrator,
            config=IntegratorConfig,
            model=ATOMModel,
            recipe=f"{_TRAINING}.atom.recipe:ATOMRecipe",
            task=f"{_TRAINING}.atom.task:atom_task",
            evaluation="jumps",
            loader="load_propagator",
        ),
        Kind(
            name="atom-operator",
            title="the published ATOM operator",
            units="positions Å",
            network=ATOM,
            config=ATOMConfig,
            model=OperatorModel,
            recipe=f"{_TRAINING}.operator.recipe:OperatorRecipe",
            task=f"{_TRAINING}.operator.task:operator_task",
            evaluation="operator",
            loader="zoo.load_operator",
        ),
        Kind(
            name="atmos",
            title="an ATMOS propagator",
            units="positions Å",
            network=ATMOS,
            config=ATMOSConfig,
            model=ATMOSModel,
            recipe=f"{_TRAINING}.atmos.recipe:ATMOSRecipe",
            task=f"{_TRAINING}.atmos.task:atmos_task",
            evaluation="rollouts",
            loader="load_propagator",
        ),
    )
}
"""All kinds by name."""


def kind_of(network: nn.Module) -> Kind:
    """Kind of a network.

    Raises
    ------
    KeyError
        If the network is of no known kind.
    """
    for kind in KINDS.values():
        if isinstance(network, kind.network):
            return kind
    raise KeyError(f"{type(network).__name__} is not a network of a known kind")
