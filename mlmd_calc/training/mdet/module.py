"""Lightning module that trains an MD-ET network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlmd_calc import units
from mlmd_calc.errors import ConfigError
from mlmd_calc.models.mdet import MDET, MDETConfig
from mlmd_calc.training.mdet.batches import Batch
from mlmd_calc.training.mdet.losses import energy_loss, force_loss, gradient_surrogate
from mlmd_calc.training.mdet.recipe import MDETLossWeights, MDETRecipe
from mlmd_calc.training.module import TrainingModule


class MDETTraining(TrainingModule):
    """Losses and metrics of one training run.

    Raises
    ------
    ConfigError
        If the network lacks a head that the losses need.
    """

    network: MDET
    recipe: MDETRecipe

    def __init__(self, network: MDET, recipe: MDETRecipe) -> None:
        super().__init__(network, recipe)
        self.energy_head = energy_head(network.config, recipe.loss)
        for name, head in network.heads.items():
            # Heads without labels (dipole) stay as they are.
            head.requires_grad_(name in ("forces", self.energy_head))

    def layers(self) -> Iterable[nn.Module]:
        """Layers of the network."""
        return self.network.layers

    def unit(self, metric: str) -> str:
        """Return the unit of a mean absolute error; energies are per atom."""
        return "meV/atom" if "energy" in metric else "meV/Å"

    def _evaluate(
        self, batch: Batch, positions: Tensor, *, repeats: int = 1, frozen: bool = False
    ) -> dict[str, Tensor]:
        """Evaluate at positions ``(repeats · b, n, 3)`` Bohr; frozen: the energy only."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.repeat(repeats, *[1] * (tensor.ndim - 1))

        inputs = (
            positions,
            repeat(batch.numbers),
            None if batch.mask is None else repeat(batch.mask),
            repeat(batch.charge),
            repeat(batch.multiplicity),
        )
        if frozen:
            # Without parameter gradients the backward pass to the positions is a third cheaper.
            weights = {name: p.detach() for name, p in self.network.named_parameters()}
            out: dict[str, Tensor] = functional_call(
                self.network, weights, (*inputs, (self.energy_head,))
            )
        else:
            heads = ("forces",) if self.energy_head is None else ("forces", self.energy_head)
            out = self.network(*inputs, heads)
        return out

    def _energy(self, out: dict[str, Tensor]) -> Tensor:
        """Energies ``(b,)`` in Hartree."""
        return out[str(self.energy_head)][:, 0]

    def _energy_forces(self, batch: Batch, positions: Tensor) -> Tensor:
        """Minus the gradient of the energy head, Hartree/Bohr, without a graph."""
        leaf = positions.detach().requires_grad_()
        with torch.enable_grad():
            energy = self._energy(self._evaluate(batch, leaf, frozen=True))
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return -gradient

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Terms of the loss of one batch by name, in eV and Å, not yet weighted."""
        weight = self.recipe.loss
        positions = (batch.positions / units.MDET_BOHR).float()
        if not weight.gradient and not weight.consistency:
            return self._head_terms(batch, self._evaluate(batch, positions))
        slope = self._energy_forces(batch, positions)
        if weight.gradient:
            gradient, out = self._gradient_term(batch, positions, slope)
            terms = self._head_terms(batch, out) | {"gradient": gradient}
        else:
            out = self._evaluate(batch, positions)
            terms = self._head_terms(batch, out)
        if weight.consistency:
            # Displaced positions come in pairs around the true ones; the mean is that of those.
            copies = out["forces"].unflatten(0, (-1, len(positions)))
            # Only the direct head is pulled: the energy gradient is the physical side.
            terms["consistency"] = force_loss(
                copies.mean(0) * units.MDET_FORCE, slope * units.MDET_FORCE, batch.mask
            )
        return terms

    def _gradient_term(
        self, batch: Batch, positions: Tensor, slope: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the energy gradient, and the outputs of the displaced structures it needed.

        The displacements are so small that the other terms can be evaluated there as well.
        """
        target = batch.forces.float()
        out: dict[str, Tensor] = {}

        def energy(displaced: Tensor) -> Tensor:
            out.update(self._evaluate(batch, displaced, repeats=2))
            return self._energy(out)

        def loss(forces: Tensor) -> Tensor:
            return force_loss(forces * units.MDET_FORCE, target, batch.mask)

        return gradient_surrogate(positions, slope, loss, energy), out

    def _head_terms(self, batch: Batch, out: dict[str, Tensor]) -> dict[str, Tensor]:
        """Terms of the heads' own outputs, for structures that may be repeated."""
        repeats = len(out["forces"]) // len(batch.energies)
        terms = {
            "forces": force_loss(
                out["forces"].float() * units.MDET_FORCE,
                batch.forces.float().repeat(repeats, 1, 1),
                None if batch.mask is None else batch.mask.repeat(repeats, 1),
            )
        }
        if self.energy_head is not None:
            terms["energy"] = energy_loss(
                self._energy(out).float() * units.MDET_HARTREE,
                batch.energies.float().repeat(repeats),
                (batch.numbers != 0).sum(1).repeat(repeats),
            )
        return terms

    def measure(self, batch: Batch, name: str) -> None:
        """Mean absolute errors per force component (meV/Å) and of the energy per atom (meV)."""
        weight = self.recipe.loss
        positions = (batch.positions / units.MDET_BOHR).float()
        real = batch.numbers != 0

        def log_forces(key: str, forces: Tensor) -> None:
            errors = (forces * units.MDET_FORCE - batch.forces)[real]
            self.log_mean(f"{name}/{key}", errors.abs().mean() / units.MEV, len(errors))

        out = self._evaluate(batch, positions)
        log_forces("forces_mae", out["forces"])
        if weight.gradient or weight.consistency:
            log_forces("gradient_mae", self._energy_forces(batch, positions))
        if self.energy_head is not None:
            errors = self._energy(out) * units.MDET_HARTREE - batch.energies
            per_atom = (errors.abs() / real.sum(1)).mean() / units.MEV
            self.log_mean(f"{name}/energy_mae", per_atom, len(errors))


def energy_head(config: MDETConfig, loss: MDETLossWeights) -> str | None:
    """Name of the energy head to train, or None if the network has none and needs none.

    Raises
    ------
    ConfigError
        If the network lacks a head that the losses need.
    """
    if config.energy_conserving or "forces" not in config.target_heads:
        raise ConfigError(
            f"energy_conserving={config.energy_conserving}, target_heads={config.target_heads}; "
            "training needs the head 'forces' beside the energy. For forces that conserve energy "
            "give loss.gradient a weight and use the model with forces='conservative'"
        )
    heads = (name for name in ("formation_energy", "energy") if name in config.target_heads)
    head = next(heads, None)
    if head is None and (loss.energy or loss.gradient or loss.consistency):
        raise ConfigError(
            f"the network has no energy head (target_heads={config.target_heads}), but the energy, "
            "gradient or consistency loss has a weight; set them to 0"
        )
    return head
