"""MD-ET as a model of TorchSim, which moves many molecules in one call; needs its package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ase
import numpy as np
import torch
from torch import Tensor

from mlmd_calc.electrons import as_integer, is_electronic
from mlmd_calc.errors import ConfigError, InputError
from mlmd_calc.optional import require
from mlmd_calc.options import refuse_keywords, shown
from mlmd_calc.potential import Potential, Structure, structure_from_ase
from mlmd_calc.potential.options import ForceOptions
from mlmd_calc.zoo import Model

if TYPE_CHECKING:
    # The class is typed alike whether or not the package is there.
    from torch.nn import Module as ModelInterface
    from torch_sim.state import SimState
    from typing_extensions import Unpack
else:
    ModelInterface = require(
        "torch_sim.models.interface", extra="torchsim", why="run MD-ET in TorchSim"
    ).ModelInterface

__all__ = ["MDETModel"]

_NO_STRESS: Final = (
    "stress was asked for, but MD-ET knows isolated molecules only, which have none; use "
    "integrators without pressure, such as nve and nvt_langevin, and optimizers without a cell"
)


class _Answers(dict[str, Tensor]):
    """Answers of a call; what takes a stress out of them is told why there is none."""

    def __missing__(self, name: str) -> Tensor:
        if name == "stress":
            raise NotImplementedError(_NO_STRESS)
        raise KeyError(name)


class MDETModel(ModelInterface):
    """MD-ET force field as a model of TorchSim.

    Each system of a state is one isolated molecule; sizes may differ. Answers are ``energy``
    ``(n_systems,)`` eV and ``forces`` ``(n_atoms, 3)`` eV/Å, with more than one orientation per
    call also ``energy_std`` and ``forces_std``, with ``on_spread`` also ``spread`` and
    ``forces_spread``, as of :class:`mlmd_calc.MDETCalculator`. They are detached from gradients,
    and have the device and precision of the state's positions.

    Batches of any number of molecules are computed in parts of bounded memory, so that automatic
    batching is not needed; it counts atoms (``memory_scales_with``).

    Parameters
    ----------
    model
        As of :class:`mlmd_calc.MDETCalculator`.
    charge, multiplicity
        Total charge in e and spin multiplicity 2S + 1 of all systems. None: what the state says of
        each system under a name that `mlmd_calc.electrons` knows ("charge", "spin"), else 0 and 1.
        A disagreement is an error. Zeros in a state say nothing: TorchSim puts them where nothing
        was stated.
    **options
        As of :class:`mlmd_calc.MDETCalculator`. ``dtype`` is the precision of the network; states
        that TorchSim makes for this model are in double precision in any case.

    Attributes
    ----------
    potential
        The :class:`mlmd_calc.Potential` that answers. ``state_dict()`` and ``load_state_dict()`` of
        it are the state of the stream of random orientations.

    Raises
    ------
    MissingDependencyError
        From the import of this module, if TorchSim is not installed.
    ConfigError
        If an option does not fit the model, or the model predicts no energy.
    InputError
        From calls, as of :class:`mlmd_calc.MDETCalculator`, for any of the molecules.
    PredictionError
        Likewise.

    Examples
    --------
    >>> import torch_sim
    >>> from ase.build import molecule
    >>> from mlmd_calc.torchsim import MDETModel
    >>> model = MDETModel()
    >>> state = torch_sim.initialize_state(
    ...     [molecule("CH3CH2OH"), molecule("C6H6")], model.device, model.dtype
    ... )
    >>> model(state)["forces"].shape
    torch.Size([21, 3])
    """

    def __init__(
        self,
        model: str | Model | None = None,
        *,
        charge: int | None = None,
        multiplicity: int | None = None,
        **options: Unpack[ForceOptions],
    ) -> None:
        refuse_keywords(options, ForceOptions.__annotations__, type(self).__name__)
        super().__init__()
        self.charge = as_integer("charge", charge)
        self.multiplicity = as_integer("multiplicity", multiplicity)
        self.potential = Potential(model, **options)
        if not self.potential.has_energy:
            raise ConfigError(
                f"model {self.potential.model.card.name!r} predicts no energy, which states of "
                "TorchSim have; use MDETCalculator"
            )
        # Names under which TorchSim's base class looks for its properties.
        self._device = self.potential.device
        self._dtype = torch.float64
        self._compute_forces = True
        self._memory_scales_with = "n_atoms"

    @property
    def compute_stress(self) -> bool:
        """Whether stresses are computed: never."""
        return False

    @compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        if wanted:
            # The error by which models of TorchSim refuse.
            raise NotImplementedError(_NO_STRESS)

    def forward(self, state: SimState, **_: Any) -> dict[str, Tensor]:
        """Energies and forces of all molecules of a state; calling the model does the same.

        Parameters
        ----------
        state
            Molecules without periodic boundary conditions, Å.
        """
        structures = [
            structure_from_ase(atoms, self.charge, self.multiplicity) for atoms in _molecules(state)
        ]
        try:
            results = self.potential.evaluate(structures)
        except InputError:
            self._check_one_by_one(structures)
            raise
        named = [result.named() for result in results]
        found = _Answers()
        # The names depend on the options, not on the molecule.
        for name in named[0]:
            values = [each[name] for each in named]
            whole = np.array(values) if np.ndim(values[0]) == 0 else np.concatenate(values)
            found[name] = torch.from_numpy(whole).to(state.positions)
        return found

    def _check_one_by_one(self, structures: list[Structure]) -> None:
        """Say which of many molecules is refused."""
        for i, structure in enumerate(structures):
            try:
                structure.check(self.potential.model.card, self.potential.coverage)
            except InputError as error:
                raise InputError(f"system {i}: {error}") from None


def _molecules(state: SimState) -> list[ase.Atoms]:
    """Systems of a state, each with what the state says of its charge and spin in ``info``."""
    systems = state.system_idx.cpu().numpy()
    if (np.diff(systems) < 0).any():
        raise InputError(
            "the atoms of the state are not in the order of their systems (system_idx="
            f"{shown(systems.tolist())}); sort them"
        )
    ends = np.bincount(systems).cumsum()[:-1]
    numbers = np.split(state.atomic_numbers.cpu().numpy(), ends)
    positions = np.split(state.positions.detach().cpu().double().numpy(), ends)
    pbc = torch.as_tensor(state.pbc).cpu().numpy()
    stated = _stated(state)
    return [
        ase.Atoms(
            numbers=numbers[i],
            positions=positions[i],
            pbc=pbc,
            info={name: values[i] for name, values in stated.items() if values[i] != 0},
        )
        for i in range(len(numbers))
    ]


def _stated(state: SimState) -> dict[str, list[float]]:
    """Numbers that a state has for each system under names that mean a charge or spin.

    They are attributes in TorchSim 0.4 and 0.5 and extras since then; 0.3 has none.
    """
    named = {name: getattr(state, name, None) for name in ("charge", "spin")}
    named.update(getattr(state, "system_extras", {}))
    return {
        name: values.flatten().tolist()
        for name, values in named.items()
        if values is not None and values.numel() == len(values) and is_electronic(name)
    }
