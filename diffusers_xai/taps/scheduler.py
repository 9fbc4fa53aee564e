"""The step clock: a tap on `scheduler.step`, and what a scheduler says of a step."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class SchedulerStep:
    """One call of `scheduler.step`.

    Attributes:
        timestep (`float`): The scheduler's t.
        sample (`torch.Tensor` of shape `(batch, channel, height, width)`): The state x_t before the step.
        model_output (`torch.Tensor`): What the denoiser predicted, guidance applied.
        result (`torch.Tensor`): The state after the step.
        pred_original_sample (`torch.Tensor`, *optional*): The predicted x̂_0, where the scheduler tells it.
        arguments (`dict`): All arguments of the call by name.
    """

    timestep: float
    sample: torch.Tensor
    model_output: torch.Tensor
    result: torch.Tensor
    pred_original_sample: torch.Tensor | None
    arguments: dict[str, Any]


@contextmanager
def tap_step(scheduler: Any, callback: Callable[[SchedulerStep], None]) -> Iterator[None]:
    """Calls `callback` after every `scheduler.step`, through an instance attribute that is removed at the end."""
    original = scheduler.step
    had_attribute = "step" in vars(scheduler)
    # The class's own signature: somebody else's tap on the instance may not carry it.
    signature = inspect.signature(type(scheduler).step.__get__(scheduler))

    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        result = output[0] if isinstance(output, tuple) else output.prev_sample
        if isinstance(output, tuple):
            x0 = output[1] if len(output) > 1 else None
        else:
            x0 = getattr(output, "pred_original_sample", None)
        callback(
            SchedulerStep(
                float(arguments["timestep"]),
                arguments["sample"],
                arguments["model_output"],
                result,
                x0,
                dict(arguments),
            )
        )
        return output

    scheduler.step = step
    try:
        yield
    finally:
        if had_attribute:
            scheduler.step = original
        else:
            del scheduler.step


def _alpha_bar(scheduler: Any, timestep: float) -> float:
    """The cumulative product of alphas at `timestep`, interpolated where the timestep is fractional."""
    alphas = scheduler.alphas_cumprod
    low = min(max(int(timestep), 0), len(alphas) - 1)
    high = min(low + 1, len(alphas) - 1)
    fraction = timestep - low
    # Schedulers with fractional timesteps interpolate the log of sigma.
    log_sigmas = [0.5 * (torch.log1p(-alphas[i].double()) - alphas[i].double().log()) for i in (low, high)]
    sigma = float(torch.exp((1 - fraction) * log_sigmas[0] + fraction * log_sigmas[1]))
    return 1 / (1 + sigma**2)


def noise_level(scheduler: Any, timestep: float) -> float:
    """Sigma at `timestep`: the standard deviation of the noise relative to the image, √((1−ᾱ)/ᾱ).

    For flow-matching schedulers it is the share of noise in the sample, in [0, 1]. NaN where the scheduler tells
    neither.
    """
    if hasattr(scheduler, "alphas_cumprod"):
        alpha_bar = _alpha_bar(scheduler, timestep)
        return float(((1 - alpha_bar) / alpha_bar) ** 0.5)
    if "shift" in scheduler.config:
        return timestep / scheduler.config.num_train_timesteps
    return float("nan")


def predicted_x0_and_noise(
    scheduler: Any, timestep: float, model_output: torch.Tensor, model_input: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The image x̂_0 and the noise ε that a denoiser's output implies, for every kind of prediction.

    Args:
        scheduler: The scheduler of the run.
        timestep (`float`): The scheduler's t.
        model_output (`torch.Tensor`): What the denoiser predicted.
        model_input (`torch.Tensor` of the same shape): What it predicted it from (the state after
            `scheduler.scale_model_input`).

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: x̂_0 and ε of the same shape, neither clipped.

    Raises:
        ValueError: if the scheduler's kind of prediction is not known.

    Source: Ho et al. 2020, eq. 15; Salimans and Ho 2022, appendix D (v-prediction).
    """
    kind = scheduler.config.get("prediction_type", None)
    if hasattr(scheduler, "alphas_cumprod") and kind in ("epsilon", "v_prediction", "sample"):
        alpha_bar = _alpha_bar(scheduler, timestep)
        signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        if kind == "epsilon":
            return (model_input - noise * model_output) / signal, model_output
        if kind == "v_prediction":
            return signal * model_input - noise * model_output, signal * model_output + noise * model_input
        return model_output, (model_input - signal * model_output) / noise
    if "shift" in scheduler.config:
        noise = noise_level(scheduler, timestep)
        return model_input - noise * model_output, model_input + (1 - noise) * model_output
    raise ValueError(
        f"What {type(scheduler).__name__} with prediction_type={kind!r} predicts is not known: expected a scheduler"
        " with `alphas_cumprod` and one of 'epsilon', 'v_prediction', 'sample', or a flow-matching one. Record"
        " `Samples(x0=False)` and gradients `of='step'` with it."
    )


def copy_scheduler(scheduler: Any) -> Any:
    """A scheduler of the same state that is not tapped and can be stepped without moving the original."""
    copied = copy.deepcopy(scheduler)
    vars(copied).pop("step", None)  # a tap's attribute stays bound to the original
    return copied


def scale_model_input(scheduler: Any, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
    """The denoiser's input for a state: as the scheduler scales it, where it does."""
    return scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
