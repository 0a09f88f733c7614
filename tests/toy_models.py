"""Small networks with random weights, and molecules to feed them."""

import dataclasses

import ase
import torch
from ase.build import molecule

from mlmd_calc.models import MDET, MDETConfig
from mlmd_calc.zoo import Model, ModelCard, save_model

SMALL = MDETConfig(n_layers=2, embd_dim=16, num_heads=4, num_3d_kernels=8)
"""Direct directions, Gaussian distances, pooling; heads for forces and formation energy."""

CONFIGS = {
    "direct-gaussian": SMALL,
    "fourier-gaussian": dataclasses.replace(SMALL, directions="fourier"),
    "harmonics-bessel-types": dataclasses.replace(
        SMALL, directions="spherical_harmonics", distances="bessel", edge_types=True
    ),
    "diagonal-post-norm": dataclasses.replace(
        SMALL, decomposer="diagonal", norm_first=False, activation="relu", head_project_down=False
    ),
    "gaussian-types-extensive": dataclasses.replace(SMALL, edge_types=True, extensive=True),
    "bessel-conservative": dataclasses.replace(SMALL, distances="bessel", energy_conserving=True),
    "distances-only": dataclasses.replace(SMALL, directions="none", cutoff=9.0, extensive=True),
    "electron-table": dataclasses.replace(SMALL, electron_table=True),
}


def random_network(config: MDETConfig = SMALL, seed: int = 0) -> MDET:
    """Network whose every parameter is random, attention far from uniform, forces of some eV/Å."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = MDET(config)
        for name, parameter in network.named_parameters():
            parameter += 0.2 * torch.randn_like(parameter)
            if "qlin" in name or "klin" in name:
                parameter *= 4.0
    return network.eval()


def toy_model(config: MDETConfig = SMALL, seed: int = 0, **card: object) -> Model:
    """Model that exists in memory only; keywords are entries of its card."""
    return Model(
        network=random_network(config, seed),
        card=ModelCard(name="toy", **card),
        atomic_energies={},
        source="",
        sha256="",
    )


def write_model(path, scale, **card):
    """Write a network with random weights; the smaller their scale the weaker the forces."""
    network = MDET(MDETConfig(n_layers=1, embd_dim=16, num_heads=2, num_3d_kernels=8))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    save_model(path, network, {1: -10.0, 6: -100.0, 8: -200.0}, card)
    return str(path)


def molecules() -> list[ase.Atoms]:
    """Molecules of mixed sizes, charges and multiplicities, none centred."""
    ammonium = molecule("NH3")
    ammonium.append(ase.Atom("H", ammonium.positions[0] + [0.0, 0.0, 1.0]))
    ammonium.info["charge"] = 1
    oxygen = molecule("O2")
    oxygen.info["multiplicity"] = 3
    found = [molecule("H2O"), molecule("CH3CH2OH"), ammonium, oxygen, ase.Atoms("Ne")]
    for index, atoms in enumerate(found):
        atoms.rattle(0.05, seed=index)
        atoms.translate([3.0, -index, 1.0])
    return found
