"""The engine-neutral force evaluation of MD-ET."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

import ase
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.geometry.rotations import fixed_rotations
from mlmd_calc.models.cuda_graphs import graphs_work
from mlmd_calc.options import refuse_keywords
from mlmd_calc.potential.coverage import Coverage
from mlmd_calc.potential.options import ForceOptions, resolve
from mlmd_calc.potential.orientations import Orientations, average
from mlmd_calc.potential.padding import PaddedBatch
from mlmd_calc.potential.prediction import Prediction
from mlmd_calc.potential.projections import remove_net_force, remove_net_torque
from mlmd_calc.potential.results import (
    Evaluation,
    Hessian,
    check_energies,
    check_forces,
    check_jacobian,
)
from mlmd_calc.potential.spread import (
    AVERAGE,
    SpreadLimit,
    head_spread,
    orientation_spread,
)
from mlmd_calc.potential.structure import Structure, structure_from_ase
from mlmd_calc.zoo import Model
from mlmd_calc.zoo.load import load_model, resolve_device

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CHUNK_NUMBERS: Final = 2**22
"""Pair features (numbers) in one network call; more molecules or orientations are cut in parts."""

_WORTH_A_GPU: Final = 2**14
"""Pair features (numbers) in one call from which a GPU without graphs is faster than a core."""

_MOST_COMPOSITIONS: Final = 1000
"""Compositions that are remembered as checked."""

_MANY: Final = 60
"""Orientations over which forces are averaged that spread too much over few."""


class Potential:
    """Forces and energies of batches of molecules, independent of any engine.

    Parameters
    ----------
    model
        Name of a shipped model, path of a model, or a loaded :class:`mlmd_calc.zoo.Model`.

    Other Parameters
    ----------------
    device
        A torch device; or "auto": CUDA if there is one. Without CUDA graphs, which make a call one
        launch, a GPU is slower than a processor for small molecules; where they do not work, "auto"
        leaves calls of fewer than 2¹⁴ pair features (a molecule of 16 atoms at width 64) to the
        CPU.
    dtype
        "float64"; "float32"; or "mixed": distance and direction features in double, the rest in
        single precision. Vectors between atoms are taken in double precision in any case.
    forces
        "direct": the force head. "conservative": minus the gradient of the energy head. None: what
        the model card recommends; if it says nothing "direct", or "conservative" for a checkpoint
        whose forces are a gradient by construction.
    rotation
        "random": every call sees the molecule in fresh random orientations, so that the orientation
        error averages out in time. "average": the mean over a fixed set of orientations. "none".
        None: what the model card recommends; if it says nothing "random" for direct and "none" for
        conservative forces and for networks that see no directions.
    n_rotations
        Orientations per call. With "random" and more than one, the fixed set is turned as a whole.
        None: what the card recommends for this kind of rotation, else 1.
    seed
        Seed of the random orientations, from 0 to 2^63 - 1. Equal seeds give equal orientations
        call by call in all engines. None draws one from the system, and another one in every
        forked process.
    remove_net_force, remove_net_torque
        Project the forces. None: yes for direct forces, no for conservative ones, whose projection
        would not be a gradient any more.
    setting
        "recommended" or None: as said of each option. "paper": as in the paper of MD-ET, float64,
        direct forces in one fresh random orientation per call, less net force and torque.
    max_spread
        Largest spread of the forces in eV/Å that is accepted; see `mlmd_calc.potential.spread`.
        None: what the card recommends, if ``on_spread`` needs a limit.
    on_spread
        "measure": results have the spread. "warn", "raise": also warn once per composition, or
        raise, where it is too large. "average": direct forces that spread too much over several
        orientations are averaged over the 600-cell. None: "warn" if ``max_spread`` is given.

    Attributes
    ----------
    model, device, dtype, forces, rotation, n_rotations, remove_net_force, remove_net_torque
        The options, all of them decided.
    spread_limit
        Largest spread and what is done beyond it; None if spreads are not known.
    orientations
        Stream of orientations.
    prediction
        Network in its precision.
    coverage
        Distances beyond which structures are refused: a tenth beyond those of the training data,
        or wide limits for a model whose card does not state them.

    Raises
    ------
    ConfigError
        If an option is unknown or does not fit the model.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from mlmd_calc import Potential
    >>> ethanol, benzene = Potential().evaluate([molecule("CH3CH2OH"), molecule("C6H6")])
    >>> ethanol.forces.shape, benzene.forces.shape
    ((9, 3), (12, 3))
    """

    def __init__(self, model: str | Model | None = None, **options: Unpack[ForceOptions]) -> None:
        refuse_keywords(options, ForceOptions.__annotations__, type(self).__name__)
        self.model = model if isinstance(model, Model) else load_model(model, device="cpu")
        self._resolved = resolved = resolve(self.model, options)
        self.dtype, self.forces = resolved.dtype, resolved.forces
        self.rotation, self.n_rotations = resolved.rotation, resolved.n_rotations
        self.remove_net_force = resolved.remove_net_force
        self.remove_net_torque = resolved.remove_net_torque
        device = options.get("device", "auto")
        self.device = resolve_device(device)
        self.spread_limit = resolved.spread_limit
        self.orientations = Orientations(resolved, options.get("seed"))
        self.prediction = self._prediction_on(self.device)
        chooses = device == "auto" and self.device.type == "cuda"
        self._small_on_cpu = chooses and not graphs_work(self.device)
        self.coverage = Coverage.of(self.model.card)
        self._checked: set[tuple[bytes, int, int, bool, bool]] = set()

    @property
    def options(self) -> dict[str, Any]:
        """Options of the constructor as resolved, JSON-able, without model, device and seed."""
        return asdict(self._resolved)

    @property
    def conservative(self) -> bool:
        """Whether the forces are the gradient of an energy."""
        return self._resolved.conservative

    @property
    def has_energy(self) -> bool:
        """Whether energies can be asked for."""
        return self.prediction.head is not None

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle by the name of the model and its checksum, if it has a name."""
        if not self.model.source:
            return super().__reduce_ex__(protocol)
        options = {"model": self.model.source, "device": self.device.type, **self.options}
        return _restore, (options, self.model.sha256, self.state_dict())

    def state_dict(self) -> dict[str, int]:
        """State of the stream of random orientations, JSON-able: seed and number of calls."""
        return self.orientations.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the stream of random orientations from :meth:`state_dict`.

        Raises
        ------
        ModelFileError
            If it is the state of another version.
        """
        self.orientations.load_state_dict(state)

    def evaluate(
        self,
        structures: Sequence[ase.Atoms | Structure],
        properties: Sequence[str] = ("energy", "forces"),
        *,
        coverage: Coverage | None = None,
    ) -> list[Evaluation]:
        """Evaluate molecules of any sizes.

        Parameters
        ----------
        structures
            ASE atoms (charge and multiplicity in ``atoms.info``) or structures.
        properties
            "energy", "forces" or both; what is not asked for is not computed.
        coverage
            Distances beyond which structures are refused. None: those of the model. Wider limits,
            with which no spread is objected to, are for comparisons with better answers and trials.

        Returns
        -------
        list of Evaluation
            In the order of the structures. Each is what the molecule would give alone.

        Raises
        ------
        InputError
            If a structure cannot be handed to the model.
        PredictionError
            If the model returns non-finite or absurd numbers, or forces that spread too much.
        """
        unknown = set(properties) - {"energy", "forces"}
        if unknown or not properties:
            raise ConfigError(f"properties={properties!r}; choose from ('energy', 'forces')")
        energy, forces = "energy" in properties and self.has_energy, "forces" in properties
        if not (energy or forces):
            raise ConfigError(f"model {self.model.card.name!r} predicts no energy")
        if isinstance(structures, (ase.Atoms, Structure)):
            raise InputError("evaluate takes a list of structures; pass [structure]")
        molecules = []
        for index, item in enumerate(structures):
            with _one_of(len(structures), index):
                molecule = item if isinstance(item, Structure) else structure_from_ase(item)
                self._check(molecule, coverage)
            molecules.append(molecule)
        results: list[Evaluation] = []
        for chunk in _chunks(molecules, self.copies_per_call):
            results += self._evaluate_chunk(chunk, energy, forces)
        if self.spread_limit is not None and forces and coverage is None:
            results = [
                self._within_limit(self.spread_limit, molecule, result, energy)
                for molecule, result in zip(molecules, results, strict=True)
            ]
        return results

    def _within_limit(
        self, limit: SpreadLimit, molecule: Structure, result: Evaluation, energy: bool
    ) -> Evaluation:
        """Do what is asked for about a spread that is too large."""
        spread = result.forces_spread
        if spread is None or not limit.exceeded(spread):
            return result
        if limit.action == AVERAGE:
            mean = self._evaluate_chunk([molecule], energy, True, fixed_rotations(_MANY))[0]
            return replace(mean, forces_spread=spread)
        limit.object_to(spread, molecule.numbers)
        return result

    def _check(self, molecule: Structure, coverage: Coverage | None) -> None:
        """Refuse what the model cannot answer."""
        # The same composition comes at every step of a run.
        usual = coverage is None
        composition = (molecule.numbers.tobytes(), *molecule.state, molecule.charge_is_stated)
        if is_new := (*composition, usual) not in self._checked:
            molecule.check_composition(self.model.card)
        molecule.check_geometry(coverage or self.coverage)
        if is_new:
            molecule.check_charge()
            if usual:
                molecule.check_one_molecule()
            if len(self._checked) >= _MOST_COMPOSITIONS:
                self._checked.clear()
            self._checked.add((*composition, usual))

    def copies_per_call(self, size: int) -> int:
        """Molecules of a size, or orientations of them, that go into one network call."""
        return max(1, _CHUNK_NUMBERS // (size**2 * self.model.network.config.embd_dim))

    def _evaluate_chunk(
        self,
        molecules: list[Structure],
        energy: bool,
        forces: bool,
        orientations: Tensor | None = None,
    ) -> list[Evaluation]:
        """Evaluate molecules in their next orientations, or all in those given, ``(k, 3, 3)``."""
        k = self.n_rotations if orientations is None else len(orientations)
        largest = max(len(molecule) for molecule in molecules)
        prediction = self._choose(k * len(molecules) * largest**2)
        batch = PaddedBatch.centred(molecules, prediction.device).repeat(k)
        back: list[NDArray[np.float64] | None] = [None] * len(molecules)
        if orientations is not None or self.orientations.turned:
            # One draw per molecule, so that a batch consumes the stream like single calls would.
            rotations = [
                self.orientations.next() if orientations is None else orientations
                for _ in molecules
            ]
            together = torch.cat(rotations).to(prediction.device)
            batch = batch._replace(positions=batch.positions @ together)
            back = [own.numpy() for own in rotations]
        step = self.copies_per_call(batch.numbers.shape[1])
        parts = [prediction(part, energy, forces) for part in batch.split(step)]
        samples = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        results = []
        for b, molecule in enumerate(molecules):
            own_samples = {name: values[b * k : (b + 1) * k] for name, values in samples.items()}
            results.append(_evaluation(self, molecule, own_samples, back[b]))
        return results

    def _choose(self, pairs: int) -> Prediction:
        """Network on the device where a call for so many pairs of atoms is faster."""
        few = pairs * self.model.network.config.embd_dim < _WORTH_A_GPU
        return self._prediction_on_cpu if self._small_on_cpu and few else self.prediction

    @functools.cached_property
    def _prediction_on_cpu(self) -> Prediction:
        return self._prediction_on(torch.device("cpu"))

    def _prediction_on(self, device: torch.device) -> Prediction:
        return Prediction(
            self.model.network,
            conservative=self.conservative,
            dtype=self.dtype,
            device=device,
            both_heads=self.spread_limit is not None,
        )

    def reference_energy(self, molecule: Structure) -> float:
        """Sum of the energies of the free atoms in eV, 0 for a model without."""
        references = self.model.atomic_energies
        return sum(references[int(z)] for z in molecule.numbers) if references else 0.0

    def hessian(self, structure: ase.Atoms | Structure) -> Hessian:
        """Jacobian of the unprojected forces, symmetrised, in the potential's precision.

        With ``rotation="random"`` the orientations of one fresh draw are used.

        Parameters
        ----------
        structure
            ASE atoms or a structure.

        Raises
        ------
        InputError
            If the structure cannot be handed to the model.
        PredictionError
            If the derivatives are not finite.
        """
        molecule = structure if isinstance(structure, Structure) else structure_from_ase(structure)
        self._check(molecule, None)
        raw = self.prediction.jacobian(
            PaddedBatch.centred([molecule], self.device), self.orientations.next()
        )
        check_jacobian(raw)
        # A single atom has no second derivatives at all.
        size = float(np.linalg.norm(raw)) or 1.0
        return Hessian(
            matrix=0.5 * (raw + raw.T),
            antisymmetry=0.5 * float(np.linalg.norm(raw - raw.T)) / size,
        )


def _evaluation(
    potential: Potential,
    molecule: Structure,
    samples: dict[str, NDArray[np.float64]],
    rotations: NDArray[np.float64] | None,
) -> Evaluation:
    """Average the orientations of a molecule."""
    energy = energy_std = forces = forces_std = spread = None
    if "energy" in samples:
        check_energies(samples["energy"])
        mean, std = average(samples["energy"])
        energy = float(mean) + potential.reference_energy(molecule)
        energy_std = None if std is None else float(std)
    if "forces" in samples:
        turned = samples["forces"][:, : len(molecule)]
        check_forces(turned)
        forces, forces_std = average(turned, rotations)
        if "direct_forces" in samples:
            direct, _ = average(samples["direct_forces"][:, : len(molecule)], rotations)
            spread = head_spread(forces, direct)
        elif potential.spread_limit is not None and forces_std is not None:
            spread = orientation_spread(forces_std)
        if potential.remove_net_force:
            forces = remove_net_force(forces)
        if potential.remove_net_torque:
            forces = remove_net_torque(forces, molecule.positions)
    return Evaluation(energy, forces, forces_std, energy_std, spread)


@contextmanager
def _one_of(count: int, index: int) -> Iterator[None]:
    """Say which of several structures an error is about."""
    try:
        yield
    except InputError as error:
        if count == 1:
            raise
        raise InputError(f"structures[{index}]: {error}") from error


def _chunks(
    molecules: list[Structure], copies_per_call: Callable[[int], int]
) -> Iterator[list[Structure]]:
    chunk: list[Structure] = []
    largest = 0
    for molecule in molecules:
        largest = max(largest, len(molecule))
        if chunk and len(chunk) >= copies_per_call(largest):
            yield chunk
            chunk, largest = [], len(molecule)
        chunk.append(molecule)
    if chunk:
        yield chunk


def _restore(options: dict[str, Any], sha256: str, state: Mapping[str, str]) -> Potential:
    """Rebuild a pickled potential, which refers to its model by name and checksum."""
    potential = Potential(**options)
    potential.model.check_unchanged(sha256, "the potential was stored with", "make a new potential")
    potential.load_state_dict(state)
    return potential
