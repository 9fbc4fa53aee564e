"""What an experiment would show if the network had learned nothing: its controls."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, ModelMixin

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.sampling import Sampling, generators
from diffusers_xai.models.noise_schedule import schedule_of
from diffusers_xai.passed import Pipeline, Scheduler
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.null import NUM_SAMPLES, covariance_null
from diffusers_xai.prediction import is_flow
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording import RecordSpec
from diffusers_xai.taps import copy_scheduler


# A control by name, or a pipeline to be measured in the model's place.
Null = str | XAIPipeline
NULLS = {
    "gaussian": "a Gaussian for each label, fitted to the model's own samples: mean and covariance, no network",
    "random-weights": "the same network with random weights, on the model's own states",
    "forward-noising": "the model's own images, noised as in training",
    "random-channel": "a random channel of the same layer",
    "same-label": "the same patches from a run of the same label and other noise",
    "permuted-masks": "the masks of other pictures, and random units that are about as active",
    "random-direction": "a random direction of the same norm in the same layer",
    "none": "no control",
}
FIT_STEPS = 20


def gaussian_null(
    pipe: XAIPipeline, labels: Sequence[int] = (), *, num_samples: int = NUM_SAMPLES, batch_size: int = 32
) -> XAIPipeline:
    """[`covariance_null`] of samples that are drawn by a solver that needs few steps (DPM-Solver++, 20 of them).

    A flow is followed by the model's own scheduler.

    Args:
        pipe ([`XAIPipeline`]): The model.
        labels (`Sequence[int]`): A Gaussian for each; one for all without.
        num_samples (`int`): Samples, of all labels together.
        batch_size (`int`): Images in one call of the network.

    Raises:
        ValueError: If the scheduler's timesteps tell no noise level.
    """
    schedule_of(pipe.scheduler, None)  # refuses what has no noise level
    flow = is_flow(pipe.scheduler)
    scheduler = (
        copy_scheduler(pipe.scheduler) if flow else DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    )
    solver = XAIPipeline(pipe.unet, scheduler)
    solver.set_progress_bar_config(disable=True)
    null = covariance_null(
        solver,
        labels=labels,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=10**6,  # far from the seeds of experiments
        num_inference_steps=FIT_STEPS,
    )
    return _in_place_of(pipe, null.unet)


def random_weights(pipe: XAIPipeline, seed: int = 10**6) -> XAIPipeline:
    """The same pipeline with a network whose weights were redrawn, as before its training."""
    return _in_place_of(pipe, _untrained(pipe.unet, seed).eval())


@contextmanager
def random_weights_inside(pipe: Pipeline, seed: int = 10**6) -> Iterator[None]:
    """The denoisers of any pipeline with redrawn weights, in place, while the context lasts."""
    networks = get_denoiser(pipe).components.values()
    trained = [copy.deepcopy(network.state_dict()) for network in networks]
    try:
        for network in networks:
            draw_anew(network, seed)
        yield
    finally:
        for network, weights in zip(networks, trained, strict=True):
            network.load_state_dict(weights)


def draw_anew(network: ModelMixin, seed: int) -> None:
    """Draws a network's weights as before its training.

    Most modules do it themselves, in place; tables and other parameters that none draws are those of a new network,
    which is made only for them.
    """
    left = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in network.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            else:
                left += [f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False)]
    if left:
        new = dict(_untrained(network, seed).named_parameters())
        for name in left:
            network.get_parameter(name).data.copy_(new[name])


def _untrained(network: ModelMixin, seed: int) -> ModelMixin:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(network).from_config(network.config)


def _in_place_of(pipe: XAIPipeline, unet: ModelMixin) -> XAIPipeline:
    """The pipeline with another network, on the same device and in the same dtype."""
    if unet.dtype != pipe.unet.dtype:
        unet = unet.to(pipe.unet.dtype)
    null = XAIPipeline(unet.to(pipe.device), pipe.scheduler)
    null.set_progress_bar_config(disable=True)
    return null


def noise_ratio(sigma: Any, scheduler: Scheduler) -> Any:
    """√((1 − ᾱ) / ᾱ) of a profile's sigmas, which in flow matching are the share of noise."""
    return sigma / (1 - sigma) if is_flow(scheduler) else sigma


