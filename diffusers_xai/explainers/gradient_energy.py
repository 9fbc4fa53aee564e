"""The energy of a gradient volume, for the price of a few backward passes."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from diffusers_xai.recording.gradients import PullBackSpec, check_finite
from diffusers_xai.recording.pull_back import pull_back
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.replay import StepReplay


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientEnergy(PullBackSpec):
    """Records how strongly the selected output pixels depend on every input pixel: √Σ_k g_k² over the pixels k.

    Estimated from random projections, by `probes` backward passes whatever the number of pixels. Arrays (step,
    sample, height, width): `gradient_energy`, and `gradient_energy_error`, its standard error. The expected relative
    error is about √(1 / (2 · probes)). `of="noise"` and `of="x0"` add the dim `branch` after `sample` under guidance.

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
        run = recording.run
        recording.expect(self, ["gradient_energy"], exclusive=True)

        def declare() -> None:
            for name, passes in (("gradient_energy", self.probes), ("gradient_energy_error", 0)):
                recording.declare(
                    self, name, run.positions, self.torch_dtype, per_branch=self.per_branch, backward_passes=passes
                )

        run.on_start(declare)
        self.on_replay(recording, lambda replay: self._keep(recording, replay))

    def _keep(self, recording: Recording, replay: StepReplay) -> None:
        positions = recording.run.positions
        pixels = torch.as_tensor(self.selected_pixels(positions)).T
        generator = torch.Generator().manual_seed(self.seed + recording.run.step)
        moments: dict[str, torch.Tensor] = {}

        def random_signs(start: int, stop: int) -> torch.Tensor:
            maps = torch.zeros(stop - start, *positions)
            signs = 2.0 * torch.randint(2, (stop - start, pixels.shape[1]), generator=generator) - 1
            maps[(slice(None), *pixels)] = signs
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
            rows = values.flatten(0, 1).to(self.torch_dtype)
            dims = recording.run.labelling.position_dims
            recording.keep(self, name, rows, dims, per_branch=self.per_branch, call=None)
