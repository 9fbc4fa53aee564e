"""Pixel-wise gradient volumes and the label sensitivity."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from diffusers_xai.recording.gradients import PullBackSpec, batch_first, check_finite
from diffusers_xai.recording.pull_back import pull_back
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.replay import StepReplay
from diffusers_xai.taps import tap_output


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

    `of="noise"` and `of="x0"` add the dim `branch` after `sample` under guidance.

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
        run, embedding = recording.run, getattr(recording.run.denoiser.module, "class_embedding", None)
        recording.expect(self, ["gradient_volume"], exclusive=True)
        condition: list[torch.Size] = []

        def declare() -> None:
            pixels = len(self.selected_pixels(run.positions))
            shape = run.labelling.sample(run.state).values.shape[2 if self.channels == "sum" else 1 :]
            arrays = {"gradient_volume": (pixels, *shape)}
            if condition:
                arrays["label_sensitivity"] = (pixels, *condition[0][1:])
            for name, size in arrays.items():
                passes = pixels if name == "gradient_volume" else 0
                recording.declare(
                    self, name, size, self.torch_dtype, per_branch=self.per_branch, backward_passes=passes
                )

        if embedding is not None:
            stack.enter_context(tap_output(embedding, lambda output: condition.append(output.shape)))
        run.before_step(lambda: declare() if run.step == 0 else None)
        self.on_replay(recording, lambda replay: self._keep(recording, replay, bool(condition)))

    def _keep(self, recording: Recording, replay: StepReplay, labels: bool) -> None:
        run = recording.run
        pixels, per_branch = self.selected_pixels(run.positions), self.per_branch
        volume: list[torch.Tensor] = []
        sensitivity: list[torch.Tensor] = []

        def one_hot(start: int, stop: int) -> torch.Tensor:
            maps = torch.zeros(stop - start, *run.positions)
            maps[(torch.arange(stop - start), *torch.as_tensor(pixels[start:stop]).T)] = 1
            return maps

        def store(start: int, gradients: torch.Tensor, by_label: torch.Tensor | None) -> None:
            check_finite("gradient_volume", gradients, gradients.dtype)
            summed = gradients.sum(dim=3) if self.channels == "sum" else gradients
            volume.append(summed.to("cpu", self.torch_dtype))
            if by_label is not None:
                # Of the step, the derivative by the label and not by the null label.
                kept = by_label if per_branch else by_label[:, conditional : conditional + 1]
                sensitivity.append(kept.to("cpu", self.torch_dtype))

        branches = run.guidance.branches
        conditional = branches.index("cond") if "cond" in branches else 0
        pull_back(replay, one_hot, len(pixels), store, chunk_size=self.chunk_size, labels=labels)
        names = {1: ("position",), 2: ("row", "column"), 3: ("pixel_frame", "row", "column")}[pixels.shape[1]]
        coords = {name: ("pixel", pixels[:, i]) for i, name in enumerate(names)}
        image = run.labelling.position_dims
        dims = ("pixel", *image) if self.channels == "sum" else ("pixel", "channel", *image)
        recording.keep(self, "gradient_volume", batch_first(volume), dims, coords, per_branch=per_branch, call=None)
        if sensitivity:
            batch = batch_first(sensitivity)
            dims = ("pixel", "channel", "height", "width")[: batch.ndim - 1]
            recording.keep(self, "label_sensitivity", batch, dims, coords, per_branch=per_branch, call=None)
