"""The network behind a potential: batches in Å to energies in eV and forces in eV/Å."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlmd_calc import units
from mlmd_calc.models.mdet import MDET, MDETConfig
from mlmd_calc.models.mdet.edge_attention import (
    AttentionFunction,
    edge_attention,
    edge_attention_reference,
)
from mlmd_calc.models.mdet.inference import merge_weights
from mlmd_calc.models.recorder import Recorder
from mlmd_calc.potential.padding import PaddedBatch
from mlmd_calc.zoo.load import WEIGHTS_DTYPE

_RECORDED_NUMBERS: Final = 2**16
"""Pair features (numbers) up to which calls are recorded. What Python takes between operations is
nothing to larger ones, and recording holds all of their intermediate results."""

_CONSTANTS: Final = (1, 2, 3, 4)
"""All that tells which molecules these are, among the arguments of a recording."""

_CAPTURED_NUMBERS: Final = 2**22
"""The same on a GPU, where recordings share their memory, and launches take longer."""


def energy_head(config: MDETConfig) -> str | None:
    """Name of the output that is the energy of a network, if it has one."""
    if config.energy_conserving:
        return "potential"
    heads = (name for name in ("formation_energy", "energy") if name in config.target_heads)
    return next(heads, None)


def has_force_head(config: MDETConfig) -> bool:
    """Whether a network predicts forces besides those that follow from its energy."""
    return "forces" in config.target_heads and not config.energy_conserving


class Prediction:
    """A network with its units and precision.

    Parameters
    ----------
    network
        Network, which is copied.
    conservative
        Whether forces are minus the gradient of the energy, or those of the force head.
    dtype
        "float64", "float32" or "mixed", see :class:`mlmd_calc.Potential`.
    device
        Where it is computed.
    both_heads
        Whether conservative forces come with those of the force head, "direct_forces".
    """

    def __init__(
        self,
        network: MDET,
        *,
        conservative: bool,
        dtype: str,
        device: torch.device,
        both_heads: bool = False,
    ) -> None:
        self.conservative = conservative
        self.both_heads = conservative and both_heads
        self.device = device
        self.head = energy_head(network.config)
        self._weights = WEIGHTS_DTYPE[dtype]
        self._features = torch.float32 if dtype == "float32" else torch.float64
        self._original = network
        # A tensor made in a caller's inference mode cannot be differentiated through later.
        with torch.inference_mode(False):
            self.network = merge_weights(self.network_as_loaded())
        self._recorded = Recorder(self._results, self.network, _CONSTANTS)

    def network_as_loaded(self) -> MDET:
        """Copy of the network in this precision, with the weights and derivatives it came with."""
        return (
            copy.deepcopy(self._original)
            .to(device=self.device, dtype=self._weights)
            .eval()
            .requires_grad_(False)
        )

    def __call__(
        self, batch: PaddedBatch, energy: bool, forces: bool
    ) -> dict[str, NDArray[np.float64]]:
        """Energies ``(b,)`` eV and forces ``(b, n, 3)`` eV/Å, whichever are wanted."""
        b, n = batch.numbers.shape
        most = _RECORDED_NUMBERS if self.device.type == "cpu" else _CAPTURED_NUMBERS
        small = b * n * n * self.network.config.embd_dim <= most
        evaluate = self._recorded if small else self._results
        with self._computing(gradient=forces and self.conservative):
            values = evaluate(*batch, energy, forces)
        return {name: value.cpu().numpy() for name, value in values.items()}

    @contextmanager
    def _computing(self, gradient: bool) -> Iterator[None]:
        """Compute alike whatever inference, gradient or autocast mode the caller is in."""
        with (
            torch.inference_mode(not gradient),
            torch.no_grad(),
            torch.autocast(self.device.type, enabled=False),
        ):
            yield

    def _results(
        self,
        positions: Tensor,
        numbers: Tensor,
        mask: Tensor | None,
        charge: Tensor,
        multiplicity: Tensor,
        energy: bool,
        forces: bool,
    ) -> dict[str, Tensor]:
        batch = PaddedBatch(positions, numbers, mask, charge, multiplicity)
        return self.results(self.network, batch, energy, forces, edge_attention)

    def results(
        self,
        network: MDET,
        batch: PaddedBatch,
        energy: bool,
        forces: bool,
        attention: AttentionFunction,
    ) -> dict[str, Tensor]:
        """Like a call, as tensors in double precision, by one of the forms of the network."""
        gradient = forces and self.conservative
        both = gradient and self.both_heads
        targets = ("forces",) if both or (forces and not gradient) else ()
        if energy or gradient:
            targets = (*targets, str(self.head))
        values = {}
        with torch.set_grad_enabled(gradient):
            leaf = (batch.positions / units.MDET_BOHR).detach().requires_grad_(gradient)
            out = network(leaf, *batch[1:], targets, attention, self._features)
            if energy or gradient:
                values["energy"] = self._energy(out)
            if gradient:
                (slope,) = torch.autograd.grad(values["energy"].sum(), leaf)
                values["forces"] = -slope / units.MDET_BOHR
                if both:
                    values["direct_forces"] = out["forces"] * units.MDET_FORCE
            elif forces:
                values["forces"] = out["forces"] * units.MDET_FORCE
        if not energy:
            values.pop("energy", None)
        return {name: value.detach().double() for name, value in values.items()}

    def _energy(self, out: dict[str, Tensor]) -> Tensor:
        """Energy ``(b,)`` in eV; the potential of conservative checkpoints is minus the energy."""
        value = out[str(self.head)][:, 0] * units.MDET_HARTREE
        return -value if self.head == "potential" else value

    def jacobian(self, single: PaddedBatch, rotations: Tensor) -> NDArray[np.float64]:
        """Minus the derivatives of the mean forces over orientations.

        Parameters
        ----------
        single
            One molecule.
        rotations
            ``(k, 3, 3)``.

        Returns
        -------
        ndarray
            ``(3 n, 3 n)`` eV/Å², rows are force components.
        """
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(self.device.type, enabled=False),
        ):
            leaf = (single.positions[0] / units.MDET_BOHR).requires_grad_()
            rotations = rotations.to(self.device)
            batch = single.repeat(len(rotations))._replace(positions=leaf @ rotations)
            targets = (self.head if self.conservative else "forces",)
            # Second derivatives are those of the network as it was loaded.
            network = self.network_as_loaded()
            out = network(*batch, targets, edge_attention_reference, self._features)
            if self.conservative:
                energy = self._energy(out).mean() / units.MDET_HARTREE
                forces = -torch.autograd.grad(energy, leaf, create_graph=True)[0]
            else:
                forces = (out["forces"].double() @ rotations.mT).mean(dim=0)
            rows = [
                torch.autograd.grad(component, leaf, retain_graph=True)[0].flatten()
                for component in forces.flatten()
            ]
        jacobian: NDArray[np.float64] = torch.stack(rows).double().cpu().numpy()
        return -jacobian * units.MDET_HESSIAN
