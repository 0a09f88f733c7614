"""MD-ET as a TorchScript module in OpenMM's units, for ``openmmtorch.TorchForce``.

The module needs no Python where it runs. The molecule is fixed, so the network is recorded for it:
energy and gradient become one list of plain operations, in which everything that does not depend on
the positions is computed beforehand. The steps around the network (region, orientations, checks,
projection, units) are those of :class:`mlmd_calc.Potential`, written in TorchScript.
"""

from __future__ import annotations

import io
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from mlmd_calc import __version__, units
from mlmd_calc.errors import ConfigError, PredictionError
from mlmd_calc.geometry.rotations import counted_rotations
from mlmd_calc.io.files import replacing
from mlmd_calc.models.mdet.edge_attention import edge_attention_streamed
from mlmd_calc.models.operations import trace
from mlmd_calc.potential import Potential
from mlmd_calc.potential.padding import PaddedBatch
from mlmd_calc.potential.results import _ABSURD_FORCE
from openmm_bridge.computation import FORCE_UNIT, MDETComputation
from openmm_bridge.region import BONDS, Region

METADATA: Final = "mlmd.json"
"""Name of the extra file, inside an exported file, that says what was exported."""

_PARITY: Final = {"float64": 1e-9, "float32": 1e-4, "mixed": 1e-4}
"""Largest difference of module and potential, relative to the largest force."""


def torchscript_module(potential: Potential, region: Region) -> torch.jit.ScriptModule:
    """Compile a potential on a region.

    The module is called as ``module(positions)`` or, if the region is periodic, as
    ``module(positions, box)``, with the positions ``(system_size, 3)`` of all particles and the box
    vectors ``(3, 3)`` in nm, in single or double precision. A last argument may hold the parameter
    of :mod:`openmm_bridge.orientations`. It returns the energy in kJ/mol (0 for
    a model without energy) and the forces ``(system_size, 3)`` in kJ/mol/nm, in the precision of
    the positions, contiguous, zero outside the region. That is what ``openmmtorch.TorchForce``
    expects after ``setOutputsForces(True)``. Impossible geometries and absurd forces raise an error
    with the index of the particle and the number of the evaluation.

    With ``rotation="random"`` the module has a copy of the stream of orientations of the
    potential, which is saved with it: call by call it gives what the potential would give.
    TorchForce works on a copy of the module, so the stream begins anew in every Context;
    :mod:`openmm_bridge.orientations` continues it.

    The module is not frozen, because that would tie it to a device; TorchForce freezes it itself.
    Before it is returned, its serialised form is compared with the potential.

    Parameters
    ----------
    potential
        Model and options. It is not changed.
    region
        Atoms it is applied to.

    Raises
    ------
    ConfigError
        If the spread of the forces is to be watched, which needs Python.
    InputError
        If the model cannot be applied to these atoms.
    PredictionError
        If the module does not agree with the potential.

    Examples
    --------
    >>> from openmm_bridge.export import torchscript_module
    >>> module = torchscript_module(potential, region)  # doctest: +SKIP
    >>> force = openmmtorch.TorchForce(module)  # doctest: +SKIP
    >>> force.setOutputsForces(True)  # doctest: +SKIP
    """
    region.check(potential.model.card)
    if potential.spread_limit is not None:
        raise ConfigError(
            f"on_spread={potential.spread_limit.action!r} is not possible in TorchScript, which "
            "can neither warn nor ask again; use backend='python', or leave out on_spread and "
            "max_spread"
        )
    # Independent of the mode the caller is in, as in Potential.
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        content = io.BytesIO()
        scripted = _script(_ForceModule(potential, region))
        # Where a frozen module outlives its original, as in TorchForce, an error inside a function
        # that freezing has inlined kills the process. So leave nothing to inline.
        torch._C._jit_pass_inline(scripted.graph)
        torch.jit.save(scripted, content)
        content.seek(0)
        module: torch.jit.ScriptModule = torch.jit.load(content)
        _check_parity(module, potential, region)
    return module


