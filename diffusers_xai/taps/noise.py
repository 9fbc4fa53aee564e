"""What a scheduler says of the noise in its state, and what a denoiser's output means: ε, v and x̂_0."""

import functools
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from diffusers_xai.passed import Scheduler
from diffusers_xai.prediction import KINDS, clean_and_noise, is_flow


# What schedulers call the clean image in what `step` returns.
_X0_FIELDS = ("pred_original_sample", "pred_x0", "denoised")


@dataclass(frozen=True)
class NoiseLevel:
    """How much of the denoiser's input is image and how much noise: signal · x_0 + noise · ε.

    Attributes:
        signal (`float`): The factor of x_0; NaN where the scheduler does not tell.
        noise (`float`): The factor of ε.
        sigma (`float`): noise / signal, in [0, ∞]; of flow-matching schedulers the share of noise, in [0, 1].
    """

    signal: float
    noise: float
    sigma: float


UNKNOWN = NoiseLevel(math.nan, math.nan, math.nan)


def sigmas_in_use(scheduler: Scheduler) -> Any:
    """The scheduler's sigmas by its `step_index`, as its coming step reads them; `None` if it holds none."""
    if not getattr(scheduler, "state_in_first_order", True):  # solvers that look between two steps
        middle, between = (getattr(scheduler, name, None) for name in ("mid_point_sigma", "sigmas_interpol"))
        if middle is not None:
            return [float(middle)] * (len(scheduler.timesteps) + 1)
        if between is not None:
            behind = "Ancestral" in type(scheduler).__name__  # it reads them one place behind
            return [between[0], *between] if behind else between
    return getattr(scheduler, "sigmas", None)


def noise_level(scheduler: Scheduler, timestep: float, index: int | None = None, sigmas: Any = None) -> NoiseLevel:
    """The noise level at a step, as the scheduler itself holds it.

    Args:
        scheduler ([`Scheduler`]): Any scheduler of diffusers.
        timestep (`float`): The argument of `scheduler.step`.
        index (`int`, *optional*): The scheduler's own `step_index` at that step, where it counts.
        sigmas (sequence of `float`, *optional*): See `sigmas_in_use`.
    """
    if sigmas is not None and index is not None and index < len(sigmas):
        sigma = float(sigmas[index])
        if is_flow(scheduler):
            sigma = 1 - sigma if _is_inverted(scheduler) else sigma
            return NoiseLevel(1 - sigma, sigma, sigma)
        scale = math.sqrt(1 + sigma**2)
        return NoiseLevel(1 / scale, sigma / scale, sigma)
    alpha_bar = _alpha_bar(scheduler, timestep)
    if alpha_bar is not None:
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        return NoiseLevel(signal, noise, math.inf if signal == 0 else noise / signal)
    if type(scheduler).__name__ == "SCMScheduler":  # t is an angle (Lu and Song 2024, TrigFlow)
        return NoiseLevel(math.cos(timestep), math.sin(timestep), math.tan(timestep))
    return UNKNOWN


def _is_inverted(scheduler: Scheduler) -> bool:
    """Whether a flow-matching scheduler counts from noise up to the image (Mochi)."""
    return bool(scheduler.config.get("invert_sigmas", False))


def _alpha_bar(scheduler: Scheduler, timestep: float) -> float | None:
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is not None:
        return float(alphas[min(max(int(timestep), 0), len(alphas) - 1)])
    if hasattr(scheduler, "_alpha_cumprod"):  # Würstchen and Stable Cascade: t is a share of the process
        return float(scheduler._alpha_cumprod(torch.tensor([timestep]), torch.device("cpu")))
    return None


