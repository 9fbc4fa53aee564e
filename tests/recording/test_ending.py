"""What a run ends with, and what it lets go of then."""

import gc
import weakref
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DPMSolverMultistepScheduler

from diffusers_xai import Samples, record
from diffusers_xai.recording.shadow import shadow_of
from diffusers_xai.taps.noise import thresholded
from tests.tiny import make_pipeline, unet_2d


class Rescaling(DDPMPipeline):
    """Takes steps from the bar itself, as many pipelines do, and puts its image into [0, 1]."""

    @torch.no_grad()
    def __call__(self):
        self.scheduler.set_timesteps(3)
        image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        gc.disable()
        for t in self.progress_bar(self.scheduler.timesteps):
            image = self.scheduler.step(self.unet(image, t).sample, t, image).prev_sample
        ended = image
        image = image / 2 + 0.5
        gc.collect()
        gc.enable()
        late = torch.zeros(1)
        return ended.numpy(), weakref.ref(late)


def test_a_bar_that_shows_nothing_tells_the_end_of_the_loop_and_the_run_lets_go_of_the_call():
    pipe = Rescaling(unet_2d(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    with record(pipe, [Samples(x0=False, measures=())]) as recording:
        ended, late = pipe()
        assert late() is None
        with shadow_of(pipe) as shadow:
            assert "progress_bar" not in vars(shadow)
    assert np.array_equal(recording.profile["final_sample"].values, ended)


def test_what_a_loop_does_in_place_behind_its_last_step_is_no_step():
    loop = SimpleNamespace(unet=torch.nn.Conv2d(3, 3, 1), scheduler=DDIMScheduler())
    loop.scheduler.set_timesteps(3)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with record(loop, [Samples(x0=False, measures=())]) as recording:
        for t in loop.scheduler.timesteps:
            x = loop.scheduler.step(loop.unet(x).detach(), t, x).prev_sample
        ended = x.clone()
        x.clamp_(-0.1, 0.1)
    assert np.array_equal(recording.profile["final_sample"].values, ended.numpy())


def test_the_error_that_is_shown_is_the_first_one():
    pipe, sample = make_pipeline("ddpm")
    with pytest.raises(KeyError, match="first") as error, record(pipe, [Samples()]) as recording:  # noqa: PT012
        sample()
        recording.finish = mock.Mock(side_effect=OSError("the disk is full"))
        raise KeyError("first")
    assert error.value.__notes__ == ["The recording could not be ended either: OSError: the disk is full"]


def test_a_threshold_that_somebody_put_into_a_scheduler_stays_there():
    scheduler = DPMSolverMultistepScheduler(thresholding=True)
    own = scheduler._threshold_sample = lambda sample: sample.clamp(-1, 1)
    with thresholded(scheduler) as found:
        scheduler._threshold_sample(torch.tensor([3.0]))
    assert found == [torch.tensor([1.0])]
    assert scheduler._threshold_sample is own
