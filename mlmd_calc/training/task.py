"""What a recipe asks for: network, data, and how the one is trained on the other."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from ase.data import chemical_symbols

from mlmd_calc import units
from mlmd_calc.data.biomolecules.trajectories import BiomolecularTrajectory
from mlmd_calc.data.frames import MoleculeFrames
from mlmd_calc.electrons import ElectronicState, TrainedState
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.atmos import ATMOS
from mlmd_calc.models.atmos.interpolator import interpolator_from
from mlmd_calc.models.atom import ATOM, ATOMConfig, IntegratorConfig
from mlmd_calc.models.mdet import MDET, MDETConfig
from mlmd_calc.potential.coverage import measure
from mlmd_calc.training.atmos_module import ATMOSTraining
from mlmd_calc.training.atom_module import ATOMTraining
from mlmd_calc.training.atomic_energies import fit_atomic_energies, refit_atomic_energies
from mlmd_calc.training.batches import BatchStream, StructureTable, TrainingBatches
from mlmd_calc.training.held_out import elements_of, split, split_trajectories
from mlmd_calc.training.mdet_module import MDETTraining, energy_head
from mlmd_calc.training.module import TrainingModule
from mlmd_calc.training.recipe import ATMOSRecipe, ATOMRecipe, MDETRecipe, Recipe
from mlmd_calc.training.trajectory_batches import JumpBatches, TrajectoryTable
from mlmd_calc.training.window_batches import WindowBatches, WindowTable, coordinate_scale
from mlmd_calc.zoo import KINDS, ATMOSModel, ATOMModel, LoadedModel, Model

N = TypeVar("N", bound=torch.nn.Module)
M = TypeVar("M", Model, ATOMModel, ATMOSModel)
D = TypeVar("D", MoleculeFrames, BiomolecularTrajectory)

TrainingData: TypeAlias = Sequence[MoleculeFrames] | Sequence[BiomolecularTrajectory]
AnyModel: TypeAlias = LoadedModel[Any]
Parts: TypeAlias = dict[str, list[MoleculeFrames]]
TrajectoryParts: TypeAlias = dict[str, list[BiomolecularTrajectory]]


class Task(NamedTuple):
    """A training that is ready to start.

    Attributes
    ----------
    module
        Network and losses.
    stream
        Training batches; takes the seed and, as keywords, ``start``, ``rank`` and ``world_size``.
    validation
        Batches of each validation set by name.
    atomic_energies
        Energy of each element that was subtracted from the labels; empty for trajectories.
    elements
        Atomic numbers in the training data.
    card
        Other entries of the model card that follow from data and recipe.
    """

    module: TrainingModule
    stream: Callable[..., BatchStream[Any]]
    validation: dict[str, list[Any]]
    atomic_energies: dict[int, float]
    elements: list[int]
    card: dict[str, Any]


def prepare(
    data: TrainingData, recipe: Recipe, start: AnyModel | None, identity: dict[str, Any]
) -> Task:
    """Prepare the training that a recipe describes.

    Parameters
    ----------
    data
        Labelled frames, or trajectories; the recipe's held-out part is split off.
    recipe
        Hyper-parameters.
    start
        Model to fine-tune; None to train from random weights.
    identity
        What the checkpoints say they belong to (:func:`~.resume.run_identity`).

    Raises
    ------
    ConfigError
        If held-out molecules have elements that the others lack, or data, model and recipe do not
        fit together.
    InputError
        If labels are missing, or the model to fine-tune does not know an element.
    """
    if isinstance(recipe, ATMOSRecipe):
        atmos = _of_kind(start, ATMOSModel, recipe)
        trajectories = _of_type(data, BiomolecularTrajectory, recipe)
        return _atmos_task(*split_trajectories(trajectories, recipe), recipe, atmos, identity)
    if isinstance(recipe, ATOMRecipe):
        atom = _of_kind(start, ATOMModel, recipe)
        frames = _of_type(data, MoleculeFrames, recipe)
        return _atom_task(*split(frames, recipe), recipe, atom, identity)
    if isinstance(recipe, MDETRecipe):
        mdet = _of_kind(start, Model, recipe)
        frames = _of_type(data, MoleculeFrames, recipe)
        return _mdet_task(*split(frames, recipe), recipe, mdet, identity)
    raise ConfigError(f"{type(recipe).__name__} is not the recipe of a model")


def _of_kind(start: AnyModel | None, kind: type[M], recipe: Recipe) -> M | None:
    if start is None or isinstance(start, kind):
        return start
    raise ConfigError(
        f"model {start.card.name!r} is {KINDS[start.card.kind].title}, but the recipe has "
        f"kind={recipe.kind!r}; choose a model and a recipe of the same kind"
    )


def _of_type(data: TrainingData, kind: type[D], recipe: Recipe) -> list[D]:
    chosen = [item for item in data if isinstance(item, kind)]
    if len(chosen) != len(data):
        raise ConfigError(
            f"a recipe with kind={recipe.kind!r} trains on {kind.__name__}, but the data have "
            f"{', '.join(sorted({type(item).__name__ for item in data}))}"
        )
    return chosen


def _mdet_task(
    train: Sequence[MoleculeFrames],
    validation: Parts,
    recipe: MDETRecipe,
    start: Model | None,
    identity: dict[str, Any],
) -> Task:
    if start is None:
        network = _seeded(lambda: MDET(MDETConfig.from_dict(recipe.model)), recipe.seed)
        references = fit_atomic_energies(train)
    else:
        network = copy.deepcopy(start.network).float().cpu()
        if energy_head(network.config, recipe.loss):
            references = refit_atomic_energies(start, train)
        else:
            references = fit_atomic_energies(train)
    _refuse_new_elements(validation, set(references))
    batches = {}
    for name, part in validation.items():
        table = StructureTable(part, references, recipe.size_step)
        batches[name] = list(table.spread(recipe.validation_structures, recipe.pairs_per_batch))
    stream = functools.partial(
        TrainingBatches,
        StructureTable(train, references, recipe.size_step),
        pairs_per_batch=recipe.pairs_per_batch,
        copies=recipe.copies,
    )
    module = MDETTraining(network.train(), recipe, tuple(batches), identity)
    known = () if start is None else start.card.electronic_states
    # Of a model whose own states are not known the states of its child are not known either.
    states = None if known is None else trained_states(train, known)
    card = {"electronic_states": states, **_distances(train, start)}
    return Task(module, stream, batches, references, sorted(references), card)


def _distances(train: Sequence[MoleculeFrames], start: Model | None) -> dict[str, float]:
    """Card entries of the distances in the training data, those of the parent included."""
    measured = measure((molecule.numbers, molecule.positions) for molecule in train)
    if measured is None:
        return {}
    closest, gap = measured
    if start is not None:
        closest = min(closest, start.card.closest_contact or closest)
        gap = max(gap, start.card.largest_gap_A or gap)
    return {"closest_contact": round(closest, 3), "largest_gap_A": round(gap, 2)}


def trained_states(
    frames: Sequence[MoleculeFrames], before: Sequence[TrainedState] = ()
) -> list[dict[str, int]]:
    """Charges and multiplicities in training data, as a model card lists them.

    Parameters
    ----------
    frames
        The data.
    before
        What the model to fine-tune was trained on.
    """
    sizes: dict[ElectronicState, dict[str, int]] = {}
    for molecule in frames:
        sizes.setdefault(molecule.state, {})[molecule.name] = len(molecule.numbers)
    found = {state: TrainedState(*state, len(n), max(n.values())) for state, n in sizes.items()}
    for old in before:
        state = ElectronicState(old.charge, old.multiplicity)
        new = found.get(state, TrainedState(*state, 0, 0))
        # The same molecules may be in both; their number is at least that of the larger set.
        found[state] = TrainedState(
            *state,
            max(old.molecules, new.molecules),
            max(old.most_atoms, new.most_atoms),
        )
    return [asdict(found[state]) for state in sorted(found)]


def _atom_task(
    train: Sequence[MoleculeFrames],
    validation: Parts,
    recipe: ATOMRecipe,
    start: ATOMModel | None,
    identity: dict[str, Any],
) -> Task:
    if start is None:
        network = _seeded(lambda: ATOM(recipe.network_config()), recipe.seed)
    else:
        network = copy.deepcopy(start.network).float().cpu()
    elements = _elements(train)
    _refuse_new_elements(validation, elements)
    options = integrator_options(network.config)
    horizons = (recipe.shortest_horizon, options.max_horizon)
    table = TrajectoryTable(
        train, horizons, accelerations=options.accelerations, size_step=recipe.size_step
    )
    batches = {}
    for name, part in validation.items():
        held_out = TrajectoryTable(
            part,
            horizons,
            accelerations=options.accelerations,
            scales=table.scales,
            held_out=True,
        )
        batches[name] = list(held_out.spread(recipe.validation_structures, recipe.atoms_per_batch))
    stream = functools.partial(
        JumpBatches, table, atoms_per_batch=recipe.atoms_per_batch, times=recipe.times
    )
    module = ATOMTraining(network.train(), recipe, tuple(batches), identity)
    strides = [round(n * table.dt_fs / units.FS_PER_PS, 9) for n in table.strides]
    return Task(module, stream, batches, {}, sorted(elements), {"strides_ps": strides})


def _atmos_task(
    train: Sequence[BiomolecularTrajectory],
    validation: TrajectoryParts,
    recipe: ATMOSRecipe,
    start: ATMOSModel | None,
    identity: dict[str, Any],
) -> Task:
    if start is None:
        config = recipe.network_config(round(coordinate_scale(train), 2))
        network = _seeded(lambda: ATMOS(config), recipe.seed)
    else:
        network = copy.deepcopy(start.network).float().cpu()
        remaining = recipe.model.get("max_remaining", 0)
        if remaining and not network.config.max_remaining:
            network = interpolator_from(network, remaining)
        recipe.check_network(network.config)
    elements = _elements(train)
    _refuse_new_elements(validation, elements)
    table, *held_out = (
        WindowTable(
            part,
            network.config,
            strides_ps=recipe.strides_ps,
            window=recipe.window,
            noise_samples=recipe.noise_samples,
            crop_tokens=recipe.crop_tokens,
            frame_noise=noise,
        )
        for part, noise in [(train, recipe.frame_noise), *((v, 0.0) for v in validation.values())]
    )
    per_batch = recipe.systems * recipe.subsequences
    batches = {
        name: list(part.spread(recipe.validation_structures, per_batch))
        for name, part in zip(validation, held_out, strict=True)
    }
    stream = functools.partial(
        WindowBatches,
        table,
        systems=recipe.systems,
        subsequences=recipe.subsequences,
        size_step=recipe.size_step,
    )
    module = ATMOSTraining(network.train(), recipe, tuple(batches), identity)
    card: dict[str, Any] = {"strides_ps": list(recipe.strides_ps)}
    temperatures = {trajectory.temperature_K for trajectory in train}
    if len(temperatures) == 1:
        card["temperature_K"] = temperatures.pop()
    return Task(module, stream, batches, {}, sorted(elements), card)


def integrator_options(config: ATOMConfig) -> IntegratorConfig:
    """Options of a network that is a jump of an integrator.

    Raises
    ------
    ConfigError
        If the network is the published operator.
    """
    if config.integrator is None:
        raise ConfigError(
            "this network is the published operator, not an integrator, and cannot be trained here"
        )
    return config.integrator


def _seeded(build: Callable[[], N], seed: int) -> N:
    """Build a network with random weights that follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds accelerators as well.
        torch.default_generator.manual_seed(seed)
        return build()


def _elements(data: TrainingData) -> set[int]:
    return set[int]().union(*map(elements_of, data))


def _refuse_new_elements(validation: Parts | TrajectoryParts, known: set[int]) -> None:
    if missing := set[int]().union(*map(_elements, validation.values())) - known:
        symbols = ", ".join(chemical_symbols[z] for z in sorted(missing))
        raise ConfigError(
            f"held-out molecules contain {symbols}, which no training molecule does; leave them out"
        )
