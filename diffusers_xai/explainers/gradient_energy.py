"""The energy of a gradient volume, for the price of a few backward passes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from diffusers_xai.recording.gradients import PullBackSpec, check_finite
from diffusers_xai.recording.planned import PlanContext, PlannedArray
from diffusers_xai.recording.pull_back import pull_back
from diffusers_xai.recording.replay import StepReplay


if TYPE_CHECKING:
    from diffusers_xai.recording.recording import Recording


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientEnergy(PullBackSpec):
    """Records how strongly the selected output pixels depend on every input pixel: √Σ_k g_k² over the pixels k.

    Estimated from random projections, by `probes` backward passes whatever the number of pixels. Arrays (step,
    sample, height, width): `gradient_energy`, and `gradient_energy_error`, its standard error. The expected relative
    error is about √(1 / (2 · probes)). `of="noise"` adds the dim `branch` after `sample` under guidance.

    Args:
        probes (`int`, defaults to 32): Number of random projections, at least 2.
        seed (`int`, defaults to 0): Seed of the projections.
        mask, pixels, of: See [`GradientSpec`].
        chunk_size, dtype: See [`PullBackSpec`].
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        ValueError: for values that are not possible; before sampling, for a mask or pixels that do not fit the sample.

    Source: Hutchinson 1990 (random signs); thesis eq. 4.1.2 for g_k.
    """

    probes: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes < 2:
            raise ValueError(f"Expected at least 2 `probes`, got {self.probes}.")

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Replays every selected step with a graph."""
        recording.expect(self, ["gradient_energy"], exclusive=True)
        self.on_replay(recording, stack, lambda replay: self._keep(recording, replay))

    def _keep(self, recording: Recording, replay: StepReplay) -> None:
        size = recording.run.sample_size
        rows, columns = torch.as_tensor(self.selected_pixels(size)).T
        generator = torch.Generator().manual_seed(self.seed + recording.run.step)
        moments: dict[str, torch.Tensor] = {}

        def random_signs(start: int, stop: int) -> torch.Tensor:
            maps = torch.zeros(stop - start, *size)
            maps[:, rows, columns] = 2.0 * torch.randint(2, (stop - start, len(rows)), generator=generator) - 1
            return maps

        def store(start: int, gradients: torch.Tensor, labels: torch.Tensor | None) -> None:
            check_finite("gradient_energy", gradients, gradients.dtype)
            squares = gradients.double().sum(dim=3).square()
            for name, values in (("mean", squares), ("square", squares.square())):
                moments[name] = moments.get(name, 0) + values.sum(dim=0) / self.probes

        pull_back(replay, random_signs, self.probes, store, chunk_size=self.chunk_size)
        mean = moments["mean"]
        variance = (moments["square"] - mean.square()).clamp(min=0) / (self.probes - 1)
        energy = mean.sqrt()
        error = torch.where(energy > 0, variance.sqrt() / (2 * energy), 0.0)  # of a square root, to first order
        for name, values in (("gradient_energy", energy), ("gradient_energy_error", error)):
            recording.keep(self, name, values.flatten(0, 1).to(self.torch_dtype), ("height", "width"))

    def plan(self, context: PlanContext) -> list[PlannedArray]:
        """The energy and its error."""
        steps, size = context.steps(self), context.sample_shape[1:]
        return [
            context.array(
                name, steps, size, self.torch_dtype, per_branch=self.of == "noise", backward_passes=passes * len(steps)
            )
            for name, passes in (("gradient_energy", self.probes), ("gradient_energy_error", 0))
        ]
