"""Images noised to several times of the process, and denoised from there."""

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor

from diffusers_xai.pipelines.branching import BranchingRun, begin, predict_in_parts, step_runs
from diffusers_xai.pipelines.pipeline_xai import XAIPipeline
from diffusers_xai.taps import copy_scheduler


@torch.no_grad()
def noise_and_back(
    pipe: XAIPipeline,
    images: torch.Tensor,
    label: int | None,
    seeds: Sequence[int],
    starts: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    max_rows: int = 64,
) -> torch.Tensor:
    """What comes back of images that were noised, as in training, to the beginning of each of several steps.

    Source: Deja et al. 2022, *On analyzing generative and denoising capabilities of diffusion-based deep generative
    models*.

    Args:
        pipe ([`XAIPipeline`]): A model of which [`ancestral`] made the scheduler.
        images (`torch.Tensor` of shape `(seed, channel, height, width)`): In [-1, 1].
        label (`int`, *optional*): The label that they are denoised under.
        seeds (`Sequence[int]`): Of the noise, one for each image.
        starts (`Sequence[int]`): Indices of the steps, each once.
        num_inference_steps (`int`, *optional*): Number of denoising steps of the whole process.
        guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance; 1 is none.
        max_rows (`int`, *optional*, defaults to 64): Images in one call of the network, at least one run's.

    Returns:
        `torch.Tensor` of shape `(start, seed, channel, height, width)`.

    Raises:
        ValueError: If the label is none of the model's, or a start is not one of the run's or stands twice.
    """
    labels = pipe.encode_labels(label, len(seeds), guidance_scale)
    timesteps = begin(pipe, num_inference_steps)
    if len(set(starts)) != len(starts) or not all(0 <= start < len(timesteps) for start in starts):
        raise ValueError(f"Expected `starts` in 0..{len(timesteps) - 1}, each once, got {list(starts)}.")
    images = images.to(pipe._execution_device, pipe.unet.dtype)
    original, runs = pipe.scheduler, dict[int, BranchingRun]()
    try:
        for i, t in enumerate(pipe.progress_bar(timesteps)):
            if i in starts:
                # The same noise at every start: what differs is how much of it there is.
                generators = [torch.Generator().manual_seed(seed) for seed in seeds]
                noise = randn_tensor(images.shape, generator=generators, device=images.device, dtype=images.dtype)
                noised = original.add_noise(images, noise, t.expand(len(seeds)))
                runs[i] = BranchingRun(noised, labels, copy_scheduler(original), generators)
            if runs:
                together = list(runs.values())
                outputs = predict_in_parts(pipe, together, t, guidance_scale, max_rows)
                step_runs(pipe, together, outputs, t, 0.0)
    finally:
        pipe.scheduler = original
    return torch.stack([runs[start].sample for start in starts])
