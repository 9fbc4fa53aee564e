"""What a run says about its label while it goes: the likelihood of its steps under each label's own means."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler

from diffusers_xai.pipelines.branching import begin
from diffusers_xai.pipelines.pipeline_xai import XAIPipeline


def ancestral(pipe: XAIPipeline) -> XAIPipeline:
    """The same network, sampled by DDPM with its noise schedule and the posterior's variance β̃.

    Raises:
        ValueError: If the pipeline's scheduler has no ᾱ, as those of flow matching, whose steps add no noise.
    """
    if not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise ValueError(
            "Expected a scheduler with `alphas_cumprod`, whose noise schedule DDPM can run backwards, got"
            f" {type(pipe.scheduler).__name__}."
        )
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config, variance_type="fixed_small")
    run = XAIPipeline(pipe.unet, scheduler)
    run.set_progress_bar_config(disable=True)
    return run


@torch.no_grad()
def label_evidence(
    pipe: XAIPipeline,
    labels: Sequence[int],
    given: Sequence[int],
    seeds: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    max_rows: int = 64,
    observe: Callable[[int, torch.Tensor, torch.Tensor], Any] | None = None,
) -> torch.Tensor:
    r"""The log of P(y | x_T … x_t) of every label along runs by DDPM, all labels being equally likely beforehand.

    Each step adds log N(x_{s−1}; μ_y(x_s), β̃_s), with the mean μ_y that the network has under the label y: as many of
    its rows as labels. As all runs begin in the same noise, that is Bayes' rule for the sampler's own runs, at any
    number of steps. Where the network is exact and the steps are small, it is P(y | x_t) of the data, for of the
    states passed, only the last one says anything about the label. With guidance it tells the labels of the guided
    sampler apart, which is sooner sure than the data.

    Source: Li and Chen 2024, *Critical windows*.

    Args:
        pipe ([`XAIPipeline`]): A conditional model of which [`ancestral`] made the scheduler.
        labels (`Sequence[int]`): The labels that are told apart.
        given (`Sequence[int]`): Which one of `labels`, by its place, each run is made with.
        seeds (`Sequence[int]`): One run for each.
        num_inference_steps (`int`, *optional*): Number of denoising steps; as in a call of the pipeline if `None`.
        guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance; 1 is none.
        max_rows (`int`, *optional*, defaults to 64): Images in one call of the network, at least one run's.
        observe (`Callable`, *optional*): Called as `observe(step, states, x0)` in each step, with the states before it
            `(seed, channel, height, width)` and the clean images that each label sees in them `(label, seed, …)`.

    Returns:
        `torch.Tensor` of shape `(step, seed, label)`, float64: before each step, from equal shares on.

    Raises:
        ValueError: If a label is none of the model's.
    """
    codes = pipe.encode_labels(list(labels), len(labels), guidance_scale)
    scheduler, count, rows = pipe.scheduler, len(seeds), list(range(len(seeds)))
    timesteps = begin(pipe, num_inference_steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    unused = torch.Generator()  # x̂_0, which is all that is wanted of these steps, comes before the noise
    sample = pipe.prepare_sample(count, generators)
    evidence = torch.zeros(count, len(codes), dtype=torch.float64)
    told = []
    for i, t in enumerate(pipe.progress_bar(timesteps)):
        told.append(evidence.log_softmax(-1))
        together = max(1, max_rows // count)
        outputs, clean = [], []
        for start in range(0, len(codes), together):
            part = codes[start : start + together]
            states = sample.repeat(len(part), 1, 1, 1)
            output = pipe.predict(states, t, [code for code in part for _ in seeds], guidance_scale)
            output = output[:, : sample.shape[1]]  # not what a network says of the variance
            step = scheduler.step(output, t, states, generator=unused)
            outputs += output.split(count)
            clean += step.pred_original_sample.split(count)
        own, x0 = torch.stack(outputs)[list(given), rows], torch.stack(clean)
        before, sample = sample, scheduler.step(own, t, sample, generator=generators).prev_sample
        if i + 1 < len(timesteps):
            evidence = evidence + _log_density(scheduler, int(t), before, sample, x0).T.cpu()
        if observe is not None:
            observe(i, before, x0)
    return torch.stack(told)


def _log_density(
    scheduler: DDPMScheduler, t: int, before: torch.Tensor, after: torch.Tensor, x0: torch.Tensor
) -> torch.Tensor:
    """The log of N(x_{s−1}; μ_y, β̃) up to a constant, `(label, seed)`, of the mean that DDPM makes of x_s and x̂_0."""
    alpha, previous = (float(scheduler.alphas_cumprod[s]) for s in (t, int(scheduler.previous_timestep(t))))
    kept = alpha / previous
    of_clean = previous**0.5 * (1 - kept) / (1 - alpha)
    of_state = kept**0.5 * (1 - previous) / (1 - alpha)
    variance = (1 - previous) / (1 - alpha) * (1 - kept)
    rest = (after.double() - of_state * before.double()) - of_clean * x0.double()
    return -rest.flatten(2).square().sum(-1) / (2 * variance)
