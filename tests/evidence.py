"""Runs by mixtures whose P(y | x_t) is known, and what they say about their labels."""

import numpy as np
from diffusers import DDPMScheduler

from diffusers_xai import MixtureDenoiser, XAIPipeline
from diffusers_xai.pipelines.label_evidence import ancestral, label_evidence


def mixture_pipeline(means, covariance):
    """A Gaussian for each label, of means (label, dim) and one covariance (dim, dim), by DDPM."""
    size = (2, 2) if means.shape[1] == 4 else (1, means.shape[1])
    scheduler = DDPMScheduler(clip_sample=False)
    unet = MixtureDenoiser.from_moments(means.view(-1, 1, *size), covariance[None], scheduler)
    return ancestral(XAIPipeline(unet, scheduler))


def evidence_of_states(pipe, labels, given, seeds, steps):
    """log P(y | run) (step, seed, label), the states (step, seed, dim) and the timesteps."""
    states = []
    told = label_evidence(
        pipe, labels, given, list(seeds), num_inference_steps=steps, max_rows=10**6,
        observe=lambda step, before, x0: states.append(before.flatten(1).numpy()),
    )  # fmt: skip
    return told.numpy(), np.stack(states), pipe.scheduler.timesteps.numpy()
