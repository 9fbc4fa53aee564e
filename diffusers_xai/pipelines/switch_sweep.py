"""Label switches at many steps in one pass: the steps before a switch are done once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from diffusers_xai.labels import ClassLabels
from diffusers_xai.pipelines.branching import BranchingRun, begin, predict_in_parts, step_runs
from diffusers_xai.pipelines.pipeline_xai import XAIPipeline


@torch.no_grad()
def switch_sweep(
    pipe: XAIPipeline,
    label: ClassLabels,
    to: ClassLabels,
    seeds: Sequence[int],
    switch_steps: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    eta: float = 0.0,
    max_rows: int = 64,
    callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], Any] | None = None,
) -> torch.Tensor:
    """Final states of runs whose label is switched at each of several steps, and of the run that is never switched.

    A run with `LabelSwitch(from_step=s, to=to)` equals the unswitched one up to step s. So the unswitched run is done
    once and branched at each s: with its state, its scheduler and its source of noise. All runs advance together. For
    ten switches evenly spread over the process, that takes 0.59 of the network's rows of the eleven runs.

    Source: thesis section 5.3.2, fig. 5.17.

    Args:
        pipe ([`XAIPipeline`]): A conditional model, with any scheduler.
        label (`int` or `dict[str, bool]`): The label up to the switch.
        to (`int` or `dict[str, bool]`): The label from the switch on.
        seeds (`Sequence[int]`): One image for each.
        switch_steps (`Sequence[int]`): Indices of the first denoiser call with the new label, each once.
        num_inference_steps (`int`, *optional*): Number of denoising steps; as in a call of the pipeline if `None`.
        guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance; 1 is none.
        eta (`float`, *optional*, defaults to 0.0): η of DDIM; other schedulers ignore it.
        max_rows (`int`, *optional*, defaults to 64): Images in one call of the network. With the number of seeds,
            every image is bit for bit that of a run of its own in a batch of all seeds; with more, up to rounding.
        callback_on_step_end (`Callable`, *optional*):
            Called as `callback(pipe, step, timestep, {"sample": x})` after every step of all runs, with x of shape
            `(seed, channel, height, width)` of the run that is never switched. What it returns is not used. An error
            that it raises ends the sweep and leaves the pipeline as it was.

    Returns:
        `torch.Tensor` of shape `(1 + switch, seed, channel, height, width)`: the unswitched run first.

    Raises:
        ValueError: If a label is none of the model's, or a switch step is not one of the run's or stands twice.
    """
    labels = pipe.encode_labels(label, len(seeds), guidance_scale)
    new_label = pipe.encode_labels(to, 1, guidance_scale)[0]
    timesteps = begin(pipe, num_inference_steps)
    steps = list(switch_steps)
    if len(set(steps)) != len(steps) or not all(0 <= step < len(timesteps) for step in steps):
        raise ValueError(f"Expected `switch_steps` in 0..{len(timesteps) - 1}, each once, got {steps}.")

    original = pipe.scheduler
    unswitched = BranchingRun.start(pipe, labels, seeds)
    runs = {-1: unswitched}
    try:
        for i, t in enumerate(pipe.progress_bar(timesteps)):
            if i in steps:
                runs[i] = unswitched.branch(new_label)
            together = list(runs.values())
            outputs = predict_in_parts(pipe, together, t, guidance_scale, max_rows)
            step_runs(pipe, together, outputs, t, eta)
            if callback_on_step_end is not None:
                callback_on_step_end(pipe, i, t, {"sample": unswitched.sample})
    finally:
        pipe.scheduler = original
    return torch.stack([runs[step].sample for step in (-1, *steps)])
