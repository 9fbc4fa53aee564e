"""Pixel-wise gradient volumes, their energy, and the label sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffusers_xai.explainers.gradient_base import GradientSpec, check_finite
from diffusers_xai.explainers.planned import PlanContext, PlannedArray
from diffusers_xai.explainers.pullback import pull_back
from diffusers_xai.explainers.replay import StepReplay


if TYPE_CHECKING:
    from diffusers_xai.explainers.recording import Recording


_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientVolume(GradientSpec):
    """Records how every selected output pixel depends on every input pixel (thesis eq. 4.1.2, alg. 4, listing C.3).

    With `estimate=None`, exactly, by one backward pass per selected pixel k. Arrays:

    - `gradient_volume` (step, sample, pixel, height, width): ∂(Σ_rgb y_k)/∂x with the input's colours summed; the
      coordinates `row` and `column` on `pixel` say where k lies. `channels="separate"` keeps the input's colours:
      (step, sample, pixel, channel, height, width).
    - `label_sensitivity` (step, sample, pixel, channel, height, width), of conditional models: ∂(Σ_rgb y_k)/∂(label
      channels); its sum over height and width is the derivative by the label itself. Under guidance, of the label and
      not of the null label. Where the condition is an embedding: (step, sample, pixel, channel).

    With `estimate="energy"`, by `probes` backward passes whatever the number of pixels K. Arrays (step, sample,
    height, width): `gradient_energy`, an estimate of √Σ_k g_k² for every input pixel, and `gradient_energy_error`,
    its standard error. The expected relative error is about √(1 / (2 · probes)).

    `of="noise"` adds the dim `branch` after `sample` under guidance.

    Args:
        mask (array of shape `(height, width)`, bool, or a PNG file's path, *optional*): The selected output pixels;
            all if neither it nor `pixels` is given.
        pixels (sequence of `(row, column)`, *optional*): The selected output pixels one by one.
        of (`str`, defaults to `"step"`): See [`GradientSpec`].
        channels (`str`, defaults to `"sum"`): `"sum"` or `"separate"`.
        estimate (`str`, *optional*): `None` for the exact volume, `"energy"` for its energy by random projections.
        probes (`int`, defaults to 32): Random projections of the estimate.
        seed (`int`, defaults to 0): Seed of the projections.
        chunk_size (`int` or `"auto"`): Pixels per backward pass, see `pull_back`.
        dtype (`str`, defaults to `"float32"`): In which gradients are stored: `"float16"`, `"float32"`, `"float64"`.
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        ValueError: for values that are not possible; before sampling, for a mask or pixels that do not fit the sample.
    """

    pixels: Sequence[tuple[int, int]] | None = None
    channels: str = "sum"
    estimate: str | None = None
    probes: int = 32
    seed: int = 0
    chunk_size: int | str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is not None and self.pixels is not None:
            raise ValueError("Expected one of `mask` and `pixels`, got both.")
        if self.pixels is not None:
            pixels = np.atleast_2d(np.asarray(self.pixels))
            if pixels.ndim != 2 or pixels.shape[1] != 2 or not len(pixels) or pixels.dtype.kind not in "iu":
                raise ValueError(f"Expected `pixels` as (row, column) pairs of integers, got {self.pixels!r}.")
            object.__setattr__(self, "pixels", tuple((int(row), int(column)) for row, column in pixels))
        for name, allowed in (
            ("channels", ("sum", "separate")),
            ("estimate", (None, "energy")),
            ("dtype", tuple(_DTYPES)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Expected `{name}` in {allowed}, got {getattr(self, name)!r}.")
        if self.estimate and self.channels != "sum":
            raise ValueError("The energy estimate sums the input's colours: leave `channels` at 'sum'.")
        if self.estimate and self.probes < 2:
            raise ValueError(f"Expected at least 2 `probes`, got {self.probes}.")
        if self.chunk_size != "auto" and (not isinstance(self.chunk_size, int) or self.chunk_size < 1):
            raise ValueError(f"Expected `chunk_size` as 'auto' or an integer of at least 1, got {self.chunk_size!r}.")

    def check_size(self, sample_size: tuple[int, int]) -> None:
        """Refuses a mask or pixels that do not fit the sample."""
        super().check_size(sample_size)
        outside = [p for p in self.pixels or () if not (0 <= p[0] < sample_size[0] and 0 <= p[1] < sample_size[1])]
        if outside:
            raise ValueError(
                f"GradientVolume: expected pixels (row, column) within {tuple(sample_size)}, got {outside[:5]}."
            )

    def selected_pixels(self, sample_size: tuple[int, int]) -> np.ndarray:
        """(row, column) of the output pixels of interest, an integer array (pixels, 2)."""
        return super().selected_pixels(sample_size) if self.pixels is None else np.array(self.pixels)

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Replays every selected step with a graph."""
        recording.expect(self, ["gradient_energy"] if self.estimate else ["gradient_volume"], exclusive=True)
        explain = self._keep_energy if self.estimate else self._keep_volume
        self.on_replay(recording, stack, lambda replay: explain(recording, replay))

    def _keep_volume(self, recording: Recording, replay: StepReplay) -> None:
        size = recording.run.sample_size
        pixels = self.selected_pixels(size)
        has_labels = recording.run.backbone.has_label_conditioning
        volume: list[torch.Tensor] = []
        sensitivity: list[torch.Tensor] = []

        def one_hot(start: int, stop: int) -> torch.Tensor:
            maps = torch.zeros(stop - start, *size)
            rows, columns = pixels[start:stop].T
            maps[torch.arange(stop - start), torch.as_tensor(rows), torch.as_tensor(columns)] = 1
            return maps

        def store(start: int, gradients: torch.Tensor, labels: torch.Tensor | None) -> None:
            check_finite("gradient_volume", gradients, gradients.dtype)
            summed = gradients.sum(dim=3) if self.channels == "sum" else gradients
            volume.append(summed.to("cpu", _DTYPES[self.dtype]))
            if labels is not None:
                # Under guidance the last branch carries the label, the first the null label.
                kept = labels if self.of == "noise" else labels[:, -1:]
                sensitivity.append(kept.to("cpu", _DTYPES[self.dtype]))

        pull_back(replay, one_hot, len(pixels), store, chunk_size=self.chunk_size, labels=has_labels)
        coords = {"row": ("pixel", pixels[:, 0]), "column": ("pixel", pixels[:, 1])}
        image = ("height", "width") if self.channels == "sum" else ("channel", "height", "width")
        recording.keep(self, "gradient_volume", _batch_first(volume), ("pixel", *image), coords)
        if sensitivity:
            batch = _batch_first(sensitivity)
            dims = ("pixel", "channel", "height", "width")[: batch.ndim - 1]
            recording.keep(self, "label_sensitivity", batch, dims, coords)

    def _keep_energy(self, recording: Recording, replay: StepReplay) -> None:
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
            recording.keep(self, name, values.flatten(0, 1).to(_DTYPES[self.dtype]), ("height", "width"))

    def plan(self, context: PlanContext) -> list[PlannedArray]:
        """The volume and the label sensitivity, or the energy and its error."""
        steps, (channels, *size) = context.steps(self), context.sample_shape
        per_branch, dtype = self.of == "noise", _DTYPES[self.dtype]

        def array(name: str, shape: Sequence[int], backward_passes: int = 0) -> PlannedArray:
            return context.array(
                name, steps, shape, dtype, per_branch=per_branch, backward_passes=backward_passes * len(steps)
            )

        if self.estimate:
            return [array("gradient_energy", size, self.probes), array("gradient_energy_error", size)]
        pixels = len(self.selected_pixels((size[0], size[1])))
        image = size if self.channels == "sum" else [channels, *size]
        arrays = [array("gradient_volume", [pixels, *image], pixels)]
        if context.backbone.has_label_conditioning:
            condition: Any = context.outputs["class_embedding"].shape[1:]
            arrays.append(array("label_sensitivity", [pixels, *condition]))
        return arrays


def _batch_first(rows: list[torch.Tensor]) -> torch.Tensor:
    """Chunks of (pixel, branch, sample, …) -> (branch · sample, pixel, …)."""
    return torch.cat(rows).permute(1, 2, 0, *range(3, rows[0].ndim)).flatten(0, 1)
