"""Runs of every label in the first part of the process with every label in the second: the first part is done once."""

from collections.abc import Sequence

import torch

from diffusers_xai.pipelines.branching import BranchingRun, begin, predict_in_parts, step_runs
from diffusers_xai.pipelines.pipeline_xai import XAIPipeline


@torch.no_grad()
def label_tree(
    pipe: XAIPipeline,
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    eta: float = 0.0,
    max_rows: int = 64,
) -> torch.Tensor:
    """Final states of runs whose label is switched after half of the steps, of all pairs of labels.

    Args:
        pipe ([`XAIPipeline`]): A conditional model, with any scheduler.
        labels (`Sequence[int]`): The labels.
        seeds (`Sequence[int]`): One image for each, of every pair.
        num_inference_steps (`int`, *optional*): Number of denoising steps; as in a call of the pipeline if `None`.
        guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance; 1 is none.
        eta (`float`, *optional*, defaults to 0.0): η of DDIM; other schedulers ignore it.
        max_rows (`int`, *optional*, defaults to 64): Images in one call of the network, at least one run's.

    Returns:
        `torch.Tensor` of shape `(first label, second label, seed, channel, height, width)`.

    Raises:
        ValueError: If a label is none of the model's, or there are fewer than two steps.
    """
    codes = pipe.encode_labels(list(labels), len(labels), guidance_scale)
    timesteps = begin(pipe, num_inference_steps)
    if len(timesteps) < 2:
        raise ValueError(f"Expected at least two steps, got {len(timesteps)}.")
    original = pipe.scheduler
    runs = [BranchingRun.start(pipe, [code] * len(seeds), seeds) for code in codes]
    try:
        for i, t in enumerate(pipe.progress_bar(timesteps)):
            if i == len(timesteps) // 2:
                runs = [run.branch(code) for run in runs for code in codes]
            step_runs(pipe, runs, predict_in_parts(pipe, runs, t, guidance_scale, max_rows), t, eta)
    finally:
        pipe.scheduler = original
    return torch.stack([run.sample for run in runs]).unflatten(0, (len(codes), len(codes)))