def export_module(potential: Potential, region: Region, path: str | os.PathLike[str]) -> None:
    """Write :func:`torchscript_module` to a file for ``openmmtorch.TorchForce(path)``.

    A program without Python can use the file. It also holds a description of what was exported; see
    :func:`read_metadata`.

    Parameters
    ----------
    potential, region
        As for :func:`torchscript_module`.
    path
        File to write, usually ``*.pt``.

    Raises
    ------
    InputError, PredictionError
        As for :func:`torchscript_module`.
    """
    module = torchscript_module(potential, region)
    with replacing(Path(path)) as temporary:
        torch.jit.save(module, os.fspath(temporary), _extra_files={METADATA: module.description})


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what an exported file says about itself: model, options, atoms and versions."""
    extra = {METADATA: ""}
    torch.jit.load(os.fspath(path), map_location="cpu", _extra_files=extra)
    description: dict[str, Any] = json.loads(extra[METADATA])
    return description


def _metadata(potential: Potential, region: Region) -> dict[str, Any]:
    model = potential.model
    return {
        "model": model.card.name,
        "source": model.source,
        "sha256": model.sha256,
        "options": potential.options,
        "region": region.to_dict(),
        "versions": {"mlmd": __version__, "torch": str(torch.__version__)},
    }


def _check_parity(module: torch.jit.ScriptModule, potential: Potential, region: Region) -> None:
    """Compare a module with the potential it was made from, for a scattered region.

    Raises
    ------
    PredictionError
        If they do not agree.
    """
    fixed = Potential(
        potential.model,
        device="cpu",
        dtype=potential.dtype,
        forces=potential.forces,
        rotation="none" if potential.n_rotations == 1 else "average",
        n_rotations=potential.n_rotations,
        remove_net_force=potential.remove_net_force,
        remove_net_torque=potential.remove_net_torque,
    )
    computation = MDETComputation(fixed, region)
    limit = _PARITY[potential.dtype]
    module.random = False
    for seed in range(2):
        positions, box = _scattered(region, seed)
        expected_energy, expected = computation.evaluate(positions, box)
        energy, forces = module(*(torch.from_numpy(x) for x in (positions, box) if x is not None))
        error = np.abs(forces.numpy() - expected).max() / (np.abs(expected).max() + 1.0)
        energy_error = abs(float(energy) - expected_energy) / (abs(expected_energy) + 1.0)
        # NaN compares false, so test for what is allowed.
        if not (error <= limit and energy_error <= limit):
            raise PredictionError(
                f"the TorchScript module differs from the potential by {error:.1g} of the largest "
                f"force and {energy_error:.1g} of the energy; use backend='python' and report this "
                f"with the version of torch ({torch.__version__})"
            )
    module.random = potential.rotation == "random"
    module.calls.fill_(potential.orientations.calls)


def _scattered(region: Region, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Positions in nm near a grid and, if the region is periodic, in any images of a box.

    The atoms of the region are neighbours, as those of a molecule are.
    """
    generator = np.random.default_rng(seed)
    side = math.ceil(region.system_size ** (1 / 3))
    grid = np.stack(np.unravel_index(np.arange(region.system_size), (side,) * 3), axis=1)
    others = np.setdiff1d(np.arange(region.system_size), region.particles)
    grid[np.concatenate([region.particles, others])] = grid.copy()
    positions = 0.15 * grid + generator.uniform(-0.02, 0.02, grid.shape)
    if not region.periodic:
        return positions, None
    box = (0.15 * side + 1.0) * np.array([[1.0, 0.0, 0.0], [0.2, 1.0, 0.0], [-0.3, 0.4, 1.0]])
    return positions + generator.integers(-2, 3, grid.shape) @ box, box


# ---- the module around the network ----------------------------------------------------------


