"""The steps of a run, as pipelines of diffusers let their callers choose them."""

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler, SchedulerMixin


_DEFAULT_STEPS = 50


def default_steps(scheduler: SchedulerMixin) -> int:
    """The number of steps where none is asked for: all of its training for DDPM, else 50."""
    train_timesteps = scheduler.config.get("num_train_timesteps", 1000)
    return train_timesteps if isinstance(scheduler, DDPMScheduler) else min(_DEFAULT_STEPS, train_timesteps)


def set_timesteps(
    scheduler: SchedulerMixin,
    num_inference_steps: int | None,
    timesteps: Sequence[int] | None,
    sigmas: Sequence[float] | None,
    device: torch.device,
) -> torch.Tensor:
    """Sets a scheduler's timesteps, as `retrieve_timesteps` of diffusers does, and returns them.

    Args:
        scheduler ([`~diffusers.SchedulerMixin`]): The scheduler.
        num_inference_steps (`int`, *optional*): Number of steps; `default_steps` if none of the three is given.
        timesteps (sequence of `int`, *optional*): The timesteps themselves, descending.
        sigmas (sequence of `float`, *optional*): Their noise levels, descending.
        device (`torch.device`): Where the timesteps shall lie.

    Raises:
        ValueError: if more than one of the three is given, the number does not fit the scheduler, or the scheduler
            does not take what is given.
    """
    choices = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
    given = [name for name, value in choices.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"Expected one of `num_inference_steps`, `timesteps` and `sigmas`, got {' and '.join(given)}."
        )
    custom = timesteps if timesteps is not None else sigmas
    if custom is None:
        steps = default_steps(scheduler) if num_inference_steps is None else num_inference_steps
        train_timesteps = scheduler.config.get("num_train_timesteps", 1000)
        if not 1 <= steps <= train_timesteps:
            raise ValueError(
                f"Expected `num_inference_steps` in 1..{train_timesteps} (the timesteps of training), got {steps}."
            )
        scheduler.set_timesteps(steps, device=device)
        return scheduler.timesteps
    name, accepted = given[0], inspect.signature(scheduler.set_timesteps).parameters
    if name not in accepted:
        available = [choice for choice in choices if choice in accepted]
        raise ValueError(f"{type(scheduler).__name__} takes no `{name}`; available: {', '.join(available)}.")
    if not len(custom):
        raise ValueError(f"Expected at least one value in `{name}`, got none.")
    scheduler.set_timesteps(**{name: np.asarray(custom).tolist()}, device=device)
    return scheduler.timesteps
