"""`mlmd export`: write a model for programs that do not know this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlmd_calc.cli import shared_options as shared
from mlmd_calc.errors import ConfigError
from mlmd_calc.optional import require


def export(
    molecule: Annotated[
        str, typer.Argument(metavar="MOLECULE", help="Molecule, named as for `mlmd run`.")
    ],
    openmm: Annotated[
        Path,
        typer.Option(
            help="TorchScript file to write, for openmmtorch.TorchForce: positions in nm to energy "
            "in kJ/mol and forces in kJ/mol/nm."
        ),
    ],
    smiles: shared.Smiles = False,
    charge: shared.Charge = None,
    multiplicity: shared.Multiplicity = None,
    vacuum: shared.Vacuum = False,
    model: shared.Model = None,
    forces: shared.Forces = None,
    rotation: shared.Rotation = None,
    n_rotations: shared.NRotations = None,
    dtype: shared.Dtype = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the random orientations.")
    ] = None,
) -> None:
    """Write the model for one molecule as a file that OpenMM can use without Python.

    It is made for the atoms of this molecule in this order, and checked before.
    """
    require("openmm", extra="openmm", why="export for OpenMM")
    from mlmd_calc.cli.structure_input import is_file, load_structure
    from mlmd_calc.potential import Potential, structure_from_ase
    from openmm_bridge.export import export_module
    from openmm_bridge.region import region_from_structure

    if openmm.is_dir() or not openmm.parent.is_dir():
        raise ConfigError(f"--openmm {openmm}; give a file in a folder that is there")
    if is_file(molecule) and openmm.exists() and openmm.samefile(molecule):
        raise ConfigError(f"--openmm {openmm} would replace MOLECULE; give another file")
    atoms = load_structure(
        molecule,
        smiles=smiles,
        charge=charge,
        multiplicity=multiplicity,
        seed=seed or 0,
        vacuum=vacuum,
        report=lambda note: typer.echo(note, err=True),
    )
    potential = Potential(
        model,
        device="cpu",
        dtype=dtype or "float64",
        forces=forces,
        rotation=rotation,
        n_rotations=n_rotations,
        seed=seed,
    )
    export_module(potential, region_from_structure(structure_from_ase(atoms)), openmm)
    typer.echo(
        f"{openmm}: {potential.model.card.name} for {atoms.get_chemical_formula()}, "
        f"{potential.forces} forces, rotation {potential.rotation!r}, {potential.dtype}. Load it "
        f"with openmmtorch.TorchForce({str(openmm)!r}) and setOutputsForces(True)"
    )
