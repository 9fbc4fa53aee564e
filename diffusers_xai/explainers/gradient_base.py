"""What gradient volumes and gradient maps have in common: the differentiated output and its mask."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffusers_xai.explainers.replay import OUTPUTS, StepReplay
from diffusers_xai.explainers.spec import RecordSpec
from diffusers_xai.measures import Mask, as_mask, mask_to_runs
from diffusers_xai.taps import SchedulerStep, copy_scheduler


if TYPE_CHECKING:
    from diffusers_xai.explainers.recording import Recording


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientSpec(RecordSpec):
    """The base of what is recorded by differentiating a step.

    Args:
        mask (array of shape `(height, width)`, bool, or a PNG file's path, *optional*): The output pixels of interest,
            at the size of the denoiser's sample; all if `None`.
        of (`str`, defaults to `"step"`): What is differentiated: `"step"`, the mean μ_θ of the scheduler's next state
            (as listing C.3 does; where a scheduler clips x̂_0, a clipped pixel passes no gradient, and guidance is
            part of it), or `"noise"`, the noise ε_θ that the denoiser's output implies, of every guidance branch,
            w.r.t. the denoiser's input. Equation 4.1.1 calls the two equal; they are not.
        steps, timesteps, every: See [`RecordSpec`].
    """

    mask: Mask | None = None
    of: str = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in OUTPUTS:
            raise ValueError(f"Expected `of` in {OUTPUTS}, got {self.of!r}.")
        if self.mask is not None:
            object.__setattr__(self, "mask", as_mask(self.mask).copy())

    def check_size(self, sample_size: tuple[int, int]) -> None:
        """Refuses a mask that is not of the sample's size."""
        if self.mask is not None:
            as_mask(self.mask, sample_size)

    def selected_pixels(self, sample_size: tuple[int, int]) -> np.ndarray:
        """(row, column) of the output pixels of interest, an integer array (pixels, 2)."""
        return np.argwhere(np.ones(sample_size, bool) if self.mask is None else as_mask(self.mask))

    def on_replay(self, recording: Recording, stack: ExitStack, explain: Callable[[StepReplay], None]) -> None:
        """Calls `explain` with the replay of every selected step, at its end."""
        run = recording.run
        before: dict[int, Any] = {}

        def remember_scheduler(args: tuple, kwargs: dict) -> None:
            if recording.is_selected(self) and run.step not in before:
                before[run.step] = copy_scheduler(run.scheduler)

        def at_end(step: SchedulerStep) -> None:
            scheduler = before.pop(run.step, None)
            if scheduler is not None:
                explain(StepReplay(run, scheduler, step, self.of, recording.guidance_scale))

        run.on_start(lambda: self.check_size(run.sample_size))
        run.on_call(remember_scheduler)
        run.on_step(at_end)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able data, a mask by the lengths of its runs."""
        mask = None if self.mask is None else mask_to_runs(as_mask(self.mask))
        return {**super().to_dict(), "mask": mask}


def check_finite(name: str, gradients: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuses gradients that overflowed, which half precision does."""
    if not torch.isfinite(gradients).all():
        raise FloatingPointError(
            f"{name}: gradients are not finite; the model computes in {dtype}. Use float32 or bfloat16."
        )
