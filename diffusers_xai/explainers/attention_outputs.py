"""The thesis's attention map A_t."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from diffusers_xai.recording.planned import PlanContext, PlannedArray
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps import SchedulerStep, tap_output


if TYPE_CHECKING:
    from diffusers_xai.recording.recording import Recording


@dataclass(frozen=True, kw_only=True)
class AttentionOutputs(RecordSpec):
    """Records A_t: all attention layers' outputs, summed over channels, up-sampled and added into one map.

    Outputs are taken before any residual sum (the thesis's layers "fn") and up-sampled bilinearly to the sample's
    size. These are not softmax attention weights. Array: `attention_outputs` of dims (step, sample, height, width),
    with `branch` after `sample` under guidance; unbounded, signed.

    Args:
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        ValueError: when recording starts, if the network has no attention layer.

    Source: thesis section 4.3, fig. 4.4.
    """

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps the output of every attention layer."""
        run = recording.run
        attention_outputs = run.denoiser.attention_outputs()
        if not attention_outputs:
            raise ValueError(f"{type(run.denoiser.module).__name__} has no attention layer to make a map of.")
        maps: dict[int, torch.Tensor] = {}  # by denoiser call within the step

        def add(path: str, output: torch.Tensor) -> None:
            if not recording.is_selected(self):
                return
            grid = run.denoiser.to_grid(output, run.sample_size)
            if grid.ndim != 4:
                raise RuntimeError(f"{path}: tokens of shape {tuple(output.shape)} do not cover the image evenly.")
            summed = grid.detach().float().sum(dim=1, keepdim=True)
            upsampled = F.interpolate(summed, size=run.sample_size, mode="bilinear", align_corners=False)[:, 0]
            call = len(run.calls)
            maps[call] = maps[call] + upsampled if call in maps else upsampled

        def keep(step: SchedulerStep) -> None:
            for call in sorted(maps):
                recording.keep(self, "attention_outputs", maps[call], ("height", "width"))
            maps.clear()

        recording.expect(self, ["attention_outputs"])
        run.on_step(keep)
        for path, module in attention_outputs.items():
            stack.enter_context(tap_output(module, partial(add, path)))

    def plan(self, context: PlanContext) -> list[PlannedArray]:
        """One map of the sample's size."""
        return [context.array("attention_outputs", context.steps(self), context.sample_shape[1:], torch.float32)]
