"""What is passed in by its user: a pipeline and its scheduler, of any class that has what is read here."""

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Scheduler(Protocol):
    """A scheduler as diffusers makes them.

    Attributes:
        config: Its configuration, a mapping.
        timesteps (`torch.Tensor`): The timesteps of the run.
        step (`Callable`): Makes the next state of a prediction, a timestep and a state.
    """

    config: Any
    timesteps: torch.Tensor
    step: Callable[..., Any]


class Pipeline(Protocol):
    """A pipeline, or any object with a `scheduler` and networks as attributes.

    Attributes:
        scheduler ([`Scheduler`]): Its scheduler.
    """

    scheduler: Scheduler
