"""Loss terms of the training."""

from dataclasses import replace

import needs_lightning  # noqa: F401
import pytest
import torch
from spring_molecules import spring_frames
from toy_models import SMALL, random_network

from mlmd_calc import units
from mlmd_calc.models.mdet.edge_attention import edge_attention, edge_attention_reference
from mlmd_calc.training.mdet import losses
from mlmd_calc.training.mdet.atomic_energies import fit_atomic_energies
from mlmd_calc.training.mdet.batches import StructureTable
from mlmd_calc.training.mdet.losses import energy_loss, force_loss, gradient_surrogate
from mlmd_calc.training.mdet.module import MDETTraining
from mlmd_calc.training.mdet.recipe import MDETLossWeights, MDETRecipe


def test_force_loss_is_the_mean_length_over_real_atoms():
    predicted = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [9.0, 9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert force_loss(predicted, torch.zeros_like(predicted), mask) == pytest.approx(3.5, abs=1e-5)


def test_force_loss_has_a_finite_derivative_at_zero_error():
    predicted = torch.zeros(1, 2, 3, requires_grad=True)
    force_loss(predicted, torch.zeros(1, 2, 3), None).backward()
    assert torch.isfinite(predicted.grad).all()


def test_energy_loss_is_per_atom():
    loss = energy_loss(torch.tensor([2.0, 8.0]), torch.zeros(2), torch.tensor([2, 4]))
    assert loss == pytest.approx(1.5)


def test_gradient_surrogate_equals_the_second_derivative(monkeypatch):
    """First derivatives at displaced positions replace d²E/dθdx."""
    # So short that no ReLU switches on the way, where the second derivative is infinite.
    monkeypatch.setattr(losses, "_DISPLACEMENT", 1e-5)
    generator = torch.Generator().manual_seed(1)
    network = random_network(replace(SMALL, extensive=True)).double()
    positions = 2.0 * torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    numbers = torch.randint(1, 9, (3, 4), generator=generator)
    target = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)

    def energy(x, attention=edge_attention):
        z = numbers.repeat(len(x) // len(numbers), 1)
        return network(x, z, attention=attention)["formation_energy"][:, 0]

    def loss(forces):
        return force_loss(forces, target, None)

    leaf = positions.clone().requires_grad_()
    exact_energy = energy(leaf, edge_attention_reference)
    forces = -torch.autograd.grad(exact_energy.sum(), leaf, create_graph=True)[0]
    exact = loss(forces)
    parameters = [p for name, p in network.named_parameters() if "heads.forces" not in name]
    expected = torch.autograd.grad(exact, parameters, allow_unused=True)

    surrogate = gradient_surrogate(positions, forces.detach(), loss, energy)
    found = torch.autograd.grad(surrogate, parameters, allow_unused=True)

    assert surrogate.item() == pytest.approx(exact.item(), rel=1e-12)
    scale = max(e.abs().max().item() for e in expected if e is not None)
    for a, b in zip(found, expected, strict=True):
        if b is not None:
            assert (a - b).abs().max().item() < 1e-4 * scale


def training(size_step=1, **weights):
    """Training of a random network, and a batch for it."""
    module = MDETTraining(
        random_network(replace(SMALL, extensive=True)), MDETRecipe(loss=MDETLossWeights(**weights))
    )
    frames = [spring_frames("methanol", [6, 8, 1, 1, 1, 1], 3)]
    table = StructureTable(frames, fit_atomic_energies(frames), size_step)
    return module, next(table.spread(3, 1000))


def gradients(module, term):
    """Gradient norm of every part of the network."""
    term.backward()
    norms = {}
    for name, parameter in module.network.named_parameters():
        part = ".".join(name.split(".")[:2]) if name.startswith("heads") else "trunk"
        square = 0.0 if parameter.grad is None else float(parameter.grad.square().sum())
        norms[part] = norms.get(part, 0.0) + square
    return norms


def test_consistency_pulls_the_direct_forces_only():
    module, batch = training(consistency=1.0)
    terms = module.loss_terms(batch)
    assert set(terms) == {"forces", "energy", "consistency"}
    norms = gradients(module, terms["consistency"])
    assert norms["heads.formation_energy"] == 0.0
    assert norms["heads.forces"] > 0.0
    assert norms["trunk"] > 0.0


@pytest.mark.parametrize("gradient", [0.0, 1.0])
def test_consistency_is_the_distance_of_both_kinds_of_forces(gradient):
    """The gradient term, where there is one, must not change the value."""
    module, batch = training(consistency=1.0, gradient=gradient)
    value = module.loss_terms(batch)["consistency"].item()
    network = module.network
    leaf = (batch.positions / units.MDET_BOHR).float().requires_grad_()
    out = network(leaf, batch.numbers, None, batch.charge, batch.multiplicity)
    slope = torch.autograd.grad(out["formation_energy"].sum(), leaf)[0]
    difference = (out["forces"] + slope) * units.MDET_FORCE
    assert value == pytest.approx(difference.norm(dim=-1).mean().item(), rel=1e-4)


def test_gradient_term_trains_the_energy_head_and_reports_the_true_error():
    module, batch = training(gradient=1.0)
    terms = module.loss_terms(batch)
    leaf = (batch.positions / units.MDET_BOHR).float().requires_grad_()
    out = module.network(leaf, batch.numbers, None, batch.charge, batch.multiplicity)
    slope = torch.autograd.grad(out["formation_energy"].sum(), leaf)[0] * units.MDET_FORCE
    error = (slope + batch.forces).norm(dim=-1).mean().item()
    assert terms["gradient"].item() == pytest.approx(error, rel=1e-5)
    norms = gradients(module, terms["gradient"])
    assert norms["heads.formation_energy"] > 0.0
    assert norms["heads.forces"] == 0.0


def test_padding_changes_no_loss():
    for weights in ({"energy": 1.0}, {"gradient": 1.0, "consistency": 1.0}):
        module, batch = training(**weights)
        terms = module.loss_terms(batch)
        _, padded = training(size_step=8, **weights)
        assert batch.mask is None
        assert padded.mask is not None
        for name, value in module.loss_terms(padded).items():
            assert value.item() == pytest.approx(terms[name].item(), rel=1e-4)


def test_a_head_without_labels_stays_as_it_is():
    heads = ("forces", "formation_energy", "dipole")
    module = MDETTraining(random_network(replace(SMALL, target_heads=heads)), MDETRecipe())
    _, batch = training()
    norms = gradients(module, sum(module.loss_terms(batch).values()))
    assert norms["heads.dipole"] == 0.0
    assert norms["heads.forces"] > 0.0
