"""ATMOS as a propagator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlmd_calc import units
from mlmd_calc.biomolecules import MolecularSystem
from mlmd_calc.biomolecules.domain import refuse_objections
from mlmd_calc.biomolecules.steering import Steering
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.geometry.stereochemistry import dihedrals, handedness
from mlmd_calc.models.atmos import Memory, SamplerConfig
from mlmd_calc.models.atmos.rollout import Rollout
from mlmd_calc.options import positive_number, whole_number
from mlmd_calc.propagation.forces import ForceModel
from mlmd_calc.propagation.guards import Check
from mlmd_calc.propagation.propagator import Propagator, Strides
from mlmd_calc.propagation.proposals import Finding, Proposal
from mlmd_calc.propagation.relaxation import (
    PotentialWindow,
    equilibrated,
    minimised,
    reference_window,
)
from mlmd_calc.propagation.state import FloatArray, Frames, State
from mlmd_calc.propagation.thermostats import Thermostat
from mlmd_calc.wording import counted
from mlmd_calc.zoo import ATMOSModel

_STALE: Final = 0.1
"""Part of a stride; when other dynamics has lasted longer since a jump, its memory is given up."""


class ATMOSPropagator(Propagator):
    """Jumps of an ATMOS network, over picoseconds to nanoseconds.

    The network moves the heavy atoms; hydrogens keep their places relative to these. Then the
    structure is superposed on the one before, so overall translation and rotation are not part of
    the motion. The forces of the engine relax it: minimisation takes away what is left of strain,
    and a little Langevin dynamics, which the clock does not count, gives it back the vibrations of
    its temperature. Velocities are drawn by the thermostat.

    The latent memory goes with the state of the run and into its restart file; it is given up at
    the end of a window as long as those of the training, and when force-based steps since the last
    jump have lasted more than a tenth of the stride.

    Parameters
    ----------
    model
        A loaded model, see :func:`mlmd_calc.zoo.load_atmos`.
    system
        The molecule, built from the engine's topology in the engine's order of atoms: with
        :func:`mlmd_calc.biomolecules.build_system`, for OpenMM after
        :func:`openmm_bridge.topology_features.structure_from_topology`.
    stride_ps
        Length of a jump, for models that were trained on several.
    sampler
        Noise levels and step rule of the diffusion sampler; None for those that the model has for a
        molecule of this length.
    minimise_steps
        At most this many steps of minimisation after a jump; 0 for none.
    langevin_steps
        Steps of 0.5 fs of Langevin dynamics after that, at the temperature of the thermostat and
        with a friction of 5/ps; 0 for none.
    reference_steps
        Steps of 0.5 fs of the Langevin dynamics at the start of a run that tells which potential
        energies to expect, of forces that have one; 0 leaves the energies of jumps alone.
    energy_limit
        eV per atom by which the energy after a jump may be higher than the mean of that dynamics.
        A jump that leads higher is relaxed again, up to four times in all, and then rejected. None:
        two standard deviations.
    steer
        Put bonds, angles, hands and contacts of heavy atoms right while a frame is drawn, see
        :class:`~mlmd_calc.biomolecules.steering.Steering`.
    beyond_training
        Warn where the system is not like those the model was trained on, instead of refusing it.

    Raises
    ------
    ConfigError
        If the model is an interpolator, or does not know the stride.
    InputError
        If the system has water or ions, or the model does not know its elements or its kind of
        molecule.
    """

    stochastic = True
    gives_velocities = False

    def __init__(
        self,
        model: ATMOSModel,
        system: MolecularSystem,
        *,
        stride_ps: float | None = None,
        sampler: SamplerConfig | None = None,
        minimise_steps: int = 100,
        langevin_steps: int = 1000,
        reference_steps: int = 1000,
        energy_limit: float | None = None,
        steer: bool = True,
        beyond_training: bool = False,
    ) -> None:
        if model.network.config.max_remaining:
            raise ConfigError(
                f"model {model.name!r} is an interpolator, which needs to "
                "know where it goes; a propagator needs a model without max_remaining"
            )
        if len(system.left_out):
            raise InputError(
                f"{len(system.left_out)} atoms of the system are water or ions, which would stand "
                "still while the molecule jumps; use implicit solvent, or take them away"
            )
        if energy_limit is not None:
            positive_number("energy_limit", energy_limit)
        for objection in check_molecule(model, system, beyond_training):
            warnings.warn(f"beyond the training of the model: {objection}", stacklevel=2)
        self.model = model
        self.system = system
        self.minimise_steps = whole_number("minimise_steps", minimise_steps, 0)
        self.langevin_steps = whole_number("langevin_steps", langevin_steps, 0)
        self.reference_steps = whole_number("reference_steps", reference_steps, 0)
        self.energy_limit = energy_limit
        stride_ps = trained_stride_ps(model, stride_ps)
        self.strides = Strides(
            shortest=stride_ps * units.FS_PER_PS, longest=stride_ps * units.FS_PER_PS
        )
        self.temperature_K = model.card.temperature_K
        self._rollout = Rollout(
            model.network,
            system.features,
            sampler=model.sampler(len(system.alpha_carbons)) if sampler is None else sampler,
            lag_ps=stride_ps,
            steer=Steering(system) if steer else None,
            settle=system.exchange_arms,
        )

    @property
    def identity(self) -> str:
        """Checksum of the model, and how it is used."""
        return (
            f"ATMOSPropagator({self.model.sha256}, {self._rollout.sampler}, "
            f"{'' if self._rollout.steer is None else 'steered, '}"
            f"{self.minimise_steps} steps of minimisation, {self.langevin_steps} of dynamics)"
        )

    def checks(self) -> tuple[Check, ...]:
        """Return the checks of the handedness and of the peptide bonds."""
        return (Chirality(self.system), PeptideBonds(self.system))

    def propagate(
        self, states: Sequence[State], times_fs: Sequence[float], generator: torch.Generator
    ) -> list[Frames]:
        """Draw the next frame of all states at once; see :meth:`Propagator.propagate`.

        Raises
        ------
        InputError
            If a state does not have the atoms of the system.
        """
        for time in times_fs:
            self.strides.check(time)
        for state in states:
            self.check(state)
        heavy = [torch.from_numpy(self.system.select(state.positions)) for state in states]
        memories = [self._memory(state) for state in states]
        memory, moved = self._rollout.step(
            Memory(*(torch.cat(parts) for parts in zip(*memories, strict=True))),
            torch.stack(heavy),
            [generator] * len(states),
        )
        return [
            Frames(
                times=np.array(times_fs, dtype=np.float64),
                positions=self.system.restore(positions, state.positions)[None],
                velocities=None,
                memory=_stored(memory, row, state.time + times_fs[0]),
            )
            for row, (state, positions) in enumerate(zip(states, moved.numpy(), strict=True))
        ]

    def check(self, state: State) -> None:
        """Refuse other atoms than those of the system; see :meth:`Propagator.check`."""
        expected = self.system.size
        heavy = self.system.features.ref_element.numpy() + 1
        if len(state) != expected or (state.numbers[self.system.atoms] != heavy).any():
            raise InputError(
                f"a molecule of {counted(len(state), 'atom')} is to move, but the propagator was "
                f"made for a system of {expected} atoms, or for other elements in another order; "
                "build the system from the structure that is to move"
            )

    def _memory(self, state: State) -> Memory:
        """Memory of a state, new if it has none or too much has happened since."""
        stored = state.memory
        fresh = self._rollout.start(1)
        if not stored or abs(state.time - stored["time"]) > _STALE * self.strides.longest:
            return fresh
        return Memory(
            *(
                torch.from_numpy(np.array(stored[name]))[None].to(part)
                for name, part in zip(Memory._fields, fresh, strict=True)
            )
        )

    def relax(
        self,
        state: State,
        forces: ForceModel | None,
        thermostat: Thermostat | None,
        rng: np.random.Generator,
    ) -> State:
        """Minimise, and run Langevin dynamics; see :meth:`Propagator.relax`.

        Raises
        ------
        ConfigError
            If there are no forces.
        """
        if self.minimise_steps == self.langevin_steps == 0:
            return state
        if forces is None:
            raise ConfigError(
                f"minimise_steps={self.minimise_steps} and langevin_steps={self.langevin_steps} "
                "need forces; attach a calculator (ASE), use a System with forces (OpenMM), or set "
                "both to 0"
            )
        (state,) = minimised(forces, [state], self.minimise_steps)
        if thermostat is None or self.langevin_steps == 0:
            return state
        steps, temperature_K = self.langevin_steps, thermostat.temperature_K
        return equilibrated(forces, [state], steps, temperature_K, [rng])[0]

    def energy_window(
        self,
        state: State,
        forces: ForceModel | None,
        thermostat: Thermostat | None,
        rng: np.random.Generator,
    ) -> PotentialWindow | None:
        """Run dynamics where jumps are relaxed; see :meth:`Propagator.energy_window`."""
        relaxes = self.minimise_steps > 0 or self.langevin_steps > 0
        has_energy = bool(getattr(forces, "has_energy", False))
        if not (relaxes and self.reference_steps and has_energy) or thermostat is None:
            return None
        assert forces is not None
        return reference_window(
            forces,
            state,
            thermostat.temperature_K,
            rng,
            steps=self.reference_steps,
            minimise_steps=self.minimise_steps,
            limit=self.energy_limit,
        )


def _stored(memory: Memory, row: int, time: float) -> dict[str, Any]:
    arrays = {name: part[row].cpu().numpy() for name, part in memory._asdict().items()}
    return {**arrays, "time": np.array(time)}


def trained_stride_ps(model: ATMOSModel, stride_ps: float | None) -> float:
    """Time in ps between frames of a model.

    Parameters
    ----------
    model
        The model.
    stride_ps
        Which, of a model with several; None for the only one.

    Raises
    ------
    ConfigError
        If the model does not know it, or None leaves it open.
    """
    name, known = model.name, model.card.strides_ps
    listed = ", ".join(f"{stride:g}" for stride in known)
    if stride_ps is None:
        if len(known) == 1:
            return known[0]
        raise ConfigError(
            f"model {name!r} was trained on strides of {listed} ps; choose one of them"
            if known
            else f"the card of model {name!r} does not tell its stride; give it"
        )
    if known and stride_ps not in known:
        raise ConfigError(
            f"a stride of {stride_ps:g} ps; model {name!r} was trained on {listed} ps and knows no "
            "other"
        )
    return stride_ps


def check_elements(model: ATMOSModel, system: MolecularSystem) -> None:
    """Refuse a system with heavy atoms that a model does not know.

    Raises
    ------
    InputError
        With the elements.
    """
    known = model.card.elements
    found = set((system.features.ref_element + 1).tolist())
    if known is not None and (unknown := sorted(found - set(known))):
        raise InputError(
            f"the model does not know {', '.join(chemical_symbols[z] for z in unknown)}; it was "
            f"trained on {', '.join(chemical_symbols[z] for z in known)}"
        )


def check_molecule(model: ATMOSModel, system: MolecularSystem, beyond_training: bool) -> list[str]:
    """Refuse a system that a model does not know.

    Parameters
    ----------
    model, system
        The model and what it is to move.
    beyond_training
        Refuse nothing but unknown elements.

    Returns
    -------
    list of str
        What is beyond the training of the model, one sentence each; only with ``beyond_training``.

    Raises
    ------
    InputError
        With what the model does not know, and what to do.
    """
    check_elements(model, system)
    domain = model.card.domain
    objections = [] if domain is None else domain.objections(system.residues)
    if not beyond_training:
        refuse_objections(objections, model.name)
    return objections


class _AsAtStart(Check):
    """Something in the molecule stays as it was at the start of the run.

    Parameters
    ----------
    atoms
        ``(k, 4)`` indices of the atoms that each number is of.
    """

    key: str
    """What the numbers are called in restart files."""

    def __init__(self, atoms: NDArray[np.int64]) -> None:
        super().__init__("redraw")
        self._atoms = atoms
        self._start: FloatArray = np.zeros(len(atoms))

    def begin(self, state: State, thermostat: Thermostat | None) -> None:
        """Note the numbers at the start of the run."""
        self._start = self._numbers(state)

    def _numbers(self, state: State) -> FloatArray:
        raise NotImplementedError

    def state_dict(self) -> Mapping[str, Any]:
        """Numbers at the start of the run."""
        return {self.key: self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._start = np.array(state[self.key])


class Chirality(_AsAtStart):
    """No tetrahedral carbon atom turns into its mirror image."""

    name = "chirality"
    key = "signs"

    def __init__(self, system: MolecularSystem) -> None:
        super().__init__(system.atoms[system.chirality_centres])

    def _numbers(self, state: State) -> FloatArray:
        signs: FloatArray = handedness(state.positions[None], self._atoms)[0]
        return signs

    def judge(self, proposal: Proposal) -> Finding | None:
        """Find the centres whose handedness is not that of the start."""
        flipped = np.flatnonzero(self._numbers(proposal.after) != self._start)
        if len(flipped) == 0:
            return None
        atoms = ", ".join(
            f"{chemical_symbols[proposal.after.numbers[atom]]}{atom}"
            for atom in self._atoms[flipped, 0]
        )
        return self._finding(len(flipped), 0, f"{atoms} turned into the mirror image")


class PeptideBonds(_AsAtStart):
    """No peptide bond turns from trans to cis or back."""

    name = "peptide bonds"
    key = "omega"

    def __init__(self, system: MolecularSystem) -> None:
        super().__init__(system.atoms[system.omega])

    def _numbers(self, state: State) -> FloatArray:
        angles: FloatArray = dihedrals(state.positions[None], self._atoms)[0]
        return angles

    def judge(self, proposal: Proposal) -> Finding | None:
        """Find the peptide bonds that are not as at the start."""
        turned = np.flatnonzero(np.cos(self._numbers(proposal.after) - self._start) < 0.0)
        if len(turned) == 0:
            return None
        bonds = ", ".join(
            f"C{carbon}-N{nitrogen}" for _, carbon, nitrogen, _ in self._atoms[turned]
        )
        return self._finding(len(turned), 0, f"the peptide bonds {bonds} turned over")