def x0_and_noise(
    scheduler: Scheduler, level: NoiseLevel, prediction: torch.Tensor, model_input: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The image x̂_0 and the noise ε that a denoiser's output implies, for every kind of prediction.

    Args:
        scheduler: The scheduler of the run.
        level (`NoiseLevel`): Of the step.
        prediction (`torch.Tensor`): What the denoiser predicted, with the scheduler's sign.
        model_input (`torch.Tensor` of the same shape): What it predicted it from (the state after
            `scheduler.scale_model_input`).

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: x̂_0 and ε of the same shape, neither clipped.

    Raises:
        ValueError: if the scheduler's kind of prediction is not known.

    Source: [`clean_and_noise`]; Karras et al. 2022, table 1 (EDM); Song et al. 2023, appendix C (consistency).
    """
    sigma = level.sigma
    if math.isnan(sigma):
        raise ValueError(
            f"Expected a scheduler that tells its noise level, got {type(scheduler).__name__}. Record"
            " `Samples(x0=False)` and gradients `of='step'` with it."
        )
    if is_flow(scheduler):
        velocity = -prediction if _is_inverted(scheduler) else prediction
        return clean_and_noise("flow", velocity, model_input, level.signal, level.noise)
    if hasattr(scheduler, "precondition_outputs"):
        state = model_input * math.sqrt(sigma**2 + scheduler.config.sigma_data**2)
        x0 = scheduler.precondition_outputs(state, prediction, torch.tensor(sigma, device=state.device))
        return x0, (state - x0) / sigma
    if hasattr(scheduler, "get_scalings_for_boundary_condition"):
        state = model_input * math.sqrt(sigma**2 + scheduler.config.sigma_data**2)
        skip, out = (float(c) for c in scheduler.get_scalings_for_boundary_condition(sigma))
        x0 = out * prediction + skip * state
        return x0, (state - x0) / sigma
    kind = scheduler.config.get("prediction_type", None) or "epsilon"
    if kind not in KINDS:
        raise ValueError(
            f"Expected a scheduler that predicts one of {KINDS}, got {kind!r} of {type(scheduler).__name__}. Record"
            " `Samples(x0=False)` and gradients `of='step'` with it."
        )
    return clean_and_noise(kind, prediction, model_input, level.signal, level.noise)


@contextmanager
def thresholded(scheduler: Scheduler) -> Iterator[list[torch.Tensor]]:
    """Collects the clean images that a scheduler thresholds: its solver may turn them into noise before it goes on.

    Through an instance attribute that is removed at the end.
    """
    found: list[torch.Tensor] = []
    if not scheduler.config.get("thresholding", False) or not hasattr(scheduler, "_threshold_sample"):
        yield found
        return
    original = scheduler._threshold_sample
    had_attribute = "_threshold_sample" in vars(scheduler)

    def threshold(sample: torch.Tensor) -> torch.Tensor:
        found.append(original(sample))
        return found[-1]

    scheduler._threshold_sample = threshold
    try:
        yield found
    finally:
        if had_attribute:
            scheduler._threshold_sample = original
        else:
            del scheduler._threshold_sample


def stated_x0(scheduler: Scheduler, output: Any, thresholded: Sequence[torch.Tensor] = ()) -> torch.Tensor | None:
    """The clean image that a call of `scheduler.step` returned or that the solver went on with, if it tells.

    Args:
        scheduler ([`Scheduler`]): Any scheduler of diffusers.
        output: What the call returned.
        thresholded (sequence of `torch.Tensor`): What it thresholded meanwhile.
    """
    if isinstance(output, tuple):
        position = _x0_position(type(scheduler).step)
        stated = output[position] if position is not None and position < len(output) else None
    else:
        stated = next((getattr(output, name) for name in _X0_FIELDS if hasattr(output, name)), None)
    outputs = getattr(scheduler, "model_outputs", None)
    if stated is None and thresholded:
        return thresholded[-1]
    if stated is None and outputs and hasattr(scheduler, "convert_model_output") and _predicts_x0(scheduler):
        stated = outputs[-1]
    return stated


def as_clipped(scheduler: Scheduler, x0: torch.Tensor) -> torch.Tensor:
    """x̂_0 as a solver goes on with it that neither returns nor holds it, but clips it."""
    return x0.clamp(-1, 1) if scheduler.config.get("clip_denoised", False) else x0


def check_x0(scheduler: Scheduler, timestep: float, stated: bool = True) -> None:
    """Refuses a scheduler that neither tells x̂_0 nor what its predictions mean.

    Args:
        scheduler ([`Scheduler`]): Any scheduler of diffusers.
        timestep (`float`): A timestep of the coming run.
        stated (`bool`): Whether it is enough that the scheduler tells x̂_0.

    Raises:
        ValueError: if x̂_0 cannot be known.
    """
    if not stated or _x0_position(type(scheduler).step) is None:
        level = noise_level(scheduler, timestep, 0, getattr(scheduler, "sigmas", None))
        x0_and_noise(scheduler, level, torch.zeros(1), torch.zeros(1))


def _predicts_x0(scheduler: Scheduler) -> bool:
    if hasattr(scheduler, "predict_x0"):
        return bool(scheduler.predict_x0)
    algorithm = str(scheduler.config.get("algorithm_type", ""))
    return algorithm.endswith("dpmsolver++") or hasattr(scheduler, "precondition_outputs")


@functools.cache
def _x0_position(step: Callable[..., Any]) -> int | None:
    """Where x̂_0 stands in the tuple that a class's `step` returns: as in the output class that it declares."""
    try:
        declared = typing.get_type_hints(step)["return"]
    except (KeyError, NameError, TypeError):
        return None
    for output in typing.get_args(declared) or (declared,):
        if is_dataclass(output):
            names = [field.name for field in fields(output)]
            return next((names.index(name) for name in _X0_FIELDS if name in names), None)
    return None
