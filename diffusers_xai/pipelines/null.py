"""What would be seen if a network had learned nothing but the mean and the covariance of its images."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from diffusers_xai.explainers import Samples
from diffusers_xai.models import GaussianDenoiser, MixtureDenoiser
from diffusers_xai.models.covariances import MAX_EXACT, check_covariance_type
from diffusers_xai.models.noise_schedule import schedule_of
from diffusers_xai.pipelines.pipeline_xai import XAIPipeline
from diffusers_xai.recording import record
from diffusers_xai.taps import copy_scheduler


NUM_SAMPLES = 1024


def covariance_null(
    pipe: DiffusionPipeline,
    *,
    labels: Sequence[int] = (),
    num_samples: int = NUM_SAMPLES,
    batch_size: int = 32,
    covariance_type: str | None = None,
    rank: int | None = None,
    seed: int = 0,
    **call: Any,
) -> XAIPipeline:
    """The covariance null of a model: a pipeline whose denoiser is fitted in closed form to the model's own samples.

    With labels it is a [`MixtureDenoiser`] with a mean for each of them and one covariance, to be called with the same
    labels; without, a [`GaussianDenoiser`]. What an explanation shows of the model says something about the network
    only as far as it exceeds what it shows of this.

    A covariance of few samples is a rough one: pixels far apart covary by chance. Of a Gaussian with the covariance of
    11,188 photographs of faces at 32 px, the root mean square distance from which the eyes are predicted is 6.3, 5.6
    and 1.3 px at t = 950, 600 and 100. From 256 draws of it, `"shrunk"` gave 6.2 to 6.7, 5.6 to 5.9 and 1.6 to
    1.8; from 1,024 draws 6.4 to 6.5, 5.8 to 5.9 and 2.0, and 256 principal components 6.4, 5.7 and 4.0. What counts
    small values suffers most: the thesis's share of input pixels above the mean of ε's gradient volume, at t = 600, is
    1.1 % in truth, 2.0 to 2.9 % from 1,024 draws, and 4.4 to 8.5 % from 256. Such a control errs towards more spread:
    what exceeds it exceeds the truth, too; what does not may still do so. Where the data is at hand, fit the denoiser
    to it. The repository's `training/null_quality.py` measures this of any images.

    ```py
    null = covariance_null(pipe, labels=[0b0011, 0b0100], num_inference_steps=50)
    null(class_labels=[0b0011], record=[GradientEnergy(mask=eyes)])
    ```

    Args:
        pipe ([`~diffusers.DiffusionPipeline`]): The model; it is left as it is. Its samples are taken in the
            denoiser's own space: latents where it has an autoencoder.
        labels (`Sequence[int]`, *optional*): Labels to sample in turn; needed by a conditional [`XAIPipeline`].
        num_samples (`int`, defaults to 1024): Number of samples; of fewer, see above. At 20 steps, those of `lfw-32`
            take about two minutes of one CPU core.
        batch_size (`int`, defaults to 32): Samples in one call, where the pipeline has such an argument.
        covariance_type (`str`, *optional*): `"shrunk"`, `"low_rank"` or `"spectrum"`, see [`GaussianDenoiser`];
            `"shrunk"` if `None`, with a `rank` or for samples of more than 4096 values `"low_rank"`.
        rank (`int`, *optional*): Components of a low-rank covariance; a quarter of the number of samples if `None`.
        seed (`int`, defaults to 0): Of the noise.
        call: Further arguments of the pipeline, such as `num_inference_steps=50` or `prompt="a red fox"`.

    Raises:
        ValueError: If there are too few samples for a covariance, or the scheduler's timesteps tell no noise level,
            before sampling; if samples are too large for the kind of covariance, after the first batch.
    """
    samples = draw_samples(
        pipe,
        labels=labels,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=seed,
        covariance_type=covariance_type,
        **call,
    )
    of_samples = [int(labels[i % len(labels)]) for i in range(len(samples))] if labels else None
    return fit_to_samples(pipe, samples, of_samples, covariance_type=covariance_type, rank=rank)


def draw_samples(
    pipe: DiffusionPipeline,
    *,
    labels: Sequence[int] = (),
    num_samples: int = NUM_SAMPLES,
    batch_size: int = 32,
    seed: int = 0,
    covariance_type: str | None = None,
    **call: Any,
) -> torch.Tensor:
    """Samples `(sample, channel, height, width)` of a model, the labels in turn; arguments as of [`covariance_null`].

    Raises:
        ValueError: If nothing could be fitted to them; before sampling.
    """
    if num_samples < max(4, len(set(labels)) + 1):
        raise ValueError(f"Expected at least 4 samples, and more than labels, got {num_samples}.")
    schedule_of(pipe.scheduler, None)
    if covariance_type is not None:
        check_covariance_type(covariance_type)
    takes_size = "batch_size" in inspect.signature(type(pipe).__call__).parameters
    drawn: list[torch.Tensor] = []
    count = 0
    while count < num_samples:
        arguments = {**call, "generator": torch.Generator().manual_seed(seed + len(drawn))}
        size = min(batch_size, num_samples - count)
        if takes_size:
            arguments["batch_size"] = size
        if labels:
            arguments["class_labels"] = [int(labels[(count + i) % len(labels)]) for i in range(size)]
        with record(pipe, [Samples(steps=[-1], measures=())]) as recording:
            pipe(**arguments)
        profile: Any = recording.profile
        drawn.append(torch.from_numpy(profile["final_sample"].values).float())
        count += len(drawn[-1])
        if covariance_type is not None:
            check_covariance_type(covariance_type, drawn[0][0].numel())
    return torch.cat(drawn)


def fit_to_samples(
    pipe: DiffusionPipeline,
    samples: torch.Tensor,
    labels: Sequence[int] | None,
    *,
    covariance_type: str | None = None,
    rank: int | None = None,
) -> XAIPipeline:
    """The closed form of a model's samples: a mixture of their labels, a Gaussian without; see [`covariance_null`]."""
    if covariance_type is None:
        covariance_type = "shrunk" if rank is None and samples[0].numel() <= MAX_EXACT else "low_rank"
    kind: dict[str, Any] = {
        "covariance_type": covariance_type,
        "rank": rank or min(max(1, len(samples) // 4), samples[0].numel()),
    }
    scheduler = copy_scheduler(pipe.scheduler)
    if scheduler.config.get("use_dynamic_shifting"):  # by the number of tokens, which this pipeline has not
        scheduler = type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False)
    if labels is None:
        return XAIPipeline(GaussianDenoiser.fit(samples, scheduler, **kind), scheduler)
    config = pipe.unet.config
    denoiser = MixtureDenoiser.fit(
        samples,
        labels,
        scheduler,
        **kind,
        num_class_embeds=config.get("num_class_embeds"),
        null_class_label=-1 if config.get("null_class_label") is None else config["null_class_label"],
        class_attributes=config.get("class_attributes"),
    )
    return XAIPipeline(denoiser, scheduler)
