"""The step clock: a tap on `scheduler.step`."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch

from diffusers_xai.passed import Scheduler
from diffusers_xai.taps.noise import NoiseLevel, noise_level, sigmas_in_use, stated_x0, thresholded


@dataclass(frozen=True)
class SchedulerStep:
    """One call of `scheduler.step`.

    Attributes:
        timestep (`float`): The scheduler's t.
        index (`int`, *optional*): The scheduler's own `step_index` at this step, where it counts.
        level (`NoiseLevel`): How much noise there was in the state.
        sample (`torch.Tensor` of shape `(batch, …)`): The state x_t before the step.
        model_output (`torch.Tensor`): What the denoiser predicted, guidance applied.
        result (`torch.Tensor`): The state after the step.
        pred_original_sample (`torch.Tensor`, *optional*): The predicted x̂_0, where the scheduler tells it.
        arguments (`dict`): All arguments of the call by name.
    """

    timestep: float
    index: int | None
    level: NoiseLevel
    sample: torch.Tensor
    model_output: torch.Tensor
    result: torch.Tensor
    pred_original_sample: torch.Tensor | None
    arguments: dict[str, Any]


@contextmanager
def tap_step(
    scheduler: Scheduler,
    callback: Callable[[SchedulerStep], None],
    before: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[None]:
    """Calls `before(arguments)` ahead of and `callback(step)` after every `scheduler.step`.

    Through an instance attribute that is removed at the end. It is a method, so that a pipeline's deep copy of the
    scheduler, for its sound, has one of its own, which is not tapped.
    """
    original = scheduler.step
    had_attribute = "step" in vars(scheduler)
    names = _names(type(scheduler))
    function = getattr(original, "__func__", None)

    @functools.wraps(function or original)
    def step(owner: Any, *args: Any, **kwargs: Any) -> Any:
        if owner is not scheduler:
            return original(*args, **kwargs) if function is None else function(owner, *args, **kwargs)
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if before is not None:
            before(arguments)
        index, sigmas = getattr(scheduler, "step_index", None), sigmas_in_use(scheduler)
        with thresholded(scheduler) as clean:
            output = original(*args, **kwargs)
        after = getattr(scheduler, "step_index", None)
        if index is None and after is not None:
            index = after - 1  # found out inside its first step
        timestep = float(arguments["timestep"])
        callback(
            SchedulerStep(
                timestep,
                index,
                noise_level(scheduler, timestep, index, sigmas),
                arguments["sample"],
                arguments["model_output"],
                output[0] if isinstance(output, tuple) else output.prev_sample,
                stated_x0(scheduler, output, clean),
                arguments,
            )
        )
        return output

    scheduler.step = MethodType(step, scheduler)
    try:
        yield
    finally:
        if had_attribute:
            scheduler.step = original
        else:
            del scheduler.step


def _names(scheduler: type) -> tuple[str, ...]:
    """What a class's `step` takes, as the first class says that names it: a subclass may pass on whatever it is given.

    Somebody else's tap on an instance need not say it.
    """
    steps = [vars(cls)["step"] for cls in scheduler.__mro__ if "step" in vars(cls)]
    named = [tuple(inspect.signature(step).parameters)[1:] for step in steps]
    return next((names for names in named if "sample" in names), named[0])


def copy_scheduler(scheduler: Scheduler) -> Any:
    """A scheduler of the same state that is not tapped and can be stepped without moving the original."""
    copied = copy.deepcopy(scheduler)
    vars(copied).pop("step", None)  # a tap's attribute stays bound to the original
    return copied


def scale_model_input(scheduler: Scheduler, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
    """The denoiser's input for a state: as the scheduler scales it, where it does."""
    return scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