class _ForceModule(nn.Module):
    """What TorchForce calls; see :func:`torchscript_module`. TorchScript from ``forward`` on."""

    def __init__(self, potential: Potential, region: Region) -> None:
        super().__init__()
        # No more orientations in one call of the network than the potential would take.
        k, most = potential.n_rotations, potential.copies_per_call(len(region))
        self.copies = max(c for c in range(1, k + 1) if k % c == 0 and c <= most)
        self.network = _recorded_network(potential, region, self.copies)
        self.particles = nn.Buffer(torch.tensor(region.particles))
        self.parents = nn.Buffer(torch.tensor(region.parents))
        self.lineage = nn.Buffer(torch.tensor(region.lineage()))
        self.rotations = nn.Buffer(potential.orientations.fixed.clone())
        self.seed = nn.Buffer(torch.tensor(potential.orientations.seed))
        self.calls = nn.Buffer(torch.tensor(potential.orientations.calls))
        self.known = nn.Buffer(torch.tensor(potential.orientations.calls))
        self.random = potential.rotation == "random"
        self.remove_net_force = potential.remove_net_force
        self.remove_net_torque = potential.remove_net_torque
        isolated = region.structure(np.zeros((len(region), 3)))
        self.reference_energy = float(potential.reference_energy(isolated))
        self.system_size = region.system_size
        self.periodic = region.periodic
        self.description = json.dumps(_metadata(potential, region))
        # TorchScript sees no globals.
        self.nm = float(units.NM)
        self.energy_unit = float(1.0 / units.KJ_PER_MOL)
        self.force_unit = float(FORCE_UNIT)
        shortest = potential.coverage.shortest(region.numbers)
        self.shortest = nn.Buffer(torch.tensor(shortest))
        self.gap = float(potential.coverage.gap)
        self.absurd_force = _ABSURD_FORCE
        self.nearest, self.farthest = BONDS

    def forward(
        self, positions: Tensor, box: Tensor | None = None, calls: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Energy in kJ/mol and forces in kJ/mol/nm; see :func:`torchscript_module`."""
        if box is not None and box.dim() == 0:
            # TorchForce leaves no gap where a System has no box.
            box, calls = None, box
        if calls is not None and self.only_count(calls):
            return self.calls.to(torch.float64), torch.zeros_like(positions)
        return self.evaluate(positions, box)

    def only_count(self, calls: Tensor) -> bool:
        """Do what the parameter of :mod:`openmm_bridge.orientations` says, save evaluating."""
        value = int(calls)
        number = value if value >= 0 else -1 - value
        if number != int(self.known):
            self.calls.fill_(number)
            self.known.fill_(number)
        return value < 0

    def evaluate(self, positions: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor]:
        """Count the call and compute."""
        # Not positions.detach(): torch.jit.freeze removes it.
        with torch.no_grad():
            self.calls.add_(1)
            own = self.molecule(positions, box)
            self.check_geometry(own)
            centred = own - own.mean(dim=0)
            turn = torch.eye(3, dtype=own.dtype, device=own.device)
            if self.random:
                turn = counted_rotations(self.seed, self.calls[None])[0]
            energy, forces = self.average(centred, self.rotations @ turn)
            if self.remove_net_force:
                forces = forces - forces.mean(dim=0)
            if self.remove_net_torque:
                forces = remove_net_torque(forces, own)
            # TorchForce reads the memory as it is, so this must be contiguous.
            everything = forces.new_zeros((self.system_size, 3))
            everything.index_copy_(0, self.particles, forces * self.force_unit)
            return (energy + self.reference_energy) * self.energy_unit, everything.to(positions)

    def molecule(self, positions: Tensor, box: Tensor | None) -> Tensor:
        """Whole molecule ``(n, 3)`` in Å, double precision, from all particles in nm."""
        if len(positions) != self.system_size:
            raise ValueError(
                f"the System has {len(positions)} particles, but the MD-ET module was made for "
                f"{self.system_size}; make it from the System's topology"
            )
        own = positions.to(self.lineage)[self.particles]
        if self.periodic:
            if box is None:
                raise ValueError(
                    "the MD-ET module was made for a periodic System and needs the box vectors; "
                    "call setUsesPeriodicBoundaryConditions(True) on the force"
                )
            own = make_whole(own, box.to(self.lineage), self.parents, self.lineage)
        elif box is not None:
            raise ValueError(
                "the MD-ET module was made for a molecule without a box; "
                "call setUsesPeriodicBoundaryConditions(False) on the force"
            )
        return own * self.nm

    def check_geometry(self, own: Tensor) -> None:
        """Refuse positions that are not finite and distances beyond what the model knows."""
        wrong = torch.nonzero(~torch.isfinite(own).all(dim=1))
        if len(wrong) > 0:
            atom = int(wrong[0])
            values: list[float] = (own[atom] / self.nm).tolist()
            raise ValueError(
                f"MD-ET force evaluation {int(self.calls)}: particle {int(self.particles[atom])} "
                f"has position {values} nm. The simulation has exploded: restart from an earlier "
                "frame with a shorter time step"
            )
        square = (own[:, None] - own[None]).square().sum(dim=-1)
        close = torch.nonzero(square < self.shortest.square())
        if len(close) > 0:
            i, j = int(close[0, 0]), int(close[0, 1])
            raise ValueError(
                f"MD-ET force evaluation {int(self.calls)}: particles {int(self.particles[i])} and "
                f"{int(self.particles[j])} are {float(square[i, j].sqrt())} Å apart; the model "
                f"knows nothing of distances below {float(self.shortest[i, j])} Å between these "
                "elements. Restart from an earlier frame with a shorter time step"
            )
        others = square.clone().fill_diagonal_(math.inf)
        usual = float(others.min(dim=0)[0].median().sqrt()) / self.nm
        if len(own) > 1 and (usual < self.nearest or usual > self.farthest):
            raise ValueError(
                f"MD-ET force evaluation {int(self.calls)}: most atoms are {usual} nm from the one "
                "next to them, and bonds are 0.07 to 0.3 nm long; positions in OpenMM are in nm"
            )
        if not bool(self.connected(square <= self.gap**2).all()):
            raise ValueError(
                f"MD-ET force evaluation {int(self.calls)}: the molecule is in parts that are more "
                f"than {self.gap} Å apart, of which the model knows nothing. Restart from an "
                "earlier frame with a shorter time step"
            )

    def connected(self, near: Tensor) -> Tensor:
        """Atoms ``(n,)`` that steps between near atoms connect to the first one."""
        part = near[0]
        for _ in range(len(near)):
            grown = near[part].any(dim=0)
            if bool((grown == part).all()):
                break
            part = grown
        return part

    def average(self, centred: Tensor, orientations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean energy in eV and forces ``(n, 3)`` in eV/Å over orientations."""
        energy = centred.new_zeros(())
        total = torch.zeros_like(centred)
        for rotations in orientations.split(self.copies):
            energies, forces = self.network(centred @ rotations)
            self.check_prediction(energies, forces)
            energy = energy + energies.sum()
            total = total + (forces @ rotations.mT).sum(dim=0)
        return energy / len(orientations), total / len(orientations)

    def check_prediction(self, energies: Tensor, forces: Tensor) -> None:
        """Refuse non-finite energies and non-finite or absurd forces."""
        # NaN compares false, so test for what is allowed.
        wrong = torch.nonzero(~(forces.abs().amax(dim=-1) <= self.absurd_force))
        if len(wrong) > 0:
            orientation, atom = int(wrong[0, 0]), int(wrong[0, 1])
            values: list[float] = forces[orientation, atom].tolist()
            raise ValueError(
                f"MD-ET force evaluation {int(self.calls)}: the model returned force {values} eV/Å "
                f"on particle {int(self.particles[atom])}; components beyond {self.absurd_force} "
                "are absurd. The geometry is probably far from anything the model was trained on"
            )
        if not bool(torch.isfinite(energies).all()):
            raise ValueError(
                f"MD-ET force evaluation {int(self.calls)}: the model returned an energy that is "
                "not a finite number"
            )


def make_whole(positions: Tensor, box: Tensor, parents: Tensor, lineage: Tensor) -> Tensor:
    """Do in TorchScript what :func:`openmm_bridge.region.make_whole` does."""
    steps = positions - positions[parents]
    moved = False
    for axis in (2, 1, 0):
        turns = torch.round(steps[:, axis] / box[axis, axis])
        moved = moved or bool(turns.any())
        steps = steps - turns[:, None] * box[axis]
    return positions[0] + lineage @ steps if moved else positions


def remove_net_torque(forces: Tensor, positions: Tensor) -> Tensor:
    """Do in TorchScript what :func:`mlmd_calc.potential.projections.remove_net_torque` does."""
    r = positions - positions[0]
    r = r - r.mean(dim=0)
    axes = torch.eye(3, dtype=r.dtype, device=r.device)
    fields = torch.linalg.cross(axes[:, None], r[None]).reshape(3, -1).mT
    basis, sizes, _ = torch.linalg.svd(fields, full_matrices=False)
    rounding = 8.0 * 2.0**-52 * torch.linalg.norm(positions)
    basis = basis * (sizes > rounding)
    projected: Tensor = forces - (basis @ (basis.mT @ forces.reshape(-1))).reshape(-1, 3)
    return projected


# ---- the network as a list of operations ----------------------------------------------------


def _recorded_network(potential: Potential, region: Region, copies: int) -> torch.jit.ScriptModule:
    """Compile the network for a molecule.

    Returns
    -------
    ScriptModule
        Maps orientations ``(copies, n, 3)`` in Å, double precision, to energies ``(copies,)`` in eV
        and forces ``(copies, n, 3)`` in eV/Å.
    """
    prediction = potential.prediction
    network = prediction.network_as_loaded().cpu()
    numbers = torch.tensor(region.numbers).expand(copies, -1)
    charge, multiplicity = (torch.full((copies,), n) for n in (region.charge, region.multiplicity))

    def evaluate(positions: Tensor) -> tuple[Tensor, Tensor]:
        batch = PaddedBatch(positions, numbers, None, charge, multiplicity)
        out = prediction.results(network, batch, potential.has_energy, True, _edge_attention)
        return out.get("energy", positions.new_zeros(copies)), out["forces"]

    example = torch.randn(
        copies, len(region), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        return _script(_for_torchscript(trace(evaluate, example)))


def _for_torchscript(recorded: fx.GraphModule) -> fx.GraphModule:
    """Compute what is constant, and name the operations as TorchScript does.

    Constants become buffers, which move with the module; the record would make them on the device
    of the recording at every call.
    """
    graph = recorded.graph
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            known[node] = getattr(recorded, str(node.target))
        elif node.op == "call_function" and known.keys() >= set(node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    outputs = [n for n in known if any(user not in known for user in n.users)]
    for i, node in enumerate(outputs):
        recorded.register_buffer(f"constant{i}", known[node].detach())
        with graph.inserting_before(node):
            constant = graph.get_attr(f"constant{i}")
        node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in known)
    graph.eliminate_dead_code()
    # TorchScript finds the type of the result by itself, and cannot read fx's way of writing it.
    graph.output_node().type = None
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = _SCRIPTED.get(node.target, node.target.overloadpacket)
    return fx.GraphModule(recorded, graph)


def _edge_attention(
    query: Tensor, key: Tensor, value1: Tensor, value2: Tensor, bias: Tensor | None
) -> Tensor:
    """Streamed edge attention whose loops stay loops when they are recorded.

    Unrolled, they would be some hundred operations per layer and atom.
    """
    return edge_attention_streamed(query, key, value1, value2, bias, _PRODUCT)


def streamed_product(weights: Tensor, value1: Tensor, value2: Tensor) -> Tensor:
    """``o_gicj = sum over l of w_lgij v_lgic v'_lgcj``, in TorchScript."""
    out = weights.new_zeros(value1.shape[1], value1.shape[2], value1.shape[3], weights.shape[3])
    product = torch.empty_like(out)
    for i in range(len(weights)):
        torch.mul(value1[i, :, :, :, None], value2[i, :, None], out=product)
        out.addcmul_(product, weights[i, :, :, None])
    return out


def streamed_product_gradients(
    weights: Tensor, value1: Tensor, value2: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`streamed_product`, in TorchScript."""
    # Not a tuple that is filled: torch.jit.save would write one that is made anew at each use.
    dw, dv1, dv2 = torch.empty_like(weights), torch.empty_like(value1), torch.empty_like(value2)
    weighted, product = torch.empty_like(grad), torch.empty_like(grad)
    for i in range(len(weights)):
        v1, v2 = value1[i, :, :, :, None], value2[i, :, None]
        torch.mul(grad, weights[i, :, :, None], out=weighted)
        torch.mul(weighted, v2, out=product)
        torch.sum(product, -1, out=dv1[i])
        torch.mul(weighted, v1, out=product)
        torch.sum(product, 1, out=dv2[i])
        torch.mul(grad, v2, out=product)
        torch.matmul(value1[i, :, :, None], product, out=dw[i, :, :, None])
    return dw, dv1, dv2


# As operations of their own these are recorded as one step each.
_PRODUCT: Final = torch.library.custom_op(
    "mlmd::streamed_product", streamed_product, mutates_args=()
)
_GRADIENTS: Final = torch.library.custom_op(
    "mlmd::streamed_product_gradients", streamed_product_gradients, mutates_args=()
)
_PRODUCT.register_autograd(
    lambda ctx, grad: _GRADIENTS(*ctx.saved_tensors, grad),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
_SCRIPTED: Final = {
    torch.ops.mlmd.streamed_product.default: streamed_product,
    torch.ops.mlmd.streamed_product_gradients.default: streamed_product_gradients,
}


def _script(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # About an annotation in the constructor of fx.GraphModule.
        warnings.filterwarnings("ignore", "The TorchScript type system", UserWarning)
        return cast(torch.jit.ScriptModule, torch.jit.script(module.eval()))
