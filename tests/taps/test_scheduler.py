import copy

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai.taps import copy_scheduler, tap_step


@pytest.mark.parametrize("return_dict", [True, False])
def test_steps_are_reported_and_the_scheduler_is_left_as_it_was(return_dict):
    scheduler, steps = DDPMScheduler(), []
    scheduler.set_timesteps(4)
    sample, output = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    with tap_step(scheduler, steps.append):
        result = scheduler.step(output, 750, sample, return_dict=return_dict)
        copied = copy_scheduler(scheduler)
        copied.step(output, 750, sample)  # a copy is not tapped
    assert "step" not in vars(scheduler)
    (step,) = steps
    assert step.timestep == 750
    assert step.sample is sample
    assert step.model_output is output
    assert step.result is (result.prev_sample if return_dict else result[0])
    assert step.pred_original_sample is (result.pred_original_sample if return_dict else result[1])


class PassingOn(DDIMScheduler):
    """A subclass that does not say what it takes."""

    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


def test_a_subclass_may_pass_on_whatever_it_is_given():
    scheduler, seen = PassingOn(), []
    scheduler.set_timesteps(2)
    noise, sample = torch.rand(2, 1, 3, 4, 4)
    with tap_step(scheduler, seen.append):
        result = scheduler.step(noise, scheduler.timesteps[0], sample=sample).prev_sample
    assert seen[0].sample is sample
    assert seen[0].model_output is noise
    assert seen[0].result is result


class Counting(DDIMScheduler):
    """Tells which scheduler made a step."""

    def step(self, model_output, timestep, sample):
        self.made = getattr(self, "made", 0) + 1
        return super().step(model_output, timestep, sample)


def test_a_deep_copy_made_meanwhile_steps_for_itself_and_is_not_tapped():
    scheduler, seen = Counting(), []
    scheduler.set_timesteps(2)
    noise, sample = torch.rand(2, 1, 3, 4, 4)
    with tap_step(scheduler, seen.append):
        copied = copy.deepcopy(scheduler)  # as pipelines of video do for their sound
        scheduler.step(noise, scheduler.timesteps[0], sample)
        for timestep in copied.timesteps:
            copied.step(noise, timestep, sample)
    assert (scheduler.made, copied.made, len(seen)) == (1, 2, 1)
