"""Pixel-wise gradient volumes and the label sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffusers_xai.recording.gradients import PullBackSpec, batch_first, check_finite
from diffusers_xai.recording.planned import PlanContext, PlannedArray
from diffusers_xai.recording.pull_back import pull_back
from diffusers_xai.recording.replay import StepReplay


if TYPE_CHECKING:
    from diffusers_xai.recording.recording import Recording

_CHANNELS = ("sum", "separate")


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientVolume(PullBackSpec):
    """Records how every selected output pixel depends on every input pixel (thesis eq. 4.1.2, alg. 4, listing C.3).

    Exactly, by one backward pass per selected pixel k. Arrays:

    - `gradient_volume` (step, sample, pixel, height, width): ∂(Σ_rgb y_k)/∂x with the input's colours summed; the
      coordinates `row` and `column` on `pixel` say where k lies. `channels="separate"` keeps the input's colours:
      (step, sample, pixel, channel, height, width).
    - `label_sensitivity` (step, sample, pixel, channel, height, width), of conditional models: ∂(Σ_rgb y_k)/∂(label
      channels); its sum over height and width is the derivative by the label itself. Under guidance, of the label and
      not of the null label. Where the condition is an embedding: (step, sample, pixel, channel).

    `of="noise"` adds the dim `branch` after `sample` under guidance.

    Args:
        mask (array of shape `(height, width)`, bool, or a PNG file's path, *optional*): The selected output pixels;
            all if neither it nor `pixels` is given.
        pixels (sequence of `(row, column)`, *optional*): The selected output pixels one by one.
        of (`str`, defaults to `"step"`): See [`GradientSpec`].
        channels (`str`, defaults to `"sum"`): `"sum"` or `"separate"`.
        chunk_size (`int` or `"auto"`): Pixels per backward pass, see `pull_back`.
        dtype (`str`, defaults to `"float32"`): In which gradients are stored: `"float16"`, `"float32"`, `"float64"`.
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        ValueError: for values that are not possible; before sampling, for a mask or pixels that do not fit the sample.
    """

    channels: str = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in _CHANNELS:
            raise ValueError(f"Expected `channels` in {_CHANNELS}, got {self.channels!r}.")

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Replays every selected step with a graph."""
        recording.expect(self, ["gradient_volume"], exclusive=True)
        self.on_replay(recording, stack, lambda replay: self._keep_volume(recording, replay))

    def _keep_volume(self, recording: Recording, replay: StepReplay) -> None:
        size = recording.run.sample_size
        pixels = self.selected_pixels(size)
        has_labels = recording.run.denoiser.has_label_conditioning
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
            volume.append(summed.to("cpu", self.torch_dtype))
            if labels is not None:
                # Under guidance the last branch carries the label, the first the null label.
                kept = labels if self.of == "noise" else labels[:, -1:]
                sensitivity.append(kept.to("cpu", self.torch_dtype))

        pull_back(replay, one_hot, len(pixels), store, chunk_size=self.chunk_size, labels=has_labels)
        coords = {"row": ("pixel", pixels[:, 0]), "column": ("pixel", pixels[:, 1])}
        image = ("height", "width") if self.channels == "sum" else ("channel", "height", "width")
        recording.keep(self, "gradient_volume", batch_first(volume), ("pixel", *image), coords)
        if sensitivity:
            batch = batch_first(sensitivity)
            dims = ("pixel", "channel", "height", "width")[: batch.ndim - 1]
            recording.keep(self, "label_sensitivity", batch, dims, coords)

    def plan(self, context: PlanContext) -> list[PlannedArray]:
        """The volume and the label sensitivity."""
        steps, (channels, *size) = context.steps(self), context.sample_shape
        per_branch, dtype = self.of == "noise", self.torch_dtype

        def array(name: str, shape: Sequence[int], backward_passes: int = 0) -> PlannedArray:
            return context.array(
                name, steps, shape, dtype, per_branch=per_branch, backward_passes=backward_passes * len(steps)
            )

        pixels = len(self.selected_pixels((size[0], size[1])))
        image = size if self.channels == "sum" else [channels, *size]
        arrays = [array("gradient_volume", [pixels, *image], pixels)]
        if context.denoiser.has_label_conditioning:
            condition: Any = context.outputs["class_embedding"].shape[1:]
            arrays.append(array("label_sensitivity", [pixels, *condition]))
        return arrays
