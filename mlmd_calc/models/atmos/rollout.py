"""One frame after another from an ATMOS network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mlmd_calc.errors import InputError, PredictionError, RefusedFramesError
from mlmd_calc.geometry.superposition import align
from mlmd_calc.models.atmos.config import SamplerConfig
from mlmd_calc.models.atmos.features import Features, Memory
from mlmd_calc.models.atmos.network import ATMOS
from mlmd_calc.models.atmos.sampler import Steer, random_steps, run_sampler, standard_normal
from mlmd_calc.models.recorder import Recorder
from mlmd_calc.wording import counted


class Rollout:
    """A network and a system, ready to draw frames of any number of trajectories at a time.

    The chemistry is embedded once. Memory and positions go in and come out, nothing is kept, so a
    frame that is not wanted costs nothing but time. After ``max_steps`` frames the memory starts
    anew from the chemistry, because training never saw longer windows.

    Parameters
    ----------
    network
        Network, in evaluation mode.
    features
        Of one system, without a batch axis.
    sampler
        Noise levels and step rule; None for those of the network.
    lag_ps
        Time between frames, for networks that are told the lag.
    steer
        What is done to the structures that the network predicts on the way to a frame; None for
        nothing.
    settle
        What is done to all frames ``(b, a, 3)`` Å that are drawn, before they are judged; None for
        nothing.
    accept
        Tells which frames ``(b, a, 3)`` Å to keep, as ``(b,)`` bool; None keeps all.
    redraws
        A frame that is not to be kept is drawn again up to this many times. What is kept is then a
        draw from the network's distribution over acceptable frames; where none is, an error is
        raised. 0 keeps every frame.

    Raises
    ------
    InputError
        If the network is told the lag and none is given.

    Examples
    --------
    >>> import torch
    >>> from mlmd_calc.biomolecules import build_system
    >>> from mlmd_calc.data.biomolecules import structure_from_smiles
    >>> from mlmd_calc.models import ATMOS, ATMOSConfig
    >>> system = build_system(structure_from_smiles("CCO"))
    >>> rollout = Rollout(ATMOS(ATMOSConfig.preset("xs")).eval(), system.features)
    >>> positions = torch.from_numpy(system.reference)[None]
    >>> memory, positions = rollout.step(rollout.start(1), positions, [torch.Generator()])
    >>> positions.shape
    torch.Size([1, 3, 3])
    """

    def __init__(
        self,
        network: ATMOS,
        features: Features,
        *,
        sampler: SamplerConfig | None = None,
        lag_ps: float | None = None,
        steer: Steer | None = None,
        settle: Callable[[Tensor], Tensor] | None = None,
        accept: Callable[[Tensor], Tensor] | None = None,
        redraws: int = 0,
    ) -> None:
        if network.config.tau == "lag" and lag_ps is None:
            raise InputError("this network is told the time between frames; give lag_ps")
        self.network = network
        self.sampler = network.config.sampler if sampler is None else sampler
        self.steer = steer
        self.settle = settle
        self.accept = accept
        self.redraws = 0 if accept is None else redraws
        self._lag_ps = lag_ps if network.config.tau == "lag" else None
        self._device = next(network.parameters()).device
        self._features = Features.stack([features]).to(self._device)
        # Forty calls for a frame.
        self._denoise = Recorder(network.diffusion_module, network.diffusion_module)
        with torch.no_grad():
            self._context = network.context(self._features)

    def start(self, count: int) -> Memory:
        """Return the memory with which ``count`` trajectories start."""
        return self.network.initial_memory(self._context.expand(count))

    def step(
        self, memory: Memory, positions: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Memory, Tensor]:
        """Draw the next frame of every trajectory.

        Parameters
        ----------
        memory
            From :meth:`start` or the step before.
        positions
            ``(b, a, 3)`` Å, the present frames.
        generators
            Source of random numbers of each trajectory. Those of one trajectory do not depend on
            how many others there are.

        Returns
        -------
        Memory
            For the next step.
        Tensor
            ``(b, a, 3)`` float64 Å on the CPU, superposed on the present frames.

        Raises
        ------
        PredictionError
            If a frame is not finite.
        RefusedFramesError
            If every draw of a frame was refused.
        """
        return self._advance(self._renewed(memory), positions, generators)

    def fill(
        self, starts: Tensor, ends: Tensor, generators: Sequence[torch.Generator]
    ) -> Iterator[Tensor]:
        """Draw the frames between pairs of frames, with an interpolator.

        Parameters
        ----------
        starts, ends
            ``(b, a, 3)`` Å, frames at both ends of the intervals.
        generators
            Source of random numbers of each interval.

        Yields
        ------
        Tensor
            ``(b, a, 3)`` float64 Å on the CPU, each superposed on the one before; ``max_remaining``
            − 1 of them.

        Raises
        ------
        InputError
            If the network is not an interpolator.
        PredictionError
            If a frame is not finite.
        RefusedFramesError
            If every draw of a frame was refused.
        """
        steps = self.network.config.max_remaining
        if not steps:
            raise InputError(
                "this network is not an interpolator (max_remaining=0) and cannot fill intervals"
            )
        memory, positions = self.start(len(starts)), starts
        for index in range(steps - 1):
            memory, positions = self._advance(
                memory, positions, generators, end=ends, remaining=steps - index
            )
            yield positions

    def _renewed(self, memory: Memory) -> Memory:
        """Start memories anew that have come to the end of their window."""
        over = memory.step >= self.network.config.max_steps
        if not over.any():
            return memory
        fresh = self.start(len(memory.step))
        return Memory(
            *(
                torch.where(over.view(-1, *[1] * (old.ndim - 1)), new, old)
                for new, old in zip(fresh, memory, strict=True)
            )
        )

    @torch.no_grad()
    def _advance(
        self,
        memory: Memory,
        positions: Tensor,
        generators: Sequence[torch.Generator],
        *,
        end: Tensor | None = None,
        remaining: int | None = None,
    ) -> tuple[Memory, Tensor]:
        count = len(positions)
        features, context = self._features.expand(count), self._context.expand(count)

        def filled(value: float | None, dtype: torch.dtype) -> Tensor | None:
            if value is None:
                return None
            return torch.full((count,), value, dtype=dtype, device=self._device)

        memory = self.network.step(
            memory,
            positions.to(self._device),
            features,
            context,
            lag=filled(self._lag_ps, memory.s.dtype),
            end=None if end is None else end.to(self._device),
            remaining=filled(remaining, torch.long),
        )
        frames = self._draw(memory, generators)
        if self.accept is not None and self.redraws:
            self._redraw(frames, memory, generators, self.accept)
        weights = torch.ones(frames.shape[:2], dtype=frames.dtype)
        return memory, align(frames, positions.double().cpu(), weights)

    def _redraw(
        self,
        frames: Tensor,
        memory: Memory,
        generators: Sequence[torch.Generator],
        accept: Callable[[Tensor], Tensor],
    ) -> None:
        """Replace frames that are not to be kept."""
        rows = list(range(len(frames)))
        for left in range(self.redraws, -1, -1):
            refused: list[int] = (~accept(frames[rows])).nonzero()[:, 0].tolist()
            rows = [rows[index] for index in refused]
            if not rows:
                return
            if left:
                again = Memory(*(part[rows] for part in memory))
                frames[rows] = self._draw(again, [generators[row] for row in rows])
        raise RefusedFramesError(
            f"a frame was drawn {counted(self.redraws + 1, 'time')}, and refused every time"
        )

    def _draw(self, memory: Memory, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw ``(b, a, 3)`` float64 Å on the CPU in arbitrary poses."""
        count = len(generators)
        features, context = self._features.expand(count), self._context.expand(count)
        conditioning = self.network.conditioning(memory, features, context)
        shape = (1, 1, features.n_atoms, 3)
        spread = self.network.config.pose_translation
        with torch.inference_mode():
            drawn = run_sampler(
                self._denoise.ending_with(conditioning),
                standard_normal(shape, generators, memory.s),
                random_steps(shape, spread, generators, memory.s),
                features.atom_mask,
                self.sampler,
                self.network.config.sigma_data,
                self.steer,
            )
        frames = drawn[:, 0].to("cpu", torch.float64, copy=True)
        if not bool(frames.isfinite().all()):
            raise PredictionError("the network has drawn a frame that is not finite")
        return frames if self.settle is None else self.settle(frames)
