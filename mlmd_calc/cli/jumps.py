"""Jumps in `mlmd run`: which propagator, over which stride."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import typer

from mlmd_calc.biomolecules.reader import structure_from_pdb
from mlmd_calc.cli.given import is_given
from mlmd_calc.errors import ConfigError
from mlmd_calc.md.settings import Engine, JumpSettings
from mlmd_calc.potential import Potential
from mlmd_calc.propagation import Propagator, VerletPropagator
from mlmd_calc.propagation.load import load_propagator
from mlmd_calc.zoo import ATMOSModel, ATOMModel, load_any_model

VERLET: Final = "verlet"
"""Name of the reference: jumps made of force-based steps."""

_COUNTS: Final = {
    "steps_per_jump": "md_steps_per_jump",
    "frames_per_jump": "frames_per_jump",
    "replicas": "replicas",
}
"""Option to the name of the setting."""


@dataclass(frozen=True)
class PropagatorChoice:
    """A propagator that was named, before it is made.

    Attributes
    ----------
    source
        What must be given to load it again.
    recommended
        What its card recommends.
    takes_forces
        Whether it needs a force model.
    of_one_molecule
        Whether it is made for one molecule, whose structure it needs to know.
    """

    source: str
    recommended: Mapping[str, Any]
    takes_forces: bool
    of_one_molecule: bool = False

    def make(
        self,
        potential: Potential,
        timestep_fs: float,
        device: str,
        pdb: str = "",
        beyond_training: bool = False,
    ) -> Propagator:
        """Make the propagator.

        Parameters
        ----------
        potential
            Force model of propagators that need one.
        timestep_fs
            Length of the force-based steps of "verlet".
        device
            Of the network.
        pdb
            The molecule as PDB records, for propagators that are made for one.
        beyond_training
            Whether the molecule may be unlike those the propagator was trained on.

        Raises
        ------
        ConfigError
            If the name stands for something else than a propagator, or of molecules beyond the
            training of one that knows no such thing.
        InputError
            If the molecule is beyond the training.
        """
        if beyond_training and not self.of_one_molecule:
            raise ConfigError(
                f"--beyond-training is an option of ATMOS models, and {self.source!r} is not one"
            )
        if self.source == VERLET:
            return VerletPropagator(potential, timestep_fs)
        return load_propagator(
            self.source,
            structure=structure_from_pdb(pdb) if pdb else None,
            device=device,
            potential=potential if self.takes_forces else None,
            beyond_training=beyond_training,
        )


def choose_propagator(name: str) -> PropagatorChoice:
    """Find a propagator by name.

    Parameters
    ----------
    name
        "verlet", the name of a shipped propagator, or a ``.safetensors`` file.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name == VERLET:
        return PropagatorChoice(VERLET, {}, takes_forces=True)
    model = load_any_model(name, device="cpu")
    return PropagatorChoice(
        model.source,
        model.card.recommended,
        takes_forces=isinstance(model, ATOMModel) and model.network.config.accelerations,
        of_one_molecule=isinstance(model, ATMOSModel),
    )


def check_jump_options(context: typer.Context) -> None:
    """Refuse options that make no sense together.

    Raises
    ------
    ConfigError
        If options of jumps are given without a propagator, or replicas with OpenMM.
    """
    given = context.params
    for name in (*_COUNTS, "jump", "beyond_training"):
        if given["propagator"] is None and is_given(context, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} is an option of runs made of jumps; give --propagator "
                "with it"
            )
    engine = Engine(given["engine"])
    if given["replicas"] is not None and engine is not Engine.ASE:
        raise ConfigError(
            f"--replicas {given['replicas']} with --engine {engine.value}, which moves one "
            "molecule; replicas advance together with --engine ase"
        )


def jump_settings(
    context: typer.Context, choice: PropagatorChoice, propagator: Propagator
) -> JumpSettings:
    """Fill in the defaults of options that were not given.

    Raises
    ------
    ConfigError
        If a value is not allowed, or no stride is given and none recommended.
    """
    given = context.params
    stride = propagator.usual_stride_fs() if given["jump"] is None else given["jump"]
    counts = {own: given[name] for name, own in _COUNTS.items() if given[name] is not None}
    return JumpSettings(choice.source, stride, **counts)
