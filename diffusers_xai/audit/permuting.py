"""A model whose labels mean nothing: data randomisation."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler

from diffusers_xai.models import ClosedFormDenoiser
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.null import fit_to_samples
from diffusers_xai.prediction import prediction_from


STEPS, BATCH, LEARNING_RATE = 150, 16, 3e-4


def check_same_network(config: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises if a network cannot be the same one, trained on permuted labels.

    Args:
        config (`Mapping[str, Any]`): Of the model that is audited, and
        other (`Mapping[str, Any]`): of the network trained on permuted labels, both with `_class_name`.

    Raises:
        ValueError: If the model takes no labels, or their classes or settings differ.
    """
    if config.get("num_class_embeds") is None:
        raise ValueError("Expected a model with labels for a network trained on permuted ones, got one without.")
    ours, theirs = (
        {
            key: json.loads(json.dumps(value))
            for key, value in settings.items()
            if key == "_class_name" or not key.startswith("_")
        }
        for settings in (config, other)
    )
    different = [
        f"{key.lstrip('_')} {theirs.get(key)!r} instead of {value!r}"
        for key, value in ours.items()
        if theirs.get(key) != value
    ]
    if different:
        raise ValueError(f"Expected the same network trained on permuted labels, got {'; '.join(different)}.")


def permuted(labels: Sequence[int], seed: int = 0) -> list[int]:
    """The same labels in another order, so that they say nothing of the samples."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [int(labels[i]) for i in order]


def trained_on_permuted_labels(
    pipe: XAIPipeline, samples: torch.Tensor, labels: Sequence[int], *, steps: int = STEPS, seed: int = 0
) -> XAIPipeline:
    """The same model after it has learned labels that mean nothing.

    A closed form is refitted to the samples with permuted labels. A copy of a network, in single precision, is
    trained further on them: it keeps what it knows of images, and loses what it knows of labels.

    Source: Adebayo et al. 2018, section 3.2 (data randomisation), here from the trained weights on.

    Args:
        pipe ([`XAIPipeline`]): The model; it is left as it is.
        samples (`torch.Tensor` of shape `(sample, channel, height, width)`): Its own.
        labels (sequence of `int`): What they were asked to show.
        steps (`int`): Training steps, of 16 samples each.
        seed (`int`): Of the labels' order, the noise and the choice of samples.
    """
    labels = permuted(labels, seed)
    if isinstance(pipe.unet, ClosedFormDenoiser):
        other = fit_to_samples(pipe, samples.to(pipe.unet.dtype), labels)
        return XAIPipeline(other.unet.to(pipe.device), pipe.scheduler)
    unet = copy.deepcopy(pipe.unet).float().requires_grad_(True).train()
    alphas = DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE)
    generator, of_samples = torch.Generator().manual_seed(seed), torch.tensor(labels)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(samples), (BATCH,), generator=generator)
            times = torch.randint(len(alphas), (BATCH,), generator=generator)
            clean, noise = samples[rows], torch.randn(BATCH, *samples.shape[1:], generator=generator)
            signal, sigma = ((a**0.5).view(-1, 1, 1, 1) for a in (alphas[times], 1 - alphas[times]))
            target = prediction_from(kind, clean, noise, signal, sigma)
            noisy, when, what = (x.to(pipe.device) for x in (signal * clean + sigma * noise, times, of_samples[rows]))
            predicted = unet(noisy, when, class_labels=what).sample
            loss = (predicted - target.to(pipe.device)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return XAIPipeline(unet.requires_grad_(False).eval(), pipe.scheduler)
