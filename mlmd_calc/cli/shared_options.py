"""Options of more than one command: the molecule, the model, how ATMOS draws, and the run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Smiles: TypeAlias = Annotated[bool, typer.Option("--smiles", help="MOLECULE is a SMILES.")]
Charge: TypeAlias = Annotated[int | None, typer.Option(help="Total charge in e.")]
Multiplicity: TypeAlias = Annotated[int | None, typer.Option(help="Spin multiplicity, 2S + 1.")]
Vacuum: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--vacuum", help="Leave out the periodic cell of the file; the molecule must be whole."
    ),
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Shipped name, file, run directory or hf://owner/repo. Default: the "
        "default shipped model.",
    ),
]
Forces: TypeAlias = Annotated[
    str | None, typer.Option(help="direct or conservative. Default: what the model recommends.")
]
Rotation: TypeAlias = Annotated[
    str | None, typer.Option(help="random, average or none. Default: what the model recommends.")
]
NRotations: TypeAlias = Annotated[
    int | None,
    typer.Option("--n-rotations", help="Orientations per force call. Default: as recommended."),
]
Dtype: TypeAlias = Annotated[
    str | None, typer.Option(help="float64, float32 or mixed. Default: as recommended.")
]
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Beyond: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--beyond-training",
        help="Go on with molecules, too, that are not like those the ATMOS model was trained on.",
    ),
]
DrawnSeed: TypeAlias = Annotated[
    int | None, typer.Option(min=0, help="Seed of all random numbers. Default: drawn and recorded.")
]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
Stride: TypeAlias = Annotated[
    float | None,
    typer.Option("--stride", help="ps between the frames of --model, if it knows several."),
]
Sampler: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="sde: with noise in every step. ode: without, and worse in published tests. Default: "
        "what the model was made with."
    ),
]
Steps: TypeAlias = Annotated[
    int | None,
    typer.Option("--steps", help="Denoiser calls per frame. Default: that of the model."),
]
NoiseScale: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--noise-scale",
        help="Factor on the sampler's noise: higher is faster and refused more often. Default: "
        "what the model's card recommends for the length of the molecule.",
    ),
]
StepScale: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--step-scale",
        help="Factor on the sampler's steps: 1 as in theory, above structures spread less. "
        "Default: what the model's card recommends for the length of the molecule.",
    ),
]
Steer: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--steer/--no-steer",
        help="Put bonds, angles, mirror images and clashes right while a frame is drawn, in what "
        "the network predicts from the last Ångström of noise.",
    ),
]
Format: TypeAlias = Annotated[
    str, typer.Option("--format", "-f", help="Trajectory files: xtc, dcd, extxyz or pdb.")
]
