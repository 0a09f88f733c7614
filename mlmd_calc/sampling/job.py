"""What `mlmd sample` is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from mlmd_calc.errors import ConfigError
from mlmd_calc.options import check_at_least, check_count, one_of
from mlmd_calc.sampling.rollouts import REDRAWS, SamplerOptions
from mlmd_calc.sampling.trajectory_file import FORMATS


@dataclass(frozen=True)
class SamplingJob:
    """What to sample.

    Attributes
    ----------
    input
        What the user called the molecule.
    model, interpolator
        Names or files of ATMOS models; without interpolator no frames between keyframes.
    frames
        Frames of each trajectory after the start; with an interpolator a multiple of its steps.
    replicas
        Number of trajectories.
    stride_ps
        Time between frames of ``model``, if it was trained on several.
    sampler
        "sde" or "ode"; None for that of the models.
    steps
        Denoiser calls per frame; None for those of the models.
    noise_scale, step_scale
        Factors on noise and steps of the sampler; None for those of the models.
    steer
        Put bonds, angles, hands and contacts right while a frame is drawn, see
        :class:`~mlmd_calc.biomolecules.steering.Steering`.
    redraws
        How often a frame that a :class:`~mlmd_calc.sampling.quality.FrameGuard` refuses is drawn
        again before the run ends; 0 keeps every frame.
    seed
        Seed of all random numbers.
    format
        Suffix of the trajectory files.
    hydrogens
        Write hydrogens, as far as the start has them, and not only heavy atoms.
    keyframes_per_checkpoint
        Keyframes after which everything is written; the intervals between them are filled at once.
    device, dtype
        Of the networks.
    ligands
        SMILES by residue name.
    beyond_training
        Sample molecules, too, that are not like those the models were trained on.
    relax
        Force model that relaxes every frame before the next is drawn: a name that ``make_forces``
        of :class:`~mlmd_calc.sampling.SamplingRun` knows. None for frames as they are drawn.
    reference_ps
        Length of the run of dynamics at the start, whose energies those of relaxed frames are
        compared with.

    Raises
    ------
    ConfigError
        If a value is not allowed.
    """

    input: str
    model: str
    interpolator: str | None = None
    frames: int = 100
    replicas: int = 1
    stride_ps: float | None = None
    sampler: str | None = None
    steps: int | None = None
    noise_scale: float | None = None
    step_scale: float | None = None
    steer: bool = True
    redraws: int = REDRAWS
    seed: int = 0
    format: str = "xtc"
    hydrogens: bool = True
    keyframes_per_checkpoint: int = 10
    device: str = "auto"
    dtype: str = "float32"
    ligands: dict[str, str] | None = None
    beyond_training: bool = False
    relax: str | None = None
    reference_ps: float = 5.0

    def __post_init__(self) -> None:
        one_of("format", self.format, FORMATS)
        check_at_least(self, 1, "frames", "keyframes_per_checkpoint")
        check_at_least(self, 0, "redraws")
        check_count(self, "replicas")
        if self.relax is not None and self.interpolator is not None:
            raise ConfigError(
                f"relax={self.relax!r} with an interpolator; frames between keyframes are not fed "
                "back to the model and cannot be relaxed. Leave one of them out"
            )
        self.sampler_options()

    def sampler_options(self) -> SamplerOptions:
        """Return what of the samplers of the models is changed."""
        return SamplerOptions(
            self.sampler, self.steps, self.noise_scale, self.step_scale, self.steer
        )