def state_size(sigma: Any, scheduler: Scheduler) -> Any:
    """How large a scheduler's states are beside √ᾱ x_0 + √(1 − ᾱ) ε, at a profile's sigmas."""
    if is_flow(scheduler):
        return np.hypot(1 - sigma, sigma)
    exploding = float(getattr(scheduler, "init_noise_sigma", 1.0)) > 1.5  # as those of EulerDiscreteScheduler
    return np.sqrt(1 + sigma**2) if exploding else sigma**0  # ones, of whatever kind sigma is


def null_pipeline(null: Null, pipe: XAIPipeline, sampling: Sampling, **options: int) -> XAIPipeline | None:
    """The pipeline that a null stands for, `options` being those of [`gaussian_null`]; `None` for others."""
    if isinstance(null, XAIPipeline):
        return null
    if null == "gaussian":
        return gaussian_null(pipe, sampling.labels, batch_size=sampling.batch_size, **options)
    return random_weights(pipe) if null == "random-weights" else None


def on_states_of(
    profile: DiffusionProfile,
    null: XAIPipeline,
    sampling: Sampling,
    seeds: Sequence[int],
    record: Sequence[RecordSpec],
) -> DiffusionProfile:
    """What another network sees in the states of a run: it is asked at every step, its answers are not followed.

    Args:
        profile ([`DiffusionProfile`]): Of the run, with the samples of every step.
        null ([`XAIPipeline`]): Whose network is asked.
        sampling ([`Sampling`]): The run's.
        seeds (`Sequence[int]`): The run's.
        record (`Sequence[RecordSpec]`): What to record.
    """
    states = torch.from_numpy(profile["samples"].values)
    if len(states) < sampling.steps:
        raise ValueError(f"Expected the samples of all {sampling.steps} steps, got {len(states)}.")

    def follow(pipe: XAIPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        return {"sample": states[step + 1].to(tensors["sample"])} if step + 1 < len(states) else {}

    output: Any = null(
        class_labels=sampling.labels[0] if sampling.labels else None,
        batch_size=len(seeds),
        num_inference_steps=sampling.steps,
        generator=generators(seeds),
        guidance_scale=sampling.guidance_scale,
        sample=states[0] / float(getattr(null.scheduler, "init_noise_sigma", 1.0)),
        record=record,
        callback_on_step_end=follow,
        output_type="pt",
    )
    return output.profile


def forward_path(
    final: np.ndarray, sigmas: np.ndarray, seeds: Sequence[int], scheduler: Scheduler
) -> Iterator[np.ndarray]:
    """Finished images with more and more noise, one path for each, as in training.

    Of an ideal model, the paths of sampling by DDPM have exactly this law.

    Args:
        final (`(seed, channel, height, width)`): The images.
        sigmas (`(step,)`): Those of a profile of the scheduler, falling as in sampling.
        seeds (`Sequence[int]`): Of the noise.
        scheduler: Whose states the path is made of.

    Yields:
        `np.ndarray` of shape `(seed, channel, height, width)`: x_t = √ᾱ x_0 + √(1 − ᾱ) ε in the scheduler's form, from
        the last of `sigmas`, the least noise, to the first.
    """
    sources = [np.random.default_rng([seed, 1]) for seed in seeds]
    state, before = np.asarray(final, dtype=np.float64), 1.0
    sigmas = np.asarray(sigmas, dtype=np.float64)[::-1]
    with np.errstate(divide="ignore"):  # pure noise
        alphas = 1 / (1 + noise_ratio(sigmas, scheduler) ** 2)
    for alpha, size in zip(alphas, state_size(sigmas, scheduler), strict=True):
        noise = np.stack([source.standard_normal(state.shape[1:]) for source in sources])
        state = np.sqrt(alpha / before) * state + np.sqrt(max(0.0, 1 - alpha / before)) * noise
        before = alpha
        yield (state * size).astype(np.float32)
