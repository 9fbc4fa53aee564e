"""What gradient volumes and gradient maps have in common: the differentiated output and its mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffusers_xai.measures import Mask, as_mask, mask_to_runs
from diffusers_xai.recording.replay import OUTPUTS, StepReplay
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps import SchedulerStep, copy_scheduler


if TYPE_CHECKING:
    from diffusers_xai.recording.recording import Recording


_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientSpec(RecordSpec):
    """The base of what is recorded by differentiating a step.

    Args:
        mask (array of shape `(height, width)`, bool, or a PNG file's path, *optional*): The output pixels of interest,
            at the size of the denoiser's sample; all if neither it nor `pixels` is given.
        pixels (sequence of `(row, column)`, *optional*): The same one by one.
        of (`str`, defaults to `"step"`): What is differentiated: `"step"`, the mean μ_θ of the scheduler's next state
            (as listing C.3 does; where a scheduler clips x̂_0, a clipped pixel passes no gradient, and guidance is
            part of it), or `"noise"`, the noise ε_θ that the denoiser's output implies, of every guidance branch,
            w.r.t. the denoiser's input. Equation 4.1.1 calls the two equal; they are not.
        steps, timesteps, every: See [`RecordSpec`].
    """

    mask: Mask | None = None
    pixels: Sequence[tuple[int, int]] | None = None
    of: str = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in OUTPUTS:
            raise ValueError(f"Expected `of` in {OUTPUTS}, got {self.of!r}.")
        if self.mask is not None:
            object.__setattr__(self, "mask", as_mask(self.mask).copy())
        if self.mask is not None and self.pixels is not None:
            raise ValueError("Expected one of `mask` and `pixels`, got both.")
        if self.pixels is not None:
            pixels = np.atleast_2d(np.asarray(self.pixels))
            if pixels.ndim != 2 or pixels.shape[1] != 2 or not len(pixels) or pixels.dtype.kind not in "iu":
                raise ValueError(f"Expected `pixels` as (row, column) pairs of integers, got {self.pixels!r}.")
            object.__setattr__(self, "pixels", tuple((int(row), int(column)) for row, column in pixels))

    def check_size(self, sample_size: tuple[int, int]) -> None:
        """Refuses a mask or pixels that do not fit the sample."""
        if self.mask is not None:
            as_mask(self.mask, sample_size)
        outside = [p for p in self.pixels or () if not (0 <= p[0] < sample_size[0] and 0 <= p[1] < sample_size[1])]
        if outside:
            raise ValueError(
                f"{type(self).__name__}: expected pixels (row, column) within {tuple(sample_size)}, got {outside[:5]}."
            )

    def selected_pixels(self, sample_size: tuple[int, int]) -> np.ndarray:
        """(row, column) of the output pixels of interest, an integer array (pixels, 2)."""
        if self.pixels is not None:
            return np.array(self.pixels)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class PullBackSpec(GradientSpec):
    """The base of what takes many backward passes of one step.

    Args:
        chunk_size (`int` or `"auto"`): Weight maps per backward pass, see `pull_back`.
        dtype (`str`, defaults to `"float32"`): In which gradients are stored: `"float16"`, `"float32"`, `"float64"`.
        mask, pixels, of, steps, timesteps, every: See [`GradientSpec`].
    """

    chunk_size: int | str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in _DTYPES:
            raise ValueError(f"Expected `dtype` in {tuple(_DTYPES)}, got {self.dtype!r}.")
        if self.chunk_size != "auto" and (not isinstance(self.chunk_size, int) or self.chunk_size < 1):
            raise ValueError(f"Expected `chunk_size` as 'auto' or an integer of at least 1, got {self.chunk_size!r}.")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype in which gradients are stored."""
        return _DTYPES[self.dtype]


def batch_first(rows: list[torch.Tensor]) -> torch.Tensor:
    """Chunks of (pixel, branch, sample, …) -> (branch · sample, pixel, …)."""
    return torch.cat(rows).permute(1, 2, 0, *range(3, rows[0].ndim)).flatten(0, 1)


def check_finite(name: str, gradients: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuses gradients that overflowed, which half precision does."""
    if not torch.isfinite(gradients).all():
        raise FloatingPointError(
            f"{name}: gradients are not finite; the model computes in {dtype}. Use float32 or bfloat16."
        )
