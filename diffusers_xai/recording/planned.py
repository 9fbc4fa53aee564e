"""What a spec would record of a coming run, in bytes and backward passes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


def recorded_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a tensor is recorded: its own, but float32 for bfloat16, which numpy does not have."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


@dataclass(frozen=True)
class PlannedArray:
    """An array of the coming profile.

    Attributes:
        name (`str`): Its name in the profile.
        steps (`frozenset[int]` or `None`): The recorded steps; `None` for an array without the dim `step`.
        shape (`tuple[int, ...]`): Its shape at one step: (sample, [branch,] …).
        dtype (`torch.dtype`): Its dtype in the profile.
        backward_passes (`int`): How many backward passes it takes in all, each of every row of the denoiser's batch.
    """

    name: str
    steps: frozenset[int] | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    backward_passes: int = 0

    @property
    def nbytes(self) -> int:
        """Its size in the profile."""
        return (1 if self.steps is None else len(self.steps)) * math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class PlanContext:
    """A coming run, as far as a spec must know it to state its size.

    Attributes:
        denoiser (`Denoiser`): The denoiser's adapter.
        timesteps (`list[float]`): The scheduler's t at every step.
        num_train_timesteps (`int`): Timesteps lie in `0 .. num_train_timesteps`.
        samples (`int`): Number of images.
        branches (`int`): Rows of the denoiser's batch per image: 2 under guidance, else 1.
        sample_shape (`tuple[int, int, int]`): Channels, height and width of the sample.
        dtype (`torch.dtype`): Of the sample.
        outputs (`dict[str, torch.Tensor]`): Module path -> the layer's output for one row (1, …), a tensor without
            data (device "meta"). Layers that do not run, or return no tensor, are not in it.
    """

    denoiser: Any
    timesteps: Sequence[float]
    num_train_timesteps: int
    samples: int
    branches: int
    sample_shape: tuple[int, int, int]
    dtype: torch.dtype
    outputs: Mapping[str, torch.Tensor]

    def array(
        self,
        name: str,
        steps: frozenset[int] | None,
        shape: Sequence[int],
        dtype: torch.dtype,
        *,
        per_branch: bool = True,
        backward_passes: int = 0,
    ) -> PlannedArray:
        """A `PlannedArray` for every image, and every guidance branch.

        Args:
            name (`str`): Its name in the profile.
            steps (`frozenset[int]` or `None`): The recorded steps, see `steps`; `None` for an array without them.
            shape (sequence of `int`): Its shape behind (step, sample, branch).
            dtype (`torch.dtype`): Of the tensor that is recorded.
            per_branch (`bool`, defaults to `True`): Whether each guidance branch has its own.
            backward_passes (`int`, defaults to 0): In all.
        """
        rows = (self.samples, self.branches) if per_branch and self.branches > 1 else (self.samples,)
        return PlannedArray(name, steps, (*rows, *shape), recorded_dtype(dtype), backward_passes)

    def steps(self, spec: Any) -> frozenset[int]:
        """The steps at which `spec` records."""
        return spec.select_steps(self.timesteps, self.num_train_timesteps)
