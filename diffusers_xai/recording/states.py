"""What the scheduler is given and gives: its timesteps, its states, and predictions in their form."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from diffusers_xai.denoisers import DenoiserCall
from diffusers_xai.passed import Pipeline, Scheduler
from diffusers_xai.taps.call import PipelineCall


def frames_in_rows(tensor: torch.Tensor, sample: torch.Tensor) -> int | None:
    """Number of frames, if a pipeline of videos gives its scheduler frames as rows.

    Args:
        tensor (`torch.Tensor`): A state of the scheduler.
        sample (`torch.Tensor` of shape `(row, channel, frame, height, width)`): What the denoiser is given of it.
    """
    is_folded = sample.ndim == 5 and tensor.ndim == 4 and tensor.shape[-2:] == sample.shape[-2:]
    return sample.shape[2] if is_folded else None


def unfolded(tensor: torch.Tensor, frames: int) -> torch.Tensor:
    """(row · frame, channel, height, width) -> (row, channel, frame, height, width)."""
    return tensor.unflatten(0, (-1, frames)).transpose(1, 2)


def folded(tensor: torch.Tensor) -> torch.Tensor:
    """(row, channel, frame, height, width) -> (row · frame, channel, height, width)."""
    return tensor.transpose(1, 2).flatten(0, 1)


def predicted_part(state: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """A denoiser's output in the form of the scheduler's state.

    Without the learned variance that some put behind the prediction, without the tokens of reference images, and
    without dims of size one.
    """
    shape = state.shape
    if output.ndim == len(shape) == 3:
        return output[:, : shape[1]]
    if output.ndim == len(shape) and len(shape) > 3 and output.shape[1] == 2 * shape[1]:
        return output[:, : shape[1]]
    if output.ndim == len(shape) + 1 and output.shape[2] == 1:
        return output.squeeze(2)
    return output


def planned_timesteps(
    pipeline: Pipeline, scheduler: Scheduler, call: PipelineCall, first: DenoiserCall
) -> list[float]:
    """The timesteps of the run: what the pipeline's loop goes over, else the scheduler's from its beginning on.

    Raises:
        RuntimeError: if the pipeline denoises an image in parts, with a `scheduler.step` for each.
    """
    views = call.locals.get("views")
    if isinstance(views, list) and len(views) > 1:
        raise RuntimeError(
            f"Expected a pipeline that denoises a whole image at a time, got {len(views)} views of it in"
            f" {type(pipeline).__name__}: a smaller image has one."
        )
    own = call.locals.get("timesteps")
    is_schedule = isinstance(own, torch.Tensor) and own.ndim == 1 and own.numel() > 0 and own.stride(0) != 0
    if is_schedule and isinstance(own, torch.Tensor):
        timesteps: Sequence[Any] = own.tolist()
    else:
        timesteps = scheduler.timesteps[_begin(scheduler, first.timestep) :].tolist()
    count = getattr(pipeline, "_num_timesteps", None)
    if isinstance(count, int) and 0 < count < len(timesteps):
        timesteps = timesteps[:count]
    return [float(t) for t in timesteps]


def _begin(scheduler: Scheduler, timestep: float | None) -> int:
    """Where in its schedule a run begins: where the scheduler was told, else at the timestep the network is given.

    Of two equal timesteps it is the second, as in the schedulers' own `index_for_timestep`. A network that is given
    the first one in a unit of its own, t/1000 or 1 − t/1000, may be given a number that stands later in the schedule.
    """
    told = getattr(scheduler, "begin_index", None)
    if told is not None or timestep is None:
        return told or 0
    share = float(scheduler.timesteps[0]) / scheduler.config.get("num_train_timesteps", 1000)
    if any(math.isclose(timestep, unit, rel_tol=1e-6) for unit in (share, 1 - share)):
        return 0
    same = [index for index, t in enumerate(scheduler.timesteps.tolist()) if t == timestep]
    return same[:2][-1] if same else 0
