"""What a call's arguments mean: its steps, as pipelines of diffusers let them be chosen, and its sources of noise."""

import inspect
from collections.abc import Sequence
from typing import Any

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
        if isinstance(steps, bool) or not hasattr(steps, "__index__") or not 1 <= steps <= train_timesteps:
            raise ValueError(
                f"Expected `num_inference_steps` in 1..{train_timesteps} (the timesteps of training), got {steps!r}."
            )
        scheduler.set_timesteps(steps, device=device)
        return scheduler.timesteps
    name, accepted = given[0], inspect.signature(scheduler.set_timesteps).parameters
    if name not in accepted:
        available = [choice for choice in choices if choice in accepted]
        raise ValueError(
            f"Expected what {type(scheduler).__name__} takes, got `{name}`; available: {', '.join(available)}."
        )
    values = np.asarray(custom)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ValueError(f"Expected `{name}` as one or several numbers, got {custom!r}.")
    if values.min() < 0 or (np.diff(values) >= 0).any():
        raise ValueError(f"Expected `{name}` from 0 on, descending, got {values.tolist()}.")
    scheduler.set_timesteps(**{name: values.tolist()}, device=device)
    return scheduler.timesteps


def chosen_steps(
    scheduler: SchedulerMixin, steps: int | None, timesteps: Sequence[int] | None, sigmas: Sequence[float] | None
) -> dict[str, Any]:
    """What the caller chose, for the provenance."""
    custom = {"custom_timesteps": timesteps, "custom_sigmas": sigmas}
    given = {name: np.asarray(values).tolist() for name, values in custom.items() if values is not None}
    return given or {"num_inference_steps": steps or default_steps(scheduler)}


def with_equal_noise(
    generator: torch.Generator | list[torch.Generator] | None, batch_size: int
) -> list[torch.Generator]:
    """One generator per image, all in the state of the single one; a list as it is."""
    if isinstance(generator, list):
        return generator
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    copies = [torch.Generator(generator.device) for _ in range(batch_size - 1)]
    for copy in copies:
        copy.set_state(generator.get_state())
    return [generator, *copies]


def seeds_of(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> list[int | None]:
    """The seed of every image; `None` where nothing tells it."""
    if isinstance(generator, list):
        return [g.initial_seed() for g in generator]
    return [None if generator is None else generator.initial_seed()] * batch_size
