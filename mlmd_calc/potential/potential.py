"""The engine-neutral force evaluation of MD-ET."""

from __future__ import annotations

import base64
import copy
import operator
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, SupportsIndex

import ase
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, InputError, ModelFileError
from mlmd_calc.models.mdet import MDET
from mlmd_calc.models.mdet.edge_attention import edge_attention, edge_attention_reference
from mlmd_calc.options import shown
from mlmd_calc.potential.coverage import Coverage
from mlmd_calc.potential.padding import PaddedBatch
from mlmd_calc.potential.projections import remove_net_force, remove_net_torque
from mlmd_calc.potential.results import (
    Evaluation,
    Hessian,
    check_energies,
    check_forces,
    check_jacobian,
)
from mlmd_calc.potential.rotations import fixed_rotations, random_rotations
from mlmd_calc.potential.structure import Structure, structure_from_ase
from mlmd_calc.zoo import Model
from mlmd_calc.zoo.load import WEIGHTS_DTYPE, load_model, resolve_device

PRECISIONS: Final = ("float64", "float32", "mixed")
FORCE_MODES: Final = ("direct", "conservative")
ROTATIONS: Final = ("random", "average", "none")

_CHUNK_NUMBERS: Final = 2**22
"""Pair features (numbers) in one network call; more molecules or orientations are cut in parts."""


