import pytest
import torch
from diffusers import DDPMScheduler

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
