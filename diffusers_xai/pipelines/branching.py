"""Runs that proceed together and can be branched: the steps before a branch are done once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusers_xai.models import ClosedFormDenoiser
from diffusers_xai.passed import Scheduler
from diffusers_xai.pipelines.arguments import set_timesteps
from diffusers_xai.pipelines.pipeline_xai import XAIPipeline
from diffusers_xai.taps import copy_scheduler


def begin(pipe: XAIPipeline, num_inference_steps: int | None) -> torch.Tensor:
    """Gives the pipeline's scheduler its timesteps, and returns them.

    Raises:
        ValueError: If the number does not fit the scheduler, or a closed form was made for other noise.
    """
    if isinstance(pipe.unet, ClosedFormDenoiser):
        pipe.unet.check_scheduler(pipe.scheduler)
    return set_timesteps(pipe.scheduler, num_inference_steps, None, None, pipe._execution_device)


@dataclass
class BranchingRun:
    """A run under way: its images, and the state of all that changes from step to step.

    Args:
        sample (`torch.Tensor` of shape `(seed, channel, height, width)`): The states.
        labels (`list[int | None]`): A label for each.
        scheduler ([`~diffusers.SchedulerMixin`]): A scheduler of its own.
        generators (`list[torch.Generator]`): A source of noise for each.
    """

    sample: torch.Tensor
    labels: list[int | None]
    scheduler: Scheduler
    generators: list[torch.Generator]

    @classmethod
    def start(cls, pipe: XAIPipeline, labels: list[int | None], seeds: Sequence[int]) -> "BranchingRun":
        """The beginning of a run, after the pipeline's scheduler has been given its timesteps."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return cls(pipe.prepare_sample(len(seeds), generators), labels, copy_scheduler(pipe.scheduler), generators)

    def branch(self, label: int | None) -> "BranchingRun":
        """The same run from here on under another label."""
        copies = [torch.Generator(g.device).set_state(g.get_state()) for g in self.generators]
        return BranchingRun(self.sample, [label] * len(self.labels), copy_scheduler(self.scheduler), copies)


def predict_runs(
    pipe: XAIPipeline, runs: Sequence[BranchingRun], t: torch.Tensor, guidance_scale: float
) -> list[torch.Tensor]:
    """The network's output for every run, in one call. It leaves the pipeline with the first run's scheduler."""
    pipe.scheduler = runs[0].scheduler
    labels = [label for run in runs for label in run.labels]
    output = pipe.predict(torch.cat([run.sample for run in runs]), t, labels, guidance_scale)
    return list(output.split(len(runs[0].labels)))


def predict_in_parts(
    pipe: XAIPipeline, runs: Sequence[BranchingRun], t: torch.Tensor, guidance_scale: float, max_rows: int
) -> list[torch.Tensor]:
    """The network's output for every run, as many whole runs at a time as `max_rows` holds."""
    together = max(1, max_rows // len(runs[0].labels))
    parts = [runs[start : start + together] for start in range(0, len(runs), together)]
    return [output for part in parts for output in predict_runs(pipe, part, t, guidance_scale)]


def step_runs(
    pipe: XAIPipeline, runs: Sequence[BranchingRun], outputs: Sequence[torch.Tensor], t: torch.Tensor, eta: float
) -> None:
    """Takes every run's step. It leaves the pipeline with the last run's scheduler."""
    for run, output in zip(runs, outputs, strict=True):
        pipe.scheduler = run.scheduler
        arguments = pipe.prepare_extra_step_kwargs(run.generators, eta)
        run.sample = run.scheduler.step(output, t, run.sample, **arguments).prev_sample
