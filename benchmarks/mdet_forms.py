"""The two forms of an MD-ET force call, and their measurement.

``literal`` is ``mdet_reference.py``, ``product`` is ``mlmd_calc.Potential``; both get the same
random weights of the 12-layer, E = 192 network. ``dense`` is no force call but the matrix products
of its layers alone, which no exact form in this precision can do without: the least time there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import ase
import numpy as np
from common import proc_bytes
from numpy.typing import NDArray

ForceCall: TypeAlias = Callable[[], NDArray[np.floating] | None]

WARM_UP_ATOMS: Final = 21
CALLS_PER_ROUND: Final = 3
SEED: Final = 0


def chain_molecule(n_atoms: int) -> ase.Atoms:
    """Build a stretched alkane, alcohol or diol with exactly the given number of atoms.

    A zigzag of heavy atoms with hydrogens in idealised places, slightly shaken so that nothing is
    symmetric. A chain of m heavy atoms, k of them terminal oxygens, has 3m + 2 − 2k atoms.

    Parameters
    ----------
    n_atoms
        At least 8 (ethane).

    Raises
    ------
    ValueError
        If `n_atoms` is too small.
    """
    if n_atoms < 8:
        raise ValueError(f"n_atoms={n_atoms}; a chain has at least 8 atoms (ethane)")
    n_oxygens = (n_atoms - 2) % 3
    n_heavy = (n_atoms - 2 + 2 * n_oxygens) // 3
    oxygens = {0, n_heavy - 1} if n_oxygens == 2 else {0} if n_oxygens == 1 else set()

    def site(i: int) -> NDArray[np.float64]:
        return np.array([1.26 * i, 0.435 * (-1) ** i, 0.0])

    symbols, positions = [], []
    for i in range(n_heavy):
        symbols.append("O" if i in oxygens else "C")
        positions.append(site(i))
        if i not in oxygens:
            for z in (-0.89, 0.89):
                symbols.append("H")
                positions.append(site(i) + np.array([0.0, 0.63 * (-1) ** i, z]))
    for end, beyond in ((0, -1), (n_heavy - 1, n_heavy)):
        bond = site(beyond) - site(end)
        symbols.append("H")
        positions.append(site(end) + 1.09 * bond / np.linalg.norm(bond))
    shake = np.random.default_rng(SEED).normal(scale=0.05, size=(n_atoms, 3))
    return ase.Atoms(symbols, np.array(positions) + shake)


def force_calls(atoms: ase.Atoms) -> dict[str, ForceCall]:
    """Return one force call of each form, on the same weights.

    Parameters
    ----------
    atoms
        The molecule; both calls return its forces, ``(n, 3)`` eV/Å.
    """
    import mdet_reference

    config = mdet_reference.ReferenceConfig()
    weights = mdet_reference.random_state_dict(config, SEED)

    def literal() -> NDArray[np.floating]:
        _, forces = mdet_reference.literal_calculate(
            weights, config, atoms.positions, atoms.numbers
        )
        return forces

    potential = product_potential(config, weights)

    def product() -> NDArray[np.floating]:
        forces: NDArray[np.floating] = potential.evaluate([atoms])[0].forces
        return forces

    return {"literal": literal, "product": product, "dense": dense_products(config, weights, atoms)}


def dense_products(config: Any, weights: dict[str, Any], atoms: ase.Atoms) -> Callable[[], None]:
    """Apply the linear maps of all layers, each to features of its own, and nothing else."""
    import torch

    layers = [
        weight
        for name, weight in weights.items()
        if name.startswith("layers.") and name.endswith(".weight") and weight.ndim == 2
    ]
    pairs = {width: torch.randn(len(atoms) ** 2, width) for width in {w.shape[1] for w in layers}}

    def products() -> None:
        with torch.inference_mode():
            for weight in layers:
                torch.nn.functional.linear(pairs[weight.shape[1]], weight)

    return products


def product_potential(config: Any, weights: dict[str, Any]) -> Any:
    """Build the package's potential with the weights of the literal form.

    Parameters
    ----------
    config
        A ``mdet_reference.ReferenceConfig``.
    weights
        State dict of that network.
    """
    from mlmd_calc import Potential
    from mlmd_calc.models import MDET, MDETConfig
    from mlmd_calc.zoo import Model, ModelCard

    network = MDET(
        MDETConfig(
            n_layers=config.n_layers,
            embd_dim=config.embd_dim,
            num_heads=config.num_heads,
            num_3d_kernels=config.num_3d_kernels,
            ffn_multiplier=config.ffn_multiplier,
        )
    )
    network.load_state_dict(weights)
    model = Model(
        network=network.eval(),
        card=ModelCard("random"),
        atomic_energies={},
        source="",
        sha256="",
    )
    return Potential(model, device="cpu", dtype="float32", forces="direct", rotation="none")


def time_forms(n_atoms: int, forms: list[str]) -> dict[str, Any]:
    """Time the given forms for one molecule, taking turns.

    Parameters
    ----------
    n_atoms
        Size of the molecule.
    forms
        Some of ``"literal"``, ``"product"`` and ``"dense"``.

    Returns
    -------
    dict
        Per form the wall and processor seconds of every call, and its forces.
    """
    # The literal form streams N³ arrays from fresh memory: warming up at full size changes nothing
    # but costs half a minute at N = 100. The product form may prepare things per molecule.
    small = force_calls(chain_molecule(min(n_atoms, WARM_UP_ATOMS)))
    calls = force_calls(chain_molecule(n_atoms))
    per_round = {"literal": 1, "product": CALLS_PER_ROUND, "dense": CALLS_PER_ROUND}
    small["literal"]()
    calls["product"]()
    samples: dict[str, Any] = {form: {"wall_s": [], "cpu_s": [], "forces": None} for form in forms}
    for _ in range(rounds(n_atoms)):
        for form in forms:
            for _ in range(per_round[form]):
                wall, cpu = time.perf_counter(), time.process_time()
                samples[form]["forces"] = calls[form]()
                samples[form]["wall_s"].append(time.perf_counter() - wall)
                samples[form]["cpu_s"].append(time.process_time() - cpu)
    return samples


def rounds(n_atoms: int) -> int:
    """How often every form gets its turn: about 10 s per size, once at N = 100."""
    return max(1, min(30, 500_000 // n_atoms**3))


def peak_memory(n_atoms: int, form: str | None) -> int:
    """Peak resident memory in bytes of this process after one force call.

    Parameters
    ----------
    n_atoms
        Size of the molecule.
    form
        ``"literal"``, ``"product"``, or None for the interpreter with all libraries loaded.
    """
    if form is None:
        import mdet_reference  # noqa: F401

        from mlmd_calc import Potential  # noqa: F401
    else:
        force_calls(chain_molecule(n_atoms))[form]()
    # Not getrusage: its maximum is inherited from the process that started this one.
    return proc_bytes("self/status", "VmHWM")
