"""What is explained: noisy samples of a model at one timestep, and the part of the clean image that is asked about."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from diffusers_xai.explainers import Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording import RecordSpec, record
from diffusers_xai.taps import noise_level, x0_and_noise


SCHEDULERS = {"DDIM": DDIMScheduler, "DPM-Solver": DPMSolverMultistepScheduler}


@dataclass(frozen=True)
class Case:
    """Noisy samples at one timestep, and what is asked: how the mask's part of x̂_0 comes about.

    Args:
        pipe ([`XAIPipeline`]): The model that is explained.
        sample (`torch.Tensor` of shape `(batch, channel, height, width)`): x_t, one for each seed.
        timestep (`int`): t.
        mask (`np.ndarray` of shape `(height, width)`, bool): The pixels of x̂_0 that are asked about.
        images (`torch.Tensor` of shape `(batch, channel, height, width)`): What the runs ended in, in [-1, 1].
        label (`int`, *optional*): The label of all samples, and
        other_label (`int`, *optional*): another one; `None` of a model without labels.
    """

    pipe: XAIPipeline
    sample: torch.Tensor
    timestep: int
    mask: np.ndarray
    images: torch.Tensor
    label: int | None = None
    other_label: int | None = None

    @cached_property
    def scheduler(self) -> DDPMScheduler:
        """A scheduler of one step, at the timestep, that does not clip."""
        config = {**self.pipe.scheduler.config, "clip_sample": False, "thresholding": False}
        scheduler = DDPMScheduler.from_config(config)
        scheduler.set_timesteps(timesteps=[self.timestep])
        return scheduler

    @property
    def alpha(self) -> float:
        """ᾱ at the timestep."""
        return float(self.scheduler.alphas_cumprod[self.timestep])

    def labels(self, label: int | None, batch: int) -> torch.Tensor | None:
        """The argument `class_labels` for a batch."""
        return None if label is None else torch.full((batch,), label, device=self.sample.device)

    def predict_x0(self, sample: torch.Tensor | None = None, label: int | None = None) -> torch.Tensor:
        """The clean image x̂_0 that the model predicts, differentiable, not clipped.

        Args:
            sample (`torch.Tensor` of shape `(n · batch, channel, height, width)`, *optional*): Instead of x_t.
            label (`int`, *optional*): Instead of the label.
        """
        sample = self.sample if sample is None else sample
        labels = self.labels(self.label if label is None else label, len(sample))
        output = self.pipe.unet(sample, self.scheduler.timesteps[0], class_labels=labels).sample
        return x0_and_noise(self.scheduler, noise_level(self.scheduler, self.timestep), output, sample)[0]

    def answer(self, x0: torch.Tensor) -> torch.Tensor:
        """What is explained: the sum of x̂_0 over the mask and the colours, `(batch,)`."""
        return (x0 * torch.as_tensor(self.mask, device=x0.device)).sum((1, 2, 3))

    def record(self, *specs: RecordSpec) -> DiffusionProfile:
        """What the package records of the one step from x_t."""
        probe = XAIPipeline(self.pipe.unet, self.scheduler)
        t = self.scheduler.timesteps[0]
        with torch.no_grad(), record(probe, specs) as recording:
            output = probe.unet(self.sample, t, class_labels=self.labels(self.label, len(self.sample))).sample
            self.scheduler.step(output, t, self.sample, generator=torch.Generator().manual_seed(0))
        profile: Any = recording.profile
        return profile

    def of(self, pipe: XAIPipeline) -> "Case":
        """The same samples, shown to another model."""
        return replace(self, pipe=pipe)


def make_cases(
    pipe: XAIPipeline,
    *,
    seeds: list[int],
    timesteps: list[int],
    steps: int,
    mask: np.ndarray,
    label: int | None,
    other_label: int | None,
    scheduler: str = "DDIM",
) -> list[Case]:
    """A case for each timestep, with a sample for each seed, out of runs of the model with a deterministic solver."""
    sampler = XAIPipeline(pipe.unet, SCHEDULERS[scheduler].from_config(pipe.scheduler.config))
    sampler.set_progress_bar_config(disable=True)
    output: Any = sampler(
        class_labels=None if label is None else [label],
        batch_size=len(seeds),
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        record=[Samples(timesteps=timesteps, x0=False, measures=())],
    )
    states, final = output.profile["samples"], output.profile["final_sample"]
    device = pipe.device
    return [
        Case(
            pipe,
            torch.from_numpy(states.isel(step=index).values).to(device),
            round(float(states["timestep"][index])),
            mask,
            torch.from_numpy(final.values).to(device),
            label,
            other_label,
        )
        for index in range(states.sizes["step"])
    ]