class Potential:
    """Forces and energies of batches of molecules, independent of any engine.

    Parameters
    ----------
    model
        Name of a shipped model, path of a model, or a loaded :class:`mlmd_calc.zoo.Model`.
    device
        "auto" (CUDA if there is one), or a torch device.
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
        Seed of the random orientations; None draws one from the system, and another one in every
        forked process.
    remove_net_force, remove_net_torque
        Project the forces. None: yes for direct forces, no for conservative ones, whose projection
        would not be a gradient any more.

    Attributes
    ----------
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

    def __init__(
        self,
        model: str | Model | None = None,
        *,
        device: str = "auto",
        dtype: str = "float64",
        forces: str | None = None,
        rotation: str | None = None,
        n_rotations: int | None = None,
        seed: int | None = None,
        remove_net_force: bool | None = None,
        remove_net_torque: bool | None = None,
    ) -> None:
        self.model = model if isinstance(model, Model) else load_model(model, device="cpu")
        recommended = self.model.card.recommended
        usual = "conservative" if self.model.network.config.energy_conserving else "direct"
        self.forces = _choice("forces", forces, recommended.get("forces", usual), FORCE_MODES)
        turning = not (self.conservative or self.model.network.config.invariant)
        usual = "random" if turning else "none"
        self.rotation = _choice("rotation", rotation, recommended.get("rotation", usual), ROTATIONS)
        if n_rotations is None and self.rotation == recommended.get("rotation"):
            # A recommended number belongs to the recommended kind of rotation.
            n_rotations = recommended.get("n_rotations")
        self._check_options(n_rotations)
        self.n_rotations = 1 if n_rotations is None else _whole("n_rotations", n_rotations)
        self.dtype = _choice("dtype", dtype, "float64", PRECISIONS)
        self.device = resolve_device(device)
        projected = not self.conservative
        self.remove_net_force = projected if remove_net_force is None else remove_net_force
        self.remove_net_torque = projected if remove_net_torque is None else remove_net_torque
        self._features = torch.float32 if self.dtype == "float32" else torch.float64
        # What is made in a caller's inference mode could not be differentiated through later.
        with torch.inference_mode(False):
            self._fixed = fixed_rotations(self.n_rotations)
            self._network: MDET = (
                copy.deepcopy(self.model.network)
                .to(device=self.device, dtype=WEIGHTS_DTYPE[self.dtype])
                .eval()
                .requires_grad_(False)
            )
        self.coverage = Coverage.of(self.model.card)
        self._generator = torch.Generator()
        self._process = os.getpid()
        self._unseeded = seed is None
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(_whole("seed", seed))

    def _check_options(self, n_rotations: int | None) -> None:
        config = self.model.network.config
        if self.rotation == "none" and n_rotations not in (None, 1):
            raise ConfigError(
                f"n_rotations={n_rotations} with rotation='none'; use rotation='average'"
            )
        if self.rotation == "average" and n_rotations is None:
            raise ConfigError(
                "rotation='average' needs the number of orientations, for example n_rotations=12"
            )
        if self.conservative and self.rotation == "random":
            raise ConfigError(
                "conservative forces conserve energy only for a fixed set of orientations; "
                "rotation='random' changes it at every call. Use rotation='none' or 'average'"
            )
        if self.conservative and self._energy_head is None:
            raise ConfigError(
                "forces='conservative' needs an energy head; the model has "
                f"{', '.join(config.target_heads)}"
            )
        has_force_head = "forces" in config.target_heads and not config.energy_conserving
        if not self.conservative and not has_force_head:
            raise ConfigError(
                "forces='direct' needs a force head, which the model does not have; use "
                "forces='conservative'"
            )

    @contextmanager
    def _computing(self, gradient: bool) -> Iterator[None]:
        """Compute alike whatever inference, gradient or autocast mode the caller is in."""
        with (
            torch.inference_mode(not gradient),
            torch.set_grad_enabled(gradient),
            torch.autocast(self.device.type, enabled=False),
        ):
            yield

    @property
    def options(self) -> dict[str, Any]:
        """Options of the constructor as resolved, JSON-able, without model and device."""
        return {
            "dtype": self.dtype,
            "forces": self.forces,
            "rotation": self.rotation,
            "n_rotations": self.n_rotations,
            "remove_net_force": self.remove_net_force,
            "remove_net_torque": self.remove_net_torque,
        }

    @property
    def conservative(self) -> bool:
        """Whether the forces are the gradient of an energy."""
        return self.forces == "conservative"

    @property
    def has_energy(self) -> bool:
        """Whether energies can be asked for."""
        return self._energy_head is not None

    @property
    def _energy_head(self) -> str | None:
        config = self.model.network.config
        if config.energy_conserving:
            return "potential"
        heads = (name for name in ("formation_energy", "energy") if name in config.target_heads)
        return next(heads, None)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickle by the name of the model and its checksum, if it has a name."""
        if not self.model.source:
            return super().__reduce_ex__(protocol)
        options = {"model": self.model.source, "device": self.device.type, **self.options}
        return _restore, (options, self.model.sha256, self.state_dict())

    def state_dict(self) -> dict[str, str]:
        """State of the stream of random orientations, JSON-able."""
        state = self._generator.get_state().numpy().tobytes()
        return {"generator": base64.b64encode(zlib.compress(state)).decode()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Continue the stream of random orientations from :meth:`state_dict`."""
        content = zlib.decompress(base64.b64decode(state["generator"]))
        self._generator.set_state(torch.frombuffer(bytearray(content), dtype=torch.uint8))

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
            Distances beyond which structures are refused. None: those of the model. Wider limits
            are for whoever compares the answer with a better one, or takes it for a trial.

        Returns
        -------
        list of Evaluation
            In the order of the structures. Each is what the molecule would give alone.

        Raises
        ------
        InputError
            If a structure cannot be handed to the model.
        PredictionError
            If the model returns non-finite or absurd numbers.
        """
        unknown = set(properties) - {"energy", "forces"}
        if unknown or not properties:
            raise ConfigError(f"properties={properties!r}; choose from ('energy', 'forces')")
        energy, forces = "energy" in properties and self.has_energy, "forces" in properties
        if not (energy or forces):
            raise ConfigError(f"model {self.model.card.name!r} predicts no energy")
        if isinstance(structures, (ase.Atoms, Structure)):
            raise InputError("evaluate takes a list of structures; pass [structure]")
        molecules = [
            item if isinstance(item, Structure) else structure_from_ase(item) for item in structures
        ]
        for molecule in molecules:
            molecule.check(self.model.card, coverage or self.coverage)
        results: list[Evaluation] = []
        with self._computing(gradient=forces and self.conservative):
            for chunk in self._chunks(molecules):
                results += self._evaluate_chunk(chunk, energy, forces)
        return results

    def _copies_per_call(self, size: int) -> int:
        """Molecules of a size, or orientations of them, that go into one network call."""
        return max(1, _CHUNK_NUMBERS // (size**2 * self.model.network.config.embd_dim))

    def _chunks(self, molecules: list[Structure]) -> Iterator[list[Structure]]:
        chunk: list[Structure] = []
        largest = 0
        for molecule in molecules:
            largest = max(largest, len(molecule))
            if chunk and len(chunk) >= self._copies_per_call(largest):
                yield chunk
                chunk, largest = [], len(molecule)
            chunk.append(molecule)
        if chunk:
            yield chunk

    def _rotations(self) -> Tensor:
        if self.rotation == "random":
            if self._unseeded and self._process != os.getpid():
                # Forked children would all draw the orientations of their parent.
                self._process = os.getpid()
                self._generator.seed()
            return self._fixed @ random_rotations(1, self._generator)
        return self._fixed

    def _evaluate_chunk(
        self, molecules: list[Structure], energy: bool, forces: bool
    ) -> list[Evaluation]:
        k = self.n_rotations
        # One draw per molecule, so that a batch consumes the stream like single calls would.
        rotations = torch.cat([self._rotations() for _ in molecules])
        batch = PaddedBatch.centred(molecules, self.device).repeat(k)
        batch = batch._replace(positions=batch.positions @ rotations.to(self.device))
        step = self._copies_per_call(batch.numbers.shape[1])
        parts = [self._run(part, energy, forces) for part in batch.split(step)]
        samples = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        back = rotations.numpy().swapaxes(-1, -2)
        results = []
        for b, molecule in enumerate(molecules):
            own = {name: values[b * k : (b + 1) * k] for name, values in samples.items()}
            results.append(self._result(molecule, own, back[b * k : (b + 1) * k]))
        return results

    def _result(
        self,
        molecule: Structure,
        samples: dict[str, NDArray[np.float64]],
        back: NDArray[np.float64],
    ) -> Evaluation:
        """Average the orientations of a molecule."""
        energy = energy_std = forces = forces_std = None
        if "energy" in samples:
            check_energies(samples["energy"])
            energy = float(samples["energy"].mean()) + self._reference_energy(molecule)
            energy_std = None if len(back) == 1 else float(samples["energy"].std(ddof=1))
        if "forces" in samples:
            turned = samples["forces"][:, : len(molecule)]
            check_forces(turned)
            turned = turned @ back
            forces = self._project(turned.mean(axis=0), molecule)
            forces_std = None if len(back) == 1 else turned.std(axis=0, ddof=1)
        return Evaluation(energy, forces, forces_std, energy_std)

    def _run(
        self, batch: PaddedBatch, energy: bool, forces: bool
    ) -> dict[str, NDArray[np.float64]]:
        """Energies ``(b,)`` eV and forces ``(b, n, 3)`` eV/Å, whichever are wanted."""
        gradient = forces and self.conservative
        targets = ("forces",) if forces and not gradient else ()
        if energy or gradient:
            targets = (*targets, str(self._energy_head))
        leaf = (batch.positions / units.MDET_BOHR).requires_grad_(gradient)
        out = self._network(leaf, *batch[1:], targets, edge_attention, self._features)
        values = {}
        if energy:
            values["energy"] = self._energy(out)
        if gradient:
            (slope,) = torch.autograd.grad(self._energy(out).sum(), leaf)
            values["forces"] = -slope / units.MDET_BOHR
        elif forces:
            values["forces"] = out["forces"] * units.MDET_FORCE
        return {name: value.detach().double().cpu().numpy() for name, value in values.items()}

    def _energy(self, out: dict[str, Tensor]) -> Tensor:
        """Energy ``(b,)`` in eV; the potential of conservative checkpoints is minus the energy."""
        head = self._energy_head
        value = out[str(head)][:, 0] * units.MDET_HARTREE
        return -value if head == "potential" else value

    def _reference_energy(self, molecule: Structure) -> float:
        references = self.model.atomic_energies
        return sum(references[int(z)] for z in molecule.numbers) if references else 0.0

    def _project(self, forces: NDArray[np.float64], molecule: Structure) -> NDArray[np.float64]:
        if self.remove_net_force:
            forces = remove_net_force(forces)
        if self.remove_net_torque:
            forces = remove_net_torque(forces, molecule.positions)
        return forces

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
        molecule.check(self.model.card, self.coverage)
        with self._computing(gradient=True):
            raw = -self._jacobian(molecule).cpu().numpy() * units.MDET_HESSIAN
        check_jacobian(raw)
        # A single atom has no second derivatives at all.
        size = float(np.linalg.norm(raw)) or 1.0
        return Hessian(
            matrix=0.5 * (raw + raw.T),
            antisymmetry=0.5 * float(np.linalg.norm(raw - raw.T)) / size,
        )

    def _jacobian(self, molecule: Structure) -> Tensor:
        """Differentiate the forces: ``(3 n, 3 n)`` Hartree/Bohr², rows are force components."""
        rotations = self._rotations().to(self.device)
        single = PaddedBatch.centred([molecule], self.device)
        leaf = (single.positions[0] / units.MDET_BOHR).requires_grad_()
        batch = single.repeat(self.n_rotations)._replace(positions=leaf @ rotations)
        targets = (self._energy_head if self.conservative else "forces",)
        out = self._network(*batch, targets, edge_attention_reference, self._features)
        if self.conservative:
            energy = self._energy(out).mean() / units.MDET_HARTREE
            forces = -torch.autograd.grad(energy, leaf, create_graph=True)[0]
        else:
            forces = (out["forces"].double() @ rotations.mT).mean(dim=0)
        rows = [
            torch.autograd.grad(component, leaf, retain_graph=True)[0].flatten()
            for component in forces.flatten()
        ]
        return torch.stack(rows).double()


def _whole(name: str, value: Any) -> int:
    """Return a whole number as int."""
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{name}={shown(value)}; it must be a whole number") from None


def _choice(name: str, value: str | None, default: str, allowed: tuple[str, ...]) -> str:
    """Check an option; None is the default, which the model card may have set."""
    if value is None:
        value = default
    if value not in allowed:
        raise ConfigError(f"{name}={shown(value)}; choose one of {', '.join(allowed)}")
    return value


def _restore(options: dict[str, Any], sha256: str, state: Mapping[str, str]) -> Potential:
    """Rebuild a pickled potential, which refers to its model by name and checksum."""
    potential = Potential(**options)
    if potential.model.sha256 != sha256:
        raise ModelFileError(
            f"model {options['model']!r} has sha256 {potential.model.sha256}, but the potential "
            f"was stored with {sha256}; bring back the original file or make a new potential"
        )
    potential.load_state_dict(state)
    return potential
