"""The engine-neutral force evaluation of MD-ET."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import ase
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc import units
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.models.mdet import MDET
from mlmd_calc.models.mdet.edge_attention import edge_attention, edge_attention_reference
from mlmd_calc.potential.projections import remove_net_force, remove_net_torque
from mlmd_calc.potential.rotations import fixed_rotations, random_rotations
from mlmd_calc.potential.structure import Structure, structure_from_ase
from mlmd_calc.zoo.load import WEIGHTS_DTYPE, Model, load_model, resolve_device

PRECISIONS: Final = ("float64", "float32", "mixed")
FORCE_MODES: Final = ("direct", "conservative")
ROTATIONS: Final = ("random", "average", "none")

_ABSURD_FORCE: Final = 1000.0
"""eV/Å; no bond survives a tenth of it."""

_CHUNK_NUMBERS: Final = 2**22
"""Pair features (numbers) evaluated at once; larger batches are cut into chunks."""


@dataclass(frozen=True)
class Evaluation:
    """Result for one structure.

    Attributes
    ----------
    energy
        eV, or None if the model has no energy or it was not asked for.
    forces
        ``(n, 3)`` eV/Å, or None if not asked for.
    forces_std
        ``(n, 3)`` eV/Å, standard deviation of each component over the orientations; None for a
        single orientation.
    energy_std
        eV, likewise.
    """

    energy: float | None
    forces: NDArray[np.float64] | None
    forces_std: NDArray[np.float64] | None = None
    energy_std: float | None = None


@dataclass(frozen=True)
class Hessian:
    """Second derivatives of one structure.

    Attributes
    ----------
    matrix
        ``(3 n, 3 n)`` eV/Å², symmetrised; index 3·atom + axis.
    antisymmetry
        λ = ‖(J − Jᵀ)/2‖ / ‖J‖ of the raw Jacobian J of the forces: 0 for a gradient field, 1/√2 for
        a random matrix.
    """

    matrix: NDArray[np.float64]
    antisymmetry: float


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
        the model card recommends, "direct" if it says nothing.
    rotation
        "random": every call sees the molecule in fresh random orientations, so that the orientation
        error averages out in time. "average": the mean over a fixed set of orientations. "none".
        None: what the model card recommends, "random" if it says nothing.
    n_rotations
        Orientations per call. With "random" and more than one, the fixed set is turned as a whole.
        None: what the card recommends, else 1.
    seed
        Seed of the random orientations; None draws one from the system.
    remove_net_force, remove_net_torque
        Project the forces. None: yes for direct forces, no for conservative ones, whose projection
        would not be a gradient any more.

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
        self.forces = _choice("forces", forces or recommended.get("forces", "direct"), FORCE_MODES)
        self.rotation = _choice(
            "rotation", rotation or recommended.get("rotation", "random"), ROTATIONS
        )
        if n_rotations is None:
            # A recommended number belongs to the recommended kind of rotation.
            same = self.rotation == recommended.get("rotation")
            n_rotations = int(recommended.get("n_rotations", 1)) if same else 1
        self.n_rotations = n_rotations
        self.dtype = _choice("dtype", dtype, PRECISIONS)
        self.device = resolve_device(device)
        self._check_options()
        conservative = self.conservative
        self.remove_net_force = not conservative if remove_net_force is None else remove_net_force
        self.remove_net_torque = (
            not conservative if remove_net_torque is None else remove_net_torque
        )
        self._features = torch.float32 if dtype == "float32" else torch.float64
        self._network: MDET = (
            copy.deepcopy(self.model.network)
            .to(device=self.device, dtype=WEIGHTS_DTYPE[dtype])
            .eval()
            .requires_grad_(False)
        )
        self._fixed = fixed_rotations(n_rotations)
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def _check_options(self) -> None:
        heads = self.model.network.config.target_heads
        if self.rotation == "none" and self.n_rotations != 1:
            raise ConfigError(
                f"n_rotations={self.n_rotations} with rotation='none'; use rotation='average'"
            )
        if self.conservative and self.rotation == "random":
            raise ConfigError(
                "conservative forces conserve energy only for a fixed set of orientations; "
                "rotation='random' changes it at every call. Use rotation='none' or 'average'"
            )
        if self.conservative and self._energy_head is None:
            raise ConfigError(f"forces='conservative' needs an energy head; the model has {heads}")
        if not self.conservative and "forces" not in heads:
            raise ConfigError(
                f"forces='direct' needs a force head; the model has {heads}. "
                "Use forces='conservative'"
            )

    @property
    def conservative(self) -> bool:
        """Whether the forces are the gradient of an energy."""
        return self.forces == "conservative" or self.model.network.config.energy_conserving

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

    def state_dict(self) -> dict[str, list[int]]:
        """State of the stream of random orientations, JSON-able."""
        return {"generator": self._generator.get_state().tolist()}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """Continue the stream of random orientations from :meth:`state_dict`."""
        self._generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))

    def evaluate(
        self,
        structures: Sequence[ase.Atoms | Structure],
        properties: Sequence[str] = ("energy", "forces"),
    ) -> list[Evaluation]:
        """Evaluate molecules of any sizes.

        Parameters
        ----------
        structures
            ASE atoms (charge and multiplicity in ``atoms.info``) or structures.
        properties
            "energy", "forces" or both; what is not asked for is not computed.

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
            raise ConfigError(f"properties={tuple(properties)}; choose from energy, forces")
        if "energy" in properties and not self.has_energy and "forces" not in properties:
            raise ConfigError(f"model {self.model.card.name!r} predicts no energy")
        molecules = [
            item if isinstance(item, Structure) else structure_from_ase(item)
            for item in structures
        ]
        for molecule in molecules:
            molecule.check(self.model.card.elements)
        results: list[Evaluation] = []
        for chunk in self._chunks(molecules):
            results += self._evaluate_chunk(chunk, tuple(properties))
        return results

    def _chunks(self, molecules: list[Structure]) -> list[list[Structure]]:
        width = self.model.network.config.embd_dim * self.n_rotations
        chunks: list[list[Structure]] = []
        for molecule in molecules:
            size = max([len(molecule), *(len(m) for m in chunks[-1])]) if chunks else 0
            if chunks and (len(chunks[-1]) + 1) * size**2 * width <= _CHUNK_NUMBERS:
                chunks[-1].append(molecule)
            else:
                chunks.append([molecule])
        return chunks

    def _rotations(self) -> Tensor:
        if self.rotation == "random":
            return self._fixed @ random_rotations(1, self._generator)
        return self._fixed

    def _evaluate_chunk(
        self, molecules: list[Structure], properties: tuple[str, ...]
    ) -> list[Evaluation]:
        k = self.n_rotations
        # One draw per molecule, so that a batch consumes the stream like single calls would.
        rotations = torch.stack([self._rotations() for _ in molecules])
        inputs = _Inputs(molecules, k, self.device)
        positions = torch.einsum("bkni,bkij->bknj", inputs.positions, rotations.to(self.device))
        energies, forces = self._run(positions.flatten(0, 1), inputs, properties)
        back = rotations.numpy().swapaxes(-1, -2)
        results = []
        for b, molecule in enumerate(molecules):
            energy = energy_std = force = force_std = None
            if energies is not None:
                samples = energies[b * k : (b + 1) * k] + self._reference_energy(molecule)
                energy, energy_std = float(samples.mean()), _spread(samples)
            if forces is not None:
                turned = forces[b * k : (b + 1) * k, : len(molecule)] @ back[b]
                force, force_std = self._project(turned.mean(axis=0), molecule), _spread(turned)
            result = Evaluation(
                energy=energy,
                forces=force,
                forces_std=force_std,
                energy_std=None if energy_std is None else float(energy_std),
            )
            _check_prediction(result, molecule)
            results.append(result)
        return results

    def _run(
        self, positions: Tensor, inputs: _Inputs, properties: tuple[str, ...]
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
        """Energies ``(b,)`` eV and forces ``(b, n, 3)`` eV/Å of positions in Å."""
        want_forces = "forces" in properties
        want_energy = "energy" in properties and self.has_energy
        leaf = positions / units.MDET_BOHR
        gradient = want_forces and self.conservative
        heads = () if self.conservative or not want_forces else ("forces",)
        if (want_energy or gradient) and self._energy_head:
            heads = (*heads, self._energy_head)
        with torch.inference_mode(not gradient), torch.set_grad_enabled(gradient):
            leaf.requires_grad_(gradient)
            out = self._network(*inputs.network(leaf), heads, edge_attention, self._features)
            energy = self._energy(out) if want_energy or gradient else None
            if gradient and energy is not None:
                (slope,) = torch.autograd.grad(energy.sum(), leaf)
                forces: Tensor | None = -slope / units.MDET_BOHR
            else:
                forces = out["forces"] * units.MDET_FORCE if want_forces else None
        return (
            energy.detach().double().cpu().numpy() if want_energy and energy is not None else None,
            forces.double().cpu().numpy() if forces is not None else None,
        )

    def _energy(self, out: dict[str, Tensor]) -> Tensor:
        """Energy ``(b,)`` in eV; the potential of conservative checkpoints is minus the energy."""
        head = self._energy_head
        value = out[str(head)][:, 0] * units.MDET_HARTREE
        return -value if head == "potential" else value

    def _reference_energy(self, molecule: Structure) -> float:
        references = self.model.atomic_energies
        return sum(references[int(z)] for z in molecule.numbers) if references else 0.0

    def _project(
        self, forces: NDArray[np.float64], molecule: Structure
    ) -> NDArray[np.float64]:
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
        """
        molecule = structure if isinstance(structure, Structure) else structure_from_ase(structure)
        molecule.check(self.model.card.elements)
        rotations = self._rotations().to(self.device)
        inputs = _Inputs([molecule], self.n_rotations, self.device)
        leaf = (inputs.positions[0, 0] / units.MDET_BOHR).requires_grad_()
        with torch.enable_grad():
            turned = leaf @ rotations
            heads = (self._energy_head,) if self.conservative else ("forces",)
            out = self._network(
                *inputs.network(turned), heads, edge_attention_reference, self._features
            )
            if self.conservative:
                energy = self._energy(out).mean() / units.MDET_HARTREE
                forces = -torch.autograd.grad(energy, leaf, create_graph=True)[0]
            else:
                forces = (out["forces"].double() @ rotations.mT).mean(dim=0)
            rows = [
                torch.autograd.grad(component, leaf, retain_graph=True)[0].flatten()
                for component in forces.flatten()
            ]
        raw = -torch.stack(rows).double().cpu().numpy() * units.MDET_HESSIAN
        return Hessian(
            matrix=0.5 * (raw + raw.T),
            antisymmetry=float(0.5 * np.linalg.norm(raw - raw.T) / np.linalg.norm(raw)),
        )


class _Inputs:
    """Molecules as padded tensors, each repeated for its orientations."""

    def __init__(self, molecules: list[Structure], copies: int, device: torch.device) -> None:
        size = max(len(m) for m in molecules)
        count = len(molecules)
        positions = np.zeros((count, copies, size, 3))
        numbers = np.zeros((count, size), dtype=np.int64)
        for b, molecule in enumerate(molecules):
            positions[b, :, : len(molecule)] = molecule.positions - molecule.positions.mean(axis=0)
            numbers[b, : len(molecule)] = molecule.numbers
        self.positions = torch.from_numpy(positions).to(device)
        self.numbers = torch.from_numpy(numbers).to(device).repeat_interleave(copies, 0)
        padded = any(len(m) != size for m in molecules)
        self.mask = self.numbers != 0 if padded else None
        state = torch.tensor([(m.charge, m.multiplicity) for m in molecules], device=device)
        self.charge, self.multiplicity = state.repeat_interleave(copies, 0).unbind(1)

    def network(self, positions: Tensor) -> tuple[Any, ...]:
        """Arguments of the network for positions ``(b·k, n, 3)``."""
        return positions, self.numbers, self.mask, self.charge, self.multiplicity


def _spread(samples: NDArray[np.float64]) -> Any:
    return samples.std(axis=0, ddof=1) if len(samples) > 1 else None


def _check_prediction(result: Evaluation, molecule: Structure) -> None:
    if result.energy is not None and not np.isfinite(result.energy):
        raise PredictionError(f"the model returned energy {result.energy} for {len(molecule)} atoms")
    if result.forces is None:
        return
    largest = np.abs(result.forces).max(axis=1)
    # NaN compares false, so test for what is allowed.
    wrong = ~(largest <= _ABSURD_FORCE)
    if wrong.any():
        index = int(np.flatnonzero(wrong)[0])
        raise PredictionError(
            f"the model returned force {result.forces[index].tolist()} eV/Å on atom {index}; "
            f"components beyond {_ABSURD_FORCE:g} are absurd. The geometry is probably far from "
            "anything the model was trained on"
        )


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}; choose one of {', '.join(allowed)}")
    return value


