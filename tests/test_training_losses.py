"""Loss terms of the training."""

import pytest
import torch

from mlmd_calc.models import MDET, MDETConfig
from mlmd_calc.models.mdet.edge_attention import edge_attention, edge_attention_reference
from mlmd_calc.training.losses import energy_loss, force_loss, gradient_surrogate


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


def test_gradient_surrogate_equals_the_second_derivative():
    """First derivatives at displaced positions replace d²E/dθdx."""
    generator = torch.Generator().manual_seed(1)
    network = MDET(
        MDETConfig(n_layers=2, embd_dim=16, num_heads=2, num_3d_kernels=8, extensive=True)
    ).double()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
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

    surrogate, _ = gradient_surrogate(positions, forces.detach(), loss, energy)
    found = torch.autograd.grad(surrogate, parameters, allow_unused=True)

    assert surrogate.item() == pytest.approx(exact.item(), rel=1e-12)
    scale = max(e.abs().max().item() for e in expected if e is not None)
    for a, b in zip(found, expected, strict=True):
        if b is not None:
            assert (a - b).abs().max().item() < 1e-4 * scale
