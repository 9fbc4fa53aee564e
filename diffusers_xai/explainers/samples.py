"""The samples x_t, the predicted x̂_0 and measures between successive samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from diffusers_xai.measures import structural_similarity
from diffusers_xai.recording.planned import PlanContext, PlannedArray
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps import SchedulerStep, predicted_x0_and_noise


if TYPE_CHECKING:
    from diffusers_xai.recording.recording import Recording

_IMAGE = ("channel", "height", "width")
_SSIM_WINDOW = 7


@dataclass(frozen=True, kw_only=True)
class Samples(RecordSpec):
    """Records the scheduler's state x_t and the predicted x̂_0 (METHOD: thesis fig. 5.3, 5.4, 5.6).

    Arrays: `samples` and `x0` of dims (step, sample, channel, height, width), `final_sample` without `step`, and
    `measures/ssim` (step, sample): SSIM of a step's x_t and its result, at **every** step of the run.

    Args:
        steps, timesteps, every: See [`RecordSpec`].
        x0 (`bool`, defaults to `True`): Record x̂_0 beside x_t. Schedulers that clip it report it clipped.
        measures (sequence of `str`, defaults to `("ssim",)`): Measures taken while sampling; empty for none.

    Raises:
        ValueError: for an unknown measure; before sampling, for samples smaller than SSIM's window of 7 pixels.
    """

    x0: bool = True
    measures: Sequence[str] = ("ssim",)

    def __post_init__(self) -> None:
        super().__post_init__()
        measures = (self.measures,) if isinstance(self.measures, str) else tuple(self.measures)
        unknown = set(measures) - {"ssim"}
        if unknown:
            raise ValueError(f"Expected `measures` from ['ssim'], got {sorted(unknown)}.")
        object.__setattr__(self, "measures", measures)

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps nothing but the scheduler's steps."""
        run = recording.run
        recording.expect(self, ["samples", "x0"] if self.x0 else ["samples"])

        def check_size() -> None:
            if "ssim" in self.measures and min(run.sample_size) < _SSIM_WINDOW:
                raise ValueError(
                    f"SSIM needs samples of at least {_SSIM_WINDOW}x{_SSIM_WINDOW} pixels, got {run.sample_size}."
                    " Record `Samples(measures=())`."
                )

        def keep(step: SchedulerStep) -> None:
            if recording.is_selected(self):
                recording.keep(self, "samples", step.sample, _IMAGE)
                if self.x0:
                    x0 = step.pred_original_sample
                    if x0 is None:
                        model_input = run.model_input[: step.sample.shape[0]]
                        x0, _ = predicted_x0_and_noise(run.scheduler, step.timestep, step.model_output, model_input)
                    recording.keep(self, "x0", x0, _IMAGE)
            if "ssim" in self.measures:
                recording.keep(self, "measures/ssim", structural_similarity(step.sample, step.result), ())
            if run.step == len(run.timesteps) - 1:
                recording.keep_final("final_sample", step.result, _IMAGE)

        run.on_start(check_size)
        run.on_step(keep)

    def plan(self, context: PlanContext) -> list[PlannedArray]:
        """x_t, x̂_0 and the last state, and a number per step."""
        steps, every_step = context.steps(self), frozenset(range(len(context.timesteps)))

        def array(name: str, steps: frozenset[int] | None, shape: Sequence[int], dtype: torch.dtype) -> PlannedArray:
            return context.array(name, steps, shape, dtype, per_branch=False)

        arrays = [array("samples", steps, context.sample_shape, context.dtype)]
        if self.x0:
            arrays.append(array("x0", steps, context.sample_shape, context.dtype))
        arrays += [array(f"measures/{name}", every_step, (), torch.float64) for name in self.measures]
        return [*arrays, array("final_sample", None, context.sample_shape, context.dtype)]
