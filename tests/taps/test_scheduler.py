import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler

from diffusers_xai.taps import copy_scheduler, noise_level, predicted_x0_and_noise, tap_step


ALPHA_BARS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
def test_noise_level(timestep):
    alpha_bar = ALPHA_BARS[timestep]
    expected = math.sqrt((1 - alpha_bar) / alpha_bar)
    assert noise_level(DDPMScheduler(), timestep) == pytest.approx(expected, rel=1e-4)


def test_noise_level_is_the_scheduler_s_own_sigma_also_between_timesteps():
    for scheduler in (HeunDiscreteScheduler(), EulerDiscreteScheduler(use_karras_sigmas=True)):
        scheduler.set_timesteps(7)
        for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            assert noise_level(scheduler, float(timestep)) == pytest.approx(float(sigma), rel=1e-3)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(5)
    for timestep, sigma in zip(flow.timesteps, flow.sigmas, strict=False):
        assert noise_level(flow, float(timestep)) == pytest.approx(float(sigma), rel=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_predictions_give_back_the_image_and_the_noise(prediction_type):
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    signal, sigma = math.sqrt(ALPHA_BARS[300]), math.sqrt(1 - ALPHA_BARS[300])
    output = {"epsilon": noise, "v_prediction": signal * noise - sigma * x0, "sample": x0}[prediction_type]
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    image, implied = predicted_x0_and_noise(scheduler, 300, output, signal * x0 + sigma * noise)
    torch.testing.assert_close(image, x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(implied, noise, rtol=1e-4, atol=1e-4)


def test_flow_predictions_give_back_the_image_and_the_noise():
    x0, noise = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), 3.0)
    image, implied = predicted_x0_and_noise(
        FlowMatchEulerDiscreteScheduler(), 250.0, noise - x0, 0.75 * x0 + 0.25 * noise
    )
    torch.testing.assert_close(image, x0)
    torch.testing.assert_close(implied, noise)


def test_unknown_predictions_are_refused():
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="prediction_type='score'"):
        predicted_x0_and_noise(scheduler, 3, torch.zeros(1), torch.zeros(1))


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
